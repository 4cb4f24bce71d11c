"""The reduction of `csst_dask.preprocess.measure` for a frame that lies on a torch device.

The same sums, as matrix products with the exact overlaps of pixels and blocks; what is made of the sums, and the sky
level, come from `FrameSums`. Pixels are taken relative to a level near the sky and summed in float64; what differs, by
some 1e-7, is the rounding of the compiled sums, which are partly in float32.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csst_dask.instrument.flags import FLAG_BITS
from csst_dask.preprocess.kernels import FLOAT32_MAX, SAMPLE_COLUMNS, SAMPLE_ROWS
from csst_dask.preprocess.measure import FrameSums, Measured
from csst_dask.preprocess.peaks_torch import search_frame
from csst_dask.schema import BLOCK_SHAPE, Mask

BLOCK_ROWS = 16
"""Output rows to work on at a time; about 40 bytes are taken for each pixel of theirs."""


def overlaps(n: int, out: int) -> NDArray[np.float64]:
    """How much of each pixel lies in each block along one axis, in units of 1 / ``out`` of a pixel.

    Pixel y covers [y out, (y + 1) out) and block i covers [i n, (i + 1) n), so all overlaps are whole numbers and
    those of one pixel add up to ``out``.

    Parameters
    ----------
    n, out : int
        Number of pixels and of blocks.

    Returns
    -------
    (out, n) float64 array
    """
    block, pixel = np.arange(out)[:, None], np.arange(n)[None, :]
    common = np.minimum((block + 1) * n, (pixel + 1) * out) - np.maximum(block * n, pixel * out)
    return np.maximum(common, 0).astype(np.float64)


def footprints(n: int, out: int) -> NDArray[np.int64]:
    """Pixels that overlap with each block, the last repeated: (out, widest) int64; parameters as for `overlaps`."""
    block = np.arange(out)
    first, last = block * n // out, ((block + 1) * n - 1) // out
    return np.minimum(first[:, None] + np.arange(int((last - first).max()) + 1), last[:, None])


class TorchMeasurer:
    """Reduces frames of one shape on one device.

    Parameters
    ----------
    shape : (int, int)
        Frame shape (y, x), pixel.
    device : str or torch.device
    out : (int, int)
        Shape (iy, ix) of the block statistics.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        device: str | torch.device = "cpu",
        out: tuple[int, int] = BLOCK_SHAPE,
    ):
        self.shape, self.out, self.device = (shape[0], shape[1]), (out[0], out[1]), torch.device(device)
        (ny, nx), (oy, ox) = shape, out
        overlap, rows = overlaps(ny, oy), footprints(ny, oy)
        self._blocks = []
        for i in range(0, oy, BLOCK_ROWS):
            part, y0, y1 = rows[i : i + BLOCK_ROWS], int(rows[i, 0]), int(rows[i : i + BLOCK_ROWS].max()) + 1
            self._blocks.append((y0, y1, self._send(overlap[i : i + BLOCK_ROWS, y0:y1]), self._send(part - y0)))
        self._overlap_x, self._columns = self._send(overlaps(nx, ox).T), self._send(footprints(nx, ox))
        self._guess = np.s_[:: max(ny // 64, 1), :: max(nx // 128, 1)]
        self._points = [self._send(part) for part in (*_samples(ny, oy), *_samples(nx, ox))]
        down, along = np.arange(max(ny // SAMPLE_ROWS, 1))[:, None], np.arange(max(nx // SAMPLE_COLUMNS, 1))
        self._sky_y = self._send(down * SAMPLE_ROWS + SAMPLE_ROWS // 2)
        self._sky_x = self._send(along * SAMPLE_COLUMNS + down % SAMPLE_COLUMNS)

    def measure(
        self,
        image: Tensor,
        flags: Tensor | None = None,
        *,
        invalid: int | None = None,
        saturated: int = Mask.SATURATED,
    ) -> Measured:
        """Reduce a frame; parameters are those of `sums`.

        Returns
        -------
        Measured
            As from `csst_dask.preprocess.measure_image`.
        """
        return self.sums(image, flags, invalid=invalid, saturated=saturated).finish()

    def sums(
        self,
        image: Tensor,
        flags: Tensor | None = None,
        *,
        invalid: int | None = None,
        saturated: int = Mask.SATURATED,
    ) -> FrameSums:
        """Sums over a frame, on the host; waits for the device once.

        Parameters
        ----------
        image : (ny, nx) float32 tensor
        flags : (ny, nx) integer or bool tensor, optional
            Bits that mark invalid pixels; pixels that are not finite are invalid anyway.
        invalid : int, optional
            Bits of ``flags`` that make a pixel invalid; by default all.
        saturated : int
            Bits of ``flags`` that mark saturated pixels.

        Returns
        -------
        FrameSums

        Raises
        ------
        ValueError
            If image or flags have another shape, type or device than expected.
        """
        self._check(image, flags)
        guess = self._valid(image[self._guess], None if flags is None else flags[self._guess], invalid)
        level = torch.where(guess, image[self._guess], torch.nan).nanmedian().nan_to_num(0.0)
        parts = [self._block_rows(image, flags, invalid, level, block) for block in self._blocks]
        sums = torch.cat([part[0] for part in parts], 1) @ self._overlap_x
        top = torch.cat([part[1] for part in parts])[:, self._columns].amax(2)
        points, sky = self._sample_points(image, flags, invalid), self._sample_sky(image, flags, invalid)
        found = FrameSums(self.shape, self.out, shift=float(level))
        found.sums = sums.cpu().numpy() / np.array([1.0, *2 * [self.out[0] * self.out[1]]])[:, None, None]
        found.top, found.points, found.sample = top.cpu().numpy(), points.cpu().numpy(), sky.cpu().numpy()
        good = self._valid(image, flags, invalid)
        whole = None if flags is None or flags.dtype == torch.bool else flags
        found.search = search_frame(image, good, None if whole is None else self._set(whole, saturated))
        return found

    def _send(self, array: NDArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _check(self, image: Tensor, flags: Tensor | None) -> None:
        if tuple(image.shape) != self.shape or image.dtype != torch.float32:
            raise ValueError(f"image: {tuple(image.shape)} {image.dtype}; expected {self.shape} torch.float32")
        if flags is not None and (flags.shape != image.shape or flags.is_floating_point()):
            raise ValueError(f"flags: {tuple(flags.shape)} {flags.dtype}; expected {self.shape} integers or bool")

    @staticmethod
    def _valid(values: Tensor, flags: Tensor | None, invalid: int | None) -> Tensor:
        good = values.abs() <= float(FLOAT32_MAX)
        return good if flags is None else good & ~TorchMeasurer._set(flags, invalid)

    @staticmethod
    def _set(flags: Tensor, wanted: int | None) -> Tensor:
        """Whether any of the wanted bits is set; by default any at all."""
        if flags.dtype in (torch.bool, torch.uint16):
            flags = flags.view(torch.uint8 if flags.dtype == torch.bool else torch.int16)
        # higher bits of wider flags are ignored
        size = min(8 * flags.element_size(), FLAG_BITS)
        bits = (1 << size) - 1 if wanted is None else wanted & ((1 << size) - 1)
        if flags.dtype.is_signed and bits >> (8 * flags.element_size() - 1):
            bits -= 1 << size  # the highest bit is the sign
        return (flags & bits) != 0

    def _block_rows(
        self, image: Tensor, flags: Tensor | None, invalid: int | None, level: Tensor, block: tuple
    ) -> tuple[Tensor, Tensor]:
        """Some output rows, not yet summed along them: (3, rows, nx) float64 and the maxima float32."""
        y0, y1, overlap, rows = block
        pixels = image[y0:y1]
        good = self._valid(pixels, None if flags is None else flags[y0:y1], invalid)
        above = torch.where(good, pixels - level, 0).double()
        sums = torch.stack([overlap @ good.double(), overlap @ above, overlap @ above.square_()])
        tall = torch.where(good, pixels, -torch.inf)[rows]
        return sums, tall.amax(1)

    def _sample_points(self, image: Tensor, flags: Tensor | None, invalid: int | None) -> Tensor:
        """Bilinear samples of the zero-filled frame and of its validity, (2, oy, ox) float64."""
        y, weight_y, x, weight_x = self._points
        place = y[:, :, None, None], x[None, None]
        values = image[place]
        good = self._valid(values, None if flags is None else flags[place], invalid)
        both = torch.stack([torch.where(good, values, 0).double(), good.double()])
        return torch.einsum("cipjq,ip,jq->cij", both, weight_y, weight_x)

    def _sample_sky(self, image: Tensor, flags: Tensor | None, invalid: int | None) -> Tensor:
        """The sparse sample behind the sky level, float32; NaN where invalid or beyond the frame."""
        ny, nx = self.shape
        place = self._sky_y.clamp_max(ny - 1), self._sky_x.clamp_max(nx - 1)
        values = image[place]
        good = self._valid(values, None if flags is None else flags[place], invalid)
        return torch.where(good & (self._sky_y < ny) & (self._sky_x < nx), values, torch.nan)


def _samples(n: int, out: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The two pixels behind each point sample along one axis, and their weights: (out, 2) each."""
    place = np.maximum((np.arange(out) + 0.5) * n / out - 0.5, 0.0)
    first = place.astype(np.int64)
    pixels = np.minimum(np.stack([first, first + 1], 1), n - 1)
    return pixels, np.stack([1 - (place - first), place - first], 1)
