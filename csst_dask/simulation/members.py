"""Compiled draw of the members of a stellar system in sky cells, as `csst_dask.simulation.cells` draws field stars."""

from __future__ import annotations

import numba
import numpy as np

from csst_dask.simulation.cells import POSITION_BITS, is_seen, luminosity
from csst_dask.simulation.counter import bits, normal, substream, uniform

_SHIFT, _REST, _32, _KIND = (np.uint64(k) for k in (POSITION_BITS, 64 - POSITION_BITS, 32, 22))
_PLACE, _LIGHT, _POINT, _COLOUR, _OTHER = (np.uint64(k) for k in (0, 2, 3, 4, 5))
_ONE = np.uint64(1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def draw_members(cells, count, key, kind, bright, faint, cumulative, edges, offset, sight, modulus, depth_step, shaded):
    """Every star of a stellar system in every cell that may be bright enough.

    Parameters
    ----------
    cells, count, key, kind
        As for `draw`.
    bright, faint : (n,) float64 array
        Limits of each cell in M_g.
    cumulative, edges, offset : (k,) float64 array
        Of the system's population; the offset is the band's magnitude less that in g.
    sight : tuple
        See `draw`.
    modulus, depth_step : float
        Distance modulus and its standard deviation, mag.
    shaded : (n,) float64 array
        Least A_V in front of a member in each cell, mag.

    Returns
    -------
    position, ident : (k,) uint64 arrays
    cell, row : (k,) int64 arrays
    m_g, depth, colour, chance : (k,) float64 arrays
        Absolute magnitude in g, two standard normal deviates and a uniform one.
    """
    total = count.sum()
    position, ident = np.empty(total, np.uint64), np.empty(total, np.uint64)
    cell, row = np.empty(total, np.int64), np.empty(total, np.int64)
    m_g, depth, colour, chance = np.empty(total), np.empty(total), np.empty(total), np.empty(total)
    at = 0
    for s in range(cells.shape[0]):
        cell_key = substream(key, cells[s])
        for number in range(count[s]):
            star = substream(cell_key, np.uint64(number) + _ONE)
            row[at], m_g[at] = luminosity(uniform(star, _LIGHT), bright[s], faint[s], edges, cumulative)
            # normal() uses two counters: 4 takes 8 and 9, 5 takes 10 and 11
            depth[at], colour[at] = normal(star, _OTHER), normal(star, _COLOUR)
            if not is_seen(m_g[at], modulus + depth_step * depth[at], shaded[s], offset[row[at]], colour[at], sight):
                continue
            position[at] = (cells[s] << _SHIFT) | (bits(star, _POINT) >> _REST)
            ident[at] = (cells[s] << _32) | (kind << _KIND) | np.uint64(number)
            chance[at], cell[at] = uniform(star, _PLACE), s
            at += 1
    return position[:at], ident[:at], cell[:at], row[:at], m_g[:at], depth[:at], colour[:at], chance[:at]
