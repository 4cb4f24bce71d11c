"""A store as xarray shows it: lazily opened, with flags as text."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr
import zarr

from csst_dask.errors import ConfigError
from csst_dask.store.layout import MEASURED, PREDICTIONS
from csst_dask.store.survey import SurveyStore

LARGE = ("image", "mask", "header", *MEASURED)
"""Variables with chunks of their own for every chip."""


def open_dataset(store: SurveyStore, *, predictions: bool = False) -> xr.Dataset:
    """Open the chips of a store, or what is predicted of them.

    Parameters
    ----------
    store : SurveyStore
    predictions : bool

    Returns
    -------
    xarray.Dataset
        What has chunks of its own for every chip are Dask arrays with these chunks; the rest is read when it is looked
        at. ``status`` and ``route`` are text, ``predicted`` is bool. ``chip`` is the
        row, and ``attrs["store"]`` the place.

    Raises
    ------
    ConfigError
        If a process is making room in the store at this moment, or died while it did.
    """
    arrays = store.predictions.arrays if predictions else store.arrays
    for name, array in arrays.items():
        if array.metadata.dimension_names[0] == "chip" and array.shape[0] != store.rows:
            raise ConfigError(
                f"{store.location} has {store.rows} chips but {array.shape[0]} rows of {name!r}: a run makes room just "
                "now, or died while it did; run it again"
            )
    with warnings.catch_warnings():
        # of a lease, which is no part of the hierarchy
        warnings.filterwarnings("ignore", "Object at .* is not recognized", zarr.errors.ZarrUserWarning)
        options: dict[str, Any] = {
            "group": PREDICTIONS if predictions else None,
            "consolidated": False,
            "zarr_format": 3,
        }
        found = xr.open_zarr(store.zarr_store, chunks=None, **options)
        chunked = xr.open_zarr(store.zarr_store, **options)
    found = found.assign({name: chunked[name].variable for name in LARGE if name in found.variables})
    for name in ("status", "route"):
        if name in found:
            attrs = found[name].attrs
            meanings = np.array(str(attrs["flag_meanings"]).split())
            kept = {key: value for key, value in attrs.items() if not key.startswith("flag_")}
            found[name] = found[name].dims, meanings[found[name].values], kept
    if "predicted" in found:
        found["predicted"] = found["predicted"].dims, found["predicted"].values == 1, {"long_name": "is predicted"}
    # coordinates by name too: those of the corners and the header have dimensions of their own
    order = [name for name in arrays if name in found.variables]
    return found[order].assign_coords(chip=np.arange(store.rows)).assign_attrs(store=store.location)
