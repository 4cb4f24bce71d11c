"""Baseline without learning from maps: sources are extracted from the pixels, and the stars among them counted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from csst_dask.errors import ConfigError
from csst_dask.instrument.focal_plane import BAND_TABLE
from csst_dask.schema import BRIGHT_LIMIT, Mask

SIGNAL_TO_NOISE = (5, 10, 20, 50, 200)
"""Sources are counted above each of these."""

TILE, MARGIN = 1024, 32
"""Largest side of a tile, and how much of its neighbours it sees, pixel."""

MESH = 128
"""Side of a background cell, pixel."""

THRESHOLD, LEAST_PIXELS = 2.0, 3
"""A source has so many joined pixels above so many sky sigmas, after a 3 x 3 filter."""

INNER, OUTER = 1.5, 4.0
"""Radii of the two apertures, pixel; a star has most of its light in the inner one."""

LOCUS_SIGNAL = 50
"""Sources above this S/N show where the stars lie in the ratio of the two apertures."""

LOCUS_RANGE, LOCUS_USUAL = (0.5, 0.9), 0.65
"""Ratios that a star can have, and the one that is taken where no source is bright enough; galaxies stay below 0.5."""

LOCUS_WIDTH, LOCUS_BIN = 0.04, 0.01
"""A source is star-like if its ratio lies at most so far below that of the frame's stars, three times as far above
(a lone bad pixel lies higher), or within 3 errors of these bounds."""

GLOW = 3.0
"""What lies so many radii from a saturated patch belongs to it; at most `MARGIN`."""

COUNTS: tuple[str, ...] = (
    *(f"stars_{limit}" for limit in SIGNAL_TO_NOISE),
    *(f"sources_{limit}" for limit in SIGNAL_TO_NOISE),
    "bright",
    "saturated",
)
"""Numbers that `count_sources` gives: star-like sources and all sources above each signal-to-noise ratio, star-like
ones brighter than `schema.BRIGHT_LIMIT`, and saturated ones; the saturated ones are in all of them."""


def extraction_definition() -> str:
    """What the counts of a frame follow from, besides its pixels: the settings above and the version of sep."""
    settings = (
        SIGNAL_TO_NOISE, TILE, MARGIN, MESH, THRESHOLD, LEAST_PIXELS, INNER, OUTER, LOCUS_SIGNAL, LOCUS_RANGE,
        LOCUS_USUAL, LOCUS_WIDTH, LOCUS_BIN, GLOW, BRIGHT_LIMIT, COUNTS,
    )  # fmt: skip
    return json.dumps([*settings, _sep().__version__])


def count_sources(image: NDArray[np.float32], mask: NDArray[np.uint8], exptime: float, band: str) -> dict[str, float]:
    """Count the stars on a frame.

    Background and sources as in SExtractor [1]_, tile by tile so that a crowded frame takes bounded time; a source is
    counted in the tile that its centre lies in. A source is star-like if the share of its light within `INNER` of
    `OUTER` pixels is that of the frame's stars. A patch of saturated pixels is one star, and what is detected in its
    glow is not counted. Pixels with any bit but ``ghost`` and ``saturated`` are not seen.

    Parameters
    ----------
    image : (ny, nx) float32 array
        e-/s.
    mask : (ny, nx) uint8 array
        Bits of `schema.Mask`.
    exptime : float
        s
    band : str
        Of `schema.BANDS`; its zero point tells bright stars.

    Returns
    -------
    dict of str to float
        `COUNTS`, and ``ratio``, where the stars lie (NaN if no source is bright enough).

    Raises
    ------
    ConfigError
        If sep is not installed, the band is unknown or the exposure time is not positive.
    ValueError
        If image and mask do not agree.

    References
    ----------
    .. [1] Bertin & Arnouts (1996), A&AS 117, 393; Barbary (2016), JOSS 1, 58.
    """
    sep = _sep()
    image, mask = np.asarray(image), np.asarray(mask)
    if image.ndim != 2 or image.shape != mask.shape:
        raise ValueError(f"image {image.shape} and mask {mask.shape} must be (ny, nx) and alike")
    if band not in BAND_TABLE:
        raise ConfigError(f"unknown band {band!r}; expected one of {', '.join(BAND_TABLE)}")
    if not exptime > 0:
        raise ConfigError(f"the exposure time is {exptime} s; give a positive one")
    found = [_extract_tile(sep, image, mask, where, exptime) for where in _tiles(*image.shape)]
    sources = {
        name: np.concatenate([tile[name] for tile in found]) for name in ("x", "y", "flux", "ratio", "error", "snr")
    }
    saturated, keep = _saturated(mask, sources["x"], sources["y"])
    sources = {name: values[keep] for name, values in sources.items()}
    return _tally(sources, saturated, 10 ** (0.4 * (BAND_TABLE[band].zero_point - BRIGHT_LIMIT)))


def _sep() -> Any:
    try:
        import sep
    except ImportError:
        raise ConfigError(
            "source extraction needs sep, which is not installed: pip install 'csst_dask[evaluate]'"
        ) from None
    return sep


def _tiles(ny: int, nx: int) -> Iterator[tuple[int, int, int, int]]:
    """(y0, y1, x0, x1), equal and symmetric."""
    edges = [np.linspace(0, side, math.ceil(side / TILE) + 1).round().astype(int) for side in (ny, nx)]
    for y0, y1 in zip(edges[0], edges[0][1:], strict=False):
        for x0, x1 in zip(edges[1], edges[1][1:], strict=False):
            yield int(y0), int(y1), int(x0), int(x1)


def _extract_tile(
    sep: Any, image: NDArray, mask: NDArray, where: tuple[int, int, int, int], exptime: float
) -> dict[str, NDArray[np.float64]]:
    """Sources whose centre lies in the tile: position on the frame, flux (e-/s), ratio and its error, S/N."""
    y0, y1, x0, x1 = where
    top, left = max(0, y0 - MARGIN), max(0, x0 - MARGIN)
    window = np.s_[top : min(image.shape[0], y1 + MARGIN), left : min(image.shape[1], x1 + MARGIN)]
    pixels = np.array(image[window], np.float32, order="C")
    hidden = ((mask[window] & ~np.uint8(Mask.GHOST | Mask.SATURATED)) != 0) | ~np.isfinite(pixels)
    pixels[hidden] = 0
    nothing = {name: np.empty(0) for name in ("x", "y", "flux", "ratio", "error", "snr")}
    if hidden.all():
        return nothing
    background = sep.Background(pixels, mask=hidden, bw=MESH, bh=MESH)
    noise = float(background.globalrms)
    if not (np.isfinite(noise) and noise > 0):
        return nothing
    pixels -= background.back(dtype=np.float32)
    objects = _extract(sep, pixels, hidden, noise)
    x, y = objects["x"] + left, objects["y"] + top
    inside = (x >= x0 - 0.5) & (x < x1 - 0.5) & (y >= y0 - 0.5) & (y < y1 - 0.5)
    inside &= np.isfinite(objects["x"]) & np.isfinite(objects["y"])
    if not inside.any():
        return nothing
    objects = objects[inside]
    inner, inner_error, _ = sep.sum_circle(
        pixels, objects["x"], objects["y"], INNER, mask=hidden, err=noise, gain=exptime
    )
    outer, outer_error, _ = sep.sum_circle(
        pixels, objects["x"], objects["y"], OUTER, mask=hidden, err=noise, gain=exptime
    )
    light = np.maximum(outer, noise)
    return {
        "x": x[inside],
        "y": y[inside],
        "flux": outer,
        "ratio": np.clip(inner / light, 0, 2),
        "error": np.hypot(inner_error, outer_error) / light,
        "snr": inner / np.maximum(inner_error, 1e-12),
    }


def _extract(sep: Any, pixels: NDArray[np.float32], hidden: NDArray[np.bool_], noise: float) -> NDArray:
    """Sources of a tile; where it is too crowded to be taken apart, the brighter ones."""
    sep.set_extract_pixstack(pixels.size)
    sep.set_sub_object_limit(4096)
    threshold = THRESHOLD * noise
    for _ in range(8):
        try:
            return sep.extract(
                pixels,
                threshold,
                mask=hidden,
                minarea=LEAST_PIXELS,
                deblend_nthresh=16,
                deblend_cont=0.005,
                clean=False,
            )
        except Exception as error:  # sep raises plain exceptions
            if "overflow" not in str(error) and "full" not in str(error):
                raise
            threshold *= 2
    return sep.extract(pixels, threshold, mask=hidden, minarea=LEAST_PIXELS, deblend_cont=1.0, clean=False)


def _saturated(mask: NDArray[np.uint8], x: NDArray, y: NDArray) -> tuple[float, NDArray[np.bool_]]:
    """Number of saturated patches, and which sources lie outside their glow."""
    patches, number = ndimage.label((mask & np.uint8(Mask.SATURATED)) != 0, structure=np.ones((3, 3)))
    if not number:
        return 0.0, np.ones(len(x), bool)
    glow = np.zeros(mask.shape, bool)
    area = np.bincount(patches[patches > 0], minlength=number + 1)
    for patch, (rows, columns) in enumerate(ndimage.find_objects(patches), start=1):
        radius = min(MARGIN, 2 + math.ceil(GLOW * math.sqrt(area[patch] / math.pi)))
        y0, x0 = max(0, rows.start - radius), max(0, columns.start - radius)
        glow[y0 : rows.stop + radius, x0 : columns.stop + radius] = True
    row = np.clip(np.rint(y).astype(int), 0, mask.shape[0] - 1)
    column = np.clip(np.rint(x).astype(int), 0, mask.shape[1] - 1)
    return float(number), ~glow[row, column]


def _tally(sources: dict[str, NDArray[np.float64]], saturated: float, bright_flux: float) -> dict[str, float]:
    """`COUNTS` and ``ratio``."""
    ratio = _locus(sources["ratio"][sources["snr"] > LOCUS_SIGNAL])
    beyond = sources["ratio"] - (LOCUS_USUAL if math.isnan(ratio) else ratio)
    star = (beyond > -LOCUS_WIDTH - 3 * sources["error"]) & (beyond < 3 * (LOCUS_WIDTH + sources["error"]))
    counts = {f"stars_{limit}": np.sum(star & (sources["snr"] > limit)) for limit in SIGNAL_TO_NOISE}
    counts |= {f"sources_{limit}": np.sum(sources["snr"] > limit) for limit in SIGNAL_TO_NOISE}
    counts["bright"] = np.sum(star & (sources["flux"] > bright_flux))
    return {name: float(value) + saturated for name, value in counts.items()} | {"saturated": saturated, "ratio": ratio}


def _locus(ratios: NDArray[np.float64]) -> float:
    """The commonest ratio that a star can have; NaN if there is none."""
    edges = np.arange(LOCUS_RANGE[0], LOCUS_RANGE[1] + LOCUS_BIN, LOCUS_BIN)
    count = np.histogram(ratios, edges)[0]
    if not count.any():
        return float("nan")
    smooth = np.convolve(count, (1, 2, 1), mode="same")
    middle = edges[np.argmax(smooth)] + LOCUS_BIN / 2
    return float(np.median(ratios[np.abs(ratios - middle) < 2 * LOCUS_BIN]))
