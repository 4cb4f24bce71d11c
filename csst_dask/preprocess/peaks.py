"""Peaks of a frame: its local sky, what stands out of it, and areas that are saturated.

A peak is a valid pixel, all of whose 8 neighbours are on the frame, valid and not brighter (of equals the first in
(y, x)). It exceeds the local sky by more than `LEAST` times the local noise, and its 3 x 3 light exceeds three times
that noise by more than `THRESHOLD` times. Saturated stars are areas that carry the flag, or plateaus at the top of
the range where no pixel carries it. Rows of cells, bands, are searched as soon as the ones beside them have been
read, whatever the order in which pixels come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.cells import amplifier_cells, sky_edges
from csst_dask.preprocess import peak_kernels as kernels
from csst_dask.preprocess.saturated import Bright, count_areas
from csst_dask.schema import (
    CONCENTRATION,
    FLUX,
    SHAPE_OF,
    SHAPES,
    SHARPNESS,
    SIZES,
    TILES,
)

LEAST = 3.0
"""A peak's pixel exceeds the local sky by more than this many times the local noise."""
THRESHOLD = 5.0
"""Its 3 x 3 light exceeds three times the local noise by more than this many."""
BRIGHT = 200.0
"""Where no flag tells what is saturated, pixels that exceed the sky by so many times the noise may be saturated."""
LIGHT = 10.0**FLUX
"""Lower edges of the steps of 3 x 3 light, in the unit of the pixels."""
CELL_SAMPLE = 512
"""Pixels of a cell that its sky is measured from, or all that it has."""
GOOD_CELL = 200
"""Valid ones of them that a cell needs to count."""


@dataclass(frozen=True)
class Peaks:
    """What stands out of a frame's sky."""

    peaks: NDArray[np.uint32]
    """(flux, concentration, sharpness) counts; edges as in `schema`."""
    tile_peaks: NDArray[np.uint16]
    """(ty, tx, flux, shape) counts."""
    saturated: NDArray[np.uint16]
    """(ty, tx, size) counts of saturated stars by area."""
    sky: NDArray[np.float32]
    """(sy, sx) local sky, in the unit of the pixels; NaN where it is not known."""
    noise: NDArray[np.float32]
    """(sy, sx) local scatter of the sky."""


