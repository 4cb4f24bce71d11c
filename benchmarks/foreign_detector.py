"""What the detector of the foreign benchmark does to light: its defects, cosmic rays, bleeding, and their flags."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from foreign_plan import Range
from numpy.typing import NDArray

from csst_dask.instrument.flags import FLAG_BAD, FLAG_COSMIC_RAY, FLAG_HOT, FLAG_SATURATED, FLAG_WARM
from csst_dask.schema import FRAME_SHAPE


@numba.njit(cache=True)
def bleed(image, flags, full_well):  # type: ignore[no-untyped-def]
    """Let charge above the full well run along its column, half of it each way, until there is room; in place.

    Parameters
    ----------
    image : (ny, nx) float32 array
        Electrons.
    flags : (ny, nx) uint16 array
        Pixels that are full get a flag.
    full_well : float32
        e-
    """
    ny, nx = image.shape
    excess = np.zeros(ny, np.float32)
    for x in range(nx):
        over = False
        for y in range(ny):
            excess[y] = 0
            if image[y, x] > full_well:
                excess[y] = 0.5 * (image[y, x] - full_well)
                image[y, x] = full_well
                flags[y, x] |= FLAG_SATURATED
                over = True
        if not over:
            continue
        for way in (1, -1):
            carried = np.float32(0)
            for k in range(ny):
                y = k if way == 1 else ny - 1 - k
                carried += excess[y]
                if carried > 0:
                    taken = min(full_well - image[y, x], carried)
                    image[y, x] += taken
                    carried -= taken
                    if image[y, x] >= 0.98 * full_well:
                        flags[y, x] |= FLAG_SATURATED


def add_hot_pixels(
    image: NDArray[np.float32],
    flags: NDArray[np.uint16],
    number: Range,
    exptime: float,
    read_noise: float,
    missed: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Add pixels of much dark current, in place: hot from the square of the read noise, warm from half of that.

    Parameters
    ----------
    image : (ny, nx) float32 array
        Electrons.
    flags : (ny, nx) uint16 array
    number : (float, float)
        Least and largest number on a full-size frame, drawn log-uniform.
    exptime : float
        s
    read_noise : float
        e-
    missed : float
        Share of these pixels that get no flag.
    rng : numpy.random.Generator

    Returns
    -------
    dict
        What was drawn.
    """
    ny, nx = image.shape
    n = rng.poisson(10 ** rng.uniform(*np.log10(number)) * ny * nx / (FRAME_SHAPE[0] * FRAME_SHAPE[1]))
    y, x = rng.integers(0, ny, n), rng.integers(0, nx, n)
    charge = exptime * np.minimum(0.08 * (1 - rng.random(n)) ** -0.9, 500.0)
    image[y, x] += charge.astype(np.float32)
    known = rng.random(n) >= missed
    hot, warm = known & (charge >= read_noise**2), known & (charge >= read_noise**2 / 2) & (charge < read_noise**2)
    flags[y[hot], x[hot]] |= FLAG_HOT
    flags[y[warm], x[warm]] |= FLAG_WARM
    return {"hot_pixels": n}


def add_dead_columns(
    image: NDArray[np.float32], flags: NDArray[np.uint16], number: Range, rng: np.random.Generator
) -> dict[str, Any]:
    """Add dead columns, some of them to the frame's edge alone, and dead pixels, in place; all are flagged.

    Parameters
    ----------
    image : (ny, nx) float32 array
        Electrons.
    flags : (ny, nx) uint16 array
    number : (float, float)
        Least and largest number of columns on a full-size frame.
    rng : numpy.random.Generator

    Returns
    -------
    dict
        What was drawn.
    """
    ny, nx = image.shape
    n = int(rng.uniform(*number) * nx / FRAME_SHAPE[1] + rng.random())
    for _ in range(n):
        x, width = int(rng.integers(nx)), int(rng.choice([1, 1, 1, 2, 4]))
        start = 0 if rng.random() < 0.5 else int(rng.integers(ny))
        part = (slice(start, None) if rng.random() < 0.5 else slice(None, start or None), slice(x, x + width))
        image[part] *= np.float32(rng.choice([0.0, 0.0, 0.3]))
        flags[part] |= FLAG_BAD
    dead = int(2e-5 * ny * nx * rng.random())
    y, x = rng.integers(0, ny, dead), rng.integers(0, nx, dead)
    image[y, x] *= 0.2
    flags[y, x] |= FLAG_BAD
    return {"dead_columns": n}


