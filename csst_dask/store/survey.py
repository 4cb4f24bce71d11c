"""The survey store on disk: create it, give chips rows, write one chip, open it as xarray.

The client alone allocates rows and writes per-chip scalars; a task writes only whole chunks of its own chip, so
tasks never touch the same file and writing a chip again is harmless.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from csst_dask.config import IngestConfig, MaskConfig
from csst_dask.errors import ConfigError
from csst_dask.schema import CHANNELS
from csst_dask.store.layout import (
    BLOCK,
    CHIP_VARIABLES,
    COORDINATES,
    FORMAT,
    VERSION,
    Variable,
    pixel_variables,
)

FILES = "files"
PREDICTIONS = "predictions"


def array_of(group: zarr.Group, name: str) -> Any:
    """An array of a group; Zarr's own types do not tell it from a group or a scalar."""
    return group[name]


def create_array(group: zarr.Group, variable: Variable, rows: int = 0) -> zarr.Array:
    """Create one array with dimension names and attributes."""
    return group.create_array(
        variable.name,
        shape=(rows, *variable.shape),
        chunks=variable.chunks or (BLOCK, *variable.shape),
        shards=variable.shards,
        dtype=variable.dtype,
        fill_value=variable.fill,
        compressors=variable.codec,
        dimension_names=variable.dims,
        attributes=dict(variable.attrs),
    )


def create_survey(path: str, config: IngestConfig, mask: MaskConfig, *, keep_mask: bool = True) -> None:
    """Create an empty store; its format is written last, so that an unfinished one is not taken for a store.

    Parameters
    ----------
    path : str
        Folder or URL; must not hold a store (`exists`).
    config : IngestConfig
        Frame, chunks, and what is kept of the pixels.
    mask : MaskConfig
        Recorded, since it decides which pixels count as valid.
    keep_mask : bool
        False leaves the mask out, for training sets without pixels.
    """
    if exists(path):
        raise ConfigError(f"{path} holds a survey store already; add to it, or name another place")
    group = zarr.create_group(path, zarr_format=3, overwrite=True)
    for variable in (
        *CHIP_VARIABLES,
        *pixel_variables(config.frame, config.chunks, config.pixels, config.shard, keep_mask),
    ):
        create_array(group, variable)
    channel = group.create_array("channel", shape=(len(CHANNELS),), dtype=str, dimension_names=("channel",))
    channel[:] = np.array(CHANNELS, dtype=object)
    files = group.create_group(FILES)
    for name, text in (("path", "input that gave no chip"), ("reason", "why it gave none")):
        create_array(files, Variable(name, ("file",), str, "", {"long_name": text}))
    group.attrs.update(
        {
            "Conventions": "CF-1.12",
            "title": "CSST survey store",
            "format": FORMAT,
            "format_version": VERSION,
            "frame": list(config.frame),
            "pixels": config.pixels,
            "invalid_bits": mask.invalid_bits,
            "flag_bits": {str(bit): name for bit, name in mask.flag_bits.items()},
            "coordinates": " ".join(COORDINATES),
        }
    )


def locate(path: str | Path) -> str:
    """A store's path as every worker can use it: a URL as it is, a folder from the root."""
    text = str(path)
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def locate_all(stores: str | Path | Sequence[str | Path]) -> list[str]:
    """`locate` of one store or of several."""
    return [locate(store) for store in ([stores] if isinstance(stores, str | Path) else stores)]


def exists(path: str) -> bool:
    """Whether there is a survey store at a path.

    A group without a format and without chips, which a client leaves that dies while it creates a store, is none.

    Raises
    ------
    ConfigError
        If there is something else, which a new store would spoil.
    """
    try:
        group = zarr.open_group(path, mode="r")
    except (FileNotFoundError, NotADirectoryError, zarr.errors.ContainsArrayError):
        folder = Path(path)
        if "://" not in path and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{path} exists and is no survey store; name another place for the store") from None
        return False
    if "format" in group.attrs:
        return True
    ours = {v.name for v in (*CHIP_VARIABLES, *pixel_variables((1, 1), (1, 1), "lossless", False, True))}
    strange = sorted(set(group.keys()) - ours - {"channel", FILES})
    if strange or ("status" in group and count_rows(group) > 0):
        what = f"with {', '.join(strange[:3])}" if strange else "without a format"
        raise ConfigError(f"{path} is a Zarr group {what} and no survey store; name another place for the store")
    return False


