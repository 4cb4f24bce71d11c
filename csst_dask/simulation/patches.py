"""Ghosts, trails and cosmic rays as small pieces of a frame, for renderers whose frame lies on another device.

The pieces are drawn by the functions that draw on whole frames: only where they draw differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from csst_dask.simulation.artefacts import GHOST_DRIFT, GHOST_RADII, Trail, add_ghosts, add_trail
from csst_dask.simulation.detector import add_cosmic_rays
from csst_dask.simulation.shot import Shot

_TRAIL_ROWS = 128
"""A trail is cut into pieces of this many rows."""
_TRAIL_REACH = 200
"""No trail sheds light further from its axis, pixel."""
_GHOST_MARGIN = 16
"""Between a ghost's outer radius and the edge of its piece, pixel: its soft edge is narrower."""
_RUN = 64
"""Flags that are tested together for being all zero."""
_PART = 1 << 20
"""Pixels that are listed in one go."""


@dataclass(frozen=True)
class Patch:
    """A rectangle to be added to a frame."""

    y: int
    x: int
    """First row and column."""
    light: NDArray[np.float32]
    """Electrons."""
    flags: NDArray[np.uint16]


@dataclass(frozen=True)
class Specks:
    """Single pixels to be added to a frame, each once."""

    index: NDArray[np.int32]
    """(n,) y * nx + x, rising."""
    light: NDArray[np.float32]
    flags: NDArray[np.uint16]


def _blank(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    return np.zeros((height, width), np.float32), np.zeros((height, width), np.uint16)


def _ghosts(shot: Shot) -> list[Patch]:
    """One piece for each ghost."""
    if not shot.ghosts or not len(shot.flux):
        return []
    reach, out = int(GHOST_RADII[1]) + _GHOST_MARGIN, []
    axis = (-shot.corner[0], -shot.corner[1])
    drawn = add_ghosts(*_blank(1, 1), shot.y, shot.x, shot.flux, axis=axis, noise=shot.noise)
    for k in np.argpartition(shot.flux, -drawn)[-drawn:] if drawn else []:
        middle = [float(p) + GHOST_DRIFT * (float(p) - a) for p, a in ((shot.y[k], axis[0]), (shot.x[k], axis[1]))]
        (y0, y1), (x0, x1) = (
            (max(int(m) - reach, 0), min(int(m) + reach, n)) for m, n in zip(middle, shot.shape, strict=True)
        )
        if y1 > y0 and x1 > x0:
            light, flags = _blank(y1 - y0, x1 - x0)
            add_ghosts(
                light, flags, shot.y[k : k + 1] - y0, shot.x[k : k + 1] - x0, shot.flux[k : k + 1],
                axis=(axis[0] - y0, axis[1] - x0), noise=shot.noise,
            )  # fmt: skip
            out.append(Patch(y0, x0, light, flags))
    return out


def _crosses(shot: Shot, trail: Trail) -> bool:
    """Whether a trail comes near the frame: not if all corners lie well on one side of it."""
    (ny, nx), (top, left) = shot.shape, shot.corner
    y, x = np.array([0, 0, ny, ny]) + top - trail.y, np.array([0, nx, 0, nx]) + left - trail.x
    distance = x * np.sin(trail.angle) - y * np.cos(trail.angle)
    return bool(distance.min() < _TRAIL_REACH and distance.max() > -_TRAIL_REACH)


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _take_marked(light, flags, index, values, marks):
    """Move the flagged pixels of a frame to lists and clear them; returns their number, or the list's length if
    that is too short."""
    n, nx = 0, flags.shape[1]
    for y in range(flags.shape[0]):
        for x0 in range(0, nx, _RUN):
            run, found = flags[y, x0 : min(x0 + _RUN, nx)], np.uint16(0)
            for k in range(run.shape[0]):
                found = np.uint16(found | run[k])
            if found == 0:
                continue
            for k in range(run.shape[0]):
                if run[k] != 0:
                    if n == index.shape[0]:
                        return n
                    index[n], values[n], marks[n] = y * nx + x0 + k, light[y, x0 + k], run[k]
                    light[y, x0 + k], run[k] = 0, 0
                    n += 1
    return n


class Plate:
    """Draws artefacts on a frame of its own, which is blank between shots; one for each thread.

    Parameters
    ----------
    shape : (int, int)
        Frame, pixel.
    """

    def __init__(self, shape: tuple[int, int]):
        # blank pages cost nothing before they are touched
        self.light, self.flags = _blank(*shape)

    def draw(self, shot: Shot) -> tuple[list[Patch], Specks]:
        """Everything but stars and galaxies that sheds light on the frame.

        Parameters
        ----------
        shot : Shot

        Returns
        -------
        patches : list of Patch
            Ghosts and trails.
        specks : Specks
            Cosmic rays.

        Raises
        ------
        ValueError
            If the shot is for another frame.
        """
        if shot.shape != self.light.shape:
            raise ValueError(
                f"a shot of a {shot.shape} frame on a plate of {self.light.shape}; make a Plate of the shot's shape"
            )
        patches = _ghosts(shot)
        for trail in shot.trails:
            if _crosses(shot, trail):
                add_trail(self.light, self.flags, trail, shot.psf, shot.noise, shot.corner)
                patches += self._take_rows()
        return patches, self._rays(shot)

    def _take_rows(self) -> list[Patch]:
        """Cut what is on the plate into pieces, each as wide as need be, and clear it."""
        out = []
        for y0 in range(0, self.light.shape[0], _TRAIL_ROWS):
            light, flags = self.light[y0 : y0 + _TRAIL_ROWS], self.flags[y0 : y0 + _TRAIL_ROWS]
            columns = np.flatnonzero(light.any(0))
            if len(columns):
                part = np.s_[:, columns[0] : columns[-1] + 1]
                out.append(Patch(y0, int(columns[0]), light[part].copy(), flags[part].copy()))
                light[part], flags[part] = 0, 0
        return out

    def _rays(self, shot: Shot) -> Specks:
        parts = [(np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.uint16))]
        if shot.cosmic_rays:
            rng = np.random.default_rng(shot.random(1))
            add_cosmic_rays(self.light, self.flags, shot.model, shot.exptime, rng)
            while len(parts) == 1 or len(parts[-1][0]) == _PART:
                index, light, marks = np.empty(_PART, np.int32), np.empty(_PART, np.float32), np.empty(_PART, np.uint16)
                n = _take_marked(self.light, self.flags, index, light, marks)
                parts.append((index[:n], light[:n], marks[:n]))
        return Specks(*(np.concatenate(column) for column in zip(*parts, strict=True)))
