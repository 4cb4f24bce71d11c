"""Sums of chips on their way to a map: added in one order, whatever the order in which they come."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from csst_dask.config import MapConfig
from csst_dask.errors import ConfigError
from csst_dask.maps import (
    HealpixGrid,
    MapChips,
    accumulate,
    add_maps,
    empty_sums,
    grid_of,
    open_map,
    plot_map,
    to_dataset,
    write_fits,
    write_moc,
    write_zarr,
)
from csst_dask.maps.dataset import refuse_common
from csst_dask.maps.density import DensitySums
from csst_dask.pipeline.block import ON_MAP, PLACE
from csst_dask.pipeline.summary import Summary
from csst_dask.schema import DONE
from csst_dask.store import SurveyStore
from csst_dask.store.layout import WHOLE
from csst_dask.store.survey import superseded

PARTS = "made_from"
"""Attribute of a map: digests of what it was made from, one for each store that was added."""

ADD_ROWS = 50_000
"""Least rows of sums that are added at a time."""


class MapSums:
    """Adds the sums of chips in the order of their rows; chips of which there are several versions come last.

    Which of several versions counts is only known at the end. The order follows from the store alone, so that a map is
    the same bit for bit whether it comes out of one run, of several, or of stored predictions.

    Parameters
    ----------
    nside : int
    rows : sequence of int
        Chips that may enter the map.
    store : SurveyStore
        Tells which of them have several versions.
    """

    def __init__(self, nside: int, rows: Sequence[int], store: SurveyStore):
        several = _several_versions(store)
        self._order = [row for row in sorted(rows) if not several[row]]
        self._late = [row for row in sorted(rows) if several[row]]
        self.lost: set[int] = set()
        """Chips whose sums could not be made: a map without them would be wrong."""
        self._early: dict[int, DensitySums | None] = {}
        self._ordered: list[DensitySums] = []
        self._total, self._next, self._waiting = empty_sums(nside), 0, 0

    def take(self, row: int, sums: DensitySums | None) -> None:
        """Note the sums of a chip; None if it cannot enter the map."""
        self._early[row] = sums
        while self._next < len(self._order) and self._order[self._next] in self._early:
            part, self._next = self._early.pop(self._order[self._next]), self._next + 1
            self._push(part)

    def total(self, rows: Sequence[int]) -> DensitySums:
        """The sums of chips.

        Parameters
        ----------
        rows : sequence of int
            Chips that enter the map.

        Returns
        -------
        DensitySums
        """
        enters = set(rows)
        for row in (*self._order[self._next :], *self._late):
            self._push(self._early.get(row) if row in enters else None)
        self._next = len(self._order)
        return accumulate(self._ordered, self._total)

    def _push(self, part: DensitySums | None) -> None:
        if part is None:
            return
        self._ordered.append(part)
        self._waiting += part.cell.size
        if self._waiting > max(ADD_ROWS, self._total.cell.size // 2):  # so that each row is copied a few times in all
            self._total, self._ordered, self._waiting = accumulate(self._ordered, self._total), [], 0


def on_map(store: SurveyStore) -> NDArray[np.bool_]:
    """Chips of a store that enter a map: done, predicted, and the newest version, whether the others say so or not."""
    return (store.ledger["status"] == DONE) & (store.predictions.state == WHOLE) & ~superseded(store.ledger)


class MapPlan:
    """What a map is to hold, and whether it is there already.

    Parameters
    ----------
    store : SurveyStore
    config : MapConfig
    add : Path, optional
        An older map of other chips, to which those of the store are added.
    chips : sequence of int, optional
        Rows to look at; by default all.

    Raises
    ------
    ConfigError
        If the store has no predictions, or the older map shares chips with it and is not the result of this plan.
    """

    def __init__(
        self, store: SurveyStore, config: MapConfig, add: Path | None = None, chips: Sequence[int] | None = None
    ):
        self.config, self.store = config, store
        if "classifier_sha256" not in store.predictions.attrs:
            raise ConfigError(
                f"{store.location} has no predictions; run 'csst-dask predict --store {store.location}' first"
            )
        enters = on_map(store)
        if chips is not None:
            enters &= np.isin(np.arange(store.rows), chips)
        self.rows: list[int] = np.flatnonzero(enters).tolist()
        columns = (store.ledger[name][enters] for name in ("obs_id", "detector", "version"))
        self.chips = MapChips(*columns)
        self.digest = _digest(store, self.rows, config.nside)
        self._older = None if add is None else open_map(add)
        parts = {self.digest, *(_parts(self._older) if self._older is not None else ())}
        out = config.out
        self.is_made = out is not None and out.exists() and _parts(open_map(out)) == parts
        if self._older is not None and not self.is_made:
            refuse_common(MapChips.from_dataset(self._older), self.chips)

    def finish(self, sums: DensitySums, summary: Summary) -> xr.Dataset:
        """Make the map of the chips' sums, add it to the older one, and write what the configuration asks for."""
        sky = to_dataset(
            sums, HealpixGrid(self.config.nside), _networks(self.store) | {PARTS: [self.digest]}, self.chips
        )
        if self._older is not None:
            sky = add_maps(self._older.load(), sky)
        write_views(sky, self.config, summary)
        if self.config.out is not None:
            write_zarr(sky, self.config.out)
        return sky

    def open_made(self, summary: Summary) -> xr.Dataset:
        """The map that is there; its other forms are written again, since those that are there may be of another."""
        out, views = self.config.out, (self.config.fits, self.config.moc, self.config.png)
        assert out is not None
        sky = open_map(out)
        changed = any(path is not None for path in views)
        if changed:
            write_views(sky.load(), self.config, summary)
        what = "only its other forms were written" if changed else "nothing was changed"
        summary.remarks.append(f"{out} is the map of these chips already; {what}")
        summary.skipped = len(self.rows)
        return sky


