"""Stars counted from what a pass over the pixels has seen, without any network.

Stars of a chip share one concentration, the stellar locus, whatever the point spread function; galaxies lie below it,
and single pixels are sharper. Peaks on the locus are stars; their 3 x 3 light, corrected to all of their light, gives
their magnitude. What masks, noise and brighter neighbours hide is made up for by models with one parameter each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from csst_dask.errors import ConfigError
from csst_dask.instrument import BAND_TABLE
from csst_dask.preprocess.measure import Measured
from csst_dask.preprocess.peaks import LIGHT, THRESHOLD
from csst_dask.preprocess.stellar_locus import LOCUS_WIDTH, passing_share, star_sharpness, star_width, stellar_locus
from csst_dask.schema import BRIGHT_LIMIT, CONCENTRATION, FLUX, MAGNITUDES, SHAPE_OF, SHAPES, SHARPNESS, TILES

SHARP_EXCESS, SHARP_NOISE = 0.03, 1.5
"""Stars are sharper than those of the locus by less than this and so many standard deviations of noise; what is sharper
yet is a hot pixel or a cosmic ray."""
ENCIRCLED = (-1.836, 3.358, -0.608)
"""Share of a star's light within 5 x 5 pixels by powers of the locus, the highest first."""
WINDOW = 0.08
"""Least half width below the locus within which peaks are stars."""
GALAXIES = 0.12
"""Compact galaxies within the window, in units of those in a window of the same width below it."""
EXCESS = 0.08
"""Hot pixels and cosmic rays are more concentrated than stars by this and by what noise does."""
STRAY_RAYS, STRAY_SHARP, STRAY_EXTENDED = 0.5, 0.2, 0.1
"""What may be wrong with these: a share of what is taken off for cosmic rays, of all that is too sharp, and of galaxies
just below the window."""
STRAY_FAINT, CLEAR = 0.35, 1.6
"""Share of peaks below so many times the threshold that may be noise that is not that of single pixels."""
STRAY_LOCUS, MIXED = 0.35, 1.5
"""Share of the counts that may be others where the variance about the locus is one more than so many times that of
stars; none at so many."""
HALF_SATURATED = 0.5
"""Standard deviation of the number of stars with one to three saturated pixels, in units of those with more."""
BLEND_AREA = 19.0
"""Area about a star in which no peak of a fainter one counts as a star, in squares of the width of stars."""
MOST_BLENDED = 2.0
"""Natural logarithm of the most that blending is corrected by."""
SCATTERED = 0.02
"""Share of a block up to which its invalid pixels are scattered ones, cosmic rays and hot pixels,"""
REACH = 8.0
"""each of which hides the peaks of so many pixels more."""
LEAST_COMPLETE = 0.3
"""Fainter stars than those of which so many are seen are not counted."""
SYSTEMATIC = 0.05
"""Relative error of the counts of stars that stand alone."""
BLEND_ERROR = 0.3
"""Relative error of what blending is corrected by."""


@dataclass(frozen=True)
class DirectCounts:
    """Stars on a frame, as they are seen."""

    counts: NDArray[np.float64]
    """N(< m) for m of `schema.MAGNITUDES`; NaN beyond what is seen."""
    error: NDArray[np.float64]
    """Standard deviation of each."""
    tile: NDArray[np.float64]
    """(ty, tx) bright stars; they add up to N(< 23.5)."""
    locus: float
    """3 x 3 over 5 x 5 light of stars."""
    scatter: float
    """Standard deviation of bright stars about it."""
    sharp: float = 0.0
    """Peaks as bright as bright stars that are too sharp for them: hot pixels and cosmic rays without a flag."""


