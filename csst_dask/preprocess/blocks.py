"""The block maps of one chip in units of its own sky: made once, for the statistics and for the histograms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.preprocess.block_kernels import log
from csst_dask.preprocess.scaling import SOFTENING
from csst_dask.schema import CHANNELS

MAPS = ("mean", "max", "std")
"""Block maps that are looked at, in this order."""

LARGEST = np.float32(np.finfo(np.float32).max * SOFTENING / 2)
"""Beyond this, in sky sigmas, a compressed value is not finite."""

LOG10_E = 0.4342944819032518

_ABOVE, _VALID, _SCATTER, _PEAK = (CHANNELS.index(name) for name in ("mean", "valid", "std", "max"))


@dataclass(frozen=True, eq=False)
class Blocks:
    """Maps of one chip; they are overwritten by those of the next."""

    scaled: NDArray[np.float32]
    """(3, iy, ix) `MAPS` in sky sigmas, mean and maximum above the sky (`scaling.in_sigmas`)."""
    compressed: NDArray[np.float32]
    """(3, iy, ix) the same on scales of order 1: what `scaling.compressed` gives, but for rounding."""
    valid: NDArray[np.float32]
    """(iy, ix) valid fraction."""
    seen: NDArray[np.bool_]
    """(iy, ix) False for a block without a valid pixel or with a value that is not finite."""
    count: int
    """Blocks that are seen."""


def scaled_blocks(
    reduced: NDArray[np.float32], sky: NDArray[np.float64], sigma: NDArray[np.float64]
) -> Iterator[Blocks]:
    """Block maps of every chip, in memory that is used again.

    Parameters
    ----------
    reduced : (n, 6, iy, ix) float32 array
        Reduced maps; not modified.
    sky, sigma : (n, 1, 1) float64 arrays
        As `scaling.robust_scale` gives them.

    Yields
    ------
    Blocks
        Of one chip; what it holds outside ``seen`` means nothing.
    """
    shape = reduced.shape[2:]
    scaled, small, seen = np.empty((3, *shape), np.float32), np.empty((3, *shape), np.float32), np.empty(shape, bool)
    reduced = np.ascontiguousarray(reduced, np.float32)
    for maps, level, unit in zip(reduced, sky.ravel(), sigma.ravel(), strict=True):
        count = _scale(maps[_ABOVE], maps[_PEAK], maps[_SCATTER], maps[_VALID], level, unit, scaled, seen)
        _asinh(scaled[0], np.float32(SOFTENING), small[0])
        _asinh(scaled[1], np.float32(3), small[1])
        _log10(scaled[2], small[2])
        yield Blocks(scaled, small, maps[_VALID], seen, count)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scale(mean, peak, scatter, valid, sky, sigma, out, seen):
    """Fill (3, iy, ix) ``out`` and ``seen``; the number of blocks that are seen."""
    count = 0
    for y in range(mean.shape[0]):
        for x in range(mean.shape[1]):
            a = np.float32((mean[y, x] - sky) / sigma)
            p = np.float32((peak[y, x] - sky) / sigma)
            s = np.float32(scatter[y, x] / sigma)
            good = (valid[y, x] > 0) & (abs(a) <= LARGEST) & (abs(p) <= LARGEST) & (abs(s) <= LARGEST)
            out[0, y, x], out[1, y, x], out[2, y, x], seen[y, x] = a, p, s, good
            count += good
    return count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _asinh(values, softening, out):
    """Fill ``out`` with asinh(values / softening) / 3."""
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            z = np.float64(values[y, x] / softening)
            size = log(abs(z) + np.sqrt(z * z + 1)) / 3
            out[y, x] = size if z > 0 else -size


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _log10(values, out):
    """Fill ``out`` with log10 of values, which are at least 1e-3."""
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            out[y, x] = log(np.float64(max(values[y, x], np.float32(1e-3)))) * LOG10_E
