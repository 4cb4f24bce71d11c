"""Skies and instruments as varied as they may be: what is drawn for each exposure and each chip of ``physics: wide``.

Everything is drawn from the survey's seed, the exposure's number and the detector. Stars are strewn over a detector:
every exposure has a sky of its own, which no other one shares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from csst_dask.instrument.focal_plane import BAND_TABLE, PIXEL_SCALE
from csst_dask.simulation.detector import Rays
from csst_dask.simulation.physics import Optics, SkyPhysics
from csst_dask.simulation.psf import gaussian_fwhm
from csst_dask.simulation.psf_families import FAMILIES, Shape
from csst_dask.simulation.psf_pupil import ABERRATIONS
from csst_dask.simulation.star_law import StarLaw, draw_star_law

EXPTIME = (30.0, 300.0)
SKY = (0.5, 4.0)
READ_NOISE = (4.0, 7.0)
"""Electrons."""
WIDTH = (0.7, 1.6)
"""Of the PSF's core, against the nominal one."""
HALO = (0.005, 0.04)
GALAXIES = (0.2, 4.0)
"""Number against the mean sky."""
SIZES = (0.6, 1.6)
RAYS = (0.2, 3.0)
"""Cosmic rays against the nominal number."""
ABERRATED = 0.025
"""Largest root mean square of an aberration, wavelengths."""
JITTER = 0.1225
"""Of the nominal PSF, arcsec."""
_LAWS, _CHIP = 101, 102


@dataclass(frozen=True)
class Laws:
    """What holds for all detectors of an exposure."""

    stars: StarLaw
    clumped: float
    """Share of the stars in clumps."""
    clumps: int
    """On a detector."""
    tilt: float
    """Change of the star density across a frame, from 0 to below 2, against its mean."""
    family: int
    """Of the PSF, in `csst_dask.simulation.psf_families.FAMILIES`."""
    width: float
    """Of its core against the nominal one."""
    halo: float
    beta: float
    wide: tuple[float, float]
    ellipticity: tuple[float, float]
    aberrations: tuple[float, ...]
    """Of a pupil, each root mean square in wavelengths."""
    change: tuple[float, float, float]
    """What the width and the two ellipticities change by over half a frame along x and y; all 0 for one PSF."""
    resampled: tuple[float, float]
    """Shift (y, x) of a bilinear resampling, pixel; 0 for none."""
    step: float
    """To which pixels are rounded, electron; 0 for no rounding."""
    transfer: tuple[float, float]
    """Share of the charge that is left behind in a tail, and the tail's length, pixel."""
    row_noise: float
    """Standard deviation of a row's offset, electron."""
    missed: float
    """Share of the cosmic rays and hot pixels without a flag."""
    flagged: bool
    """Whether there are flags at all."""
    cores: float
    """Share of the bright stars whose core is flagged as a cosmic ray."""
    rays: Rays


@dataclass(frozen=True)
class Faults:
    """What holds for one chip."""

    offset: tuple[float, ...]
    """Of the 2 x 8 amplifiers, lower ones first, electron."""
    gain: tuple[float, ...]
    """Against 1."""
    plane: tuple[float, float]
    """Change of the sky over the frame along y and x, against its level."""
    bowl: float
    """How much more sky the corners have than the middle, against its level."""
    cirrus: float
    """Standard deviation of filaments, against the sky's level."""
    scattered: float
    """Peak of a broad patch of light, against the sky's level."""
    flat: tuple[float, float]
    """Standard deviation of the response from place to place, and from pixel to pixel."""
    masked: float
    """Share of the frame in masked shapes."""
    galaxy: float
    """i of a large galaxy on the frame, AB mag; 99 for none."""
    seed: int


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))


def _now_and_then(rng: np.random.Generator, chance: float, value: float) -> float:
    return float(value) if rng.random() < chance else 0.0


def draw_laws(seed: int, index: int, crowded: bool = False) -> Laws:
    """Laws of an exposure.

    Parameters
    ----------
    seed : int
        Of the survey.
    index : int
        Of the exposure.
    crowded : bool
        Whether it is to hold very many stars.

    Returns
    -------
    Laws
    """
    rng = np.random.default_rng([seed, index, _LAWS])
    e, angle, varies = 0.15 * rng.random() ** 1.5, rng.uniform(0, 2 * np.pi), float(rng.random() < 0.5)
    resampled = rng.random() < 0.3
    return Laws(
        stars=draw_star_law(rng, crowded),
        clumped=_now_and_then(rng, 0.5, rng.uniform(0.05, 0.8)),
        clumps=int(rng.integers(1, 12)),
        tilt=_now_and_then(rng, 0.4, rng.uniform(0, 1.8)),
        family=int(rng.integers(len(FAMILIES))),
        width=_log_uniform(rng, WIDTH),
        halo=_log_uniform(rng, HALO),
        beta=float(rng.uniform(2.2, 5.0)),
        wide=(float(rng.uniform(0.05, 0.4)), float(rng.uniform(1.5, 3.0))),
        ellipticity=(float(e * np.cos(angle)), float(e * np.sin(angle))),
        aberrations=tuple((rng.uniform(0, ABERRATED) * rng.standard_normal(ABERRATIONS)).tolist()),
        change=(
            varies * float(rng.uniform(-0.15, 0.15)), varies * float(rng.uniform(-0.05, 0.05)),
            varies * float(rng.uniform(-0.05, 0.05)),
        ),
        resampled=(float(rng.uniform(0.1, 0.5)), float(rng.uniform(0.1, 0.5))) if resampled else (0.0, 0.0),
        step=0.0 if resampled else _now_and_then(rng, 0.4, rng.uniform(0.5, 4.0)),
        transfer=(_now_and_then(rng, 0.4, rng.uniform(0.002, 0.03)), float(rng.uniform(2, 30))),
        row_noise=_now_and_then(rng, 0.5, rng.uniform(0.1, 1.5)),
        missed=_now_and_then(rng, 0.7, rng.uniform(0, 0.1)),
        flagged=bool(rng.random() > 0.15),
        cores=_now_and_then(rng, 0.4, rng.uniform(0, 0.1)),
        rays=_draw_rays(rng),
    )  # fmt: skip


