"""The point spread function: pixel-integrated stamps at sub-pixel phases, its wings, and a sum of Gaussians."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ConfigError
from csst_dask.instrument.focal_plane import BAND_TABLE, PIXEL_SCALE
from csst_dask.simulation.mixture import fit_mixture, gaussian_energy

DIAMETER = 2.0
"""Telescope aperture, m."""
PHASES = 16
"""Sub-pixel positions along each axis."""
STAMP_RADII = (3, 5, 8, 13, 20)
"""Half sizes of the square stamps, pixel; smaller stamps are the middles of the largest."""
WING_RADIUS = 400
"""Wings end here, pixel."""
FIELD_RADIUS = 25_000.0
"""From the boresight to the middle of an imaging detector in the corner, pixel."""
CORNER_BLUR, CORNER_ELLIPTICITY = 0.045, 0.04
"""What aberrations add at that radius: FWHM in arcsec, in quadrature; and (a - b) / (a + b), radially."""

_WIDE, _MOFFAT = 0.12, 0.08
_BETA, _MOFFAT_FWHM = 1.75, 0.18
_ALPHA = _MOFFAT_FWHM / PIXEL_SCALE / (2 * np.sqrt(2 ** (1 / _BETA) - 1))
_MOFFAT_SIGMAS = (1.09, 2.78, 10.3)
_SPIKE_SCALE = 8.0
_SPIKE_SIGMAS = (1.0, 3.0, 9.0, 30.0, 120.0)
_TO_SIGMA = 1 / (PIXEL_SCALE * 2.354820045)


@dataclass(frozen=True)
class PSF:
    """A point source of unit flux."""

    stamps: NDArray[np.float32]
    """(phase y, phase x, y, x): share of the flux in each pixel of the largest stamp; phase p of 16 has the source
    (p + 0.5) / 16 of a pixel beyond the lower edge of the central pixel."""
    wings: NDArray[np.float32]
    """Flux per pixel by radius, sampled at every half pixel; without diffraction spikes."""
    peak: float
    """Largest share of the flux that falls into one pixel."""
    mixture: NDArray[np.float64]
    """(k, 2): weight and sigma (pixel) of Gaussians that add up to the circularised PSF, pixel not included; the
    weights sum to one."""
    core: float
    """Width of the core, FWHM, pixel; of the whole profile where the PSF was measured."""
    spikes: float = 0.0
    """Share of the flux in diffraction spikes; they run on beyond the stamps."""


def gaussian_fwhm(wavelength: float, jitter: float) -> float:
    """Width of the core: diffraction and everything else in quadrature.

    Parameters
    ----------
    wavelength : float
        Angstrom.
    jitter : float
        arcsec, FWHM.

    Returns
    -------
    float
        arcsec, FWHM.
    """
    diffraction = 1.03 * wavelength * 1e-10 / DIAMETER * 206264.806
    return float(np.hypot(diffraction, jitter))


def _shares(halo: float, spikes: float) -> tuple[float, float, float]:
    """Shares of core, wide Gaussian and Moffat."""
    rest = 1 - spikes
    return rest * (1 - (_WIDE + _MOFFAT) * halo), rest * _WIDE * halo, rest * _MOFFAT * halo


def _profile(radius: NDArray, fwhm: float, halo: float = 1.0, spikes: float = 0.0) -> NDArray:
    """Surface brightness of a unit source without its spikes, per square pixel, at a radius in pixel."""
    core, wide, moffat = _shares(halo, spikes)
    out = np.zeros_like(radius)
    for share, sigma in ((core, fwhm * _TO_SIGMA), (wide, 2 * fwhm * _TO_SIGMA)):
        out += share / (2 * np.pi * sigma**2) * np.exp(-0.5 * (radius / sigma) ** 2)
    return out + moffat * (_BETA - 1) / (np.pi * _ALPHA**2) * (1 + (radius / _ALPHA) ** 2) ** -_BETA


def spike_profile(distance: ArrayLike) -> NDArray[np.float64]:
    """Light of one pair of spikes per pixel of its length, for a unit flux in the pair; a Lorentzian.

    Parameters
    ----------
    distance : array_like of float
        From the star, pixel.
    """
    return _SPIKE_SCALE / np.pi / (_SPIKE_SCALE**2 + np.square(np.asarray(distance, np.float64)))


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _fine_profile(n, core, wide, moffat, sigma, alpha, e1, e2):
    """Surface brightness at the centres of n x n cells (n odd) about the source, per cell."""
    half = n // 2
    step = 1.0 / PHASES
    out = np.empty((n, n))
    norm = step * step / (1 - e1 * e1 - e2 * e2)
    a, b, c = (1 - e1) ** 2 + e2 * e2, -2 * e2, (1 + e1) ** 2 + e2 * e2
    inner, narrow = -0.5 / sigma**2, -0.125 / sigma**2
    k_core = core * step * step / (2 * np.pi * sigma**2)
    k_wide = 0.25 * wide * step * step / (2 * np.pi * sigma**2)
    k_moffat = moffat * 0.75 * step * step / (np.pi * alpha**2)
    stretch = np.sqrt(e1 * e1 + e2 * e2)
    longest = (17 * sigma / step) ** 2 * (1 + stretch) / (1 - stretch)
    for i in range(half + 1):
        y, row, mirror = i - half, out[i], out[n - 1 - i]
        for j in range(n):
            x = j - half
            square = norm * (a * (x * x) + 2 * b * (x * y) + c * (y * y))
            # t ** -1.75
            root = np.sqrt(1 + square / alpha**2)
            row[j] = k_moffat / (root * root * root * np.sqrt(root))
        reach = np.sqrt(max(longest - y * y, 0.0))
        for j in range(max(int(half - reach), 0), min(int(half + reach) + 1, n)):
            x = j - half
            square = norm * (a * (x * x) + 2 * b * (x * y) + c * (y * y))
            row[j] += k_wide * np.exp(narrow * square)
            if inner * square > -36:
                row[j] += k_core * np.exp(inner * square)
        for j in range(n):
            mirror[n - 1 - j] = row[j]
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def bin_phases(fine, size, stamps):
    """Sum cells into pixels at every phase by running sums; fine has one spare cell at each edge.

    The source lies in the middle of a cell, so at phase p pixel i is exactly the cells 16 i - p to 16 i - p + 15.
    A cell's mean is its central value plus a 24th of the discrete Laplacian.
    """
    n = fine.shape[0] - 2
    phases = stamps.shape[0]
    starts = phases * size
    rows = np.zeros((n, starts))
    cells = np.empty(n)
    for y in range(n):
        middle, below, above = fine[y + 1], fine[y], fine[y + 2]
        for x in range(n):
            around = middle[x] + middle[x + 2] + below[x + 1] + above[x + 1]
            cells[x] = middle[x + 1] + (around - 4 * middle[x + 1]) / 24
        total = 0.0
        for x in range(phases - 1):
            total += cells[x]
        for x in range(starts):
            total += cells[x + phases - 1]
            rows[y, x] = total
            total -= cells[x]
    total_row = np.zeros(starts)
    for y in range(phases - 1):
        total_row += rows[y]
    for u in range(starts):
        new, old = rows[u + phases - 1], rows[u]
        for x in range(starts):
            total_row[x] += new[x]
        i, p = u // phases, phases - 1 - u % phases
        for q in range(phases):
            target = stamps[p, q, i]
            for j in range(size):
                target[j] = total_row[phases * j + phases - 1 - q]
        for x in range(starts):
            total_row[x] -= old[x]


@lru_cache(maxsize=1)
def _tail_mixtures() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The Moffat and the spikes, each of unit flux, as sums of Gaussians."""
    radius = np.geomspace(0.2, 200, 80)
    moffat = 1 - (1 + (radius / _ALPHA) ** 2) ** (1 - _BETA)
    return (
        fit_mixture(radius, moffat, _MOFFAT_SIGMAS),
        fit_mixture(radius, 2 / np.pi * np.arctan(radius / _SPIKE_SCALE), _SPIKE_SIGMAS),
    )


