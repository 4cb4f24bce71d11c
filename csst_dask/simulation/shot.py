"""Everything that a renderer needs to know about one chip, as plain numbers.

A shot is drawn where the sky's catalogues and coordinates are at hand, and rendered anywhere: this module, like what
renders from it, imports neither astropy nor HEALPix.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.focal_plane import BAND_TABLE, PIXEL_SCALE
from csst_dask.schema import FRAME_SHAPE
from csst_dask.simulation.artefacts import Trail
from csst_dask.simulation.detector import DetectorModel, Rays
from csst_dask.simulation.psf import PSF, field_psf
from csst_dask.simulation.psf_families import family_psf
from csst_dask.simulation.sersic import pixel_shape
from csst_dask.simulation.wide import Faults, Laws, draw_faults, psf_shapes

if TYPE_CHECKING:
    from csst_dask.simulation.exposure import Exposure, Scene

MAY_BLEED = 0.1
"""Stars whose brightest pixel reaches this share of the full well may saturate, since neighbours add light."""


@dataclass(frozen=True)
class WideShot:
    """What sets a chip of ``physics: wide`` apart."""

    laws: Laws
    faults: Faults
    psfs: tuple[PSF, ...]
    """One, or one for each corner in the order (0, 0), (0, 1), (1, 0), (1, 1) of (y, x)."""


@dataclass(frozen=True)
class Shot:
    """One detector during one exposure."""

    shape: tuple[int, int]
    """Frame, pixel."""
    seed: int
    index: int
    """Of the exposure."""
    detector: int
    centre: tuple[float, float]
    """Middle (y, x) of the detector in the mosaic, pixel."""
    exptime: float
    """s"""
    sky: float
    """e-/s per pixel"""
    gradient: tuple[float, float]
    """Relative change of the sky from the first to the last row and column."""
    model: DetectorModel
    """With the exposure's read noise."""
    psf: PSF
    y: NDArray[np.float64]
    """(n,) stars, pixel from the frame's outer corner."""
    x: NDArray[np.float64]
    flux: NDArray[np.float64]
    """(n,) electrons."""
    galaxies: NDArray[np.float64]
    """(8, m): y, x, flux, radius, bulge radius, bulge fraction, axis ratio and angle, as
    `csst_dask.simulation.sersic.add_galaxies` takes them."""
    trails: tuple[Trail, ...] = ()
    ghosts: bool = False
    cosmic_rays: bool = False
    defects: bool = False
    wide: WideShot | None = None
    """What ``physics: wide`` adds."""
    exposure: Exposure | None = None
    """What the shot was drawn from, and what was drawn; not kept in files."""
    scene: Scene | None = None

    @property
    def background(self) -> float:
        """Sky and dark current, electrons per pixel."""
        return (self.sky + self.model.dark) * self.exptime

    @property
    def noise(self) -> float:
        """Standard deviation of the background, electron."""
        return float(np.sqrt(self.background + self.model.read_noise**2))

    @property
    def room(self) -> float:
        """What a pixel holds above the background, electron."""
        return self.model.full_well - self.background

    @property
    def rays(self) -> Rays:
        """Laws of its cosmic rays."""
        return self.wide.laws.rays if self.wide else Rays()

    @property
    def saturating(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Places (y, x) of stars and galaxies that may saturate, pixel."""
        stars = self.flux * self.psf.peak > MAY_BLEED * self.room
        galaxies = self.galaxies[:2, self.galaxies[2] > self.room]
        return np.concatenate([self.y[stars], galaxies[0]]), np.concatenate([self.x[stars], galaxies[1]])

    @property
    def corner(self) -> tuple[float, float]:
        """Where the frame's first pixel begins in the mosaic, (y, x), pixel."""
        return self.centre[0] - FRAME_SHAPE[0] / 2, self.centre[1] - FRAME_SHAPE[1] / 2

    def random(self, purpose: int) -> list[int]:
        """Seed of one kind of random numbers of this chip."""
        return [self.seed, self.index, self.detector, purpose]


def make_exposure_psf(exposure: Exposure, detector: int) -> PSF:
    """PSF of a detector during an exposure: the model's, or a measured one where there is a folder of them."""
    from csst_dask.instrument.focal_plane import DETECTORS
    from csst_dask.simulation.psf_files import read_psf

    spec, optics = DETECTORS[detector], exposure.optics
    if exposure.psf is not None:
        return read_psf(exposure.psf, spec.band, detector)
    return field_psf(spec.band, spec.xc, spec.yc, optics.jitter, halo=optics.halo, spikes=exposure.spikes)


def make_wide(exposure: Exposure, detector: int) -> WideShot | None:
    """What ``physics: wide`` adds to a chip; None under other physics."""
    from csst_dask.instrument.focal_plane import DETECTORS

    if exposure.wide is None:
        return None
    psfs = tuple(family_psf(shape) for shape in psf_shapes(exposure.wide, DETECTORS[detector].band))
    return WideShot(exposure.wide, draw_faults(exposure.seed, exposure.index, detector), psfs)


def take_shot(
    exposure: Exposure,
    detector: int,
    shape: tuple[int, int] = FRAME_SHAPE,
    model: DetectorModel | None = None,
) -> Shot:
    """Draw what one detector of an exposure sees.

    Parameters
    ----------
    exposure : Exposure
    detector : int
    shape : (int, int)
        Frame, pixel.
    model : DetectorModel, optional

    Returns
    -------
    Shot
    """
    from csst_dask.instrument.focal_plane import DETECTORS
    from csst_dask.simulation.exposure import draw_scene

    spec, optics = DETECTORS[detector], exposure.optics
    band, scene = BAND_TABLE[spec.band], draw_scene(exposure, detector, shape)

    def electrons(mag: NDArray[np.float64]) -> NDArray[np.float64]:
        return 10 ** (-0.4 * (mag - band.zero_point)) * exposure.exptime

    g, wide = scene.galaxies, make_wide(exposure, detector)
    angle = pixel_shape(g.position_angle, exposure.wcs(detector).wcs.cd)
    return Shot(
        shape=(shape[0], shape[1]),
        seed=exposure.seed,
        index=exposure.index,
        detector=detector,
        centre=(spec.yc, spec.xc),
        exptime=exposure.exptime,
        sky=band.sky * optics.sky_factor,
        gradient=optics.gradient,
        model=replace(model or DetectorModel(), read_noise=optics.read_noise),
        psf=wide.psfs[len(wide.psfs) // 3] if wide else make_exposure_psf(exposure, detector),
        y=scene.star_y,
        x=scene.star_x,
        flux=electrons(scene.stars.mag),
        galaxies=np.stack([
            scene.galaxy_y, scene.galaxy_x, electrons(g.mag), g.radius / PIXEL_SCALE, g.bulge_radius / PIXEL_SCALE,
            g.bulge_fraction, g.axis_ratio, angle,
        ]),
        trails=exposure.trails,
        ghosts=exposure.ghosts,
        cosmic_rays=exposure.cosmic_rays,
        defects=exposure.defects,
        wide=wide,
        exposure=exposure,
        scene=scene,
    )  # fmt: skip


_PLAIN = (
    "shape", "seed", "index", "detector", "centre", "exptime", "sky", "gradient", "ghosts", "cosmic_rays", "defects",
)  # fmt: skip
_ARRAYS = ("y", "x", "flux", "galaxies")
_PSF_ARRAYS = ("stamps", "wings", "mixture")
_PSF_PLAIN = ("peak", "core", "spikes")


def save_shots(path: Path | str, shots: Iterable[Shot]) -> None:
    """Write shots to one compressed NumPy archive.

    Parameters
    ----------
    path : path
        ``.npz``
    shots : iterable of Shot
    """
    columns: dict[str, Any] = {}
    for k, shot in enumerate(shots):
        if shot.wide is not None:
            raise ValueError("a shot of physics: wide is not kept in a file; render it from its exposure")
        plain = {name: getattr(shot, name) for name in _PLAIN}
        plain |= {"model": asdict(shot.model), "trails": [asdict(trail) for trail in shot.trails]}
        plain |= {"psf": {name: float(getattr(shot.psf, name)) for name in _PSF_PLAIN}}
        columns[f"{k}/plain"] = np.array(json.dumps(plain, default=float))
        columns |= {f"{k}/{name}": getattr(shot, name) for name in _ARRAYS}
        columns |= {f"{k}/psf/{name}": getattr(shot.psf, name) for name in _PSF_ARRAYS}
    np.savez_compressed(path, **columns)


def load_shots(path: Path | str) -> list[Shot]:
    """Read what `save_shots` wrote; exposures and scenes are not kept.

    Parameters
    ----------
    path : path

    Returns
    -------
    list of Shot
    """
    shots = []
    with np.load(path) as columns:
        for k in range(sum(name.endswith("/plain") for name in columns.files)):
            plain = json.loads(str(columns[f"{k}/plain"]))
            for name in ("shape", "centre", "gradient"):
                plain[name] = tuple(plain[name])
            plain["model"] = DetectorModel(**plain["model"])
            plain["trails"] = tuple(Trail(**trail) for trail in plain["trails"])
            psf = PSF(**{name: columns[f"{k}/psf/{name}"] for name in _PSF_ARRAYS}, **plain.pop("psf"))
            shots.append(Shot(**plain, psf=psf, **{name: columns[f"{k}/{name}"] for name in _ARRAYS}))
    return shots
