"""The search of `csst_dask.preprocess.peaks` for a frame that lies on a torch device, equal to it bit for bit.

Samples of the cells and runs of saturated pixels go to the host, where both searches make the same of them; pixels are
compared, and light is summed in the same order, on the device.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csst_dask.preprocess.peak_kernels import FLAT
from csst_dask.preprocess.peaks import BRIGHT, LIGHT, PeakSearch
from csst_dask.schema import CONCENTRATION, FLUX, SHAPE_OF, SHAPES, SHARPNESS, TILES

BANDS = 8
"""Bands to work on at a time."""
BEFORE, AFTER = ((-1, -1), (-1, 0), (-1, 1), (0, -1)), ((0, 1), (1, -1), (1, 0), (1, 1))
"""Neighbours, as (dy, dx), that come before and after a pixel in (y, x)."""
AROUND = (
    *(((-2 if k % 2 == 0 else 2), k // 2 - 2) for k in range(10)),
    *((k // 2 - 1, (-2 if k % 2 == 0 else 2)) for k in range(6)),
)
"""Pixels of 5 x 5 that are not of 3 x 3, in the order in which the compiled loop adds them."""


def search_frame(image: Tensor, good: Tensor, saturated: Tensor | None) -> PeakSearch:
    """Search a whole frame.

    Parameters
    ----------
    image : (ny, nx) float32 tensor
    good : (ny, nx) bool tensor
        Valid pixels.
    saturated : (ny, nx) bool tensor, optional

    Returns
    -------
    PeakSearch
        With nothing left to add.
    """
    ny, nx = (int(n) for n in image.shape)
    found = PeakSearch((ny, nx))
    pixels = torch.nn.functional.pad(torch.where(good, image, torch.inf), (2, 2, 2, 2), value=torch.inf)
    for band in range(found.cells[0]):
        y, x = (torch.from_numpy(part).to(image.device) for part in found.sampled(band))
        inside = (x < torch.from_numpy(found.edges_x[1:, None]).to(image.device)).float()
        sample = pixels[(y + 2)[:, None, None], (x.clamp_max(nx - 1) + 2)[None]]
        sample = torch.where(inside.bool()[None], sample, torch.inf)
        found.measure(band, sample.permute(1, 0, 2).reshape(found.cells[1], -1).cpu().numpy())
    for band in range(found.cells[0]):
        found.smoothen(band)
    if saturated is not None:
        places = saturated.nonzero().cpu().numpy().astype(np.int32)
        if len(places):
            found.runs.append(np.column_stack([places, places[:, 1] + 1]))
    for first in range(0, found.cells[0], BANDS):
        _search_bands(pixels, found, first, min(first + BANDS, found.cells[0]))
    return found


def _search_bands(pixels: Tensor, found: PeakSearch, first: int, stop: int) -> None:
    (ny, nx), device = found.shape, pixels.device
    y0, y1 = int(found.edges_y[first]), int(found.edges_y[stop])
    here = pixels[y0 + 2 : y1 + 2, 2:-2]
    row = _send(np.repeat(np.arange(first, stop), np.diff(found.edges_y[first : stop + 1])), device)
    column = _send(np.repeat(np.arange(found.cells[1]), np.diff(found.edges_x)), device)
    sky, noise = (_send(part, device) for part in found.smooth)
    low = (sky + found.least * noise).float()
    low -= low.abs() * 2e-7
    high = (sky + BRIGHT * noise).float()
    high -= high.abs() * 2e-7
    mark = (here >= low[row][:, column]) & (here < torch.inf)
    for neighbours, later in ((BEFORE, False), (AFTER, True)):
        for dy, dx in neighbours:
            other = pixels[y0 + 2 + dy : y1 + 2 + dy, 2 + dx : 2 + dx + nx]
            mark &= other <= here if later else other < here
    y, x = mark.nonzero(as_tuple=True)
    b, s = sky[row[y], column[x]], noise[row[y], column[x]]
    value = here[y, x].double()
    keep = value - b > found.least * s
    y, x, b, s, value = y[keep], x[keep], b[keep], s[keep], value[keep]
    inner = torch.zeros_like(b)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            inner += pixels[y0 + 2 + y + dy, 2 + x + dx].double() - b
    outer = inner.clone()
    for dy, dx in AROUND:
        near = pixels[y0 + 2 + y + dy, 2 + x + dx]
        outer += torch.where(near < torch.inf, near.double() - b, 0.0)
    keep = inner > 3 * found.threshold * s
    y, x, value, b, s, inner, outer = y[keep], x[keep], value[keep], b[keep], s[keep], inner[keep], outer[keep]
    f = _steps(inner, LIGHT)
    c = _steps(torch.where(outer > 0, inner / outer, torch.inf), CONCENTRATION)
    p = _steps((value - b) / inner, SHARPNESS)
    shape = _send(SHAPE_OF.astype(np.int64), device)[c, p]
    place = (f * CONCENTRATION.size + c) * SHARPNESS.size + p
    found.peaks += _count(place, found.peaks.shape)
    tile = ((y0 + y) * TILES // ny) * TILES + x * TILES // nx
    found.tiles += _count((tile * FLUX.size + f) * SHAPES.size + shape, found.tiles.shape)
    bright = (s > 0) & (value >= b + BRIGHT * s)
    counted = torch.stack([y0 + y, x, f, c, p], 1)[bright]
    found.bright.count(counted.cpu().numpy().astype(np.int32))
    if not found.runs:
        bright_here = (here >= high[row][:, column]) & (here < torch.inf)
        _list_bright(pixels, found, y0, bright_here, sky[row], noise[row], column)


def _list_bright(
    pixels: Tensor, found: PeakSearch, y0: int, bright: Tensor, sky: Tensor, noise: Tensor, column: Tensor
) -> None:
    y, x = bright.nonzero(as_tuple=True)
    b, s, value = sky[y, column[x]], noise[y, column[x]], pixels[y0 + 2 + y, 2 + x].double()
    keep = (s > 0) & (value >= b + BRIGHT * s) & (x > 0) & (x < found.shape[1] - 1)
    y, x = y[keep], x[keep]
    near = torch.stack([pixels[y0 + 1 + y + j, 1 + x + i] for j in range(1, 4) for i in range(1, 4)])
    near = torch.where(near < torch.inf, near, 0.0).clamp_min(0).sort(0, descending=True).values
    level = torch.where(near[3] >= float(FLAT) * near[0], near[3], 0.0)
    values = torch.stack([pixels[y0 + 2 + y, 2 + x], level], 1)
    found.bright.add(torch.stack([y0 + y, x], 1).cpu().numpy().astype(np.int32), values.cpu().numpy())


def _send(array: NDArray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _steps(values: Tensor, edges: NDArray[np.floating]) -> Tensor:
    """Steps of an axis by its lower edges; what lies beyond goes to the end steps."""
    found = torch.bucketize(values, _send(edges, values.device), right=True) - 1
    return found.clamp(0, len(edges) - 1)


def _count(places: Tensor, shape: tuple[int, ...]) -> NDArray[np.uint32]:
    return torch.bincount(places, minlength=int(np.prod(shape))).reshape(shape).cpu().numpy().astype(np.uint32)
