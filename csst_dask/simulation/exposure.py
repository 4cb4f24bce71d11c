"""From a seed to exposures, and from an exposure to the pixels and the catalogue of one chip."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from csst_dask.config import SimulationConfig
from csst_dask.errors import ConfigError
from csst_dask.instrument.bands import BAND_TABLE
from csst_dask.instrument.focal_plane import DETECTORS, IMAGING_DETECTORS
from csst_dask.schema import BRIGHT_LIMIT, FRAME_SHAPE
from csst_dask.simulation import detector as ccd
from csst_dask.simulation.galaxy import (
    MIXED,
    StarLaw,
    band_magnitudes,
    draw_count,
    draw_law,
    draw_magnitudes,
    region,
)
from csst_dask.simulation.noise import observe
from csst_dask.simulation.psf import PIXEL, gaussian_fwhm, make_psf
from csst_dask.simulation.render import add_stars

FIRST_LIGHT = datetime(2027, 8, 10, 8, 0)
CADENCE = timedelta(seconds=285)
MJD_EPOCH = datetime(1858, 11, 17)
MARGIN = 30
"""Stars this far outside the frame still shed light on it, pixel."""
DEMO = "demo"
"""Not a place either: a strip of touching fields from an empty one to the most crowded."""
DEMO_START, DEMO_STEP = (266.0, -28.3), 0.185
DEMO_COUNTS = (0.0, 40.0, 450.0, 4_000.0, 30_000.0, 150_000.0)


@dataclass(frozen=True)
class Exposure:
    """One pointing of the survey and everything that is drawn once for it."""

    index: int
    obs_id: str
    start: datetime
    exptime: float
    """s"""
    ra: float
    """Boresight, deg ICRS."""
    dec: float
    theta: float
    """Image rotation, deg."""
    field: str
    """Label of the sky field."""
    detectors: tuple[int, ...]
    law: StarLaw
    jitter: float
    """FWHM of everything in the PSF but diffraction, arcsec."""
    sky_factor: float
    """Sky background relative to the band table."""
    gradient: tuple[float, float]
    """Relative change of the sky along y and x."""
    seed: int
    cosmic_rays: bool = False
    defects: bool = True

    @property
    def mjd(self) -> float:
        """Start, MJD."""
        return (self.start - MJD_EPOCH) / timedelta(days=1)

    @property
    def times(self) -> tuple[str, str]:
        """Start and end as they stand in file names."""
        end = self.start + timedelta(seconds=self.exptime)
        return self.start.strftime("%Y%m%d%H%M%S"), end.strftime("%Y%m%d%H%M%S")


@dataclass
class Chip:
    """A rendered detector image with its truth."""

    exposure: Exposure
    detector: int
    band: str
    image: NDArray[np.float32]
    """(9232, 9216), e-/s."""
    flags: NDArray[np.uint16]
    """(9232, 9216), CSST flag bits."""
    y: NDArray[np.float64]
    """Star positions from the frame's outer corner, pixel; all are on the frame."""
    x: NDArray[np.float64]
    mag: NDArray[np.float64]
    """AB mag in the chip's band."""
    sky: float
    """e-/s per pixel."""
    fwhm: float
    """Of the PSF's core, pixel."""

    @property
    def n_star(self) -> int:
        """Catalogue stars on the frame."""
        return len(self.mag)

    @property
    def n_bright(self) -> int:
        """Those brighter than the bright limit."""
        return int((self.mag < BRIGHT_LIMIT).sum())


def plan_survey(config: SimulationConfig) -> list[Exposure]:
    """Draw the exposures of a survey.

    Parameters
    ----------
    config : SimulationConfig

    Returns
    -------
    list of Exposure
        One a pointing. An exposure depends on the seed and its own index alone, so a longer survey begins with the
        shorter one.

    Raises
    ------
    ConfigError
        If the region or a detector does not exist, or star counts are given for another number of exposures.
    """
    detectors = tuple(dict.fromkeys(config.detectors or IMAGING_DETECTORS))
    wrong = [d for d in detectors if d not in DETECTORS or not DETECTORS[d].imaging]
    if wrong:
        raise ConfigError(
            f"simulation.detectors: {wrong} are not imaging detectors; choose from {list(IMAGING_DETECTORS)}"
        )
    if config.region not in (MIXED, DEMO):
        region(config.region)
    if config.star_counts is not None and len(config.star_counts) != config.exposures:
        raise ConfigError(
            f"simulation.star_counts: {len(config.star_counts)} counts for {config.exposures} exposures; give one each"
        )
    return [_plan_exposure(config, index, detectors) for index in range(config.exposures)]


