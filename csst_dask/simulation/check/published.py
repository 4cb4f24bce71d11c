"""Star counts from the literature, to hold the Galaxy model against.

``read`` marks a figure that was read in the named source, or computed from a formula or a count read there;
``recalled`` one that is common knowledge about a catalogue.

Transformations: V = g - 0.5784 (g-r) - 0.0038 and I (Vega) = i - 0.3780 (i-z) - 0.3974 (R. Lupton 2005, SDSS DR7
documentation); for giants of the bulge the latter is i - 0.55. Gaia's G lies near r, 0.1 to 0.3 mag brighter for red
stars; r of the Vega system is r - 0.15.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BS80 = "Bahcall & Soneira 1980, ApJS 44, 73, eq. B1 (a fit to their model; 15 %; read as two independent codes)"


@dataclass(frozen=True)
class PublishedCount:
    """How many stars brighter than a limit a square degree holds, by a published source."""

    place: str
    """For an area rather than a direction, a name that `positions` knows."""
    l: float
    """deg; NaN for an area."""
    b: float
    band: str
    """Band of `limit`: one of the survey's (AB) or V (Vega)."""
    limit: float
    """mag."""
    n_per_deg2: float
    tolerance: float
    """The ratio of two figures may reach 1 + tolerance, either way."""
    source: str
    as_published: str
    """Limit in the source's own terms."""
    certainty: str
    """``read`` or ``recalled``."""


PUBLISHED = (
    PublishedCount("north pole", 0, 90, "V", 18.0, 588, 0.35, _BS80, "V < 18", "read"),
    PublishedCount("north pole", 0, 90, "V", 20.0, 1440, 0.35, _BS80, "V < 20", "read"),
    PublishedCount("north pole", 0, 90, "V", 22.0, 2812, 0.40, _BS80, "V < 22", "read"),
    PublishedCount("l 90, b 50", 90, 50, "V", 20.0, 2137, 0.35, _BS80, "V < 20", "read"),
    PublishedCount("l 90, b 30", 90, 30, "V", 18.0, 1980, 0.35, _BS80, "V < 18", "read"),
    PublishedCount("l 90, b 30", 90, 30, "V", 20.0, 5191, 0.35, _BS80, "V < 20", "read"),
    PublishedCount("l 90, b 20", 90, 20, "V", 18.0, 4536, 0.45, _BS80, "V < 18", "read"),
    PublishedCount("l 90, b 20", 90, 20, "V", 20.0, 13494, 0.60, _BS80, "V < 20", "read"),
    PublishedCount("l 180, b 30", 180, 30, "V", 20.0, 3214, 0.35, _BS80, "V < 20", "read"),
    PublishedCount(
        "north pole", 200, 90, "i", 23.0, 3865, 0.40,
        "Besancon model (Robin et al. 2003, A&A 409, 523), catalogue of 1 deg2 at l 200, b 90 in "
        "github.com/sniemi/EuclidVisibleInstrument, data/besancon.dat",
        "15 < i < 23, CFHT", "read",
    ),
    PublishedCount(
        "stripe", np.nan, np.nan, "g", 21.0, 2079, 0.30,
        "Chen et al. 2001, ApJ 553, 184, abstract: 5.8e5 stars over 279 deg2 of the celestial equator at 49 < |b| < 64",
        "g' < 21", "read",
    ),
    PublishedCount(
        "l 260, b -60", 260, -60, "r", 21.0, 3184, 0.40,
        "Gaia DR2: 250 092 sources within 5 deg (Brown et al. 2018, A&A 616, A1, fig. 5)",
        "all of DR2, G < 20.8 or so; some per cent are galaxies and quasars", "read",
    ),
    PublishedCount(
        "l 330, b -4", 330, -4, "r", 20.8, 580_800, 1.0,
        "Gaia DR2: 456 142 sources within 0.5 deg (Brown et al. 2018, A&A 616, A1, fig. 5)",
        "all of DR2; incomplete beyond G 20.5 in so dense a field", "read",
    ),
    PublishedCount(
        "bulge windows", 1.0, -3.9, "i", 18.55, 462_000, 1.0,
        "Sumi et al. 2004, MNRAS 348, 1439, abstract: 5 080 236 stars in 11 deg2 of 49 OGLE-II fields at "
        "|l| < 11; Baade's Window stands for them here",
        "11 < I < 18, Vega", "read",
    ),
    PublishedCount(
        "plane", np.nan, np.nan, "r", 21.15, 132_000, 1.0,
        "IPHAS DR2 (Barentsen et al. 2014, MNRAS 444, 3230), abstract: 219 million sources on 92 % of 1800 deg2 at "
        "|b| < 5, 30 < l < 215",
        "r < 21, Vega; 5 sigma at 21.2; any band suffices", "read",
    ),
    PublishedCount(
        "all sky", np.nan, np.nan, "r", 16.15, 2155, 0.40,
        "UCAC4 and Tycho-2, counted at hnsky.com/star_count.htm (presumably UCAC4's own magnitude, 579 to 642 nm)",
        "m < 16", "read",
    ),
    PublishedCount(
        "all sky", np.nan, np.nan, "r", 20.9, 41_040, 0.50,
        "Gaia DR2: 1.693e9 sources (Brown et al. 2018, A&A 616, A1)",
        "all of DR2, G < 20.7 or so", "recalled",
    ),
)  # fmt: skip
"""Counts from the pole to the bulge."""


def _sphere(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions that divide the sphere evenly (Fibonacci lattice), deg."""
    k = np.arange(n) + 0.5
    return np.asarray(360 * k * 0.6180339887498949) % 360, np.rad2deg(np.arcsin(2 * k / n - 1))


def _equator(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places on the celestial equator at 49 < |b| < 64, in Galactic coordinates, deg.

    From the J2000 pole of the Galaxy (RA 192.859, Dec 27.128) and the longitude of the celestial pole (122.932).
    """
    ra, pole = np.deg2rad(np.arange(n) * 360 / n), np.deg2rad(27.12825)
    hour = ra - np.deg2rad(192.85948)
    b = np.arcsin(np.cos(pole) * np.cos(hour))
    l = np.deg2rad(122.93192) - np.arctan2(np.sin(hour), -np.sin(pole) * np.cos(hour))
    keep = (np.abs(np.rad2deg(b)) > 49) & (np.abs(np.rad2deg(b)) < 64)
    return np.rad2deg(l[keep]) % 360, np.rad2deg(b[keep])


def positions(count: PublishedCount) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Galactic longitudes and latitudes (deg) that a count is the mean of."""
    if np.isfinite(count.l):
        return np.array([float(count.l)]), np.array([float(count.b)])
    if count.place == "all sky":
        return _sphere(600)
    if count.place == "stripe":
        return _equator(90)
    l, b = np.meshgrid(np.linspace(32.5, 212.5, 19), np.linspace(-4.5, 4.5, 7))
    return l.ravel(), b.ravel()
