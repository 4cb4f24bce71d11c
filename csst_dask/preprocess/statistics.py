"""What the reduced maps of a chip know about its stars, as a few numbers of order 1."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.preprocess import block_kernels as kernels
from csst_dask.preprocess.blocks import MAPS, Blocks, scaled_blocks
from csst_dask.preprocess.scaling import (
    SOFTENING,
    TYPICAL_LOG_SIGMA,
    bounded,
    checked_maps,
    compressed,
    log_spread,
    robust_scale,
    scalar_planes,
)
from csst_dask.schema import FRAME_SHAPE, REDUCED_SHAPE

LEVELS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
"""Quantiles of each map."""

ABOVE = {"mean": (0.05, 0.15, 0.5, 2.0, 10.0), "std": (1.1, 1.5, 3.0, 10.0, 30.0), "max": (6, 10, 20, 50, 200, 1000)}
"""Thresholds of the exceedance fractions, sky sigmas."""

SUMMITS = {"mean": (0.1, 0.5, 2.0, 10.0), "max": (6, 10, 20, 50, 200, 1000)}
"""Thresholds of the local maxima, sky sigmas."""

SOURCES = (10, 30, 100)
"""A block holds a source if its brightest pixel is this far above the sky, sky sigmas."""

SHARES = (0.1, 0.5, 0.9)
"""Quantiles over blocks that hold a source."""

COMPACT = (0.15, 0.3, 0.5)
"""Shares of a block's squared light in its brightest pixel; about 0.3 for a lone star."""

LAGS = (1, 4)
"""Distances of the autocorrelations, blocks."""

BLOCKS = math.prod(REDUCED_SHAPE)
"""Exceedances are given as if a map had this many blocks."""

BLOCK_PIXELS = math.prod(FRAME_SHAPE) / BLOCKS

TAG = 3
"""Lowest bits of a share, which hold how many of `SOURCES` its block exceeds while the shares are sorted."""

_MOMENTS = ("average", "spread", "skewness", "kurtosis")

STATISTICS: tuple[str, ...] = (
    *(f"{name}_q{level:g}" for name in MAPS for level in LEVELS),
    *(f"{name}_{moment}" for name in MAPS for moment in _MOMENTS),
    *(f"{name}_above_{limit:g}" for name in MAPS for limit in ABOVE[name]),
    *(f"{name}_summits_{limit:g}" for name in SUMMITS for limit in SUMMITS[name]),
    *(f"{kind}_{limit}_q{share:g}" for limit in SOURCES for kind in ("peak_to_flux", "sharpness") for share in SHARES),
    *(f"compact_{limit}_{share:g}" for limit in SOURCES for share in COMPACT),
    *(f"{name}_lag_{lag}" for name in ("mean", "max") for lag in LAGS),
    "flux",
    "log_sigma",
    "log_spread",
    "valid",
)
"""Names of the statistics, in order.

``q``: quantiles of the compressed maps (`scaling.compressed`); ``average`` to ``kurtosis``: their moments, the last
two as asinh / 3; ``above``: log10(1 + blocks above a threshold) / 2; ``summits``: log10(1 + n) of blocks above a
threshold that are brighter than their 8 neighbours; ``peak_to_flux`` and ``sharpness``: log10 of the share of a
block's light, and of its squared light, that is in its brightest pixel, in blocks with a source; ``compact``: log10(1
+ n) / 2 of summits of the maximum map with a sharpness above a limit; ``lag``: autocorrelation along rows and columns;
``flux``: asinh of the mean light above the sky; ``log_sigma``: log10 of the sky scatter, e-/s; ``log_spread``: of
the scatter of all pixels over that of the sky; ``valid``: share of valid pixels.
"""


