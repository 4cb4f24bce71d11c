"""The sky of one chip under ``physics: wide``: stars strewn over a detector, and galaxies as anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from healpix_geo import nested
from numpy.typing import NDArray

from csst_dask.instrument.focal_plane import BAND_TABLE, DETECTORS
from csst_dask.schema import FRAME_SHAPE, STAR_LIMIT
from csst_dask.simulation.catalogue import CELL_ORDER, Stars
from csst_dask.simulation.star_law import COLOUR, REDDEST, draw_magnitudes, law_depth, star_numbers
from csst_dask.simulation.stars import covered
from csst_dask.simulation.wide import Laws

if TYPE_CHECKING:
    from csst_dask.simulation.exposure import Exposure

MODULUS = 15.0
"""Distance modulus that the truth gives for all stars of a wide sky, mag: they have no place in the Galaxy."""
_STARS = 103
_CLUMP_SIZES = (60.0, 2500.0)


def draw_wide_stars(
    exposure: Exposure, laws: Laws, detector: int, shape: tuple[int, int], margin: int
) -> tuple[Stars, NDArray[np.float64], NDArray[np.float64], float]:
    """Stars of a detector.

    Parameters
    ----------
    exposure : Exposure
        Its ``sky.density`` is the number wanted on a detector.
    laws : Laws
    detector : int
    shape : (int, int)
        Frame, pixel.
    margin : int
        Stars lie up to this far outside of the frame, pixel.

    Returns
    -------
    stars : Stars
        Those brighter than 26.5 in g, or than the depth in the detector's band.
    y, x : (n,) float64 array
        Pixel from the frame's outer corner.
    depth : float
        All stars brighter than this in the band are there, AB mag.
    """
    sky, band = exposure.sky, DETECTORS[detector].band
    rng = np.random.default_rng([exposure.seed, exposure.index, detector, _STARS])
    _, number = star_numbers(laws.stars, sky.density)
    # no star beyond the law's end is brighter in the band
    depth = min(BAND_TABLE[band].limit_mag + sky.below, law_depth(number) + min(COLOUR[band] * REDDEST, 0.0))
    sides = shape[0] + 2 * margin, shape[1] + 2 * margin
    area = sides[0] * sides[1] / (FRAME_SHAPE[0] * FRAME_SHAPE[1])
    n = int(rng.poisson(number.sum() * area)) if sky.footprint > 0 else 0
    mags, g = draw_magnitudes(laws.stars, number, n, band, rng)
    y, x, stays = _places(n, sides, laws, rng)
    keep = stays & ((g < STAR_LIMIT) | (mags < depth))
    y, x, mags, g = (values[keep] for values in (y - margin, x - margin, mags, g))
    ra, dec = exposure.wcs(detector).all_pix2world(x + 0.5, y + 0.5, 1) if len(y) else (y, x)
    ident = (np.uint64(exposure.index) << np.uint64(40)) | (np.uint64(detector) << np.uint64(32))
    same = np.zeros(len(y))
    stars = Stars(
        ident | np.arange(len(y), dtype=np.uint64), np.mod(ra, 360.0), dec, mags, g, same + MODULUS, same,
        g - MODULUS - 0.3, same.astype(np.uint8),
    )  # fmt: skip
    if 0 < sky.footprint < 1 and len(y):
        cells = nested.lonlat_to_healpix(stars.ra, stars.dec, np.uint8(CELL_ORDER), num_threads=1).astype(np.uint64)
        inside = covered(cells, exposure.seed, sky)
        return stars.pick(inside), y[inside], x[inside], depth
    return stars, y, x, depth


def _places(
    n: int, sides: tuple[int, int], laws: Laws, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Places (y, x) of stars, even but for clumps and a slope of the density; and which of them lie on the frame."""
    y, x = rng.uniform(0, sides[0], n), rng.uniform(0, sides[1], n)
    if laws.tilt:
        angle = rng.uniform(0, 2 * np.pi)
        # the place of a star is moved along the slope by the inverse of its cumulative distribution
        across = sides[0] if abs(np.sin(angle)) > 0.5 else sides[1]
        place = y if across == sides[0] else x
        place[:] = across * _sloped(place / across, np.copysign(laws.tilt, np.sin(angle) + np.cos(angle)))
    if laws.clumped:
        centres = rng.uniform(0, 1, (laws.clumps, 2)) * sides
        sizes = np.exp(rng.uniform(np.log(_CLUMP_SIZES[0]), np.log(_CLUMP_SIZES[1]), laws.clumps))
        chosen = np.flatnonzero(rng.random(n) < laws.clumped)
        which = rng.integers(0, laws.clumps, len(chosen))
        # Plummer (1911) in projection
        radius = sizes[which] / np.sqrt(1 / rng.uniform(0.02, 1, len(chosen)) - 1 + 1e-9)
        turn = rng.uniform(0, 2 * np.pi, len(chosen))
        y[chosen] = centres[which, 0] + radius * np.sin(turn)
        x[chosen] = centres[which, 1] + radius * np.cos(turn)
    return y, x, (y >= 0) & (y < sides[0]) & (x >= 0) & (x < sides[1])


def _sloped(u: NDArray[np.float64], slope: float) -> NDArray[np.float64]:
    """Deviates with the density 1 + slope (t - 1/2) on 0 to 1 from uniform ones."""
    if abs(slope) < 1e-6:
        return u
    a = slope / 2
    b = 1 - a
    return (-b + np.sqrt(b * b + 4 * a * u)) / (2 * a)
