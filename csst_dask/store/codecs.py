"""How arrays are packed: which codec serves which array, a checksum on every chunk, and rounding that compresses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

STEPS_PER_SIGMA = 16
"""Quantised pixels keep at least this many steps in the sky's standard deviation."""


def image_codec(pixels: str) -> BloscCodec:
    """Codec of the image: fast for lossless noise, tight where trailing bits have been cleared."""
    if pixels == "quantised":
        return BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")


def mask_codec() -> BloscCodec:
    """Codec of masks: most bytes are equal, so that a fast match finder takes them in one go."""
    return BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle")


def text_codec() -> ZstdCodec:
    """Codec of headers and per-chip variables."""
    return ZstdCodec(level=1)


def maps_codec() -> BloscCodec:
    """Codec of block statistics and of counts of peaks."""
    return BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")


def checked(codec: BytesBytesCodec) -> list[BytesBytesCodec]:
    """A codec, and a CRC-32C of what it made: a chunk that was torn or changed cannot be read without notice."""
    return [codec, Crc32cCodec()]


def quantisation_step(sky_sigma: float) -> float:
    """Largest power of two that is at most ``sky_sigma / STEPS_PER_SIGMA``; 0 keeps pixels as they are.

    A power of two makes the rounded values exact binary fractions, so that any reader sees them without a codec of
    our own, and their trailing zero bits compress.
    """
    if not sky_sigma > 0 or not np.isfinite(sky_sigma):
        return 0.0
    return float(2.0 ** np.floor(np.log2(sky_sigma / STEPS_PER_SIGMA)))


def quantise(image: NDArray[np.float32], step: float) -> None:
    """Round to multiples of a step in place; the error is at most half a step, whatever the flux."""
    if step > 0:
        np.multiply(image, np.float32(1 / step), out=image)
        np.rint(image, out=image)
        np.multiply(image, np.float32(step), out=image)
