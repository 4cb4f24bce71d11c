"""Smooth random structure on the sky: clouds of dust, clumps of stars."""

from __future__ import annotations

import numba
import numpy as np

from csst_dask.simulation.counter import substream, uniform

SCALES = np.deg2rad(np.array([4.0, 2.0, 1.0, 0.5, 0.25, 0.125]))
"""Sizes of the structure, rad."""
_POWER = 0.5
"""Structure of half the size is 2**-_POWER as strong."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _lattice(key, i, j, k):
    n = (np.uint64(i + 2**20) << np.uint64(42)) | (np.uint64(j + 2**20) << np.uint64(21)) | np.uint64(k + 2**20)
    return uniform(key, n) - 0.5


@numba.njit(cache=True, nogil=True, error_model="numpy")
def structure(key, x, y, z):
    """Value of a random field of mean 0 and variance 1 in a direction.

    Value noise (K. Perlin 1985, SIGGRAPH 19, 287) on cubic lattices that the unit sphere cuts through, added up over
    `SCALES`: seamless over the whole sky, and a function of the place alone.

    Parameters
    ----------
    key : uint64
    x, y, z : float
        Unit vector.

    Returns
    -------
    float
    """
    total, power = 0.0, 0.0
    for octave in range(SCALES.shape[0]):
        scale, weight = 1.0 / SCALES[octave], 2.0 ** (-_POWER * octave)
        px, py, pz = x * scale, y * scale, z * scale
        i, j, k = np.floor(px), np.floor(py), np.floor(pz)
        u, v, w = px - i, py - j, pz - k
        u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
        level, value, square = substream(key, np.uint64(octave)), 0.0, 0.0
        for corner in range(8):
            a, b, c = corner & 1, (corner >> 1) & 1, corner >> 2
            share = (u if a else 1 - u) * (v if b else 1 - v) * (w if c else 1 - w)
            value += share * _lattice(level, int(i) + a, int(j) + b, int(k) + c)
            square += share * share
        # a mean of corners varies less in the middle of a lattice cell than at a corner
        total += weight * value / np.sqrt(square / 12.0)
        power += weight * weight
    return total / np.sqrt(power)
