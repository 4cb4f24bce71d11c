"""Where to point to find a given number of stars: the sky is searched for it, and scaled where it comes close."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from healpix_geo import nested
from numpy.typing import NDArray

from csst_dask.errors import ConfigError
from csst_dask.instrument.focal_plane import DETECTOR_AREA, detector_wcs, frame_center, unit_vectors
from csst_dask.schema import CLASS_EDGES, STAR_LIMIT, density_class
from csst_dask.simulation.milky_way import galactic_rotation
from csst_dask.simulation.physics import SkyPhysics
from csst_dask.simulation.population import POPULATIONS, luminosity_table
from csst_dask.simulation.stars import cloudiness, star_counts
from csst_dask.simulation.systems import System

MAP_ORDER = 4
"""HEALPix order of the map of expected counts."""
SCALING = 3.0
"""The map's count is within this factor of a target, and that of the place chosen within twice as much."""
TRIES = 100
MOST = 10**5.4
"""Most stars sought on one detector."""
CYCLE = (0, 1, 2, 3, 4, 5) * 3 + (5,)
"""Classes of successive exposures; some chips of those meant for class 5 fall below it, and none rise into it."""
COMPANIONS = 0.3
"""Share of the fields with 1000 stars and more that owe them to a galaxy beyond the Milky Way's disc."""
CLUSTERED = 0.15
"""Share of the fields with a star cluster on one of the detectors."""

_NAMES = [p.name for p in POPULATIONS]


@dataclass(frozen=True)
class Target:
    """What an exposure should find."""

    density_class: int
    count: float
    """Stars on a detector."""
    patches: bool = False
    """Stars in patches only, as where the catalogue's footprint ends."""
    varied: bool = True
    """Companion galaxies and clusters may supply some of them."""

    @classmethod
    def of(cls, count: float) -> Target:
        """A smooth field of a number of stars."""
        return cls(int(density_class(np.array([count]))[0]), count, varied=False)

    @classmethod
    def draw(cls, index: int, rng: np.random.Generator) -> Target:
        """Classes in turn, counts log-uniform within a class."""
        k = CYCLE[index % len(CYCLE)]
        if k == 0:
            return cls(0, 0.0)
        low = float(CLASS_EDGES[k - 1])
        high = MOST if k == 5 else 10 * low if k > 1 else 100.0
        patches = bool(k == 1 and rng.random() < 0.5)
        count = float(10 ** rng.uniform(np.log10(5.0 if patches else low), np.log10(high)))
        return cls(k, count, patches)


def _galactic(ra: NDArray, dec: NDArray) -> tuple[NDArray, NDArray]:
    x, y, z = galactic_rotation() @ unit_vectors(ra, dec).T
    return np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arcsin(z))


def expected_stars(ra: float, dec: float, seed: int, sky: SkyPhysics) -> float:
    """Stars of the Milky Way that a detector in the middle of a field should find, its clouds included."""
    longitude, latitude = _galactic(np.array([ra]), np.array([dec]))
    clouds = cloudiness(ra, dec, seed, sky)
    limit = np.array([STAR_LIMIT])
    per_degree = star_counts(float(longitude[0]), float(latitude[0]), "g", limit, replace(sky, dust=sky.dust * clouds))
    return float(per_degree[0]) * DETECTOR_AREA


@lru_cache(maxsize=1)
def count_map() -> NDArray[np.float64]:
    """Expected stars on a detector in every cell of order `MAP_ORDER`, nominal physics: (n,) float64."""
    cells = np.arange(12 * 4**MAP_ORDER, dtype=np.uint64)
    ra, dec = nested.healpix_to_lonlat(cells, np.uint8(MAP_ORDER), num_threads=1)
    longitude, latitude = _galactic(ra, dec)
    limit = np.array([STAR_LIMIT])
    where = zip(longitude, latitude, strict=True)
    return np.array([star_counts(float(l), float(b), "g", limit)[0] for l, b in where]) * DETECTOR_AREA


def _place(usable: NDArray[np.bool_], rng: np.random.Generator) -> tuple[float, float]:
    """A random place in one of the usable cells of the map, deg ICRS."""
    cell = int(rng.choice(np.flatnonzero(usable)))
    inside = (cell << 50) | int(rng.integers(0, 1 << 50))
    lon, lat = nested.healpix_to_lonlat(np.array([inside], np.uint64), np.uint8(29), num_threads=1)
    return float(lon[0]), float(lat[0])


