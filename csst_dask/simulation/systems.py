"""Stellar systems of their own: dwarf galaxies, the Magellanic Clouds, globular clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csst_dask.simulation.population import POPULATIONS

_DWARF = [p.name for p in POPULATIONS].index("dwarf galaxy")
_CLUSTER = [p.name for p in POPULATIONS].index("cluster")
_YOUNG = [p.name for p in POPULATIONS].index("thin disc")


@dataclass(frozen=True)
class System:
    """A system of stars at one distance."""

    name: str
    ra: float
    """Centre, deg ICRS."""
    dec: float
    modulus: float
    """True distance modulus, mag."""
    absolute: float
    """Total absolute V magnitude."""
    radius: float
    """Half-light radius along the major axis, arcmin."""
    population: int
    """Number in `csst_dask.simulation.population.POPULATIONS`."""
    profile: str = "plummer"
    """``plummer`` or ``exponential``, as projected on the sky."""
    axis_ratio: float = 1.0
    position_angle: float = 0.0
    """deg from north through east"""
    bright_limit: float = 99.0
    """V; at ``depth: paper`` the catalogue holds no fainter members."""
    depth: float = 0.0
    """Standard deviation of the distance modulus along the line of sight, mag."""


DWARFS = (
    System("Fornax", 39.997, -34.449, 20.84, -13.4, 16.6, _DWARF, "plummer", 0.70, 41.0, 20.7),
    System("Sculptor", 15.039, -33.709, 19.67, -11.1, 11.3, _DWARF, "plummer", 0.68, 99.0, 19.6),
    System("LMC", 80.89, -69.76, 18.49, -18.1, 150.0, _YOUNG, "exponential", 0.85, 0.0, depth=0.05),
    System("SMC", 13.19, -72.83, 18.98, -16.8, 75.0, _YOUNG, "exponential", 0.65, 45.0, depth=0.12),
)
"""McConnachie (2012, AJ 144, 4); the limits are ours, so that the fields hold the star counts of Lai et al. (2026)."""

CLUSTERS = tuple(
    System(name, ra, dec, modulus, absolute, radius, _CLUSTER)
    for name, ra, dec, modulus, absolute, radius in (
        ("NGC 104", 6.024, -72.081, 13.25, -9.42, 3.17),
        ("NGC 362", 15.809, -70.849, 14.68, -8.43, 0.82),
        ("NGC 2808", 138.013, -64.864, 14.91, -9.39, 0.80),
        ("NGC 5139", 201.697, -47.480, 13.57, -10.26, 5.00),
        ("NGC 5272", 205.548, 28.377, 15.04, -8.88, 2.31),
        ("NGC 5904", 229.638, 2.081, 14.37, -8.81, 1.77),
        ("NGC 6121", 245.897, -26.526, 11.73, -7.19, 4.33),
        ("NGC 6205", 250.422, 36.460, 14.27, -8.55, 1.69),
        ("NGC 6254", 254.288, -4.100, 13.21, -7.48, 1.95),
        ("NGC 6397", 265.175, -53.674, 11.81, -6.64, 2.90),
        ("NGC 6656", 279.100, -23.905, 12.52, -8.50, 3.36),
        ("NGC 6752", 287.717, -59.985, 13.01, -7.73, 1.91),
        ("NGC 6809", 294.999, -30.965, 13.65, -7.57, 2.83),
        ("NGC 7078", 322.493, 12.167, 15.08, -9.19, 1.00),
    )
)
"""Harris (1996, AJ 112, 1487; 2010 edition)."""


def surface_density(system: System, radius: NDArray) -> NDArray[np.float64]:
    """Share of a system's stars per square degree.

    Parameters
    ----------
    system : System
    radius : array
        Elliptical radius (length of the major axis of the ellipse through the place), deg.

    Returns
    -------
    float64 array
    """
    half = system.radius / 60
    if system.profile == "plummer":
        return 1.0 / (np.pi * half**2 * system.axis_ratio) / (1 + (radius / half) ** 2) ** 2
    scale = half / 1.678
    return np.exp(-radius / scale) / (2 * np.pi * scale**2 * system.axis_ratio)


def elliptical_radius(system: System, ra: NDArray, dec: NDArray) -> NDArray[np.float64]:
    """Elliptical radius of places around a system, deg.

    Parameters
    ----------
    system : System
    ra, dec : (n,) float64 array
        deg

    Returns
    -------
    (n,) float64 array
        Along the major axis the angular distance; across it that over the axis ratio.
    """
    ra0, dec0 = np.deg2rad([system.ra, system.dec])
    a, d = np.deg2rad(ra) - ra0, np.deg2rad(dec)
    east = np.cos(d) * np.sin(a)
    north = np.sin(d) * np.cos(dec0) - np.cos(d) * np.sin(dec0) * np.cos(a)
    distance = np.rad2deg(
        np.arctan2(np.hypot(east, north), np.sin(d) * np.sin(dec0) + np.cos(d) * np.cos(dec0) * np.cos(a))
    )
    angle = np.arctan2(east, north) - np.deg2rad(system.position_angle)
    return distance * np.hypot(np.cos(angle), np.sin(angle) / system.axis_ratio)