def direct_counts(
    measured: Measured, band: str, *, zero_point: float | None = None, locus: float | None = None
) -> DirectCounts:
    """Count stars without a network.

    Parameters
    ----------
    measured : Measured
        Of a frame in e-/s, as `csst_dask.measure_image` gives it.
    band : str
        Of `schema.BANDS`.
    zero_point : float, optional
        AB magnitude of 1 e-/s; by default the one that ``measured`` knows, else the band's.
    locus : float, optional
        Concentration of stars, 3 x 3 over 5 x 5 light, where it is known; by default the most likely one.

    Returns
    -------
    DirectCounts

    Raises
    ------
    ConfigError
        If the band is unknown.

    Notes
    -----
    With the light F in 3 x 3 pixels and the locus c, a star has the magnitude ``zero_point - 2.5 log10(F / (c E))``, E
    being `ENCIRCLED`. Peaks count as stars down to `WINDOW` below the locus; of those, compact galaxies are taken off
    in proportion to what lies another `WINDOW` below. The noise of c is ``4 c^2 noise / F``, for the 16 pixels around.
    The share of stars that exceed the threshold T is ``Phi((F - T) / (3 noise))``, that of stars in the window follows
    from the same scatter. Of stars at a density of n seen per pixel a share ``exp(-n A)`` has no brighter one within
    an area A, and counts. `ENCIRCLED` and the sharpness of stars follow from point spread functions of many families
    (``physics: wide``), A from chips of ``configs/datasets/training.yaml``; the rest is measured on stars.
    """
    if band not in BAND_TABLE:
        raise ConfigError(f"unknown band {band!r}; expected one of {', '.join(BAND_TABLE)}")
    zero = BAND_TABLE[band].zero_point if zero_point is None else zero_point
    if zero_point is None and np.isfinite(measured.zero_point):
        zero = measured.zero_point
    valid = measured["valid"]
    share, noise = float(valid.mean()), _typical(measured.noise)
    open_share = share - REACH * float(np.minimum(1 - valid, SCATTERED).mean())
    if not share > 0 or not noise > 0:
        nothing = np.full(len(MAGNITUDES), np.nan)
        return DirectCounts(nothing, nothing.copy(), np.full((TILES, TILES), np.nan), float("nan"), float("nan"))
    pixels = measured.n_valid / share
    peaks = measured.peaks.astype(np.float64)
    locus, scatter = stellar_locus(peaks, noise, band) if locus is None else (locus, LOCUS_WIDTH)
    middle = LIGHT * 10**0.05
    seen, galaxies, stray, sharp = _stars(peaks, middle, locus, scatter, noise)
    stray = stray + STRAY_FAINT * seen * (middle < CLEAR * 3 * THRESHOLD * noise)
    complete = ndtr((middle - 3 * THRESHOLD * noise) / (3 * noise))
    counted = complete > LEAST_COMPLETE
    whole = np.where(counted, seen / np.maximum(complete, LEAST_COMPLETE), 0.0)
    edges = zero - 2.5 * (FLUX - np.log10(locus * encircled_share(locus)))
    limits = np.array(MAGNITUDES)
    saturated = float(measured.saturated.sum())
    alone = np.interp(limits, edges[::-1], np.cumsum(whole[::-1])) + saturated
    single = alone / max(open_share, 0.1 * share)
    area = BLEND_AREA * float(star_width(locus)) ** 2
    counts = single * np.exp(np.minimum(area * single / pixels, MOST_BLENDED))
    hidden = np.interp(limits, edges[::-1], np.cumsum(np.where(counted, whole * (1 / complete - 1), 0)[::-1]))
    removed = np.interp(limits, edges[::-1], np.cumsum(np.where(counted, galaxies, 0)[::-1]))
    wrong = np.interp(limits, edges[::-1], np.cumsum(np.where(counted, stray, 0)[::-1]))
    mixed = float(np.clip((scatter / LOCUS_WIDTH) ** 2 - MIXED, 0, 1))
    error = np.sqrt(
        1
        + (HALF_SATURATED * saturated) ** 2
        + counts * (1 - share) / share
        + hidden
        + removed
        + removed**2
        + (wrong + STRAY_LOCUS * mixed * counts) ** 2
        + (SYSTEMATIC * counts) ** 2
        + (BLEND_ERROR * (counts - single)) ** 2
    )
    faintest = edges[counted].max(initial=-np.inf)
    for values in (counts, error):
        values[limits > faintest] = np.nan
    tile = _tiles(measured, peaks, seen, edges, valid)
    bright = counts[limits == BRIGHT_LIMIT][0]
    tile *= bright / tile.sum() if tile.sum() > 0 else 1.0
    spurious = float(np.interp(BRIGHT_LIMIT, edges[::-1], np.cumsum(sharp[::-1])))
    return DirectCounts(counts, error, tile, locus, scatter, spurious)


