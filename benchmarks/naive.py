"""What the reduction is measured against: the pipeline that one writes first, and a dense float64 reference."""

from __future__ import annotations

import numpy as np
import torch
from astropy.io import fits
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from csst_dask.schema import BLOCK_SHAPE


def naive_image(pixels: NDArray) -> NDArray[np.float32]:
    """Standardised image and mask of a frame, resized by torch with as many threads as it likes.

    Parameters
    ----------
    pixels : (ny, nx) array

    Returns
    -------
    (2, iy, ix) float32 array
    """
    pixels = np.asarray(pixels, np.float32)
    mask = np.isfinite(pixels)
    filled = np.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0)
    valid = pixels[mask]
    mean, std = valid.mean(), valid.std()
    image = np.where(mask, (filled - mean) / std, np.float32(0))
    channels = torch.from_numpy(np.stack([image, mask.astype(np.float32)]))
    return interpolate(channels[None], BLOCK_SHAPE, mode="bilinear", antialias=True)[0].numpy()


def naive_file(path: str) -> NDArray[np.float32]:
    """The same from the first image extension of a FITS file."""
    return naive_image(fits.getdata(path, ext=1))


def reference(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Area-averaged standardised image and mask in float64, from the definition.

    Pixels are standardised one by one, with moments about the first valid pixel, and every output pixel is the mean
    over its area of the frame, in which border pixels count by their overlap.

    Parameters
    ----------
    pixels : (ny, nx) float32 array

    Returns
    -------
    (2, iy, ix) float64 array
    """
    (ny, nx), (oy, ox) = pixels.shape, BLOCK_SHAPE
    mask = np.isfinite(pixels)
    mean = std = 0.0
    if mask.any():
        valid = pixels[mask].astype(np.float64)
        origin = valid[0]
        valid -= origin
        mean, std = origin + valid.mean(), valid.std()
    across, rows = _overlaps(nx, ox), np.empty((2, oy, nx))
    for i in range(oy):
        start, stop = i * ny // oy, -(-(i + 1) * ny // oy)
        weights = _overlaps(ny, oy, i, start, stop)
        good, part = mask[start:stop], pixels[start:stop].astype(np.float64)
        standard = np.where(good, part - mean, 0.0) / (std if std > 0 else np.inf)
        rows[:, i] = weights @ standard, weights @ good.astype(np.float64)
    return rows @ across.T


def _overlaps(n: int, out: int, i: int | None = None, start: int = 0, stop: int | None = None) -> NDArray[np.float64]:
    """Share of input pixels [start, stop) in output pixel i of ``out``, or in all of them."""
    pixel = np.arange(start, n if stop is None else stop)
    block = np.arange(out)[:, None] if i is None else i
    low, high = np.maximum(block * n, pixel * out), np.minimum((block + 1) * n, (pixel + 1) * out)
    return np.maximum(high - low, 0) / n
