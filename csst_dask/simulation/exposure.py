"""One exposure: where it points, under which conditions, and what it sees of the sky."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
from astropy.wcs import WCS
from healpix_geo import nested
from numpy.typing import NDArray

from csst_dask.instrument.distortion import sky_to_pixel
from csst_dask.instrument.focal_plane import DETECTORS, PIXEL_SCALE, detector_wcs
from csst_dask.schema import BRIGHT_LIMIT, FRAME_SHAPE, STAR_LIMIT, count_brighter, count_tiles
from csst_dask.simulation.artefacts import Trail
from csst_dask.simulation.catalogue import CELL_ORDER, Galaxies, Stars
from csst_dask.simulation.depth import drawn_depth
from csst_dask.simulation.galaxies import draw_galaxies
from csst_dask.simulation.physics import Optics, SkyPhysics
from csst_dask.simulation.population import EXTINCTION
from csst_dask.simulation.stars import draw_stars, extinction_beyond
from csst_dask.simulation.wide import Laws
from csst_dask.simulation.wide_scene import draw_wide_stars

MJD_EPOCH = datetime(1858, 11, 17)
MARGIN = 48
"""Objects this far outside of the frame still shed light on it, pixel."""
GALAXY_LIMIT = 26.0
"""Faintest galaxy in i, AB mag."""


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
    seed: int
    """Of the survey and its sky."""
    sky: SkyPhysics = dataclasses.field(default_factory=SkyPhysics)
    optics: Optics = dataclasses.field(default_factory=Optics)
    trails: tuple[Trail, ...] = ()
    ghosts: bool = False
    cosmic_rays: bool = False
    defects: bool = True
    spikes: float = 0.0
    """Share of the light in diffraction spikes."""
    distortion: float = 0.0
    """Radial cubic term, deg^-2."""
    psf: Path | None = None
    """Folder of measured point spread functions."""
    wide: Laws | None = None
    """Under ``physics: wide``."""

    @property
    def mjd(self) -> float:
        """Start, MJD."""
        return (self.start - MJD_EPOCH) / timedelta(days=1)

    @property
    def times(self) -> tuple[str, str]:
        """Start and end as they stand in file names."""
        end = self.start + timedelta(seconds=self.exptime)
        return self.start.strftime("%Y%m%d%H%M%S"), end.strftime("%Y%m%d%H%M%S")

    def wcs(self, detector: int) -> WCS:
        """World coordinates of a detector's frame."""
        return detector_wcs(detector, self.ra, self.dec, self.theta, self.distortion)


@dataclass(frozen=True)
class Scene:
    """What falls on one detector and its margin, before the instrument."""

    stars: Stars
    star_y: NDArray[np.float64]
    """Pixel from the frame's outer corner; may lie off the frame by up to `MARGIN`."""
    star_x: NDArray[np.float64]
    galaxies: Galaxies
    galaxy_y: NDArray[np.float64]
    galaxy_x: NDArray[np.float64]
    depth: float = float("inf")
    """All stars brighter than this in the band are there, AB mag; of fainter ones those that other limits ask for."""


@dataclass
class Chip:
    """A rendered detector image with its truth."""

    exposure: Exposure
    detector: int
    image: NDArray[np.float32]
    """(ny, nx), e-/s."""
    flags: NDArray[np.uint16]
    """(ny, nx), CSST flag bits."""
    scene: Scene
    sky: float
    """e-/s per pixel."""
    fwhm: float
    """Of the PSF's core, pixel."""

    @property
    def band(self) -> str:
        """One of `csst_dask.schema.BANDS`."""
        return DETECTORS[self.detector].band

    @cached_property
    def listed(self) -> NDArray[np.intp]:
        """Which stars of the scene the truth catalogue lists: all that were drawn on the frame."""
        return np.flatnonzero(_on_frame(self.scene.star_y, self.scene.star_x, self.image.shape))

    @cached_property
    def stars(self) -> Stars:
        """The stars that the truth catalogue lists; ``star_y`` and ``star_x`` are theirs."""
        return self.scene.stars.pick(self.listed)

    @property
    def star_y(self) -> NDArray[np.float64]:
        """Pixel from the frame's outer corner."""
        return self.scene.star_y[self.listed]

    @property
    def star_x(self) -> NDArray[np.float64]:
        """Pixel from the frame's outer corner."""
        return self.scene.star_x[self.listed]

    @cached_property
    def _galaxies_on(self) -> NDArray[np.bool_]:
        return _on_frame(self.scene.galaxy_y, self.scene.galaxy_x, self.image.shape)

    @property
    def galaxies(self) -> Galaxies:
        """The galaxies on the frame; ``galaxy_y`` and ``galaxy_x`` are theirs."""
        return self.scene.galaxies.pick(self._galaxies_on)

    @property
    def galaxy_y(self) -> NDArray[np.float64]:
        """Pixel from the frame's outer corner."""
        return self.scene.galaxy_y[self._galaxies_on]

    @property
    def galaxy_x(self) -> NDArray[np.float64]:
        """Pixel from the frame's outer corner."""
        return self.scene.galaxy_x[self._galaxies_on]

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        """Which of the listed stars ``n_star`` counts: those brighter than the star limit in g."""
        return self.stars.g < STAR_LIMIT

    @property
    def n_star(self) -> int:
        """Stars on the frame, brighter than the star limit in g."""
        return int(self.counted.sum())

    @property
    def n_bright(self) -> int:
        """Stars on the frame, brighter than the bright limit in the chip's band, whatever their g."""
        return int((self.stars.mag < BRIGHT_LIMIT).sum())

    @property
    def n_brighter(self) -> tuple[int, ...]:
        """Stars on the frame, brighter than each of `csst_dask.schema.MAGNITUDES`; -1 beyond the scene's depth."""
        return count_brighter(self.stars.mag, self.scene.depth)

    @property
    def n_star_tile(self) -> tuple[tuple[int, ...], ...]:
        """The stars of ``n_star`` in each tile."""
        return count_tiles(self.star_y[self.counted], self.star_x[self.counted], self.image.shape)

    @property
    def n_bright_tile(self) -> tuple[tuple[int, ...], ...]:
        """The stars of ``n_bright`` in each tile."""
        bright = self.stars.mag < BRIGHT_LIMIT
        return count_tiles(self.star_y[bright], self.star_x[bright], self.image.shape)


