"""The Milky Way along a line of sight: stars and dust at every distance.

Discs and halo follow Juric et al. (2008, ApJ 673, 864), the bar Dwek et al. (1995, ApJ 445, 716, model G2); where
their counts did not fit the sky (the halo's normalisation, the dust of the inner Galaxy), the numbers are ours.
"""

from __future__ import annotations

from functools import lru_cache

import numba
import numpy as np
from astropy.coordinates import Galactic, SkyCoord
from numpy.typing import NDArray

N_COMPONENTS = 4
"""Thin disc, thick disc, halo and bulge: the first of `csst_dask.simulation.population.POPULATIONS`."""
MODULUS_STEP = 0.1
MODULUS = np.arange(0.0, 20.6, MODULUS_STEP) + MODULUS_STEP / 2
"""Distance moduli that the line of sight is cut into, mag."""

_R0, _Z0 = 8.0, 0.025
_THIN_H, _THIN_L = 0.300, 2.6
_THICK_H, _THICK_L, _THICK = 0.9, 3.6, 0.12
_HALO, _HALO_N, _HALO_Q, _HALO_CUT = 0.0017, 2.77, 0.64, 100.0
_BAR_ANGLE, _BAR = np.deg2rad(20.0), (1.58, 0.62, 0.43)
_BAR_STARS = 0.8e10 / 0.40
_DUST, _DUST_H, _DUST_L, _DUST_END = 0.85, 0.090, 5.0, 14.0
_RING, _RING_R, _RING_WIDTH, _RING_H = 4.0, 4.2, 1.4, 0.065
_PC_MODULUS = np.log(10.0) / 5.0


def _bar_volume() -> float:
    """Integral of exp(-rs^2 / 2) with unit axes, by symmetry eight times one octant."""
    step = 0.05
    axis = np.arange(step / 2, 6.0, step)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    return float(8 * np.exp(-0.5 * np.sqrt((x**2 + y**2) ** 2 + z**4)).sum() * step**3)


@lru_cache(maxsize=1)
def bar_density() -> float:
    """Central density of the bar, stars per kpc3."""
    return _BAR_STARS / (_bar_volume() * _BAR[0] * _BAR[1] * _BAR[2])


@lru_cache(maxsize=1)
def galactic_rotation() -> NDArray[np.float64]:
    """(3, 3) matrix from ICRS to Galactic unit vectors."""
    axes = SkyCoord([0, 90, 0], [0, 0, 90], unit="deg").transform_to(Galactic()).cartesian.xyz.value
    return np.ascontiguousarray(axes)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _densities(x, y, z, bar, out):
    """Stars of each component at a place (kpc, Sun at (-R0, 0, z0)), against the disc's near the Sun or per kpc3."""
    r = np.sqrt(x * x + y * y)
    height = abs(z)
    hole = 1.0 - np.exp(-0.25 * r * r)
    out[0] = np.exp(-(r - _R0) / _THIN_L - (height - _Z0) / _THIN_H) * hole
    out[1] = _THICK * np.exp(-(r - _R0) / _THICK_L - (height - _Z0) / _THICK_H)
    a = np.sqrt(r * r + (z / _HALO_Q) ** 2 + 0.25)
    out[2] = _HALO * (_R0 / a) ** _HALO_N * (27.0 / a if a > 27.0 else 1.0) if a < _HALO_CUT else 0.0
    # the bar's near end points to positive longitude
    cos, sin = np.cos(_BAR_ANGLE), np.sin(_BAR_ANGLE)
    along, across = (x * cos - y * sin) / _BAR[0], (x * sin + y * cos) / _BAR[1]
    flat = along * along + across * across
    square = np.sqrt(flat * flat + (z / _BAR[2]) ** 4)
    taper = np.exp(-(((r - 3.5) / 0.5) ** 2)) if r > 3.5 else 1.0
    out[3] = bar * np.exp(-0.5 * square) * taper


@numba.njit(cache=True, nogil=True, error_model="numpy")
def line_of_sight(gx, gy, gz, modulus, norm, halo, bar, stars, dust):
    """Stars and dust along a direction.

    Parameters
    ----------
    gx, gy, gz : float
        Galactic unit vector.
    modulus : (n,) float64 array
        Distance moduli, evenly spaced, mag.
    norm : float
        Stars of the disc's luminosity function per pc3 near the Sun, all components together.
    halo : float
        Factor on the halo.
    bar : float
        Central density of the bar, stars per kpc3.
    stars : (4, n) float64 array
        Overwritten: stars of each component in each step of the modulus, per steradian.
    dust : (n,) float64 array
        Overwritten: A_V to each step's middle, mag.
    """
    step = modulus[1] - modulus[0]
    local = norm / (1.0 + _THICK + _HALO)
    rho = np.empty(4)
    extinction, before = 0.0, 0.0
    for k in range(modulus.shape[0]):
        d = 10.0 ** (0.2 * modulus[k] - 2.0)  # kpc
        _densities(-_R0 + d * gx, d * gy, _Z0 + d * gz, bar, rho)
        volume = (1000.0 * d) ** 3 * _PC_MODULUS * step
        for c in range(4):
            stars[c, k] = volume * (rho[c] * local if c < 3 else rho[c] * 1e-9)
        stars[2, k] *= halo
        # dust between the previous step and this one, in pieces short against its scale height
        pieces = int(min(max((d - before) * abs(gz) / 0.02, (d - before) / 0.25, 1.0), 40.0))
        width = (d - before) / pieces
        for piece in range(pieces):
            s = before + (piece + 0.5) * width
            x, y, z = -_R0 + s * gx, s * gy, _Z0 + s * gz
            r = np.sqrt(x * x + y * y)
            if r < _DUST_END and abs(z) < 12 * _DUST_H:
                layer = _DUST * np.exp(-(r - _R0) / _DUST_L - (abs(z) - _Z0) / _DUST_H)
                ring = _RING * np.exp(-0.5 * ((r - _RING_R) / _RING_WIDTH) ** 2 - abs(z) / _RING_H)
                extinction += (layer + ring) * width
        dust[k] = extinction
        before = d
