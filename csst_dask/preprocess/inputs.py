"""Block statistics to network tensors: maps of each kind, and the context that goes with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ConfigError
from csst_dask.preprocess.counted import ANCHORS, COUNTED
from csst_dask.preprocess.statistics import (
    ANSCOMBE,
    EDGES,
    HISTOGRAMS,
    LIMIT,
    SOFTENING,
    STATISTICS,
    TYPICAL_LOG_SIGMA,
    Blocks,
    block_histograms,
    block_statistics,
    bounded,
    compressed,
    scaled_blocks,
)
from csst_dask.schema import BANDS, BLOCK_STATS

Bands = Sequence[str] | NDArray[np.str_]

SCALARS = ("pixel_mean", "pixel_std", "sky_level", "sky_sigma")
"""Scalars of a chip that the maps are scaled by, all in the unit of the maps."""

PAPER_LIMIT = 6.0e4
"""Largest absolute value of a standardised image: a half float still holds it."""

WITH_CONTEXT = ("maps", "context", "counts")
"""Kinds of inputs that come with context."""

WITH_COUNTS = ("counts",)
"""Kinds whose context tells what was counted, and no maps."""

USUAL_EXPTIME = 150.0
"""s"""

_FIRST = (*(f"band_{band}" for band in BANDS), "log_exptime")
CONTEXT = (*_FIRST, *STATISTICS, *HISTOGRAMS)
"""Names of the numbers of the context; the histograms come last."""
CONTEXT_COUNTS = (*_FIRST, *COUNTED)
"""With what was counted instead of the maps: counts hold where maps of another sky mislead."""


def input_channels(kind: str) -> int:
    """Number of channels of one kind of input.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.

    Returns
    -------
    int

    Raises
    ------
    ConfigError
        If the kind is unknown.
    """
    return _kind(kind)[0]


def make_inputs(
    kind: str, block_stats: NDArray[np.float32], scalars: Mapping[str, ArrayLike], band: Bands
) -> NDArray[np.float32]:
    """Network inputs of a block of chips.

    Parameters
    ----------
    kind : str
        ``paper-point``: the standardised image, sampled without antialiasing, and its mask [1]_;
        ``paper-area``: the same from exact block means; ``maps``: block mean, scatter and maximum in units of the sky
        scatter, and the valid fraction; ``context``: no channel, for networks that look at the context alone.
    block_stats : (n, 6, iy, ix) float32 array
        Block statistics in the order of `schema.BLOCK_STATS`; e-/s, NaN where nothing is valid. Not modified.
    scalars : mapping of str to (n,) array
        `SCALARS` of each chip; values that are not finite, and scatters that are not positive, are survived.
    band : sequence of n str
        Band of each chip; no kind shows it, the context tells it.

    Returns
    -------
    (n, channels, iy, ix) float32 array
        Dimensionless and finite everywhere.

    Raises
    ------
    ConfigError
        If the kind is unknown.
    ValueError
        If the shapes do not agree or a scalar is missing.

    References
    ----------
    .. [1] Lai et al., star-density classification and regression for CSST, section 2.3.
    """
    channels, fill = _kind(kind)
    block_stats = checked_maps(block_stats)
    n, _, ny, nx = block_stats.shape
    planes = scalar_planes(scalars, n)
    if len(band) != n:
        raise ValueError(f"{len(band)} bands for {n} chips; give one for each chip")
    out = np.zeros((n, channels, ny, nx), np.float32)
    with np.errstate(all="ignore"):
        fill(out, {name: block_stats[:, i] for i, name in enumerate(BLOCK_STATS)}, planes, band)
    return out


@cache
def context_definition(kind: str = "context") -> str:
    """SHA-256 of what the numbers are; weights hold for the context that they learned from."""
    scales = USUAL_EXPTIME, SOFTENING, TYPICAL_LOG_SIGMA, ANSCOMBE
    names = CONTEXT_COUNTS if kind in WITH_COUNTS else CONTEXT
    return hashlib.sha256(json.dumps([names, EDGES, scales]).encode()).hexdigest()


def context_length(kind: str) -> int:
    """Numbers of the context of a kind of inputs; 0 for one that has none."""
    input_channels(kind)
    if kind in WITH_COUNTS:
        return len(CONTEXT_COUNTS)
    return len(CONTEXT) if kind in WITH_CONTEXT else 0


def anchor_count(kind: str) -> int:
    """Direct counts in the context of a kind of inputs, which a network corrects; 0 where there are none."""
    return len(ANCHORS) if kind in WITH_COUNTS else 0


def histogram_length(kind: str) -> int:
    """How many of these, the last ones, are bins of joint histograms."""
    return len(HISTOGRAMS) if context_length(kind) and kind not in WITH_COUNTS else 0


def make_context(
    kind: str,
    block_stats: NDArray[np.float32],
    scalars: Mapping[str, ArrayLike],
    band: Bands,
    counted: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Context of a block of chips: band, exposure time, and what is seen.

    Seen are statistics and joint histograms of the maps, or, for kinds of `WITH_COUNTS`, peaks and direct counts.

    Parameters
    ----------
    kind, block_stats, scalars, band
        As for `make_inputs`; ``exptime`` (s) stands for the usual one where it is missing.
    counted : (n, k) float32 array, optional
        `counted.counted_context` of each chip; for kinds of `WITH_COUNTS`.

    Returns
    -------
    (n, context) float32 array
        `CONTEXT`, or `CONTEXT_COUNTS`, of each chip, finite.

    Raises
    ------
    ValueError
        If the kind needs what was counted, and it is not given.
    """
    out = np.zeros((len(block_stats), context_length(kind)), np.float32)
    if not out.size:
        return out
    exptime = np.asarray(scalars.get("exptime", np.full(len(out), USUAL_EXPTIME)), np.float64)
    known = np.isfinite(exptime) & (exptime > 0)
    for column, name in enumerate(BANDS):
        out[:, column] = [b == name for b in band]
    out[:, len(BANDS)] = np.log10(np.where(known, exptime, USUAL_EXPTIME) / USUAL_EXPTIME)
    start = len(BANDS) + 1
    if kind in WITH_COUNTS:
        if counted is None:
            raise ValueError(f"inputs of the kind {kind!r} need what was counted on the chips")
        out[:, start:] = counted
        return out
    with np.errstate(all="ignore"):
        for chip, (blocks, sigma, spread) in enumerate(_each_chip(block_stats, scalars)):
            out[chip, start : -len(HISTOGRAMS)] = block_statistics(blocks, sigma, spread)
            out[chip, -len(HISTOGRAMS) :] = block_histograms(blocks)
    return out


