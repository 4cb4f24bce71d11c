"""Saturated stars: connected areas of pixels that carry the saturated flag; or that lie at the top of the range."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.schema import TILES

LEAST_AREA = 4
"""Pixels of the smallest area that is a star."""
PLATEAU = np.float32(0.95)
"""Pixels from this share of the top of the range on are saturated where no flag tells."""
LEAST_PLATEAUS = 8
"""So many pixels in areas at the top make it one: four may be one star that lies between them."""


class Bright:
    """Bright pixels of a frame, and what of them lies at the top of its range.

    The top is the highest level on which four pixels of 3 x 3 lie, which neither a star's core nor a cosmic ray has.

    Parameters
    ----------
    shape : (int, int)
        Frame shape (y, x), pixel.
    """

    def __init__(self, shape: tuple[int, int]):
        self.shape, self.top = shape, np.float32(0)
        self.places = np.empty((0, 2), np.int32)
        self.values = np.empty((0, 2), np.float32)
        self.counted = np.empty((0, 5), np.int32)

    @property
    def least(self) -> float:
        """What pixels at the top reach, as far as is known."""
        return float(PLATEAU * self.top)

    def add(self, places: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        """Add what `peak_kernels.list_bright` fills; what lies below the top is forgotten."""
        self._rise(np.float32(values[:, 1].max(initial=0)))
        keep = values[:, 0] >= PLATEAU * self.top
        self.places = np.concatenate([self.places, places[keep]])
        self.values = np.concatenate([self.values, values[keep]])

    def count(self, counted: NDArray[np.int32]) -> None:
        """Note peaks of bright pixels, as `peak_kernels.search_band` lists them."""
        self.counted = np.concatenate([self.counted, counted])

    def merge(self, other: Bright) -> None:
        """Add what another part of the frame holds."""
        self._rise(other.top)
        self.add(other.places, other.values)
        self.count(other.counted)

    def _rise(self, top: np.float32) -> None:
        if top > self.top:
            self.top = top
            keep = self.values[:, 0] >= PLATEAU * top
            self.places, self.values = self.places[keep], self.values[keep]

    def plateaus(self) -> tuple[list[NDArray[np.int32]], NDArray[np.int32]]:
        """Runs of pixels at the top of the range, as `count_areas` takes them, and the peaks that lie on them."""
        none: list[NDArray[np.int32]] = []
        if not self.top > 0:
            return none, self.counted[:0]
        order = np.lexsort((self.places[:, 1], self.places[:, 0]))
        (y, x), level = self.places[order].T, self.values[order, 1]
        runs = np.ascontiguousarray(np.column_stack([y, x, x + 1]).astype(np.int32))
        first = _join(runs)
        flat = np.bincount(first, level >= PLATEAU * self.top, len(runs)) > 0  # a cosmic ray may be brighter
        large = ((np.bincount(first, minlength=len(runs)) >= LEAST_AREA) & flat)[first]
        if large.sum() < LEAST_PLATEAUS:
            return none, self.counted[:0]
        on = np.unique(y[large].astype(np.int64) * self.shape[1] + x[large])
        place = self.counted[:, 0].astype(np.int64) * self.shape[1] + self.counted[:, 1]
        return [runs[large]], self.counted[np.isin(place, on)]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _root(parents, k):
    while parents[k] != k:
        parents[k] = parents[parents[k]]
        k = parents[k]
    return k


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _join(runs):
    """First run of each run's area; areas touch along edges and corners. Runs are sorted by (y, x)."""
    n = runs.shape[0]
    parents = np.arange(n)
    above = 0
    for k in range(n):
        y, x0, x1 = runs[k, 0], runs[k, 1], runs[k, 2]
        if k and runs[k - 1, 0] == y and runs[k - 1, 2] == x0:  # one run, cut where a chunk ends
            parents[k] = _root(parents, k - 1)
        while above < k and (runs[above, 0] < y - 1 or (runs[above, 0] == y - 1 and runs[above, 2] < x0)):
            above += 1
        j = above
        while j < k and runs[j, 0] == y - 1 and runs[j, 1] <= x1:
            one, other = _root(parents, j), _root(parents, k)
            parents[max(one, other)] = min(one, other)
            j += 1
    for k in range(n):
        parents[k] = _root(parents, k)
    return parents


def count_areas(runs: Sequence[NDArray[np.int32]], shape: tuple[int, int], sizes: NDArray) -> NDArray[np.uint16]:
    """Areas by tile and size; an area belongs to the tile of its first pixel in (y, x).

    Parameters
    ----------
    runs : sequence of (n, 3) int32 arrays
        Runs of pixels, (y, first x, one past the last x), in any order; each pixel in one of them.
    shape : (int, int)
        Frame shape (y, x), pixel.
    sizes : (size,) array
        Lower edges of the steps of the area, pixel.

    Returns
    -------
    (ty, tx, size) uint16 array
    """
    counts = np.zeros((TILES, TILES, len(sizes)), np.int64)
    if not runs:
        return counts.astype(np.uint16)
    found = np.concatenate(list(runs))
    found = np.ascontiguousarray(found[np.lexsort((found[:, 1], found[:, 0]))])
    first = _join(found)
    area = np.bincount(first, found[:, 2] - found[:, 1], len(found)).astype(np.int64)
    stars = np.flatnonzero(area >= LEAST_AREA)
    ty, tx = found[stars, 0].astype(np.int64) * TILES // shape[0], found[stars, 1].astype(np.int64) * TILES // shape[1]
    size = np.clip(np.searchsorted(sizes, area[stars], "right") - 1, 0, len(sizes) - 1)
    np.add.at(counts, (ty, tx, size), 1)
    return np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16)