def encircled_share(locus: float) -> float:
    """Share of a star's light within 5 x 5 pixels, `ENCIRCLED`."""
    return float(np.polyval(ENCIRCLED, np.clip(locus, 0.5, 0.9)))


def _typical(noise: NDArray) -> float:
    good = noise[np.isfinite(noise)]
    return float(np.median(good)) if good.size else float("nan")


def _stars(
    peaks: NDArray[np.float64], light: NDArray[np.floating], locus: float, scatter: float, noise: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Peaks that are stars, less compact galaxies; the latter; what else may pass for stars; and what is too sharp."""
    spread = np.hypot(scatter, 4 * locus**2 * noise / light)
    sharpest = float(star_sharpness(np.array(locus))) + SHARP_EXCESS + SHARP_NOISE * noise / light
    passing = (peaks * (sharpest[:, None] > SHARPNESS)[:, None]).sum(2)
    sharp = peaks.sum(2) - passing
    cosmic = passing_share(CONCENTRATION + 0.01) * sharp
    shown = passing * (locus + EXCESS + 3 * spread[:, None] > CONCENTRATION + 0.01)

    def above(some: NDArray[np.float64], least: float) -> NDArray[np.float64]:
        """Peaks above a concentration; the step that it cuts counts by its part."""
        return some @ np.clip((CONCENTRATION + 0.02 - least) / 0.02, 0, 1)

    window, wider = above(shown, locus - WINDOW), above(shown, locus - 2 * WINDOW)
    rays = np.minimum(above(cosmic * (shown > 0), locus - WINDOW), window)
    window = window - rays
    galaxies = np.minimum(GALAXIES * (wider - window - rays), window)
    stray = STRAY_RAYS * rays + STRAY_SHARP * sharp.sum(1) + STRAY_EXTENDED * (wider - window - rays)
    return (window - galaxies) / ndtr(WINDOW / spread), galaxies, stray, sharp.sum(1)


def _tiles(
    measured: Measured, peaks: NDArray[np.float64], seen: NDArray[np.float64], edges: NDArray, valid: NDArray
) -> NDArray[np.float64]:
    """Bright stars of each tile, but for a factor: peaks of a coarse shape are stars as often as in the whole chip."""
    bright = np.clip((BRIGHT_LIMIT - edges) / 0.25 + 1, 0, 1)
    coarse = np.zeros((FLUX.size, SHAPES.size))
    for shape in range(SHAPES.size):
        coarse[:, shape] = peaks[:, shape == SHAPE_OF].sum(1)
    star_like = np.isin(SHAPES, np.unique(SHAPE_OF[(CONCENTRATION > 0.6)][:, SHARPNESS < 0.4]))
    total = (coarse * star_like).sum(1)
    weight = bright * np.divide(seen, total, out=np.zeros_like(seen), where=total > 0)
    if not measured.tile_peaks.size:
        return np.full((TILES, TILES), np.nan)
    found = (measured.tile_peaks * star_like).sum(3) @ weight + measured.saturated.sum(2)
    share = valid.reshape(TILES, valid.shape[0] // TILES, TILES, -1).mean((1, 3))
    return np.divide(found, share, out=np.zeros_like(found), where=share > 0.05)
