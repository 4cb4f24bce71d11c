"""The ``predictions`` group of a survey store: one row for each chip, on its own feet.

It repeats the chips' coordinates, so that it can be mapped without the rest of the store's variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from csst_dask.errors import ConfigError
from csst_dask.schema import CLASS_LABELS, N_CLASSES, ROUTE_FLAGS
from csst_dask.store.layout import CHIP_VARIABLES, COORDINATES, NAN, Variable
from csst_dask.store.rows import write_columns
from csst_dask.store.survey import PREDICTIONS, array_of, create_array, locate, open_group, plain_strings

CHIP = Variable("chip", ("chip",), np.int64, -1, {"long_name": "row in the survey store"})

COPIED = tuple(v for v in CHIP_VARIABLES if v.name in COORDINATES)
"""Coordinates that the group repeats."""


def _value(name: str, dtype: Any, fill: Any, long_name: str, units: str = "1", **attrs: Any) -> Variable:
    return Variable(name, ("chip",), dtype, fill, {"long_name": long_name, "units": units, **attrs})


PREDICTED = (
    Variable(
        "class_probability", ("chip", "density_level"), np.float32, NAN,
        {"long_name": "probability of each density class", "units": "1"}, (N_CLASSES,),
    ),
    _value("density_class", np.int8, -1, "most probable density class, -1 without prediction"),
    _value("confidence", np.float32, NAN, "largest class probability"),
    _value("log_star", np.float32, NAN, "log10(1 + stars on the frame), NaN where the networks give none"),
    _value("star_lower", np.float32, NAN, "lower bound of the interval of the stars on the frame"),
    _value("star_upper", np.float32, NAN, "upper bound of the interval of the stars on the frame"),
    _value("log_bright", np.float32, NAN, "log10(1 + bright stars on the frame), NaN where bypassed"),
    _value("bright_count", np.float32, NAN, "bright stars on the frame, NaN where bypassed"),
    _value("bright_lower", np.float32, NAN, "lower bound of the interval of bright_count"),
    _value("bright_upper", np.float32, NAN, "upper bound of the interval of bright_count"),
    _value("unlike", bool, False, "unlike the training data"),
)  # fmt: skip
"""What tasks return."""

ROUTED = (
    Variable("route", ("chip",), str, "", {"long_name": "what the pipeline should do next"}),
    _value(
        "route_flags", np.uint8, 0, "every route that applies",
        flag_masks=list(ROUTE_FLAGS.values()), flag_meanings=" ".join(ROUTE_FLAGS),
    ),
)  # fmt: skip
"""What the client makes of it."""


def prepare(path: str, rows: int, identity: Mapping[str, Any]) -> NDArray[np.int8]:
    """Make room for the predictions of a store's chips.

    Predictions of other weights, or with fewer variables, are dropped: a group is the work of one pair of networks.

    Parameters
    ----------
    path : str
        Survey store.
    rows : int
        Number of chips.
    identity : mapping
        Attributes that must agree for predictions to be kept.

    Returns
    -------
    (rows,) int8 array
        Density classes that are there already; -1 where there is no prediction.
    """
    root = open_group(path, "r+")
    group = root.get(PREDICTIONS)
    variables = (CHIP, *COPIED, *PREDICTED, *ROUTED)
    if (
        not isinstance(group, zarr.Group)
        or any(group.attrs.get(k) != v for k, v in identity.items())
        or any(variable.name not in group for variable in variables)
    ):
        group = root.create_group(PREDICTIONS, overwrite=True)
        for variable in variables:
            create_array(group, variable)
        level = group.create_array(
            "density_level", shape=(N_CLASSES,), dtype=np.int8, dimension_names=("density_level",)
        )
        level[:] = np.arange(N_CLASSES)
        level.attrs.update({"long_name": "density class", "flag_meanings": " ".join(CLASS_LABELS)})
        group.attrs.update({**identity, "store": path, "coordinates": " ".join(v.name for v in COPIED)})
    for variable in variables:
        array_of(group, variable.name).resize((rows, *variable.shape))
    array_of(group, "chip")[:] = np.arange(rows)
    return np.asarray(array_of(group, "density_class")[:])


def batch_of(path: str, identity: Mapping[str, Any]) -> int | None:
    """Batch that a store's predictions were made with; None if there are none with these attributes."""
    group = open_group(path, "r").get(PREDICTIONS)
    if not isinstance(group, zarr.Group) or any(group.attrs.get(k) != v for k, v in identity.items()):
        return None
    batch = group.attrs.get("batch")
    return batch if isinstance(batch, int) else None


def write(path: str, rows: Sequence[int] | NDArray[np.int64], values: Mapping[str, NDArray]) -> None:
    """Write predictions, or coordinates and routes, of some rows; client only."""
    write_columns(array_of(open_group(path, "r+"), PREDICTIONS), rows, values)


def describe(path: str, attrs: Mapping[str, Any]) -> None:
    """Update the group's attributes."""
    open_group(path, "r+")[PREDICTIONS].attrs.update(attrs)


def read(path: str | Path, *, chunks: Any = None) -> xr.Dataset:
    """Open the predictions of a store.

    Parameters
    ----------
    path : path or str
        Survey store.
    chunks
        As in `xarray.open_zarr`; None reads without Dask.

    Returns
    -------
    xarray.Dataset
        ``chip`` is the row in the store, ``attrs["store"]`` its path.

    Raises
    ------
    ConfigError
        If the store has none.
    """
    where = locate(path)
    if PREDICTIONS not in open_group(where):
        raise ConfigError(f"{path} has no predictions; run 'csst-dask predict --store {path}' first")
    found = xr.open_zarr(where, group=PREDICTIONS, consolidated=False, chunks=chunks)
    return plain_strings(found).assign_attrs(store=where)
