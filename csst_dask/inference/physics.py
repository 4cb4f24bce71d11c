"""Whether a chip is what its header says and its counts are counts of stars: physics that needs no learning."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.cells import AMPLIFIERS, amplifier_cells
from csst_dask.preprocess.counted import anchored
from csst_dask.preprocess.direct import DirectCounts
from csst_dask.preprocess.measure import Measured
from csst_dask.schema import BRIGHT_LIMIT, MAGNITUDES

READ_NOISE, DARK = 5.0, 0.02
"""Of the detectors, e- and e-/s per pixel."""
NOISES = (0.35, 2.0)
"""Noise over what sky, dark current and read noise make: resampling lowers it, stars that are not told apart raise it;
beyond these limits unit or exposure time are not what they seem."""
STEP = 1.5
"""Largest step of the sky from one amplifier to the next, in units of the noise of a pixel."""
PASSED, MOST_PASSED = 0.1, (20.0, 0.5)
"""Cosmic rays that pass for bright stars, of those that do not; and how many may: some, or a share of the stars."""

APART = (0.2, 2.0)
"""Learned counts are apart from direct ones by more than this, dex, and so many times what these may be off."""

PHYSICS = ("disagreement", "noise", "amplifiers", "cosmic_rays")
"""Names of `schema.REVIEW_REASONS` that are told here."""


def physics_reasons(
    measured: Measured, band: str, exptime: float, direct: DirectCounts, log_bright: float
) -> tuple[bool, ...]:
    """What speaks against a chip.

    Parameters
    ----------
    measured : Measured
    band : str
    exptime : float
        s; NaN or 0 is unknown, and tells nothing of the noise.
    direct : DirectCounts
        Of the chip.
    log_bright : float
        Learned, log10(1 + n); NaN where it is not, and nothing disagrees.

    Returns
    -------
    tuple of bool
        In the order of `PHYSICS`.
    """
    log, span = (values[MAGNITUDES.index(BRIGHT_LIMIT)] for values in anchored(direct, band))
    apart, spans = APART
    disagrees = abs(log_bright - log) > apart + spans * span
    low, high = NOISES
    noise = _median(measured.noise)
    ratio = noise / expected_noise(_median(measured.sky), exptime)
    step = amplifier_step(measured.sky) / noise if noise > 0 else 0.0
    some, share = MOST_PASSED
    most = max(some, share * (10 ** (log_bright if np.isfinite(log_bright) else log) - 1))
    return bool(disagrees), bool(ratio < low or ratio > high), bool(step > STEP), bool(PASSED * direct.sharp > most)


def expected_noise(sky: float, exptime: float) -> float:
    """Standard deviation of a pixel of sky, dark current and read noise, e-/s.

    Parameters
    ----------
    sky : float
        e-/s per pixel.
    exptime : float
        s.

    Returns
    -------
    float
        ``sqrt((sky + dark) t + r^2) / t`` with the read noise r; NaN where the exposure time is unknown.
    """
    if not (np.isfinite(exptime) and exptime > 0 and np.isfinite(sky)):
        return float("nan")
    return float(np.sqrt((max(sky, 0.0) + DARK) * exptime + READ_NOISE**2) / exptime)


def amplifier_step(sky: NDArray[np.floating]) -> float:
    """Largest step of the sky at the borders between amplifiers, beyond what its slope on both sides makes.

    Parameters
    ----------
    sky : (sy, sx) array
        Local sky in cells that no border crosses; NaN where it is unknown.

    Returns
    -------
    float
        In the unit of the sky: the median along the border; 0 where amplifiers have less than two cells.
    """
    found = [0.0]
    for axis, number in enumerate(AMPLIFIERS):
        rows = np.moveaxis(np.asarray(sky, np.float64), axis, 0)
        along, across = amplifier_cells(rows.shape if axis == 0 else rows.shape[::-1])[:: 1 if axis == 0 else -1]
        if along < 2:
            continue
        for border in range(along, along * number, along):
            before = 1.5 * rows[border - 1] - 0.5 * rows[border - 2]
            after = 1.5 * rows[border] - 0.5 * rows[border + 1]
            jump = (after - before).reshape(-1, across)
            known = jump[np.isfinite(jump).any(1)]
            found += [abs(float(np.nanmedian(one))) for one in known]
    return max(found)


def _median(values: NDArray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a frame without a good cell
        return float(np.nanmedian(values))
