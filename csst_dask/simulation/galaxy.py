"""How many stars a piece of sky holds, how bright they are and what colours they have.

A simple law: counts per detector are drawn for the exposure, magnitudes follow a broken power law, and colours a
stellar locus that reddens towards faint stars and with dust.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csst_dask.errors import ConfigError
from csst_dask.schema import BANDS, CLASS_EDGES, STAR_LIMIT

BRIGHTEST = 13.0
"""No star is brighter than this in g, AB mag."""

EXTINCTION = {"NUV": 2.10, "u": 1.55, "g": 1.20, "r": 0.86, "i": 0.65, "z": 0.47, "y": 0.42}
"""A_band / A_V."""


@dataclass(frozen=True)
class Region:
    """A box on the sky and the range of its star counts."""

    ra: tuple[float, float]
    """deg"""
    dec: tuple[float, float]
    """deg"""
    n_star: tuple[float, float]
    """Least and largest number of stars on one detector."""


REGIONS = {
    "galactic_l90_b20": Region((286.6, 291.5), (57.8, 60.3), (0, 3e3)),
    "galactic_l90_b30": Region((266.7, 271.9), (59.8, 62.3), (0, 1e3)),
    "galactic_l90_b50": Region((229.3, 233.8), (54.8, 57.3), (0, 6e2)),
    "simulation_default": Region((236.1, 256.9), (32.0, 48.0), (1e2, 8e2)),
    "fornax": Region((38.4, 41.5), (-35.8, -33.2), (1e2, 4e3)),
    "sculptor": Region((13.5, 16.6), (-35.0, -32.5), (1e2, 1e3)),
    "galactic_center": Region((264.9, 265.3), (-28.5, -28.2), (1e4, 2e5)),
}
"""The seven regions of Lai et al. (2026), Table 1."""

MIXED = "mixed"
"""Not a place: pointings all over the sky, star counts log-uniform within a density class, classes in turn."""


@dataclass(frozen=True)
class StarLaw:
    """Star population of one exposure."""

    n_star: float
    """Expected number of stars with g < `STAR_LIMIT` on one detector."""
    slope_bright: float
    """d log10 N / d mag below the break."""
    slope_faint: float
    break_mag: float
    """g of the break, AB mag."""
    extinction: float
    """A_V, mag."""


def region(name: str) -> Region:
    """Look a region up.

    Raises
    ------
    ConfigError
        If there is no region of that name.
    """
    try:
        return REGIONS[name]
    except KeyError:
        raise ConfigError(
            f"simulation.region: unknown region {name!r}; expected {MIXED}, demo or one of {', '.join(REGIONS)}"
        ) from None


def draw_count(name: str, index: int, rng: np.random.Generator) -> float:
    """Expected star count per detector of one exposure of a region.

    Parameters
    ----------
    name : str
        `MIXED` or a name of `REGIONS`.
    index : int
        Number of the exposure; `MIXED` goes through the density classes with it.
    rng : numpy.random.Generator
    """
    if name == MIXED:
        k = index % 6
        if k == 0:
            return 0.0
        low = float(CLASS_EDGES[k - 1])
        return float(10 ** rng.uniform(np.log10(low), np.log10(low) + (2.0 if k == 1 else 0.4 if k == 5 else 1.0)))
    low, high = region(name).n_star
    return float(10 ** rng.uniform(np.log10(max(low, 1)), np.log10(high)))


def draw_law(n_star: float, rng: np.random.Generator) -> StarLaw:
    """Population parameters of one exposure: crowded fields lie behind more dust."""
    dust = rng.uniform(0.02, 0.5) if n_star < 3000 else 10 ** rng.uniform(-0.7, 0.75)
    return StarLaw(
        n_star=n_star,
        slope_bright=float(rng.uniform(0.22, 0.40)),
        slope_faint=float(rng.uniform(0.04, 0.24)),
        break_mag=float(rng.uniform(18.0, 21.5)),
        extinction=float(dust),
    )


def draw_magnitudes(law: StarLaw, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Magnitudes in g by inversion of the cumulative broken power law.

    Returns
    -------
    (n,) float64 array
        AB mag, between `BRIGHTEST` and `STAR_LIMIT`.
    """
    grid = np.linspace(BRIGHTEST, STAR_LIMIT, 2000)
    slope = np.where(grid < law.break_mag, law.slope_bright, law.slope_faint)
    density = 10 ** (slope * (grid - law.break_mag))
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return np.interp(rng.random(n), cumulative / cumulative[-1], grid)


def band_magnitudes(g: NDArray[np.float64], law: StarLaw, band: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Magnitudes in a band from those in g.

    Stellar locus of Juric et al. (2008, ApJ 673, 864) in g-r against r-i with linear extensions to the other bands;
    dust reddens by `EXTINCTION`.

    Parameters
    ----------
    g : (n,) float64 array
        AB mag.
    law : StarLaw
    band : str
    rng : numpy.random.Generator
        Draws the spread along the locus; the same state gives a star the same colour in every band.

    Returns
    -------
    (n,) float64 array
        AB mag.
    """
    ri = np.clip(rng.lognormal(np.log(0.16 + 0.055 * np.clip(g - 15, 0, 10)), 0.55), 0.02, 1.8)
    gr = 1.39 * (1 - np.exp(-4.9 * ri**3 - 2.45 * ri**2 - 1.68 * ri - 0.050))
    iz, zy = 0.02 + 0.55 * ri, 0.01 + 0.27 * ri
    ug = 1 + 1.1 * (gr - 0.25) + 0.45 * (gr - 0.25) ** 2
    intrinsic = {
        "NUV": g + ug + 0.9 + 1.6 * gr,
        "u": g + ug,
        "g": g,
        "r": g - gr,
        "i": g - gr - ri,
        "z": g - gr - ri - iz,
        "y": g - gr - ri - iz - zy,
    }
    if band not in BANDS:
        raise ConfigError(f"band {band!r} is not one of {', '.join(BANDS)}")
    return intrinsic[band] + law.extinction * (EXTINCTION[band] - EXTINCTION["g"])
