"""Raw read-out frames: 16 strips to one frame and back.

A read-out frame holds 16 strips side by side. Each has prescan columns, its share of the frame, and overscan columns;
its last rows are overscan too. Strips 0-3 are the lower half's columns 0-3 as they stand and 4-7 its columns 4-7
mirrored in x; strips 8-11 are the upper half's columns 7-4 turned by 180 degrees and 12-15 its columns 3-0 mirrored
in y (the layout of the cycle-9 simulations). Every strip so begins at an outer corner, and the overscan rows lie in the
middle. The world coordinates in the header are those of the assembled frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.io.pixels import PixelSource
from csst_dask.schema import FRAME_SHAPE

CHANNELS, PRESCAN, OVERSCAN, OVERSCAN_ROWS = 16, 27, 71, 84
"""Strips, and of each the columns before and after the pixels that saw light, and the rows after them."""

HALF = CHANNELS // 2
"""Strips of one half of the frame."""

_SAMPLE_ROWS = 128
_DEFERRED = 8  # the first overscan columns hold charge that was left behind


def readout_shape(frame: tuple[int, int] = FRAME_SHAPE) -> tuple[int, int]:
    """Shape (y, x) of the read-out frame of a detector.

    Raises
    ------
    ValueError
        If the frame (ny, nx) cannot be cut into 2 x 8 equal parts.
    """
    ny, nx = frame
    if ny % 2 or nx % HALF:
        raise ValueError(f"a frame of {ny} x {nx} pixels (y, x) cannot be cut into 2 x {HALF} equal parts")
    return ny // 2 + OVERSCAN_ROWS, 2 * nx + CHANNELS * (PRESCAN + OVERSCAN)


def frame_of(readout: tuple[int, int]) -> tuple[int, int]:
    """Shape (y, x) of the frame in a read-out frame: the inverse of `readout_shape`.

    Raises
    ------
    ValueError
        If no frame has a read-out frame of this shape.
    """
    active = readout[1] // CHANNELS - PRESCAN - OVERSCAN
    frame = 2 * (readout[0] - OVERSCAN_ROWS), HALF * active
    if min(frame) <= 0 or readout_shape(frame) != readout:
        raise ValueError(
            f"{readout[0]} x {readout[1]} pixels (y, x) are no read-out of {CHANNELS} strips; expected "
            f"{OVERSCAN_ROWS} rows and {CHANNELS} x {PRESCAN + OVERSCAN} columns more than the detector's halves"
        )
    return frame


def strip_place(strip: int) -> tuple[bool, int, int]:
    """Where a strip lies on the frame.

    Parameters
    ----------
    strip : int
        0 to 15.

    Returns
    -------
    upper : bool
        Whether it belongs to the upper half, and so runs downward.
    column : int
        0 to 7.
    step : int
        1, or -1 where it is mirrored in x.
    """
    upper = strip >= HALF
    column = CHANNELS - 1 - strip if upper else strip
    return upper, column, -1 if column >= HALF // 2 else 1


def by_column(values: ArrayLike, nx: int) -> NDArray[np.float32]:
    """Values of the strips by place on the frame.

    Parameters
    ----------
    values : (16,) array_like
    nx : int
        Width of the frame; where it has no eight equal columns, the last one is narrower.

    Returns
    -------
    (2, nx) float32 array
        For the lower and the upper half.
    """
    out = np.empty((2, HALF))
    for strip, value in enumerate(np.asarray(values, np.float64)):
        upper, column, _ = strip_place(strip)
        out[int(upper), column] = value
    return np.repeat(out, -(-nx // HALF), axis=1)[:, :nx].astype(np.float32)


def _put_together(raw: NDArray, upper: bool, out: NDArray) -> None:
    """Rows of the eight strips of one half, in the file's order, to rows of the frame."""
    width, active = raw.shape[1] // HALF, out.shape[1] // HALF
    rows = raw[::-1] if upper else raw
    for k in range(HALF):
        _, column, step = strip_place(k + HALF * upper)
        part = rows[:, k * width + PRESCAN : k * width + PRESCAN + active]
        out[:, column * active : (column + 1) * active] = part[:, ::step]


