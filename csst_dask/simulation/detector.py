"""What a detector does to the light: saturation, bleeding, defects, cosmic rays, and the weight map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.flags import FLAG_BAD, FLAG_COSMIC_RAY, FLAG_HOT, FLAG_SATURATED, FLAG_WARM
from csst_dask.schema import FRAME_SHAPE

DARK_INDEX = 0.7
"""Pixels with a dark current above d are as many as d to the power of minus this."""
LONGEST_EXPOSURE = 600.0
"""Pixels are drawn down to the dark current that makes them warm in this time, s."""
ELECTRONS_PER_PIXEL = 800.0
"""What a minimum ionising particle frees along the side of a pixel: 80 e- per micron of silicon."""

_FULL_FRAME = FRAME_SHAPE[0] * FRAME_SHAPE[1]
_COLUMN_RESPONSE = 0.3
WINDING, TURNS = 0.4, 64
"""Scatter of the angle by which a slow electron turns in a quarter of a pixel; after so many turns they repeat."""
LEAST_DIFFUSION = 0.05
"""pixel"""
SQRT2 = math.sqrt(2.0)


@dataclass(frozen=True)
class Rays:
    """Laws of cosmic rays."""

    rate: float = 1.0
    """Hits, in units of those of the detector's model."""
    length: tuple[float, float] = (0.98, 0.7)
    """Mean and scatter of ln(length / pixel) of the tracks on the frame."""
    straggling: tuple[float, float] = (-0.055, 0.33)
    """Mean and scatter of the logarithm of the charge, in units of what the path frees."""
    diffusion: float = 0.0
    """Standard deviation of what the charge spreads by on its way to the gates, pixel."""
    curled: float = 0.0
    """Share of slow electrons, whose tracks wind."""


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
    """Hot and warm pixels of a full frame in 150 s; about 62 % of them are hot."""
    dead_pixels: int = 1200
    """On a full frame."""
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
def _reach(frame, row, column, radius, full_well):
    """Half size of the square about a pixel that holds the full pixels around it, or -1 if there are none."""
    ny, nx = frame.shape
    reach, r = -1, 0
    while r <= radius and r - reach <= 3:
        y0, y1 = max(row - r, 0), min(row + r, ny - 1)
        x0, x1 = max(column - r, 0), min(column + r, nx - 1)
        full = False
        for y in range(y0, y1 + 1):
            step = 1 if y == row - r or y == row + r else max(2 * r, 1)
            # whole rows at the rim, their two ends in between
            for x in range(column - r, column + r + 1, step):
                if x0 <= x <= x1 and frame[y, x] >= full_well:
                    full = True
        if full:
            reach = r
        r += 1
    return reach


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bleed(frame, flags, rows, columns, radius, full_well):
    ny, nx = frame.shape
    lost = 0.0
    for s in range(rows.shape[0]):
        reach = _reach(frame, rows[s], columns[s], radius, full_well)
        y0, y1 = max(rows[s] - reach, 0), min(rows[s] + reach + 1, ny)
        for x in range(max(columns[s] - reach, 0), min(columns[s] + reach + 1, nx)):
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
    radius: int = 60,
) -> float:
    """Let charge above the full well run half up, half down its column, in place.

    Only the full pixels about the stars named are sought, ring by ring until three rings in a row hold none, since
    nothing else can saturate.

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
        Largest distance from a star of pixels that it saturates, pixel.

    Returns
    -------
    float
        Charge that ran off the ends of columns, electron; all other charge is conserved.
    """
    order = np.lexsort((x, y))
    rows, columns = np.floor(y[order]).astype(np.int64), np.floor(x[order]).astype(np.int64)
    return float(_bleed(frame, flags, rows, columns, radius, np.float32(full_well)))


def defect_rng(seed: int, detector: int) -> np.random.Generator:
    """Source of a detector's defects: every exposure of a survey finds them in the same places.

    Parameters
    ----------
    seed : int
        Of the survey.
    detector : int
    """
    return np.random.default_rng([seed, detector, 0xDEFEC7])