def _on_frame(y: NDArray, x: NDArray, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])


def sky_cells(exposure: Exposure, detector: int, shape: tuple[int, int] = FRAME_SHAPE) -> NDArray[np.uint64]:
    """Sky cells that a detector sees, its margin included: (n,) HEALPix NESTED, order `CELL_ORDER`, sorted."""
    ny, nx = shape
    middle = exposure.wcs(detector).all_pix2world((nx + 1) / 2, (ny + 1) / 2, 1)
    radius = 1.02 * (np.hypot(ny, nx) / 2 + 2 * MARGIN) * PIXEL_SCALE / 3600
    cells = np.sort(nested.cone_coverage(tuple(map(float, middle)), radius, CELL_ORDER)[0].astype(np.uint64))
    corner_ra, corner_dec = nested.vertices(cells, np.uint8(CELL_ORDER), num_threads=1)
    y, x = _project(corner_ra, corner_dec, exposure, detector)
    near = (y.max(1) >= -MARGIN) & (y.min(1) < ny + MARGIN) & (x.max(1) >= -MARGIN) & (x.min(1) < nx + MARGIN)
    return cells[near]


def draw_scene(exposure: Exposure, detector: int, shape: tuple[int, int] = FRAME_SHAPE) -> Scene:
    """Everything on the sky that a detector sees.

    Parameters
    ----------
    exposure : Exposure
    detector : int
    shape : (int, int)
        Frame (ny, nx), pixel; a frame smaller than the detector is its lower corner.

    Returns
    -------
    Scene
        Magnitudes in the detector's band, dust included.
    """
    band, cells = DETECTORS[detector].band, sky_cells(exposure, detector, shape)
    if exposure.wide is not None:
        stars, star_y, star_x, depth = draw_wide_stars(exposure, exposure.wide, detector, shape, MARGIN)
    else:
        depth = drawn_depth(exposure.ra, exposure.dec, exposure.seed, band, exposure.sky)
        found = draw_stars(cells, exposure.seed, band, exposure.sky, depth)
        stars, star_y, star_x = _seen(found, exposure, detector, shape)
    density = exposure.sky.galaxies
    drawn = draw_galaxies(
        cells if density > 0 else cells[:0], exposure.seed, band,
        limit=GALAXY_LIMIT, density=max(density, 1e-3), size=exposure.sky.galaxy_size,
    )  # fmt: skip
    galaxies, galaxy_y, galaxy_x = _seen(drawn, exposure, detector, shape)
    if len(galaxies):
        dust = extinction_beyond(galaxies.ra, galaxies.dec, exposure.seed, exposure.sky)
        galaxies.mag[:] += EXTINCTION[band] * dust
    return Scene(stars, star_y, star_x, galaxies, galaxy_y, galaxy_x, depth)


def _project(ra: NDArray, dec: NDArray, exposure: Exposure, detector: int) -> tuple[NDArray, NDArray]:
    return sky_to_pixel(detector, exposure.ra, exposure.dec, exposure.theta, ra, dec, exposure.distortion)


def _seen(objects, exposure, detector, shape):
    """Objects that fall on the frame or its margin, with their places."""
    y, x = _project(objects.ra, objects.dec, exposure, detector)
    near = (y >= -MARGIN) & (y < shape[0] + MARGIN) & (x >= -MARGIN) & (x < shape[1] + MARGIN)
    return objects.pick(near), y[near], x[near]
