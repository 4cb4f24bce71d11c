"""Stars to electrons: a sub-pixel stamp for every star, wings for the bright ones, and a glow for what lies beyond.

A star's stamp ends where the star has faded below `FAINTEST`. The light outside of the stamp is not lost: it goes
into the glow, a coarse image that is added when the sky is.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.simulation.noise import GLOW_CELL
from csst_dask.simulation.psf import PSF, STAMP_RADII, WING_RADIUS

FAINTEST = 0.4
"""A stamp ends where a star leaves less than this in a pixel, electron."""
WING_STEP = 8
"""Wings grow in steps of this many pixels until they are too faint."""
_WIDTHS = (16, 16, 32, 32, 48)
"""Stamps are padded to these widths, so that the compiled loops have a fixed length."""


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"}, inline="always")
def _stamp(frame, stamp, y0, x0, side, width, light):
    """Add a stamp whose corner lies at (y0, x0); on the frame's edge only what is on the frame."""
    ny, nx = frame.shape
    if y0 >= 0 and x0 >= 0 and y0 + side <= ny and x0 + width <= nx:
        for j in range(side):
            target, source = frame[y0 + j], stamp[j]
            for k in range(width):
                target[x0 + k] += light * source[k]
    else:
        for j in range(max(-y0, 0), min(side, ny - y0)):
            for k in range(max(-x0, 0), min(side, nx - x0)):
                frame[y0 + j, x0 + k] += light * stamp[j, k]


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _paint(frame, glow, y, x, flux, s0, s1, s2, s3, s4, radii, limits, outside, wings, faintest, reach):
    phases = s0.shape[0]
    for s in range(y.shape[0]):
        row, column = int(np.floor(y[s])), int(np.floor(x[s]))
        p = min(int((y[s] - row) * phases), phases - 1)
        q = min(int((x[s] - column) * phases), phases - 1)
        size = 0
        while size < limits.shape[0] and flux[s] > limits[size]:
            size += 1
        radius = radii[min(size, radii.shape[0] - 1)]
        light = np.float32(flux[s])
        y0, x0 = row - radius, column - radius
        if size == 0:
            _stamp(frame, s0[p, q], y0, x0, 7, 16, light)
        elif size == 1:
            _stamp(frame, s1[p, q], y0, x0, 11, 16, light)
        elif size == 2:
            _stamp(frame, s2[p, q], y0, x0, 17, 32, light)
        elif size == 3:
            _stamp(frame, s3[p, q], y0, x0, 27, 32, light)
        else:
            _stamp(frame, s4[p, q], y0, x0, 41, 48, light)
        if size < radii.shape[0]:
            _add_glow(glow, y[s], x[s], flux[s] * outside[size])
        else:
            _add_wings(frame, y[s], x[s], row, column, radius, flux[s], wings, faintest, reach)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_glow(glow, y, x, light):
    """Share light among the four nearest pixels of the glow; node (j, i) lies at the corner (16 j, 16 i)."""
    v, u = y / GLOW_CELL, x / GLOW_CELL
    j, i = int(np.floor(v)), int(np.floor(u))
    v, u, light = v - j, u - i, light / (GLOW_CELL * GLOW_CELL)
    for b in range(2):
        for a in range(2):
            if 0 <= j + b < glow.shape[0] and 0 <= i + a < glow.shape[1]:
                glow[j + b, i + a] += light * (v if b else 1 - v) * (u if a else 1 - u)


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _add_wings(frame, y, x, row, column, radius, flux, wings, faintest, reach):
    """Beyond the largest stamp, out to where the star fades below the faintest level."""
    ny, nx = frame.shape
    outer = radius
    while outer < reach and flux * wings[2 * outer] > faintest:
        outer = min(outer + WING_STEP, reach)
    for yy in range(max(row - outer, 0), min(row + outer + 1, ny)):
        dy = yy + 0.5 - y
        for xx in range(max(column - outer, 0), min(column + outer + 1, nx)):
            if abs(yy - row) <= radius and abs(xx - column) <= radius:
                continue
            dx = xx + 0.5 - x
            distance = 2 * np.sqrt(dy * dy + dx * dx)
            if distance < 2 * outer:
                k = int(distance)
                part = np.float32(distance - k)
                frame[yy, xx] += np.float32(flux) * (wings[k] * (1 - part) + wings[k + 1] * part)


