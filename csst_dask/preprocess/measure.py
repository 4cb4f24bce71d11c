"""One pass over the pixels of a frame: block statistics, statistics, sky level and peaks.

A frame of 340 MB becomes six maps of 224 x 224, five numbers, and counts of peaks. Area weights are exact: a pixel on
a border counts for each of its blocks by its overlap. Everything is a sum (or a maximum), so a frame may come in
chunks of any shape and in any order, and sums of parts merge by addition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csst_dask.preprocess import kernels
from csst_dask.preprocess.peaks import PeakSearch
from csst_dask.schema import BLOCK_SHAPE, BLOCK_STATS, FRAME_SHAPE, Mask

MAD_TO_SIGMA = 1.4826  # 1 / Phi^-1(3/4): sigma of a Gaussian with unit median absolute deviation
SKY_SAMPLE = 100_000
"""Least number of pixels behind the sky level, where that many are valid."""

STATISTICS = ("pixel_mean", "pixel_std", "n_valid", "sky_level", "sky_sigma")
"""Numbers of a frame."""

Rows = Callable[[int, int], "tuple[NDArray, NDArray | None, NDArray | None]"]
"""Raw image, flags and weights of rows [y0, y1) of a frame; valid until the call after the next."""


@dataclass(frozen=True)
class Measured:
    """What is left of a frame."""

    maps: NDArray[np.floating]
    """(stat, iy, ix) in the unit of the pixels, channels as in `schema.BLOCK_STATS`."""
    pixel_mean: float
    """Mean over valid pixels; NaN where there is none."""
    pixel_std: float
    """Population standard deviation over valid pixels."""
    n_valid: int
    sky_level: float
    """Median of the sparse sample of valid pixels."""
    sky_sigma: float
    """1.4826 times the median absolute deviation of that sample."""

    peaks: NDArray[np.uint32]
    """(flux, concentration, sharpness) counts; this and what follows as in `csst_dask.preprocess.peaks.Peaks`."""
    tile_peaks: NDArray[np.uint16]
    saturated: NDArray[np.uint16]
    sky: NDArray[np.float32]
    noise: NDArray[np.float32]
    zero_point: float = float("nan")
    """AB magnitude of 1 e-/s; NaN where it is the band's."""

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray], scalars: Mapping[str, Any]) -> Measured:
        """What a survey store holds of a frame, as `stored` and `STATISTICS` give it.

        Parameters
        ----------
        arrays : mapping of str to array
            ``block_stats``, ``peaks``, ``tile_peaks``, ``saturated``, ``sky`` and ``noise``.
        scalars : mapping
            `STATISTICS` by name, and ``zero_point``.
        """
        found: dict[str, Any] = {name: float(scalars[name]) for name in (*STATISTICS, "zero_point")}
        found["n_valid"] = int(scalars["n_valid"])
        found |= {name: values for name, values in arrays.items() if name != "block_stats"}
        return cls(maps=arrays["block_stats"], **found)

    def stored(self) -> dict[str, NDArray]:
        """Arrays of a survey store by name, `store.layout.MEASURED`."""
        arrays: dict[str, NDArray] = {"block_stats": self.maps.astype(np.float32)}
        return arrays | {name: getattr(self, name) for name in ("peaks", "tile_peaks", "saturated", "sky", "noise")}

    @property
    def n_pixels(self) -> int:
        """Pixels of the frame, valid or not; 0 where none is valid."""
        share = float(self["valid"].mean(dtype=np.float64))
        return round(self.n_valid / share) if share > 0 else 0

    def __getitem__(self, channel: str) -> NDArray[np.floating]:
        return self.maps[BLOCK_STATS.index(channel)]