class PeakSearch:
    """Running search of one frame.

    Parameters
    ----------
    shape : (int, int)
        Frame shape (y, x), pixel.
    least, threshold : float
        As `LEAST` and `THRESHOLD`.
    """

    def __init__(self, shape: tuple[int, int], least: float = LEAST, threshold: float = THRESHOLD):
        self.shape, self.least, self.threshold = (int(shape[0]), int(shape[1])), float(least), float(threshold)
        self.edges_y, self.edges_x = sky_edges(self.shape)
        self.cells = self.edges_y.size - 1, self.edges_x.size - 1
        self.levels = np.full((2, *self.cells), np.nan)
        """Sky and noise of each cell by itself."""
        self.smooth = np.full((2, *self.cells), np.nan)
        """Medians over the cells around."""
        self.peaks = np.zeros((FLUX.size, CONCENTRATION.size, SHARPNESS.size), np.uint32)
        self.tiles = np.zeros((TILES, TILES, FLUX.size, SHAPES.size), np.uint32)
        self.runs: list[NDArray[np.int32]] = []
        """Runs of saturated pixels: rows of (y, first x, one past the last)."""
        self.bright = Bright(self.shape)
        self._missing = np.diff(self.edges_y) * self.shape[1]
        self._searched = np.zeros(self.cells[0], bool)
        self._bands: dict[int, _Band] = {}
        self._spare: list[NDArray[np.float32]] = []

    def add(
        self,
        pixels: NDArray,
        flags: NDArray | None,
        invalid: np.unsignedinteger,
        saturated: int,
        y0: int = 0,
        x0: int = 0,
        each: Callable[[NDArray[np.float32], int], object] = lambda rows, y: None,
    ) -> None:
        """Add a chunk, as `FrameSums.add` has made it readable; every pixel of the frame may come once.

        Parameters
        ----------
        pixels : (h, w) float32 array, or uint32 array holding the bits of big-endian float32
        flags : (h, w) unsigned integer array, or None
        invalid : unsigned integer of the flags' type
        saturated : int
            Bits of ``flags`` that mark saturated pixels.
        y0, x0 : int
            Frame position of the chunk's first pixel.
        each : callable
            Called with rows of a chunk as wide as the frame, in which invalid pixels are not finite, and the frame
            row of the first.
        """
        h, w = pixels.shape
        if flags is not None and saturated:
            self._note_runs(flags, saturated, y0, x0)
        first = int(np.searchsorted(self.edges_y, y0, "right")) - 1
        last = int(np.searchsorted(self.edges_y, y0 + h - 1, "right")) - 1
        for band in range(max(first - 1, 0), min(last + 2, self.cells[0])):
            low, high = int(self.edges_y[band]), int(self.edges_y[band + 1])
            start, stop = max(low - kernels.HALO, y0), min(high + kernels.HALO, y0 + h)
            if start < stop and not self._searched[band]:
                part = slice(start - y0, stop - y0)
                target = self._band(band).rows[start - low + kernels.HALO : stop - low + kernels.HALO]
                if w < self.shape[1]:
                    target = target[:, x0 : x0 + w]
                if pixels.dtype == np.float32:
                    np.copyto(target, pixels[part])
                else:
                    kernels.swap_rows(pixels[part], target)
                if flags is not None:
                    kernels.blank(flags[part], invalid, target)
                self._band(band).parts.append((start, stop, x0, x0 + w))
                first_own, last_own = max(start, low), min(stop, high)
                if first_own < last_own:
                    if w == self.shape[1]:
                        each(target[first_own - start : last_own - start], first_own)
                    self._missing[band] -= (last_own - first_own) * w
                if self._missing[band] == 0 and not self._band(band).measured:
                    self._sample(band)
                    self._search_ready()
        self._search_ready()

    def merge(self, other: PeakSearch) -> None:
        """Add what another search has seen of other parts of the same frame."""
        self.runs += other.runs
        self.bright.merge(other.bright)
        self.peaks += other.peaks
        self.tiles += other.tiles
        for here, there in ((self.levels, other.levels), (self.smooth, other.smooth)):
            np.copyto(here, there, where=np.isnan(here))
        self._missing -= np.diff(self.edges_y) * self.shape[1] - other._missing
        self._searched |= other._searched
        for band, found in other._bands.items():
            if self._searched[band]:
                continue
            mine, low = self._band(band), int(self.edges_y[band])
            for start, stop, x0, x1 in found.parts:
                part = np.s_[start - low + kernels.HALO : stop - low + kernels.HALO, x0:x1]
                mine.rows[part] = found.rows[part]
            mine.parts += found.parts
            if self._missing[band] == 0 and not mine.measured:
                self._sample(band)
        self._search_ready()

    def finish(self) -> Peaks:
        """Counts of what has been added; bands of which pixels are missing hold no peak."""
        limit, peaks, tiles, runs = np.iinfo(np.uint16).max, self.peaks.copy(), self.tiles.copy(), self.runs
        if not runs:
            runs, counted = self.bright.plateaus()
            y, x, f, c, p = counted.T
            np.subtract.at(peaks, (f, c, p), np.uint32(1))
            place = y.astype(np.int64) * TILES // self.shape[0], x.astype(np.int64) * TILES // self.shape[1]
            np.subtract.at(tiles, (*place, f, SHAPE_OF[c, p]), np.uint32(1))
        return Peaks(
            peaks,
            np.minimum(tiles, limit).astype(np.uint16),
            count_areas(runs, self.shape, SIZES),
            self.smooth[0].astype(np.float32),
            self.smooth[1].astype(np.float32),
        )

    def _note_runs(self, flags: NDArray, saturated: int, y0: int, x0: int) -> None:
        bit, room = flags.dtype.type(saturated & int(np.iinfo(flags.dtype).max)), np.empty((4096, 3), np.int32)
        n = kernels.flagged_runs(flags, bit, y0, x0, room)
        if n > len(room):
            room = np.empty((n, 3), np.int32)
            kernels.flagged_runs(flags, bit, y0, x0, room)
        if n:
            self.runs.append(room[:n].copy())

    def _bright_level(self, sky: NDArray[np.float64], noise: NDArray[np.float64]) -> np.float32:
        """What bright pixels of a band that may lie at the top of the range reach; NaN where flags tell."""
        known = noise > 0
        if self.runs or not known.any():
            return np.float32(np.nan)
        least = float((sky + BRIGHT * noise)[known].min())
        return np.float32(max(least - 2e-7 * abs(least), self.bright.least))

    def _note_bright(
        self, rows: NDArray, y0: int, sky: NDArray, noise: NDArray, high: np.float32, reached: NDArray[np.bool_]
    ) -> None:
        room = 4096
        while reached[kernels.HALO : -kernels.HALO].any():
            places, values = np.empty((room, 2), np.int32), np.empty((room, 2), np.float32)
            n = kernels.list_bright(rows, y0, self.edges_x, sky, noise, BRIGHT, high, reached, places, values)
            if n <= room:
                self.bright.add(places[:n], values[:n])
                return
            room = n

    def _band(self, band: int) -> _Band:
        if band not in self._bands:
            room = int(np.diff(self.edges_y).max()) + 2 * kernels.HALO, self.shape[1]
            rows = self._spare.pop() if self._spare else np.empty(room, np.float32)
            rows = rows[: int(self.edges_y[band + 1] - self.edges_y[band]) + 2 * kernels.HALO]
            if band == 0:
                rows[: kernels.HALO] = kernels.INVALID
            if band == self.cells[0] - 1:
                rows[-kernels.HALO :] = kernels.INVALID
            self._bands[band] = _Band(rows, [])
        return self._bands[band]

    def sampled(self, band: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows (n,), and columns (sx, m) by cell, that the sky of a band is measured from; some lie behind the cell."""
        low, high, width = int(self.edges_y[band]), int(self.edges_y[band + 1]), int(np.diff(self.edges_x).max())
        step_y, step_x = sample_steps(high - low, width)
        return np.arange(low, high, step_y), self.edges_x[:-1, None] + np.arange(0, width, step_x)

    def measure(self, band: int, sample: NDArray[np.float32]) -> None:
        """Note sky and noise of a band's cells from (sx, n) samples, `peak_kernels.INVALID` where there is none."""
        sample.sort(axis=1)
        kernels.cell_levels(sample, GOOD_CELL, self.levels[0, band], self.levels[1, band])

    def smoothen(self, band: int) -> None:
        """Take medians over the cells around those of a band."""
        down, along = amplifier_cells(self.cells)
        for levels, smooth in zip(self.levels, self.smooth, strict=True):
            kernels.smooth_cells(levels, band, down, along, smooth[band])

    def _sample(self, band: int) -> None:
        """Measure the sky of a band whose pixels have all come."""
        found, halo = self._bands[band], kernels.HALO
        rows, columns = self.sampled(band)
        sample = np.empty((self.cells[1], rows.size * columns.shape[1]), np.float32)
        step_y, step_x = sample_steps(int(np.diff(self.edges_y)[band]), int(np.diff(self.edges_x).max()))
        kernels.sample_cells(found.rows[halo:-halo], self.edges_x, step_y, step_x, sample)
        self.measure(band, sample)
        found.measured = True

    def _search_ready(self) -> None:
        """Search bands whose neighbours have been measured, and forget their pixels."""
        for band in sorted(self._bands):
            if not self._missing[max(band - 1, 0) : band + 2].any():
                self._search(band)

    def _search(self, band: int) -> None:
        self.smoothen(band)
        found = self._bands.pop(band)
        sky, noise = self.smooth[:, band]
        where, steps = (found.rows, int(self.edges_y[band])), (LIGHT, CONCENTRATION, SHARPNESS, SHAPE_OF)
        high, reached = self._bright_level(sky, noise), np.empty(len(found.rows), np.bool_)
        counted = np.empty((found.rows.size // 4, 5), np.int32)  # no two peaks are neighbours
        n = kernels.search_band(
            *where, self.shape, self.edges_x, sky, noise, self.least, self.threshold, BRIGHT, *steps, self.peaks,
            self.tiles, counted, high, reached,
        )  # fmt: skip
        self.bright.count(counted[:n].copy())
        self._note_bright(*where, sky, noise, high, reached)
        self._searched[band] = True
        base: Any = found.rows.base
        self._spare.append(found.rows if base is None else base)


@dataclass
class _Band:
    rows: NDArray[np.float32]
    """Between two rows before and two after it."""
    parts: list[tuple[int, int, int, int]]
    """First row, one past the last, first column, one past the last of what has come."""
    measured: bool = False


def sample_steps(height: int, width: int) -> tuple[int, int]:
    """Steps in y and x between sampled pixels of a cell, so that at least `CELL_SAMPLE` are taken where there are.

    Parameters
    ----------
    height, width : int
        Of the cell, pixel.
    """
    step = max(height * width // CELL_SAMPLE, 1)
    step_x = max(int(np.sqrt(step / 2)), 1)
    return max(step // step_x, 1), step_x