def write_views(sky: xr.Dataset, config: MapConfig, summary: Summary) -> None:
    """Write other forms of a map that the configuration asks for; a part of the sky that is empty has no picture."""
    if config.moc is not None:
        write_moc(sky, config.moc)
    if sky.sizes["cells"]:
        if config.fits is not None:
            write_fits(sky, config.fits)
        if config.png is not None:
            plot_map(sky, config.png)
    elif config.fits or config.png:
        summary.remarks.append("no chip on the map: no picture and no FITS file were written")


def check_map(config: MapConfig, add: Path | None = None) -> None:
    """Refuse a map that could not be written, before any work is done.

    Raises
    ------
    ConfigError
        If ``out`` would replace something that is no map, the older map cannot be read or has another nside, or a
        package is missing.
    """
    if config.out is not None and config.out.exists():
        open_map(config.out)
    if config.moc is not None and importlib.util.find_spec("mocpy") is None:
        raise ConfigError("map.moc: the package mocpy is missing; pip install 'csst_dask[maps]'")
    if add is not None and grid_of(open_map(add)).nside != config.nside:
        raise ConfigError(
            f"--add {add} has nside {grid_of(open_map(add)).nside}, not {config.nside}; use --nside of it"
        )


def _parts(sky: xr.Dataset) -> set[str]:
    found = sky.attrs.get(PARTS, [])
    return {found} if isinstance(found, str) else set(found)


def _networks(store: SurveyStore) -> dict[str, str]:
    """Checksums of the networks that predicted the chips of a store."""
    attrs = store.predictions.attrs
    return {name: attrs[name] for name in ("classifier_sha256", "regressor_sha256") if name in attrs}


def _digest(store: SurveyStore, rows: list[int], nside: int) -> str:
    """SHA-256 of all that a map of some chips follows from, but their valid pixels, for which their number stands."""
    found = hashlib.sha256(f"{nside} {_networks(store)}".encode())
    for name in ("obs_id", "detector", "version", *PLACE, "n_valid", "pixel_mean"):
        found.update(np.ascontiguousarray(store.column(name, rows)).tobytes())
    for name in ON_MAP:
        found.update(np.ascontiguousarray(store.predictions.column(name, rows)).tobytes())
    return found.hexdigest()


def _several_versions(store: SurveyStore) -> NDArray[np.bool_]:
    """Chips of which the store has another version."""
    if not store.rows:
        return np.zeros(0, bool)
    obs_id, detector = store.ledger["obs_id"], store.ledger["detector"].astype(np.int64)
    _, exposure = np.unique(obs_id, return_inverse=True)
    _, pair, count = np.unique(exposure * 1000 + detector, return_inverse=True, return_counts=True)
    return count[pair] > 1