class FrameSums:
    """Running sums over the pixels of one frame.

    Parameters
    ----------
    shape : (int, int)
        Frame shape (y, x), pixel.
    out : (int, int)
        Shape (iy, ix) of the block statistics.
    shift : float, optional
        Subtracted from every pixel before it is squared, so that squares stay small; by default the median of a
        sparse sample of the first chunk.
    """

    def __init__(
        self,
        shape: tuple[int, int] = FRAME_SHAPE,
        out: tuple[int, int] = BLOCK_SHAPE,
        shift: float | None = None,
    ):
        self.shape, self.out = shape, out
        self.shift = None if shift is None else np.float32(shift)
        self.sums = np.zeros((3, *out))
        self.top = np.full(out, -np.inf, np.float32)
        self.points = np.zeros((2, *out))
        rows, columns = shape[0] // kernels.SAMPLE_ROWS, shape[1] // kernels.SAMPLE_COLUMNS
        self.sample = np.full((max(rows, 1), max(columns, 1)), np.nan, np.float32)
        self.search = PeakSearch(shape)

    def add(
        self,
        pixels: NDArray,
        flags: NDArray | None = None,
        *,
        invalid: int | None = None,
        saturated: int = Mask.SATURATED,
        y0: int = 0,
        x0: int = 0,
        pool: ThreadPoolExecutor | None = None,
        threads: int = 1,
    ) -> None:
        """Add a chunk; every pixel of the frame may come once.

        Parameters
        ----------
        pixels : (h, w) array
            Any real type; float32 of either byte order is read in place.
        flags : (h, w) unsigned integer or bool array, optional
            Bits that mark invalid pixels.
        invalid : int, optional
            Bits of ``flags`` that make a pixel invalid; by default all.
        saturated : int
            Bits of ``flags`` that mark saturated pixels; by default the bit of the mask and of CSST's flag files.
        y0, x0 : int
            Frame position of the chunk's first pixel.
        pool, threads
            Share the output rows out over this many threads. The result does not depend on it.

        Raises
        ------
        ValueError
            If the chunk does not lie on the frame, or the flags have another shape.
        """
        raw, bits, bad = _readable(pixels, flags, invalid)
        (ny, nx), (h, w) = self.shape, raw.shape
        if y0 < 0 or x0 < 0 or y0 + h > ny or x0 + w > nx:
            raise ValueError(f"chunk of {raw.shape} at ({y0}, {x0}) does not lie on the frame {self.shape}")
        if bits is not None and bits.shape != raw.shape:
            raise ValueError(f"flags have shape {bits.shape}; expected the chunk's {raw.shape}")
        if self.shift is None:
            self._choose_shift(_first_guess(raw, bits, bad))
        shift = np.float32(0) if self.shift is None else self.shift

        def accumulate(pixels: NDArray, flags: NDArray | None, y: int) -> None:
            def part(start: int, stop: int) -> None:
                kernels.accumulate(pixels, flags, bad, y, x0, ny, nx, shift, start, stop, self.sums, self.top)

            if pool is None or threads == 1:
                part(0, self.out[0])
            else:
                edges = np.linspace(0, self.out[0], threads + 1).astype(int).tolist()
                list(pool.map(part, edges[:-1], edges[1:]))

        marks = 0 if flags is None or np.asarray(flags).dtype == bool else saturated
        # rows of the whole frame are summed where the search has put them, while they are at hand
        self.search.add(raw, bits, bad, marks, y0, x0, lambda rows, y: accumulate(rows, None, y))
        if w < nx:
            accumulate(raw, bits, y0)
        kernels.sample_points(raw, bits, bad, y0, x0, ny, nx, self.points)
        kernels.sample_sky(raw, bits, bad, y0, x0, self.sample)

    def _choose_shift(self, shift: np.float32 | None) -> None:
        """Settle on a shift; what came before, of which hardly a pixel was valid, was summed without one."""
        if shift is not None:
            self.sums = _moved(self.sums, -float(shift))
            self.shift = shift

    def merge(self, other: FrameSums) -> None:
        """Add the sums of another part of the same frame.

        Raises
        ------
        ValueError
            If the other sums belong to another frame or grid.
        """
        if (self.shape, self.out) != (other.shape, other.out):
            raise ValueError(f"cannot merge a {other.shape} frame's sums into a {self.shape} frame's")
        if self.shift is None and other.shift is not None:
            self._choose_shift(other.shift)
        self.sums += _moved(other.sums, float(other.shift or 0) - float(self.shift or 0))
        np.maximum(self.top, other.top, out=self.top)
        self.points += other.points
        np.copyto(self.sample, other.sample, where=np.isnan(self.sample))
        self.search.merge(other.search)

    def finish(self) -> Measured:
        """Maps and statistics of what has been added.

        Notes
        -----
        With weights w, ``mean = s + sum(w (p - s)) / sum(w)`` and ``var = sum(w (p - s)^2) / sum(w) - (mean - s)^2``
        for any shift s; s close to the sky keeps the difference well conditioned (Chan, Golub & LeVeque 1983,
        Am. Stat. 37, 242).
        """
        shift = 0.0 if self.shift is None else float(self.shift)
        cell = self.out[0] * self.out[1]
        weight, first, second = self.sums[0] / cell, self.sums[1], self.sums[2]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(weight > 0, first / weight, np.nan)
            std = np.sqrt(np.maximum(second / weight - mean**2, 0))
        maps = np.empty((len(BLOCK_STATS), *self.out))
        maps[0], maps[1], maps[2] = mean + shift, self.sums[0] / (self.shape[0] * self.shape[1]), std
        maps[3] = np.where(weight > 0, self.top, np.nan)
        maps[4], maps[5] = self.points
        total = float(self.sums[0].sum()) / cell
        pixel_mean = pixel_std = float("nan")
        if total > 0:
            offset = float(first.sum()) / total
            pixel_mean = offset + shift
            pixel_std = float(np.sqrt(max(float(second.sum()) / total - offset**2, 0.0)))
        level, sigma = sky_of_sample(self.sample)
        return Measured(maps, pixel_mean, pixel_std, round(total), level, sigma, **vars(self.search.finish()))


