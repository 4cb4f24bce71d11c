"""Light that no catalogue lists: satellite trails, ghosts and diffraction spikes."""

from __future__ import annotations

from dataclasses import dataclass
from math import erf

import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.flags import FLAG_GHOST, FLAG_TRAIL
from csst_dask.schema import FRAME_SHAPE
from csst_dask.simulation.psf import PSF, STAMP_RADII, spike_profile

MOSAIC_RADIUS = 38_800.0
"""Of a circle about all detectors, pixel."""
TRAILS_PER_CHIP = 0.05
TRAIL_BRIGHTNESS = (20.0, 6000.0)
"""Electrons per pixel of length, drawn evenly in the logarithm."""
GHOST_SHARE = 3e-4
"""Of a star's light that ends in its ghost."""
GHOST_DRIFT = 0.01
"""A ghost lies this much further from the optical axis than its star."""
GHOST_RADII = (75.0, 250.0)
"""Inner and outer radius of the ring, pixel."""
FAINTEST_GHOST = 0.1
"""Fainter ghosts are left out, electron per pixel."""

_GHOST_EDGE = 12.0
_TABLE_STEP = 16


@dataclass(frozen=True)
class Trail:
    """A straight line across the focal plane."""

    y: float
    """A point of it, pixel."""
    x: float
    angle: float
    """From the x axis towards the y axis, radian."""
    brightness: float
    """Electrons per pixel of length."""
    width: float
    """Before the PSF blurs it, pixel."""


def draw_trails(rng: np.random.Generator, per_chip: float = TRAILS_PER_CHIP) -> tuple[Trail, ...]:
    """Draw the satellite trails of an exposure.

    Lines fall on the focal plane evenly in position and direction, so the number that crosses a chip goes with its
    circumference (Crofton's formula).

    Parameters
    ----------
    rng : numpy.random.Generator
        Of the exposure.
    per_chip : float
        Mean number that crosses a detector.

    Returns
    -------
    tuple of Trail
        In mosaic pixels from the boresight; most exposures have none.
    """
    mean = per_chip * 2 * np.pi * MOSAIC_RADIUS / (2 * sum(FRAME_SHAPE))
    trails = []
    for _ in range(rng.poisson(mean)):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-MOSAIC_RADIUS, MOSAIC_RADIUS)
        brightness = float(np.exp(rng.uniform(*np.log(TRAIL_BRIGHTNESS))))
        width = float(rng.uniform(1, 3))
        y, x = float(offset * np.cos(angle)), float(-offset * np.sin(angle))
        trails.append(Trail(y, x, float(angle), brightness, width))
    return tuple(trails)


def _across(trail: Trail, mixture: NDArray[np.float64]) -> NDArray[np.float32]:
    """Light of a trail per pixel by distance from its axis, at every sixteenth of a pixel; it ends where it fades."""
    light = np.zeros(200 * _TABLE_STEP)
    distance = np.arange(light.size) / _TABLE_STEP
    for weight, sigma in mixture:
        # a pixel seen from any side has a variance of 1/12
        scale = 1 / np.sqrt(2 * (sigma**2 + 1 / 12))
        edges = [np.array([erf(d) for d in (distance + s * trail.width / 2) * scale]) for s in (1, -1)]
        light += weight * (edges[0] - edges[1]) / (2 * trail.width)
    light *= trail.brightness
    return light[: max(int(np.searchsorted(-light, -0.02)), 2)].astype(np.float32)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _draw_line(frame, flags, y0, x0, angle, table, steps, threshold):
    ny, nx = frame.shape
    sine, cosine = np.sin(angle), np.cos(angle)
    reach = (table.shape[0] - 2) / steps
    flagged = 0
    for y in range(ny):
        above = (y + 0.5 - y0) * cosine
        first, last = 0, nx
        if abs(sine) * nx > 1e-6:
            middle, half = x0 + above / sine, reach / abs(sine) + 1
            first = int(min(max(middle - half, 0.0), nx + 0.0))
            last = int(min(max(middle + half + 1, 0.0), nx + 0.0))
        elif abs(above) > reach + 1:
            continue
        for x in range(first, last):
            distance = abs((x + 0.5 - x0) * sine - above) * steps
            k = int(distance)
            if k < table.shape[0] - 1:
                light = table[k] + (table[k + 1] - table[k]) * np.float32(distance - k)
                frame[y, x] += light
                if light > threshold:
                    flags[y, x] |= FLAG_TRAIL
                    flagged += 1
    return flagged


