"""The stellar locus: the concentration that all stars of a chip share, whatever the point spread function."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from csst_dask.preprocess.peaks import LIGHT
from csst_dask.schema import CONCENTRATION, SHARPNESS

LOCUS = {"NUV": 0.87, "u": 0.845, "g": 0.83, "r": 0.82, "i": 0.79, "z": 0.76, "y": 0.75}
"""Where the stellar locus of a band is expected."""
WIDTH = (7.4, -6.8)
"""FWHM of stars, pixel, by their concentration: the first, and the second times that."""
WIDTH_SPREAD, WIDTH_END = 0.22, 0.40
"""Standard deviation of the natural logarithm of that from one instrument to another, and where, about, it ends."""
LOCUS_WIDTH = 0.02
"""Standard deviation of bright stars about the locus of their chip, for where they lie on the pixels."""
LOCI = (0.50, 0.925, 0.005)
"""First, end and step of the loci that are tried."""
FLAT, FLAT_WIDTH = 0.365, 0.022
"""Concentration of large galaxies, whose light changes little over 5 x 5 pixels, and its standard deviation."""
CORE, CORE_WIDTH = 0.40, 0.09
"""That of the cores of galaxies, in units of the way from there to the locus."""
GALAXY_SHARES = ((0.85, 0.12), (0.6, 0.3), (0.3, 0.5))
"""Shares of large galaxies and of cores that are tried; the others lie anywhere below the locus."""
PASSING = (
    (0.47, 0.51, 0.57, 0.63, 0.69, 0.77, 0.79, 0.87, 0.89, 0.95, 0.97, 0.99),
    (0.30, 0.22, 0.12, 0.09, 0.055, 0.06, 0.50, 0.60, 1.60, 1.70, 0.40, 0.25),
)
"""Concentrations of cosmic rays, and how many are no sharper than stars for each that is. Tracks that cross
5 x 5 pixels in a line have 0.6, whatever the camera."""
SPURIOUS_FLOOR, BEYOND = 3.0, 0.925
"""Cosmic rays and hot pixels in each step above this concentration, expected beside those that are too sharp,"""
SPURIOUS_BASE = 0.1
"""and in each step below."""
SHARES, SPURIOUS = (0.005, *np.linspace(0.02, 0.98, 13)), (0.02, 0.1, 0.3, 0.6, 0.9)
"""Of stars among bright peaks, and of hot pixels and cosmic rays among the others, that are tried."""
STRAY = 0.02
"""Share of peaks that are none of these."""
LOCUS_PEAKS = 200.0
"""The locus is sought with the light of so many peaks at most: more do not make a wrong model of galaxies right."""
BRIGHT_LIGHT = 50.0
"""Light, in units of the noise of a pixel, from which on the noise moves a star's shape by less than its scatter."""
SHARP = (1.247, -1.397, 0.546)
"""Peak over 3 x 3 light of stars, by powers of their concentration, the highest first: a point spread function with
more of its light in 3 of 5 pixels has more in 1 of 3, whatever its profile."""
SHARP_WIDTH = 0.05
"""Stars are sharper than this says by less, but for noise."""


def stellar_locus(peaks: NDArray[np.float64], noise: float, band: str) -> tuple[float, float]:
    """Concentration of the stars of a chip, and their scatter about it.

    Parameters
    ----------
    peaks : (flux, concentration, sharpness) array
    noise : float
        Of a pixel, in the unit of the light.
    band : str

    Returns
    -------
    locus, scatter : float
        The most likely of the concentrations of bright peaks, given where the band's locus is expected.

    Notes
    -----
    Bright peaks that are no sharper than stars of their concentration are stars, a Gaussian about the locus c of width
    `LOCUS_WIDTH`; galaxies, large ones at `FLAT`, and cores that lie `CORE` of the way from there to c; and cosmic rays
    and hot pixels, as those suggest that are sharper, `PASSING`. The likelihood for the best shares of each, times the
    prior, is largest at the locus.
    The prior is one of the width of stars, near that of the band: log-normal, with an end on both sides.
    """
    at = np.asarray(CONCENTRATION + 0.01, np.float64)
    shown = peaks * (star_sharpness(at)[:, None] + SHARP_WIDTH > SHARPNESS + 0.02)
    # from the brightest peaks on, as many as there have to be, and none whose shape is noise
    brighter = np.cumsum(shown.sum((1, 2))[::-1])[::-1]
    first = int(np.searchsorted(LIGHT, BRIGHT_LIGHT * noise))
    enough = np.flatnonzero(brighter >= LOCUS_PEAKS)
    first = max(first, int(enough[-1])) if enough.size else first
    number = shown[first:].sum((0, 2))
    number = number * min(1.0, LOCUS_PEAKS / max(number.sum(), 1.0))
    locus, usual = np.arange(*LOCI), star_width(LOCUS[band])
    apart = np.log(star_width(locus) / usual)
    way = (at - FLAT) / (locus[:, None] - FLAT)
    sharp = (peaks[first:].sum(0) - shown[first:].sum(0)).sum(1)
    cosmic = passing_share(at) * sharp + SPURIOUS_FLOOR * (at > BEYOND)
    stars = _normalised(_bell(at, locus[:, None], LOCUS_WIDTH))
    between = _normalised((at > FLAT) & (at < locus[:, None]))
    flat, cosmic = _normalised(_bell(at, FLAT, FLAT_WIDTH)), _normalised(cosmic + SPURIOUS_BASE)
    core = _normalised(_bell(way, CORE, CORE_WIDTH))
    galaxies = [large * flat + small * core + (1 - large - small) * between for large, small in GALAXY_SHARES]
    others = [(1 - e) * some + e * cosmic for some in galaxies for e in SPURIOUS]
    mixed = [(1 - STRAY) * (f * stars + (1 - f) * other) + STRAY / at.size for f in SHARES for other in others]
    likelihood = np.max(np.log(mixed) @ number, axis=0)
    prior = -0.5 * ((apart / WIDTH_SPREAD) ** 2 + (apart / WIDTH_END) ** 6)
    mode = locus[np.argmax(likelihood + prior)]
    weight = number * (np.abs(at - mode) < 3 * LOCUS_WIDTH)
    total = weight.sum() + 1
    centre = (weight @ at + mode) / total
    scatter = np.sqrt((weight @ (at - centre) ** 2 + 4 * LOCUS_WIDTH**2) / (weight.sum() + 4))
    return float(centre), float(scatter)


def passing_share(concentration: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosmic rays no sharper than stars, in units of those that are sharper, `PASSING`."""
    return np.asarray(np.interp(concentration, *PASSING))


def star_width(locus: float | NDArray) -> NDArray[np.float64]:
    """FWHM of stars of a concentration, pixel, `WIDTH`."""
    return np.asarray(WIDTH[0] + WIDTH[1] * np.asarray(locus))


def _normalised(density: NDArray) -> NDArray[np.float64]:
    return np.asarray(density / density.sum(-1, keepdims=True))


def _bell(x: NDArray, mean: float | NDArray, width: float) -> NDArray[np.float64]:
    return np.exp(-0.5 * ((x - mean) / width) ** 2)


def star_sharpness(concentration: NDArray[np.float64]) -> NDArray[np.float64]:
    """Peak over 3 x 3 light of stars of a concentration, `SHARP`."""
    return np.asarray(np.polyval(SHARP, np.clip(concentration, 0.55, 0.95)), np.float64)
