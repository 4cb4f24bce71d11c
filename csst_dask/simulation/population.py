"""Stellar populations: how many stars of each luminosity, and how bright each is in every band.

Luminosity functions are empirical; colours follow the stellar locus and the photometric parallax of Juric et al.
(2008, ApJ 673, 864: "bright" normalisation, eqs. 1-4) on the main sequence and a schematic giant branch above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from csst_dask.schema import BANDS

EXTINCTION = {"NUV": 2.10, "u": 1.55, "g": 1.20, "r": 0.86, "i": 0.65, "z": 0.47, "y": 0.42, "V": 1.0}
"""A_band / A_V (R_V = 3.1; Cardelli, Clayton & Mathis 1989, ApJ 345, 245, at the bands' wavelengths)."""

COLUMNS = (*BANDS, "V")
"""Columns of a population's table of absolute magnitudes."""

SCATTER = np.array([0.16, 0.09, 0.0, -0.04, -0.06, -0.07, -0.08, -0.023])
"""How one standard deviation of colour at given luminosity changes each of `COLUMNS`, mag."""

_M_V = np.arange(-4.0, 20.0)
_DISC = 1e-3 * np.array(
    [0.0002, 0.001, 0.004, 0.03, 0.15, 0.5, 0.8, 1.3, 2.1, 3.0, 3.3, 3.1, 3.4, 5.2, 8.0, 10.0, 11.4, 10.3, 8.0, 6.8,
     5.2, 4.0, 3.0, 1.0]
)  # fmt: skip
"""Stars per pc3 and mag at M_V = -4 .. 19 near the Sun (Wielen, Jahreiss & Krueger 1983, IAU Coll. 76, 163)."""
_STEP = 0.05
_GIANT_M_V = np.array([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 3.6, 4.2])
_GIANT_G_R = np.array([1.45, 1.25, 1.02, 0.84, 0.70, 0.62, 0.56, 0.46, 0.38])


@dataclass(frozen=True)
class Population:
    """What sets one stellar population apart."""

    name: str
    old: bool
    """No main sequence above the turn-off."""
    feh: float
    """Mean metallicity, dex."""
    giant_shift: float
    """Colour of the giant branch in g-r against that of solar metallicity, mag."""
    faint: float = 1.0
    """Stars fainter than M_V = 9 against the disc's."""


POPULATIONS = (
    Population("thin disc", False, -0.1, 0.0),
    Population("thick disc", True, -0.6, -0.05, 0.65),
    Population("halo", True, -1.5, -0.14, 0.35),
    Population("bulge", True, 0.0, 0.06),
    Population("dwarf galaxy", True, -1.4, -0.13, 0.8),
    Population("cluster", True, -1.3, -0.12, 0.6),
)
"""Halo and clusters hold about half the disc's share of faint dwarfs (Gould, Flynn & Bahcall 1998, ApJ 503, 798)."""


@dataclass(frozen=True)
class LuminosityTable:
    """A population in absolute magnitudes, from the most to the least luminous in g."""

    cumulative: NDArray[np.float64]
    """(n + 1,) share of the stars more luminous than each step's beginning, from 0 to 1."""
    edges: NDArray[np.float64]
    """(n + 1,) M_g at those places, rising."""
    magnitudes: NDArray[np.float64]
    """(n, 8) absolute magnitude in each of `COLUMNS`."""
    light: float
    """Absolute V magnitude of one star on average."""
    density: float
    """Stars per pc3 where the disc's luminosity function holds as it is."""


def _main_sequence(m_v: NDArray) -> tuple[NDArray, NDArray]:
    """g-r and r-i at an absolute V magnitude."""
    ri = np.linspace(-0.45, 2.6, 3000)
    inner = np.clip(ri, 0.1, 1.6)
    m_r = 3.2 + 13.30 * inner - 11.50 * inner**2 + 5.40 * inner**3 - 0.70 * inner**4
    slope = 13.30 - 23.0 * inner + 16.2 * inner**2 - 2.8 * inner**3
    m_r = m_r + slope * (ri - inner)
    gr = _g_minus_r(ri)
    found = np.interp(m_v, m_r + 0.4216 * gr - 0.0038, ri)
    return _g_minus_r(found), found


def _g_minus_r(ri: NDArray) -> NDArray:
    return 1.39 * (1 - np.exp(-4.9 * ri**3 - 2.45 * ri**2 - 1.68 * ri - 0.050))


def _giants(m_v: NDArray, shift: float) -> tuple[NDArray, NDArray]:
    gr = np.interp(m_v, _GIANT_M_V, _GIANT_G_R) + shift
    ri = np.linspace(-0.3, 1.2, 1000)
    return gr, np.interp(gr, _g_minus_r(ri), ri)


def _magnitudes(m_v: NDArray, gr: NDArray, ri: NDArray, feh: float) -> NDArray:
    """(n, 8) absolute magnitudes from M_V and two colours; metal-poor stars are brighter in the ultraviolet."""
    poor = np.clip(-feh, 0.0, 2.0)
    ug = 1 + 1.1 * (gr - 0.25) + 0.45 * (gr - 0.25) ** 2 - 0.12 * poor
    nuv_u = 0.9 + 1.6 * gr - 0.2 * poor
    g = m_v + 0.5784 * gr + 0.0038
    iz, zy = 0.02 + 0.55 * ri, 0.01 + 0.27 * ri
    i = g - gr - ri
    return np.stack([g + ug + nuv_u, g + ug, g, g - gr, i, i - iz, i - iz - zy, m_v], axis=1)


def _old_stars(m_v: NDArray) -> NDArray:
    """Stars per step of M_V without a young main sequence.

    Below the turn-off the disc's; above it a drop of 0.85 dex to the base of the giant branch, which falls by 0.32
    dex per mag towards the tip; the clump holds as many stars as 1.6 mag of the branch beside it (Nataf et al. 2013,
    ApJ 769, 88). About one star in 1160 is a clump star; Portail et al. (2015, MNRAS 448, 713)
    give one per 900 solar masses, remnants included.
    """
    disc = np.interp(m_v, _M_V, np.log10(_DISC))
    base = np.interp(4.2, _M_V, np.log10(_DISC)) - 0.85
    branch = np.where(m_v > -2.6, base + 0.32 * (m_v - 3.2), -np.inf)
    knee = np.interp(m_v, [3.2, 4.2], [base, base + 0.85])
    number = np.where(m_v > 4.2, disc, np.where(m_v > 3.2, knee, branch))
    clump = (
        1.6 * 10 ** (base + 0.32 * (0.6 - 3.2)) * np.exp(-0.5 * ((m_v - 0.6) / 0.25) ** 2) / (0.25 * np.sqrt(2 * np.pi))
    )
    return (10**number + clump) * _STEP


@lru_cache(maxsize=64)
def luminosity_table(index: int, tilt: float = 0.0) -> LuminosityTable:
    """Tabulate a population.

    Parameters
    ----------
    index : int
        Number in `POPULATIONS`.
    tilt : float
        d log10 N / d M_V to add to the luminosity function about M_V = 5.

    Returns
    -------
    LuminosityTable
    """
    population = POPULATIONS[index]
    m_v = np.arange(-4.0, 19.5, _STEP) + _STEP / 2
    disc = 10 ** np.interp(m_v, _M_V, np.log10(_DISC)) * _STEP
    if population.old:
        number = _old_stars(m_v)
        giant = np.clip((4.3 - m_v) / 0.6, 0.0, 1.0)
    else:
        # the young stars of the upper main sequence lie in a thinner layer than the disc they are counted with
        number = disc * np.interp(m_v, [3.0, 4.2], [0.5, 1.0])
        giant = np.interp(m_v, [-2.0, 0.0, 1.0, 2.0, 3.0, 4.0], [0.3, 0.6, 0.6, 0.5, 0.25, 0.0])
    number = number * np.where(m_v > 9, population.faint, 1.0) * 10 ** (tilt * (m_v - 5.0))
    dwarfs = _magnitudes(m_v, *_main_sequence(m_v), population.feh)
    giants = _magnitudes(m_v, *_giants(m_v, population.giant_shift), population.feh)
    weight = np.concatenate([number * (1 - giant), number * giant])
    table = np.concatenate([dwarfs, giants])
    order = np.argsort(table[:, BANDS.index("g")], kind="stable")
    order = order[weight[order] > 0]
    weight, table = weight[order], np.ascontiguousarray(table[order])
    g = table[:, BANDS.index("g")]
    edges = np.concatenate([[g[0] - _STEP / 2], 0.5 * (g[1:] + g[:-1]), [g[-1] + _STEP / 2]])
    total = weight.sum()
    light = -2.5 * np.log10((weight * 10 ** (-0.4 * table[:, -1])).sum() / total)
    return LuminosityTable(np.concatenate([[0.0], np.cumsum(weight) / total]), edges, table, float(light), float(total))