def _draw_rays(rng: np.random.Generator) -> Rays:
    """Short tracks that look like stars, long ones, winding ones, of charge that spreads more or less or not at all."""
    straggling = float(rng.uniform(0.2, 0.8))
    return Rays(
        rate=_log_uniform(rng, RAYS),
        length=(float(rng.uniform(-0.7, 1.6)), float(rng.uniform(0.3, 1.0))),
        straggling=(-0.5 * straggling**2, straggling),
        diffusion=_now_and_then(rng, 0.75, rng.uniform(0.1, 0.6)),
        curled=_now_and_then(rng, 0.5, rng.uniform(0, 0.5)),
    )


def draw_exposure(seed: int, index: int) -> tuple[float, Optics, SkyPhysics]:
    """Exposure time (s), the state of the instrument, and the galaxies of an exposure.

    Parameters are those of `draw_laws`.
    """
    rng = np.random.default_rng([seed, index, _LAWS, 1])
    exptime = round(_log_uniform(rng, EXPTIME), 1)
    optics = Optics(jitter=JITTER, sky_factor=_log_uniform(rng, SKY), read_noise=float(rng.uniform(*READ_NOISE)))
    galaxies, sizes = _log_uniform(rng, GALAXIES), _log_uniform(rng, SIZES)
    return exptime, optics, SkyPhysics(systems=(), galaxies=galaxies, galaxy_size=sizes)


def draw_faults(seed: int, index: int, detector: int) -> Faults:
    """Faults of one chip.

    Parameters
    ----------
    seed, index, detector : int

    Returns
    -------
    Faults
    """
    rng = np.random.default_rng([seed, index, detector, _CHIP])
    steps, gains = rng.uniform(0, 3) * (rng.random() < 0.6), rng.uniform(0, 0.02) * (rng.random() < 0.6)
    return Faults(
        offset=tuple((steps * rng.uniform(-0.5, 0.5, 16)).tolist()),
        gain=tuple((1 + gains * rng.uniform(-1, 1, 16)).tolist()),
        plane=(_now_and_then(rng, 0.7, rng.uniform(-0.4, 0.4)), _now_and_then(rng, 0.7, rng.uniform(-0.4, 0.4))),
        bowl=_now_and_then(rng, 0.4, rng.uniform(-0.4, 0.4)),
        cirrus=_now_and_then(rng, 0.25, _log_uniform(rng, (0.01, 0.15))),
        scattered=_now_and_then(rng, 0.2, _log_uniform(rng, (0.02, 0.6))),
        flat=(_now_and_then(rng, 0.6, rng.uniform(0, 0.02)), _now_and_then(rng, 0.6, rng.uniform(0, 0.006))),
        masked=_now_and_then(rng, 0.6, 0.4 * rng.random() ** 2),
        galaxy=float(rng.uniform(13.0, 18.0)) if rng.random() < 0.08 else 99.0,
        seed=int(rng.integers(1 << 62)),
    )


def psf_shapes(laws: Laws, band: str) -> tuple[Shape, ...]:
    """Profiles of the PSF in a band: one, or where it changes over the frame one for each corner.

    Corners are in the order (0, 0), (0, 1), (1, 0), (1, 1) of (y, x).
    """
    nominal = gaussian_fwhm(BAND_TABLE[band].wavelength, JITTER) / PIXEL_SCALE
    middle = Shape(
        FAMILIES[laws.family], nominal * laws.width, laws.halo, laws.beta, laws.wide, laws.ellipticity, laws.aberrations
    )  # fmt: skip
    if not any(laws.change):
        return (middle,)
    width, e1, e2 = laws.change
    return tuple(
        replace(
            middle,
            fwhm=float(np.clip(middle.fwhm * (1 + width * (x + y) / 2), nominal * WIDTH[0], nominal * WIDTH[1])),
            ellipticity=(laws.ellipticity[0] + e1 * x, laws.ellipticity[1] + e2 * y),
        )
        for y in (-1, 1)
        for x in (-1, 1)
    )  # fmt: skip
