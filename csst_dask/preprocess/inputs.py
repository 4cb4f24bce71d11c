"""Reduced maps to network tensors: each kind of input that the networks know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ConfigError
from csst_dask.preprocess.scaling import (
    LIMIT,
    SCALARS,
    bounded,
    checked_maps,
    compressed,
    in_sigmas,
    robust_scale,
    scalar_planes,
)
from csst_dask.schema import CHANNELS

__all__ = ["KINDS", "SCALARS", "Bands", "input_channels", "make_inputs"]

Bands = Sequence[str] | NDArray[np.str_]

PAPER_LIMIT = 6.0e4
"""Largest absolute value of a standardised image: a half float still holds it."""


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
    kind: str, reduced: NDArray[np.float32], scalars: Mapping[str, ArrayLike], band: Bands
) -> NDArray[np.float32]:
    """Network inputs of a block of chips.

    Parameters
    ----------
    kind : str
        ``paper-point``: the standardised image, sampled without antialiasing, and its mask [1]_;
        ``paper-area``: the same from exact block means; ``maps``: block mean, scatter and maximum in units of the sky
        scatter, and the valid fraction; ``context``: no channel, for networks that look at the context alone.
    reduced : (n, 6, iy, ix) float32 array
        Reduced maps in the order of `schema.CHANNELS`; e-/s, NaN where nothing is valid. Not modified.
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
    reduced = checked_maps(reduced)
    n, _, ny, nx = reduced.shape
    planes = scalar_planes(scalars, n)
    if len(band) != n:
        raise ValueError(f"{len(band)} bands for {n} chips; give one for each chip")
    out = np.zeros((n, channels, ny, nx), np.float32)
    with np.errstate(all="ignore"):
        fill(out, {name: reduced[:, i] for i, name in enumerate(CHANNELS)}, planes, band)
    return out


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
}
"""Kinds of inputs: number of channels, and the function that fills them."""
