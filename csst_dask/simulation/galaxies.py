"""Which galaxies a piece of sky holds: each is drawn from the seed, its sky cell and its number in the cell alone."""

from __future__ import annotations

import healpix_geo.nested
import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.errors import ConfigError
from csst_dask.schema import BANDS
from csst_dask.simulation.catalogue import CELL_ORDER, Galaxies
from csst_dask.simulation.counter import bits, make_key, normal, poisson, substream, uniform

FAINTEST_I = 27.5
"""Every cell numbers its galaxies down to this AB magnitude in i; ``limit`` picks the brighter ones among them."""
BRIGHTEST_I = 12.0
CELL_AREA = 4.0 * np.pi * (180.0 * 60.0 / np.pi) ** 2 / (12 * 4**CELL_ORDER)
"""arcmin2"""
SPHEROIDS = 0.15
"""Share of galaxies that are all bulge."""

_STREAM, _STRUCTURE = 0x67616C6178790001, 0x67616C6178790002
_GALAXY = np.uint64(1 << 31)
_ONE, _CELL_SHIFT, _CHILD_SHIFT = np.uint64(1), np.uint64(32), np.uint64(2 * (29 - CELL_ORDER))
_CHILD = np.uint64(2 ** (2 * (29 - CELL_ORDER)) - 1)
# counters of a galaxy's stream: nine numbers, and normals, which use two each, from the 16th on; three for _SCATTER
_MAG, _PLACE, _TYPE, _AXES, _ANGLE, _Z1, _Z2, _Z3, _SHARE = np.arange(9, dtype=np.uint64)
_SIZE, _COLOUR, _BULGE_SIZE, _SCATTER = np.arange(8, 12, dtype=np.uint64)

_SLOPES = np.array([[16.0, 18.0, 20.0, 22.0, 24.0, 25.0], [0.60, 0.53, 0.44, 0.40, 0.34, 0.31]])
"""i magnitude and d log10 N(<i) / di there; linear in between, constant outside."""
_Z0 = np.array([[14.0, 17.4, 19.0, 20.5, 22.5, 25.0, 27.5], [0.008, 0.039, 0.085, 0.17, 0.27, 0.36, 0.43]])
"""i magnitude and the redshift scale there."""
_FIRST_ORDER, _CLUSTERING = 4, 0.025
_COLOURS = {
    "NUV": (0.80, 2.00, 0.30, 0),
    "u": (0.30, 1.60, 0.15, 0),
    "g": (0.00, 1.00, 0.00, 0),
    "r": (0.00, 0.40, 0.06, 1),
    "i": (0.00, 0.00, 0.00, 0),
    "z": (0.00, -0.25, 0.05, 2),
    "y": (0.00, -0.32, 0.07, 2),
}
"""Magnitude in a band less that in i: a + b (g - i) + c N, with the number of the standard normal N."""


