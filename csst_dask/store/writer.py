"""A task's only way into the store: the pixels, maps and header of its own chip."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from csst_dask.store.layout import HEADER_BYTES
from csst_dask.store.survey import array_of


class ChipWriter:
    """Writes the pixels, maps and header of one chip: a task's only way into the store.

    Parameters
    ----------
    path : str
    row : int
        The chip's row, allocated by the client.
    """

    def __init__(self, path: str, row: int):
        group = zarr.open_group(path, mode="r+")
        self.row = row
        self._image: Any = group.get("image")
        self._mask: Any = group.get("mask")
        self._reduced, self._header = array_of(group, "reduced"), array_of(group, "header")

    @property
    def band_rows(self) -> int | None:
        """Rows that must be written together; None if no pixels are kept."""
        array = self._image if self._image is not None else self._mask
        if array is None:
            return None
        return int((array.shards or array.chunks)[1])

    def write_pixels(self, y0: int, image: NDArray[np.float32], mask: NDArray[np.uint8]) -> None:
        """Write whole rows that begin at ``y0``, a multiple of `band_rows`."""
        stop = y0 + image.shape[0]
        if self._image is not None:
            self._image[self.row, y0:stop] = image
        if self._mask is not None:
            self._mask[self.row, y0:stop] = mask

    def write_maps(self, maps: NDArray, cards: NDArray[np.uint8]) -> str:
        """Write the reduced maps (channel, iy, ix) and the header cards.

        Returns
        -------
        str
            A note where the cards did not fit, else nothing.
        """
        self._reduced[self.row] = maps.astype(np.float32)
        padded = np.full(HEADER_BYTES, 32, np.uint8)
        padded[: min(cards.size, HEADER_BYTES)] = cards[:HEADER_BYTES]
        self._header[self.row] = padded
        if cards.size <= HEADER_BYTES:
            return ""
        return f"header of {cards.size // 80} cards, of which the first {HEADER_BYTES // 80} are kept"
