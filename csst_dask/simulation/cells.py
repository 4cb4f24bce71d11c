"""Compiled draws of stars in sky cells: how many, where, how far, how luminous, behind how much dust.

A cell draws from a majorant: the counts behind the least dust and the greatest clump that it can hold. The dust and
the clumps at a star's own place then decide whether it stays, so nothing jumps at the cells' borders.
"""

from __future__ import annotations

import numba
import numpy as np

from csst_dask.simulation.catalogue import CELL_ORDER
from csst_dask.simulation.counter import bits, normal, poisson, substream, uniform
from csst_dask.simulation.milky_way import MODULUS, MODULUS_STEP, N_COMPONENTS, line_of_sight
from csst_dask.simulation.population import EXTINCTION
from csst_dask.simulation.structure import structure

POSITION_BITS = 2 * (29 - CELL_ORDER)
"""Bits that name a place within a cell, at HEALPix order 29."""
_G = EXTINCTION["g"]
_HALF = 0.5 * MODULUS_STEP
_SHIFT, _REST, _32 = np.uint64(POSITION_BITS), np.uint64(64 - POSITION_BITS), np.uint64(32)
_PLACE, _DEPTH, _LIGHT, _POINT, _COLOUR = (np.uint64(k) for k in (0, 1, 2, 3, 4))
_KIND = np.uint64(22)
_INSIDE = np.uint64((1 << POSITION_BITS) - 1)
_SIDE = 1.0 / (1 << (POSITION_BITS // 2))
_NO = np.uint64(0)
_ONE = np.uint64(1)
_SPREAD = 8.7
"""No normal deviate from 53 random bits is larger."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def corner_fields(corners, key):
    """Value of a random field at the corners of cells: (n, 4, 3) unit vectors to (n, 4)."""
    out = np.empty(corners.shape[:2])
    for s in range(corners.shape[0]):
        for p in range(4):
            out[s, p] = structure(key, corners[s, p, 0], corners[s, p, 1], corners[s, p, 2])
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _even_bits(x):
    """The even bits of a number below 2**34, side by side."""
    x = x & np.uint64(0x1555555555555555)
    x = (x | (x >> np.uint64(1))) & np.uint64(0x3333333333333333)
    x = (x | (x >> np.uint64(2))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    x = (x | (x >> np.uint64(4))) & np.uint64(0x00FF00FF00FF00FF)
    x = (x | (x >> np.uint64(8))) & np.uint64(0x0000FFFF0000FFFF)
    return (x | (x >> np.uint64(16))) & np.uint64(0x00000000FFFFFFFF)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _within(position, fields):
    """A field at a place (HEALPix cell at order 29), bilinear between the corners S, E, N, W of its sky cell."""
    inside = position & _INSIDE
    u = (np.float64(_even_bits(inside)) + 0.5) * _SIDE
    v = (np.float64(_even_bits(inside >> _ONE)) + 0.5) * _SIDE
    south = fields[0] * (1.0 - u) + fields[1] * u
    return south * (1.0 - v) + (fields[3] * (1.0 - u) + fields[2] * u) * v


@numba.njit(cache=True, nogil=True, error_model="numpy")
def chosen(parents, key, fraction):
    """A random choice of cells: (n,) uint64 numbers to (n,) bool, a fraction of them True."""
    out = np.empty(parents.shape[0], np.bool_)
    for s in range(parents.shape[0]):
        out[s] = uniform(substream(key, parents[s]), _NO) < fraction
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def share(edges, cumulative, limit):
    """Share of a population's stars that are more luminous in g than a limit (absolute magnitude)."""
    if limit <= edges[0]:
        return 0.0
    k = np.searchsorted(edges, limit)
    if k >= edges.shape[0] or edges[k] > 90.0:
        return 1.0
    part = (limit - edges[k - 1]) / (edges[k] - edges[k - 1])
    return cumulative[k - 1] + part * (cumulative[k] - cumulative[k - 1])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def sight_lines(centres, rotation, halo, bar):
    """Stars and dust by distance for every cell.

    Parameters
    ----------
    centres : (n, 3) float64 array
        ICRS unit vectors.
    rotation : (3, 3) float64 array
        To Galactic axes.
    halo, bar : float
        See `line_of_sight`.

    Returns
    -------
    stars : (n, 4, m) float64 array
        Per steradian and step of the distance modulus; discs and halo against one star per pc3 near the Sun.
    dust : (n, m) float64 array
        A_V, mag.
    """
    n, m = centres.shape[0], MODULUS.shape[0]
    stars, dust = np.empty((n, N_COMPONENTS, m)), np.empty((n, m))
    for s in range(n):
        # one by one: a product of matrices rounds differently with the number of its rows
        x = rotation[0, 0] * centres[s, 0] + rotation[0, 1] * centres[s, 1] + rotation[0, 2] * centres[s, 2]
        y = rotation[1, 0] * centres[s, 0] + rotation[1, 1] * centres[s, 1] + rotation[1, 2] * centres[s, 2]
        z = rotation[2, 0] * centres[s, 0] + rotation[2, 1] * centres[s, 1] + rotation[2, 2] * centres[s, 2]
        line_of_sight(x, y, z, MODULUS, 1.0, halo, bar, stars[s], dust[s])
    return stars, dust


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _limits(k, dust, least, most, bright, faint):
    """Limits in M_g that hold all stars of a distance step between two limits in g, wherever in cell and step."""
    last = dust.shape[0] - 1
    near = 0.5 * (dust[k - 1] + dust[k]) if k > 0 else dust[0]
    far = 0.5 * (dust[k] + dust[k + 1]) if k < last else dust[last]
    return bright - (MODULUS[k] + _HALF) - _G * most * far, faint - (MODULUS[k] - _HALF) - _G * least * near


@numba.njit(cache=True, nogil=True, error_model="numpy")
def expected(stars, dust, least, most, bright, faint, cumulative, edges, density):
    """Running sums over components and distances of the stars between two limits in g.

    Parameters
    ----------
    stars, dust
        From `sight_lines`.
    least, most : (n,) float64 array
        Factors on the dust of each cell.
    bright, faint : float
        AB mag.
    cumulative, edges : (6, k) float64 array
        Of the populations.
    density : (6,) float64 array
        Stars per pc3 near the Sun.

    Returns
    -------
    (n, 4 m) float64 array
        Per steradian; the last column is the total.
    """
    n, m = dust.shape
    out = np.empty((n, N_COMPONENTS * m))
    for s in range(n):
        total = 0.0
        for c in range(N_COMPONENTS):
            local = density[c] if c < 3 else 1.0
            for k in range(m):
                low, high = _limits(k, dust[s], least[s], most[s], bright, faint)
                among = share(edges[c], cumulative[c], high) - share(edges[c], cumulative[c], low)
                total += local * stars[s, c, k] * among
                out[s, c * m + k] = total
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def reachable(stars, dust, least, most, bright, faint, edges, sight):
    """Cells where a star between two limits in g may be bright enough for a band; the others hold none to be seen.

    Parameters are those of `expected`, and ``sight`` of `draw`; returns (n,) bool.
    """
    _, brightest, shade, scatter, depth, limit = sight
    out = np.zeros(dust.shape[0], np.bool_)
    for s in range(dust.shape[0]):
        if bright < limit:
            out[s] = True
            continue
        for c in range(N_COMPONENTS):
            for k in range(dust.shape[1]):
                low, high = _limits(k, dust[s], least[s], most[s], bright, faint)
                if out[s] or high <= edges[c, 0] or not stars[s, c, k] > 0.0:
                    continue
                near = 0.5 * (dust[s, k - 1] + dust[s, k]) if k > 0 else dust[s, 0]
                row = min(max(np.searchsorted(edges[c], low) - 1, 0), brightest.shape[1] - 1)
                mag = brightest[c, row] + MODULUS[k] - _HALF + shade * least[s] * near - _SPREAD * abs(scatter)
                out[s] = mag < depth
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def is_seen(m_g, modulus, shaded, offset, colour, sight):
    """Whether a star behind the least dust that may be in front of it is bright enough."""
    _, _, shade, scatter, depth, limit = sight
    g = m_g + modulus
    return g + _G * shaded < limit or g + offset + shade * shaded + scatter * colour < depth


@numba.njit(cache=True, nogil=True, error_model="numpy")
def numbers(cells, key, means):
    """Poisson number of stars of every cell; cells are (n,) uint64, means (n,) float64."""
    out = np.empty(cells.shape[0], np.int64)
    for s in range(cells.shape[0]):
        out[s] = poisson(means[s], substream(substream(key, cells[s]), _NO))
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def luminosity(u, low, high, edges, cumulative):
    """Row of a population's table and M_g of a star between two limits in M_g, by inversion."""
    first = share(edges, cumulative, low)
    wanted = first + u * (share(edges, cumulative, high) - first)
    k = min(max(np.searchsorted(cumulative, wanted) - 1, 0), edges.shape[0] - 2)
    width = cumulative[k + 1] - cumulative[k]
    part = (wanted - cumulative[k]) / width if width > 0.0 else 0.5
    return k, edges[k] + part * (edges[k + 1] - edges[k])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def draw(cells, count, key, kind, running, sight, dust, least, most, bright, faint, cumulative, edges):
    """Every star of every cell that may be bright enough.

    Parameters
    ----------
    cells : (n,) uint64 array
    count : (n,) int64 array
        From `numbers`.
    key : uint64
    kind : uint64
        Part of the ids, see `csst_dask.simulation.catalogue.Objects`: 16 times the kind of object, plus the layer.
    running : (n, 4 m) float64 array
        From `expected`, with the same values of all the others.
    sight : tuple
        What is bright enough: the band's magnitude less that in g (6, k); the brightest absolute magnitude in the band
        of each row and those after it (6, k); A_band / A_V; change of the magnitude by a standard deviation of colour;
        and the limits in the band and in g, either of which is enough. Stars are dropped that fail behind the least
        dust of their cell; those that stay may still fail.

    Returns
    -------
    position : (k,) uint64 array
        HEALPix cell at order 29.
    ident : (k,) uint64 array
    cell : (k,) int64 array
        Index into ``cells``.
    population, row : (k,) int64 arrays
    modulus, m_g, colour : (k,) float64 arrays
        Distance modulus, absolute magnitude in g, and colour offset in standard deviations.
    """
    m, total = MODULUS.shape[0], count.sum()
    position, ident = np.empty(total, np.uint64), np.empty(total, np.uint64)
    cell, population, row = np.empty(total, np.int64), np.empty(total, np.int64), np.empty(total, np.int64)
    modulus, m_g, colour = np.empty(total), np.empty(total), np.empty(total)
    at = 0
    for s in range(cells.shape[0]):
        cell_key = substream(key, cells[s])
        for number in range(count[s]):
            star = substream(cell_key, np.uint64(number) + _ONE)
            place = np.searchsorted(running[s], uniform(star, _PLACE) * running[s, -1])
            c, k = min(place, running.shape[1] - 1) // m, place % m
            low, high = _limits(k, dust[s], least[s], most[s], bright, faint)
            row[at], m_g[at] = luminosity(uniform(star, _LIGHT), low, high, edges[c], cumulative[c])
            modulus[at] = MODULUS[k] + MODULUS_STEP * (uniform(star, _DEPTH) - 0.5)
            colour[at] = normal(star, _COLOUR)
            near = 0.5 * (dust[s, k - 1] + dust[s, k]) if k > 0 else dust[s, 0]
            if not is_seen(m_g[at], modulus[at], least[s] * near, sight[0][c, row[at]], colour[at], sight):
                continue
            position[at] = (cells[s] << _SHIFT) | (bits(star, _POINT) >> _REST)
            ident[at] = (cells[s] << _32) | (kind << _KIND) | np.uint64(number)
            cell[at], population[at] = s, c
            at += 1
    return position[:at], ident[:at], cell[:at], population[:at], row[:at], modulus[:at], m_g[:at], colour[:at]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def extinction(position, cell, modulus, dust, clouds, patchiness, scale):
    """A_V of stars: the smooth law of their cell at their distance, times the clouds in front of them.

    Parameters
    ----------
    position : (k,) uint64 array
        HEALPix cell at order 29.
    cell : (k,) int64 array
    modulus : (k,) float64 array
    dust : (n, m) float64 array
    clouds : (n, 4) float64 array
        From `corner_fields`.
    patchiness, scale : float

    Returns
    -------
    (k,) float64 array
        mag
    """
    out = np.empty(position.shape[0])
    for k in range(position.shape[0]):
        step = (modulus[k] - MODULUS[0]) / MODULUS_STEP
        i = min(max(int(np.floor(step)), 0), MODULUS.shape[0] - 2)
        part = min(max(step - i, 0.0), 1.0)
        smooth = dust[cell[k], i] * (1.0 - part) + dust[cell[k], i + 1] * part
        field = _within(position[k], clouds[cell[k]])
        out[k] = scale * smooth * np.exp(patchiness * field - 0.5 * patchiness * patchiness)
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def stays(position, ident, cell, fields, key, sigma):
    """Whether stars that were drawn from the greatest density of their cell stay: bool (k,)."""
    out = np.empty(position.shape[0], np.bool_)
    for k in range(position.shape[0]):
        here = _within(position[k], fields[cell[k]])
        chance = np.exp(sigma * (here - fields[cell[k]].max()))
        out[k] = uniform(substream(key, ident[k]), _NO) < chance
    return out
