"""Point spread functions of other families: Moffat profiles, sums of Gaussians, aberrated pupils with jitter.

All have a halo, may be elliptical, and are tabulated as `csst_dask.simulation.psf` tabulates its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from csst_dask.simulation.mixture import fit_mixture
from csst_dask.simulation.psf import PHASES, PSF, STAMP_RADII, WING_RADIUS, bin_phases
from csst_dask.simulation.psf_pupil import ABERRATIONS, airy_scale, airy_wing, pupil_image

Family = Literal["telescope", "moffat", "gaussians", "pupil"]
FAMILIES: tuple[Family, ...] = ("telescope", "moffat", "gaussians", "pupil")
"""``telescope`` is the core of `csst_dask.simulation.psf`: a Gaussian and another one twice as wide."""
HALO_BETA, HALO_RADIUS = 1.5, 6.0
"""Moffat exponent of the halo, and its core radius, pixel."""
ASTIGMATISM = 0.4
"""Root mean square in wavelengths that stands for an ellipticity of 1 where a pupil makes the image."""
_RADII = np.geomspace(0.05, 300, 160)
_CORE_SIGMAS = np.array([0.85, 1.5, 2.9, 6.5])
"""Of the Gaussians that stand for a Moffat core, against its sigma; few, since every galaxy is drawn with each."""
_HALO_SIGMAS = np.array([5.0, 14.0, 50.0])


@dataclass(frozen=True)
class Shape:
    """A profile."""

    family: Family
    fwhm: float
    """Of the core, pixel, before the pixels blur it."""
    halo: float = 0.02
    """Share of the light in the halo."""
    beta: float = 3.0
    """Exponent of a Moffat core."""
    wide: tuple[float, float] = (0.15, 2.0)
    """Share of the wider Gaussian in the core, and its width against the narrow one's."""
    ellipticity: tuple[float, float] = (0.0, 0.0)
    """(a - b) / (a + b) along x and along the diagonal; of a pupil its astigmatism over `ASTIGMATISM`."""
    aberrations: tuple[float, ...] = (0.0,) * ABERRATIONS
    """Of a pupil, as `csst_dask.simulation.psf_pupil.pupil_image` takes them."""


def _moffat(square: NDArray, radius: float, beta: float) -> NDArray[np.float64]:
    return (beta - 1) / (np.pi * radius**2) * (1 + square / radius**2) ** -beta


def _parts(shape: Shape) -> tuple[list[tuple[float, float]], float]:
    """Weights and sigmas of the Gaussians of the core; and the core radius of a Moffat, or 0."""
    core, sigma = 1 - shape.halo, shape.fwhm / 2.354820045
    if shape.family == "moffat":
        return [], shape.fwhm / (2 * np.sqrt(2 ** (1 / shape.beta) - 1))
    share, ratio = shape.wide if shape.family == "gaussians" else (0.12, 2.0)
    return [(core * (1 - share), sigma), (core * share, ratio * sigma)], 0.0


def brightness(shape: Shape, square: NDArray[np.float64]) -> NDArray[np.float64]:
    """Surface brightness of a unit source.

    Parameters
    ----------
    shape : Shape
    square : float64 array
        Square of the radius, pixel2.

    Returns
    -------
    float64 array
        Per square pixel.
    """
    gaussians, radius = _parts(shape)
    out = shape.halo * _moffat(square, HALO_RADIUS, HALO_BETA)
    for weight, sigma in gaussians:
        out += weight / (2 * np.pi * sigma**2) * np.exp(-0.5 * square / sigma**2)
    return out + (1 - shape.halo) * _moffat(square, radius, shape.beta) if radius else out


@lru_cache(maxsize=8)
def family_psf(shape: Shape) -> PSF:
    """Tabulate a PSF.

    Parameters
    ----------
    shape : Shape

    Returns
    -------
    PSF
        Without spikes; its wings beyond the stamps are circular.
    """
    size = 2 * STAMP_RADII[-1] + 1
    cells = PHASES * (size + 1) + 1
    if shape.family == "pupil":
        return _pupil_psf(shape, size, cells)
    axis = (np.arange(cells) - cells // 2) / PHASES
    e1, e2 = shape.ellipticity
    norm = 1 / (1 - e1 * e1 - e2 * e2)
    y, x = axis[:, None], axis
    square = norm * (((1 - e1) ** 2 + e2**2) * x * x - 4 * e2 * x * y + ((1 + e1) ** 2 + e2**2) * y * y)
    half = cells // 2 + 1
    upper = brightness(shape, square[:half])
    fine = np.concatenate([upper, upper[-2::-1, ::-1]]) / PHASES**2
    stamps = np.empty((PHASES, PHASES, size, size), np.float32)
    bin_phases(fine, size, stamps)
    wings = brightness(shape, (np.arange(2 * WING_RADIUS + 2) / 2) ** 2).astype(np.float32)
    return PSF(stamps, wings, float(stamps.max()), _mixture(shape), shape.fwhm)


def _pupil_psf(shape: Shape, size: int, cells: int) -> PSF:
    astigmatism = 0.0, ASTIGMATISM * shape.ellipticity[0], ASTIGMATISM * shape.ellipticity[1]
    aberrations = tuple(a + b for a, b in zip_longest(shape.aberrations, astigmatism, fillvalue=0.0))
    axis = (np.arange(cells) - cells // 2) / PHASES
    square = axis[:, None] ** 2 + axis**2
    halo = shape.halo * _moffat(square, HALO_RADIUS, HALO_BETA)
    image = (1 - shape.halo) * pupil_image(shape.fwhm, aberrations, cells, PHASES)
    stamps = np.empty((PHASES, PHASES, size, size), np.float32)
    bin_phases((image + halo) / PHASES**2, size, stamps)
    radius = np.maximum(np.arange(2 * WING_RADIUS + 2) / 2, 1.0)
    wings = (1 - shape.halo) * airy_wing(radius, shape.fwhm) + shape.halo * _moffat(radius**2, HALO_RADIUS, HALO_BETA)
    # the light within each radius, of the image as far as it goes and of the wings beyond
    edges = np.minimum(_RADII, cells // 2 / PHASES)
    order = np.argsort(square, axis=None)
    light = np.append(0, np.cumsum(image.ravel()[order])) / PHASES**2
    within = light[np.searchsorted(square.ravel()[order], edges**2, "right")]
    within += (1 - shape.halo) * 2 * airy_scale(shape.fwhm) / np.pi**2 * (1 / edges - 1 / _RADII)
    tail = shape.halo * (1 - (1 + (_RADII / HALO_RADIUS) ** 2) ** (1 - HALO_BETA))
    sigmas = np.append(_CORE_SIGMAS * shape.fwhm / 2.354820045, _HALO_SIGMAS[1:])
    return PSF(
        stamps, wings.astype(np.float32), float(stamps.max()), fit_mixture(_RADII, within + tail, sigmas), shape.fwhm
    )


def _mixture(shape: Shape) -> NDArray[np.float64]:
    gaussians, radius = _parts(shape)
    tail = 1 - (1 + (_RADII / HALO_RADIUS) ** 2) ** (1 - HALO_BETA)
    if not radius:
        halo = fit_mixture(_RADII, tail, _HALO_SIGMAS)
        return np.vstack([np.array(gaussians), halo * [shape.halo, 1]])
    core = 1 - (1 + (_RADII / radius) ** 2) ** (1 - shape.beta)
    sigmas = np.append(_CORE_SIGMAS * shape.fwhm / 2.354820045, _HALO_SIGMAS[1:])
    return fit_mixture(_RADII, (1 - shape.halo) * core + shape.halo * tail, sigmas)
