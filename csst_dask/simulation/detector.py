"""What a detector does to the light: saturation, bleeding, defects, cosmic rays, and the weight map."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

FLAG_BAD, FLAG_HOT, FLAG_WARM, FLAG_SATURATED, FLAG_COSMIC_RAY = 1, 2, 4, 8, 16
"""Bits of a CSST ``flg`` file."""


@dataclass(frozen=True)
class DetectorModel:
    """A CCD of the survey camera."""

    read_noise: float = 5.0
    """Electrons."""
    dark: float = 0.02
    """e-/s per pixel."""
    gain: float = 1.1
    """e-/ADU."""
    full_well: float = 90_000.0
    """Electrons."""
    hot_pixels: int = 4000
    bad_columns: int = 6
    edge: int = 4
    """Rows at the lower and upper edge that are flagged bad."""
    cosmic_ray_rate: float = 1.1
    """Hits per cm2 and s."""
    area: float = 85.0
    """cm2"""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pour(frame, flags, y, step, x, amount, full_well):
    """Fill pixels of a column to the full well, one after the other, until the charge is used up."""
    while amount > 0 and 0 <= y < frame.shape[0]:
        room = np.float64(full_well) - np.float64(frame[y, x])
        if amount >= room:
            frame[y, x] = max(frame[y, x], full_well)
            amount -= max(room, 0.0)
        else:
            frame[y, x] += amount
            amount = 0.0
        if frame[y, x] >= full_well:
            flags[y, x] |= FLAG_SATURATED
        y += step
    return amount


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bleed(frame, flags, rows, columns, radius, full_well):
    ny, nx = frame.shape
    lost = 0.0
    for s in range(rows.shape[0]):
        y0, y1 = max(rows[s] - radius, 0), min(rows[s] + radius + 1, ny)
        for x in range(max(columns[s] - radius, 0), min(columns[s] + radius + 1, nx)):
            y = y0
            while y < y1:
                if not frame[y, x] > full_well:
                    y += 1
                    continue
                start, excess = y, 0.0
                while y < ny and frame[y, x] > full_well:
                    excess += np.float64(frame[y, x]) - np.float64(full_well)
                    frame[y, x] = full_well
                    flags[y, x] |= FLAG_SATURATED
                    y += 1
                lost += _pour(frame, flags, y, 1, x, 0.5 * excess, full_well)
                lost += _pour(frame, flags, start - 1, -1, x, 0.5 * excess, full_well)
    return lost


def bleed(
    frame: NDArray[np.float32],
    flags: NDArray[np.uint16],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    full_well: float,
    radius: int = 20,
) -> float:
    """Let charge above the full well run half up, half down its column, in place.

    Only the neighbourhood of the stars named is searched, since nothing else can saturate.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons; capped at the full well on return.
    flags : (ny, nx) uint16 array
        The saturated bit is set on full pixels.
    y, x : (n,) float64 array
        Positions of the stars that may saturate, pixel.
    full_well : float
        Electrons.
    radius : int
        Half size of the neighbourhood, pixel.

    Returns
    -------
    float
        Charge that ran off the ends of columns, electron; all other charge is conserved.
    """
    order = np.lexsort((x, y))
    rows, columns = np.floor(y[order]).astype(np.int64), np.floor(x[order]).astype(np.int64)
    return float(_bleed(frame, flags, rows, columns, radius, np.float32(full_well)))


def add_defects(
    frame: NDArray[np.float32],
    flags: NDArray[np.uint16],
    model: DetectorModel,
    rng: np.random.Generator,
    background: float = 0.0,
) -> None:
    """Add hot and dead pixels, partial bad columns and flagged edge rows, in place.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons above the background. Dead pixels end at minus the background, so that they hold nothing once it is
        added; bad columns keep 0.3 of the light, background included.
    flags : (ny, nx) uint16 array
    model : DetectorModel
    rng : numpy.random.Generator
    background : float
        Electrons of sky and dark current that are still to come.
    """
    ny, nx = frame.shape
    n = int(model.hot_pixels * ny * nx / 85_082_112)
    y, x = rng.integers(0, ny, n), rng.integers(0, nx, n)
    hot = rng.random(n) < 0.7
    frame[y[hot], x[hot]] += (10 ** rng.uniform(1.5, 4.5, int(hot.sum()))).astype(np.float32)
    flags[y[hot], x[hot]] |= FLAG_HOT
    frame[y[~hot], x[~hot]] = -background
    flags[y[~hot], x[~hot]] |= FLAG_BAD
    for column in rng.integers(0, nx, model.bad_columns):
        start = int(rng.integers(0, ny))
        frame[start:, column] = np.float32(0.3) * frame[start:, column] - np.float32(0.7 * background)
        flags[start:, column] |= FLAG_BAD
    flags[: model.edge] |= FLAG_BAD
    flags[ny - model.edge :] |= FLAG_BAD


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _tracks(frame, flags, y, x, angle, length, charge):
    ny, nx = frame.shape
    for k in range(y.shape[0]):
        steps = max(int(2 * length[k]), 1)
        dy, dx = np.sin(angle[k]) / 2, np.cos(angle[k]) / 2
        for step in range(steps):
            row, column = int(np.floor(y[k] + step * dy)), int(np.floor(x[k] + step * dx))
            if 0 <= row < ny and 0 <= column < nx:
                frame[row, column] += charge[k] / steps
                flags[row, column] |= FLAG_COSMIC_RAY


def add_cosmic_rays(
    frame: NDArray[np.float32],
    flags: NDArray[np.uint16],
    model: DetectorModel,
    exptime: float,
    rng: np.random.Generator,
) -> None:
    """Add straight tracks with log-normal lengths, in place; about 80 electrons per micron of silicon."""
    ny, nx = frame.shape
    n = rng.poisson(model.cosmic_ray_rate * model.area * exptime * ny * nx / 85_082_112)
    length = rng.lognormal(1.2, 0.7, n)
    charge = 800.0 * np.hypot(length, 1.5) * rng.uniform(0.7, 1.3, n)
    _tracks(
        frame,
        flags,
        rng.uniform(0, ny, n),
        rng.uniform(0, nx, n),
        rng.uniform(0, 2 * np.pi, n),
        length,
        charge,
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _inverse_variance(image, flags, dark, read_noise, exptime, weight):
    floor = np.float32(dark * exptime + read_noise * read_noise)
    for y in range(image.shape[0]):
        pixels, flag, out = image[y, :], flags[y, :], weight[y, :]
        for x in range(pixels.shape[0]):
            electrons = pixels[x] * exptime
            variance = (electrons if electrons > 0 else np.float32(0)) + floor
            out[x] = exptime * exptime / variance if flag[x] == 0 else np.float32(0)


def inverse_variance(
    image: NDArray[np.float32], flags: NDArray[np.uint16], model: DetectorModel, exptime: float
) -> NDArray[np.float32]:
    """Weight map of an observed image: 1 / variance in (s/e-)2, and 0 wherever a flag is set."""
    weight = np.empty_like(image)
    _inverse_variance(image, flags, np.float32(model.dark), np.float32(model.read_noise), np.float32(exptime), weight)
    return weight