def measure_image(
    image: NDArray,
    flags: NDArray | None = None,
    *,
    invalid: int | None = None,
    saturated: int = Mask.SATURATED,
    zero_point: float | None = None,
    out: tuple[int, int] = BLOCK_SHAPE,
    threads: int = 1,
) -> Measured:
    """Measure a whole frame that is in memory.

    Parameters
    ----------
    image : (ny, nx) array
        Any real type; float32 of either byte order is read in place.
    flags : (ny, nx) unsigned integer or bool array, optional
        Bits that mark invalid pixels; pixels that are not finite are invalid anyway.
    invalid : int, optional
        Bits of ``flags`` that make a pixel invalid; by default all.
    saturated : int
        Bits of ``flags`` that mark saturated pixels; by default the bit of the mask and of CSST's flag files.
    zero_point : float, optional
        AB magnitude of 1 e-/s, for what counts stars from this; by default the band's.
    out : (int, int)
        Shape of the maps.
    threads : int
        Threads to use; the result does not depend on it.

    Returns
    -------
    Measured
    """
    sums = FrameSums(image.shape, out)
    if threads == 1:
        sums.add(image, flags, invalid=invalid, saturated=saturated)
    else:
        with ThreadPoolExecutor(threads) as pool:
            sums.add(image, flags, invalid=invalid, saturated=saturated, pool=pool, threads=threads)
    found = sums.finish()
    return found if zero_point is None else replace(found, zero_point=float(zero_point))


def standardised(measured: Measured) -> NDArray[np.float64]:
    """The frame's standardised, zero-filled image and its mask, area-averaged.

    Parameters
    ----------
    measured : Measured

    Returns
    -------
    (2, iy, ix) float64 array
        Block means of ``(pixel - pixel_mean) / pixel_std`` with 0 where invalid, and the valid fraction. A frame
        without scatter or without valid pixels gives exactly 0.
    """
    mean, valid = measured["mean"], measured["valid"]
    scale = measured.pixel_std if measured.pixel_std > 0 else np.inf
    image = np.where(valid > 0, (mean - measured.pixel_mean) * valid / scale, 0.0)
    return np.stack([image, valid])


