"""What `csst_dask.pipeline.frame.PixelPass` does, on a GPU: the next chip is read while one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from threading import Lock

import torch

from csst_dask.config import Config
from csst_dask.inference.device import is_fatal, is_out_of_memory
from csst_dask.instrument.flags import mask_table
from csst_dask.preprocess.frames_torch import Frame, FrameMeasurer, quantise
from csst_dask.preprocess.measure import Measured, Rows, sky_of_sample
from csst_dask.schema import Mask
from csst_dask.store.codecs import quantisation_step
from csst_dask.store.writer import ChipWriter

FRAMES = 2
"""Frames in memory: one is read while the other is worked on."""

Opened = AbstractContextManager[tuple[Rows, ChipWriter | None]]
"""A chip to be opened: entered before its rows are read, left when they are."""


class DevicePass:
    """One pass over frames' pixels on a device: decode, mask, sum, and write, in memory that is used again.

    The results are those of `PixelPass`, but for rounding of the sums. Several threads may share one: they take turns.

    Parameters
    ----------
    config : Config
        Sections ``ingest`` and ``mask``.
    device : torch.device
        As `csst_dask.inference.device.choose_device` gives it; ``cpu`` serves tests.
    """

    def __init__(self, config: Config, device: torch.device):
        self.config, self.device = config, device
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._frames = [Frame(config.ingest.frame, device, stream) for _ in range(FRAMES)]
        self._measurer = FrameMeasurer(
            config.ingest.frame,
            device,
            mask_table(config.mask.flag_bits),
            config.mask.invalid_bits,
            int(Mask.NONFINITE),
            int(Mask.BAD),
        )
        self._turn = Lock()

    def run(self, rows: Rows, writer: ChipWriter | None) -> Measured:
        """Measure a frame, and write it where there is a writer; as `PixelPass.run`."""
        [found] = self.run_many([nullcontext((rows, writer))])
        if isinstance(found, Exception):
            raise found
        return found

    def run_many(self, chips: Iterable[Opened]) -> Iterator[Measured | Exception]:
        """Measure frames one after the other, and write those that come with a writer.

        Parameters
        ----------
        chips : iterable of context managers
            Each is entered by the thread that reads ahead, gives the rows of a frame and a writer or None, and is left
            when all rows are read.

        Yields
        ------
        Measured or Exception
            In the order of the chips; what opening or reading the chip raised, where it did. What the device or the
            store raises ends the iteration.
        """
        waiting, pool = iter(chips), ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        with self._turn:
            try:
                coming = deque(
                    (frame, pool.submit(_read, chip, frame))
                    for frame, chip in zip(self._frames, islice(waiting, FRAMES), strict=False)
                )
                while coming:
                    frame, reading = coming.popleft()
                    found = self._finish(frame, reading)
                    coming.extend((frame, pool.submit(_read, chip, frame)) for chip in islice(waiting, 1))
                    yield found
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _finish(self, frame: Frame, reading: Future) -> Measured | Exception:
        """Work on a frame until its memory is free again."""
        found = reading.result()
        if isinstance(found, Exception):
            return found
        writer: ChipWriter | None = found
        kept = writer is not None and writer.band_rows is not None
        image, mask = self._measurer.decode(frame, kept)
        if writer is not None and self.config.ingest.pixels == "quantised":
            sample = image[8::64, ::4].cpu().numpy()  # the pixels that `PixelPass` takes
            quantise(image, quantisation_step(sky_of_sample(sample)[1] if sample.size else 0.0))
        measured = self._measurer.measure(image, mask)
        if writer is not None and writer.band_rows is not None and mask is not None:
            pixels, bits = frame.fetch_image(), mask.cpu().numpy()
            for y in range(0, len(pixels), writer.band_rows):
                writer.write_pixels(y, pixels[y : y + writer.band_rows], bits[y : y + writer.band_rows])
        return measured


def _read(chip: Opened, frame: Frame) -> ChipWriter | Exception | None:
    """Fill a frame with a chip's rows; the writer that comes with them."""
    try:
        with chip as (rows, writer):
            frame.fill(rows)
            return writer
    except Exception as error:
        if is_out_of_memory(error) or is_fatal(error):
            raise
        return error
