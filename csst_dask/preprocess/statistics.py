"""What the block maps of a chip, in units of its own sky, know about its stars: statistics and joint histograms.

The statistics are numbers of order 1. The histograms count how often a block is so bright, so uneven and so peaked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csst_dask.preprocess import block_kernels as kernels
from csst_dask.schema import BLOCK_SHAPE, BLOCK_STATS, FRAME_SHAPE

MAPS = ("mean", "max", "std")
"""Block maps that are looked at, in this order."""

SOFTENING = 0.05
"""asinh turns from linear to logarithmic here for the block mean, in sky sigmas; the mean of a block's
1700 pixels scatters by 1/41 = 0.024 of them."""

TYPICAL_LOG_SIGMA = -1.3
"""log10 of a common sky_sigma, e-/s (g band, 150 s), so that its plane lies around zero."""

LIMIT = 20.0
"""Largest absolute value of a scaled map; real chips stay below 5."""

LARGEST = np.float32(np.finfo(np.float32).max * SOFTENING / 2)
"""Beyond this, in sky sigmas, a compressed value is not finite."""

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

BLOCKS = math.prod(BLOCK_SHAPE)
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

``q``: quantiles of the `compressed` maps; ``average`` to ``kurtosis``: their moments, the last two as asinh / 3;
``above``: log10(1 + blocks above a threshold) / 2; ``summits``: log10(1 + n) of blocks above a threshold that are
brighter than their 8 neighbours; ``peak_to_flux`` and ``sharpness``: log10 of the share of a block's light, and of its
squared light, that is in its brightest pixel, in blocks with a source; ``compact``: log10(1 + n) / 2 of summits of the
maximum map with a sharpness above a limit; ``lag``: autocorrelation along rows and columns; ``flux``: asinh of the mean
light above the sky; ``log_sigma``: log10 of the sky scatter, e-/s; ``log_spread``: of the scatter of all pixels over
that of the sky; ``valid``: share of valid pixels.
"""

EDGES = {
    "mean": (
        -0.57, -0.3, -0.2, -0.12, -0.05, 0.02, 0.1, 0.19,
        0.27, 0.36, 0.48, 0.62, 0.8, 1.0, 1.3, 1.7, 2.1, 2.5, 2.9,
    ),
    "std": (
        -0.022, -0.011, -0.0075, -0.0045, -0.002, 0.0005, 0.0035, 0.007,
        0.013, 0.03, 0.07, 0.15, 0.3, 0.5, 0.8, 1.2, 1.6, 2.1, 2.6,
    ),
    "max": (
        0.276, 0.297, 0.306, 0.314, 0.322, 0.33, 0.34, 0.356,
        0.38, 0.42, 0.48, 0.58, 0.75, 1.0, 1.3, 1.7, 2.1, 2.5, 2.9,
    ),
}  # fmt: skip
"""Edges of the bins of each `compressed` map: about the tenths of the blocks of common chips up to the eighth, then
wider and wider where stars are."""

BINS = len(EDGES["mean"]) + 1
"""Bins of each map, the open ones at both ends included."""

PAIRS = (("mean", "std"), ("std", "max"), ("mean", "max"))
"""Maps whose joint histograms are taken."""

ANSCOMBE = 0.375
"""Added to a count before the square root, so that the noise of all bins is alike [1]_.

References
----------
.. [1] Anscombe (1948), Biometrika 35, 246.
"""

HISTOGRAMS = tuple(f"{one}_{i}_{other}_{j}" for one, other in PAIRS for i in range(BINS) for j in range(BINS))
"""Names of the bins, in order."""