def sky_of_sample(sample: NDArray[np.float32]) -> tuple[float, float]:
    """Median and scaled median absolute deviation of the finite pixels of a sample.

    Thinned evenly to between one and two times `SKY_SAMPLE` pixels where there are more (Rousseeuw & Croux 1993,
    JASA 88, 1273). Pixels that were rounded to steps are spread over these before, or both numbers would move in steps.
    """
    good = sample[np.isfinite(sample)]
    if good.size == 0:
        return float("nan"), float("nan")
    ordered = _spread(np.sort(good[:: max(1, good.size // SKY_SAMPLE)]))
    level = _median(ordered)
    return level, MAD_TO_SIGMA * _median(np.sort(np.abs(ordered - level)))


def _median(ordered: NDArray[np.floating]) -> float:
    """Median of sorted values; sorting is vectorised, and so a few times faster than what `numpy.median` does."""
    return 0.5 * (float(ordered[(ordered.size - 1) // 2]) + float(ordered[ordered.size // 2]))


def _spread(ordered: NDArray[np.float32]) -> NDArray[np.floating]:
    """Sorted values; where most are tied, each group evenly from half way to the value before to half way to the next.

    So the median is that of grouped data. Where few are tied, or half are one and the same, they stay as they are.
    """
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    count = np.diff(first, append=ordered.size)
    if 2 * first.size > ordered.size or 2 * count.max() > ordered.size:
        return ordered
    values = ordered[first].astype(np.float64)
    middle = 0.5 * (values[1:] + values[:-1])
    edges = np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])
    place = (np.arange(ordered.size) - np.repeat(first, count) + 0.5) / np.repeat(count, count)
    return np.repeat(edges[:-1], count) + np.repeat(np.diff(edges), count) * place


def _moved(sums: NDArray[np.float64], move: float) -> NDArray[np.float64]:
    """Sums about a shift that is smaller by ``move``."""
    weight = sums[0] / (sums.shape[1] * sums.shape[2])
    return np.stack([sums[0], sums[1] + move * weight, sums[2] + 2 * move * sums[1] + move**2 * weight])


def _first_guess(raw: NDArray, bits: NDArray | None, invalid: np.unsignedinteger) -> np.float32 | None:
    """Median of some 10 000 pixels from all over a chunk; None where none of them is valid."""
    grid = np.s_[:: max(raw.shape[0] // 64, 1), :: max(raw.shape[1] // 128, 1)]
    values = np.ascontiguousarray(raw[grid])
    values = values.view(">f4") if raw.dtype == np.uint32 else values
    good = np.isfinite(values)
    if bits is not None:
        good &= (bits[grid] & invalid) == 0
    return np.float32(np.median(values[good])) if good.any() else None


def _readable(
    pixels: NDArray, flags: NDArray | None, invalid: int | None
) -> tuple[NDArray, NDArray | None, np.unsignedinteger]:
    """Arrays as the compiled code takes them, without a copy where possible."""
    pixels = np.asarray(pixels)
    if pixels.dtype == np.dtype(">f4"):
        pixels = pixels.view(np.uint32)
    elif pixels.dtype != np.float32:
        pixels = pixels.astype(np.float32)
    if flags is None:
        return pixels, None, np.uint8(0)
    flags = np.asarray(flags)
    if flags.dtype == bool:
        flags = flags.view(np.uint8)
    if flags.dtype.kind not in "ui":
        raise ValueError(f"flags have type {flags.dtype}; expected an unsigned integer or bool")
    kind = np.uint8 if flags.dtype.itemsize == 1 else np.uint16
    flags = flags if flags.dtype == kind else flags.astype(kind)
    return pixels, flags, kind(np.iinfo(kind).max if invalid is None else invalid)
