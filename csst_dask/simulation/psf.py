"""The point spread function: pixel-integrated stamps at sub-pixel phases, and its wings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PIXEL = 0.074
"""arcsec"""
DIAMETER = 2.0
"""Telescope aperture, m."""
PHASES = 16
"""Sub-pixel positions along each axis."""
STAMP_RADII = (4, 7, 20)
"""Half sizes of the square stamps, pixel."""
WING_RADIUS = 400
"""Wings end here, pixel."""

_CORE, _HALO, _MOFFAT = 0.80, 0.12, 0.08
_BETA, _MOFFAT_FWHM = 1.75, 0.18


@dataclass(frozen=True)
class PSF:
    """A point source of unit flux."""

    stamps: NDArray[np.float32]
    """(phase y, phase x, y, x): share of the flux in each pixel of the largest stamp; phase p of 16 has the source
    (p + 0.5) / 16 of a pixel beyond the lower edge of the central pixel."""
    wings: NDArray[np.float32]
    """Flux per pixel by radius, sampled at every half pixel."""
    peak: float
    """Largest share of the flux that falls into one pixel."""


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


def _profile(radius: NDArray, fwhm: float) -> NDArray:
    """Surface brightness of a unit source, per square pixel, at a radius in pixel."""
    out = np.zeros_like(radius)
    for share, width in ((_CORE, fwhm), (_HALO, 2 * fwhm)):
        sigma = width / PIXEL / 2.354820045
        out += share / (2 * np.pi * sigma**2) * np.exp(-0.5 * (radius / sigma) ** 2)
    alpha = _MOFFAT_FWHM / PIXEL / (2 * np.sqrt(2 ** (1 / _BETA) - 1))
    return out + _MOFFAT * (_BETA - 1) / (np.pi * alpha**2) * (1 + (radius / alpha) ** 2) ** -_BETA


@lru_cache(maxsize=32)
def make_psf(wavelength: float, jitter: float) -> PSF:
    """Tabulate a circular PSF of two Gaussians and a Moffat halo.

    The profile is integrated on a grid of 1/16 pixel by an integral image, so that each stamp is the true share of
    a unit flux: it is not scaled to sum to one, which would put the flux beyond its edge into its core.

    Parameters
    ----------
    wavelength : float
        Angstrom.
    jitter : float
        FWHM of everything but diffraction, arcsec.

    Returns
    -------
    PSF
    """
    fwhm = gaussian_fwhm(wavelength, jitter)
    radius = STAMP_RADII[-1]
    cells = (2 * radius + 2) * PHASES
    axis = (np.arange(cells) + 0.5) / PHASES - (radius + 1)
    fine = _profile(np.hypot(axis[:, None], axis[None, :]), fwhm) / PHASES**2
    integral = np.zeros((cells + 1, cells + 1))
    integral[1:, 1:] = fine.cumsum(0).cumsum(1)
    size = 2 * radius + 1
    stamps = np.empty((PHASES, PHASES, size, size), np.float32)
    for p in range(PHASES):
        for q in range(PHASES):
            # the source lies at (p + 1/2)/16 of the central pixel: sub-cell centres average its two neighbours
            box = 0.25 * sum(_boxes(integral, PHASES - p - a, PHASES - q - b, size) for a in (0, 1) for b in (0, 1))
            stamps[p, q] = box
    wings = _profile(np.arange(2 * WING_RADIUS + 2) / 2, fwhm).astype(np.float32)
    return PSF(stamps, wings, float(stamps.max()))


def _boxes(integral: NDArray, y: int, x: int, size: int) -> NDArray:
    edges_y = y + PHASES * np.arange(size + 1)
    edges_x = x + PHASES * np.arange(size + 1)
    grid = integral[np.ix_(edges_y, edges_x)]
    return np.diff(np.diff(grid, axis=0), axis=1)