def cumulative_counts(mag: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Mean number of galaxies brighter than a magnitude.

    From i = 25, 46 x 10^(0.31 (i - 25)) (LSST Science Book, 2009, eq. 3.7), with a slope that steepens towards the
    Euclidean 0.6 as brighter surveys have it: 21.0 per arcmin2 at I_AB < 24 (VIRMOS deep imaging survey, McCracken et
    al. 2003, A&A 410, 17; here 21.8), about 1050 per deg2 at r < 19.8, i about 19.4 (GAMA; 1101 here) and 92 at r <
    17.8, i about 17.4 (SDSS main sample, Strauss et al. 2002, AJ 124, 1810; 105 here).

    Parameters
    ----------
    mag : float or array
        AB mag in i.

    Returns
    -------
    float64 array
        Per arcmin2.
    """
    grid = np.linspace(8.0, 30.0, 2201)
    slope = np.interp(grid, *_SLOPES)
    log_n = np.concatenate([[0.0], np.cumsum(0.005 * (slope[1:] + slope[:-1]))])
    log_n += np.log10(46.0) - np.interp(25.0, grid, log_n)
    return 10.0 ** np.interp(mag, grid, log_n)


def structure_sigmas() -> NDArray[np.float64]:
    """Scatter of ln density that each HEALPix order from the first to that of the cells adds.

    The variances build up the angular correlation w = 0.025 (angle / 1 arcmin)^-0.8 between cells of a common parent
    of that size: the slope that deep surveys find (McCracken et al. 2001, A&A 376, 756) and about the amplitude of
    galaxies at I = 24.

    Returns
    -------
    (n,) float64 array
        For orders 4 to `CELL_ORDER`; a field of 11 arcmin scatters by 5 to 6 %.
    """
    side = np.sqrt(CELL_AREA) * 2.0 ** (CELL_ORDER - np.arange(_FIRST_ORDER, CELL_ORDER + 1))
    variance = _CLUSTERING * side**-0.8
    variance[1:] -= variance[:-1].copy()
    return np.sqrt(variance)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _excess(cell, key, sigmas):
    """Density of a cell relative to the mean: a product of lognormal factors of unit mean of all its parents."""
    total = 0.0
    for level in range(sigmas.shape[0]):
        shift = np.uint64(2 * (sigmas.shape[0] - 1 - level))
        deviate = normal(substream(substream(key, np.uint64(level)), cell >> shift), np.uint64(0))
        total += sigmas[level] * deviate - 0.5 * sigmas[level] ** 2
    return np.exp(total)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _count(cells, mean, brightest, key, structure, sigmas):
    """Galaxies numbered in each cell, and how many of them are wanted."""
    numbered, wanted = np.empty(cells.shape[0], np.int64), np.zeros(cells.shape[0], np.int64)
    for c in range(cells.shape[0]):
        stream = substream(key, cells[c])
        numbered[c] = poisson(mean * _excess(cells[c], structure, sigmas), substream(stream, np.uint64(0)))
        for n in range(numbered[c]):
            wanted[c] += uniform(substream(stream, np.uint64(n) + _ONE), _MAG) < brightest
    return numbered, wanted


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _draw(cells, numbered, total, brightest, key, colour, magnitudes, log_low, scales):
    """Ids, order-29 pixels and columns: mag, radius, bulge radius, bulge fraction, axis ratio, angle, redshift."""
    ids, places, out = np.empty(total, np.uint64), np.empty(total, np.uint64), np.empty((7, total))
    offset, slope, scatter, which = colour
    step = -log_low / (magnitudes.shape[0] - 1)
    g = 0
    for c in range(cells.shape[0]):
        stream = substream(key, cells[c])
        for n in range(numbered[c]):
            own = substream(stream, np.uint64(n) + _ONE)
            u = uniform(own, _MAG)
            if not u < brightest:
                continue
            ids[g] = (cells[c] << _CELL_SHIFT) | _GALAXY | np.uint64(n)
            places[g] = (cells[c] << _CHILD_SHIFT) | (bits(own, _PLACE) & _CHILD)
            at = max(np.log10(u) - log_low, 0.0) / step
            k = min(int(at), magnitudes.shape[0] - 2)
            i = magnitudes[k] + (at - k) * (magnitudes[k + 1] - magnitudes[k])
            z0 = scales[k] + (at - k) * (scales[k + 1] - scales[k])
            round_ = uniform(own, _TYPE) < SPHEROIDS
            g_i = (1.75 + 0.3 * normal(own, _COLOUR)) if round_ else (0.87 + 0.38 * normal(own, _COLOUR))
            g_i = min(max(g_i - 0.05 * (i - 22.0), -0.3), 3.0)
            scale = np.exp(-1.145 - 0.269 * (i - 23.0) + 0.3 * normal(own, _SIZE))
            share = max(2.0 * uniform(own, _SHARE) - 1.0, 0.0)
            e = min((0.15 if round_ else 0.25) * np.sqrt(-2.0 * np.log(uniform(own, _AXES))), 0.8)
            out[0, g] = i + offset + slope * g_i + scatter * normal(own, _SCATTER + np.uint64(which))
            out[1, g] = 1.678 * scale
            out[2, g] = scale * (0.8 if round_ else 0.4 * np.exp(0.3 * normal(own, _BULGE_SIZE)))
            out[3, g] = 1.0 if round_ else 0.4 * share * share
            out[4, g] = (1.0 - e) / (1.0 + e)
            out[5, g] = 180.0 * uniform(own, _ANGLE)
            out[6, g] = -z0 * np.log(uniform(own, _Z1) * uniform(own, _Z2) * uniform(own, _Z3))
            g += 1
    return ids, places, out


def draw_galaxies(
    cells: NDArray[np.uint64],
    seed: int,
    band: str,
    *,
    limit: float = 26.0,
    density: float = 1.0,
    size: float = 1.0,
) -> Galaxies:
    """Draw the galaxies of sky cells.

    A galaxy depends on the seed, its cell and its number in the cell: drawing other cells too, another order of them,
    another band or a fainter limit leaves it as it is (its magnitude is the band's own, from one set of colours).
    Positions are uniform within a cell; the mean density follows `cumulative_counts` and `structure_sigmas`. There is
    no dust: dim the magnitudes where the Milky Way does.

    Shapes: 15 % are spheroids (bulge fraction 1), half of the others have a small bulge. Disc scale lengths are
    lognormal about ln r = -1.145 - 0.269 (i - 23) arcsec (Miller et al. 2013, MNRAS 429, 2858), (a - b) / (a + b) is
    Rayleigh distributed, and redshifts follow z^2 exp(-z / z0(i)), the form of Coil et al. (2004, ApJ 617, 765), with
    a median of 0.10 at i = 17.4, 0.72 at 22.5 and 0.96 at 25. The colours are of our choice.

    Parameters
    ----------
    cells : (m,) uint64 array
        HEALPix NESTED numbers of order `CELL_ORDER`, ICRS.
    seed : int
    band : str
    limit : float, optional
        Faintest AB mag in i, up to `FAINTEST_I`.
    density : float, optional
        Number relative to the mean sky. Another density is another draw.
    size : float, optional
        Radii relative to those observed.

    Returns
    -------
    Galaxies
        By cell as given, then by number.

    Raises
    ------
    ConfigError
        If the band, the limit, the density or the size cannot be.
    """
    cells = np.ascontiguousarray(cells, np.uint64)
    _check(cells, band, limit, density, size)
    low, faint, all_ = cumulative_counts(np.array([BRIGHTEST_I, limit, FAINTEST_I]))
    brightest = float(faint / all_)
    log_low = float(np.log10(low / all_))
    grid = np.linspace(BRIGHTEST_I, FAINTEST_I, 1551)
    magnitudes = np.interp(np.linspace(log_low, 0.0, 1024), np.log10(cumulative_counts(grid) / all_), grid)
    key, structure = make_key(seed, _STREAM), make_key(seed, _STRUCTURE)
    numbered, wanted = _count(cells, float(density * CELL_AREA * all_), brightest, key, structure, structure_sigmas())
    ids, places, columns = _draw(
        cells, numbered, int(wanted.sum()), brightest, key, _COLOURS[band], magnitudes, log_low,
        np.interp(magnitudes, *_Z0),
    )  # fmt: skip
    ra, dec = healpix_geo.nested.healpix_to_lonlat(places, 29, num_threads=1)
    mag, radius, bulge_radius, bulge_fraction, axis_ratio, angle, redshift = columns
    return Galaxies(
        id=ids,
        ra=np.asarray(ra),
        dec=np.asarray(dec),
        mag=mag,
        radius=radius * size,
        bulge_radius=bulge_radius * size,
        bulge_fraction=bulge_fraction,
        axis_ratio=axis_ratio,
        position_angle=angle,
        redshift=redshift,
    )


def _check(cells: NDArray[np.uint64], band: str, limit: float, density: float, size: float) -> None:
    if cells.size and cells.max() >= 12 * 4**CELL_ORDER:
        raise ConfigError(
            f"galaxies: cell {cells.max()}; expected HEALPix NESTED numbers below {12 * 4**CELL_ORDER}, "
            f"of order {CELL_ORDER}"
        )
    if band not in BANDS:
        raise ConfigError(f"band {band!r} is not one of {', '.join(BANDS)}")
    if not limit <= FAINTEST_I:
        raise ConfigError(f"galaxies: limit {limit} in i; expected at most {FAINTEST_I}, where the counts end")
    if not (density >= 0.0 and np.isfinite(density)):
        raise ConfigError(f"galaxies: density {density}; expected a number from 0 (none) up, 1 for the mean sky")
    if not (size > 0.0 and np.isfinite(size)):
        raise ConfigError(f"galaxies: size {size}; expected a number above 0, 1 for observed sizes")
