"""Galaxies on a torch device: the Gaussians that `csst_dask.simulation.sersic` lists, many at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csst_dask.simulation import sersic
from csst_dask.simulation.stars_torch import add_boxes, groups_of

_REACHES = np.unique(np.round(6 * 2 ** (np.arange(27) / 4)).astype(np.int64))
"""Half sizes of the boxes on which Gaussians are drawn, pixel: 6 to 543."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _list_all(y, x, shapes, disc, bulge, mixture, faintest, out):
    """Gaussians of all galaxies: y, x, peak, covariance, cut."""
    total, wide, n = mixture[:, 0].sum(), np.empty_like(mixture), 0
    rows = np.empty(((disc.shape[0] + bulge.shape[0] + 2) * (mixture.shape[0] + 1), 5))
    for g in range(y.shape[0]):
        if shapes[g, 0] > 0.0:
            for k in range(sersic._list_galaxy(rows, shapes[g], disc, bulge, mixture, total, wide, faintest)):
                out[n, 0], out[n, 1] = y[g], x[g]
                out[n, 2:] = rows[k]
                n += 1
    return n


@dataclass(frozen=True)
class GaussianGroups:
    """Gaussians sorted by their reach."""

    rows: NDArray[np.float64]
    """(7, n): y, x, peak, covariance (xx, xy, yy), cut."""
    stops: NDArray[np.int64]
    """Gaussians that fit on a box of half size _REACHES[k] are those from stop k to stop k + 1; then the others."""


def group_galaxies(galaxies: NDArray[np.float64], mixture: NDArray[np.float64]) -> GaussianGroups:
    """The Gaussians that galaxies are made of, sorted by size.

    Parameters
    ----------
    galaxies : (8, n) float64 array
        `csst_dask.simulation.shot.Shot.galaxies`.
    mixture : (k, 2) float64 array
        `csst_dask.simulation.psf.PSF.mixture`.

    Returns
    -------
    GaussianGroups
    """
    psf = sersic._compress(mixture)
    shapes = np.ascontiguousarray(galaxies[2:].T)
    most = (len(sersic.DISC) + len(sersic.BULGE) + 2) * (len(psf) + 1)
    out = np.empty((len(shapes) * most, 7))
    n = _list_all(galaxies[0], galaxies[1], shapes, sersic.DISC, sersic.BULGE, psf, sersic.FAINTEST, out)
    rows = out[:n]
    reach = np.sqrt(2.0 * rows[:, 6] * np.maximum(rows[:, 3], rows[:, 5])).astype(np.int64) + 1
    size = np.searchsorted(_REACHES, reach).astype(np.uint8)
    order = np.argsort(size, kind="stable")
    return GaussianGroups(rows[order].T.copy(), np.searchsorted(size[order], np.arange(len(_REACHES) + 2)))


def _profile(steps: Tensor, centre: Tensor, low: Tensor, high: Tensor, height: Tensor, curvature: Tensor) -> Tensor:
    """Gaussians by rows: (n, h, w) of ``height * exp(-curvature u^2)`` with u = steps + 1/2 - centre, for whole steps
    from low up to high."""
    u = steps + 0.5 - centre[:, :, None]
    value = torch.exp(u * u * -curvature[:, None, None]) * height[:, :, None]
    return value * ((steps >= low[:, :, None]) & (steps < high[:, :, None]))


class GalaxyPainter:
    """Adds Gaussians to a frame.

    Parameters
    ----------
    batch : int
        Pixels to draw at a time.
    compiled : bool
        Let torch compile the loop over pixels, so that none of its steps goes through the device's memory. The first
        call takes some seconds, and needs what `torch.compile` needs on the device.
    """

    def __init__(self, batch: int, compiled: bool = False):
        self.batch = batch
        self._profile = torch.compile(_profile, dynamic=True) if compiled else _profile

    def paint(self, frame: Tensor, rows: Tensor, groups: GaussianGroups) -> None:
        """Add Gaussians to a frame, in place.

        Parameters
        ----------
        frame : (ny, nx) float32 tensor
            Electrons; contiguous.
        rows : (7, n) float64 tensor
            `GaussianGroups.rows` on the frame's device.
        groups : GaussianGroups
        """
        for k, reach in enumerate(_REACHES.tolist()):
            start, stop = int(groups.stops[k]), int(groups.stops[k + 1])
            side = 2 * reach + 1
            for part in groups_of(stop - start, side * side, self.batch):
                s = rows[:, start + part.start : start + part.stop]
                top, left = s[:2].floor().long() - reach
                add_boxes(frame, self._draw(s, frame.shape, (-reach, -reach), (side, side)), top, left)
        for n in range(int(groups.stops[len(_REACHES)]), rows.shape[1]):
            self._paint_wide(frame, rows[:, n : n + 1], groups.rows[:, n])

    def _paint_wide(self, frame: Tensor, row: Tensor, known: NDArray[np.float64]) -> None:
        """One Gaussian too wide for a box: on whole rows of the frame. ``known`` is the row on the host."""
        ny, nx = frame.shape
        y, x, reach = float(known[0]), float(known[1]), float(np.sqrt(2 * known[6] * known[5])) + 1
        y0, y1 = max(int(y - reach), 0), min(int(y + reach) + 1, ny)
        step = max(self.batch // nx, 1)
        for top in range(y0, y1, step):
            h = min(step, y1 - top)
            frame[top : top + h] += self._draw(row, frame.shape, (top - floor(y), -floor(x)), (h, nx))[0]

    def _draw(self, rows: Tensor, shape: tuple[int, ...], first: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """(n, h, w) boxes that begin so many pixels from the pixel that holds the centre; 0 off the frame."""
        y, x, peak, cxx, cxy, cyy, cut = rows[:, :, None]
        row, column = y.floor(), x.floor()
        steps = torch.arange(first[0], first[0] + size[0], device=rows.device)
        dy = steps + 0.5 - (y - row)
        determinant, fall = cxx * cyy - cxy * cxy, 0.5 / cyy
        rest = cut - dy * dy * fall
        rest = torch.where((row + steps >= 0) & (row + steps < shape[0]), rest, 0)
        half = torch.sqrt(rest.clamp_min(0) * (2 * determinant / cyy))
        centre = (x - column + cxy / cyy * dy + sersic._ROUND) - sersic._ROUND
        low = torch.maximum(torch.floor(centre - half + 0.5), -column)
        high = torch.where(rest > 0, torch.minimum(torch.floor(centre + half + 0.5), shape[1] - column), low)
        height, curvature = peak * torch.exp(-fall * dy * dy), 0.5 * cyy / determinant
        places = torch.arange(first[1], first[1] + size[1], device=rows.device, dtype=torch.float32)
        return self._profile(places, centre.float(), low.float(), high.float(), height.float(), curvature[:, 0].float())
