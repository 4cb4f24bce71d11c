"""Raw counts as electrons per second, by bias, gain and exposure time."""

from __future__ import annotations

from typing import Literal

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from csst_dask.errors import ChipRejected
from csst_dask.instrument.flags import FLAG_SATURATED
from csst_dask.io.headers import read_number
from csst_dask.io.pixels import PixelSource
from csst_dask.io.readout import CHANNELS, HALF, AssembledRows, by_column, strip_bias

ADC_LIMIT = 65535
"""Largest count, ADU; it marks a saturated pixel."""


class Counts:
    """The counts of the last rows that were asked for, for both image and flags."""

    def __init__(self, counts: PixelSource) -> None:
        self.source = counts
        self._span = (0, 0)
        self._last = np.empty(0)

    def rows(self, y0: int, y1: int) -> NDArray:
        if self._span != (y0, y1):
            self._span, self._last = (0, 0), self.source.read_rows(y0, y1)
            self._span = y0, y1
        return self._last

    def close(self) -> None:
        self._span = (0, 0)
        self.source.close()


class _RawImage(PixelSource):
    """Counts as electrons per second: (count - bias) gain / exptime - dark."""

    def __init__(self, counts: Counts, strips: PixelSource | None, bias: float, scale: NDArray, dark: float) -> None:
        super().__init__(counts.source.path, counts.source, np.dtype(np.float32))
        self._counts, self._strips, self._dark = counts, strips, np.float32(dark)
        self._scale = by_column(scale, self.shape[1])
        self._bias = None if strips else by_column(np.full(CHANNELS, bias), self.shape[1])
        self._buffer = self._other = np.empty((0, 0), np.float32)

    def _rows(self, y0: int, y1: int) -> NDArray:
        if self._bias is None and self._strips is not None:
            self._bias = by_column(strip_bias(self._strips), self.shape[1])
        counts, middle = self._counts.rows(y0, y1), self.shape[0] // 2 - y0
        self._buffer, self._other = self._other, self._buffer
        if len(self._buffer) < y1 - y0:
            self._buffer = np.empty((y1 - y0, self.shape[1]), np.float32)
        out = self._buffer[: y1 - y0]
        middle = min(max(middle, 0), y1 - y0)
        for half, part in enumerate((slice(0, middle), slice(middle, None))):
            np.subtract(counts[part], self._bias[half], out=out[part])  # type: ignore[index]
            out[part] *= self._scale[half]
        out -= self._dark
        return out

    def close(self) -> None:
        self._counts.close()


class _RawFlags(PixelSource):
    """The saturated bit where a count is at the limit, and the bits of a flag file where there is one."""

    def __init__(self, counts: Counts, flags: PixelSource | None) -> None:
        super().__init__(counts.source.path, counts.source, np.dtype(np.uint16))
        self._counts, self._flags = counts, flags

    def _rows(self, y0: int, y1: int) -> NDArray:
        bits = np.equal(self._counts.rows(y0, y1), ADC_LIMIT).astype(np.uint16)
        bits *= np.uint16(FLAG_SATURATED)
        if self._flags is not None:
            bits |= self._flags.read_rows(y0, y1).astype(np.uint16)
        return bits

    def close(self) -> None:
        self._counts.close()
        if self._flags is not None:
            self._flags.close()


def open_counts(
    source: PixelSource, kind: Literal["plain", "readout"], primary: fits.Header, exptime: float
) -> tuple[Counts, _RawImage, list[str]]:
    """Serve raw counts as electrons per second.

    The bias comes from the overscan columns of a read-out frame (`strip_bias`), and from the BIAS card (ADU) of a plain
    one. Gains come from GAIN1 to GAIN16, strip by strip, or from GAIN1 alone. A DARK card (e-/s per pixel) is
    subtracted.

    Parameters
    ----------
    source : PixelSource
    kind : {"plain", "readout"}
        A frame of the detector's own shape, or its 16 strips (`csst_dask.io.readout`).
    primary : astropy.io.fits.Header
    exptime : float
        s

    Returns
    -------
    counts
        For `flag_counts`.
    image : PixelSource
        Of the assembled frame.
    notes : list of str

    Raises
    ------
    ChipRejected
        If exposure time or gain is unknown.
    """
    header, notes = source.header, []
    if not exptime > 0:
        raise ChipRejected(f"{source.path} holds raw counts without an exposure time; add EXPTIME")
    gains = [read_number(f"GAIN{number}", header, primary) for number in range(1, CHANNELS + 1)]
    gains = [gains[0] if gain is None else gain for gain in gains]
    if not all(gain is not None and gain > 0 for gain in gains):
        raise ChipRejected(f"{source.path} holds raw counts without a gain: GAIN1 is {gains[0]}; add it in e-/ADU")
    bias = read_number("BIAS", header, primary)
    if kind == "plain" and bias is None:
        notes.append("raw counts without a BIAS card: the bias level stays in")
    dark = read_number("DARK", header, primary) or 0.0
    scale = np.array(gains, np.float64) / exptime
    if len(set(gains)) > 1 and kind == "plain" and (source.shape[0] % 2 or source.shape[1] % HALF):
        raise ChipRejected(f"{source.path} has gains by strip, but cannot be cut into 2 x {HALF} equal parts")
    counts = Counts(AssembledRows(source) if kind == "readout" else source)
    strips = source if kind == "readout" else None
    return counts, _RawImage(counts, strips, bias or 0.0, scale, dark), notes


def flag_counts(counts: Counts, flags: PixelSource | None) -> PixelSource:
    """Flags of raw counts: saturated at `ADC_LIMIT`, and whatever a flag file adds."""
    return _RawFlags(counts, flags)
