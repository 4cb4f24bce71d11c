"""Detector noise from a counter: the value at a pixel depends on the chip's key and the pixel alone.

No state is carried from pixel to pixel, so an image is the same whatever the number of threads, workers or
chunks, and the loop vectorises.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

GLOW_CELL = 16
"""Side of a pixel of the glow (light too faint and wide for the stars' stamps), pixel of the frame."""

_LN2 = np.float32(0.6931471805599453)
_HALF_PI = np.float32(np.pi / 2)


@intrinsic
def _bits_to_float(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), codegen


@intrinsic
def _float_to_bits(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), codegen


@numba.njit(inline="always")
def _mix(x):
    """A bijection of 32 bits with low bias (C. Wellons, hash prospector, 2018: lowbias32)."""
    x = np.uint32(x ^ (x >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@numba.njit(inline="always")
def _log(x):
    """Natural logarithm of a normal float32 (polynomial of Cephes logf, S. L. Moshier; error below 2e-7)."""
    bits = np.uint32(_float_to_bits(x) - np.uint32(0x3F3504F3))  # type: ignore[call-arg]
    exponent = np.float32(np.int32(bits) >> np.int32(23))
    m = _bits_to_float(np.uint32((bits & np.uint32(0x007FFFFF)) + np.uint32(0x3F3504F3))) - np.float32(1)
    p = np.float32(7.0376836292e-2)
    p = p * m + np.float32(-1.1514610310e-1)
    p = p * m + np.float32(1.1676998740e-1)
    p = p * m + np.float32(-1.2420140846e-1)
    p = p * m + np.float32(1.4249322787e-1)
    p = p * m + np.float32(-1.6668057665e-1)
    p = p * m + np.float32(2.0000714765e-1)
    p = p * m + np.float32(-2.4999993993e-1)
    p = p * m + np.float32(3.3333331174e-1)
    square = m * m
    return p * m * square - np.float32(0.5) * square + m + exponent * _LN2


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def normal_row(key0, key1, row, first, second):
    """Fill two halves of a row with independent standard normal deviates.

    Box & Muller (1958, Ann. Math. Stat. 29, 610) on two hashed counters for each pair of pixels.

    Parameters
    ----------
    key0, key1 : uint32
        Key of the chip.
    row : int
        Row number, pixel.
    first, second : (n,) float32 array
        Overwritten.
    """
    n = first.shape[0]
    start = np.uint32(row * n)
    for k in range(n):
        counter = np.uint32(start + np.uint32(k))
        h1 = _mix(np.uint32(_mix(np.uint32(counter + key0)) ^ key1))
        h2 = _mix(np.uint32(h1 + np.uint32(0x9E3779B9)))
        u = (np.float32(np.int32(h1 >> np.uint32(1))) + np.float32(0.5)) * np.float32(2.0**-31)
        radius = np.sqrt(np.float32(-2) * _log(u))
        angle = (np.float32(np.int32(h2 >> np.uint32(8))) * np.float32(2.0**-24) - np.float32(0.5)) * _HALF_PI
        z = angle * angle
        sine = np.float32(-1.9515295891e-4)
        sine = sine * z + np.float32(8.3321608736e-3)
        sine = sine * z + np.float32(-1.6666654611e-1)
        sine = sine * z * angle + angle
        cosine = np.float32(2.443315711809948e-5)
        cosine = cosine * z + np.float32(-1.388731625493765e-3)
        cosine = cosine * z + np.float32(4.166664568298827e-2)
        cosine = cosine * z * z - np.float32(0.5) * z + np.float32(1)
        swap = (h2 & np.uint32(1)) != 0
        a, b = sine if swap else cosine, cosine if swap else sine
        sign_a, sign_b = (h2 & np.uint32(2)) != 0, (h2 & np.uint32(4)) != 0
        first[k] = radius * (-a if sign_a else a)
        second[k] = radius * (-b if sign_b else b)


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _observe(band, y0, ny, level, slope_y, slope_x, dark, read_noise, exptime, full_well, key0, key1, glow, cell):
    nx = band.shape[1]
    half = nx // 2
    normal, light, slant = np.empty(nx, np.float32), np.empty(nx, np.float32), np.empty(nx, np.float32)
    for x in range(nx):
        slant[x] = np.float32(level * slope_x * ((x + 0.5) / nx - 0.5))
    floor, zero = np.float32(read_noise * read_noise), np.float32(0)
    per_second = np.float32(1 / exptime)
    for j in range(band.shape[0]):
        y = y0 + j
        normal_row(key0, key1, y, normal[:half], normal[half : 2 * half])
        if nx % 2:
            normal_row(key0, np.uint32(key1 ^ np.uint32(0x9E3779B9)), y, normal[-1:], normal[-1:])
        flat = np.float32(level * (1 + slope_y * ((y + 0.5) / ny - 0.5)) + dark)
        glow_row(glow, (y + 0.5) / cell, cell, light)
        pixels = band[j]
        for x in range(nx):
            value = pixels[x] + light[x] + slant[x] + flat
            seen = value + np.sqrt(max(value, zero) + floor) * normal[x]
            pixels[x] = (min(seen, full_well) - dark) * per_second


@numba.njit(cache=True)
def _spread(key0, key1):
    """Keys that are close together become far apart, or the counters under them would overlap."""
    first = _mix(np.uint32(key0 ^ _mix(np.uint32(key1 ^ np.uint32(0x9E3779B9)))))
    return first, _mix(np.uint32(key1 ^ first))


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def glow_row(glow, place, cell, out):
    """One row of the glow on every pixel, by linear interpolation."""
    j = int(place)
    v = np.float32(place - j)
    step = np.float32(1.0 / cell)
    for i in range((out.shape[0] + cell - 1) // cell):
        left = glow[j, i] * (np.float32(1) - v) + glow[j + 1, i] * v
        right = glow[j, i + 1] * (np.float32(1) - v) + glow[j + 1, i + 1] * v
        slope = (right - left) * step
        for k in range(min(cell, out.shape[0] - i * cell)):
            out[i * cell + k] = left + slope * (np.float32(k) + np.float32(0.5))


def observe(
    frame: NDArray[np.float32],
    *,
    sky: float,
    gradient: tuple[float, float],
    dark: float,
    read_noise: float,
    exptime: float,
    full_well: float,
    key: tuple[int, int],
    glow: NDArray[np.float32] | None = None,
    rows: tuple[int, int] | None = None,
) -> None:
    """Turn expected electrons from the sky's objects into a noisy, dark-subtracted count rate, in place.

    The noise is Gaussian with the Poisson variance of everything that falls on the pixel, plus read noise.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        In: electrons of stars and galaxies. Out: e-/s.
    sky, dark : float
        Electrons per pixel and exposure.
    gradient : (float, float)
        Relative change of the sky from the first to the last row and column.
    read_noise : float
        Electrons.
    exptime : float
        s.
    full_well : float
        Electrons; no pixel holds more.
    key : (int, int)
        Two 32-bit words; one key is one noise image.
    glow : float32 array, optional
        Coarse light to add, see `csst_dask.simulation.render.paint_stars`.
    rows : (int, int), optional
        Only rows [y0, y1); by default all. A pixel is the same either way.
    """
    y0, y1 = rows or (0, frame.shape[0])
    if glow is None:
        glow = np.zeros((frame.shape[0] // GLOW_CELL + 2, frame.shape[1] // GLOW_CELL + 2), np.float32)
    key0, key1 = _spread(np.uint32(key[0]), np.uint32(key[1]))
    _observe(
        frame[y0:y1], y0, frame.shape[0], np.float32(sky), gradient[0], gradient[1], np.float32(dark), read_noise,
        exptime, np.float32(full_well), np.uint32(key0), np.uint32(key1), glow, GLOW_CELL,
    )  # fmt: skip
