"""The point spread function of an aberrated pupil with jitter.

The light of a star through a round pupil is the square of the Fourier transform of the pupil's complex amplitude, here
by two matrix products (Soummer et al. 2007, Opt. Express 15, 15935), blurred by a Gaussian jitter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ABERRATIONS = 8
"""Zernike terms: defocus, astigmatism (2), coma (2), trefoil (2), spherical."""
DIFFRACTION = 0.85
"""Width of the diffraction pattern against the whole core, of which jitter makes the rest."""
_SIDE = 160
"""Samples across the pupil."""
_AIRY_FWHM = 1.029
"""Of a round pupil without aberrations, in wavelengths over diameter."""


def _phases() -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The pupil, and the Zernike terms on it, each with a root mean square of 1 (Noll 1976, JOSA 66, 207)."""
    axis = (np.arange(_SIDE) - (_SIDE - 1) / 2) * 2 / _SIDE
    x, y = axis, axis[:, None]
    r2, angle = x * x + y * y, np.arctan2(y, x)
    r = np.sqrt(r2)
    coma = np.sqrt(8) * (3 * r2 - 2) * r
    terms = [
        np.sqrt(3) * (2 * r2 - 1), np.sqrt(6) * r2 * np.cos(2 * angle), np.sqrt(6) * r2 * np.sin(2 * angle),
        coma * np.cos(angle), coma * np.sin(angle), np.sqrt(8) * r2 * r * np.cos(3 * angle),
        np.sqrt(8) * r2 * r * np.sin(3 * angle), np.sqrt(5) * (6 * r2 * r2 - 6 * r2 + 1),
    ]  # fmt: skip
    return r2 <= 1, np.array(terms)


def pupil_image(fwhm: float, aberrations: tuple[float, ...], cells: int, per_pixel: int) -> NDArray[np.float64]:
    """Surface brightness of a unit source at the centres of cells.

    Parameters
    ----------
    fwhm : float
        Of the core without aberrations, pixel.
    aberrations : tuple of float
        Root mean square of each of the `ABERRATIONS`, in wavelengths.
    cells : int
        Of the square image, an odd number; the source lies on the middle one.
    per_pixel : int
        Cells along a pixel.

    Returns
    -------
    (cells, cells) float64 array
        Per square pixel.
    """
    from scipy.ndimage import gaussian_filter  # on first use: whoever renders elsewhere does without

    pupil, terms = _phases()
    wave = np.where(pupil, np.exp(2j * np.pi * np.tensordot(np.asarray(aberrations), terms, 1)), 0)
    resolution = airy_scale(fwhm)
    place = (np.arange(cells) - cells // 2) / per_pixel / resolution
    kernel = np.exp(-2j * np.pi * np.outer(place, (np.arange(_SIDE) - (_SIDE - 1) / 2) / _SIDE))
    field = kernel @ wave @ kernel.T
    # by Parseval the light of the whole plane is the pupil's
    image = (field.real**2 + field.imag**2) / (pupil.sum() * _SIDE**2 * resolution**2)
    jitter = fwhm * np.sqrt(1 - DIFFRACTION**2) / 2.354820045
    return gaussian_filter(image, jitter * per_pixel, mode="nearest", truncate=5)


def airy_scale(fwhm: float) -> float:
    """Wavelength over diameter for a core of a width, pixel."""
    return DIFFRACTION * fwhm / _AIRY_FWHM


def airy_wing(radius: NDArray[np.float64], fwhm: float) -> NDArray[np.float64]:
    """Mean surface brightness of the rings far from a unit source, per square pixel: u / (pi r)^3.

    The light beyond r is 2 u / (pi^2 r), u being the wavelength over the diameter (Born & Wolf, Principles of Optics,
    8.5.2).
    """
    return airy_scale(fwhm) / (np.pi * radius) ** 3