def open_group(path: str, mode: Any = "r") -> zarr.Group:
    """Open a survey store and check that it is one.

    Raises
    ------
    ConfigError
        If there is no store, or one of another format.
    """
    try:
        group = zarr.open_group(path, mode=mode)
    except (FileNotFoundError, NotADirectoryError, zarr.errors.ContainsArrayError):
        raise ConfigError(f"no survey store at {path}; make one with 'csst-dask ingest' or check the path") from None
    found = (group.attrs.get("format"), group.attrs.get("format_version"))
    if found != (FORMAT, VERSION):
        raise ConfigError(f"{path} holds {found[0]!r} version {found[1]}; expected {FORMAT!r} version {VERSION}")
    return group


def plain_strings(dataset: xr.Dataset) -> xr.Dataset:
    """Strings as Python objects: NumPy's own string type cannot be filled with NaN, which ``where`` needs."""
    names = [name for name in dataset.variables if dataset[name].dtype.kind == "T"]
    return dataset.assign(
        {name: dataset[name].astype(object) for name in names if name not in dataset.coords}
    ).assign_coords({name: dataset[name].astype(object) for name in names if name in dataset.coords})


def open_survey(path: str | Path) -> xr.Dataset:
    """Open a survey store lazily.

    Parameters
    ----------
    path : path or str
        Folder or URL of a store.

    Returns
    -------
    xarray.Dataset
        ``image``, ``mask``, ``reduced`` and ``header`` are Dask arrays with the store's chunks; the rest is read when
        it is looked at. ``chip`` is the row number, and ``attrs["store"]`` the path.

    Raises
    ------
    ConfigError
        If there is no store at the path, or a client died while it gave chips rows there.
    """
    where = locate(path)
    _check_whole(where)
    survey = xr.open_zarr(where, consolidated=False, chunks=None)
    chunked = xr.open_zarr(where, consolidated=False)
    big = [name for name in ("image", "mask", "reduced", "header") if name in survey.variables]
    survey = survey.assign({name: chunked[name].variable for name in big}).set_coords("header")
    return plain_strings(survey).assign_coords(chip=np.arange(survey.sizes["chip"])).assign_attrs(store=where)


def _check_whole(path: str) -> None:
    """Refuse arrays of unequal length, which `allocate` leaves when its process dies."""
    group = open_group(path)
    rows = count_rows(group)
    for name in chip_arrays(group):
        if array_of(group, name).shape[0] != rows:
            raise ConfigError(
                f"{path} has {rows} chips but {array_of(group, name).shape[0]} rows of {name!r}: a run was stopped "
                "while it made room; run it again to mend the store"
            )


def chip_arrays(group: zarr.Group) -> list[str]:
    """Names of the arrays with one entry or more for every chip."""
    return [name for name, _ in group.arrays() if array_of(group, name).metadata.dimension_names[0] == "chip"]


def count_rows(group: zarr.Group) -> int:
    """Chips that have rows; other arrays may be longer for a moment."""
    return int(array_of(group, "status").shape[0])


def open_scalars(path: str | Path) -> xr.Dataset:
    """The per-chip variables of a store, loaded; no pixels, maps or headers."""
    group = open_group(str(path))
    rows = count_rows(group)
    data = {v.name: (v.dims, array_of(group, v.name)[:rows], dict(v.attrs)) for v in CHIP_VARIABLES}
    return xr.Dataset(data, coords={"chip": np.arange(rows)}, attrs=dict(group.attrs))


def check_usable(path: str, config: IngestConfig, mask: MaskConfig) -> None:
    """Refuse an existing store that cannot take these chips; a path without a store is fine.

    Raises
    ------
    ConfigError
        If there is something else at the path, or a store of other settings.
    """
    if exists(path):
        check_same_format(path, config, mask)


def check_same_format(path: str, config: IngestConfig, mask: MaskConfig) -> None:
    """Refuse to add to a store that was made with other settings.

    Raises
    ------
    ConfigError
        Names the first setting that differs.
    """
    attrs = open_group(path).attrs
    for name, found, wanted in (
        ("ingest.frame", tuple(attrs["frame"]), tuple(config.frame)),  # type: ignore[arg-type]
        ("ingest.pixels", attrs["pixels"], config.pixels),
        ("mask.invalid", attrs["invalid_bits"], mask.invalid_bits),
        ("mask.flag_bits", attrs["flag_bits"], {str(bit): name for bit, name in mask.flag_bits.items()}),
    ):
        if found != wanted:
            raise ConfigError(f"{path} was made with {name} {found}, not {wanted}; use another store or that setting")
