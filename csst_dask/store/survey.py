"""The survey store: one object that owns a store, opened once and handed down.

It alone gives chips rows, records what became of them, and holds the lease. Tasks write whole chunks of their own chip
(`csst_dask.store.writer.ChipWriter`) and nothing else, so that writing a chip again is harmless. Of several writes that
belong together the marker of completeness is the last one: a process may die between any two of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike, NDArray

from csst_dask.config import IngestConfig, MaskConfig
from csst_dask.errors import ConfigError, DamagedStore, describe_error
from csst_dask.schema import DONE, PENDING, STATUSES, SUPERSEDED, ChipInfo, ChipKey, ChipResult
from csst_dask.store.arrays import (
    array_of,
    at_once,
    consolidate,
    group_of,
    grow,
    known_warnings,
    read_chip,
    read_column,
    write_rows,
)
from csst_dask.store.create import check_format, check_same_settings, check_usable, create, is_store
from csst_dask.store.files import FileTable
from csst_dask.store.layout import (
    CHIP_VARIABLES,
    FILES,
    LEDGER,
    PREDICTIONS,
    ROOT_AXES,
    Variable,
    pixel_variables,
)
from csst_dask.store.lease import Lease
from csst_dask.store.location import locate, open_group, root_document
from csst_dask.store.predictions import PredictionTable

BY_NEWER = "superseded by a newer version"
"""Begins the reason of such a chip; what was noted about it follows."""

_NAN = float("nan")
_NO_INFO = ChipInfo("", _NAN, _NAN, _NAN, _NAN, (_NAN,) * 4, (_NAN,) * 4, "")


class SurveyStore:
    """A survey store; `read` or `write` opens one.

    Parameters
    ----------
    location : str
        As `csst_dask.store.location.locate` gives it.
    group : zarr.Group
        Its root.
    lease : Lease, optional
        Held; without one the store can only be read.
    """

    def __init__(self, location: str, group: zarr.Group, lease: Lease | None = None):
        self.location, self.lease = location, lease
        self._group = group
        self._touched, self._consolidated = False, True

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Open a store to read it.

        Raises
        ------
        ConfigError
            If there is no store, or one of another layout.
        """
        location = locate(path)
        check_format(location, root_document(location))
        return cls(location, open_group(location, read_only=True))

    @classmethod
    def reserve(
        cls,
        path: str | os.PathLike[str],
        ingest: IngestConfig | None = None,
        mask: MaskConfig | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Lease:
        """Take the lease of a store that can be written, before it is made or opened.

        Parameters
        ----------
        path : path or str
        ingest, mask : IngestConfig and MaskConfig, optional
            As for `write`.
        say : callable, optional
            Receives a line while another process is waited for.

        Returns
        -------
        Lease
            Held; a context manager that releases it.

        Raises
        ------
        ConfigError
            If there is something else, a store of other settings, or a process that writes to it.
        """
        location = locate(path)
        check_usable(location, ingest, mask)
        lease = Lease(location, say)
        lease.acquire()
        return lease

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        ingest: IngestConfig | None = None,
        mask: MaskConfig | None = None,
        *,
        keep_mask: bool = True,
        damaged: bool = False,
        lease: Lease | None = None,
    ) -> Self:
        """Open a store to write; `close` ends that, and releases its lease.

        Parameters
        ----------
        path : path or str
        ingest : IngestConfig, optional
            Settings of the store; with them it is made where there is none.
        mask : MaskConfig, optional
            Recorded, since it decides which pixels count as valid.
        keep_mask : bool
            False leaves the mask out of a new store, for training sets without pixels.
        damaged : bool
            Open the store to repair it, though it may be damaged.
        lease : Lease, optional
            As `reserve` gives it; by default it is taken now.

        Raises
        ------
        ConfigError
            As `reserve`.
        """
        lease = lease or cls.reserve(path, ingest, mask)
        location = lease.location
        try:
            root = root_document(location)
            if ingest is not None and mask is not None and not is_store(root):
                store = cls(location, create(location, ingest, mask, keep_mask), lease)
                store._consolidated = False
            else:
                attrs = check_format(location, root)
                if ingest is not None and mask is not None:
                    check_same_settings(location, attrs, ingest, mask)
                store = cls(location, open_group(location, read_only=False), lease)
                store._consolidated = "consolidated_metadata" in (root or {})
            store._repair_lengths()
            if not damaged:
                store.predictions.clear_incomplete()
        except BaseException:
            lease.release()
            raise
        return store

    def close(self) -> None:
        """Write the consolidated metadata where anything has changed, and give the lease back."""
        if self.lease is None or not self.lease.held:
            return
        try:
            if self._touched or not self._consolidated:
                self.lease.check()
                self._repair_lengths()
                self._consolidate()
        finally:
            self.lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:  # what failed is not hidden by what fails after it
            self.close()
        except Exception as failed:
            error.add_note(f"and then: {describe_error(failed)}")

    # what the store is

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the root."""
        return dict(self._group.attrs)

    @property
    def zarr_store(self) -> Any:
        """The Zarr store behind it."""
        return self._group.store_path.store

    @property
    def frame(self) -> tuple[int, int]:
        """Shape (y, x) of the frames, pixel."""
        ny, nx = self.attrs["frame"]
        return int(ny), int(nx)

    @property
    def rows(self) -> int:
        """Chips that have rows; other arrays may be longer while a process makes room."""
        return int(self.arrays["status"].shape[0])

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """All arrays of the root, by name, in the order of the layout."""
        names = [variable.name for variable in self._layout]
        return dict(zip(names, at_once(lambda name: array_of(self._group, name), names), strict=True))

    @cached_property
    def predictions(self) -> PredictionTable:
        """What networks say of the chips."""
        group = group_of(self._group, PREDICTIONS)
        return PredictionTable(group, self.arrays, self.begin, lambda: self.exposure)

    @cached_property
    def files(self) -> FileTable:
        """Inputs that gave no chip."""
        return FileTable(group_of(self._group, FILES), self.begin)

    def require(self, *measured: str) -> None:
        """Make sure that the passes over the pixels have measured something.

        Raises
        ------
        ConfigError
            If the store was filled without it.
        """
        missing = [name for name in measured if name not in self.attrs["measured"]]
        if missing:
            raise ConfigError(
                f"{self.location} was filled without {', '.join(missing)}; ingest the images again into another store"
            )

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Add attributes to the root, where they differ."""
        if any(self._group.attrs.get(name) != value for name, value in attrs.items()):
            self.begin()
            self._group.attrs.update(attrs)

    # the chips

    def column(self, name: str, rows: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray:
        """A per-chip variable of all rows or of some; text is decoded."""
        return read_column(self.arrays[name], self.rows, rows, self.location)

    def read_chips(self, name: str, rows: Sequence[int] | NDArray[np.int64], part: Any = ...) -> NDArray:
        """A variable with chunks of its own for every chip, of some rows.

        Raises
        ------
        DamagedStore
            If a chunk was torn or changed; names the chip.
        """
        array, index = self.arrays[name], np.asarray(rows, np.int64)
        try:
            return np.asarray(array.oindex[index] if part is ... else array.oindex[index, part])
        except (ValueError, RuntimeError):
            for row in index.tolist():
                try:
                    read_chip(array, row)
                except DamagedStore as error:
                    raise DamagedStore(f"{self.location}, chip {self.name(row)}: {error}") from None
            raise

    @cached_property
    def ledger(self) -> dict[str, NDArray]:
        """`layout.LEDGER` of all rows, in memory; this object keeps it up to date."""
        return dict(zip(LEDGER, at_once(self.column, LEDGER), strict=True))

    @cached_property
    def row_of(self) -> dict[ChipKey, int]:
        """Row of every chip."""
        columns = (self.ledger[name].tolist() for name in ("obs_id", "detector", "version"))
        return {ChipKey(*key): row for row, key in enumerate(zip(*columns, strict=True))}

    @cached_property
    def exposure(self) -> NDArray[np.int64]:
        """(rows,) number of the exposure of every chip."""
        return np.unique(self.ledger["obs_id"], return_inverse=True)[1].astype(np.int64)

    def scalars(self, names: Iterable[str] | None = None) -> xr.Dataset:
        """Per-chip variables, loaded, with ``status`` as text; no pixels, statistics of blocks or headers.

        Parameters
        ----------
        names : iterable of str, optional
            By default all but the tiles.
        """
        wanted = [v for v in CHIP_VARIABLES if (v.name in names if names is not None else "ty" not in v.dims)]
        columns = at_once(lambda variable: self.column(variable.name), wanted)
        data = {v.name: (v.dims, values) for v, values in zip(wanted, columns, strict=True)}
        if "status" in data:
            data["status"] = ("chip",), np.array(STATUSES)[data["status"][1]]
        return xr.Dataset(data, coords={"chip": np.arange(self.rows)}, attrs=self.attrs)

    def allocate(self, keys: Sequence[ChipKey]) -> list[int]:
        """Give new chips rows at the end of the store; their status is pending.

        Parameters
        ----------
        keys : sequence of ChipKey
            None of them has a row yet.

        Returns
        -------
        list of int
        """
        self.begin()
        start, index = self.rows, dict(self.row_of)
        rows = list(range(start, start + len(keys)))
        every = {**self.arrays, **{f"{PREDICTIONS}/{name}": a for name, a in self.predictions.arrays.items()}}
        per_chip = {name: a for name, a in every.items() if a.metadata.dimension_names[0] == "chip"}
        grow([array for name, array in per_chip.items() if name != "status"], start + len(keys))
        columns: dict[str, ArrayLike] = {
            "obs_id": [key.obs_id for key in keys],
            "detector": [key.detector for key in keys],
            "version": [key.version for key in keys],
        }
        write_rows(self.arrays, rows, columns)
        write_rows(self.predictions.arrays, rows, {**columns, "chip": rows})
        ledger = self.ledger  # before the number of rows changes
        grow([self.arrays["status"]], start + len(keys))
        for name, values in ledger.items():
            new = np.asarray(columns[name]) if name in columns else self.column(name, rows)
            ledger[name] = np.concatenate([values, new])
        index.update(zip(keys, rows, strict=True))
        self.__dict__["row_of"] = index
        self.__dict__.pop("exposure", None)
        return rows

    def take_up(self, rows: Sequence[int], columns: Mapping[str, Sequence[str]]) -> None:
        """Make chips pending, drop their predictions, then note what they come from: in this order nothing is lost.

        What failed before is forgotten: these are other files, or a store that was repaired.

        Parameters
        ----------
        rows : sequence of int
        columns : mapping
            ``source``, ``source_id`` and ``truth_id`` of each.
        """
        if len(rows):
            self.begin()
            self.predictions.blank(rows)
            nothing = {"reason": [""] * len(rows), "attempts": [0] * len(rows), "predict_attempts": [0] * len(rows)}
            self._set(rows, {"status": np.full(len(rows), PENDING), **nothing, **columns})

    def record(self, rows: Sequence[int], results: Sequence[ChipResult]) -> None:
        """Record what became of some chips: scalars first, status last, so that a done row is complete.

        One that is not done has none, whatever it had before.
        """
        if not len(rows):
            return
        self.begin()
        infos = [_NO_INFO if result.info is None else result.info for result in results]
        self._set(rows, {f.name: [getattr(info, f.name) for info in infos] for f in fields(ChipInfo)})
        codes = np.array([STATUSES.index(result.status) for result in results])
        failed = np.array([result.status == "failed" for result in results])
        attempts = np.where(failed, self.ledger["attempts"][list(rows)] + 1, 0)
        self._set(rows, {"attempts": attempts, "reason": [result.reason for result in results], "status": codes})

    def set_status(self, rows: Sequence[int] | NDArray[np.int64], status: int, reasons: Sequence[str]) -> None:
        """Give chips another status, and say why."""
        if len(rows):
            self.begin()
            self._set(rows, {"reason": list(reasons), "status": np.full(len(rows), status)})

    def set_reasons(self, rows: Sequence[int], reasons: Sequence[str]) -> None:
        """Say something else of chips whose status stays."""
        if len(rows):
            self.begin()
            self._set(rows, {"reason": list(reasons)})

    def name(self, row: int) -> str:
        """A chip's name."""
        obs_id, detector, version = (self.ledger[name][row] for name in ("obs_id", "detector", "version"))
        return str(ChipKey(str(obs_id), int(detector), int(version)))

    def set_attempts(self, name: str, rows: Sequence[int] | NDArray[np.int64], values: ArrayLike) -> None:
        """Set ``attempts`` or ``predict_attempts`` of some chips, where they differ."""
        index, wanted = np.asarray(rows, np.int64), np.asarray(values)
        differ = self.ledger[name][index] != wanted
        if differ.any():
            self.begin()
            self._set(index[differ], {name: wanted[differ]})

    def supersede(self) -> int:
        """Mark older versions of an exposure and detector whose newer one is done; others are done again.

        Returns
        -------
        int
            Chips newly marked.
        """
        status = self.ledger["status"]
        old = superseded(self.ledger)
        new = np.flatnonzero(old & (status == DONE))
        if new.size:
            notes = self._notes(new)
            self.predictions.blank(new)
            self.set_status(new, SUPERSEDED, ["; ".join(filter(None, (BY_NEWER, note))) for note in notes])
        back = np.flatnonzero(~old & (status == SUPERSEDED))
        if back.size:
            self.set_status(back, DONE, self._notes(back))
        return new.size

    def _notes(self, rows: NDArray[np.int64]) -> list[str]:
        """What was noted about chips, without `BY_NEWER`, which a process that died may have written already."""
        return [text.removeprefix(BY_NEWER).removeprefix("; ") for text in self.column("reason", rows).tolist()]

    # inside

    @cached_property
    def _layout(self) -> tuple[Variable, ...]:
        attrs = self.attrs
        pixels, keep = str(attrs["pixels"]), bool(attrs["keep_mask"])
        chunks = tuple(attrs["chunks"])
        return (*pixel_variables(self.frame, chunks, pixels, False, keep), *CHIP_VARIABLES, *ROOT_AXES)

    def _set(self, rows: Sequence[int] | NDArray[np.int64], columns: Mapping[str, Any]) -> None:
        write_rows(self.arrays, rows, columns)
        for name in LEDGER:
            if name in columns:
                self.ledger[name][np.asarray(rows, np.int64)] = columns[name]

    def begin(self) -> None:
        """Before every write: the lease is still held, and no stale consolidated metadata is there to be read."""
        if self.lease is None:
            raise RuntimeError(f"{self.location} was opened to be read")
        self.lease.check()
        if not self._touched:
            with known_warnings():
                self._group.update_attributes({})  # first: its absence tells the next process to write both again
                self.predictions.touch()
            self._touched = True

    def forget_memory(self) -> None:
        """Read again what is kept in memory of the chips, after it was repaired."""
        for name in ("ledger", "row_of", "exposure", "predictions", "files"):
            self.__dict__.pop(name, None)

    def _repair_lengths(self) -> None:
        """Give every per-chip array the length of ``status``, after a process died in `allocate`."""
        arrays = [*self.arrays.values(), *self.predictions.arrays.values()]
        per_chip = [array for array in arrays if array.metadata.dimension_names[0] == "chip"]
        if any(array.shape[0] != self.rows for array in per_chip):
            self.begin()
            grow(per_chip, self.rows)

    def _consolidate(self) -> None:
        predictions, files = self.predictions, self.files
        consolidate(predictions.group, predictions.arrays, {})
        arrays = {
            **self.arrays,
            **{f"{PREDICTIONS}/{name}": array for name, array in predictions.arrays.items()},
            **{f"{FILES}/{name}": array for name, array in files.arrays.items()},
        }
        consolidate(self._group, arrays, {PREDICTIONS: predictions.group, FILES: files.group})
        self._touched, self._consolidated = False, True


def superseded(ledger: Mapping[str, NDArray]) -> NDArray[np.bool_]:
    """Chips whose pixels are stored, and of which a newer version is done."""
    found = np.zeros(ledger["status"].size, bool)
    stored = np.flatnonzero(np.isin(ledger["status"], (DONE, SUPERSEDED)))
    version = ledger["version"][stored]
    if stored.size == 0 or (version == version[0]).all():
        return found
    _, pair = np.unique(ledger["obs_id"][stored], return_inverse=True)
    _, pair = np.unique(pair * 1000 + ledger["detector"][stored], return_inverse=True)
    newest = np.full(pair.max() + 1, np.iinfo(np.int16).min, np.int16)
    np.maximum.at(newest, pair, version)
    found[stored] = version < newest[pair]
    return found