def add_trail(
    frame: NDArray[np.float32],
    flags: NDArray[np.uint16],
    trail: Trail,
    psf: PSF,
    noise: float,
    origin: tuple[float, float] = (0.0, 0.0),
) -> int:
    """Add a satellite trail to a frame, in place.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons.
    flags : (ny, nx) uint16 array
        The trail bit is set where the trail is brighter than the noise.
    trail : Trail
    psf : PSF
    noise : float
        Standard deviation of the background, electron.
    origin : (float, float)
        Where the frame's first pixel begins (y, x), in the coordinates of the trail.

    Returns
    -------
    int
        Flagged pixels.
    """
    table = _across(trail, psf.mixture)
    y, x = trail.y - origin[0], trail.x - origin[1]
    return int(_draw_line(frame, flags, y, x, trail.angle, table, float(_TABLE_STEP), np.float32(noise)))


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _ring(frame, flags, y, x, inner, outer, edge, level, flagged):
    ny, nx = frame.shape
    reach = outer + edge
    for row in range(max(int(y - reach), 0), min(int(y + reach) + 1, ny)):
        dy = row + 0.5 - y
        for column in range(max(int(x - reach), 0), min(int(x + reach) + 1, nx)):
            dx = column + 0.5 - x
            r = np.sqrt(dy * dy + dx * dx)
            share = min((r - inner) / edge, (outer - r) / edge) + 0.5
            if share > 0:
                frame[row, column] += level * np.float32(min(share, 1.0))
                if flagged:
                    flags[row, column] |= FLAG_GHOST


def add_ghosts(
    frame: NDArray[np.float32],
    flags: NDArray[np.uint16],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    flux: NDArray[np.float64],
    *,
    axis: tuple[float, float],
    noise: float,
    share: float = GHOST_SHARE,
    radii: tuple[float, float] = GHOST_RADII,
) -> int:
    """Add the out-of-focus reflections of very bright stars, in place: broad, even rings.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons.
    flags : (ny, nx) uint16 array
        The ghost bit is set within rings brighter than a fifth of the noise.
    y, x : (n,) float64 array
        Stars, pixel from the frame's outer corner; those beyond the frame count as well.
    flux : (n,) float64 array
        Electrons.
    axis : (float, float)
        Optical axis (y, x) in pixels of the frame: for a detector centred on (yc, xc) of the mosaic,
        (ny / 2 - yc, nx / 2 - xc).
    noise : float
        Standard deviation of the background, electron.
    share : float
        Of a star's light that ends in its ghost.
    radii : (float, float)
        Inner and outer radius, pixel.

    Returns
    -------
    int
        Ghosts drawn; those fainter than `FAINTEST_GHOST` in each pixel are not.
    """
    inner, outer = radii
    level = np.asarray(flux) * share / (np.pi * (outer**2 - inner**2))
    drawn = np.flatnonzero(level > FAINTEST_GHOST)
    for k in drawn:
        gy, gx = (p + GHOST_DRIFT * (p - a) for p, a in ((float(y[k]), axis[0]), (float(x[k]), axis[1])))
        _ring(frame, flags, gy, gx, inner, outer, _GHOST_EDGE, np.float32(level[k]), bool(level[k] > 0.2 * noise))
    return int(drawn.size)


def add_spikes(
    frame: NDArray[np.float32], y: NDArray[np.float64], x: NDArray[np.float64], flux: NDArray[np.float64], psf: PSF
) -> None:
    """Carry the diffraction spikes of bright stars on beyond their stamps, in place.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons.
    y, x : (n,) float64 array
        Stars that were drawn with the largest stamp, pixel from the frame's outer corner.
    flux : (n,) float64 array
        Electrons.
    psf : PSF
        Nothing is added unless it has spikes.
    """
    sigma = psf.core / 2.354820045
    for one_y, one_x, light in zip(y, x, np.asarray(flux) * 0.5 * psf.spikes, strict=True):
        _arms(frame, float(one_y), float(one_x), float(light), sigma)
        _arms(frame.T, float(one_x), float(one_y), float(light), sigma)


def _arms(frame: NDArray[np.float32], y: float, x: float, light: float, sigma: float, faintest: float = 0.2) -> None:
    """The two arms along a row."""
    row, column = int(np.floor(y)), int(np.floor(x))
    # brightest pixel: about 1 / (sqrt(2 pi) sigma) of the light of its column
    offset = np.arange(STAMP_RADII[-1] + 1, max(frame.shape))
    offset = offset[light * spike_profile(offset) > faintest * 2.5 * sigma]
    columns = np.concatenate([column - offset, column + offset])
    columns = columns[(columns >= 0) & (columns < frame.shape[1])]
    half = int(np.ceil(5 * sigma))
    rows = np.arange(max(row - half, 0), min(row + half + 1, frame.shape[0]))
    if rows.size and columns.size:
        edges = np.array([erf((edge - y) / sigma / np.sqrt(2)) for edge in (*rows, rows[-1] + 1)])
        patch = 0.5 * np.diff(edges)[:, None] * light * spike_profile(columns + 0.5 - x)[None, :]
        frame[np.ix_(rows, columns)] += patch.astype(np.float32)
