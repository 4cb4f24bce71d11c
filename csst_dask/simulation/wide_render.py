"""Chips of ``physics: wide``: point spread functions that change over the frame, and a frame with faults."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.focal_plane import BAND_TABLE, DETECTORS
from csst_dask.simulation import defects
from csst_dask.simulation.noise import observe
from csst_dask.simulation.render import new_glow, paint_stars
from csst_dask.simulation.shot import Shot

_GALAXY, _SKY, _ROWS, _FLAT, _MASK, _CORES = range(6)
BRIGHT_CORES = 2000.0
"""Only stars with so many electrons or more have their cores flagged."""


def _rng(shot: Shot, purpose: int) -> np.random.Generator:
    assert shot.wide is not None
    return np.random.default_rng([shot.wide.faults.seed, purpose])


def paint_wide_stars(frame: NDArray[np.float32], shot: Shot) -> NDArray[np.float32]:
    """Add stars to a frame, each with one of the corners' PSFs, the nearer the likelier; returns the glow.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons.
    shot : Shot
        Of a wide exposure.
    """
    assert shot.wide is not None
    psfs = shot.wide.psfs
    if len(psfs) == 1:
        return paint_stars(frame, shot.y, shot.x, shot.flux, psfs[0])
    v, u = shot.y / shot.shape[0], shot.x / shot.shape[1]
    chance = np.random.default_rng(shot.random(104)).random((2, len(v)))
    which = 2 * (chance[0] < v) + (chance[1] < u)
    glow = new_glow(shot.shape)
    for corner, psf in enumerate(psfs):
        mine = which == corner
        glow += paint_stars(frame, shot.y[mine], shot.x[mine], shot.flux[mine], psf)
    return glow


def large_galaxy(shot: Shot) -> NDArray[np.float64]:
    """A galaxy much larger than the others, now and then: (8, 0) or (8, 1), as `Shot.galaxies`."""
    assert shot.wide is not None
    mag = shot.wide.faults.galaxy
    if mag > 90:
        return np.empty((8, 0))
    rng = _rng(shot, _GALAXY)
    band = BAND_TABLE[DETECTORS[shot.detector].band]
    flux = 10 ** (-0.4 * (mag - band.zero_point)) * shot.exptime
    radius = 40 * 10 ** (0.15 * (18 - mag)) * rng.uniform(0.6, 1.5)
    return np.array(
        [
            [rng.uniform(0, shot.shape[0])], [rng.uniform(0, shot.shape[1])], [flux], [radius], [0.3 * radius],
            [rng.uniform(0, 0.5)], [rng.uniform(0.3, 1)], [rng.uniform(0, np.pi)],
        ]
    )  # fmt: skip


def finish_wide(image: NDArray[np.float32], flags: NDArray[np.uint16], shot: Shot, glow: NDArray[np.float32]) -> None:
    """From expected electrons to the delivered frame and its flags, in place.

    Parameters
    ----------
    image : (ny, nx) float32 array
        Electrons of everything but the sky, and e-/s on return.
    flags : (ny, nx) uint16 array
    shot : Shot
    glow : float32 array
        As from `paint_wide_stars`.
    """
    assert shot.wide is not None
    laws, faults, exptime = shot.wide.laws, shot.wide.faults, shot.exptime
    if laws.transfer[0]:
        defects.trail_charge(image, *laws.transfer)
    sky = shot.sky * exptime
    uneven = (faults.plane, faults.bowl, faults.cirrus, faults.scattered)
    glow = glow + np.float32(sky) * defects.uneven_sky(shot.shape, *uneven, _rng(shot, _SKY))
    key = np.random.SeedSequence(shot.random(2)).generate_state(2)
    observe(
        image, sky=sky, gradient=(0.0, 0.0), dark=shot.model.dark * exptime, read_noise=shot.model.read_noise,
        exptime=exptime, full_well=shot.model.full_well, key=(int(key[0]), int(key[1])), glow=glow,
    )  # fmt: skip
    if any(laws.resampled):
        defects.resample(image, laws.resampled)
    rows = laws.row_noise / exptime * _rng(shot, _ROWS).standard_normal(shot.shape[0]).astype(np.float32)
    smooth = faults.flat[0] * defects.smooth_field(glow.shape, 8, _rng(shot, _FLAT)) if faults.flat[0] else 0 * glow
    defects.imprint(
        image, gain=faults.gain, offset=[e / exptime for e in faults.offset], rows=rows,
        flat=smooth.astype(np.float32), pixel=faults.flat[1], step=laws.step / exptime, seed=faults.seed,
    )  # fmt: skip
    _spoil_flags(flags, shot)


def _spoil_flags(flags: NDArray[np.uint16], shot: Shot) -> None:
    assert shot.wide is not None
    laws, faults = shot.wide.laws, shot.wide.faults
    if not laws.flagged:
        flags[:] = 0
        return
    if laws.missed:
        defects.miss_flags(flags, laws.missed, faults.seed)
    if laws.cores:
        bright = shot.flux > BRIGHT_CORES
        hit = bright & (_rng(shot, _CORES).random(len(bright)) < laws.cores)
        defects.flag_cores(flags, shot.y[hit], shot.x[hit])
    if faults.masked:
        defects.mask_shapes(flags, faults.masked, _rng(shot, _MASK))
