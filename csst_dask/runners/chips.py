"""What a task does with one chip: rows of pixels in, a chip of the store and a record out. No cluster needed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from csst_dask.config import Config
from csst_dask.errors import ChipRejected
from csst_dask.inference.device import choose_device
from csst_dask.instrument.flags import mask_table
from csst_dask.io.detector import Detector, read_detector
from csst_dask.io.headers import card_bytes
from csst_dask.io.truth import read_truth
from csst_dask.preprocess import FrameSums, Reduced, kernels
from csst_dask.preprocess.reduce import Rows, sky_of_sample
from csst_dask.schema import ChipFiles, ChipInfo, ChipResult, Mask
from csst_dask.simulation.exposure import Exposure
from csst_dask.simulation.product import chip_info, chip_key, make_headers, write_chip
from csst_dask.simulation.renderer import Renderer
from csst_dask.store.codecs import quantisation_step, quantise
from csst_dask.store.writer import ChipWriter

if TYPE_CHECKING:
    from csst_dask.runners.device_pass import DevicePass

BLOCK_ROWS = 83
"""Rows that are read, masked and summed at a time: two rows of blocks, so that few sums are folded twice."""


def read_ahead(rows: Rows, spans: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], tuple]]:
    """Read spans of rows one after the other, each while the one before is worked on.

    Parameters
    ----------
    rows : callable
    spans : list of (int, int)

    Yields
    ------
    span : (int, int)
    raw : tuple
        What ``rows`` gave, for use until the next step.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        coming = pool.submit(rows, *spans[0])
        for span, following in pairwise([*spans, None]):
            raw = coming.result()
            if following is not None:
                coming = pool.submit(rows, *following)
            yield span, raw  # type: ignore[misc]


class PixelPass:
    """One pass over a frame's rows: mask, sum, and write, in buffers that are used again for every chip.

    Parameters
    ----------
    config : Config
        Sections ``ingest`` and ``mask``.
    """

    def __init__(self, config: Config):
        self.config = config
        self.table = mask_table(config.mask.flag_bits)
        self.swapped_table = self.table[np.arange(self.table.size, dtype=np.uint16).byteswap()]
        self.invalid = config.mask.invalid_bits
        self._image = np.empty((0, 0), np.float32)
        self._mask = np.empty((0, 0), np.uint8)

    def run(self, rows: Rows, writer: ChipWriter | None) -> Reduced:
        """Reduce a frame, and write it where there is a writer.

        Parameters
        ----------
        rows : callable
            Raw rows of the frame.
        writer : ChipWriter or None

        Returns
        -------
        Reduced
        """
        (ny, nx), sums = self.config.ingest.frame, FrameSums(self.config.ingest.frame)
        kept = writer.band_rows if writer else None
        band = kept or BLOCK_ROWS
        if self._image.shape != (band, nx):
            self._image, self._mask = np.empty((band, nx), np.float32), np.empty((band, nx), np.uint8)
        step = 0.0
        if writer is not None and self.config.ingest.pixels == "quantised":
            step = quantisation_step(_sky_sigma(rows, (ny, nx)))
        bands = range(0, ny, band)
        edges = sorted({ny} | {y for y0 in bands for y in range(y0, min(y0 + band, ny), BLOCK_ROWS)})
        for (y, end), raw in read_ahead(rows, list(pairwise(edges))):
            y0 = y // band * band
            image, mask = self._image[y - y0 : end - y0], self._mask[y - y0 : end - y0]
            pixels, bits = self._decode(raw, image if kept else None, mask)
            if kept:
                quantise(image, step)
            sums.add(pixels, bits, invalid=self.invalid, y0=y)
            if writer is not None and kept and (end % band == 0 or end == ny):
                writer.write_pixels(y0, self._image[: end - y0], self._mask[: end - y0])
        return sums.finish()

    def _decode(
        self, raw: tuple[NDArray, NDArray | None, NDArray | None], image: NDArray | None, mask: NDArray
    ) -> tuple[NDArray, NDArray | None]:
        """Pixels and mask in the buffers given; without one for pixels they stay raw, and masked only if need be."""
        pixels, flags, weights = raw
        if image is None and flags is None and weights is None:
            return pixels, None
        table = self.table
        if flags is not None and flags.dtype == np.dtype(">u2"):
            flags, table = flags.view(np.uint16), self.swapped_table
        elif flags is not None:
            flags = np.ascontiguousarray(flags, np.uint16)
        kernels.decode_rows(
            _bits(pixels), flags, None if weights is None else _bits(weights), table,
            np.uint8(Mask.NONFINITE), np.uint8(Mask.BAD), image, mask,
        )  # fmt: skip
        return pixels if image is None else image, mask