def add_cosmic_rays(
    image: NDArray[np.float32],
    flags: NDArray[np.uint16],
    number: Range,
    exptime: float,
    noise: float,
    missed: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Add straight tracks, curled tracks and small spots, in place.

    Parameters
    ----------
    image : (ny, nx) float32 array
        Electrons.
    flags : (ny, nx) uint16 array
        Get a flag where a hit leaves more than half of the noise, unless it is one of those missed.
    number : (float, float)
        Least and largest number of hits on a full-size frame in 150 s, drawn log-uniform.
    exptime : float
        s
    noise : float
        Scatter of a pixel, e-.
    missed : float
        Share of hits that get no flag.
    rng : numpy.random.Generator

    Returns
    -------
    dict
        What was drawn.
    """
    ny, nx = image.shape
    share = ny * nx / (FRAME_SHAPE[0] * FRAME_SHAPE[1]) * exptime / 150
    n = rng.poisson(10 ** rng.uniform(*np.log10(number)) * share)
    kind = rng.choice(3, n, p=[0.55, 0.2, 0.25])  # straight, curled, spot
    slant = np.tan(np.arccos(np.sqrt(np.maximum(rng.random(n), 1e-4))))  # flux through a plane
    length = np.choose(kind, [np.clip(2.5 * slant, 0.5, 400), rng.uniform(4, 60, n), rng.uniform(0.1, 1.0, n)])
    # electrons a pixel of track; energy loss has a long tail
    charge = np.choose(kind, [700.0, 350.0, 900.0]) * np.exp(rng.normal(0, 0.5, n)) * (1 + rng.pareto(2.5, n))
    curl = np.where(kind == 1, rng.uniform(0.1, 0.6, n), 0.0)
    place = rng.random((n, 2)) * (ny, nx)
    angle, known = rng.uniform(0, 2 * np.pi, n), rng.random(n) >= missed
    _draw_tracks(image, flags, place, angle, length, charge, curl, known, 0.5 * noise, rng)
    return {"cosmic_rays": n}


@numba.njit(cache=True)
def _draw_tracks(image, flags, place, angle, length, charge, curl, known, least, rng):  # type: ignore[no-untyped-def]
    """Steps of a quarter pixel, each shared out bilinearly among four pixels."""
    ny, nx = image.shape
    for k in range(length.size):
        y, x, turn = place[k, 0] - 0.5, place[k, 1] - 0.5, angle[k]
        for _ in range(max(1, int(4 * length[k]))):
            electrons = 0.25 * charge[k] * (0.6 + 0.8 * rng.random())
            j, i = int(np.floor(y)), int(np.floor(x))
            v, u = y - j, x - i
            for dj in range(2):
                for di in range(2):
                    part = electrons * (v if dj else 1 - v) * (u if di else 1 - u)
                    if 0 <= j + dj < ny and 0 <= i + di < nx and part > 0:
                        image[j + dj, i + di] += part
                        if known[k] and part > 0.25 * least:
                            flags[j + dj, i + di] |= FLAG_COSMIC_RAY
            y += 0.25 * np.sin(turn)
            x += 0.25 * np.cos(turn)
            turn += curl[k] * rng.standard_normal() * 0.5


def hit_cores(
    flags: NDArray[np.uint16],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    share: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Flag the cores of some stars as cosmic rays, as searches for cosmic rays do on sharp images; in place.

    Parameters
    ----------
    flags : (ny, nx) uint16 array
    y, x : (n,) float64 array
        Of the stars, pixel from the frame's outer corner.
    share : float
        Of the stars, 0 to 1.
    rng : numpy.random.Generator

    Returns
    -------
    dict
        What was drawn.
    """
    hit = rng.random(y.size) < share
    row, col = y[hit].astype(np.int64), x[hit].astype(np.int64)
    flags[row, col] |= FLAG_COSMIC_RAY
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        j, i, more = row + dy, col + dx, rng.random(row.size) < 0.4
        good = more & (j >= 0) & (j < flags.shape[0]) & (i >= 0) & (i < flags.shape[1])
        flags[j[good], i[good]] |= FLAG_COSMIC_RAY
    return {"cores_hit": share}
