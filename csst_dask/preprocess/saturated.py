"""Saturated stars: connected areas of pixels that carry the saturated flag."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.schema import TILES

LEAST_AREA = 4
"""Pixels of the smallest area that is a star."""


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
