"""The laws that a simulated sky and its exposures follow, and how far they are drawn from the nominal ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from csst_dask.schema import STAR_LIMIT
from csst_dask.simulation.systems import DWARFS, System


@dataclass(frozen=True)
class SkyPhysics:
    """What the sky holds; the defaults are the nominal laws."""

    density: float = 1.0
    """Factor on all star counts."""
    halo: float = 1.0
    """Factor on the halo of the Milky Way."""
    tilt: float = 0.0
    """d log10 N / d mag to add to the luminosity functions."""
    dust: float = 1.0
    """Factor on the extinction."""
    patchiness: float = 0.16
    """Standard deviation of ln A_V from place to place."""
    clustering: float = 0.0
    """Standard deviation of ln(star density) from place to place, beyond the smooth model."""
    limit: float = STAR_LIMIT
    """Every star to this g is drawn, AB mag; ``n_star`` counts to `csst_dask.schema.STAR_LIMIT` all the same."""
    below: float = 1.5
    """And in every band every star to so many magnitudes below the band's limit, whatever its g."""
    footprint: float = 1.0
    """Share of the sky that the star catalogue covers."""
    footprint_order: int = 7
    """HEALPix order of the cells that it covers or not."""
    systems: tuple[System, ...] = DWARFS
    """Dwarf galaxies and clusters."""
    members: bool = False
    """All their members, and not only those brighter than `System.bright_limit`."""
    galaxies: float = 1.0
    """Factor on the number of background galaxies; 0 for none."""
    galaxy_size: float = 1.0
    """Factor on their radii."""


@dataclass(frozen=True)
class Optics:
    """State of telescope and detector during one exposure."""

    jitter: float = 0.12
    """FWHM of everything in the PSF but diffraction, on the boresight, arcsec."""
    halo: float = 1.0
    """Factor on the light in the PSF's halo."""
    sky_factor: float = 1.0
    """Sky background against the band table."""
    gradient: tuple[float, float] = (0.0, 0.0)
    """Relative change of the sky along y and x."""
    read_noise: float = 5.0
    """Electrons."""


Physics = Literal["nominal", "randomised", "off-nominal", "wide"]


def draw_sky(physics: Physics, rng: np.random.Generator) -> SkyPhysics:
    """Laws of the sky of one field.

    ``nominal`` always gives the same ones; ``randomised`` spreads them so that networks do not learn one family;
    ``off-nominal`` lies outside of that spread, for testing. ``wide`` is drawn by `csst_dask.simulation.wide`.
    """
    # the same numbers are taken whatever the physics, so that two surveys of one seed see the same places
    u, n = rng.uniform(-1, 1, 8), rng.standard_normal(4)
    if physics in ("nominal", "wide"):
        return SkyPhysics()
    if physics == "randomised":
        return SkyPhysics(
            halo=float(10 ** (0.2 * u[0])),
            tilt=float(0.02 * u[1]),
            dust=float(10 ** (0.12 * u[2])),
            patchiness=float(0.17 + 0.08 * u[3]),
            clustering=float(max(0.5 * u[4], 0.0)),
            limit=STAR_LIMIT + 0.5 + 0.5 * float(u[5]),
            galaxies=float(10 ** (0.1 * n[0])),
            galaxy_size=float(10 ** (0.04 * n[1])),
        )
    return SkyPhysics(
        halo=float(10 ** (np.copysign(0.3, u[0]))),
        tilt=float(np.copysign(0.03 + 0.01 * abs(u[1]), u[1])),
        dust=float(10 ** np.copysign(0.18, u[2])),
        patchiness=0.3,
        clustering=0.5 + 0.2 * abs(float(u[4])),
        limit=STAR_LIMIT + 1.25 + 0.25 * float(u[5]),
        galaxies=float(10 ** np.copysign(0.25, n[0])),
        galaxy_size=float(10 ** np.copysign(0.1, n[1])),
    )


def draw_optics(physics: Physics, rng: np.random.Generator) -> Optics:
    """State of the instrument during one exposure; parameters as for `draw_sky`."""
    u, n = rng.uniform(-1, 1, 4), rng.standard_normal(4)
    if physics in ("nominal", "wide"):
        return Optics(
            jitter=float(np.round(0.1225 + 0.0075 * u[0], 4)),
            sky_factor=float(10 ** (0.08 * n[0])),
            gradient=(float(0.02 * n[1]), float(0.02 * n[2])),
        )
    if physics == "randomised":
        return Optics(
            jitter=float(np.round(0.125 + 0.025 * u[0], 4)),
            halo=float(10 ** (0.15 * u[1])),
            sky_factor=float(10 ** (0.12 * n[0])),
            gradient=(float(0.03 * n[1]), float(0.03 * n[2])),
            read_noise=float(5.0 + 0.5 * u[2]),
        )
    return Optics(
        jitter=float(np.round(0.165 + 0.01 * u[0], 4)),
        halo=float(1.8 + 0.2 * u[1]),
        sky_factor=float(10 ** (np.copysign(0.3, n[0]))),
        gradient=(float(0.06 * n[1]), float(0.06 * n[2])),
        read_noise=6.0,
    )