def map_statistics(block_stats: NDArray[np.float32], scalars: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
    """Statistics of the distribution of a chip's block maps, in units of its own sky.

    They do not change if the maps are flipped or transposed, nor, ``log_sigma`` apart, if all pixels are scaled or
    shifted. Blocks without a valid pixel or with a value that is not finite are left out.

    Parameters
    ----------
    block_stats : (n, 6, iy, ix) float32 array
        Block statistics in the order of `schema.BLOCK_STATS`; e-/s, NaN where nothing is valid. Not modified.
    scalars : mapping of str to (n,) array
        `SCALARS` of each chip; values that are not finite are survived.

    Returns
    -------
    (n, k) float32 array
        In the order of `statistics.STATISTICS`; finite, of order 1, never beyond +-20.

    Raises
    ------
    ValueError
        If the shapes do not agree or a scalar is missing.
    """
    with np.errstate(all="ignore"):
        found = [block_statistics(*one) for one in _each_chip(block_stats, scalars)]
    return np.array(found, np.float32).reshape(len(block_stats), len(STATISTICS))


def _each_chip(
    block_stats: NDArray[np.float32], scalars: Mapping[str, ArrayLike]
) -> Iterator[tuple[Blocks, float, float]]:
    """Block maps of every chip, its sky scatter, and log10 of the scatter of all its pixels over that."""
    planes = scalar_planes(scalars, len(block_stats))
    sky, sigma = robust_scale(planes)
    spread = log_spread(planes, sigma)
    yield from zip(
        scaled_blocks(checked_maps(block_stats), sky, sigma),
        sigma.ravel().tolist(),
        spread.ravel().tolist(),
        strict=True,
    )


def checked_maps(block_stats: NDArray[np.float32]) -> NDArray[np.float32]:
    """The maps as an array of the shape that all take.

    Parameters
    ----------
    block_stats : (n, 6, iy, ix) array_like

    Returns
    -------
    (n, 6, iy, ix) array

    Raises
    ------
    ValueError
        If the shape is another one.
    """
    block_stats = np.asarray(block_stats)
    if block_stats.ndim != 4 or block_stats.shape[1] != len(BLOCK_STATS):
        raise ValueError(
            f"block statistics have shape {block_stats.shape}; expected (n, {len(BLOCK_STATS)}, iy, ix), "
            f"with the channels {', '.join(BLOCK_STATS)}"
        )
    return block_stats


def scalar_planes(scalars: Mapping[str, ArrayLike], n: int) -> dict[str, NDArray[np.float64]]:
    """Scalars that broadcast over maps.

    Parameters
    ----------
    scalars : mapping of str to (n,) array
        `SCALARS` of each chip.
    n : int
        Number of chips.

    Returns
    -------
    dict of str to (n, 1, 1) float64 array

    Raises
    ------
    ValueError
        If a scalar is missing or of another length.
    """
    return {name: _per_chip(name, scalars, n) for name in SCALARS}


def _per_chip(name: str, scalars: Mapping[str, ArrayLike], n: int) -> NDArray[np.float64]:
    if name not in scalars:
        raise ValueError(f"the scalar {name} is missing; found {', '.join(scalars) or 'none'}")
    values = np.asarray(scalars[name], np.float64)
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape}; expected ({n},), one value for each chip")
    return values[:, None, None]


