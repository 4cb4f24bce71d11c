"""The survey store on disk: create it, give chips rows, write one chip, open it as xarray.

The client alone allocates rows and writes per-chip scalars; a task writes only whole chunks of its own chip, so
tasks never touch the same file and writing a chip again is harmless.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike, NDArray

from csst_dask.config import IngestConfig, MaskConfig
from csst_dask.errors import ConfigError
from csst_dask.schema import CHANNELS, ChipKey, ChipResult
from csst_dask.store.layout import (
    BLOCK,
    CHIP_VARIABLES,
    COORDINATES,
    FORMAT,
    HEADER_BYTES,
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
    """Create an empty store.

    Parameters
    ----------
    path : str
        Folder or URL; must not hold a store.
    config : IngestConfig
        Frame, chunks, and what is kept of the pixels.
    mask : MaskConfig
        Recorded, since it decides which pixels count as valid.
    keep_mask : bool
        False leaves the mask out, for training sets without pixels.
    """
    group = zarr.create_group(path, zarr_format=3, overwrite=False)
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


def exists(path: str) -> bool:
    """Whether there is a Zarr group at a path."""
    try:
        zarr.open_group(path, mode="r")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def open_group(path: str, mode: Any = "r") -> zarr.Group:
    """Open a survey store and check that it is one.

    Raises
    ------
    ConfigError
        If there is no store, or one of another format.
    """
    try:
        group = zarr.open_group(path, mode=mode)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"no survey store at {path}; make one with 'csst-dask ingest' or check the path") from None
    found = (group.attrs.get("format"), group.attrs.get("format_version"))
    if found != (FORMAT, VERSION):
        raise ConfigError(f"{path} holds {found[0]!r} version {found[1]}; expected {FORMAT!r} version {VERSION}")
    return group


def open_survey(path: str | Path) -> xr.Dataset:
    """Open a survey store lazily.

    Parameters
    ----------
    path : path or str
        Folder or URL of a store.

    Returns
    -------
    xarray.Dataset
        Backed by Dask arrays with the store's chunks; ``chip`` is the row number, and ``attrs["store"]`` the path.

    Raises
    ------
    ConfigError
        If there is no store at the path, or a client died while it gave chips rows there.
    """
    where = locate(path)
    _check_whole(where)
    survey = xr.open_zarr(where, consolidated=False)
    return survey.assign_coords(chip=np.arange(survey.sizes["chip"])).assign_attrs(store=where)


def _check_whole(path: str) -> None:
    """Refuse arrays of unequal length, which `allocate` leaves when its process dies."""
    group = open_group(path)
    rows = _count_rows(group)
    for name in _chip_arrays(group):
        if array_of(group, name).shape[0] != rows:
            raise ConfigError(
                f"{path} has {rows} chips but {array_of(group, name).shape[0]} rows of {name!r}: a run was stopped "
                "while it made room; run it again to mend the store"
            )


def _chip_arrays(group: zarr.Group) -> list[str]:
    return [name for name, _ in group.arrays() if array_of(group, name).metadata.dimension_names[0] == "chip"]


def _count_rows(group: zarr.Group) -> int:
    """Chips that have rows; other arrays may be longer for a moment."""
    return int(array_of(group, "status").shape[0])


def open_scalars(path: str | Path) -> xr.Dataset:
    """The per-chip variables of a store, loaded; no pixels, maps or headers."""
    group = open_group(str(path))
    rows = _count_rows(group)
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


def chip_rows(path: str) -> dict[ChipKey, int]:
    """Row of every chip that has one."""
    group = open_group(path)
    rows = _count_rows(group)
    columns = (array_of(group, name)[:rows] for name in ("obs_id", "detector", "version"))
    return {
        ChipKey(str(obs_id), int(detector), int(version)): row
        for row, (obs_id, detector, version) in enumerate(zip(*columns, strict=True))
    }


def allocate(path: str, keys: Sequence[ChipKey]) -> list[int]:
    """Give new chips rows at the end of the store; their status is pending.

    Parameters
    ----------
    path : str
    keys : sequence of ChipKey
        None of them has a row yet.

    Returns
    -------
    list of int
        Row of each key.
    """
    group = open_group(path, "r+")
    start = _count_rows(group)
    rows = list(range(start, start + len(keys)))
    # the length of status decides how many chips there are, so it changes last: rows that a dying client leaves in
    # the other arrays belong to nobody, and the next one takes them
    for name in _chip_arrays(group):
        array = array_of(group, name)
        if name != "status":
            array.resize((start + len(keys), *array.shape[1:]))
    write_columns(
        group,
        rows,
        {
            "obs_id": np.array([key.obs_id for key in keys], dtype=object),
            "detector": [key.detector for key in keys],
            "version": [key.version for key in keys],
        },
    )
    array_of(group, "status").resize((start + len(keys),))
    return rows


def write_columns(group: zarr.Group, rows: Sequence[int] | NDArray[np.int64], columns: Mapping[str, ArrayLike]) -> None:
    """Write per-chip values of some rows; client only."""
    if not len(rows):
        return
    index = np.asarray(rows)
    for name, values in columns.items():
        array = np.asarray(values)
        array_of(group, name).oindex[index] = array.astype(object) if array.dtype.kind in "OUT" else array


def write_results(path: str, rows: Sequence[int], results: Sequence[ChipResult]) -> None:
    """Record what became of some chips: scalars first, status last, so that a done row is complete."""
    if not rows:
        return
    group = open_group(path, "r+")
    done = [(row, result.info) for row, result in zip(rows, results, strict=True) if result.info is not None]
    if done:
        fields = [v.name for v in CHIP_VARIABLES if hasattr(done[0][1], v.name)]
        write_columns(
            group,
            [row for row, _ in done],
            {name: _column([getattr(info, name) for _, info in done]) for name in fields},
        )
    write_columns(group, rows, {"reason": _column([result.reason for result in results])})
    write_columns(group, rows, {"status": _column([result.status for result in results])})


def _column(values: list) -> NDArray:
    return np.array(values, dtype=object) if isinstance(values[0], str) else np.asarray(values)


def write_files(path: str, files: Sequence[tuple[str, str]]) -> None:
    """Record inputs that gave no chip; an input that is recorded already keeps its row."""
    group = array_of(open_group(path, "r+"), FILES)
    known = {str(name): row for row, name in enumerate(array_of(group, "path")[:])}
    new = dict.fromkeys(name for name, _ in files if name not in known)
    known |= {name: len(known) + k for k, name in enumerate(new)}
    for name in ("path", "reason"):
        array_of(group, name).resize((len(known),))
    write_columns(
        group,
        [known[name] for name, _ in files],
        {"path": _column([name for name, _ in files]), "reason": _column([why for _, why in files])} if files else {},
    )


class ChipWriter:
    """Writes the pixels, maps and header of one chip: a task's only way into the store.

    Parameters
    ----------
    path : str
    row : int
        The chip's row, allocated by the client.
    """

    def __init__(self, path: str, row: int):
        group = zarr.open_group(path, mode="r+")
        self.row = row
        self._image: Any = group.get("image")
        self._mask: Any = group.get("mask")
        self._reduced, self._header = array_of(group, "reduced"), array_of(group, "header")

    @property
    def band_rows(self) -> int | None:
        """Rows that must be written together; None if no pixels are kept."""
        array = self._image if self._image is not None else self._mask
        if array is None:
            return None
        return int((array.shards or array.chunks)[1])

    def write_pixels(self, y0: int, image: NDArray[np.float32], mask: NDArray[np.uint8]) -> None:
        """Write whole rows that begin at ``y0``, a multiple of `band_rows`."""
        stop = y0 + image.shape[0]
        if self._image is not None:
            self._image[self.row, y0:stop] = image
        if self._mask is not None:
            self._mask[self.row, y0:stop] = mask

    def write_maps(self, maps: NDArray, cards: NDArray[np.uint8]) -> None:
        """Write the reduced maps (channel, iy, ix) and the header cards."""
        self._reduced[self.row] = maps.astype(np.float32)
        padded = np.full(HEADER_BYTES, 32, np.uint8)
        padded[: min(cards.size, HEADER_BYTES)] = cards[:HEADER_BYTES]
        self._header[self.row] = padded