def add_defects(
    frame: NDArray[np.float32],
    flags: NDArray[np.uint16],
    model: DetectorModel,
    rng: np.random.Generator,
    background: float = 0.0,
    exptime: float = 150.0,
) -> None:
    """Add hot, warm and dead pixels, partial bad columns and flagged edge rows, in place.

    A pixel is hot if its dark current frees at least the square of the read noise during the exposure, warm from
    half of that, as in the survey's calibration; fainter ones stay unflagged. What is drawn does not depend on the
    exposure time.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons above the background. Dead pixels end at minus the background, so that they hold nothing once it is
        added; bad columns keep 0.3 of the light, background included.
    flags : (ny, nx) uint16 array
    model : DetectorModel
    rng : numpy.random.Generator
        From `defect_rng`.
    background : float
        Electrons of sky and dark current that are still to come.
    exptime : float
        s
    """
    ny, nx = frame.shape
    share = ny * nx / _FULL_FRAME
    least = 0.5 * model.read_noise**2 / LONGEST_EXPOSURE
    n = round(model.hot_pixels * share * (LONGEST_EXPOSURE / 150) ** DARK_INDEX)
    y, x = rng.integers(0, ny, n), rng.integers(0, nx, n)
    dark = np.minimum(least * rng.random(n) ** (-1 / DARK_INDEX), model.full_well / 150)
    frame[y, x] += (np.maximum(dark - model.dark, 0) * exptime).astype(np.float32)
    charge = dark * exptime / model.read_noise**2
    hot, warm = charge >= 1, (charge > 0.5) & (charge < 1)
    flags[y[hot], x[hot]] |= FLAG_HOT
    flags[y[warm], x[warm]] |= FLAG_WARM
    n = round(model.dead_pixels * share)
    y, x = rng.integers(0, ny, n), rng.integers(0, nx, n)
    frame[y, x] = -background
    flags[y, x] |= FLAG_BAD
    for column, start in zip(
        rng.integers(0, nx, model.bad_columns), rng.integers(0, ny, model.bad_columns), strict=True
    ):
        # charge is read out at the lower and the upper edge: what lies beyond the fault passes through it
        rows = slice(start, ny // 2) if start < ny // 2 else slice(ny // 2, start + 1)
        frame[rows, column] *= np.float32(_COLUMN_RESPONSE)
        frame[rows, column] -= np.float32((1 - _COLUMN_RESPONSE) * background)
        flags[rows, column] |= FLAG_BAD
    flags[: model.edge] |= FLAG_BAD
    flags[ny - model.edge :] |= FLAG_BAD


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _tracks(frame, flags, y, x, angle, length, charge):
    ny, nx = frame.shape
    for k in range(y.shape[0]):
        steps = int(4 * length[k]) + 1
        share = charge[k] / steps
        dy, dx = np.sin(angle[k]) * length[k] / steps, np.cos(angle[k]) * length[k] / steps
        for step in range(steps):
            row, column = int(np.floor(y[k] + step * dy)), int(np.floor(x[k] + step * dx))
            if 0 <= row < ny and 0 <= column < nx:
                frame[row, column] += share
                flags[row, column] |= FLAG_COSMIC_RAY


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _spread_tracks(frame, flags, y, x, angle, length, charge, turn, sigma, least):
    """Tracks whose charge spreads as a Gaussian; pixels that get less than ``least`` of a step have no flag."""
    ny, nx = frame.shape
    reach = int(np.ceil(3 * sigma))
    for k in range(y.shape[0]):
        steps = int(4 * length[k]) + 1
        share, stride = charge[k] / steps, length[k] / steps
        row, column, heading = y[k], x[k], angle[k]
        for step in range(steps):
            top, left = int(np.floor(row)), int(np.floor(column))
            for i in range(max(top - reach, 0), min(top + reach + 1, ny)):
                down = math.erf((i + 1 - row) / sigma / SQRT2) - math.erf((i - row) / sigma / SQRT2)
                for j in range(max(left - reach, 0), min(left + reach + 1, nx)):
                    along = math.erf((j + 1 - column) / sigma / SQRT2) - math.erf((j - column) / sigma / SQRT2)
                    light = 0.25 * share * down * along
                    frame[i, j] += light
                    if light > least:
                        flags[i, j] |= FLAG_COSMIC_RAY
            heading += turn[k, step % turn.shape[1]]
            row += np.sin(heading) * stride
            column += np.cos(heading) * stride


def add_cosmic_rays(
    frame: NDArray[np.float32],
    flags: NDArray[np.uint16],
    model: DetectorModel,
    exptime: float,
    rng: np.random.Generator,
    rays: Rays = Rays(),
) -> None:
    """Add tracks with log-normal lengths, in place.

    Charge goes with the path through 16 micron of silicon, with a log-normal scatter for straggling.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons.
    flags : (ny, nx) uint16 array
        The cosmic-ray bit is set on every pixel of a track; where charge spreads, on those that get more than a
        twentieth of the read noise in a step of a quarter pixel.
    model : DetectorModel
    exptime : float
        s
    rng : numpy.random.Generator
        Of the exposure and detector.
    rays : Rays, optional
        By default straight tracks of charge that does not spread.
    """
    ny, nx = frame.shape
    n = rng.poisson(rays.rate * model.cosmic_ray_rate * model.area * exptime * ny * nx / _FULL_FRAME)
    length = rng.lognormal(*rays.length, n)
    charge = ELECTRONS_PER_PIXEL * np.hypot(length, 1.6) * rng.lognormal(*rays.straggling, n)
    y, x, angle = rng.uniform(0, ny, n), rng.uniform(0, nx, n), rng.uniform(0, 2 * np.pi, n)
    if not rays.diffusion and not rays.curled:
        _tracks(frame, flags, y, x, angle, length, charge)
        return
    turn = WINDING * rng.standard_normal((n, TURNS)) * (rng.random((n, 1)) < rays.curled)
    sigma = max(rays.diffusion, LEAST_DIFFUSION)
    _spread_tracks(frame, flags, y, x, angle, length, charge, turn, sigma, model.read_noise / 20)


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _inverse_variance(image, flags, floor, exptime, weight):
    numerator, zero = np.float32(exptime * exptime), np.float32(0)
    for y in range(image.shape[0]):
        pixels, flag, out = image[y], flags[y], weight[y]
        for x in range(pixels.shape[0]):
            variance = max(pixels[x] * exptime, zero) + floor
            out[x] = numerator / variance if flag[x] == 0 else zero


def inverse_variance(
    image: NDArray[np.float32],
    flags: NDArray[np.uint16],
    model: DetectorModel,
    exptime: float,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Weight map of an observed image: 1 / variance in (s/e-)2, and 0 wherever a flag is set.

    Parameters
    ----------
    image : (ny, nx) float32 array
        e-/s
    flags : (ny, nx) uint16 array
    model : DetectorModel
    exptime : float
        s
    out : (ny, nx) float32 array, optional
        Where to write the weights; a new array by default, which costs more than the arithmetic.

    Returns
    -------
    (ny, nx) float32 array
    """
    weight = np.empty_like(image) if out is None else out
    floor = np.float32(model.dark * exptime + model.read_noise**2)
    _inverse_variance(image, flags, floor, np.float32(exptime), weight)
    return weight
