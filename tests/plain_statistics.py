"""The statistics of `csst_dask.preprocess.statistics` in plain numpy: what the compiled ones must equal."""

import math

import numpy as np

from csst_dask.preprocess.inputs import in_sigmas, log_spread, robust_scale, scalar_planes
from csst_dask.preprocess.statistics import (
    ABOVE,
    BLOCK_PIXELS,
    BLOCKS,
    COMPACT,
    LAGS,
    LEVELS,
    SHARES,
    SOFTENING,
    SOURCES,
    STATISTICS,
    SUMMITS,
    TYPICAL_LOG_SIGMA,
    bounded,
    compressed,
)
from csst_dask.schema import BLOCK_STATS

MAPS = ("mean", "max", "std")


def plain_statistics(block_stats, scalars):
    """As `map_statistics`."""
    planes = scalar_planes(scalars, len(block_stats))
    with np.errstate(all="ignore"):
        sky, sigma = robust_scale(planes)
        spread = log_spread(planes, sigma)
        rows = []
        for chip, maps in enumerate(block_stats):
            named = dict(zip(BLOCK_STATS, maps, strict=True))
            valid = np.nan_to_num(named["valid"], nan=0.0, posinf=0.0, neginf=0.0).mean(dtype=np.float64)
            noise = math.log10(sigma[chip].item()) - TYPICAL_LOG_SIGMA
            rows.append([*_of_maps(named, sky[chip], sigma[chip]), noise, spread[chip].item(), valid])
    return bounded(np.array(rows)).astype(np.float32)


def _of_maps(maps, sky, sigma):
    """All but the last three."""
    raw = dict(zip(MAPS, in_sigmas(maps, sky, sigma), strict=True))
    seen = (maps["valid"] > 0) & np.isfinite(raw["mean"]) & np.isfinite(raw["max"]) & np.isfinite(raw["std"])
    if not seen.any():
        return [0.0] * (len(STATISTICS) - 3)
    inside = {name: values[seen] for name, values in raw.items()}
    scaled = dict(zip(MAPS, compressed(*inside.values()), strict=True))
    sharpness, peak_to_flux = _concentration(inside, maps["valid"][seen])
    values = []
    ordered = [np.sort(scaled[name]).astype(np.float64) for name in MAPS]
    for one in ordered:
        values += _quantiles(one, LEVELS)
    for one in ordered:
        values += _moments(one)
    for name in MAPS:
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


def _quantiles(ordered, levels):
    """Linear between order statistics; 0 of nothing."""
    if not len(ordered):
        return [0.0] * len(levels)
    place = np.array(levels) * (len(ordered) - 1)
    low = place.astype(int)
    high = np.minimum(low + 1, len(ordered) - 1)
    return list(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


def _moments(ordered):
    mean = ordered.mean()
    rest = ordered - mean
    square = rest * rest
    variance = square.mean()
    if not variance > 1e-12 * max(1.0, mean * mean):
        return [mean, 0.0, 0.0, 0.0]
    skew, kurtosis = (square * rest).mean() / variance**1.5, (square * square).mean() / variance**2 - 3
    return [mean, math.sqrt(variance), math.asinh(skew) / 3, math.asinh(kurtosis) / 3]


def _log_count(found, scale=1.0):
    return math.log10(1 + scale * np.count_nonzero(found))


def _concentration(inside, valid):
    """Shares of a block's squared light and of its light in the brightest pixel, from 1e-3 to 10."""
    pixels = BLOCK_PIXELS * np.clip(valid, 1 / BLOCK_PIXELS, 1).astype(np.float64)
    mean, peak, scatter = (inside[name].astype(np.float64) for name in MAPS)
    squares = pixels * (scatter**2 - 1 + mean**2)
    return np.clip(_share(peak**2, squares), 1e-3, 10), np.clip(_share(peak, pixels * mean), 1e-3, 10)


def _share(part, whole):
    """Part of the whole; 10, the upper end, where noise has left nothing of the whole."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 10.0)


def _summits(values, seen):
    """Seen blocks that are brighter than the blocks around them, as a row of the seen ones."""
    ny, nx = values.shape
    padded = np.full((ny + 2, nx + 2), -np.inf, np.float32)
    padded[1:-1, 1:-1] = np.where(seen, values, -np.inf)
    beside = np.maximum(padded[:, :-2], padded[:, 2:])
    rows = np.maximum(beside, padded[:, 1:-1])
    around = np.maximum(np.maximum(rows[:-2], rows[2:]), beside[1:-1])
    return (padded[1:-1, 1:-1] > around)[seen]


def _autocorrelations(inside, seen):
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