def map_statistics(reduced: NDArray[np.float32], scalars: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
    """Statistics of the distribution of a chip's block maps, in units of its own sky.

    They do not change if the maps are flipped or transposed, nor, ``log_sigma`` apart, if all pixels are scaled or
    shifted. Blocks without a valid pixel or with a value that is not finite are left out.

    Parameters
    ----------
    reduced : (n, 6, iy, ix) float32 array
        Reduced maps in the order of `schema.CHANNELS`; e-/s, NaN where nothing is valid. Not modified.
    scalars : mapping of str to (n,) array
        `scaling.SCALARS` of each chip; values that are not finite are survived.

    Returns
    -------
    (n, k) float32 array
        In the order of `STATISTICS`; finite, of order 1, never beyond +-20.

    Raises
    ------
    ValueError
        If the shapes do not agree or a scalar is missing.
    """
    reduced = checked_maps(reduced)
    planes = scalar_planes(scalars, len(reduced))
    with np.errstate(all="ignore"):
        sky, sigma = robust_scale(planes)
        spread = log_spread(planes, sigma)
        found = [
            block_statistics(blocks, float(sigma[chip, 0, 0]), float(spread[chip, 0, 0]))
            for chip, blocks in enumerate(scaled_blocks(reduced, sky, sigma))
        ]
    return np.array(found, np.float32).reshape(len(reduced), len(STATISTICS))


def block_statistics(blocks: Blocks, sigma: float, spread: float) -> NDArray[np.float64]:
    """Statistics of one chip.

    Parameters
    ----------
    blocks : Blocks
        Its block maps.
    sigma : float
        Its sky scatter, e-/s, as `scaling.robust_scale` gives it.
    spread : float
        As `scaling.log_spread` gives it.

    Returns
    -------
    (k,) float64 array
        In the order of `STATISTICS`, within +-20.
    """
    valid = float(np.nan_to_num(blocks.valid, nan=0.0, posinf=0.0, neginf=0.0).mean(dtype=np.float64))
    seen = _of_seen(blocks) if blocks.count else [0.0] * (len(STATISTICS) - 3)
    return bounded(np.array([*seen, math.log10(sigma) - TYPICAL_LOG_SIGMA, spread, valid]))


def _of_seen(blocks: Blocks) -> list[float]:
    """All but the last three."""
    seen, values = blocks.seen, list[float]()
    places = np.array(LEVELS) * (blocks.count - 1)
    for ordered in compressed(*(_around(np.sort(one[seen]), places) for one in blocks.scaled)):
        values += _between(ordered, places)
    moments = [kernels.moments(one, seen) for one in blocks.compressed]
    for found in moments:
        values += _moments(found)
    for name, one in zip(MAPS, blocks.scaled, strict=True):
        counts = kernels.count_above(one, seen, _limits(ABOVE[name]))
        values += [_log_count(count, BLOCKS / blocks.count) / 2 for count in counts]
    summits = {name: np.empty_like(seen) for name in SUMMITS}
    for name, found in summits.items():
        one = blocks.scaled[MAPS.index(name)]
        kernels.mark_summits(one, seen, found)
        values += map(_log_count, kernels.count_above(one, found, _limits(SUMMITS[name])))
    values += _concentration(blocks, summits["max"])
    for name in ("mean", "max"):
        k = MAPS.index(name)
        mean, variance = moments[k][:2]
        values += [kernels.autocorrelation(blocks.compressed[k], seen, mean, variance, lag) for lag in LAGS]
    return [*values, math.asinh(kernels.average(blocks.scaled[0], seen) / SOFTENING) / 3]


def _limits(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def _around(ordered: NDArray, places: NDArray[np.float64]) -> NDArray:
    """The order statistics below and above fractional places, (2, k)."""
    low = places.astype(int)
    return ordered[[low, np.minimum(low + 1, len(ordered) - 1)]]


def _between(around: NDArray, places: NDArray[np.float64]) -> list[float]:
    """Quantiles: linear between order statistics."""
    below, above = around.astype(np.float64)
    return list(below + (places - places.astype(int)) * (above - below))


def _moments(found: tuple[float, float, float, float]) -> list[float]:
    mean, variance, third, fourth = found
    if not variance > 1e-12 * max(1.0, mean * mean):
        return [mean, 0.0, 0.0, 0.0]
    skewness, kurtosis = third / variance**1.5, fourth / variance**2 - 3
    return [mean, math.sqrt(variance), math.asinh(skewness) / 3, math.asinh(kurtosis) / 3]


def _log_count(count: int, scale: float = 1.0) -> float:
    return math.log10(1 + scale * count)


def _concentration(blocks: Blocks, summits: NDArray[np.bool_]) -> list[float]:
    """``peak_to_flux`` and ``sharpness`` of each limit, then ``compact``."""
    mean, peak, scatter = blocks.scaled
    shares, compact = kernels.concentration(
        mean, peak, scatter, blocks.valid, blocks.seen, summits, BLOCK_PIXELS, _limits(SOURCES), np.array(COMPACT), TAG
    )
    shares.sort(axis=1)
    values: list[float] = []
    for level in range(len(SOURCES)):
        for share in shares:
            some = kernels.of_level(share, TAG, level)
            places = np.array(SHARES) * (len(some) - 1)
            values += _between(np.log10(_around(some, places)), places) if len(some) else [0.0] * len(SHARES)
    return values + [_log_count(count) / 2 for count in compact.ravel()]
