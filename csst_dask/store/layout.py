"""The format of a survey store, layout version 2: its arrays, how they are chunked, and what their attributes say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec

from csst_dask.instrument.cells import sky_shape
from csst_dask.schema import (
    BLOCK_SHAPE,
    BLOCK_STATS,
    CLASS_LABELS,
    CONCENTRATION,
    FLUX,
    MAGNITUDES,
    MASK_MEANINGS,
    N_CLASSES,
    REVIEW_REASONS,
    ROUTE_CODES,
    ROUTE_FLAGS,
    SHAPE_CONCENTRATION,
    SHAPE_SHARPNESS,
    SHAPES,
    SHARPNESS,
    SIZES,
    STATUSES,
    TILES,
    Mask,
)
from csst_dask.store.codecs import image_codec, maps_codec, mask_codec, text_codec

FORMAT = "csst_dask survey store"
VERSION = 2
BLOCK = 4096
"""Rows of a per-chip variable that share a chunk; only the client writes them."""
HEADER_BYTES = 92_160
"""Room for the cards of a chip: 1152 cards."""

PREDICTIONS = "predictions"
FILES = "files"

COORDINATES = (
    "obs_id", "detector", "version", "band", "exptime", "mjd", "ra", "dec", "corner_ra", "corner_dec", "field",
    "zero_point", "header",
)  # fmt: skip

PREDICTED_STATES = ("none", "predicted", "incomplete")
"""Values of ``predicted``."""
NONE, WHOLE, INCOMPLETE = range(3)

NAN = float("nan")


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
    codec: BytesBytesCodec = field(default_factory=text_codec)
    values: NDArray | None = None
    """Content of a coordinate that is written when the store is made."""


def _scalar(
    name: str, dtype: Any, fill: Any, long_name: str, units: str | None = None, dims: tuple[str, ...] = (), **attrs: Any
) -> Variable:
    described = {"long_name": long_name, **({"units": units} if units else {}), **attrs}
    sizes = {"corner": 4, "magnitude": len(MAGNITUDES), "density_level": N_CLASSES, "ty": TILES, "tx": TILES}
    return Variable(name, ("chip", *dims), np.dtype(dtype), fill, described, tuple(sizes[dim] for dim in dims))


def _text(name: str, width: int, long_name: str) -> Variable:
    """UTF-8 in a fixed number of bytes; xarray decodes it by ``_Encoding``."""
    return _scalar(name, f"S{width}", b"", long_name, _Encoding="utf-8")


def _flags(names: tuple[str, ...]) -> dict[str, Any]:
    return {"flag_values": list(range(len(names))), "flag_meanings": " ".join(names)}


def _masks(bits: Mapping[str, int]) -> dict[str, Any]:
    return {"flag_masks": list(bits.values()), "flag_meanings": " ".join(bits)}


CORNERS = "corners (0,0), (nx,0), (nx,ny), (0,ny), ICRS"
BRIGHT = "stars brighter than 23.5 mag in the chip's band"

CHIP_VARIABLES = (
    _scalar("obs_id", "<U32", "", "exposure"),
    _scalar("detector", np.int16, -1, "detector, 1 to 30"),
    _scalar("version", np.int16, -1, "version of the data reduction"),
    _scalar("band", "<U8", "", "imaging band"),
    _scalar("exptime", np.float64, NAN, "exposure time", "s"),
    _scalar("mjd", np.float64, NAN, "start of the exposure, MJD", "d"),
    _scalar("ra", np.float64, NAN, "right ascension of the frame's centre, ICRS", "degrees_east"),
    _scalar("dec", np.float64, NAN, "declination of the frame's centre, ICRS", "degrees_north"),
    _scalar("corner_ra", np.float64, NAN, CORNERS, "degrees_east", ("corner",)),
    _scalar("corner_dec", np.float64, NAN, CORNERS, "degrees_north", ("corner",)),
    _text("field", 80, "sky field, for splitting data sets"),
    _scalar("zero_point", np.float64, NAN, "AB magnitude of 1 electron per second", "mag"),
    _scalar("n_star", np.int64, -1, "true number of stars on the frame (simulated: g < 26.5), -1 unknown"),
    _scalar("n_bright", np.int64, -1, f"true number of {BRIGHT}, -1 unknown"),
    _scalar(
        "n_brighter", np.int64, -1, "true number of stars brighter than a magnitude in the chip's band, -1 unknown",
        dims=("magnitude",),
    ),
    _scalar("n_star_tile", np.int32, -1, "true number of stars in each tile, -1 unknown", dims=("ty", "tx")),
    _scalar("n_bright_tile", np.int32, -1, f"true number of {BRIGHT} in each tile, -1 unknown", dims=("ty", "tx")),
    _scalar("pixel_mean", np.float64, NAN, "mean of the valid pixels", "electron s-1"),
    _scalar("pixel_std", np.float64, NAN, "population standard deviation of the valid pixels", "electron s-1"),
    _scalar("n_valid", np.int64, 0, "number of valid pixels"),
    _scalar("sky_level", np.float64, NAN, "median of a sparse sample of valid pixels", "electron s-1"),
    _scalar("sky_sigma", np.float64, NAN, "1.4826 median absolute deviation of that sample", "electron s-1"),
    _text("source", 1024, "image file"),
    _text("source_id", 128, "size and modification time of the chip's files when they were read"),
    _text("truth_id", 48, "size and modification time of the truth catalogue when it was read"),
    _scalar("attempts", np.int16, 0, "runs in which reading the chip failed, since it last succeeded"),
    _scalar("predict_attempts", np.int16, 0, "runs in which predicting the chip failed, since it last succeeded"),
    _text("reason", 1024, "why a chip was rejected or failed, or what was noted about it"),
    _scalar("status", np.uint8, 0, "what became of the chip", **_flags(STATUSES)),
)  # fmt: skip
"""Written by the client alone; ``status`` is the marker of completeness, and comes last."""

IDENTITY = ("obs_id", "detector", "version")
"""Variables that the store and its predictions both hold, and that nothing else tells."""

LEDGER = ("obs_id", "detector", "version", "source_id", "truth_id", "attempts", "predict_attempts", "status")
"""Variables that decide what is to be done."""


def _value(name: str, long_name: str, units: str = "1", dims: tuple[str, ...] = (), **attrs: Any) -> Variable:
    return _scalar(name, np.float32, NAN, long_name, units, dims, **attrs)


PREDICTED = (
    _value("class_probability", "probability of each density class", dims=("density_level",)),
    _scalar("density_class", np.int8, -1, "most probable density class, -1 without prediction", "1"),
    _value("log_bright", "log10(1 + bright stars on the frame), NaN where bypassed"),
    _value("bright_count", "bright stars on the frame, NaN where bypassed"),
    _value("bright_lower", "lower bound of the interval of bright_count"),
    _value("bright_upper", "upper bound of the interval of bright_count"),
    _value("log_star", "log10(1 + stars on the frame), NaN where the networks give none"),
    _value("star_lower", "lower bound of the interval of the stars on the frame"),
    _value("star_upper", "upper bound of the interval of the stars on the frame"),
    _value("star_counts", "stars brighter than a magnitude", dims=("magnitude",)),
    _value("star_counts_lower", "lower bound of the interval of star_counts", dims=("magnitude",)),
    _value("star_counts_upper", "upper bound of the interval of star_counts", dims=("magnitude",)),
    _value("direct_counts", "stars brighter than a magnitude, counted without networks", dims=("magnitude",)),
    _value("direct_counts_error", "standard deviation of direct_counts", dims=("magnitude",)),
    _value("direct_tile", "bright stars in each tile, counted without networks", dims=("ty", "tx")),
    _value("tile_bright", "bright stars in each tile, NaN where bypassed", dims=("ty", "tx")),
    _value("tile_star", "stars in each tile", dims=("ty", "tx")),
    _value("log_star_exposure", "log10(1 + stars on the frame) from all chips of the exposure together"),
    _value("reference_limit", "brightest magnitude with enough stars for astrometry", "mag"),
    _value("confusion_limit", "magnitude at which 30 areas of the point spread function hold one star", "mag"),
    _value("ood_score", "how unlike what the networks have learned from, in units of the limit"),
    _scalar("out_of_distribution", bool, False, "unlike what the networks have learned from", "1"),
    _scalar("route", np.uint8, 0, "what the pipeline should do next", **_flags(ROUTE_CODES)),
    _scalar("route_flags", np.uint8, 0, "every route that applies", **_masks(ROUTE_FLAGS)),
    _scalar("review_reason", np.uint8, 0, "why the chip needs a review", **_masks(REVIEW_REASONS)),
    _value("confidence", "largest class probability, NaN out of distribution"),
)  # fmt: skip
"""What is predicted of a chip."""

CHIP = _scalar("chip", np.int64, -1, "row in the survey store")

COPIED = tuple(v for v in CHIP_VARIABLES if v.name in COORDINATES)
"""Coordinates that the predictions repeat."""

MARKER = _scalar(
    "predicted", np.uint8, 0, "whether the chip is predicted, written after all else", **_flags(PREDICTED_STATES)
)

PREDICTION_VARIABLES = (CHIP, *COPIED, *PREDICTED, MARKER)


def _axis(name: str, values: NDArray, long_name: str, units: str = "1", **attrs: Any) -> Variable:
    dtype = values.dtype if values.dtype.kind in "US" else np.result_type(values.dtype)
    return Variable(
        name, (name,), dtype, "" if dtype.kind == "U" else 0, {"long_name": long_name, "units": units, **attrs},
        chunks=(len(values),), values=values,
    )  # fmt: skip


ROOT_AXES = (
    _axis("stat", np.array(BLOCK_STATS), "statistic of the blocks"),
    _axis("flux", FLUX, "lower edge of 3 x 3 light over the local sky, log10(electron s-1)"),
    _axis("concentration", CONCENTRATION, "lower edge of 3 x 3 over 5 x 5 light"),
    _axis("sharpness", SHARPNESS, "lower edge of peak over 3 x 3 light"),
    _axis(
        "shape",
        SHAPES,
        "coarse shape of a peak",
        concentration=list(SHAPE_CONCENTRATION),
        sharpness=list(SHAPE_SHARPNESS),
        comment="a peak has the last shape whose lower edges of concentration and sharpness it reaches",
    ),
    _axis("size", SIZES, "lower edge of the area of a saturated star", "pixel"),
    _axis("magnitude", np.array(MAGNITUDES), "AB magnitude in the chip's band", "mag"),
)
PREDICTION_AXES = (
    Variable(
        "density_level", ("density_level",), np.dtype(np.int8), 0,
        {"long_name": "density class", "flag_values": list(range(N_CLASSES)), "flag_meanings": " ".join(CLASS_LABELS)},
        chunks=(N_CLASSES,), values=np.arange(N_CLASSES, dtype=np.int8),
    ),
    ROOT_AXES[-1],
)  # fmt: skip

FILE_VARIABLES = (
    Variable("path", ("file",), np.dtype("S4096"), b"", {"long_name": "input that gave no chip", "_Encoding": "utf-8"}),
    Variable("reason", ("file",), np.dtype("S1024"), b"", {"long_name": "why it gave none", "_Encoding": "utf-8"}),
)


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
    whole = (1, *frame) if shard else None
    row_of_chunks = (1, chunks[0], frame[1])  # a file costs more than a chunk of a mask holds
    image = Variable(
        "image", ("chip", "y", "x"), np.dtype(np.float32), NAN,
        {"long_name": "calibrated count rate", "units": "electron s-1"},
        frame, (1, *chunks), whole, image_codec(pixels),
    )  # fmt: skip
    bits = {name: int(bit) for name, bit in zip(MASK_MEANINGS, Mask, strict=True)}
    mask = Variable(
        "mask", ("chip", "y", "x"), np.dtype(np.uint8), int(Mask.NOT_OBSERVED),
        {"long_name": "pixel flags", **_masks(bits)},
        frame, (1, *chunks), whole or row_of_chunks, mask_codec(),
    )  # fmt: skip
    kept = (mask, *_measured(frame)) if keep_mask else _measured(frame)
    return kept if pixels == "none" else (image, *kept)


def _measured(frame: tuple[int, int]) -> tuple[Variable, ...]:
    sky, codec, rate = sky_shape(frame), maps_codec(), "electron s-1"

    def whole(
        name: str, dims: tuple[str, ...], dtype: Any, fill: Any, shape: tuple[int, ...], **attrs: Any
    ) -> Variable:
        return Variable(name, ("chip", *dims), np.dtype(dtype), fill, attrs, shape, (1, *shape), None, codec)

    n = len(BLOCK_STATS)
    return (
        Variable(
            "block_stats", ("chip", "stat", "iy", "ix"), np.dtype(np.float32), NAN,
            {
                "long_name": "statistics of the blocks of the frame",
                "units": rate,
                "comment": "valid and point_valid are fractions; mean, valid and std by exact area weights",
            },
            (n, *BLOCK_SHAPE), (1, 1, *BLOCK_SHAPE), (1, n, *BLOCK_SHAPE), codec,
        ),
        whole(
            "peaks", ("flux", "concentration", "sharpness"), np.uint32, 0,
            (FLUX.size, CONCENTRATION.size, SHARPNESS.size), long_name="number of peaks", units="1",
        ),
        whole(
            "tile_peaks", ("ty", "tx", "flux", "shape"), np.uint16, 0, (TILES, TILES, FLUX.size, SHAPES.size),
            long_name="number of peaks in each tile", units="1",
        ),
        whole(
            "saturated", ("ty", "tx", "size"), np.uint16, 0, (TILES, TILES, SIZES.size),
            long_name="number of saturated stars in each tile", units="1",
        ),
        whole("sky", ("sy", "sx"), np.float32, NAN, sky, long_name="local sky", units=rate),
        whole("noise", ("sy", "sx"), np.float32, NAN, sky, long_name="local scatter of the sky", units=rate),
        whole(
            "header", ("byte",), np.uint8, 32, (HEADER_BYTES,),
            long_name="FITS cards of the primary and the image header, 80 ASCII bytes each",
        ),
    )  # fmt: skip


MEASURED = ("block_stats", "peaks", "tile_peaks", "saturated", "sky", "noise")
"""What a pass over the pixels may have measured; the store's attribute ``measured`` lists what it holds."""
