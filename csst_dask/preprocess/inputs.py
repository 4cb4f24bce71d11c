"""Reduced maps to network tensors: each kind of input that the networks know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ConfigError
from csst_dask.schema import BANDS, CHANNELS

Bands = Sequence[str] | NDArray[np.str_]

SCALARS = ("pixel_mean", "pixel_std", "sky_level", "sky_sigma")
"""Scalars of a chip that the inputs are scaled by, all in the unit of the maps."""

SOFTENING = 0.05
"""asinh turns from linear to logarithmic here for the block mean, in sky sigmas; the mean of a block's
1700 pixels scatters by 1/41 = 0.024 of them."""

TYPICAL_LOG_SIGMA = -1.3
"""log10 of a common sky_sigma, e-/s (g band, 150 s), so that its plane lies around zero."""

LIMIT = 20.0
"""Largest absolute value of a csst input; real chips stay below 5."""

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
        ``paper-area``: the same from exact block means; ``csst``: block mean, scatter and maximum in units of
        the sky scatter, the valid fraction, and constant planes for the band and the two noise levels.
    reduced : (n, 6, iy, ix) float32 array
        Reduced maps in the order of `schema.CHANNELS`; e-/s, NaN where nothing is valid. Not modified.
    scalars : mapping of str to (n,) array
        `SCALARS` of each chip; values that are not finite, and scatters that are not positive, are survived.
    band : sequence of n str
        Band of each chip. One that is not in `schema.BANDS` has no plane of its own: its band planes are 0.

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
    reduced = np.asarray(reduced)
    if reduced.ndim != 4 or reduced.shape[1] != len(CHANNELS):
        raise ValueError(
            f"reduced maps have shape {reduced.shape}; expected (n, {len(CHANNELS)}, iy, ix), "
            f"with the channels {', '.join(CHANNELS)}"
        )
    n, _, ny, nx = reduced.shape
    planes = {name: _per_chip(name, scalars, n) for name in SCALARS}
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


def _per_chip(name: str, scalars: Mapping[str, ArrayLike], n: int) -> NDArray[np.float64]:
    if name not in scalars:
        raise ValueError(f"the scalar {name} is missing; found {', '.join(scalars) or 'none'}")
    values = np.asarray(scalars[name], np.float64)
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape}; expected ({n},), one value for each chip")
    return values[:, None, None]


def _paper_point(out: NDArray, maps: dict, planes: dict, band: Bands) -> None:
    _standardise(out, maps["point"], maps["point_valid"], planes)


def _paper_area(out: NDArray, maps: dict, planes: dict, band: Bands) -> None:
    valid = np.nan_to_num(maps["valid"], nan=0.0)
    _standardise(out, np.where(valid > 0, maps["mean"] * valid, 0.0), valid, planes)


def _standardise(out: NDArray, image: NDArray, mask: NDArray, planes: dict) -> None:
    """Resize((x - mu) m / sd) = (resize(x m) - mu resize(m)) / sd, since a resize is linear; 0 if sd is 0."""
    usable = np.isfinite(planes["pixel_mean"]) & (planes["pixel_std"] > 0) & np.isfinite(planes["pixel_std"])
    scaled = (image - planes["pixel_mean"] * mask) / planes["pixel_std"]
    out[:, 0] = _bounded(np.where(usable, scaled, 0.0), PAPER_LIMIT)
    out[:, 1] = _bounded(mask, 1.0)


def _csst(out: NDArray, maps: dict, planes: dict, band: Bands) -> None:
    sky, sigma = _robust_scale(planes)
    seen = maps["valid"] > 0
    above = ((maps["mean"] - sky) / sigma).astype(np.float32)
    peak = ((maps["max"] - sky) / sigma).astype(np.float32)
    scatter = (maps["std"] / sigma).astype(np.float32)
    out[:, 0] = _seen(np.arcsinh(above / np.float32(SOFTENING)) / 3, seen)
    out[:, 1] = _seen(np.log10(np.maximum(scatter, np.float32(1e-3))), seen)
    out[:, 2] = _bounded(maps["valid"], 1.0)
    out[:, 3] = _seen(np.arcsinh(peak / 3) / 3, seen)
    for plane, name in enumerate(BANDS, start=4):
        out[:, plane] = np.asarray([b == name for b in band], np.float32)[:, None, None]
    spread = np.where(planes["pixel_std"] > 0, planes["pixel_std"] / sigma, 1.0)
    out[:, -2] = _bounded(np.log10(spread), LIMIT)
    out[:, -1] = _bounded(np.log10(sigma) - TYPICAL_LOG_SIGMA, LIMIT)


def _robust_scale(planes: dict) -> tuple[NDArray, NDArray]:
    """Sky level and scatter; where they cannot be, mean and standard deviation; else 0 and 1."""
    sky, sigma = np.zeros_like(planes["sky_level"]), np.ones_like(planes["sky_sigma"])
    for level, scatter in (("pixel_mean", "pixel_std"), ("sky_level", "sky_sigma")):
        sky = np.where(np.isfinite(planes[level]), planes[level], sky)
        good = np.isfinite(planes[scatter]) & (planes[scatter] > 0)
        sigma = np.where(good, planes[scatter], sigma)
    return sky, sigma


def _seen(values: NDArray, seen: NDArray) -> NDArray:
    return np.where(seen, _bounded(values, LIMIT), 0)


def _bounded(values: NDArray, limit: float) -> NDArray:
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=limit, neginf=-limit), -limit, limit)


KINDS: dict[str, tuple[int, Callable]] = {
    "paper-point": (2, _paper_point),
    "paper-area": (2, _paper_area),
    "csst": (4 + len(BANDS) + 2, _csst),
}
"""Kinds of inputs: number of channels, and the function that fills them."""
