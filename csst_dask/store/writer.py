"""A task's only way into the store: the pixels, what was measured, and the header of its own chip."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

from csst_dask.store.arrays import array_of
from csst_dask.store.layout import HEADER_BYTES, MEASURED
from csst_dask.store.location import open_group


@lru_cache(maxsize=2)
def task_arrays(location: str, rows: int) -> dict[str, Any]:
    """Arrays with a chunk or more for every chip, opened once in a process.

    Parameters
    ----------
    location : str
        As `csst_dask.store.location.locate` gives it.
    rows : int
        Chips of the store; a store that has grown is opened again.
    """
    group = open_group(location, read_only=False)
    names = ("image", "mask", "header", *MEASURED)
    # or every chunk would be compared with the fill value, which no chunk of a chip holds alone
    with zarr.config.set({"array.write_empty_chunks": True}):
        return {name: array_of(group, name) for name in names if name in group}


class ChipWriter:
    """Writes the pixels, block statistics and header of one chip.

    Parameters
    ----------
    arrays : mapping of str to zarr.Array
        As `task_arrays` gives them.
    row : int
        The chip's row, allocated by the client.
    """

    def __init__(self, arrays: dict[str, Any], row: int):
        self.row = row
        self._image, self._mask = arrays.get("image"), arrays.get("mask")
        self._header = arrays["header"]
        self._measured = {name: arrays[name] for name in MEASURED}

    @property
    def band_rows(self) -> int | None:
        """Rows that must be written together; None if no pixels are kept."""
        array = self._image if self._image is not None else self._mask
        if array is None:
            return None
        return int((array.shards or array.chunks)[1])

    @property
    def keeps_image(self) -> bool:
        """Whether the pixels themselves are kept, and not their mask alone."""
        return self._image is not None

    def write_pixels(self, y0: int, image: NDArray[np.float32] | None, mask: NDArray[np.uint8]) -> None:
        """Write whole rows that begin at ``y0``, a multiple of `band_rows`; the image where it is kept."""
        stop = y0 + mask.shape[0]
        if self._image is not None and image is not None:
            _write_whole(self._image, self.row, (slice(y0, stop),), image)
        if self._mask is not None:
            _write_whole(self._mask, self.row, (slice(y0, stop),), mask)

    def clear(self) -> None:
        """Remove what was written of the chip, now or before, so that a rejected chip has no pixels."""
        for array in (self._image, self._mask, *self._measured.values(), self._header):
            if array is not None:
                _erase(array, self.row)

    def write_measured(self, measured: Mapping[str, NDArray], cards: NDArray[np.uint8]) -> str:
        """Write what was measured, and the header cards.

        Parameters
        ----------
        measured : mapping of str to array
            By name, of `csst_dask.store.layout.MEASURED`.
        cards : (n,) uint8 array

        Returns
        -------
        str
            A note where the cards did not fit, else nothing.
        """
        for name, values in measured.items():
            _write_whole(self._measured[name], self.row, (), values)
        padded = np.full(HEADER_BYTES, 32, np.uint8)
        padded[: min(cards.size, HEADER_BYTES)] = cards[:HEADER_BYTES]
        self._header[self.row] = padded
        if cards.size <= HEADER_BYTES:
            return ""
        return f"header of {cards.size // 80} cards, of which the first {HEADER_BYTES // 80} are kept"


def _write_whole(array: Any, row: int, part: Any, values: NDArray) -> None:
    """Write whole chunks of one chip, whatever is there.

    Zarr reads a shard before it writes it; one that was torn is removed first.
    """
    try:
        array[(row, *part)] = values
    except (ValueError, RuntimeError):
        if array.shards is None:
            raise
        _erase(array, row)
        array[(row, *part)] = values


def _erase(array: Any, row: int) -> None:
    """Remove the chunks of one chip, whatever is in them: it holds the fill value again."""
    size = array.shards or array.chunks
    counts = [-(-length // step) for length, step in zip(array.shape[1:], size[1:], strict=True)]
    for place in np.ndindex(*counts):
        sync((array.store_path / array.metadata.encode_chunk_key((row, *place))).delete())
