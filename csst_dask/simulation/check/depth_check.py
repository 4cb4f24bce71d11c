"""How faint a star the simulated survey sees, measured with SEP, against the published limits.

Definition: the 5 sigma depth is the magnitude at which the flux of stars in a circular aperture of 0.15 arcsec, at
their known places on the mean of all exposures of the wide survey, scatters by a fifth of its mean. The light outside
the aperture counts as lost.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.focal_plane import BAND_TABLE, PIXEL_SCALE, Band
from csst_dask.schema import BANDS
from csst_dask.simulation.check.figure import ACCENT, INK, QUIET, new_figure, save_figure
from csst_dask.simulation.check.finding import Finding, load_package, near
from csst_dask.simulation.check.psf_check import JITTER
from csst_dask.simulation.detector import DetectorModel
from csst_dask.simulation.noise import observe
from csst_dask.simulation.psf import make_psf
from csst_dask.simulation.render import add_stars

SIZE, SPACING = 1024, 16
"""Side of the patch and distance of its stars, pixel."""
EXPTIME = 150.0
RADIUS = 0.15 / PIXEL_SCALE
"""Of the aperture, pixel."""
EXPOSURES = {"NUV": 4, "y": 4}
"""Exposures of the wide survey; two in the other bands."""
TOLERANCE = 0.15


def star_patch(
    band: Band, magnitude: float, exposures: int, exptime: float = EXPTIME
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean of several exposures of stars of one magnitude on a jittered grid.

    Parameters
    ----------
    band : Band
    magnitude : float
        AB.
    exposures : int
        Each with its own noise.
    exptime : float
        Of each, s.

    Returns
    -------
    image : (`SIZE`, `SIZE`) float64 array
        Electrons per exposure, with the sky in it.
    y, x : (n,) float64 array
        Positions from the outer corner, pixel.
    """
    model, rng = DetectorModel(), np.random.default_rng(11)
    grid = np.arange(SPACING // 2, SIZE, SPACING, dtype=np.float64)
    y, x = (place.ravel() + rng.uniform(-1, 1, grid.size**2) for place in np.meshgrid(grid, grid))
    light = np.zeros((SIZE, SIZE), np.float32)
    flux = 10 ** (-0.4 * (magnitude - band.zero_point)) * exptime
    add_stars(light, y, x, np.full(y.size, flux), make_psf(band.wavelength, JITTER))
    total = np.zeros((SIZE, SIZE))
    for key in np.random.SeedSequence([17, round(1000 * magnitude)]).generate_state(2 * exposures).reshape(-1, 2):
        frame = light.copy()
        observe(
            frame,
            sky=band.sky * exptime,
            gradient=(0.0, 0.0),
            dark=model.dark * exptime,
            read_noise=model.read_noise,
            exptime=exptime,
            full_well=model.full_well,
            key=(int(key[0]), int(key[1])),
        )
        total += frame
    return total * exptime / exposures, y, x


def signal_to_noise(image: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]) -> float:
    """Mean over scatter of the aperture fluxes of stars of one magnitude, with SEP's background subtracted."""
    sep = load_package("sep")
    flat = np.ascontiguousarray(image - sep.Background(np.ascontiguousarray(image), bw=128, bh=128).back())
    # the centre of the first pixel is 0 for SEP and 0.5 for the simulator
    flux, _, _ = sep.sum_circle(flat, x - 0.5, y - 0.5, RADIUS, subpix=0)
    return float(flux.mean() / flux.std(ddof=1))


def depth(band: Band, exptime: float = EXPTIME) -> float:
    """Magnitude at which stars of the wide survey have a signal-to-noise ratio of 5, from two magnitudes near it."""
    exposures = EXPOSURES.get(band.name, 2)
    trial = band.limit_mag + np.array([0.25, -0.25])
    ratio = [signal_to_noise(*star_patch(band, float(m), exposures, exptime)) for m in trial]
    slope, start = np.polyfit(np.log(ratio), trial, 1)
    return float(slope * np.log(5.0) + start)


def depth_findings(depths: dict[str, float]) -> list[Finding]:
    """Measured depths against the limits of `csst_dask.instrument.focal_plane`."""
    found = []
    for name, measured in depths.items():
        exposures = EXPOSURES.get(name, 2)
        text = f"{exposures} x {EXPTIME:.0f} s, aperture of {RADIUS * PIXEL_SCALE:.2f} arcsec"
        found.append(near(f"5 sigma depth in {name}, AB mag", measured, BAND_TABLE[name].limit_mag, TOLERANCE, text))
    return found


def _draw(path: Path, depths: dict[str, float]) -> None:
    figure, axes = new_figure(1, 1, (6.0, 3.2))
    place, limit = np.arange(len(depths)), np.array([BAND_TABLE[name].limit_mag for name in depths])
    axes[0, 0].bar(place, 2 * np.full(place.size, TOLERANCE), 0.6, limit - TOLERANCE, color=QUIET, alpha=0.5)
    axes[0, 0].plot(place, limit, "_", ms=24, color=INK, label="published; band: tolerance")
    axes[0, 0].plot(place, list(depths.values()), "o", color=ACCENT, label="measured on simulated exposures")
    axes[0, 0].set(xticks=place, xticklabels=list(depths), ylabel="5 sigma depth, AB mag")
    axes[0, 0].legend(fontsize=8, frameon=False)
    axes[0, 0].set_title("Depth of the wide survey for point sources", fontsize=9, loc="left")
    save_figure(figure, path)


def check_depth(folder: Path | None = None, bands: tuple[str, ...] = BANDS) -> list[Finding]:
    """Depths of the wide survey; with a folder, also ``depth.png`` in it.

    Raises
    ------
    ConfigError
        If SEP is not installed.
    """
    depths = {name: depth(BAND_TABLE[name]) for name in bands}
    if folder is not None:
        _draw(folder / "depth.png", depths)
    return depth_findings(depths)
