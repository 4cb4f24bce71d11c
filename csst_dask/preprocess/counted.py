"""What was counted on a chip as numbers for a network that corrects the counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument import BAND_TABLE
from csst_dask.preprocess.direct import SHARP_EXCESS, DirectCounts, direct_counts, encircled_share
from csst_dask.preprocess.measure import Measured
from csst_dask.preprocess.stellar_locus import LOCUS, star_sharpness
from csst_dask.schema import CONCENTRATION, FLUX, MAGNITUDES, SHARPNESS

ANCHORS = (*(f"direct_{m:g}" for m in MAGNITUDES), "direct_star")
"""Direct counts, log10(1 + N(< m)), dex, carried on beyond what is seen; and to the limit of all stars."""
SPANS = tuple(f"span_{name}" for name in ANCHORS)
"""How far off each may be, dex."""
STAR_DEPTH = {"NUV": 29.5, "u": 27.7, "g": 26.5, "r": 26.0, "i": 25.6, "z": 25.4, "y": 25.3}
"""Magnitude in the band down to which there are about as many stars as brighter than 26.5 in g."""
SLOPE, SLOPES = 0.2, (0.03, 0.45)
"""Of log10 N(< m) with m where too few stars tell, and the range that it is kept within, dex/mag."""
DRIFT = 0.15
"""By how much a slope may err, dex/mag."""
LEAST_SPAN, MOST_SPAN = 0.02, 1.0
NOTHING_SEEN = 1.0
"""Counts where no magnitude is seen, dex; how far off they are is `MOST_SPAN`."""
EDGES = np.arange(15.5, 27.01, 0.5)
"""Bins of magnitude."""
OFFSETS = (-0.20, -0.12, -0.06, -0.02, 0.02, 0.06)
"""Between bins of concentration about the locus."""
_BINS = tuple(f"{m:g}" for m in EDGES[:-1])
SHAPE_NAMES = (*(f"shape{k}" for k in range(len(OFFSETS) + 1)), "sharp")
SEEN = ("locus", "scatter", "log_noise", "valid", "scattered", "log_saturated", "encircled", "sky_range", "noise_range")
COUNTED = (*ANCHORS, *SPANS, *SEEN, *(f"{shape}_{m}" for shape in SHAPE_NAMES for m in _BINS))
"""Names of the numbers."""


def counted_context(measured: Measured, band: str, direct: DirectCounts | None = None) -> NDArray[np.float32]:
    """Direct counts, and peaks by magnitude and by shape about the stellar locus.

    Parameters
    ----------
    measured : Measured
    band : str
        Of `schema.BANDS`.
    direct : DirectCounts, optional
        Of the chip, if they are known.

    Returns
    -------
    (k,) float32 array
        `COUNTED`, finite.
    """
    found = direct_counts(measured, band) if direct is None else direct
    zero = measured.zero_point if np.isfinite(measured.zero_point) else BAND_TABLE[band].zero_point
    log, span = anchored(found, band)
    noise = measured.noise[np.isfinite(measured.noise)]
    sky = measured.sky[np.isfinite(measured.sky)]
    typical = max(float(np.median(noise)), 1e-6) if noise.size else 1.0
    valid = np.asarray(measured["valid"], np.float64)
    locus = found.locus if np.isfinite(found.locus) else LOCUS[band]
    scatter = found.scatter if np.isfinite(found.scatter) else 0.0
    seen = [
        10 * (locus - LOCUS[band]), 20 * scatter, np.log10(typical) + 1, valid.mean(),
        10 * np.minimum(1 - valid, 0.1).mean(), np.log10(1.0 + measured.saturated.sum()),
        5 * (encircled_share(locus) - 0.9),
        _log_range(sky - sky.min() + typical) if sky.size else 0.0, _log_range(noise) if noise.size else 0.0,
    ]  # fmt: skip
    shapes = np.log10(1.0 + _by_shape(measured.peaks, zero, locus, encircled_share(locus)))
    numbers = np.concatenate([log, span, seen, shapes.ravel()])
    return np.nan_to_num(numbers, nan=0.0, posinf=6.0, neginf=0.0).astype(np.float32)


def anchored(direct: DirectCounts, band: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of the direct counts, and how far off they may be, beyond what is seen too.

    Parameters
    ----------
    direct : DirectCounts
    band : str

    Returns
    -------
    log, span : (11,) float64 array
        `ANCHORS` and `SPANS`, dex.
    """
    limits = np.array([*MAGNITUDES, STAR_DEPTH[band]])
    seen = np.isfinite(direct.counts)
    if not seen.any():
        return np.full(limits.size, NOTHING_SEEN), np.full(limits.size, MOST_SPAN)
    known, count, error = np.array(MAGNITUDES)[seen], direct.counts[seen], direct.error[seen]
    log = np.log10(1 + count)
    span = (log - np.log10(1 + np.maximum(count - 3 * error, 0))) / 3
    slope = SLOPE
    if known.size > 2 and count[-3] >= 10:
        slope = float(np.clip((log[-1] - log[-3]) / (known[-1] - known[-3]), *SLOPES))
    beyond = np.maximum(limits - known[-1], 0.0)
    out = np.interp(limits, known, log) + slope * beyond
    spans = np.hypot(np.interp(limits, known, span), DRIFT * beyond)
    return out, np.clip(spans, LEAST_SPAN, MOST_SPAN)


def _log_range(values: NDArray) -> float:
    low, high = np.percentile(values, [5, 95])
    return float(np.log10(max(high, 1e-9) / max(low, 1e-9)))


def _by_shape(peaks: NDArray, zero_point: float, locus: float, encircled: float) -> NDArray[np.float64]:
    """(shape, magnitude) peaks by shape about the locus and by magnitude, as if all were stars."""
    sharpest = float(star_sharpness(np.array(locus))) + SHARP_EXCESS
    blunt = peaks[:, :, sharpest > SHARPNESS].sum(2)
    sharp = peaks.sum((1, 2)) - blunt.sum(1)
    place, bins = np.searchsorted(OFFSETS, CONCENTRATION + 0.01 - locus), len(OFFSETS) + 1
    table = np.stack([*(blunt[:, place == k].sum(1) for k in range(bins)), sharp]).astype(np.float64)
    edges = zero_point - 2.5 * (np.append(FLUX, FLUX[-1] + 0.1) - np.log10(locus * encircled))
    brighter = np.concatenate([np.zeros((len(table), 1)), np.cumsum(table[:, ::-1], 1)], 1)
    found = np.array([np.interp(EDGES, edges[::-1], row) for row in brighter])
    return np.diff(found, axis=1)
