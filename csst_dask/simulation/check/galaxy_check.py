"""Galaxies against GalSim: flux, half-light radius and ellipticity of Sersic profiles behind the same seeing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.focal_plane import BAND_TABLE, PIXEL_SCALE
from csst_dask.simulation.check.figure import new_figure, save_figure, stretch
from csst_dask.simulation.check.finding import Finding, below, load_package
from csst_dask.simulation.check.psf_check import JITTER, galsim_profile
from csst_dask.simulation.psf import PSF, make_psf
from csst_dask.simulation.sersic import add_galaxies

SIZE = 160
"""Side of the boxes that galaxies are compared in, pixel."""
FLUX = 4e4
"""Electrons."""
CENTRE = (SIZE / 2 + 0.3, SIZE / 2 - 0.2)


@dataclass(frozen=True)
class Shape:
    """A galaxy of unit flux."""

    name: str
    radius: float
    """Half-light radius of the disc (n = 1) along the major axis, pixel."""
    bulge_radius: float
    """The same of the bulge (n = 4)."""
    bulge_fraction: float
    axis_ratio: float
    angle: float
    """Of the major axis from +x to +y, rad."""


SHAPES = (
    Shape("small disc", 2.5, 1.5, 0.0, 0.7, 0.4),
    Shape("disc", 6.0, 3.0, 0.0, 1.0, 0.0),
    Shape("inclined disc", 9.0, 4.0, 0.0, 0.35, 1.1),
    Shape("disc and bulge", 7.0, 3.0, 0.3, 0.6, 2.3),
    Shape("elliptical", 5.0, 5.0, 1.0, 0.8, 0.8),
)

Draw = Callable[[Shape, PSF], NDArray[np.float64]]


def draw_ours(shape: Shape, psf: PSF) -> NDArray[np.float64]:
    """A galaxy by the simulator, in units of its flux."""
    frame = np.zeros((SIZE, SIZE), np.float32)
    columns = (CENTRE[0], CENTRE[1], FLUX, shape.radius, shape.bulge_radius, shape.bulge_fraction, shape.axis_ratio)
    add_galaxies(frame, *columns, shape.angle, psf.mixture)
    return frame.astype(np.float64) / FLUX


def draw_reference(shape: Shape, profile: Any) -> NDArray[np.float64]:
    """The same galaxy by GalSim, behind a point spread function."""
    galsim = load_package("galsim")
    # a shear keeps the area, so that the radius along the major axis grows by 1 / sqrt(axis ratio)
    shrink = PIXEL_SCALE * np.sqrt(shape.axis_ratio)
    parts = []
    if shape.bulge_fraction < 1:
        parts.append(galsim.Exponential(half_light_radius=shape.radius * shrink, flux=1 - shape.bulge_fraction))
    if shape.bulge_fraction > 0:
        bulge = galsim.DeVaucouleurs(half_light_radius=shape.bulge_radius * shrink, flux=shape.bulge_fraction)
        parts.append(bulge)
    whole = galsim.Add(parts).shear(q=shape.axis_ratio, beta=shape.angle * galsim.radians)
    seen = galsim.Convolve(whole, profile)
    image = galsim.ImageD(SIZE, SIZE, scale=PIXEL_SCALE)
    seen.drawImage(image, offset=(CENTRE[1] - SIZE / 2, CENTRE[0] - SIZE / 2))
    return image.array


def half_light_radius(image: NDArray[np.float64]) -> float:
    """Radius of the circle about the galaxy's place that holds half the light of the box, pixel."""
    rows, columns = (np.arange(n) + 0.5 for n in image.shape)
    radius = np.hypot(rows[:, None] - CENTRE[0], columns[None, :] - CENTRE[1]).ravel()
    order = np.argsort(radius)
    light = image.ravel()[order].cumsum()
    # the light within a radius is a step function of whole pixels: smooth it by a fit around its half
    near_half = np.abs(light / light[-1] - 0.5) < 0.12
    line = np.polyfit(light[near_half] / light[-1] - 0.5, radius[order][near_half], 2)
    return float(line[-1])


def ellipticity(image: NDArray[np.float64]) -> tuple[float, float]:
    """Distortion (e1, e2) from GalSim's adaptive moments."""
    galsim = load_package("galsim")
    moments = galsim.hsm.FindAdaptiveMom(galsim.Image(np.ascontiguousarray(image), scale=1.0))
    return float(moments.observed_e1), float(moments.observed_e2)


def shape_findings(shape: Shape, ours: NDArray[np.float64], reference: NDArray[np.float64]) -> list[Finding]:
    """Compare two images of one galaxy; differences are relative to the reference, of ellipticities absolute."""
    radius, expected = half_light_radius(ours), half_light_radius(reference)
    error = float(np.hypot(*np.subtract(ellipticity(ours), ellipticity(reference))))
    size = np.hypot(*ellipticity(reference))
    flux = float(ours.sum() / reference.sum()) - 1
    return [
        below(f"{shape.name}: flux in {SIZE} px", flux, 0.02, "relative to GalSim"),
        below(f"{shape.name}: half-light radius", radius / expected - 1, 0.03, f"{radius:.2f} px for {expected:.2f}"),
        below(f"{shape.name}: ellipticity", error, 0.02, f"length of the difference; GalSim's has {size:.3f}"),
    ]


def _draw(path: Path, pairs: list[tuple[Shape, NDArray, NDArray]]) -> None:
    figure, axes = new_figure(3, len(pairs), (1.7 * len(pairs), 5.4))
    cut = slice(SIZE // 2 - 32, SIZE // 2 + 32)
    for column, (shape, ours, reference) in enumerate(pairs):
        peak = reference.max()
        rows = ((shape.name, stretch(ours[cut, cut])), ("GalSim", stretch(reference[cut, cut])))
        for row, (title, picture) in enumerate(rows):
            axes[row, column].imshow(picture, origin="lower", cmap="gray_r", vmin=0, vmax=1)
            axes[row, column].set_title(title, fontsize=8, loc="left")
        gap = 100 * (ours - reference)[cut, cut] / peak
        axes[2, column].imshow(gap, origin="lower", cmap="RdBu_r", vmin=-2, vmax=2)
    axes[2, 0].set_title("difference, ±2 % of peak", fontsize=8, loc="left")
    for axis in axes.flat:
        axis.set_axis_off()
    save_figure(figure, path)


def check_galaxies(folder: Path | None = None, draw: Draw = draw_ours) -> list[Finding]:
    """Five galaxies; with a folder, also ``galaxies.png`` in it.

    Parameters
    ----------
    folder : Path, optional
    draw : callable, optional
        Draws a shape of unit flux behind a point spread function.

    Raises
    ------
    ConfigError
        If GalSim is not installed.
    """
    wavelength = BAND_TABLE["i"].wavelength
    psf, profile = make_psf(wavelength, JITTER), galsim_profile(wavelength, JITTER)
    pairs = [(shape, draw(shape, psf), draw_reference(shape, profile)) for shape in SHAPES]
    if folder is not None:
        _draw(folder / "galaxies.png", pairs)
    return [finding for pair in pairs for finding in shape_findings(*pair)]