def robust_scale(planes: Mapping[str, NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sky level and scatter; where they cannot be, mean and standard deviation; else 0 and 1.

    Parameters
    ----------
    planes : mapping of str to float64 array
        `SCALARS`, all of one shape.

    Returns
    -------
    sky, sigma : float64 arrays
        Finite; sigma is positive.
    """
    sky, sigma = np.zeros_like(planes["sky_level"]), np.ones_like(planes["sky_sigma"])
    for level, scatter in (("pixel_mean", "pixel_std"), ("sky_level", "sky_sigma")):
        sky = np.where(np.isfinite(planes[level]), planes[level], sky)
        good = np.isfinite(planes[scatter]) & (planes[scatter] > 0)
        sigma = np.where(good, planes[scatter], sigma)
    return sky, sigma


def in_sigmas(
    maps: Mapping[str, NDArray], sky: NDArray[np.float64], sigma: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Block mean and maximum above the sky, and block scatter, in sky sigmas.

    Parameters
    ----------
    maps : mapping of str to array
        ``mean``, ``max`` and ``std``, e-/s.
    sky, sigma : float64 arrays
        As `robust_scale` gives them; they broadcast over the maps.

    Returns
    -------
    above, peak, scatter : float32 arrays
    """
    above = ((maps["mean"] - sky) / sigma).astype(np.float32)
    peak = ((maps["max"] - sky) / sigma).astype(np.float32)
    return above, peak, (maps["std"] / sigma).astype(np.float32)


def log_spread(planes: Mapping[str, NDArray[np.float64]], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """log10 of the scatter of all pixels over that of the sky; 0 where there is none."""
    return np.log10(np.where(planes["pixel_std"] > 0, planes["pixel_std"] / sigma, 1.0))


def _kind(kind: str) -> tuple[int, Callable]:
    try:
        return KINDS[kind]
    except KeyError:
        raise ConfigError(f"unknown kind of inputs {kind!r}; expected one of {', '.join(KINDS)}") from None


def _paper_point(out: NDArray, maps: dict, planes: dict, band: Bands) -> None:
    _standardise(out, maps["point"], maps["point_valid"], planes)


def _paper_area(out: NDArray, maps: dict, planes: dict, band: Bands) -> None:
    valid = np.nan_to_num(maps["valid"], nan=0.0)
    _standardise(out, np.where(valid > 0, maps["mean"] * valid, 0.0), valid, planes)


def _standardise(out: NDArray, image: NDArray, mask: NDArray, planes: dict) -> None:
    """Resize((x - mu) m / sd) = (resize(x m) - mu resize(m)) / sd, since a resize is linear; 0 if sd is 0."""
    usable = np.isfinite(planes["pixel_mean"]) & (planes["pixel_std"] > 0) & np.isfinite(planes["pixel_std"])
    scaled = (image - planes["pixel_mean"] * mask) / planes["pixel_std"]
    out[:, 0] = bounded(np.where(usable, scaled, 0.0), PAPER_LIMIT)
    out[:, 1] = bounded(mask, 1.0)


def _maps(out: NDArray, maps: dict, planes: dict, band: Bands) -> None:
    sky, sigma = robust_scale(planes)
    seen = maps["valid"] > 0
    above, peak, scatter = compressed(*in_sigmas(maps, sky, sigma))
    out[:, 0] = _seen(above, seen)
    out[:, 1] = _seen(scatter, seen)
    out[:, 2] = bounded(maps["valid"], 1.0)
    out[:, 3] = _seen(peak, seen)


def _seen(values: NDArray, seen: NDArray) -> NDArray:
    return np.where(seen, bounded(values, LIMIT), 0)


def _nothing(out: NDArray, maps: dict, planes: dict, band: Bands) -> None:
    """For networks that look at the context alone."""


KINDS: dict[str, tuple[int, Callable]] = {
    "paper-point": (2, _paper_point),
    "paper-area": (2, _paper_area),
    "maps": (4, _maps),
    "context": (0, _nothing),
    "counts": (0, _nothing),
}
"""Kinds of inputs: number of channels, and the function that fills them."""
