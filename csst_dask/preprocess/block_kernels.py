"""Compiled loops over the block maps of a chip: their scaling, and what statistics and histograms need.

All take (iy, ix) float32 maps and ``seen``, the bool map of the blocks that count; values elsewhere mean nothing.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

SUMS = {"reassoc", "nsz", "contract"}
"""Sums in float64, whose order is free, so that they vectorise."""

SQRT_2, LOG_2, LOG10_E = math.sqrt(2), math.log(2), 0.4342944819032518


@intrinsic
def _bits(typingctx, value):
    """Bits of a float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), codegen


@intrinsic
def _float_of_bits(typingctx, bits):
    """float32 of its bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), codegen


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def log(value):
    """Natural logarithm of a float64 that is a positive normal number in float32, to some 1e-13; loops of it vectorise.

    With value = 2^e m, 1 <= m < 2: log(m) = log(2) / 2 + 2 artanh(s), s = (m - sqrt(2)) / (m + sqrt(2)), |s| < 0.172.
    """
    exponent = (_bits(np.float32(value)) >> np.int32(23)) - np.int32(127)  # type: ignore[call-arg]
    m = value * np.float64(_float_of_bits((np.int32(127) - exponent) << np.int32(23)))
    s = (m - SQRT_2) / (m + SQRT_2)
    q = s * s
    series = 1 / 15 + q / 17
    series = 1 / 9 + q * (1 / 11 + q * (1 / 13 + q * series))
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * series)))
    return (np.float64(exponent) + 0.5) * LOG_2 + 2 * s * series


@numba.njit(cache=True, nogil=True, error_model="numpy")
def scale(mean, peak, scatter, valid, sky, sigma, largest, out, seen):
    """Fill (3, iy, ix) ``out`` with mean and maximum above the sky and scatter, in sky sigmas, and ``seen``.

    Returns the number of blocks that are seen: with a valid pixel, and no value beyond ``largest``.
    """
    count = 0
    for y in range(mean.shape[0]):
        for x in range(mean.shape[1]):
            a = np.float32((mean[y, x] - sky) / sigma)
            p = np.float32((peak[y, x] - sky) / sigma)
            s = np.float32(scatter[y, x] / sigma)
            good = (valid[y, x] > 0) & (abs(a) <= largest) & (abs(p) <= largest) & (abs(s) <= largest)
            out[0, y, x], out[1, y, x], out[2, y, x], seen[y, x] = a, p, s, good
            count += good
    return count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def compress(scaled, softening, out):
    """Fill (3, iy, ix) ``out`` with what `statistics.compressed` gives, but for rounding."""
    _asinh(scaled[0], softening, out[0])
    _asinh(scaled[1], np.float32(3), out[1])
    _log10(scaled[2], out[2])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _asinh(values, softening, out):
    """Fill ``out`` with asinh(values / softening) / 3."""
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            z = np.float64(values[y, x] / softening)
            size = log(abs(z) + np.sqrt(z * z + 1)) / 3
            out[y, x] = size if z > 0 else -size


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _log10(values, out):
    """Fill ``out`` with log10 of values, which are at least 1e-3."""
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            out[y, x] = log(np.float64(max(values[y, x], np.float32(1e-3)))) * LOG10_E


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=SUMS)
def average(values, seen):
    """Mean in float64."""
    total, count = 0.0, 0
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            total += np.float64(values[y, x]) if seen[y, x] else 0.0
            count += seen[y, x]
    return total / count


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=SUMS)
def moments(values, seen):
    """Mean, and means of the second, third and fourth power of what differs from it, in float64."""
    mean = average(values, seen)
    second, third, fourth, count = 0.0, 0.0, 0.0, 0
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            rest = np.float64(values[y, x]) - mean if seen[y, x] else 0.0
            square = rest * rest
            second += square
            third += square * rest
            fourth += square * square
            count += seen[y, x]
    return mean, second / count, third / count, fourth / count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def count_above(values, seen, limits):
    """Blocks above each of the limits: (k,) int64 for (k,) float32."""
    found = np.zeros(limits.size, np.int64)
    for k in range(limits.size):
        limit, count = limits[k], 0
        for y in range(values.shape[0]):
            row = np.int32(0)  # narrow, so that the loop vectorises well
            for x in range(values.shape[1]):
                row += np.int32(seen[y, x] & (values[y, x] > limit))
            count += row  # type: ignore[assignment]
        found[k] = count
    return found


@numba.njit(cache=True, nogil=True, error_model="numpy")
def mark_summits(values, seen, out):
    """Fill the bool map ``out`` with the blocks that are brighter than all seen ones of the up to 8 around them."""
    ny, nx = values.shape
    low = np.float32(-np.inf)
    rows = np.full((3, nx + 2), low, np.float32)  # the row before, this one and the next, framed by nothing
    for x in range(nx):
        rows[1, x + 1] = values[0, x] if seen[0, x] else low
    for y in range(ny):
        before, here, after = rows[(y + 3) % 3], rows[(y + 1) % 3], rows[(y + 2) % 3]
        if y + 1 < ny:
            for x in range(nx):
                after[x + 1] = values[y + 1, x] if seen[y + 1, x] else low
        else:
            after[:] = low
        for x in range(nx):
            left = max(max(before[x], here[x]), after[x])
            middle = max(before[x + 1], after[x + 1])
            right = max(max(before[x + 2], here[x + 2]), after[x + 2])
            out[y, x] = here[x + 1] > max(max(left, middle), right)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _share(part, whole):
    """Part of the whole, from 1e-3 to 10; 10, the upper end, where noise has left nothing of the whole."""
    return min(max(part / whole, 1e-3), 10.0) if whole > 0 else 10.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def concentration(mean, peak, scatter, valid, seen, summits, block_pixels, sources, compact, tag):
    """Shares of a block's light and of its squared light that are in its brightest pixel, where it holds a source.

    Parameters
    ----------
    mean, peak, scatter : (iy, ix) float32 arrays
        In sky sigmas.
    valid : (iy, ix) float32 array
        Valid fraction.
    seen, summits : (iy, ix) bool arrays
        The second as `mark_summits` finds them in ``peak``.
    block_pixels : float
        Pixels of a block.
    sources : (k,) float32 array
        Ascending limits of the brightest pixel; above the first one there is a source.
    compact : (m,) float64 array
        Limits of the share of the squared light.
    tag : int
        Lowest bits of a share that hold the number of limits that its source exceeds.

    Returns
    -------
    shares : (2, n) float64 array
        Of the n sources, of the light and of its square.
    counts : (k, m) int64 array
        Local maxima of ``peak`` that exceed a limit of ``sources`` and one of ``compact``.
    """
    pixel = np.float32(1 / block_pixels)
    shares = np.empty((2, seen.size), np.float64)
    bits = shares.view(np.int64)
    counts, n = np.zeros((sources.size, compact.size), np.int64), 0
    for y in range(seen.shape[0]):
        for x in range(seen.shape[1]):
            if not (seen[y, x] and peak[y, x] > sources[0]):
                continue
            level = 0
            for k in range(sources.size):
                level += peak[y, x] > sources[k]
            pixels = block_pixels * np.float64(min(max(valid[y, x], pixel), np.float32(1)))
            m, p, s = np.float64(mean[y, x]), np.float64(peak[y, x]), np.float64(scatter[y, x])
            sharpness = _share(p * p, pixels * (s * s - 1 + m * m))
            shares[0, n], shares[1, n] = _share(p, pixels * m), sharpness
            bits[0, n], bits[1, n] = bits[0, n] & ~tag | level, bits[1, n] & ~tag | level
            n += 1
            if summits[y, x]:
                for k in range(level):
                    for j in range(compact.size):
                        counts[k, j] += sharpness > compact[j]
    return shares[:, :n].copy(), counts


@numba.njit(cache=True, nogil=True, error_model="numpy")
def of_level(shares, tag, level):
    """Those of (n,) float64 shares whose lowest bits hold more than a level."""
    bits, found, n = shares.view(np.int64), np.empty(shares.size, np.float64), 0
    for k in range(shares.size):
        found[n] = shares[k]
        n += (bits[k] & tag) > level
    return found[:n]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=SUMS)
def _product(values, seen, mean, down, along):
    """Sum over pairs of blocks, so many rows and columns apart, of the product of what differs from the mean; pairs."""
    total, pairs = 0.0, 0
    for y in range(values.shape[0] - down):
        for x in range(values.shape[1] - along):
            both = seen[y, x] & seen[y + down, x + along]
            first, second = np.float64(values[y, x]) - mean, np.float64(values[y + down, x + along]) - mean
            total += first * second if both else 0.0
            pairs += both
    return total, pairs


@numba.njit(cache=True, nogil=True, error_model="numpy")
def autocorrelation(values, seen, mean, variance, lag):
    """Mean over rows and columns; 0 where the map is constant or has no such pair."""
    down, pairs = _product(values, seen, mean, lag, 0)
    along, others = _product(values, seen, mean, 0, lag)
    if pairs + others == 0 or not variance > 1e-12:
        return 0.0
    return (down + along) / ((pairs + others) * variance)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def bin_of(values, edges, bins):
    """Fill (n,) uint8 ``bins`` with the number of (k,) float32 ``edges`` below each of (n,) float32 values."""
    bins[:] = 0
    for k in range(edges.size):
        edge = edges[k]
        for i in range(values.size):
            bins[i] += np.uint8(values[i] > edge)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def joint_counts(first, second, seen, out):
    """Add (iy, ix) pairs of bins to the (k, k) int64 counts ``out``."""
    for y in range(seen.shape[0]):
        for x in range(seen.shape[1]):
            if seen[y, x]:
                out[first[y, x], second[y, x]] += 1