def _bits(pixels: NDArray) -> NDArray:
    """Rows as the compiled code takes them: native float32, or the bits of big-endian float32."""
    if pixels.dtype == np.dtype(">f4"):
        return pixels.view(np.uint32)
    return np.ascontiguousarray(pixels, np.float32)


def _sky_sigma(rows: Rows, shape: tuple[int, int]) -> float:
    picked = [rows(y, y + 1)[0][0, ::4].astype(np.float32) for y in range(8, shape[0], 64)]
    return sky_of_sample(np.stack(picked))[1] if picked else 0.0


@lru_cache(maxsize=2)
def _pixel_pass(config: Config, thread: int) -> PixelPass:
    return PixelPass(config)


@lru_cache(maxsize=1)
def _device_pass(config: Config, device: str) -> DevicePass:
    """One for a process: its memory holds whole frames."""
    import torch

    from csst_dask.runners.device_pass import DevicePass

    return DevicePass(config, torch.device(device))


@lru_cache(maxsize=2)
def _renderer(shape: tuple[int, int], thread: int) -> Renderer:
    return Renderer(shape)


def _complete(info: ChipInfo, reduced: Reduced) -> ChipInfo:
    """Check the statistics and add them to what the headers gave."""
    if reduced.n_valid == 0:
        raise ChipRejected("no valid pixel: all are flagged or not finite; check the flag file and the image")
    if not reduced.pixel_std > 0:
        raise ChipRejected(f"constant image: every valid pixel is {reduced.pixel_mean:g}; expected noise")
    if not np.isfinite(reduced.pixel_std):
        raise ChipRejected("pixel values are too large to be counts (their squares overflow); check the image")
    return replace(
        info,
        pixel_mean=reduced.pixel_mean,
        pixel_std=reduced.pixel_std,
        n_valid=reduced.n_valid,
        sky_level=reduced.sky_level,
        sky_sigma=reduced.sky_sigma,
    )


class _Arrival:
    """A chip on its way into the store: opened to be read, then completed."""

    def __init__(self, files: ChipFiles, row: int, store: str, config: Config):
        self.files, self.row, self.store, self.config = files, row, store, config

    @contextmanager
    def open(self) -> Iterator[tuple[Rows, ChipWriter]]:
        """Rows and writer; the files are open as long as rows are read."""
        with read_detector(self.files, self.config.ingest.frame) as detector:
            self.info, self.notes, self.cards = detector.info(), list(detector.notes), detector.cards
            self.writer = ChipWriter(self.store, self.row)
            yield _rows_of(detector), self.writer

    def complete(self, reduced: Reduced) -> tuple[ChipInfo, str]:
        """Check and write what the pass over the pixels gave; scalars and notes."""
        info = _complete(self.info, reduced)
        notes = [*self.notes, self.writer.write_maps(reduced.maps, self.cards)]
        if self.files.truth and self.config.ingest.truth:
            counts = read_truth(self.files.truth, self.files.key, info.band, self.config.ingest.frame)
            info = replace(info, n_star=counts.n_star, n_bright=counts.n_bright)
            notes.append(counts.note)
        return info, "; ".join(filter(None, notes))


def ingest_chip(files: ChipFiles, row: int, store: str, config: Config) -> ChipResult:
    """Read, mask, reduce and store one chip.

    Parameters
    ----------
    files : ChipFiles
    row : int
        The chip's row in the store.
    store : str
    config : Config

    Returns
    -------
    ChipResult
        Done with its scalars, or rejected with the reason.
    """
    [(result, _)] = ingest_chips([(files, row)], store, config)
    if isinstance(result, Exception):
        raise result
    return result


