"""Chips with truth, as a survey store holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from csst_dask.errors import ConfigError
from csst_dask.preprocess.counted import COUNTED, counted_context
from csst_dask.preprocess.inputs import SCALARS
from csst_dask.preprocess.measure import STATISTICS, Measured
from csst_dask.schema import BANDS, density_class
from csst_dask.training.record import checksum_chips
from csst_dask.training.split import Split, refuse_common_chips, some_fields, split_at_random, split_by_field

if TYPE_CHECKING:
    from csst_dask.store import SurveyStore

COLUMNS = ("n_star", "n_bright", "band", "field", "ra", "dec")
"""What is known of each chip beside its maps."""


class Maps(Protocol):
    """Block statistics of many chips, in memory or in a store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, 6, iy, ix)."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Maps of some chips."""


@dataclass(frozen=True, eq=False)
class StoredMaps:
    """Block statistics that stay in a survey store until they are asked for."""

    store: SurveyStore
    rows: NDArray[np.int64]
    """Rows of the store, in the order of the samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.store.arrays["block_stats"].shape[1:])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray:
        """All of them, in memory."""
        return self[np.arange(len(self.rows))].astype(dtype or np.float32, copy=False)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        wanted, place = np.unique(self.rows[rows], return_inverse=True)
        return self.store.read_chips("block_stats", wanted)[place]


@dataclass(frozen=True, eq=False)
class JoinedMaps:
    """Block statistics of several stores, one after the other."""

    parts: tuple[Maps, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray:
        """All of them, in memory."""
        return self[np.arange(self.shape[0])].astype(dtype or np.float32, copy=False)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        rows, start = np.asarray(rows), 0
        out = np.empty((len(rows), *self.shape[1:]), np.float32)
        for part in self.parts:
            here = (rows >= start) & (rows < start + part.shape[0])
            if here.any():
                out[here] = part[rows[here] - start]
            start += part.shape[0]
        return out


class Counted(Protocol):
    """What was counted on many chips."""

    def __call__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """(k, m) `preprocess.counted.COUNTED` of some chips."""


@dataclass(frozen=True, eq=False)
class StoredCounts:
    """What was counted on chips of a survey store, made when it is asked for."""

    store: SurveyStore
    rows: NDArray[np.int64]
    """Rows of the store, in the order of the samples."""
    scalars: dict[str, NDArray]
    """Of these rows: ``band``, ``zero_point`` and `preprocess.measure.STATISTICS`."""

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        from csst_dask.store.layout import MEASURED

        rows = np.asarray(rows, np.int64)
        wanted, place = np.unique(self.rows[rows], return_inverse=True)
        names = [name for name in MEASURED if name != "tile_peaks"]
        arrays = {name: self.store.read_chips(name, wanted)[place] for name in names}
        none = np.empty(0, np.uint16)  # no tile is asked for
        out = np.empty((len(rows), len(COUNTED)), np.float32)
        for k, row in enumerate(rows):
            chip = {name: values[k] for name, values in arrays.items()}
            scalars = {name: values[row] for name, values in self.scalars.items()}
            out[k] = counted_context(Measured.of(chip | {"tile_peaks": none}, scalars), str(scalars["band"]))
        return out


@dataclass(frozen=True, eq=False)
class JoinedCounts:
    """What was counted on chips of several stores, one after the other."""

    parts: tuple[Counted, ...]
    sizes: tuple[int, ...]

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        rows, start = np.asarray(rows), 0
        out = np.empty((len(rows), len(COUNTED)), np.float32)
        for part, size in zip(self.parts, self.sizes, strict=True):
            here = (rows >= start) & (rows < start + size)
            if here.any():
                out[here] = part(rows[here] - start)
            start += size
        return out


@dataclass(frozen=True, eq=False)
class Samples:
    """Chips with truth."""

    block_stats: Maps
    """(n, 6, iy, ix) block statistics, e-/s; an array, or a store that is read by rows."""
    scalars: dict[str, NDArray[np.float64]]
    """(n,) each of `preprocess.inputs.SCALARS`, and ``exptime`` (s) where it is known."""
    band: NDArray[np.str_]
    n_star: NDArray[np.int64]
    n_bright: NDArray[np.int64]
    """-1 where unknown."""
    field: NDArray[np.str_]
    ra: NDArray[np.float64]
    """Centre of the chip, deg ICRS."""
    dec: NDArray[np.float64]
    sizes: tuple[int, ...] = ()
    """Chips of each store that they come from, in order; empty if they are all of one."""
    n_brighter: NDArray[np.int64] | None = None
    """(n, magnitude) stars brighter than each of `schema.MAGNITUDES`, -1 where unknown; None if all are."""
    counted: Counted | None = None
    """None where peaks were not kept, as in an export."""

    def __len__(self) -> int:
        return len(self.n_star)

    @property
    def density_class(self) -> NDArray[np.int8]:
        """(n,) class 0 to 5."""
        return density_class(self.n_star)

    @property
    def checksums(self) -> list[str]:
        """SHA-256 of what the chips of each store are, in their order: band, field, true counts and position."""
        ends = np.cumsum(self.sizes or (len(self),))
        parts = [slice(end - size, end) for end, size in zip(ends, self.sizes or (len(self),), strict=True)]
        columns = self.band, self.field, self.n_star, self.n_bright, self.ra, self.dec
        return [checksum_chips(*(column[part] for column in columns)) for part in parts]

    def split(self, seed: int = 0, kind: Literal["field", "random"] = "field", chips: int | None = None) -> Split:
        """Divide with `split_by_field`, or at random with `split_at_random`, and learn from `some_fields` of them."""
        if kind == "random":
            split = split_at_random(self.density_class, seed=seed)
        else:
            split = split_by_field(self.field, self.density_class, self.ra, self.dec, seed=seed)
        return replace(split, train=some_fields(self.field, split.train, chips, seed=seed))


def load_samples(store: str | Path | Sequence[str | Path], bands: tuple[str, ...] = BANDS) -> Samples:
    """Read the chips of survey stores that are done and have truth.

    Parameters
    ----------
    store : path, or sequence of paths
        Survey stores.
    bands : tuple of str
        Bands to take.

    Returns
    -------
    Samples
        In the order of the stores; the maps stay there.

    Raises
    ------
    ConfigError
        If a store cannot be opened, is of another kind, or has no such chip; if two have a chip in common, or maps of
        different sizes.
    """
    stores = [store] if isinstance(store, str | Path) else list(store)
    parts = [_load(one, bands) for one in stores]
    if len(parts) == 1:
        return parts[0]
    for one, part in zip(stores, parts, strict=True):
        if part.block_stats.shape[1:] != parts[0].block_stats.shape[1:]:
            found, expected = part.block_stats.shape[1:], parts[0].block_stats.shape[1:]
            raise ConfigError(f"the maps of {one} are {found}, those of {stores[0]} {expected}; reduce them alike")
    refuse_common_chips(stores, [{name: getattr(part, name) for name in COLUMNS} for part in parts])

    def joined(name: str) -> NDArray:
        return np.concatenate([getattr(part, name) for part in parts])

    counted = [part.counted for part in parts if part.counted is not None]
    sizes = tuple(map(len, parts))
    names = [name for name in parts[0].scalars if all(name in part.scalars for part in parts)]
    return Samples(
        block_stats=JoinedMaps(tuple(part.block_stats for part in parts)),
        scalars={name: np.concatenate([part.scalars[name] for part in parts]) for name in names},
        **{name: joined(name) for name in COLUMNS},
        sizes=sizes,
        n_brighter=np.concatenate([part.n_brighter for part in parts if part.n_brighter is not None]),
        counted=JoinedCounts(tuple(counted), sizes) if len(counted) == len(parts) else None,
    )


def _load(store: str | Path, bands: tuple[str, ...]) -> Samples:
    from csst_dask.store import SurveyStore  # samples in memory are trained on without Zarr

    opened = SurveyStore.read(str(store))
    opened.require("block_stats")
    needed = (
        "status", "band", "n_star", "n_bright", "n_brighter", "field", "ra", "dec", *SCALARS, "exptime", "zero_point",
        "n_valid",
    )  # fmt: skip
    survey = opened.scalars(needed)
    small = {name: survey[name].values for name in needed}
    band, field, status = (small[name] for name in ("band", "field", "status"))
    wanted = (status == "done") & (small["n_star"] >= 0) & np.isin(band, bands)
    rows = np.flatnonzero(wanted)
    if not len(rows):
        raise ConfigError(
            f"{store} has no chip that is done, has a truth count and lies in the bands {', '.join(bands)} "
            f"({len(wanted)} chips in all); ingest with truth catalogues or simulate with --store"
        )
    return Samples(
        block_stats=StoredMaps(opened, rows),
        scalars={name: small[name][rows].astype(np.float64) for name in (*SCALARS, "exptime")},
        band=band[rows],
        field=field[rows],
        n_star=small["n_star"][rows].astype(np.int64),
        n_bright=small["n_bright"][rows].astype(np.int64),
        ra=small["ra"][rows].astype(np.float64),
        dec=small["dec"][rows].astype(np.float64),
        n_brighter=small["n_brighter"][rows].astype(np.int64),
        counted=StoredCounts(opened, rows, {name: small[name][rows] for name in ("band", "zero_point", *STATISTICS)}),
    )
