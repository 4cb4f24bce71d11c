"""Stars to electrons: sub-pixel stamps for every star, wings for the bright ones."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.simulation.psf import PHASES, PSF, STAMP_RADII, WING_RADIUS

FAINTEST = 0.2
"""A stamp ends where a star leaves less than this in a pixel, electron."""


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _add_stars(frame, y, x, flux, stamps, radii, limits, wings, wing_flux, reach):
    ny, nx = frame.shape
    centre = stamps.shape[2] // 2
    phases = stamps.shape[0]
    for s in range(y.shape[0]):
        row, column = int(np.floor(y[s])), int(np.floor(x[s]))
        p = min(int((y[s] - row) * phases), phases - 1)
        q = min(int((x[s] - column) * phases), phases - 1)
        size = 0
        while size < limits.shape[0] and flux[s] > limits[size]:
            size += 1
        radius = radii[min(size, radii.shape[0] - 1)]
        y0, y1 = max(row - radius, 0), min(row + radius + 1, ny)
        x0, x1 = max(column - radius, 0), min(column + radius + 1, nx)
        if x1 <= x0 or y1 <= y0:
            if size < radii.shape[0]:
                continue
        else:
            light = np.float32(flux[s])
            for yy in range(y0, y1):
                target = frame[yy, x0:x1]
                source = stamps[p, q, yy - row + centre, x0 - column + centre : x1 - column + centre]
                for k in range(target.shape[0]):
                    target[k] += light * source[k]
        if size == radii.shape[0]:
            _add_wings(frame, y[s], x[s], row, column, radius, flux[s], wings, wing_flux, reach)


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _add_wings(frame, y, x, row, column, radius, flux, wings, wing_flux, reach):
    """Beyond the largest stamp, out to where the star fades below the faintest level."""
    ny, nx = frame.shape
    outer = radius
    while outer < reach and flux * wings[2 * outer] > wing_flux:
        outer = min(outer + 8, reach)
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


def add_stars(
    frame: NDArray[np.float32],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    flux: NDArray[np.float64],
    psf: PSF,
) -> None:
    """Add point sources to a frame, in place.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons.
    y, x : (n,) float64 array
        Positions from the frame's outer corner, pixel: the first pixel spans 0 to 1. Stars outside the frame
        contribute what reaches it.
    flux : (n,) float64 array
        Electrons per star.
    psf : PSF
    """
    order = np.lexsort((x, np.floor(y)))
    limits = np.array([FAINTEST / psf.wings[2 * (radius + 1)] for radius in STAMP_RADII])
    _add_stars(
        frame, y[order], x[order], flux[order], psf.stamps, np.array(STAMP_RADII), limits, psf.wings,
        FAINTEST, WING_RADIUS,
    )  # fmt: skip


def centroid_error() -> float:
    """Largest error of a position along one axis that the phases make, pixel."""
    return 0.5 / PHASES
