"""Compiled loops that look for peaks: fill rows, measure the local sky, and search a band of rows.

A peak stands out of the sky of its own cell; cells are small rectangles of pixels, and a band is a row of cells.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from csst_dask.preprocess.kernels import FLAG_RUN, _value

HALO = 2
"""Rows around a band that its peaks see: light is summed over 5 x 5 pixels."""
INVALID = np.float32(np.inf)
"""Stands for a pixel that is invalid or off the frame: no peak is its neighbour, and none is brighter. NaN does so too,
and a peak beside -inf has no light."""
FLAT = np.float32(0.9)
"""Four pixels of 3 x 3 are as bright as each other where the least has this share of the brightest."""


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def swap_rows(bits, out):
    """Copy (h, w) bits of big-endian float32 to (h, w) float32 ``out``."""
    for y in range(bits.shape[0]):
        source, target = bits[y, :], out[y, :]
        for x in range(source.shape[0]):
            target[x] = _value(source[x])


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def blank(flags, invalid, out):
    """Make pixels `INVALID` where a flag is set; flags are rare, so whole runs are looked at before single pixels.

    Parameters
    ----------
    flags : (h, w) unsigned integer array
    invalid : unsigned integer of the flags' type
    out : (h, w) float32 array
    """
    for y in range(flags.shape[0]):
        row, target = flags[y, :], out[y, :]
        for start in range(0, row.shape[0], FLAG_RUN):
            run, some = row[start : start + FLAG_RUN], np.uint16(0)
            for k in range(run.shape[0]):
                some = np.uint16(some | run[k])
            if some & invalid:
                part = target[start : start + FLAG_RUN]
                for k in range(run.shape[0]):
                    part[k] = INVALID if run[k] & invalid else part[k]


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def flagged_runs(flags, bit, y0, x0, found):
    """Runs of pixels that carry a flag: rows of (y, first x, one past the last x); returns their number.

    A number beyond the room in ``found`` says how much is needed.
    """
    n, width = 0, flags.shape[1]
    for y in range(flags.shape[0]):
        row, x = flags[y, :], 0
        while x < width:
            if x + FLAG_RUN <= width:
                run, some = row[x : x + FLAG_RUN], np.uint16(0)
                for k in range(FLAG_RUN):
                    some = np.uint16(some | run[k])
                if some & bit == 0:
                    x += FLAG_RUN
                    continue
            end = min(x + FLAG_RUN, width)
            while x < end:
                if row[x] & bit:
                    first = x
                    while x < width and row[x] & bit:
                        x += 1
                    if n < found.shape[0]:
                        found[n, 0], found[n, 1], found[n, 2] = y0 + y, x0 + first, x0 + x
                    n += 1
                else:
                    x += 1
    return n


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def sample_cells(rows, edges, step_y, step_x, out):
    """Copy every ``step_y``-th row and ``step_x``-th column of each cell of a band into (cells, n) ``out``."""
    out[:] = INVALID
    for i in range(edges.shape[0] - 1):
        n = 0
        for y in range(0, rows.shape[0], step_y):
            for x in range(edges[i], edges[i + 1], step_x):
                out[i, n] = rows[y, x]
                n += 1


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _is_tied(ordered):
    """Whether sorted values are to be spread, as `csst_dask.preprocess.measure.sky_of_sample` decides."""
    n, groups, most, count = ordered.shape[0], np.int32(1), 1, 1
    one, other = ordered[1:], ordered[:-1]
    for k in range(one.shape[0]):
        groups = np.int32(groups + np.int32(one[k] != other[k]))
    if 2 * groups > n:
        return False
    for k in range(1, n):
        count = count + 1 if ordered[k] == ordered[k - 1] else 1
        most = max(most, count)
    return 2 * most <= n


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _spread(ordered, spread):
    """Fill (n,) float64 ``spread`` with sorted values, each group of equals from half way to the value before to half
    way to the next."""
    n, start, previous = ordered.shape[0], 0, 0.0
    while start < n:
        stop = start + 1
        while stop < n and ordered[stop] == ordered[start]:
            stop += 1
        value = np.float64(ordered[start])
        upper = 0.5 * (np.float64(ordered[stop]) + value) if stop < n else 2 * value - previous
        lower = previous if start > 0 else 2 * value - upper
        for k in range(start, stop):
            spread[k] = lower + (upper - lower) * ((k - start + 0.5) / (stop - start))
        previous, start = upper, stop


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _median(ordered):
    n = ordered.shape[0]
    return 0.5 * (np.float64(ordered[(n - 1) // 2]) + np.float64(ordered[n // 2]))


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _distance(ordered, level, k):
    """The k-th smallest distance of sorted values from a level, from 0 on.

    The k + 1 nearest values are neighbours: the first of them is found by bisection.
    """
    low, high = 0, ordered.shape[0] - k - 1
    while low < high:
        middle = (low + high) // 2
        if level - ordered[middle] > ordered[middle + k + 1] - level:
            low = middle + 1
        else:
            high = middle
    return max(level - np.float64(ordered[low]), np.float64(ordered[low + k]) - level)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _level_and_scatter(ordered):
    n, level = ordered.shape[0], _median(ordered)
    return level, 1.4826 * 0.5 * (_distance(ordered, level, (n - 1) // 2) + _distance(ordered, level, n // 2))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def cell_levels(ordered, least, sky, noise):
    """Median and 1.4826 median absolute deviation of each cell's sorted sample, or NaN of too few.

    Parameters
    ----------
    ordered : (cells, n) float32 array
        Valid samples, then `INVALID` and NaN.
    least : int
        Samples that a cell needs.
    sky, noise : (cells,) float64 arrays
        Filled.
    """
    values = np.empty(ordered.shape[1], np.float64)
    for i in range(ordered.shape[0]):
        n = ordered.shape[1]
        while n > 0 and not ordered[i, n - 1] < INVALID:
            n -= 1
        sky[i] = noise[i] = np.nan
        if n < max(least, 1):
            continue
        if _is_tied(ordered[i, :n]):
            _spread(ordered[i, :n], values[:n])
            sky[i], noise[i] = _level_and_scatter(values[:n])
        else:
            sky[i], noise[i] = _level_and_scatter(ordered[i, :n])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def smooth_cells(levels, row, amplifier_y, amplifier_x, out):
    """Medians over the up to 3 x 3 good cells around each cell of a row that belong to its amplifier; NaN of none.

    Parameters
    ----------
    levels : (sy, sx) float64 array
        NaN where a cell is not good.
    row : int
    amplifier_y, amplifier_x : int
        Cells of an amplifier along each axis.
    out : (sx,) float64 array
    """
    near = np.empty(9, np.float64)
    top = row // amplifier_y * amplifier_y
    for x in range(levels.shape[1]):
        left, n = x // amplifier_x * amplifier_x, 0
        for j in range(max(row - 1, top), min(row + 2, top + amplifier_y)):
            for i in range(max(x - 1, left), min(x + 2, left + amplifier_x)):
                value = levels[j, i]
                if not math.isnan(value):
                    k = n
                    while k > 0 and near[k - 1] > value:
                        near[k] = near[k - 1]
                        k -= 1
                    near[k] = value
                    n += 1
        out[x] = 0.5 * (near[(n - 1) // 2] + near[n // 2]) if n else np.nan


@intrinsic
def _exponent(typingctx, value):
    """Bits of a float64 as an integer: over 2^52 they are the logarithm to base 2, to 0.09, plus 1023."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.int64))

    return types.int64(types.float64), codegen


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", inline="always")
def _step(guess, value, edges):
    """Step of an axis by its lower edges, near a guess of it; what lies beyond goes to the end step."""
    last = edges.shape[0] - 1
    k = int(min(max(guess, 0.0), np.float64(last)))
    while k < last and value >= edges[k + 1]:
        k += 1
    while k > 0 and value < edges[k]:
        k -= 1
    return k


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", inline="always")
def _light(rows, y, x, sky):
    """Light of a pixel over the sky; none of one that is invalid or off the frame."""
    if x < 0 or x >= rows.shape[1]:
        return 0.0
    pixel = rows[y, x]
    return np.float64(pixel) - sky if abs(pixel) < INVALID else 0.0


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", inline="always")
def _is_bright(value, sky, noise, bright):
    return noise > 0 and value < INVALID and np.float64(value) >= sky + bright * noise


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _mark_maxima(here, low, marks):
    """Mark pixels of a row that reach their level, and are brighter than the one before and not less than the next.

    Those at its ends are left out: the first mark is of the second pixel.
    """
    for k in range(low.shape[0] - 2):
        value = here[k + 1]
        marks[k] = (value >= low[k + 1]) & (here[k] < value) & (here[k + 2] <= value)


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _reaches(run, high):
    """Whether a pixel reaches a level."""
    some = np.uint8(0)
    for k in range(run.shape[0]):
        some = np.uint8(some | (run[k] >= high))
    return some != 0


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _flat_level(rows, y, x):
    """The fourth of the 3 x 3 pixels about one by brightness, where it is `FLAT` of the first or more, else 0."""
    first = second = third = fourth = np.float32(0)
    for j in range(y - 1, y + 2):
        for i in range(x - 1, x + 2):
            value = rows[j, i]
            if not value < INVALID:
                continue
            if value > first:
                first, second, third, fourth = value, first, second, third
            elif value > second:
                second, third, fourth = value, second, third
            elif value > third:
                third, fourth = value, third
            elif value > fourth:
                fourth = value
    return fourth if fourth >= FLAT * first else np.float32(0)


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def search_band(
    rows,
    y0,
    frame,
    edges,
    sky,
    noise,
    least,
    threshold,
    bright,
    flux,
    concentration,
    sharpness,
    shape_of,
    peaks,
    tiles,
    counted,
    high,
    reached,
):
    """Count the peaks of a band.

    Parameters
    ----------
    rows : (h + 4, nx) float32 array
        The band between two rows before and two after it; `INVALID` or not finite where a pixel is not valid.
    y0 : int
        Frame row of the band's first.
    frame : (int, int)
    edges : (sx + 1,) int array
        Columns where cells begin.
    sky, noise : (sx,) float64 array
        Of the cells; NaN where no peak is sought.
    least, threshold : float
        A peak's pixel exceeds the sky by so many times the noise, its 3 x 3 light 3 times the noise by so many.
    bright : float
        Pixels that exceed the sky by so many times the noise are bright.
    flux, concentration, sharpness : (k,) float64 arrays
        Lower edges of the steps of the 3 x 3 light (in even steps of its logarithm), of 3 x 3 over 5 x 5 light, and
        of peak over 3 x 3 light.
    shape_of : (concentration, sharpness) uint8 array
        Coarse shape of each step.
    peaks : (flux, concentration, sharpness) uint32 array
        Added to.
    tiles : (ty, tx, flux, shape) uint32 array
        Added to.
    counted : (m, 5) int32 array
        Filled with (y, x, step of flux, of concentration, of sharpness) of the peaks of bright pixels.
    high : float32
    reached : (h + 4,) bool array
        Filled: whether a pixel of the row is as bright as ``high``.

    Returns
    -------
    int
        Number of peaks in ``counted``.
    """
    ny, nx = frame
    n_ty, n_tx = tiles.shape[0], tiles.shape[1]
    flux_per, flux_at = 1 / np.log2(flux[1] / flux[0]), np.log2(flux[0])
    concentration_per = 1 / (concentration[1] - concentration[0])
    sharpness_per = 1 / (sharpness[1] - sharpness[0])
    low, cell = np.empty(nx, np.float32), np.empty(nx, np.int32)
    n_counted = 0
    for i in range(sky.shape[0]):
        level = np.float32(sky[i] + least * noise[i])
        low[edges[i] : edges[i + 1]] = level - abs(level) * np.float32(2e-7)  # rounding leaves no candidate out
        cell[edges[i] : edges[i + 1]] = i
    marks = np.zeros((nx + 7) // 8 * 8, np.uint8)
    words, places = marks.view(np.uint64), np.empty(marks.size + 1, np.int64)
    for y in range(HALO, rows.shape[0] - HALO):
        above, here, below = rows[y - 1, :], rows[y, :], rows[y + 1, :]
        ty = (y0 + y - HALO) * n_ty // ny
        _mark_maxima(here, low, marks)
        reached[y] = _reaches(here, high)
        n = np.int64(0)  # lists are filled without branches, which could not be predicted
        for word in range(words.shape[0]):
            if words[word] != 0:
                for k in range(8 * word, 8 * word + 8):
                    places[n] = k + 1
                    n += marks[k]
        found = np.int64(0)
        for k in range(n):
            x = places[k]
            value = here[x]
            places[found] = x
            found += np.int64(
                (above[x - 1] < value) & (above[x] < value) & (above[x + 1] < value)
                & (below[x - 1] <= value) & (below[x] <= value) & (below[x + 1] <= value) & (value < INVALID)
            )  # fmt: skip
        for k in range(found):
            x = places[k]
            value = here[x]
            b, s = sky[cell[x]], noise[cell[x]]
            if not np.float64(value) - b > least * s:
                continue
            inner = 0.0
            for j in range(y - 1, y + 2):
                for i in range(x - 1, x + 2):
                    inner += np.float64(rows[j, i]) - b
            if not inner > 3 * threshold * s:
                continue
            outer = inner
            for i in range(x - 2, x + 3):
                outer += _light(rows, y - 2, i, b)
                outer += _light(rows, y + 2, i, b)
            for j in range(y - 1, y + 2):
                outer += _light(rows, j, x - 2, b)
                outer += _light(rows, j, x + 2, b)
            octaves = np.float64(_exponent(inner)) / 2.0**52 - 1023.0  # type: ignore[call-arg]
            f = _step((octaves - flux_at) * flux_per, inner, flux)
            ratio = inner / outer if outer > 0 else np.inf
            c = _step((ratio - concentration[0]) * concentration_per, ratio, concentration)
            share = (np.float64(value) - b) / inner
            p = _step((share - sharpness[0]) * sharpness_per, share, sharpness)
            peaks[f, c, p] += np.uint32(1)
            tiles[ty, x * n_tx // nx, f, shape_of[c, p]] += np.uint32(1)
            if _is_bright(value, b, s, bright):
                counted[n_counted, 0], counted[n_counted, 1] = y0 + y - HALO, x
                counted[n_counted, 2], counted[n_counted, 3], counted[n_counted, 4] = f, c, p
                n_counted += 1
    return n_counted


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def list_bright(rows, y0, edges, sky, noise, bright, high, reached, places, values):
    """List the bright pixels of a band that are as bright as ``high``.

    Parameters
    ----------
    rows, y0, edges, sky, noise, bright, high, reached
        As for `search_band`, which has filled the last.
    places : (n, 2) int32 array
        Filled with (y, x) on the frame.
    values : (n, 2) float32 array
        Filled with the pixel, and the level on which it lies, `_flat_level`.

    Returns
    -------
    int
        Their number; beyond the room there is it says how much is needed.
    """
    n, nx = 0, rows.shape[1]
    for y in range(HALO, rows.shape[0] - HALO):
        if not reached[y]:
            continue
        for i in range(sky.shape[0]):
            if not _reaches(rows[y, edges[i] : edges[i + 1]], high):
                continue
            for x in range(max(edges[i], 1), min(edges[i + 1], nx - 1)):
                value = rows[y, x]
                if value >= high and _is_bright(value, sky[i], noise[i], bright):
                    if n < places.shape[0]:
                        places[n, 0], places[n, 1] = y0 + y - HALO, x
                        values[n, 0], values[n, 1] = value, _flat_level(rows, y, x)
                    n += 1
    return n
