"""Stars on a torch device: what `csst_dask.simulation.render` draws one after the other, many at a time.

The law is the same: stamps, limits and wings come from there. Light is added by atomic operations,
whose order a GPU does not fix, so that two runs may differ in the last bits of a float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csst_dask.simulation.noise import GLOW_CELL
from csst_dask.simulation.psf import PSF, STAMP_RADII, WING_RADIUS
from csst_dask.simulation.render import FAINTEST, WING_STEP, flux_limits, light_outside, new_glow


def groups_of(total: int, size: int, batch: int) -> Iterator[slice]:
    """Slices of ``total`` objects of ``size`` pixels each that hold up to ``batch`` pixels, or one object."""
    step = max(batch // size, 1)
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def add_boxes(frame: Tensor, values: Tensor, top: Tensor, left: Tensor) -> None:
    """Add (n, h, w) boxes whose corners lie at (top, left). Values off the frame must be 0: they go to its edge."""
    (ny, nx), (_, h, w) = frame.shape, values.shape
    rows = (top[:, None] + torch.arange(h, device=frame.device)).clamp_(0, ny - 1) * nx
    columns = (left[:, None] + torch.arange(w, device=frame.device)).clamp_(0, nx - 1)
    index = rows.int()[:, :, None] + columns.int()[:, None, :]
    frame.view(-1).index_add_(0, index.view(-1), values.view(-1))


def _inside(first: Tensor, size: int, limit: int) -> Tensor:
    """(n, size): which of ``size`` pixels from ``first`` on lie within [0, limit)."""
    places = first[:, None] + torch.arange(size, device=first.device)
    return (places >= 0) & (places < limit)


@dataclass(frozen=True)
class StarGroups:
    """Stars sorted by the size of their stamps, and those with wings by the size of these."""

    stars: NDArray[np.float64]
    """(3, n): y, x, flux."""
    stops: NDArray[np.int64]
    """(7,): stars of stamp size k are those from stop k to stop k + 1; the last have the largest stamp and wings."""
    outer: tuple[tuple[int, int, int], ...]
    """Half size of the wings, pixel, and the first and the last star but one that have it."""
    outside: NDArray[np.float64]
    """(5,): share of the light beyond each stamp."""


def group_stars(y: NDArray, x: NDArray, flux: NDArray, psf: PSF, stamps: list[NDArray[np.float32]]) -> StarGroups:
    """Sort stars by what has to be drawn of them.

    Parameters
    ----------
    y, x, flux : (n,) float64 array
        As for `csst_dask.simulation.render.paint_stars`.
    psf : PSF
    stamps : list of float32 array
        From `csst_dask.simulation.render.padded_stamps`.

    Returns
    -------
    StarGroups
    """
    # the first limit that a star does not exceed
    size = np.searchsorted(np.maximum.accumulate(flux_limits(psf)), flux)
    winged = np.flatnonzero(size == len(STAMP_RADII))
    outer = np.full(len(winged), STAMP_RADII[-1])
    growing = np.arange(len(winged))
    for reach in range(STAMP_RADII[-1], WING_RADIUS, WING_STEP):
        growing = growing[flux[winged[growing]] * psf.wings[2 * reach] > FAINTEST]
        outer[growing] = min(reach + WING_STEP, WING_RADIUS)
    size[winged] += outer - STAMP_RADII[-1]
    order = np.argsort(size.astype(np.int16), kind="stable")
    edges = [*range(len(STAMP_RADII) + 1), WING_RADIUS]
    stops = np.searchsorted(size[order], edges)
    found, first = np.unique(size[order][stops[-2] :], return_index=True)
    reaches, starts = found + STAMP_RADII[-1] - len(STAMP_RADII), [*(first + stops[-2]).tolist(), len(size)]
    wings = zip(reaches.tolist(), starts[:-1], starts[1:], strict=True)
    drawn = tuple(wing for wing in wings if wing[0] > STAMP_RADII[-1])
    return StarGroups(np.stack([y, x, flux])[:, order], stops, drawn, light_outside(stamps))


def paint_stars(
    frame: Tensor, stars: Tensor, groups: StarGroups, stamps: list[Tensor], wings: Tensor, batch: int
) -> Tensor:
    """Add stamps and wings of point sources to a frame, in place, and return the glow that is still to come.

    Parameters
    ----------
    frame : (ny, nx) float32 tensor
        Electrons; contiguous.
    stars : (3, n) float64 tensor
        `StarGroups.stars` on the frame's device.
    groups : StarGroups
    stamps : list of float32 tensor
        (16, 16, 2 r + 1, 2 r + 1) for each stamp size.
    wings : float32 tensor
        `csst_dask.simulation.psf.PSF.wings`.
    batch : int
        Pixels to draw at a time.

    Returns
    -------
    float32 tensor
        As from `csst_dask.simulation.render.paint_stars`.
    """
    cells = new_glow((frame.shape[0], frame.shape[1])).shape
    glow = torch.zeros(cells, dtype=torch.float64, device=frame.device)
    whole = stars[:2].floor()
    phases = stamps[0].shape[0]
    phase = ((stars[:2] - whole) * phases).long().clamp_max(phases - 1)
    picture, corner = phase[0] * phases + phase[1], whole.long()
    light = stars[2].float()
    for k, stamp in enumerate(stamps):
        start, stop = int(groups.stops[k]), int(groups.stops[k + 1] if k + 1 < len(stamps) else stars.shape[1])
        library, radius = stamp.flatten(0, 1), STAMP_RADII[k]
        for part in groups_of(stop - start, library[0].numel(), batch):
            s = slice(start + part.start, start + part.stop)
            top, left = corner[:, s] - radius
            rows, columns = (_inside(p, 2 * radius + 1, n) for p, n in zip((top, left), frame.shape, strict=True))
            values = library[picture[s]] * (light[s, None] * rows)[:, :, None] * columns[:, None, :]
            add_boxes(frame, values, top, left)
        s = slice(start, int(groups.stops[k + 1]))
        _add_glow(glow, stars[:, s], groups.outside[k])
    for outer, start, stop in groups.outer:
        for part in groups_of(stop - start, (2 * outer + 1) ** 2, batch // 4):
            s = slice(start + part.start, start + part.stop)
            top, left = corner[:, s] - outer
            rows, columns = (_inside(p, 2 * outer + 1, n) for p, n in zip((top, left), frame.shape, strict=True))
            values = _wings(stars[:2, s] - whole[:, s], light[s, None] * rows, columns, outer, wings)
            add_boxes(frame, values, top, left)
    return glow.float()


def _add_glow(glow: Tensor, stars: Tensor, outside: float) -> None:
    """Share the light beyond the stamps among the four nearest nodes of the glow."""
    place = stars[:2] / GLOW_CELL
    node = place.floor()
    v, u = place - node
    j, i = node.long()
    light = stars[2] * (float(outside) / (GLOW_CELL * GLOW_CELL))
    for dj, weight in ((0, 1 - v), (1, v)):
        for di, other in ((0, 1 - u), (1, u)):
            row, column = j + dj, i + di
            inside = (row >= 0) & (row < glow.shape[0]) & (column >= 0) & (column < glow.shape[1])
            place = row.clamp(0, glow.shape[0] - 1) * glow.shape[1] + column.clamp(0, glow.shape[1] - 1)
            glow.view(-1).index_add_(0, place, light * weight * other * inside)


def _wings(offset: Tensor, light: Tensor, columns: Tensor, outer: int, wings: Tensor) -> Tensor:
    """Light of stars beyond their largest stamp, out to ``outer``: (n, 2 outer + 1, 2 outer + 1) float32; ``light``
    by rows, ``columns`` tells those that count."""
    steps = torch.arange(-outer, outer + 1, device=offset.device, dtype=torch.float64)
    square = (steps + 0.5 - offset[:, :, None]) ** 2
    distance = 2 * torch.sqrt(square[0, :, :, None] + square[1, :, None, :])
    beyond = steps.abs() > STAMP_RADII[-1]
    seen = (distance < 2 * outer) & (beyond[:, None] | beyond) & columns[:, None, :]
    distance = distance.clamp_max_(2 * outer)
    k = distance.int()
    part = (distance - k).float()
    value = torch.lerp(wings[k], wings[k + 1], part)
    return value * light[:, :, None] * seen


def add_glow(frame: Tensor, glow: Tensor) -> None:
    """Add the glow to every pixel of a frame, in place, as `csst_dask.simulation.render.expand_glow` spreads it."""
    (ny, nx), device = frame.shape, frame.device
    place = (torch.arange(ny, device=device, dtype=torch.float64) + 0.5) / GLOW_CELL
    j = place.long()
    v = (place - j).float()[:, None]
    rows = glow[j] * (1 - v) + glow[j + 1] * v
    left, slope = rows[:, :-1], rows[:, 1:] - rows[:, :-1]
    u = (torch.arange(GLOW_CELL, device=device, dtype=torch.float32) + 0.5) / GLOW_CELL
    whole = nx // GLOW_CELL
    if whole:
        # a view, so that this happens in place
        blocks = frame[:, : whole * GLOW_CELL].unflatten(1, (whole, GLOW_CELL))
        blocks.add_(left[:, :whole, None]).addcmul_(slope[:, :whole, None], u)
    rest = nx - whole * GLOW_CELL
    if rest:
        frame[:, nx - rest :] += left[:, whole, None] + slope[:, whole, None] * u[:rest]