def seek(
    target: Target,
    sky: SkyPhysics,
    seed: int,
    theta: float,
    detectors: tuple[int, ...],
    rng: np.random.Generator,
) -> tuple[float, float, SkyPhysics]:
    """A place whose stars are as many as wanted, or can be scaled to.

    Parameters
    ----------
    target : Target
    sky : SkyPhysics
    seed : int
    theta : float
        Image rotation, deg.
    detectors : tuple of int
        A cluster falls on one of them.
    rng : numpy.random.Generator

    Returns
    -------
    ra, dec : float
        Boresight, deg ICRS.
    sky : SkyPhysics
        With its density scaled, and with a companion galaxy or a cluster.
    """
    kind, sparse = rng.random(2), target.density_class < 2
    companion = target.varied and target.density_class >= 3 and kind[0] < COMPANIONS
    counts = count_map()
    if sparse:
        usable = counts < 3000
    elif companion:
        usable = counts < target.count / 3
    else:
        usable = (counts > target.count / SCALING) & (counts < target.count * SCALING)
    if not usable.any():
        raise ConfigError(
            f"simulation.star_counts: {target.count:g} stars on a detector; the sky of this simulator has at most "
            f"{counts.max() * SCALING:.2g}: ask for fewer, or name a region"
        )
    sky = replace(sky, systems=())
    for _ in range(TRIES):
        ra, dec = _place(usable, rng)
        field = expected_stars(ra, dec, seed, sky)
        # the map is coarse, and the clouds are not in it
        fits = field < 0.7 * target.count if companion else 0.5 / SCALING < target.count / field < 2 * SCALING
        if sparse or fits:
            break
    if target.count == 0:
        return ra, dec, replace(sky, footprint=0.0)
    if companion and fits:
        return ra, dec, replace(sky, systems=(_companion(ra, dec, target.count - field, sky, rng),))
    wanted = target.count
    if target.patches:
        sky = replace(sky, footprint=0.5, footprint_order=9)
        wanted /= sky.footprint
    sky = replace(sky, density=sky.density * wanted / field)
    if target.varied and target.density_class >= 2 and kind[1] < CLUSTERED:
        place = frame_center(detector_wcs(int(rng.choice(detectors)), ra, dec, theta))
        sky = replace(sky, systems=(*sky.systems, _cluster(*place, wanted, sky, rng)))
    return ra, dec, sky


def _system(
    name: str,
    place: tuple[float, float],
    stars: float,
    peak_density: float,
    modulus: float,
    radius: float,
    sky: SkyPhysics,
    rng: np.random.Generator,
) -> System:
    """A system whose visible stars number ``stars`` per square degree at its centre's peak density, of all its stars
    the share ``peak_density`` per square degree."""
    population = _NAMES.index("cluster" if name.startswith("cluster") else "dwarf galaxy")
    table = luminosity_table(population, sky.tilt)
    limit = STAR_LIMIT - modulus - 1.2 * 0.1
    visible = float(np.interp(limit, table.edges, table.cumulative))
    total = stars / (peak_density * visible * sky.density)
    return System(
        name, *place, modulus, float(table.light - 2.5 * np.log10(total)), radius, population,
        axis_ratio=float(rng.uniform(0.6, 1.0)), position_angle=float(rng.uniform(0, 180)),
    )  # fmt: skip


def _companion(ra: float, dec: float, stars: float, sky: SkyPhysics, rng: np.random.Generator) -> System:
    """A galaxy about the field, with the wanted stars on a detector in its middle."""
    radius, modulus = float(np.exp(rng.uniform(np.log(25.0), np.log(150.0)))), float(rng.uniform(17.5, 21.5))
    peak = 1 / (np.pi * (radius / 60) ** 2 * 0.8)
    return _system("companion", (ra, dec), stars / DETECTOR_AREA, peak, modulus, radius, sky, rng)


def _cluster(ra: float, dec: float, field: float, sky: SkyPhysics, rng: np.random.Generator) -> System:
    """A cluster off the middle of a detector, with 0.1 to 0.6 times the field's stars in it."""
    radius, modulus = float(np.exp(rng.uniform(np.log(0.8), np.log(4.0)))), float(rng.uniform(12.5, 17.0))
    place = (ra + float(rng.uniform(-0.06, 0.06)) / np.cos(np.deg2rad(dec)), dec + float(rng.uniform(-0.06, 0.06)))
    stars = field * float(10 ** rng.uniform(-1.0, -0.2))
    return _system("cluster", place, stars, 1.0, modulus, radius, sky, rng)