def _mixture(fwhm: float, halo: float, spikes: float) -> NDArray[np.float64]:
    core, wide, moffat = _shares(halo, spikes)
    sigma = fwhm * _TO_SIGMA
    tail, arms = _tail_mixtures()
    parts = np.vstack([[[core, sigma], [wide, 2 * sigma]], tail * [moffat, 1], arms * [spikes, 1]])
    return parts[parts[:, 0] > 0]


@lru_cache(maxsize=24)
def make_psf(
    wavelength: float,
    jitter: float,
    *,
    halo: float = 1.0,
    ellipticity: tuple[float, float] = (0.0, 0.0),
    spikes: float = 0.0,
) -> PSF:
    """Tabulate a PSF of two Gaussians and a Moffat halo.

    Each stamp is the true share of a unit flux: it is not scaled to sum to one, which would put the flux beyond its
    edge into its core.

    Parameters
    ----------
    wavelength : float
        Angstrom.
    jitter : float
        FWHM of everything but diffraction, arcsec.
    halo : float
        Scales the shares of the wide Gaussian (0.12) and the Moffat (0.08); the core keeps the rest.
    ellipticity : (float, float)
        Shear that conserves flux, (a - b) / (a + b) along x and along the diagonal; wings beyond the stamps stay
        circular.
    spikes : float
        Share of the light in four diffraction spikes along rows and columns.

    Returns
    -------
    PSF
    """
    e1, e2 = ellipticity
    if not (0 < halo < 5 and 0 <= spikes < 1 and np.hypot(e1, e2) < 0.5):
        raise ConfigError(
            f"PSF: halo {halo}, spikes {spikes}, ellipticity {ellipticity}; expected 0 < halo < 5, 0 <= spikes < 1 "
            "and |ellipticity| < 0.5"
        )
    fwhm = gaussian_fwhm(wavelength, jitter)
    size = 2 * STAMP_RADII[-1] + 1
    cells = PHASES * (size + 1) + 1
    sigma = fwhm * _TO_SIGMA
    fine = _fine_profile(cells, *_shares(halo, spikes), sigma, _ALPHA, float(e1), float(e2))
    if spikes:
        axis = (np.arange(cells) - cells // 2) / PHASES
        across = np.exp(-0.5 * (axis / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
        arms = np.outer(across, spike_profile(axis))
        fine += 0.5 * spikes * (arms + arms.T) / PHASES**2
    stamps = np.empty((PHASES, PHASES, size, size), np.float32)
    bin_phases(fine, size, stamps)
    wings = _profile(np.arange(2 * WING_RADIUS + 2) / 2, fwhm, halo, spikes).astype(np.float32)
    mixture = _mixture(fwhm, halo, spikes)
    return PSF(stamps, wings, float(stamps.max()), mixture, fwhm / PIXEL_SCALE, spikes)


def field_psf(band: str, xc: float, yc: float, jitter: float, *, halo: float = 1.0, spikes: float = 0.0) -> PSF:
    """PSF in the middle of a detector.

    The variation over the field is an assumption, smooth and about as large as that of wide-field space telescopes:
    the blur grows linearly with the distance from the boresight, and the PSF is drawn out along the radius by an
    ellipticity that grows with its square. Both are rounded, so that detectors that mirror each other share a PSF.

    Parameters
    ----------
    band : str
        One of `csst_dask.schema.BANDS`.
    xc, yc : float
        Place in the focal plane, pixel from the boresight.
    jitter : float
        FWHM of everything but diffraction on the boresight, arcsec.
    halo, spikes : float
        See `make_psf`.

    Returns
    -------
    PSF
    """
    t = float(np.hypot(xc, yc)) / FIELD_RADIUS
    angle = 2 * np.arctan2(yc, xc)
    e = CORNER_ELLIPTICITY * t * t
    # adding zero turns a rounded -0.0 into 0.0
    e1, e2 = (round(e * part / 0.004) * 0.004 + 0.0 for part in (np.cos(angle), np.sin(angle)))
    blur = round(float(np.hypot(jitter, CORNER_BLUR * t)), 3)
    return make_psf(BAND_TABLE[band].wavelength, blur, halo=halo, ellipticity=(float(e1), float(e2)), spikes=spikes)


def encircled_energy(psf: PSF, radius: ArrayLike) -> NDArray[np.float64]:
    """Share of a point source's light within a radius, before the pixels blur it.

    Parameters
    ----------
    psf : PSF
    radius : array_like of float
        pixel

    Returns
    -------
    float64 array
        Of the shape of the radius.
    """
    weights, sigmas = psf.mixture.T
    return gaussian_energy(np.asarray(radius, np.float64), sigmas) @ weights


def ee80(psf: PSF) -> float:
    """Radius that holds 80 % of the light, arcsec; the telescope is required to stay within 0.15."""
    radius = np.linspace(0, 20, 4001)
    return float(np.interp(0.8, encircled_energy(psf, radius), radius)) * PIXEL_SCALE
