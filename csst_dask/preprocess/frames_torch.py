"""Raw frames on a torch device: read into pinned memory, sent while the next rows are read, decoded and measured.

What `csst_dask.preprocess.kernels.decode_rows` does on the processor, row by row, is done here for a whole frame.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csst_dask.preprocess.kernels import FLOAT32_MAX
from csst_dask.preprocess.measure import Measured, Rows
from csst_dask.preprocess.measure_torch import TorchMeasurer

READ_ROWS = 166
"""Rows that are read, and then sent, at a time."""

WORK_ROWS = 1024
"""Rows that are decoded at a time; about 25 bytes are taken for each pixel of theirs."""

TYPES = {"image": torch.int32, "flags": torch.int16, "weights": torch.int32}
"""What is sent of a frame, as bits."""


class Frame:
    """Memory for one raw frame, on the host and on a device; it is used again for the next one.

    Parameters
    ----------
    shape : (int, int)
        Frame shape (y, x), pixel.
    device : torch.device
        On a processor there is no second copy.
    stream : torch.cuda.Stream, optional
        Where copies are queued.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device, stream: torch.cuda.Stream | None = None):
        self.shape, self.device, self.stream = shape, device, stream
        self.swapped: dict[str, bool] = {}
        """Whether the bytes are in the other order, of what was sent of this frame."""
        self._host: dict[str, Tensor] = {}
        self._sent: dict[str, Tensor] = {}
        self._arrived = torch.cuda.Event() if stream else None

    def fill(self, rows: Rows) -> None:
        """Read a frame and send it; returns when all is read, while the last rows may still be on their way.

        Parameters
        ----------
        rows : callable
            Raw rows of the frame.
        """
        self.swapped = {}
        for y0 in range(0, self.shape[0], READ_ROWS):
            span = slice(y0, min(y0 + READ_ROWS, self.shape[0]))
            for name, values in zip(TYPES, rows(span.start, span.stop), strict=True):
                if values is not None:
                    self._send(name, values, span)
        if self._arrived and self.stream:
            self._arrived.record(self.stream)

    def arrived(self, name: str) -> Tensor:
        """Bits on the device; what is queued there from now on waits until all of the frame has come."""
        if self._arrived:
            torch.cuda.current_stream(self.device).wait_event(self._arrived)
        return self._sent[name]

    def fetch_image(self) -> NDArray[np.float32]:
        """The image, decoded in place on the device, on the host; waits for the device."""
        host = self._host["image"]
        if self._sent["image"] is not host:
            host.copy_(self._sent["image"], non_blocking=True)
            torch.cuda.current_stream(self.device).synchronize()
        return host.view(torch.float32).numpy()

    def _send(self, name: str, values: NDArray, span: slice) -> None:
        if name not in self._host:
            self._host[name] = torch.empty(self.shape, dtype=TYPES[name], pin_memory=self.device.type == "cuda")
            self._sent[name] = self._host[name]
            if self.device.type == "cuda":
                self._sent[name] = torch.empty(self.shape, dtype=TYPES[name], device=self.device)
        bits, self.swapped[name] = _bits(values, np.dtype(np.uint16) if name == "flags" else np.dtype(np.float32))
        host = self._host[name]
        host.numpy()[span] = bits
        if self.stream:
            with torch.cuda.stream(self.stream):
                self._sent[name][span].copy_(host[span], non_blocking=True)


class FrameMeasurer:
    """Decodes and reduces frames on one device.

    Parameters
    ----------
    shape : (int, int)
        Frame shape (y, x), pixel.
    device : torch.device
    table : (65536,) uint8 array
        Flag value to mask bits.
    invalid, nonfinite, bad : int
        Mask bits that make a pixel invalid; of a pixel that is not finite; of one without weight.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        device: torch.device,
        table: NDArray[np.uint8],
        invalid: int,
        nonfinite: int,
        bad: int,
    ):
        self.shape, self.device, self.invalid, self.nonfinite, self.bad = shape, device, invalid, nonfinite, bad
        self._measurer = TorchMeasurer(shape, device)
        swapped = table[np.arange(table.size, dtype=np.uint16).byteswap()]
        self._tables = {False: torch.from_numpy(table).to(device), True: torch.from_numpy(swapped).to(device)}
        self._mask = torch.empty((0, 0), dtype=torch.uint8, device=device)

    def decode(self, frame: Frame, kept: bool = False) -> tuple[Tensor, Tensor | None]:
        """Pixels in native order, in the memory of the frame, and their mask.

        Parameters
        ----------
        frame : Frame
        kept : bool
            Mark pixels that are not finite, too, and give a mask in any case.

        Returns
        -------
        image : (ny, nx) float32 tensor
        mask : (ny, nx) uint8 tensor or None
            Valid until the next call; None where nothing is known that could be masked.
        """
        bits = frame.arrived("image")
        if frame.swapped["image"]:
            _swap(bits)
        image = bits.view(torch.float32)
        if not kept and len(frame.swapped) == 1:
            return image, None
        if self._mask.shape != image.shape:
            self._mask = torch.empty(self.shape, dtype=torch.uint8, device=self.device)
        if frame.swapped.get("weights"):
            _swap(frame.arrived("weights"))
        for y in range(0, self.shape[0], WORK_ROWS):
            self._mark(frame, image, slice(y, y + WORK_ROWS), kept)
        return image, self._mask

    def _mark(self, frame: Frame, image: Tensor, rows: slice, kept: bool) -> None:
        mask = self._mask[rows].zero_()
        if kept:
            mask += (~(image[rows].abs() <= float(FLOAT32_MAX))).to(torch.uint8) * self.nonfinite
        if "weights" in frame.swapped:
            weights = frame.arrived("weights")[rows].view(torch.float32)
            mask |= (~(weights > 0)).to(torch.uint8) * self.bad
        if "flags" in frame.swapped:
            values = frame.arrived("flags")[rows].int() & 0xFFFF
            mask |= self._tables[frame.swapped["flags"]][values]

    def measure(self, image: Tensor, mask: Tensor | None) -> Measured:
        """Maps and statistics of what `decode` gave; waits for the device."""
        return self._measurer.measure(image, mask, invalid=self.invalid)


def quantise(image: Tensor, step: float) -> None:
    """Round to multiples of a power of two in place, as `csst_dask.store.codecs.quantise` does."""
    if step > 0:
        image.mul_(1 / step).round_().mul_(step)


def _bits(values: NDArray, kind: np.dtype) -> tuple[NDArray, bool]:
    """Values of a kind as signed integers, and whether their bytes are in the other order."""
    bits = np.dtype(f"i{kind.itemsize}")
    if values.dtype == kind.newbyteorder():
        return values.view(bits), True
    return values.astype(kind, copy=False).view(bits), False


def _swap(bits: Tensor) -> None:
    """Reverse the bytes of (h, w) int32 in place."""
    width = bits.shape[1]
    for y in range(0, bits.shape[0], WORK_ROWS):
        part = bits[y : y + WORK_ROWS]
        part.copy_(part.view(torch.uint8).view(-1, width, 4).flip(2).view(torch.int32)[..., 0])
