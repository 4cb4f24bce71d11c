"""Stars against GalSim: the same analytic profile, drawn by an independent code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.focal_plane import BAND_TABLE, PIXEL_SCALE
from csst_dask.simulation.check.figure import ACCENT, INK, QUIET, SECOND, new_figure, save_figure
from csst_dask.simulation.check.finding import Finding, below, load_package
from csst_dask.simulation.psf import PSF, STAMP_RADII, gaussian_fwhm, make_psf
from csst_dask.simulation.render import FAINTEST, add_stars

JITTER = 0.1225
"""Middle of the range that exposures are drawn from, arcsec."""
APERTURE = 4.0
"""Radius within which core fluxes are compared, pixel."""
CENTROID_APERTURE = 3.0
"""The same for centroids: every stamp reaches as far."""
BOX = 400
"""Side of the box for the total flux, pixel."""
WING_FOLDING = 2e-4


def galsim_profile(wavelength: float, jitter: float, folding: float = 5e-3) -> object:
    """The simulator's point spread function, built from GalSim's own profiles.

    Parameters
    ----------
    wavelength : float
        Angstrom.
    jitter : float
        arcsec, FWHM.
    folding : float
        Share of the light that GalSim may fold back into the picture, from beyond its edges: less is slower, and
        shows in the wings.

    Returns
    -------
    galsim.GSObject
        Of unit flux, in arcsec.
    """
    galsim = load_package("galsim")
    fwhm = gaussian_fwhm(wavelength, jitter)
    core = galsim.Gaussian(fwhm=fwhm, flux=0.80) + galsim.Gaussian(fwhm=2 * fwhm, flux=0.12)
    parameters = galsim.GSParams(folding_threshold=folding, maximum_fft_size=16384)
    return (core + galsim.Moffat(beta=1.75, fwhm=0.18, flux=0.08)).withGSParams(parameters)


def draw_galsim(profile: object, y: float, x: float, size: int) -> NDArray[np.float64]:
    """A square image of a profile at a position from its outer corner, both in pixel."""
    galsim = load_package("galsim")
    image = galsim.ImageD(size, size, scale=PIXEL_SCALE)
    profile.drawImage(image, offset=(x - size / 2, y - size / 2))  # type: ignore[attr-defined]
    return image.array


def stamp_fluxes(psf: PSF) -> dict[str, float]:
    """A flux that is drawn with each stamp size, and one with wings, electron.

    Each of the former lies just below the flux at which the next larger stamp takes over, where a star loses most.
    """
    limits = [float(FAINTEST / psf.wings[2 * (radius + 1)]) for radius in STAMP_RADII]
    named = {f"{2 * r + 1} px stamp": 0.99 * limit for r, limit in zip(STAMP_RADII, limits, strict=True)}
    return named | {"stamp and wings": 20 * limits[-1]}


def draw_star(psf: PSF, y: float, x: float, flux: float, size: int) -> NDArray[np.float64]:
    """One star by the simulator, in units of its flux."""
    frame = np.zeros((size, size), np.float32)
    add_stars(frame, np.array([y]), np.array([x]), np.array([flux]), psf)
    return frame.astype(np.float64) / flux


def core_moments(image: NDArray[np.float64], y: float, x: float) -> tuple[float, float, float]:
    """Flux within `APERTURE` of a place, and centroid (y, x) within `CENTROID_APERTURE`, pixel."""
    rows, columns = (np.arange(n) + 0.5 for n in image.shape)
    distance = np.hypot(rows[:, None] - y, columns[None, :] - x)
    core = np.where(distance < CENTROID_APERTURE, image, 0)
    centroid = ((core.sum(1) * rows).sum() / core.sum(), (core.sum(0) * columns).sum() / core.sum())
    return float(image[distance < APERTURE].sum()), float(centroid[0]), float(centroid[1])


def star_findings(psf: PSF, wavelength: float, jitter: float, label: str, places: int = 40) -> list[Finding]:
    """Compare stars of a tabulated point spread function with GalSim's drawing of the profile it stands for.

    Parameters
    ----------
    psf : PSF
    wavelength, jitter : float
        Of the profile; Angstrom, arcsec.
    label : str
        Said of the findings.
    places : int
        Random sub-pixel positions.

    Returns
    -------
    list of Finding
    """
    rng, size = np.random.default_rng(7), 41
    profile, at = galsim_profile(wavelength, jitter), 20 + rng.random((places, 2))
    truth = [core_moments(draw_galsim(profile, y, x, size), y, x) for y, x in at]
    whole = draw_galsim(galsim_profile(wavelength, jitter, WING_FOLDING), BOX / 2 + 0.3, BOX / 2 + 0.6, BOX).sum()
    shifts, found = [], []
    for name, flux in stamp_fluxes(psf).items():
        ours = [core_moments(draw_star(psf, y, x, flux, size), y, x) for y, x in at]
        shifts += [np.hypot(a[1] - b[1], a[2] - b[2]) for a, b in zip(ours, truth, strict=True)]
        core = float(np.mean([a[0] for a in ours]) / np.mean([b[0] for b in truth])) - 1
        found.append(below(f"{label}, {name}: flux within 4 px", core, 0.01, "relative to GalSim"))
        total = float(draw_star(psf, BOX / 2 + 0.3, BOX / 2 + 0.6, flux, BOX).sum() / whole) - 1
        found.append(below(f"{label}, {name}: flux in {BOX} px", total, 0.01, "relative to GalSim"))
    text = f"largest of {len(shifts)}; rms {np.sqrt(np.mean(np.square(shifts))):.3f} px"
    return [below(f"{label}: centroid, px", float(np.max(shifts)), 0.05, text), *found]


def radial_profile(images: Sequence[NDArray[np.float64]], places: NDArray, edges: NDArray) -> NDArray[np.float64]:
    """Mean pixel value by distance from the source, over several sub-pixel places."""
    radii, values = [], []
    for image, (y, x) in zip(images, places, strict=True):
        rows, columns = (np.arange(n) + 0.5 for n in image.shape)
        radii.append(np.hypot(rows[:, None] - y, columns[None, :] - x).ravel())
        values.append(image.ravel())
    radius, value = np.concatenate(radii), np.concatenate(values)
    count = np.histogram(radius, edges)[0]
    return np.histogram(radius, edges, weights=value)[0] / np.maximum(count, 1)


def _draw(path: Path, bands: Sequence[str]) -> None:
    figure, axes = new_figure(2, 1, (6.4, 5.6), sharex=True, height_ratios=(2.2, 1))
    size, edges = 121, np.concatenate([np.arange(0, 8, 0.5), np.geomspace(8, 58, 16)])
    middle = 0.5 * (edges[1:] + edges[:-1])
    places = size // 2 + np.random.default_rng(3).random((12, 2))
    for band, colour in zip(bands, (SECOND, ACCENT, INK), strict=False):
        wavelength = BAND_TABLE[band].wavelength
        psf, profile = make_psf(wavelength, JITTER), galsim_profile(wavelength, JITTER, WING_FOLDING)
        drawers: tuple[Callable, Callable] = (
            lambda y, x, psf=psf: draw_star(psf, y, x, 1e9, size),
            lambda y, x, profile=profile: draw_galsim(profile, y, x, size),
        )
        ours, theirs = (radial_profile([draw(y, x) for y, x in places], places, edges) for draw in drawers)
        axes[0, 0].semilogy(middle, theirs, color=QUIET, lw=4, alpha=0.6, label=f"{band} GalSim")
        axes[0, 0].semilogy(middle, ours, color=colour, lw=1.2, label=f"{band} csst_dask")
        axes[1, 0].plot(middle, 100 * (ours / theirs - 1), color=colour, lw=1.2)
    for radius in STAMP_RADII:
        axes[0, 0].axvline(radius + 0.5, color=QUIET, lw=0.6, ls=":")
    axes[0, 0].set_ylabel("share of the flux in a pixel")
    axes[0, 0].set_title("Point spread function by radius; dotted: stamp edges", fontsize=9, loc="left")
    axes[0, 0].legend(fontsize=8, frameon=False)
    axes[1, 0].axhline(0, color=QUIET, lw=0.6)
    axes[1, 0].set(xlabel="radius, pixel of 0.074 arcsec", ylabel="difference, %", ylim=(-5, 5))
    save_figure(figure, path)


def check_psf(folder: Path | None = None) -> list[Finding]:
    """Stars in a blue and a red band; with a folder, also ``psf.png`` in it.

    Raises
    ------
    ConfigError
        If GalSim is not installed.
    """
    bands = ("g", "y")
    found = []
    for band in bands:
        wavelength = BAND_TABLE[band].wavelength
        found += star_findings(make_psf(wavelength, JITTER), wavelength, JITTER, band)
    if folder is not None:
        _draw(folder / "psf.png", bands)
    return found
