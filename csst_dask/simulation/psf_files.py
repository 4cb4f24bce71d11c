"""Measured point spread functions: from oversampled FITS images to the stamps that the renderer uses.

A folder holds ``psf_{band}.fits`` for each band, and where the detectors differ ``psf_{band}_{detector:02d}.fits``,
which goes first. The first two-dimensional image of a file counts; each of its cells holds the light that falls on
its area.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from numpy.typing import NDArray

from csst_dask.errors import ConfigError
from csst_dask.instrument.focal_plane import PIXEL_SCALE
from csst_dask.simulation.mixture import fit_mixture
from csst_dask.simulation.psf import PHASES, PSF, STAMP_RADII, WING_RADIUS

MICRON = 0.0074
"""arcsec per micron on a detector."""
LEAST_RADIUS = 8
"""Images must reach at least this far from their centre, pixel."""
COARSEST = 0.05
"""Cells are at most this large, arcsec: the core is not sampled otherwise."""
OFF_CENTRE = 1.0
"""Images are centred on their centroid, which may lie this far from their middle, pixel."""
_SLOPES = (-4.5, -2.5)
_SIGMAS = np.geomspace(0.3, 80, 30)


def psf_path(folder: Path, band: str, detector: int | None = None) -> Path:
    """File of a detector's PSF, or of its band where the detector has none of its own.

    Raises
    ------
    ConfigError
        If there is neither.
    """
    names = [] if detector is None else [f"psf_{band}_{detector:02d}.fits"]
    names.append(f"psf_{band}.fits")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(
        f"{folder} holds none of {', '.join(names)}: add the file, or leave simulation.psf out to use the model"
    )


@lru_cache(maxsize=24)
def read_psf(folder: Path, band: str, detector: int | None = None) -> PSF:
    """PSF of a band or detector from a folder of measured ones.

    Parameters
    ----------
    folder : Path
    band : str
        One of `csst_dask.schema.BANDS`.
    detector : int, optional

    Returns
    -------
    PSF

    Raises
    ------
    ConfigError
        If the file is missing, is not FITS, or its image is no point spread function.
    """
    path = psf_path(folder, band, detector)
    try:
        with fits.open(path) as hdus:
            images = [hdu for hdu in hdus if getattr(hdu, "shape", ()) and len(hdu.shape) == 2 and hdu.is_image]
            if not images:
                raise ConfigError(f"{path} holds no two-dimensional image; expected an oversampled PSF")
            data, header = np.asarray(images[0].data, np.float64), hdus[0].header.copy()
            header.update(images[0].header)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as FITS ({error}): replace the file") from error
    try:
        return psf_from_image(data, _scale(header))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _scale(header: fits.Header) -> float:
    """arcsec per cell."""
    for word in ("PIXSCALE", "PIXSCAL1"):
        if word in header:
            return _number(header, word)
    for word in ("PIXSIZE", "PIXSIZE1"):
        if word in header:
            size = _number(header, word)
            return size if size < 0.2 else size * MICRON
    wcs = WCS(header)
    if wcs.has_celestial:
        return float(np.mean(proj_plane_pixel_scales(wcs.celestial))) * 3600
    raise ConfigError("no scale: set PIXSCALE (arcsec), PIXSIZE (arcsec, or micron from 0.2 on) or a celestial WCS")


def _number(header: fits.Header, word: str) -> float:
    try:
        return float(header[word])
    except (TypeError, ValueError):
        raise ConfigError(f"{word} is {header[word]!r}; expected a number") from None


def psf_from_image(image: NDArray[np.float64], scale: float) -> PSF:
    """Turn an oversampled image of a point source into a PSF.

    Stamps and fine profile come from a quartic spline with exactly the light of every cell in it, integrated over
    the pixels. Beyond the image the wings go on as a power law, fitted to its outer third; the flux is scaled so
    that image and extension together hold one.

    Parameters
    ----------
    image : (ny, nx) float64 array
        Light in each cell, in any unit.
    scale : float
        Side of a cell, arcsec; at most `COARSEST`.

    Returns
    -------
    PSF

    Raises
    ------
    ConfigError
        If the image is not finite, is too small, holds no light or is off centre, or the scale is out of range.
    """
    step = _check(image, scale)
    centre = _centroid(image, step)
    radius = np.hypot(*np.ix_(*((np.arange(n) + 0.5 - c) * step for n, c in zip(image.shape, centre, strict=True))))
    edge = min(min(c, n - c) for n, c in zip(image.shape, centre, strict=True)) * step
    wings, beyond, slope = _wings(image / step**2, radius, edge)
    # the corners of the image lie beyond its edge radius, in the power law's realm
    total = image[radius <= edge].sum() + beyond
    image, wings = image / total, wings / total
    spline = _spline(image)
    stamps = _stamps(spline, step, centre)
    _extend(stamps, wings, edge)
    fine_radius, energy, profile = _fine(spline, step, centre)
    outer = np.arange(10.0, edge, 1.0)
    energy_outer = np.array([image[radius < r].sum() for r in outer])
    far = np.geomspace(edge, WING_RADIUS, 6)
    energy_far = 1 - beyond / total * (far / edge) ** (2 + slope)
    mixture = _few_gaussians(
        np.concatenate([fine_radius, outer, far]), np.concatenate([energy, energy_outer, energy_far])
    )
    k = int(np.argmax(profile < 0.5 * profile[0]))
    half = k - (0.5 * profile[0] - profile[k]) / (profile[k - 1] - profile[k])
    core = float(half + 1) * 2 / PHASES
    return PSF(stamps.astype(np.float32), wings.astype(np.float32), float(stamps.max()), mixture, core)


def _few_gaussians(radius: NDArray, energy: NDArray) -> NDArray[np.float64]:
    """Fit with many widths, merge those that came out as neighbours, and fit again."""
    weights, sigmas = fit_mixture(radius, energy, _SIGMAS).T
    groups = np.cumsum(np.concatenate([[0], np.diff(np.log(sigmas)) > 1.5 * np.log(_SIGMAS[1] / _SIGMAS[0])]))
    merged = np.bincount(groups, weights * np.log(sigmas)) / np.bincount(groups, weights)
    return fit_mixture(radius, energy, np.exp(merged))


def _check(image: NDArray, scale: float) -> float:
    """Size of a cell in detector pixels."""
    if not 0.001 <= scale <= COARSEST:
        raise ConfigError(f"cells of {scale} arcsec; expected 0.001 to {COARSEST}, oversampled: correct the scale")
    step = scale / PIXEL_SCALE
    if image.ndim != 2 or min(image.shape) * step < 2 * LEAST_RADIUS:
        raise ConfigError(
            f"an image of {image.shape} cells of {scale} arcsec; expected two axes of at least "
            f"{int(np.ceil(2 * LEAST_RADIUS / step))} cells"
        )
    if not np.isfinite(image).all():
        raise ConfigError(f"{int((~np.isfinite(image)).sum())} values are not finite; expected none: mend the image")
    if not image.sum() > 0:
        raise ConfigError(f"the image sums to {image.sum()}; expected the light of a source, above 0")
    return step


def _centroid(image: NDArray, step: float) -> tuple[float, float]:
    """Centroid within 4 pixels of the brightest region, in cells from the outer corner."""
    ny, nx = image.shape
    y, x = np.arange(ny)[:, None] + 0.5, np.arange(nx)[None, :] + 0.5
    cy, cx = ny / 2, nx / 2
    for _ in range(20):
        weight = np.exp(-0.5 * ((y - cy) ** 2 + (x - cx) ** 2) * (step / 1.5) ** 2) * image
        if not weight.sum() > 0:
            break
        # twice the step of the weighted mean, since the weight holds the centroid back by about a half
        new = (weight * y).sum() / weight.sum(), (weight * x).sum() / weight.sum()
        cy, cx = cy + 1.5 * (new[0] - cy), cx + 1.5 * (new[1] - cx)
    away = float(np.hypot(cy - ny / 2, cx - nx / 2)) * step
    if not away < OFF_CENTRE:
        raise ConfigError(
            f"the source lies {away:.1f} pixels off the middle; expected less than {OFF_CENTRE}: recentre"
        )
    return float(cy), float(cx)


def _spline(image: NDArray) -> NDArray:
    """Coefficients of quartic B-splines, one on each cell, whose integrals over the cells are the image."""
    for _ in range(2):
        offset = np.abs(np.subtract.outer(np.arange(len(image)), np.arange(len(image))))
        cells = np.select([offset == 0, offset == 1, offset == 2], [66 / 120, 26 / 120, 1 / 120])
        image = np.linalg.solve(cells, image).T
    return image


def _integral(u: NDArray) -> NDArray:
    """Integral of the centred quartic B-spline up to u (a sum of truncated powers; Schoenberg 1946)."""
    u = np.clip(u, -2.5, 2.5)
    total = np.zeros_like(u)
    for j, binomial in enumerate((1, -5, 10, -10, 5)):
        t = np.maximum(u + (2.5 - j), 0)
        square = t * t
        total += binomial * square * square * t
    return total / 120


def _resample(spline: NDArray, step: float, centre: tuple[float, float], starts: NDArray, width: float) -> NDArray:
    """Light in squares; starts from the source and widths in pixel."""

    def operator(n: int, c: float) -> NDArray:
        lower = (starts / step + c)[:, None] - (np.arange(n) + 0.5)
        return _integral(lower + width / step) - _integral(lower)

    rows, columns = (operator(n, c) for n, c in zip(spline.shape, centre, strict=True))
    return rows @ spline @ columns.T


def _stamps(spline: NDArray, step: float, centre: tuple[float, float]) -> NDArray:
    size = 2 * STAMP_RADII[-1] + 1
    # pixel i at phase p begins (p + 1/2)/16 below the source: all begins in rising order
    starts = (np.arange(size * PHASES) + 0.5 - PHASES) / PHASES - STAMP_RADII[-1]
    pixels = _resample(spline, step, centre, starts, 1.0)
    grid = pixels.reshape(size, PHASES, size, PHASES)[:, ::-1, :, ::-1]
    return np.ascontiguousarray(grid.transpose(1, 3, 0, 2))


def _extend(stamps: NDArray, wings: NDArray, edge: float) -> None:
    """Replace what lies beyond the image by the wings, in place."""
    if edge > np.sqrt(2) * (STAMP_RADII[-1] + 2):
        return
    axis = np.arange(-STAMP_RADII[-1], STAMP_RADII[-1] + 1) + 0.5 - (np.arange(PHASES)[:, None] + 0.5) / PHASES
    for p in range(PHASES):
        for q in range(PHASES):
            radius = np.hypot(axis[p][:, None], axis[q][None, :])
            outside = radius > edge - 1
            stamps[p, q][outside] = np.interp(2 * radius[outside], np.arange(wings.size), wings)


def _wings(image: NDArray, radius: NDArray, edge: float) -> tuple[NDArray, float, float]:
    """Mean brightness per pixel by half pixels of radius, the light beyond the image, and the power of the fall."""
    n = 2 * WING_RADIUS + 2
    place = np.rint(2 * radius).astype(np.int64).ravel()
    count = np.bincount(place, minlength=n)[:n]
    light = np.bincount(place, image.ravel(), minlength=n)[:n]
    reach = int(2 * edge) - 1
    known = np.flatnonzero(count[: reach + 1])
    wings = np.zeros(n)
    wings[: reach + 1] = np.interp(np.arange(reach + 1), known, np.maximum(light[known] / count[known], 0))
    k = np.arange(2 * reach // 3, reach + 1)
    k = k[wings[k] > 0]
    if k.size < 3:
        return wings, 0.0, _SLOPES[0]
    slope = float(np.clip(np.polyfit(np.log(k / 2), np.log(wings[k]), 1)[0], *_SLOPES))
    level = float(np.exp(np.mean(np.log(wings[k]) - slope * np.log(k / 2))))
    wings[reach + 1 :] = level * (np.arange(reach + 1, n) / 2) ** slope
    return wings, 2 * np.pi * level * edge ** (2 + slope) / -(2 + slope), slope


def _fine(spline: NDArray, step: float, centre: tuple[float, float]) -> tuple[NDArray, NDArray, NDArray]:
    """Radii (pixel), encircled energy at them, and brightness from a sixteenth of a pixel on."""
    reach = 8 * PHASES
    starts = (np.arange(2 * reach) - reach) / PHASES
    cells = _resample(spline, step, centre, starts, 1 / PHASES)
    middle = starts + 0.5 / PHASES
    radius = np.hypot(middle[:, None], middle[None, :]).ravel()
    order = np.argsort(radius)
    inside = np.unique(np.rint(np.pi * (np.arange(1, reach) ** 2)).astype(np.int64))
    # the innermost n cells cover the area of a circle, whatever their outline
    energy = cells.ravel()[order].cumsum()[inside - 1]
    place = np.rint(radius * PHASES).astype(np.int64)
    profile = np.bincount(place, cells.ravel())[1:reach] / np.bincount(place)[1:reach]
    return np.sqrt(inside / np.pi) / PHASES, energy, profile
