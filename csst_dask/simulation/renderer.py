"""From a scene to the pixels that a detector delivers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from csst_dask.instrument.bands import BAND_TABLE
from csst_dask.instrument.focal_plane import DETECTORS
from csst_dask.schema import FRAME_SHAPE
from csst_dask.simulation import artefacts
from csst_dask.simulation import detector as ccd
from csst_dask.simulation.exposure import Chip, Exposure, Scene, draw_scene
from csst_dask.simulation.noise import observe
from csst_dask.simulation.psf import PIXEL, PSF, field_psf
from csst_dask.simulation.psf_files import read_psf
from csst_dask.simulation.render import flux_limits, paint_stars
from csst_dask.simulation.sersic import add_galaxies, pixel_shape

RowsReady = Callable[[int, int], None]
"""Makes rows [y0, y1) of a chip's image final; each row once."""


class Renderer:
    """Renders chips into one pair of buffers, which the next chip overwrites.

    Parameters
    ----------
    shape : (int, int)
        Frame shape, pixel.
    """

    def __init__(self, shape: tuple[int, int] = FRAME_SHAPE):
        self.image = np.empty(shape, np.float32)
        self.flags = np.empty(shape, np.uint16)

    def render(self, exposure: Exposure, detector: int, model: ccd.DetectorModel | None = None) -> Chip:
        """Render one detector of an exposure.

        The pixels depend on the exposure and the detector alone.

        Parameters
        ----------
        exposure : Exposure
        detector : int
        model : DetectorModel, optional

        Returns
        -------
        Chip
            Its arrays are valid until the next call.
        """
        chip, ready = self.expose(exposure, detector, model)
        ready(0, self.image.shape[0])
        return chip

    def expose(
        self, exposure: Exposure, detector: int, model: ccd.DetectorModel | None = None
    ) -> tuple[Chip, RowsReady]:
        """Everything but sky and noise, which come with the rows that are asked for.

        Parameters are those of `render`.

        Returns
        -------
        chip : Chip
        ready : callable
            ``ready(y0, y1)`` makes these rows of ``chip.image`` final. A caller that reads rows soon after finds them
            in the processor's cache.
        """
        model = model or ccd.DetectorModel()
        model = replace(model, read_noise=exposure.optics.read_noise)
        spec = DETECTORS[detector]
        band, exptime = BAND_TABLE[spec.band], exposure.exptime
        scene = draw_scene(exposure, detector, self.image.shape)
        psf = make_exposure_psf(exposure, detector)
        sky = band.sky * exposure.optics.sky_factor
        background = (sky + model.dark) * exptime
        self.image[:] = 0
        self.flags[:] = 0
        flux = 10 ** (-0.4 * (scene.stars.mag - band.zero_point)) * exptime
        glow = paint_stars(self.image, scene.star_y, scene.star_x, flux, psf)
        self._paint_galaxies(scene, exposure, detector, psf)
        self._add_artefacts(exposure, detector, scene, flux, psf, model, background)
        key = np.random.SeedSequence([exposure.seed, exposure.index, detector, 2]).generate_state(2)

        def ready(y0: int, y1: int) -> None:
            observe(
                self.image, sky=sky * exptime, gradient=exposure.optics.gradient, dark=model.dark * exptime,
                read_noise=model.read_noise, exptime=exptime, full_well=model.full_well,
                key=(int(key[0]), int(key[1])), glow=glow, rows=(y0, y1),
            )  # fmt: skip

        return Chip(exposure, detector, self.image, self.flags, scene, sky, psf.core), ready

    def _paint_galaxies(self, scene: Scene, exposure: Exposure, detector: int, psf: PSF) -> None:
        galaxies = scene.galaxies
        if not len(galaxies):
            return
        flux = 10 ** (-0.4 * (galaxies.mag - BAND_TABLE[DETECTORS[detector].band].zero_point)) * exposure.exptime
        angle = pixel_shape(galaxies.position_angle, exposure.wcs(detector).wcs.cd)
        add_galaxies(
            self.image, scene.galaxy_y, scene.galaxy_x, flux, galaxies.radius / PIXEL, galaxies.bulge_radius / PIXEL,
            galaxies.bulge_fraction, galaxies.axis_ratio, angle, psf.mixture,
        )  # fmt: skip

    def _add_artefacts(
        self,
        exposure: Exposure,
        detector: int,
        scene: Scene,
        flux: np.ndarray,
        psf: PSF,
        model: ccd.DetectorModel,
        background: float,
    ) -> None:
        """Spikes, ghosts, trails, cosmic rays, bleeding and defects."""
        frame, flags, spec = self.image, self.flags, DETECTORS[detector]
        half = (FRAME_SHAPE[0] / 2, FRAME_SHAPE[1] / 2)
        noise = float(np.sqrt(background + model.read_noise**2))
        axis = (half[0] - spec.yc, half[1] - spec.xc)
        if psf.spikes:
            large = flux > flux_limits(psf)[-1]
            artefacts.add_spikes(frame, scene.star_y[large], scene.star_x[large], flux[large], psf)
        if exposure.ghosts:
            artefacts.add_ghosts(frame, flags, scene.star_y, scene.star_x, flux, axis=axis, noise=noise)
        for trail in exposure.trails:
            artefacts.add_trail(frame, flags, trail, psf, noise, (spec.yc - half[0], spec.xc - half[1]))
        if exposure.cosmic_rays:
            rays = np.random.default_rng([exposure.seed, exposure.index, detector, 1])
            ccd.add_cosmic_rays(frame, flags, model, exposure.exptime, rays)
        full_well = model.full_well - background
        # neighbours add light, so look well below the full well
        bright = flux * psf.peak > 0.1 * full_well
        ccd.bleed(frame, flags, scene.star_y[bright], scene.star_x[bright], full_well)
        if exposure.defects:
            rng = ccd.defect_rng(exposure.seed, detector)
            ccd.add_defects(frame, flags, model, rng, background, exposure.exptime)


def make_exposure_psf(exposure: Exposure, detector: int) -> PSF:
    """PSF of a detector during an exposure: the model's, or a measured one where there is a folder of them."""
    spec = DETECTORS[detector]
    if exposure.psf is not None:
        return read_psf(exposure.psf, spec.band, detector)
    return field_psf(
        spec.band, spec.xc, spec.yc, exposure.optics.jitter, halo=exposure.optics.halo, spikes=exposure.spikes
    )
