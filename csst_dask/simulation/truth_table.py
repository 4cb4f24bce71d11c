"""The truth catalogue of a chip: every star and galaxy drawn on the frame, in the columns of the cycle-9 catalogues."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.simulation.catalogue import Galaxies, Stars
from csst_dask.simulation.exposure import Chip
from csst_dask.simulation.population import EXTINCTION
from csst_dask.simulation.stellar import motions, stellar_parameters

_SUN = {"NUV": 8.5, "u": 6.39, "g": 5.11, "r": 4.65, "i": 4.53, "z": 4.50, "y": 4.50}
"""Absolute AB magnitude of the Sun (Willmer 2018, ApJS 236, 47; NUV is our guess for a band this red)."""
_MASS_TO_LIGHT = 1.5
_HUBBLE_LENGTH, _MATTER = 299792.458 / 70.0, 0.3  # Mpc; flat, with a cosmological constant


def truth_columns(chip: Chip) -> dict[str, ArrayLike]:
    """Columns of a chip's truth catalogue, for `csst_dask.io.truth.write_truth`.

    Parameters
    ----------
    chip : Chip

    Returns
    -------
    dict of arrays or scalars
        Stars first, then galaxies. ``xImage`` and ``yImage`` count the centre of the first pixel as 1; they and ``mag``
        (AB, in the chip's own band) are rounded down, so that counts of stars on the frame and above a limit stay
        as they are. ``ra``, ``dec`` equal ``ra_orig``, ``dec_orig``: stars are rendered where the catalogue has
        them, and proper motions are not applied.

        Of stars, temperatures are in K, masses in solar masses, proper motions in mas/yr; ``dm`` is the true distance
        modulus and ``av`` the extinction in V. Of galaxies, ``size`` is the mean half-light radius of disc and bulge by
        their light, arcsec; ``e1``, ``e2`` are (1 - q) / (1 + q) times the cosine and sine of twice the position angle
        from north through east; ``galType`` is 1 where the bulge gives half of the light or more; masses (solar) are
        rough, from the light in this band. Nothing is lensed: ``kappa``, ``g1``, ``g2`` are 0 and ``detA`` is 1.
        Columns that an object has no value for are 0; ``counted`` is 1 for the stars that ``n_star`` counts.
    """
    stars, galaxies = chip.stars, chip.galaxies
    common: dict[str, ArrayLike] = {
        "obj_ID": np.concatenate([stars.id, galaxies.id]),
        "ID_chip": chip.detector,
        "filter": chip.band,
        "xImage": _rounded_down(np.concatenate([chip.star_x, chip.galaxy_x]) + 0.5, 4),
        "yImage": _rounded_down(np.concatenate([chip.star_y, chip.galaxy_y]) + 0.5, 4),
        "mag": _rounded_down(np.concatenate([stars.mag, galaxies.mag]), 5),
        "obj_type": np.repeat(["star", "galaxy"], [len(stars), len(galaxies)]),
        "detA": 1,
        "counted": np.concatenate([chip.counted, np.zeros(len(galaxies), bool)]).astype(np.int64),
    }
    for axis in ("ra", "dec"):
        place = np.round(np.concatenate([getattr(stars, axis), getattr(galaxies, axis)]), 8)
        common[axis] = common[f"{axis}_orig"] = place
    of_stars, of_galaxies = _star_columns(stars, chip.exposure.seed), _galaxy_columns(galaxies, chip.band)
    for name in of_stars.keys() | of_galaxies.keys():
        parts = (of_stars.get(name, np.zeros(len(stars))), of_galaxies.get(name, np.zeros(len(galaxies))))
        common[name] = np.concatenate(parts)
    return common


def _star_columns(stars: Stars, seed: int) -> dict[str, NDArray]:
    m_g = stars.g - stars.distance_modulus - EXTINCTION["g"] * stars.extinction
    physical = stellar_parameters(stars.absolute, stars.population, m_g, stars.id, seed)
    moving = motions(stars.ra, stars.dec, stars.distance_modulus, stars.population, stars.id, seed)
    return {
        "teff": np.round(physical["teff"], 1),
        "logg": np.round(physical["logg"], 3),
        "feh": np.round(physical["feh"], 3),
        "stellarmass": np.round(physical["stellarmass"], 4),
        "pm_ra": np.round(moving["pm_ra"], 4),
        "pm_dec": np.round(moving["pm_dec"], 4),
        "RV": np.round(moving["RV"], 3),
        "parallax": np.round(moving["parallax"], 5),
        "av": np.round(stars.extinction, 4),
        "dm": np.round(stars.distance_modulus, 4),
    }


def _galaxy_columns(galaxies: Galaxies, band: str) -> dict[str, NDArray]:
    bulge, q = galaxies.bulge_fraction, galaxies.axis_ratio
    ellipticity, turn = (1 - q) / (1 + q), np.deg2rad(2 * galaxies.position_angle)
    mass = galaxy_mass(galaxies.mag, galaxies.redshift, band)
    return {
        "z": np.round(galaxies.redshift, 5),
        "size": np.round((1 - bulge) * galaxies.radius + bulge * galaxies.bulge_radius, 5),
        "e1": np.round(ellipticity * np.cos(turn), 6),
        "e2": np.round(ellipticity * np.sin(turn), 6),
        "galType": (bulge >= 0.5).astype(np.int64),
        "stellarmass": np.round(mass),
        "bulgemass": np.round(bulge * mass),
        "diskmass": np.round((1 - bulge) * mass),
    }


def galaxy_mass(mag: NDArray[np.float64], redshift: NDArray[np.float64], band: str) -> NDArray[np.float64]:
    """Rough stellar mass of galaxies, in solar masses: 1.5 for each solar luminosity in a band.

    Spectra are taken as flat in frequency units, so that the K-correction is -2.5 log10(1 + z); flat cosmology with
    70 km/s/Mpc and a matter density of 0.3.

    Parameters
    ----------
    mag : (n,) float64 array
        AB
    redshift : (n,) float64 array
        At least 0.001 is assumed.
    band : str
        One of `csst_dask.schema.BANDS`.

    Returns
    -------
    (n,) float64 array
    """
    z = np.maximum(redshift, 1e-3)
    grid = np.linspace(0, max(float(z.max(initial=0)), 1.0), 2000)
    speed = 1 / np.sqrt(_MATTER * (1 + grid) ** 3 + 1 - _MATTER)
    steps = 0.5 * (speed[1:] + speed[:-1]) * np.diff(grid)
    comoving = _HUBBLE_LENGTH * np.interp(z, grid, np.concatenate([[0], np.cumsum(steps)]))
    absolute = mag - 5 * np.log10((1 + z) * comoving) - 25 + 2.5 * np.log10(1 + z)
    return _MASS_TO_LIGHT * 10 ** (-0.4 * (absolute - _SUN[band]))


def _rounded_down(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """Fewer digits; never across the frame's edge or the bright limit, as rounding to nearest could."""
    return np.round(np.floor(values * 10**digits) / 10**digits, digits)
