"""Compiled loops over pixels: decode raw rows, and sum them into the grid of blocks.

Integer weights keep the bookkeeping exact. A frame of NY rows is shared out over OY output rows; measured in
units of 1/OY of a pixel, input row y covers [y*OY, (y+1)*OY) and output row i covers [i*NY, (i+1)*NY), so every
overlap is a whole number, the overlaps of one pixel add up to OY, and the number of valid pixels comes out exact.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

FLOAT32_MAX = np.float32(np.finfo(np.float32).max)
COLUMN_TILE = 2304
"""Columns summed at a time, so that four accumulator rows stay in the innermost caches."""
SAMPLE_ROWS = 16
"""Every 16th row is sampled for the sky level,"""
SAMPLE_COLUMNS = 8
"""at every 8th pixel, the first of which moves from one sampled row to the next."""
FLAG_RUN = 128
"""Flags that are tested together for being all zero."""


@intrinsic
def _float_of_swapped_bits(typingctx, bits):
    """Big-endian bits, read as a native uint32, to the float32 that they stand for."""

    def codegen(context, builder, signature, args):
        swapped = builder.bswap(args[0])
        return builder.bitcast(swapped, context.get_value_type(types.float32))

    return types.float32(types.uint32), codegen


def _value(pixel):
    """float32 value of one stored pixel."""
    raise TypeError("compiled code only")


@overload(_value, inline="always")
def _value_overload(pixel):
    if pixel == types.uint32:
        return lambda pixel: _float_of_swapped_bits(pixel)  # type: ignore[call-arg]
    return lambda pixel: np.float32(pixel)


def _row(flags, y, x0, x1):
    """Part of a row; a slice from zero lets the compiler vectorise, which signed indices would prevent."""
    raise TypeError("compiled code only")


@overload(_row, inline="always")
def _row_overload(flags, y, x0, x1):
    if isinstance(flags, types.NoneType):
        return lambda flags, y, x0, x1: None
    return lambda flags, y, x0, x1: flags[y, x0:x1]


def _good(value, flags, k, invalid):
    """Whether a pixel is finite and no flag makes it invalid."""
    raise TypeError("compiled code only")


@overload(_good, inline="always")
def _good_overload(value, flags, k, invalid):
    if isinstance(flags, types.NoneType):
        return lambda value, flags, k, invalid: abs(value) <= FLOAT32_MAX
    return lambda value, flags, k, invalid: (abs(value) <= FLOAT32_MAX) & ((flags[k] & invalid) == 0)


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _add_rows(pixels, flags, invalid, row, stop, x0, x1, shift, weight, unit, count, first, second, peak):
    """Add whole rows (all of one weight) to the accumulators of columns [x0, x1)."""
    zero, low = np.float32(0), np.float32(-np.inf)
    while row + 4 <= stop:
        p, q = pixels[row, x0:x1], pixels[row + 1, x0:x1]
        r, s = pixels[row + 2, x0:x1], pixels[row + 3, x0:x1]
        fp, fq = _row(flags, row, x0, x1), _row(flags, row + 1, x0, x1)
        fr, fs = _row(flags, row + 2, x0, x1), _row(flags, row + 3, x0, x1)
        for k in range(p.shape[0]):
            a, b, c, d = _value(p[k]), _value(q[k]), _value(r[k]), _value(s[k])
            good_a, good_b = _good(a, fp, k, invalid), _good(b, fq, k, invalid)
            good_c, good_d = _good(c, fr, k, invalid), _good(d, fs, k, invalid)
            u, v = a - shift if good_a else zero, b - shift if good_b else zero
            w, z = c - shift if good_c else zero, d - shift if good_d else zero
            count[k] += ((unit if good_a else zero) + (unit if good_b else zero)) + (
                (unit if good_c else zero) + (unit if good_d else zero)
            )
            first[k] += weight * ((u + v) + (w + z))
            second[k] += weight * ((u * u + v * v) + (w * w + z * z))
            a, b = a if good_a else low, b if good_b else low
            c, d = c if good_c else low, d if good_d else low
            high, other = a if a > b else b, c if c > d else d
            high = high if high > other else other
            peak[k] = high if high > peak[k] else peak[k]
        row += 4
    while row < stop:
        p, fp = pixels[row, x0:x1], _row(flags, row, x0, x1)
        for k in range(p.shape[0]):
            a = _value(p[k])
            good_a = _good(a, fp, k, invalid)
            u = a - shift if good_a else zero
            count[k] += unit if good_a else zero
            first[k] += weight * u
            second[k] += weight * (u * u)
            a = a if good_a else low
            peak[k] = a if a > peak[k] else peak[k]
        row += 1


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"reassoc", "nsz"})
def _totals(count, first, second):
    """Sums in float64; their order is free, so that they vectorise."""
    n, s, q = 0.0, 0.0, 0.0
    for k in range(count.shape[0]):
        n += count[k]
        s += first[k]
        q += second[k]
    return n, s, q


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"nnan", "nsz"})
def _highest(values):
    """Maximum of values of which none is NaN."""
    high = np.float32(-np.inf)
    for k in range(values.shape[0]):
        high = values[k] if values[k] > high else high
    return high


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _fold_columns(x0, x1, nx, ox, count, first, second, peak, sums, top):
    """Share frame columns [x0, x1), held from accumulator 0 on, out over one output row."""
    i = x0 * ox // nx
    left = i * nx // ox
    head = i * nx - left * ox  # of the border column, what belongs to the neighbour on the left
    while i * nx < x1 * ox:
        right = (i + 1) * nx // ox
        inside = (i + 1) * nx - right * ox
        tail = ox - inside if inside > 0 else 0
        a, b = left - x0, right - x0 + (1 if inside > 0 else 0)
        if a < 0:
            a, head = 0, 0
        if b > x1 - x0:
            b, tail = x1 - x0, 0
        n, s, q = _totals(count[a:b], first[a:b], second[a:b])
        # the border columns were added whole: take off what belongs to the neighbours
        sums[0, i] += n * ox - count[a] * head - count[b - 1] * tail
        sums[1, i] += s - (first[a] * head + first[b - 1] * tail) / ox
        sums[2, i] += q - (second[a] * head + second[b - 1] * tail) / ox
        top[i] = max(top[i], _highest(peak[a:b]))
        i, left, head = i + 1, right, inside


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def accumulate(pixels, flags, invalid, y0, x0, ny, nx, shift, i_start, i_stop, sums, top):
    """Add one chunk of a frame to the sums of output rows [i_start, i_stop).

    Parameters
    ----------
    pixels : (h, w) float32 array, or uint32 array holding the bits of big-endian float32
    flags : (h, w) unsigned integer array, or None
    invalid : unsigned integer of the flags' type
        A pixel with any of these bits is left out, as is one that is not finite.
    y0, x0 : int
        Frame position of the chunk's first pixel.
    ny, nx : int
        Frame shape, pixel.
    shift : float32
        Subtracted before squaring.
    i_start, i_stop : int
        Output rows that this call may touch.
    sums : (3, oy, ox) float64 array
        Weight (in units of 1/(oy ox) pixel), sum and sum of squares of ``pixel - shift``; added to.
    top : (oy, ox) float32 array
        Running maximum; updated.
    """
    h, w = pixels.shape
    oy, ox = top.shape
    count = np.empty(COLUMN_TILE, np.float32)
    first = np.empty(COLUMN_TILE, np.float32)
    second = np.empty(COLUMN_TILE, np.float32)
    peak = np.empty(COLUMN_TILE, np.float32)
    for i in range(max(i_start, y0 * oy // ny), min(i_stop, ((y0 + h) * oy - 1) // ny + 1)):
        row, stop = max(i * ny // oy, y0), min(((i + 1) * ny + oy - 1) // oy, y0 + h)
        head = min((i + 1) * ny, (row + 1) * oy) - max(i * ny, row * oy)
        tail = min((i + 1) * ny, stop * oy) - max(i * ny, (stop - 1) * oy)
        for x in range(0, w, COLUMN_TILE):
            end = min(x + COLUMN_TILE, w)
            count[:] = 0
            first[:] = 0
            second[:] = 0
            peak[:] = -np.inf
            a, b = row, stop
            if head < oy:
                _add_rows(
                    pixels, flags, invalid, a - y0, a + 1 - y0, x, end, shift,
                    np.float32(head / oy), np.float32(head), count, first, second, peak,
                )  # fmt: skip
                a += 1
            if tail < oy and b > a:
                b -= 1
                _add_rows(
                    pixels, flags, invalid, b - y0, b + 1 - y0, x, end, shift,
                    np.float32(tail / oy), np.float32(tail), count, first, second, peak,
                )  # fmt: skip
            _add_rows(
                pixels, flags, invalid, a - y0, b - y0, x, end, shift,
                np.float32(1), np.float32(oy), count, first, second, peak,
            )  # fmt: skip
            _fold_columns(x0 + x, x0 + end, nx, ox, count, first, second, peak, sums[:, i], top[i])


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def sample_points(pixels, flags, invalid, y0, x0, ny, nx, points):
    """Add a chunk's share of the bilinear point samples (no antialiasing, ``align_corners=False``).

    Parameters
    ----------
    pixels, flags, invalid, y0, x0, ny, nx
        As in `accumulate`.
    points : (2, oy, ox) float64 array
        Samples of the zero-filled frame and of its validity; added to.
    """
    h, w = pixels.shape
    oy, ox = points.shape[1:]
    for i in range(oy):
        yy = max((i + 0.5) * ny / oy - 0.5, 0.0)
        upper = int(yy)
        for p in range(2):
            y = min(upper + p, ny - 1) - y0
            weight_y = (yy - upper) if p else 1 - (yy - upper)
            if y < 0 or y >= h or weight_y == 0:
                continue
            for j in range(ox):
                xx = max((j + 0.5) * nx / ox - 0.5, 0.0)
                left = int(xx)
                for q in range(2):
                    x = min(left + q, nx - 1) - x0
                    weight = weight_y * ((xx - left) if q else 1 - (xx - left))
                    if x < 0 or x >= w or weight == 0:
                        continue
                    value = _value(pixels[y, x])
                    if _good(value, _row(flags, y, x, x + 1), 0, invalid):
                        points[0, i, j] += weight * value
                        points[1, i, j] += weight


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def sample_sky(pixels, flags, invalid, y0, x0, sample):
    """Copy a chunk's share of the fixed sparse sample; invalid pixels stay NaN.

    Parameters
    ----------
    pixels, flags, invalid, y0, x0
        As in `accumulate`.
    sample : (ny // SAMPLE_ROWS, nx // SAMPLE_COLUMNS) float32 array
        Filled with NaN before the first chunk.
    """
    h, w = pixels.shape
    for k in range(sample.shape[0]):
        y = k * SAMPLE_ROWS + SAMPLE_ROWS // 2 - y0
        if y < 0 or y >= h:
            continue
        for j in range(sample.shape[1]):
            x = j * SAMPLE_COLUMNS + k % SAMPLE_COLUMNS - x0
            if x < 0 or x >= w:
                continue
            value = _value(pixels[y, x])
            if _good(value, _row(flags, y, x, x + 1), 0, invalid):
                sample[k, j] = value


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _mark_flags(flags, table, bits):
    """Or the mask bits of a row of flags in; flags are rare, so whole runs are looked at before single pixels."""
    whole = flags.shape[0] // FLAG_RUN * FLAG_RUN
    for x in range(0, whole, FLAG_RUN):
        run, target, found = flags[x : x + FLAG_RUN], bits[x : x + FLAG_RUN], np.uint16(0)
        for k in range(FLAG_RUN):
            found = np.uint16(found | run[k])
        if found != 0:
            for k in range(FLAG_RUN):
                target[k] |= table[run[k]]
    for x in range(whole, flags.shape[0]):
        bits[x] |= table[flags[x]]


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def decode_rows(raw, flags, weights, table, nonfinite, bad, image, mask):
    """Turn raw rows of an image, its flags and its weights into native pixels and mask bytes.

    Parameters
    ----------
    raw : (h, w) float32 array, or uint32 array holding the bits of big-endian float32
    flags : (h, w) uint16 array, or None
    weights : array like ``raw``, or None
        A weight that is not positive marks a bad pixel.
    table : (65536,) uint8 array
        Flag value to mask bits.
    nonfinite, bad : uint8
        Mask bits for a pixel that is not finite and for one without weight.
    image : (h, w) float32 array, or None
        Receives the pixels. Without it they are not looked at, and none is marked as not finite.
    mask : (h, w) uint8 array
        Receives the mask bits.
    """
    for y in range(raw.shape[0]):
        bits = mask[y, :]
        if image is None:
            bits[:] = 0
        else:
            source, target = raw[y, :], image[y, :]
            for x in range(source.shape[0]):
                value = _value(source[x])
                target[x] = value
                bits[x] = np.uint8(0) if abs(value) <= FLOAT32_MAX else nonfinite
        if weights is not None:
            weight = weights[y, :]
            for x in range(weight.shape[0]):
                bits[x] |= np.uint8(0) if _value(weight[x]) > 0 else bad
        if flags is not None:
            _mark_flags(flags[y, :], table, bits)