def _plan_exposure(config: SimulationConfig, index: int, detectors: tuple[int, ...]) -> Exposure:
    rng = np.random.default_rng([config.seed, index])
    if config.star_counts is not None:
        count = float(config.star_counts[index])
    elif config.region == DEMO:
        count = DEMO_COUNTS[index % len(DEMO_COUNTS)]
    else:
        count = draw_count(config.region, index, rng)
    ra, dec, theta = _pointing(config.region, index, rng)
    few = config.detectors_per_exposure
    if few is not None and few < len(detectors):
        detectors = tuple(sorted(rng.choice(detectors, few, replace=False).tolist()))
    return Exposure(
        index=index,
        obs_id=f"10{config.seed % 10**6:06d}{index:06d}",
        start=FIRST_LIGHT + index * CADENCE,
        exptime=config.exptime,
        ra=ra,
        dec=dec,
        theta=theta,
        field=f"sim{config.seed}-{index:05d}",
        detectors=tuple(detectors),
        law=draw_law(count, rng),
        jitter=float(np.round(rng.uniform(0.115, 0.13), 4)),
        sky_factor=float(10 ** (0.08 * rng.standard_normal())),
        gradient=(float(rng.normal(0, 0.02)), float(rng.normal(0, 0.02))),
        seed=config.seed,
        cosmic_rays=config.cosmic_rays,
        defects=config.defects,
    )


def _pointing(name: str, index: int, rng: np.random.Generator) -> tuple[float, float, float]:
    if name == DEMO:
        return DEMO_START[0] - index * DEMO_STEP / np.cos(np.deg2rad(DEMO_START[1])), DEMO_START[1], 180.0
    if name == MIXED:
        ra, dec = rng.uniform(0, 360), np.rad2deg(np.arcsin(rng.uniform(-1, 1)))
        return float(ra), float(dec), float(rng.uniform(-180, 180))
    box = region(name)
    return float(rng.uniform(*box.ra)), float(rng.uniform(*box.dec)), -113.4333


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
        model = model or ccd.DetectorModel()
        band = BAND_TABLE[DETECTORS[detector].band]
        stream = np.random.SeedSequence([exposure.seed, exposure.index, detector])
        stars, faults, key = (np.random.default_rng(child) for child in stream.spawn(3))
        frame, flags = self.image, self.flags
        frame[:] = 0
        flags[:] = 0
        y, x, mag = _draw_stars(exposure.law, band.name, frame.shape, stars)
        flux = 10 ** (-0.4 * (mag - band.zero_point)) * exposure.exptime
        psf = make_psf(band.wavelength, exposure.jitter)
        add_stars(frame, y, x, flux, psf)
        sky = band.sky * exposure.sky_factor
        background = (sky + model.dark) * exposure.exptime
        if exposure.cosmic_rays:
            ccd.add_cosmic_rays(frame, flags, model, exposure.exptime, faults)
        full_well = model.full_well - background
        # neighbours add light, so look well below the full well
        bright = flux * psf.peak > 0.1 * full_well
        ccd.bleed(frame, flags, y[bright], x[bright], full_well)
        if exposure.defects:
            ccd.add_defects(frame, flags, model, faults, background)
        words = key.integers(0, 2**32, 2, dtype=np.uint64)
        observe(
            frame,
            sky=sky * exposure.exptime,
            gradient=exposure.gradient,
            dark=model.dark * exposure.exptime,
            read_noise=model.read_noise,
            exptime=exposure.exptime,
            full_well=model.full_well,
            key=(int(words[0]), int(words[1])),
        )
        on = (y >= 0) & (y < frame.shape[0]) & (x >= 0) & (x < frame.shape[1])
        fwhm = gaussian_fwhm(band.wavelength, exposure.jitter) / PIXEL
        return Chip(exposure, detector, band.name, frame, flags, y[on], x[on], mag[on], sky, fwhm)


def _draw_stars(
    law: StarLaw, band: str, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Positions (pixel) and magnitudes of the stars on the frame and its margin."""
    ny, nx = shape
    grown = (ny + 2 * MARGIN) * (nx + 2 * MARGIN) / (FRAME_SHAPE[0] * FRAME_SHAPE[1])
    n = int(rng.poisson(law.n_star * grown))
    y, x = rng.uniform(-MARGIN, ny + MARGIN, n), rng.uniform(-MARGIN, nx + MARGIN, n)
    g = draw_magnitudes(law, n, rng)
    return y, x, band_magnitudes(g, law, band, rng)
