"""What a catalogue tells about a star besides its light: temperature, gravity, mass, metallicity, and how it moves.

Everything is a function of the star's luminosity, colour, place and number, so every exposure says the same of it. The
numbers are plausible ones, made for catalogues; nothing that is rendered depends on them.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.simulation.counter import make_key, normal, substream
from csst_dask.simulation.milky_way import galactic_rotation
from csst_dask.simulation.population import POPULATIONS

# M_V, effective temperature (K), log10 of luminosity and mass (solar units)
_DWARFS = np.array(
    [
        (-5.80, 45900, 5.820, 59.0), (-4.80, 37900, 5.180, 28.0), (-4.20, 33300, 4.820, 20.2),
        (-3.90, 31400, 4.652, 17.7), (-3.00, 26000, 4.128, 11.8), (-1.80, 20600, 3.428, 7.30),
        (-1.20, 17000, 2.992, 5.40), (-0.85, 15700, 2.772, 4.70), (-0.40, 14000, 2.476, 3.92),
        (0.00, 12300, 2.188, 3.38), (0.50, 10700, 1.864, 2.75), (0.99, 9700, 1.584, 2.33),
        (1.35, 8840, 1.384, 2.06), (2.01, 8100, 1.092, 1.86), (2.32, 7590, 0.960, 1.67),
        (2.57, 7220, 0.864, 1.60), (2.97, 6820, 0.710, 1.43), (3.37, 6550, 0.556, 1.32),
        (4.05, 6180, 0.292, 1.16), (4.48, 5930, 0.130, 1.07), (4.80, 5770, 0.010, 1.00),
        (4.98, 5660, -0.054, 0.98), (5.30, 5480, -0.204, 0.93), (5.78, 5290, -0.324, 0.86),
        (6.07, 5100, -0.428, 0.82), (6.53, 4870, -0.570, 0.76), (7.28, 4440, -0.780, 0.70),
        (8.20, 4090, -0.992, 0.64), (8.80, 3850, -1.164, 0.585), (9.64, 3660, -1.336, 0.51),
        (10.21, 3560, -1.540, 0.45), (11.15, 3430, -1.788, 0.36), (12.61, 3210, -2.144, 0.24),
        (14.15, 3060, -2.520, 0.155), (16.32, 2810, -2.980, 0.105), (17.70, 2680, -3.188, 0.090),
        (18.60, 2570, -3.292, 0.086), (19.40, 2380, -3.520, 0.079), (20.00, 2270, -3.616, 0.077),
    ]
).T  # fmt: skip
"""Main sequence: Pecaut & Mamajek (2013, ApJS 208, 9, Table 5), as extended by E. Mamajek, version 2024.05.15."""

_SUN_MBOL, _SUN_TEFF, _SUN_LOGG = 4.74, 5772.0, 4.438
_EVOLVED_FROM = 4.4  # M_V of the least luminous star that may have left the main sequence
_TURN_OFF = 4.0  # M_V of old populations
_COOLER, _HOTTEST = 0.92, 7400.0  # evolved stars are cooler than this times the main sequence, and than this (K)
_EVOLVED_MASS = np.array([1.3, 1.0, 0.8, 1.0, 0.8, 0.8])
_FEH_SCATTER = np.array([0.2, 0.25, 0.4, 0.4, 0.35, 0.05])

_SUN = np.array([11.1, 12.24, 7.25])  # km/s towards the centre, rotation and the north pole
_CIRCULAR, _R0, _Z0 = 220.0, 8.0, 0.025  # km/s, kpc
_BAR_SPEED, _BAR_REACH = 90.0, 0.8
_KM_S = 4.740470464  # one kpc mas/yr
_FAR = 25.0
_SYSTEM = [p.name for p in POPULATIONS].index("dwarf galaxy")
# dispersions (outward, along the rotation, upward) and mean rotation, km/s, in the order of POPULATIONS
_KINEMATICS = np.array(
    [
        (35.0, 20.0, 16.0, _CIRCULAR - 15.0),
        (67.0, 38.0, 35.0, _CIRCULAR - 46.0),
        (160.0, 90.0, 90.0, 0.0),
        (110.0, 110.0, 100.0, 0.0),
        (10.0, 10.0, 10.0, 0.0),
        (7.0, 7.0, 7.0, 0.0),
    ]
)
"""Discs and halo: Bensby, Feltzing & Lundstroem (2003, A&A 410, 527, Table 1). Bulge: Kunder et al. (2012, AJ 143, 57),
with a mean rotation that rises to 90 km/s. Systems rest in the Galaxy's frame."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _normals(ident, key, out):
    for i in range(ident.shape[0]):
        star = substream(key, ident[i])
        for k in range(out.shape[1]):
            out[i, k] = normal(star, np.uint64(k))


def _draw(ident: NDArray[np.uint64], numbers: int, *words: int) -> NDArray[np.float64]:
    out = np.empty((len(ident), numbers))
    _normals(np.ascontiguousarray(ident, np.uint64), make_key(*words), out)
    return out


def colour_temperature(g_minus_r: NDArray[np.float64]) -> NDArray[np.float64]:
    """Effective temperature, K, of a dust-free g-r (Ivezic et al. 2008, ApJ 684, 287, eq. 3, for -0.3 to 1.3 mag)."""
    c = np.clip(g_minus_r, -0.5, 1.4)
    return 10 ** (3.882 - 0.316 * c + 0.0488 * c**2 + 0.0283 * c**3)


