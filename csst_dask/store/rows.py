"""The client's way into the store: it gives chips rows and writes what is known of them.

No task calls these functions, and no two clients may work on one store at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from csst_dask.schema import ChipKey, ChipResult
from csst_dask.store.layout import CHIP_VARIABLES
from csst_dask.store.survey import FILES, array_of, chip_arrays, count_rows, open_group


def chip_rows(path: str) -> dict[ChipKey, int]:
    """Row of every chip that has one."""
    group = open_group(path)
    rows = count_rows(group)
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
    start = count_rows(group)
    rows = list(range(start, start + len(keys)))
    # the length of status decides how many chips there are, so it changes last: rows that a dying client leaves in
    # the other arrays belong to nobody, and the next one takes them
    for name in chip_arrays(group):
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


def mend(path: str) -> None:
    """Give every per-chip array the length of ``status`` again, after a client died in `allocate`."""
    group = open_group(path, "r+")
    rows = count_rows(group)
    for name in chip_arrays(group):
        array = array_of(group, name)
        if array.shape[0] != rows:
            array.resize((rows, *array.shape[1:]))


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


def write_files(path: str, files: Sequence[tuple[str, str]], accounted: Sequence[str] = ()) -> None:
    """Record inputs that gave no chip.

    Parameters
    ----------
    path : str
        Survey store.
    files : sequence of (path, reason)
    accounted : sequence of str
        Inputs that did give a chip this time; older records of them are dropped.
    """
    group = array_of(open_group(path, "r+"), FILES)
    columns = (array_of(group, name)[:].tolist() for name in ("path", "reason"))
    known = dict(zip(*columns, strict=True)) | dict(files)
    for name in accounted:
        known.pop(name, None)
    for name, values in (("path", list(known)), ("reason", list(known.values()))):
        array = array_of(group, name)
        array.resize((len(values),))
        if values:
            array[:] = np.array(values, dtype=object)