_PLACES = tuple(BLOCK_STATS.index(name) for name in ("mean", "max", "std", "valid"))
_ABOVE = {name: np.array(limits, np.float32) for name, limits in ABOVE.items()}
_SUMMITS = {name: np.array(limits, np.float32) for name, limits in SUMMITS.items()}
_SOURCES, _COMPACT = np.array(SOURCES, np.float32), np.array(COMPACT)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Maps of one chip; they are overwritten by those of the next."""

    scaled: NDArray[np.float32]
    """(3, iy, ix) `MAPS` in sky sigmas, mean and maximum above the sky (`inputs.in_sigmas`)."""
    compressed: NDArray[np.float32]
    """(3, iy, ix) the same on scales of order 1: what `compressed` gives, but for rounding."""
    valid: NDArray[np.float32]
    """(iy, ix) valid fraction."""
    seen: NDArray[np.bool_]
    """(iy, ix) False for a block without a valid pixel or with a value that is not finite."""
    count: int
    """Blocks that are seen."""


def scaled_blocks(
    block_stats: NDArray[np.float32], sky: NDArray[np.float64], sigma: NDArray[np.float64]
) -> Iterator[Blocks]:
    """Block maps of every chip, in memory that is used again.

    Parameters
    ----------
    block_stats : (n, 6, iy, ix) float32 array
        Block statistics; not modified.
    sky, sigma : (n, 1, 1) float64 arrays
        As `inputs.robust_scale` gives them.

    Yields
    ------
    Blocks
        Of one chip; what it holds outside ``seen`` means nothing.
    """
    shape = block_stats.shape[2:]
    scaled, small, seen = np.empty((3, *shape), np.float32), np.empty((3, *shape), np.float32), np.empty(shape, bool)
    block_stats = np.ascontiguousarray(block_stats, np.float32)
    for maps, level, unit in zip(block_stats, sky.ravel(), sigma.ravel(), strict=True):
        mean, peak, scatter, valid = (maps[place] for place in _PLACES)
        count = kernels.scale(mean, peak, scatter, valid, level, unit, LARGEST, scaled, seen)
        kernels.compress(scaled, np.float32(SOFTENING), small)
        yield Blocks(scaled, small, valid, seen, count)


def compressed(
    above: NDArray[np.float32], peak: NDArray[np.float32], scatter: NDArray[np.float32]
) -> tuple[NDArray, NDArray, NDArray]:
    """The maps of `inputs.in_sigmas` on scales of order 1.

    Parameters
    ----------
    above, peak, scatter : float32 arrays

    Returns
    -------
    above, peak, scatter : float32 arrays
        asinh(above / `SOFTENING`) / 3, asinh(peak / 3) / 3 and log10(scatter), the last at least -3.
    """
    return (
        np.arcsinh(above / np.float32(SOFTENING)) / 3,
        np.arcsinh(peak / 3) / 3,
        np.log10(np.maximum(scatter, np.float32(1e-3))),
    )


def bounded(values: NDArray, limit: float = LIMIT) -> NDArray:
    """Finite values within +-limit; NaN becomes 0."""
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=limit, neginf=-limit), -limit, limit)


def block_statistics(blocks: Blocks, sigma: float, spread: float) -> NDArray[np.float64]:
    """Statistics of one chip.

    Parameters
    ----------
    blocks : Blocks
        Its block maps.
    sigma : float
        Its sky scatter, e-/s, as `inputs.robust_scale` gives it.
    spread : float
        As `inputs.log_spread` gives it.

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
        counts = kernels.count_above(one, seen, _ABOVE[name])
        values += [_log_count(count, BLOCKS / blocks.count) / 2 for count in counts]
    summits = {name: np.empty_like(seen) for name in SUMMITS}
    for name, found in summits.items():
        one = blocks.scaled[MAPS.index(name)]
        kernels.mark_summits(one, seen, found)
        values += map(_log_count, kernels.count_above(one, found, _SUMMITS[name]))
    values += _concentration(blocks, summits["max"])
    for name in ("mean", "max"):
        k = MAPS.index(name)
        mean, variance = moments[k][:2]
        values += [kernels.autocorrelation(blocks.compressed[k], seen, mean, variance, lag) for lag in LAGS]
    return [*values, math.asinh(kernels.average(blocks.scaled[0], seen) / SOFTENING) / 3]


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
        mean, peak, scatter, blocks.valid, blocks.seen, summits, BLOCK_PIXELS, _SOURCES, _COMPACT, TAG
    )
    shares.sort(axis=1)
    values: list[float] = []
    for level in range(len(SOURCES)):
        for share in shares:
            some = kernels.of_level(share, TAG, level)
            places = np.array(SHARES) * (len(some) - 1)
            values += _between(np.log10(_around(some, places)), places) if len(some) else [0.0] * len(SHARES)
    return values + [_log_count(count) / 2 for count in compact.ravel()]


def block_histograms(blocks: Blocks) -> NDArray[np.float64]:
    """Histograms of one chip.

    Parameters
    ----------
    blocks : Blocks
        Its block maps.

    Returns
    -------
    (k,) float64 array
        Square roots of the counts in the order of `HISTOGRAMS`, as if every chip had `BLOCKS` blocks, plus `ANSCOMBE`.
    """
    bins = {}
    for name, values, limits in zip(MAPS, blocks.scaled, _LIMITS, strict=True):
        bins[name] = np.empty(values.shape, np.uint8)
        kernels.bin_of(values.ravel(), limits, bins[name].ravel())
    counts = np.zeros((len(PAIRS), BINS, BINS), np.int64)
    for (one, other), out in zip(PAIRS, counts, strict=True):
        kernels.joint_counts(bins[one], bins[other], blocks.seen, out)
    return np.sqrt(counts.ravel() * (BLOCKS / max(blocks.count, 1)) + ANSCOMBE)


def _bin_limits() -> NDArray[np.float32]:
    """(3, bins - 1) largest values of each of `MAPS`, in sky sigmas, that are not above an edge once compressed."""
    edges = np.array([EDGES[name] for name in MAPS])
    guess = np.stack([SOFTENING * np.sinh(3 * edges[0]), 3 * np.sinh(3 * edges[1]), 10.0 ** edges[2]])
    bits = guess.astype(np.float32).view(np.int32)[..., None] + np.arange(-64, 65, dtype=np.int32)
    near: NDArray[np.float32] = np.sort(bits.view(np.float32))
    beyond = np.stack(compressed(*near)) > edges.astype(np.float32)[..., None]
    return np.take_along_axis(near, beyond.argmax(axis=2)[..., None] - 1, axis=2)[..., 0]


_LIMITS = _bin_limits()
