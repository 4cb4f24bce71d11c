"""What the reduced maps of a chip know about its stars, as a few numbers of order 1."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.preprocess.scaling import (
    SOFTENING,
    TYPICAL_LOG_SIGMA,
    bounded,
    checked_maps,
    compressed,
    in_sigmas,
    log_spread,
    robust_scale,
    scalar_planes,
)
from csst_dask.schema import CHANNELS, FRAME_SHAPE, REDUCED_SHAPE

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

_MAPS = ("mean", "max", "std")
_MOMENTS = ("average", "spread", "skewness", "kurtosis")

STATISTICS: tuple[str, ...] = (
    *(f"{name}_q{level:g}" for name in _MAPS for level in LEVELS),
    *(f"{name}_{moment}" for name in _MAPS for moment in _MOMENTS),
    *(f"{name}_above_{limit:g}" for name in _MAPS for limit in ABOVE[name]),
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
    out = np.zeros((len(reduced), len(STATISTICS)), np.float32)
    with np.errstate(all="ignore"):
        sky, sigma = robust_scale(planes)
        spread = log_spread(planes, sigma)
        for chip, maps in enumerate(reduced):
            named = dict(zip(CHANNELS, maps, strict=True))
            values = _of_maps(named, sky[chip], sigma[chip])
            valid = float(np.nan_to_num(named["valid"], nan=0.0, posinf=0.0, neginf=0.0).mean(dtype=np.float64))
            values += [math.log10(sigma[chip].item()) - TYPICAL_LOG_SIGMA, spread[chip].item(), valid]
            out[chip] = bounded(np.array(values, np.float64))
    return out


def _of_maps(maps: Mapping[str, NDArray], sky: NDArray, sigma: NDArray) -> list[float]:
    """All but the last three."""
    raw = dict(zip(_MAPS, in_sigmas(maps, sky, sigma), strict=True))
    seen = (maps["valid"] > 0) & np.isfinite(raw["mean"]) & np.isfinite(raw["max"]) & np.isfinite(raw["std"])
    if not seen.any():
        return [0.0] * (len(STATISTICS) - 3)
    inside = {name: values[seen] for name, values in raw.items()}
    scaled = dict(zip(_MAPS, compressed(*inside.values()), strict=True))
    sharpness, peak_to_flux = _concentration(inside, maps["valid"][seen])
    values: list[float] = []
    ordered = [np.sort(scaled[name]).astype(np.float64) for name in _MAPS]
    for one in ordered:
        values += _quantiles(one, LEVELS)
    for one in ordered:
        values += _moments(one)
    for name in _MAPS:
        values += [_log_count(inside[name] > limit, BLOCKS / seen.sum()) / 2 for limit in ABOVE[name]]
    summits = {name: _summits(raw[name], seen) for name in SUMMITS}
    for name in SUMMITS:
        values += [_log_count(summits[name] & (inside[name] > limit)) for limit in SUMMITS[name]]
    sources = [inside["max"] > limit for limit in SOURCES]
    for source in sources:
        for share in (peak_to_flux, sharpness):
            values += _quantiles(np.sort(np.log10(share[source])), SHARES)
    for source in sources:
        values += [_log_count(summits["max"] & source & (sharpness > limit)) / 2 for limit in COMPACT]
    for name in ("mean", "max"):
        values += _autocorrelations(scaled[name], seen)
    flux = np.sort(inside["mean"]).mean(dtype=np.float64)
    return [*values, math.asinh(float(flux) / SOFTENING) / 3]


def _quantiles(ordered: NDArray[np.float64], levels: tuple[float, ...]) -> list[float]:
    """Linear between order statistics; 0 of nothing."""
    if not len(ordered):
        return [0.0] * len(levels)
    place = np.array(levels) * (len(ordered) - 1)
    low = place.astype(int)
    high = np.minimum(low + 1, len(ordered) - 1)
    return list(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


def _moments(ordered: NDArray[np.float64]) -> list[float]:
    mean = ordered.mean()
    rest = ordered - mean
    square = rest * rest
    variance = square.mean()
    if not variance > 1e-12 * max(1.0, mean * mean):
        return [mean, 0.0, 0.0, 0.0]
    skew, kurtosis = (square * rest).mean() / variance**1.5, (square * square).mean() / variance**2 - 3
    return [mean, math.sqrt(variance), math.asinh(skew) / 3, math.asinh(kurtosis) / 3]


def _log_count(found: NDArray[np.bool_], scale: float = 1.0) -> float:
    return math.log10(1 + scale * np.count_nonzero(found))


def _concentration(inside: Mapping[str, NDArray], valid: NDArray) -> tuple[NDArray, NDArray]:
    """Shares of a block's squared light and of its light in the brightest pixel, from 1e-3 to 10."""
    pixels = BLOCK_PIXELS * np.clip(valid, 1 / BLOCK_PIXELS, 1).astype(np.float64)
    mean, peak, scatter = (inside[name].astype(np.float64) for name in _MAPS)
    squares = pixels * (scatter**2 - 1 + mean**2)
    return np.clip(_share(peak**2, squares), 1e-3, 10), np.clip(_share(peak, pixels * mean), 1e-3, 10)


def _share(part: NDArray, whole: NDArray) -> NDArray:
    """Part of the whole; 10, the upper end, where noise has left nothing of the whole."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 10.0)


def _summits(values: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Seen blocks that are brighter than the blocks around them, as a row of the seen ones."""
    ny, nx = values.shape
    padded = np.full((ny + 2, nx + 2), -np.inf, np.float32)
    padded[1:-1, 1:-1] = np.where(seen, values, -np.inf)
    beside = np.maximum(padded[:, :-2], padded[:, 2:])
    rows = np.maximum(beside, padded[:, 1:-1])
    around = np.maximum(np.maximum(rows[:-2], rows[2:]), beside[1:-1])
    return (padded[1:-1, 1:-1] > around)[seen]


def _autocorrelations(inside: NDArray[np.float32], seen: NDArray[np.bool_]) -> list[float]:
    """Means over rows and columns; 0 where the map is constant or has no such pair."""
    rest = inside - inside.mean(dtype=np.float64)
    variance = np.mean(rest * rest)
    full = np.zeros(seen.shape)
    full[seen] = rest
    found = []
    for lag in LAGS:
        pairs = np.count_nonzero(seen[lag:] & seen[:-lag]) + np.count_nonzero(seen[:, lag:] & seen[:, :-lag])
        total = (full[lag:] * full[:-lag]).sum() + (full[:, lag:] * full[:, :-lag]).sum()
        found.append(float(total / (pairs * variance)) if pairs and variance > 1e-12 else 0.0)
    return found
