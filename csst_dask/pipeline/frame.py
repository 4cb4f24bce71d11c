"""One pass over a frame's rows on a processor: mask, measure, and write, while the next rows are read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from csst_dask.config import Config
from csst_dask.instrument.cells import sky_edges
from csst_dask.instrument.flags import mask_table
from csst_dask.preprocess import FrameSums, Measured, kernels
from csst_dask.preprocess.measure import Rows, sky_of_sample
from csst_dask.schema import Mask
from csst_dask.store.codecs import quantisation_step, quantise
from csst_dask.store.writer import ChipWriter


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


def spans_of(ny: int, kept: int | None) -> list[tuple[int, int]]:
    """Spans of rows in which a frame is measured: rows of cells of the local sky, which are two rows of blocks.

    Sums depend on them in their last bits.

    Parameters
    ----------
    ny : int
        Rows of the frame.
    kept : int or None
        Rows that are written together, which no span crosses; None where no pixels are kept.
    """
    edges = set(sky_edges((ny, 1))[0].tolist()) | set(range(0, ny, kept or ny))
    return list(pairwise(sorted(edges)))


class PixelPass:
    """One pass over a frame's rows, in buffers that are used again for every chip.

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

    def run(self, rows: Rows, writer: ChipWriter | None) -> Measured:
        """Measure a frame, and write its pixels where there is a writer.

        Parameters
        ----------
        rows : callable
            Raw rows of the frame.
        writer : ChipWriter or None

        Returns
        -------
        Measured
        """
        (ny, nx), sums = self.config.ingest.frame, FrameSums(self.config.ingest.frame)
        kept = writer.band_rows if writer else None
        spans = spans_of(ny, kept)
        # pixels that are not stored are looked at while they are in the cache, and need no room for more
        least = max(end - y for y, end in spans)
        band = kept or least
        deep = band if writer is not None and writer.keeps_image else least
        if self._image.shape != (deep, nx) or self._mask.shape != (band, nx):
            self._image, self._mask = np.empty((deep, nx), np.float32), np.empty((band, nx), np.uint8)
        step = 0.0
        if kept and self.config.ingest.pixels == "quantised":
            step = quantisation_step(_sky_sigma(rows, (ny, nx)))
        for (y, end), raw in read_ahead(rows, spans):
            y0 = y // kept * kept if kept else y
            mask = self._mask[y - y0 : end - y0]
            image = self._image[y - y0 : end - y0] if deep == kept else self._image[: end - y]
            pixels, bits = self._decode(raw, image if kept else None, mask)
            if step:
                quantise(image, step)
            sums.add(pixels, bits, invalid=self.invalid, y0=y)
            if writer is not None and kept and (end % kept == 0 or end == ny):
                writer.write_pixels(y0, self._image[: end - y0] if writer.keeps_image else None, self._mask[: end - y0])
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
