"""The format of a survey store: which arrays it has, how they are chunked, and what their attributes say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from csst_dask.schema import CHANNELS, MASK_MEANINGS, REDUCED_SHAPE, Mask
from csst_dask.store.codecs import image_codec, maps_codec, mask_codec

FORMAT = "csst_dask survey store"
VERSION = 1
BLOCK = 4096
"""Rows of a per-chip variable that share a chunk; only the client writes them."""
HEADER_BYTES = 92_160
"""Room for the cards of a chip: 1152 cards."""

COORDINATES = (
    "obs_id", "detector", "version", "band", "exptime", "mjd", "ra", "dec", "corner_ra", "corner_dec", "field",
    "header",
)  # fmt: skip


@dataclass(frozen=True)
class Variable:
    """One array of the store."""

    name: str
    dims: tuple[str, ...]
    dtype: Any
    fill: Any
    attrs: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    """Sizes after the first dimension."""
    chunks: tuple[int, ...] = ()
    """Chunk shape; by default blocks of rows."""
    shards: tuple[int, ...] | None = None
    codec: Any = "auto"


def _scalar(name: str, dtype: Any, fill: Any, long_name: str, units: str | None = None, **attrs: Any) -> Variable:
    described = {"long_name": long_name, **({"units": units} if units else {}), **attrs}
    return Variable(name, ("chip",), dtype, fill, described)


NAN = float("nan")

CHIP_VARIABLES = (
    _scalar("obs_id", str, "", "exposure"),
    _scalar("detector", np.int16, -1, "detector, 1 to 30"),
    _scalar("version", np.int16, -1, "version of the data reduction"),
    _scalar("band", str, "", "imaging band"),
    _scalar("exptime", np.float64, NAN, "exposure time", "s"),
    _scalar("mjd", np.float64, NAN, "start of the exposure, MJD", "d"),
    _scalar("ra", np.float64, NAN, "right ascension of the frame's centre, ICRS", "degrees_east"),
    _scalar("dec", np.float64, NAN, "declination of the frame's centre, ICRS", "degrees_north"),
    Variable(
        "corner_ra", ("chip", "corner"), np.float64, NAN,
        {"long_name": "corners (0,0), (nx,0), (nx,ny), (0,ny), ICRS", "units": "degrees_east"}, (4,),
    ),
    Variable(
        "corner_dec", ("chip", "corner"), np.float64, NAN,
        {"long_name": "corners (0,0), (nx,0), (nx,ny), (0,ny), ICRS", "units": "degrees_north"}, (4,),
    ),
    _scalar("field", str, "", "sky field, for splitting data sets"),
    _scalar("n_star", np.int64, -1, "true number of stars on the frame, -1 unknown"),
    _scalar("n_bright", np.int64, -1, "true number of stars brighter than 23.5 mag in the chip's band, -1 unknown"),
    _scalar("pixel_mean", np.float64, NAN, "mean of the valid pixels", "electron s-1"),
    _scalar("pixel_std", np.float64, NAN, "population standard deviation of the valid pixels", "electron s-1"),
    _scalar("n_valid", np.int64, 0, "number of valid pixels"),
    _scalar("sky_level", np.float64, NAN, "median of a sparse sample of valid pixels", "electron s-1"),
    _scalar("sky_sigma", np.float64, NAN, "1.4826 median absolute deviation of that sample", "electron s-1"),
    _scalar("source", str, "", "image file"),
    _scalar("source_id", str, "", "size and modification time of the chip's files when they were read"),
    _scalar("status", str, "pending", "pending, done, rejected or superseded"),
    _scalar("reason", str, "", "why a chip was rejected, or what was noted about it"),
)  # fmt: skip


def pixel_variables(
    frame: tuple[int, int], chunks: tuple[int, int], pixels: str, shard: bool, keep_mask: bool
) -> tuple[Variable, ...]:
    """Arrays with a chunk or more for every chip.

    Parameters
    ----------
    frame, chunks : (int, int)
        Shapes (y, x), pixel.
    pixels : {"lossless", "quantised", "none"}
    shard : bool
        One file per chip instead of one per chunk.
    keep_mask : bool
        Whether the store has a mask.
    """
    bits = [int(bit) for bit in Mask]
    whole = (1, *frame) if shard else None
    image = Variable(
        "image", ("chip", "y", "x"), np.float32, NAN,
        {"long_name": "calibrated count rate", "units": "electron s-1"},
        frame, (1, *chunks), whole, image_codec(pixels),
    )  # fmt: skip
    mask = Variable(
        "mask", ("chip", "y", "x"), np.uint8, int(Mask.NOT_OBSERVED),
        {
            "long_name": "pixel flags",
            "flag_masks": bits,
            "flag_meanings": " ".join(MASK_MEANINGS),
        },
        frame, (1, *chunks), whole, mask_codec(),
    )  # fmt: skip
    reduced = Variable(
        "reduced", ("chip", "channel", "iy", "ix"), np.float32, NAN,
        {
            "long_name": "reduced maps of the frame",
            "units": "electron s-1",
            "comment": "valid and point_valid are fractions; mean, valid and std by exact area weights",
        },
        (len(CHANNELS), *REDUCED_SHAPE), (1, len(CHANNELS), *REDUCED_SHAPE), None, maps_codec(),
    )  # fmt: skip
    header = Variable(
        "header", ("chip", "byte"), np.uint8, 32,
        {"long_name": "FITS cards of the primary and the image header, 80 ASCII bytes each"},
        (HEADER_BYTES,), (1, HEADER_BYTES), None, mask_codec(),
    )  # fmt: skip
    kept: tuple[Variable, ...] = (reduced, header)
    if keep_mask:
        kept = (mask, *kept)
    return kept if pixels == "none" else (image, *kept)