def ingest_chips(
    chips: Sequence[tuple[ChipFiles, int]], store: str, config: Config
) -> Iterator[tuple[ChipResult | Exception, NDArray[np.float32] | None]]:
    """Read, mask, reduce and store chips, on a GPU where ``inference.device`` lets there be one.

    There the next chip is read while one is worked on.

    Parameters
    ----------
    chips : sequence of (ChipFiles, int)
        Files, and the chip's row in the store.
    store : str
    config : Config

    Yields
    ------
    result : ChipResult or Exception
        In the order of the chips. A chip that fails in a way nobody foresaw gives what was raised, and the others go
        on; a fatal error of the device (`csst_dask.inference.device.is_fatal`) is raised.
    maps : (channel, iy, ix) float32 array or None
        Reduced maps of a chip that is done, as they are in the store.
    """
    arrivals = [_Arrival(files, row, store, config) for files, row in chips]
    start = time.perf_counter()
    for arrival, reduced in zip(arrivals, _reduced(arrivals, config), strict=True):
        result: ChipResult | Exception
        maps = None
        try:
            if isinstance(reduced, Exception):
                raise reduced
            info, notes = arrival.complete(reduced)
            maps = reduced.maps.astype(np.float32)
            result = ChipResult(arrival.files.key, "done", notes, info, {"ingest": time.perf_counter() - start})
        except ChipRejected as error:
            result = ChipResult(arrival.files.key, "rejected", str(error))
        except Exception as error:
            result = error
        yield result, maps
        start = time.perf_counter()


def _reduced(arrivals: Sequence[_Arrival], config: Config) -> Iterator[Reduced | Exception]:
    device = choose_device(config.inference.device)
    if device != "cpu":
        yield from _device_pass(config, device).run_many(arrival.open() for arrival in arrivals)
        return
    for arrival in arrivals:
        try:
            with arrival.open() as (rows, writer):
                found: Reduced | Exception = _pixel_pass(config, _thread()).run(rows, writer)
        except Exception as error:
            found = error
        yield found


def _rows_of(detector: Detector) -> Rows:
    def rows(y0: int, y1: int) -> tuple[NDArray, NDArray | None, NDArray | None]:
        flags = detector.flag.read_rows(y0, y1) if detector.flag else None
        weights = detector.weight.read_rows(y0, y1) if detector.weight else None
        return detector.image.read_rows(y0, y1), flags, weights

    return rows


def simulate_to_store(exposure: Exposure, detector: int, row: int, store: str, config: Config) -> ChipResult:
    """Render one chip, reduce it in memory and store it.

    Parameters and return value are those of `ingest_chip`, with the chip's exposure and detector for its files.
    """
    start = time.perf_counter()
    chip, ready = _renderer(config.ingest.frame, _thread()).expose(exposure, detector)
    rendered = time.perf_counter()
    writer = ChipWriter(store, row)
    if config.ingest.pixels == "none":
        # sky and noise come as the rows are read, while they are in the cache
        def rows(y0: int, y1: int) -> tuple[NDArray, NDArray, None]:
            ready(y0, y1)
            return chip.image[y0:y1], chip.flags[y0:y1], None
    else:
        ready(0, chip.image.shape[0])

        def rows(y0: int, y1: int) -> tuple[NDArray, NDArray, None]:
            return chip.image[y0:y1], chip.flags[y0:y1], None

    reduced = _pixel_pass(config, _thread()).run(rows, writer)
    primary, image = make_headers(chip)
    writer.write_maps(reduced.maps, card_bytes(image, primary))
    seconds = {"render": rendered - start, "store": time.perf_counter() - rendered}
    try:
        return ChipResult(chip_key(exposure, detector), "done", "", _complete(chip_info(chip), reduced), seconds)
    except ChipRejected as error:
        return ChipResult(chip_key(exposure, detector), "rejected", str(error))


def simulate_to_files(exposure: Exposure, detector: int, folder: str, config: Config) -> tuple[ChipFiles, int, int]:
    """Render one chip and write its files.

    Returns
    -------
    files : ChipFiles
    n_star, n_bright : int
        Truth.
    """
    chip = _renderer(config.ingest.frame, _thread()).render(exposure, detector)
    return write_chip(chip, Path(folder), config.simulation.product), chip.n_star, chip.n_bright


def _thread() -> int:
    """Buffers belong to one thread of one process."""
    return hash((os.getpid(), threading.get_ident()))
