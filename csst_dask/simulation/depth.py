"""How deep a sky is drawn: every star that a band sees, also those that are fainter in g than the catalogue counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csst_dask.instrument.focal_plane import BAND_TABLE, DETECTOR_AREA, unit_vectors
from csst_dask.schema import BRIGHT_LIMIT
from csst_dask.simulation.milky_way import galactic_rotation
from csst_dask.simulation.physics import SkyPhysics
from csst_dask.simulation.stars import cloudiness, star_counts

LEAST = BRIGHT_LIMIT + 0.5
"""No sky is drawn less deep than this in its band, AB mag."""
MOST = 1.5e6
"""Stars on a detector; where the band's depth asks for more, most of them are lost among each other."""


def drawn_depth(ra: float, dec: float, seed: int, band: str, physics: SkyPhysics) -> float:
    """Magnitude in a band to which all stars about a place are drawn.

    Parameters
    ----------
    ra, dec : float
        deg ICRS
    seed : int
        Of the sky.
    band : str
    physics : SkyPhysics

    Returns
    -------
    float
        The band's limiting magnitude and ``physics.below`` more; or where more than `MOST` stars would lie on a
        detector, the magnitude that so many reach, but at least `LEAST`.
    """
    deepest = BAND_TABLE[band].limit_mag + physics.below
    if deepest <= LEAST:
        return deepest
    x, y, z = galactic_rotation() @ unit_vectors(ra, dec)
    limits = np.append(np.arange(LEAST, deepest, 0.25), deepest)
    cloudy = replace(physics, dust=physics.dust * cloudiness(ra, dec, seed, physics))
    longitude, latitude = np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arcsin(z))
    counts = star_counts(float(longitude), float(latitude), band, limits, cloudy) * DETECTOR_AREA
    return float(deepest if counts[-1] <= MOST else np.interp(MOST, counts, limits))