def stellar_parameters(
    absolute: NDArray[np.float64],
    population: NDArray[np.uint8],
    m_g: NDArray[np.float64],
    ident: NDArray[np.uint64],
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """Physical parameters of stars.

    Luminous stars that are much cooler than the main sequence at their luminosity are taken as evolved, and so is every
    star of an old population above its turn-off.

    Parameters
    ----------
    absolute : (n,) float64 array
        Absolute V magnitude.
    population : (n,) uint8 array
        Number in `csst_dask.simulation.population.POPULATIONS`.
    m_g : (n,) float64 array
        Absolute g magnitude.
    ident : (n,) uint64 array
        The stars' own numbers: metallicities are drawn from them.
    seed : int
        Of the sky.

    Returns
    -------
    dict of (n,) float64 arrays
        ``teff`` in K, ``logg`` in dex of cm/s2, ``stellarmass`` in solar masses, ``feh`` in dex.

    Notes
    -----
    g - V = 0.5784 (g - r) + 0.0038 (R. Lupton 2005, SDSS transformations); log g follows from mass, luminosity and
    temperature, with the bolometric correction of the main sequence.
    """
    m_v, teff_v, log_l, mass_v = _DWARFS
    teff, mass = np.interp(absolute, m_v, teff_v), np.interp(absolute, m_v, mass_v)
    light = np.interp(absolute, m_v, log_l)
    by_colour = colour_temperature((m_g - absolute - 0.0038) / 0.5784)
    old = np.array([p.old for p in POPULATIONS])[population]
    evolved = (absolute < _EVOLVED_FROM) & (by_colour < np.minimum(_COOLER * teff, _HOTTEST))
    evolved |= old & (absolute < _TURN_OFF)
    teff = np.where(evolved, by_colour, teff)
    mass = np.where(evolved | old, np.minimum(mass, _EVOLVED_MASS[population]), mass)
    correction = np.interp(teff, teff_v[::-1], (_SUN_MBOL - 2.5 * log_l - m_v)[::-1])
    light = np.where(evolved, 0.4 * (_SUN_MBOL - absolute - correction), light)
    mean = np.array([p.feh for p in POPULATIONS])[population]
    return {
        "teff": teff,
        "logg": _SUN_LOGG + np.log10(mass) + 4 * np.log10(teff / _SUN_TEFF) - light,
        "stellarmass": mass,
        "feh": mean + _FEH_SCATTER[population] * _draw(ident, 1, seed, 41)[:, 0],
    }


def motions(
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    distance_modulus: NDArray[np.float64],
    population: NDArray[np.uint8],
    ident: NDArray[np.uint64],
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """Proper motion, radial velocity and parallax of stars, seen from the Sun.

    Parameters
    ----------
    ra, dec : (n,) float64 array
        deg ICRS
    distance_modulus : (n,) float64 array
        True, mag.
    population : (n,) uint8 array
        Number in `csst_dask.simulation.population.POPULATIONS`. Disc stars far from the Galaxy belong to
        another one and rest in ours.
    ident : (n,) uint64 array
        The stars' own numbers: velocities are drawn from them.
    seed : int
        Of the sky.

    Returns
    -------
    dict of (n,) float64 arrays
        ``pm_ra`` (times cos dec) and ``pm_dec`` in mas/yr, ``RV`` in km/s, ``parallax`` in mas.

    Notes
    -----
    Solar motion from Schoenrich, Binney & Dehnen (2010, MNRAS 403, 1829); 220 km/s at 8 kpc.
    """
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    kpc = 10 ** (0.2 * distance_modulus - 2)
    sky = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    rotation = galactic_rotation()
    place = kpc[:, None] * (sky @ rotation.T) + (-_R0, 0.0, _Z0)
    velocity = _galactic_velocity(place, population, _draw(ident, 3, seed, 42))
    velocity = (velocity - _SUN - (0.0, _CIRCULAR, 0.0)) @ rotation  # in equatorial axes
    east = -np.sin(ra) * velocity[:, 0] + np.cos(ra) * velocity[:, 1]
    level = np.cos(ra) * velocity[:, 0] + np.sin(ra) * velocity[:, 1]
    north = np.cos(dec) * velocity[:, 2] - np.sin(dec) * level
    return {
        "pm_ra": east / (_KM_S * kpc),
        "pm_dec": north / (_KM_S * kpc),
        "RV": (sky * velocity).sum(axis=1),
        "parallax": 1 / kpc,
    }


def _galactic_velocity(place: NDArray, population: NDArray, deviates: NDArray) -> NDArray[np.float64]:
    """(n, 3) velocity in the Galaxy's frame, km/s, at places in kpc from its centre."""
    radius = np.maximum(np.hypot(place[:, 0], place[:, 1]), 1e-6)
    outside = (radius > _FAR) | (np.abs(place[:, 2]) > _FAR)
    law = _KINEMATICS[np.where(outside & (population < 2), _SYSTEM, population)]
    outward, along, upward = (law[:, :3] * deviates).T
    along = along + law[:, 3] + np.where(population == 3, _BAR_SPEED * np.minimum(radius / _BAR_REACH, 1), 0)
    x, y = place[:, 0] / radius, place[:, 1] / radius
    return np.stack([outward * x + along * y, outward * y - along * x, upward], axis=1)