def assemble(readout: NDArray) -> NDArray:
    """Put the strips of a read-out frame together.

    Parameters
    ----------
    readout : (rows, columns) array
        Such as 4700 x 20000.

    Returns
    -------
    (ny, nx) array
        Prescan and overscan are left out.

    Raises
    ------
    ValueError
        If the shape is not that of a read-out frame.
    """
    ny, nx = frame_of((readout.shape[0], readout.shape[1]))
    frame, rows, half = np.empty((ny, nx), readout.dtype), ny // 2, readout.shape[1] // 2
    _put_together(readout[:rows, :half], False, frame[:rows])
    _put_together(readout[:rows, half:], True, frame[rows:])
    return frame


def split(frame: NDArray, level: ArrayLike = 0) -> NDArray:
    """Cut a frame into read-out strips: the inverse of `assemble`.

    Parameters
    ----------
    frame : (ny, nx) array
    level : scalar or (16,) array_like
        What prescan and overscan of each strip hold: the bias.

    Returns
    -------
    (rows, columns) array
        Of `readout_shape` and the frame's type.

    Raises
    ------
    ValueError
        If the frame cannot be cut into 2 x 8 equal parts.
    """
    ny, nx = frame.shape
    readout = np.empty(readout_shape((ny, nx)), frame.dtype)
    levels, rows, active = np.broadcast_to(level, CHANNELS), ny // 2, nx // HALF
    for number, strip in enumerate(np.split(readout, CHANNELS, axis=1)):
        upper, column, step = strip_place(number)
        strip[:] = levels[number]
        part = frame[rows:][::-1] if upper else frame[:rows]
        strip[:rows, PRESCAN : PRESCAN + active] = part[:, column * active : (column + 1) * active][:, ::step]
    return readout


class AssembledRows(PixelSource):
    """Counts of the frame whose strips another source holds; an array that is returned stays as it is."""

    def __init__(self, strips: PixelSource) -> None:
        super().__init__(strips.path, strips, np.dtype(np.uint16))
        self.shape = frame_of(strips.shape)
        self._strips = strips

    def _rows(self, y0: int, y1: int) -> NDArray:
        ny, half = self.shape[0], self._strips.shape[1] // 2
        out = np.empty((y1 - y0, self.shape[1]), np.uint16)
        low = min(max(ny // 2 - y0, 0), y1 - y0)  # rows of the lower half
        if low:
            _put_together(self._strips.read_part(y0, y0 + low, 0, half), False, out[:low])
        if low < len(out):
            _put_together(self._strips.read_part(ny - y1, ny - y0 - low, half, 2 * half), True, out[low:])
        return out

    def close(self) -> None:
        self._strips.close()


def strip_bias(strips: PixelSource) -> NDArray[np.float64]:
    """Bias of each strip: the mean of its overscan columns.

    One value a strip, from 128 rows all over the frame, so that it does not depend on which rows are asked for first.
    Values further than 3 robust sigma from the median are left out (Rousseeuw & Croux 1993, JASA 88, 1273), and so are
    the first 8 columns, which hold deferred charge.

    Returns
    -------
    (16,) float64 array
        ADU
    """
    rows = strips.shape[0] - OVERSCAN_ROWS
    picked = np.unique(np.linspace(0, rows - 1, _SAMPLE_ROWS).astype(int)).tolist()
    sample = np.stack([strips.read_rows(y, y + 1)[0].astype(np.float64) for y in picked])
    overscan = sample.reshape(len(picked), CHANNELS, -1)[:, :, _DEFERRED - OVERSCAN :]
    values = overscan.transpose(1, 0, 2).reshape(CHANNELS, -1)
    off = values - np.median(values, axis=1, keepdims=True)
    sigma = np.maximum(1.4826 * np.median(np.abs(off), axis=1, keepdims=True), 1.0)
    return np.mean(values, axis=1, where=np.abs(off) <= 3 * sigma)
