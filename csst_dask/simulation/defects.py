"""What is wrong with a frame: uneven light, amplifiers, rows, charge transfer, noise that is not white, wrong flags.

All functions take arrays and work in place unless they say so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.flags import FLAG_BAD, FLAG_COSMIC_RAY, FLAG_HOT, FLAG_WARM
from csst_dask.simulation.counter import make_key, substream, uniform
from csst_dask.simulation.noise import GLOW_CELL, glow_row

AMPLIFIERS = (2, 8)
"""Along y and x."""
_CLUMP = np.int64(8)


def smooth_field(shape: tuple[int, int], nodes: int, rng: np.random.Generator, steepness: float = 1.0) -> NDArray:
    """A random field of mean 0 and standard deviation 1, with structure of half a frame and of smaller parts.

    Parameters
    ----------
    shape : (int, int)
    nodes : int
        Along each side, of the finest structure.
    rng : numpy.random.Generator
    steepness : float
        Structure of half the size is 2**-steepness as strong.

    Returns
    -------
    float32 array
    """
    out, n = np.zeros(shape), 2
    while n <= nodes:
        coarse = rng.standard_normal((n + 1, n + 1))
        y, x = (np.linspace(0, n, side) for side in shape)
        j, i = np.minimum(y.astype(int), n - 1), np.minimum(x.astype(int), n - 1)
        v, u = y - j, x - i
        v, u = (v * v * (3 - 2 * v))[:, None], u * u * (3 - 2 * u)
        rows = coarse[j] * (1 - v) + coarse[j + 1] * v
        out += (n / 2) ** -steepness * (rows[:, i] * (1 - u) + rows[:, i + 1] * u)
        n *= 2
    out -= out.mean()
    return (out / max(out.std(), 1e-12)).astype(np.float32)


def uneven_sky(
    shape: tuple[int, int],
    plane: tuple[float, float],
    bowl: float,
    cirrus: float,
    scattered: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """What the sky adds to its level, against that level, at the nodes of a glow.

    Parameters
    ----------
    shape : (int, int)
        Frame, pixel.
    plane : (float, float)
        Change from the first to the last row and column.
    bowl : float
        How much more the corners have than the middle; the mean over the frame stays.
    cirrus : float
        Standard deviation of filaments; they only add.
    scattered : float
        Peak of a broad patch of light.
    rng : numpy.random.Generator

    Returns
    -------
    (ny // 16 + 2, nx // 16 + 2) float32 array
        As `csst_dask.simulation.render.paint_stars` returns one.
    """
    nodes = shape[0] // GLOW_CELL + 2, shape[1] // GLOW_CELL + 2
    y = (np.arange(nodes[0]) * GLOW_CELL / shape[0] - 0.5)[:, None]
    x = np.arange(nodes[1]) * GLOW_CELL / shape[1] - 0.5
    out = plane[0] * y + plane[1] * x + bowl * (2 * (y * y + x * x) - 1 / 3)
    if cirrus:
        out = out + cirrus * np.abs(smooth_field(nodes, 64, rng, 0.8))
    if scattered:
        cy, cx, size = *rng.uniform(-0.7, 0.7, 2), rng.uniform(0.1, 0.5)
        out = out + scattered * np.exp(-0.5 * ((y - cy) ** 2 + (x - cx) ** 2) / size**2)
    return np.maximum(out, -0.9).astype(np.float32)


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _trail(frame, share, decay):
    ny, nx = frame.shape
    for upper in range(2):
        held = np.zeros(nx, np.float32)
        for k in range(ny // 2 if upper == 0 else ny - ny // 2):
            row = frame[k if upper == 0 else ny - 1 - k]
            for x in range(nx):
                out = held[x] * (np.float32(1) - decay)
                lost = share * max(row[x], np.float32(0))
                held[x] = held[x] * decay + lost
                row[x] += out - lost


def trail_charge(frame: NDArray[np.float32], share: float, length: float) -> None:
    """Leave a share of every pixel's charge behind in a tail that points away from the read-out, at the upper and the
    lower edge of the frame.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons.
    share : float
    length : float
        Of the tail, by a factor e, pixel.
    """
    _trail(frame, np.float32(share), np.float32(np.exp(-1 / length)))


def resample(image: NDArray[np.float32], shift: tuple[float, float]) -> None:
    """Shift an image by parts of a pixel with bilinear interpolation, which correlates and lowers its noise.

    Parameters
    ----------
    image : (ny, nx) float32 array
    shift : (float, float)
        Towards smaller y and x, 0 to 1 pixel.
    """
    _resample(image, np.float32(shift[0]), np.float32(shift[1]))


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _resample(image, v, u):
    ny, nx = image.shape
    one = np.float32(1)
    for y in range(ny):
        row = image[y]
        for x in range(nx - 1):
            row[x] = row[x] * (one - u) + row[x + 1] * u
        if y > 0:
            above = image[y - 1]
            for x in range(nx):
                above[x] = above[x] * (one - v) + row[x] * v


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _imprint(image, gain, offset, rows, smooth, pixel, key, step, cell):
    ny, nx = image.shape
    half, width = ny // 2, nx // gain.shape[1]
    flat = np.empty(nx, np.float32)
    for y in range(ny):
        part, row = 0 if y < half else 1, image[y]
        glow_row(smooth, (y + 0.5) / cell, cell, flat)
        if pixel > 0:
            start = np.uint32(y) * np.uint32(nx)
            for x in range(nx):
                h = np.uint32(np.uint32(start + np.uint32(x)) * np.uint32(0x9E3779B1)) ^ key
                h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x85EBCA6B))
                h = np.uint32(h ^ (h >> np.uint32(13)))
                flat[x] += pixel * (np.float32(np.int32(h >> np.uint32(8))) * np.float32(2.0**-24) - np.float32(0.5))
        for a in range(gain.shape[1]):
            first, last = a * width, (a + 1) * width if a + 1 < gain.shape[1] else nx
            factor, zero = gain[part, a], offset[part, a] + rows[y]
            for x in range(first, last):
                row[x] = row[x] * (np.float32(1) + flat[x]) * factor + zero
        if step > 0:
            per = np.float32(1) / step
            for x in range(nx):
                row[x] = np.rint(row[x] * per) * step


def imprint(
    image: NDArray[np.float32],
    *,
    gain: Sequence[float],
    offset: Sequence[float],
    rows: NDArray[np.float32],
    flat: NDArray[np.float32],
    pixel: float = 0.0,
    step: float = 0.0,
    seed: int = 0,
) -> None:
    """What flat field, amplifiers and digitisation leave on an image.

    Parameters
    ----------
    image : (ny, nx) float32 array
    gain, offset : (16,) sequence of float
        Of the 2 x 8 amplifiers, the lower ones first; the offset in the unit of the image.
    rows : (ny,) float32 array
        Offset of every row, in the unit of the image.
    flat : (ny // 16 + 2, nx // 16 + 2) float32 array
        Smooth error of the response, at the nodes of a glow.
    pixel : float
        Standard deviation of the response from pixel to pixel (uniform).
    step : float
        Values are rounded to multiples of it; 0 for none.
    seed : int
        Of the response of the pixels.
    """
    _imprint(
        image, np.asarray(gain, np.float32).reshape(AMPLIFIERS), np.asarray(offset, np.float32).reshape(AMPLIFIERS),
        rows.astype(np.float32), flat, np.float32(pixel * np.sqrt(12)), np.uint32(seed & 0xFFFFFFFF), np.float32(step),
        GLOW_CELL,
    )  # fmt: skip


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _miss(flags, bits, key, share):
    ny, nx = flags.shape
    for y in range(ny):
        row = flags[y]
        for x in range(nx):
            if row[x] & bits:
                clump = substream(key, np.uint64((y // _CLUMP) * nx + x // _CLUMP))
                if uniform(clump, np.uint64(0)) < share:
                    row[x] = row[x] & ~bits


def miss_flags(flags: NDArray[np.uint16], share: float, seed: int) -> None:
    """Take the flags of a share of the cosmic rays and hot pixels away, of whole squares of 8 x 8 pixels.

    Parameters
    ----------
    flags : (ny, nx) uint16 array
    share : float
    seed : int
    """
    _miss(flags, np.uint16(FLAG_COSMIC_RAY | FLAG_HOT | FLAG_WARM), make_key(seed), share)


def flag_cores(flags: NDArray[np.uint16], y: NDArray[np.float64], x: NDArray[np.float64]) -> None:
    """Flag the 3 x 3 pixels about stars as if cosmic rays had hit them."""
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            rows, columns = np.floor(y).astype(int) + dy, np.floor(x).astype(int) + dx
            on = (rows >= 0) & (rows < flags.shape[0]) & (columns >= 0) & (columns < flags.shape[1])
            flags[rows[on], columns[on]] |= FLAG_COSMIC_RAY


def mask_shapes(flags: NDArray[np.uint16], share: float, rng: np.random.Generator) -> None:
    """Flag about a share of the frame bad, in shapes of all kinds: rectangles, discs, bands, corners, amplifiers, dots.

    Parameters
    ----------
    flags : (ny, nx) uint16 array
    share : float
        Of the frame's pixels; shapes overlap at random, and the last one is cut so that no more are flagged.
    rng : numpy.random.Generator
    """
    ny, nx = flags.shape
    left = share * ny * nx
    for _ in range(400):
        if left < 1:
            return
        kind, area = int(rng.integers(6)), min(left, ny * nx * 10 ** rng.uniform(-4.5, -0.5))
        y, x = int(rng.integers(0, ny)), int(rng.integers(0, nx))
        if kind == 5:  # dots
            n = int(min(area, 2e5))
            rows, columns = rng.integers(0, ny, n), rng.integers(0, nx, n)
            new = flags[rows, columns] & FLAG_BAD == 0
            left -= len(np.unique(rows[new] * nx + columns[new]))
            flags[rows, columns] |= FLAG_BAD
            continue
        if kind == 4:  # a part of an amplifier
            height, width = ny // 2, nx // 8
            y, x = (y // height) * height, (x // width) * width
            height = int(min(height, max(area // width, 1)))
        elif kind == 3:  # columns or rows
            across = rng.random() < 0.5
            height, width = (max(int(area // nx), 1), nx) if across else (ny, max(int(area // ny), 1))
            y, x = (y, 0) if across else (0, x)
        else:
            ratio = 10 ** rng.uniform(-0.7, 0.7)
            height, width = max(int(np.sqrt(area * ratio)), 1), max(int(np.sqrt(area / ratio)), 1)
        part = flags[y : min(y + height, ny), x : min(x + width, nx)]
        v = ((np.arange(part.shape[0]) + 0.5) / height)[:, None]
        u = (np.arange(part.shape[1]) + 0.5) / width
        inside = part & FLAG_BAD == 0
        if kind == 1:
            inside &= (v - 0.5) ** 2 + (u - 0.5) ** 2 < 0.25
        elif kind == 2:
            inside &= v + u < 1
        part[inside] |= FLAG_BAD
        left -= int(inside.sum())