def padded_stamps(psf: PSF) -> list[NDArray[np.float32]]:
    """Stamps of every size: (16, 16, 2 r + 1, width) float32, zero beyond 2 r + 1 columns."""
    centre, out = psf.stamps.shape[2] // 2, []
    for radius, width in zip(STAMP_RADII, _WIDTHS, strict=True):
        side = 2 * radius + 1
        stamps = np.zeros((*psf.stamps.shape[:2], side, width), np.float32)
        middle = slice(centre - radius, centre + radius + 1)
        stamps[..., :side] = psf.stamps[:, :, middle, middle]
        out.append(stamps)
    return out


def flux_limits(psf: PSF) -> NDArray[np.float64]:
    """Largest flux (electron) for which each stamp size serves; brighter stars get the largest and wings."""
    return np.array([FAINTEST / psf.wings[2 * (radius + 1)] for radius in STAMP_RADII])


def light_outside(stamps: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """(5,) share of a star's light beyond the stamps of each size."""
    return np.array([max(1.0 - float(s.sum((2, 3), dtype=np.float64).mean()), 0.0) for s in stamps])


def new_glow(shape: tuple[int, int]) -> NDArray[np.float32]:
    """An empty glow for a frame of a shape, (ny // 16 + 2, nx // 16 + 2) float32."""
    return np.zeros((shape[0] // GLOW_CELL + 2, shape[1] // GLOW_CELL + 2), np.float32)


def paint_stars(
    frame: NDArray[np.float32],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    flux: NDArray[np.float64],
    psf: PSF,
) -> NDArray[np.float32]:
    """Add the stamps and wings of point sources to a frame, in place, and return the glow that is still to come.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons.
    y, x : (n,) float64 array
        Positions from the frame's outer corner, pixel: the first pixel spans 0 to 1. Stars outside of the frame
        contribute what reaches it.
    flux : (n,) float64 array
        Electrons per star.
    psf : PSF

    Returns
    -------
    (ny // 16 + 2, nx // 16 + 2) float32 array
        Electrons per pixel of the frame, at its pixel corners (16 j, 16 i); linear in between.
    """
    glow = new_glow(frame.shape)
    order = np.lexsort((x, np.floor(y)))
    stamps = padded_stamps(psf)
    s0, s1, s2, s3, s4 = stamps
    _paint(
        frame, glow, y[order], x[order], flux[order], s0, s1, s2, s3, s4, np.array(STAMP_RADII), flux_limits(psf),
        light_outside(stamps), psf.wings, FAINTEST, WING_RADIUS,
    )  # fmt: skip
    return glow


def expand_glow(glow: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """The glow on every pixel of a frame: (ny, nx) float32, electrons."""

    def weights(n: int) -> tuple[NDArray, NDArray]:
        place = (np.arange(n) + 0.5) / GLOW_CELL
        return place.astype(int), (place % 1).astype(np.float32)

    (j, v), (i, u) = weights(shape[0]), weights(shape[1])
    rows = glow[j] * (1 - v)[:, None] + glow[j + 1] * v[:, None]
    return rows[:, i] * (1 - u) + rows[:, i + 1] * u


def add_stars(
    frame: NDArray[np.float32],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    flux: NDArray[np.float64],
    psf: PSF,
) -> None:
    """Add point sources to a frame with all their light, in place; parameters as for `paint_stars`."""
    frame += expand_glow(paint_stars(frame, y, x, flux, psf), frame.shape)
