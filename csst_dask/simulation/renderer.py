"""From a scene to the pixels that a detector delivers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np

from csst_dask.schema import FRAME_SHAPE
from csst_dask.simulation import artefacts
from csst_dask.simulation import detector as ccd
from csst_dask.simulation.exposure import Chip, Exposure, Scene
from csst_dask.simulation.noise import observe
from csst_dask.simulation.render import flux_limits, paint_stars
from csst_dask.simulation.sersic import add_galaxies
from csst_dask.simulation.shot import Shot, take_shot
from csst_dask.simulation.wide_render import finish_wide, large_galaxy, paint_wide_stars

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
        shot = take_shot(exposure, detector, self.image.shape, model)
        self.image[:] = 0
        self.flags[:] = 0
        if shot.wide is not None:
            shot = replace(shot, galaxies=np.hstack([shot.galaxies, large_galaxy(shot)]))
            glow = paint_wide_stars(self.image, shot)
        else:
            glow = paint_stars(self.image, shot.y, shot.x, shot.flux, shot.psf)
        if shot.galaxies.size:
            y, x, flux, radius, bulge_radius, bulge_fraction, axis_ratio, angle = shot.galaxies
            add_galaxies(
                self.image, y, x, flux, radius, bulge_radius, bulge_fraction, axis_ratio, angle, shot.psf.mixture
            )
        self._add_artefacts(shot)
        scene = cast(Scene, shot.scene)
        chip = Chip(exposure, detector, self.image, self.flags, scene, shot.sky, shot.psf.core)
        if shot.wide is not None:  # rows depend on each other
            finish_wide(self.image, self.flags, shot, glow)
            return chip, lambda y0, y1: None
        key = np.random.SeedSequence(shot.random(2)).generate_state(2)

        def ready(y0: int, y1: int) -> None:
            observe(
                self.image, sky=shot.sky * shot.exptime, gradient=shot.gradient, dark=shot.model.dark * shot.exptime,
                read_noise=shot.model.read_noise, exptime=shot.exptime, full_well=shot.model.full_well,
                key=(int(key[0]), int(key[1])), glow=glow, rows=(y0, y1),
            )  # fmt: skip

        return chip, ready

    def _add_artefacts(self, shot: Shot) -> None:
        """Spikes, ghosts, trails, cosmic rays, bleeding and defects."""
        frame, flags, psf = self.image, self.flags, shot.psf
        if psf.spikes:
            large = shot.flux > flux_limits(psf)[-1]
            artefacts.add_spikes(frame, shot.y[large], shot.x[large], shot.flux[large], psf)
        if shot.ghosts:
            axis = (-shot.corner[0], -shot.corner[1])
            artefacts.add_ghosts(frame, flags, shot.y, shot.x, shot.flux, axis=axis, noise=shot.noise)
        for trail in shot.trails:
            artefacts.add_trail(frame, flags, trail, psf, shot.noise, shot.corner)
        if shot.cosmic_rays:
            rng = np.random.default_rng(shot.random(1))
            ccd.add_cosmic_rays(frame, flags, shot.model, shot.exptime, rng, shot.rays)
        ccd.bleed(frame, flags, *shot.saturating, shot.room)
        if shot.defects:
            rng = ccd.defect_rng(shot.seed, shot.detector)
            ccd.add_defects(frame, flags, shot.model, rng, shot.background, shot.exptime)
