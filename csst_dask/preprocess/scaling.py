"""Reduced maps in units of a chip's own sky: what the csst inputs and the statistics of the maps share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.schema import CHANNELS

SCALARS = ("pixel_mean", "pixel_std", "sky_level", "sky_sigma")
"""Scalars of a chip that the maps are scaled by, all in the unit of the maps."""

SOFTENING = 0.05
"""asinh turns from linear to logarithmic here for the block mean, in sky sigmas; the mean of a block's
1700 pixels scatters by 1/41 = 0.024 of them."""

TYPICAL_LOG_SIGMA = -1.3
"""log10 of a common sky_sigma, e-/s (g band, 150 s), so that its plane lies around zero."""

LIMIT = 20.0
"""Largest absolute value of a scaled map; real chips stay below 5."""


def checked_maps(reduced: NDArray[np.float32]) -> NDArray[np.float32]:
    """The maps as an array of the shape that all take.

    Parameters
    ----------
    reduced : (n, 6, iy, ix) array_like

    Returns
    -------
    (n, 6, iy, ix) array

    Raises
    ------
    ValueError
        If the shape is another one.
    """
    reduced = np.asarray(reduced)
    if reduced.ndim != 4 or reduced.shape[1] != len(CHANNELS):
        raise ValueError(
            f"reduced maps have shape {reduced.shape}; expected (n, {len(CHANNELS)}, iy, ix), "
            f"with the channels {', '.join(CHANNELS)}"
        )
    return reduced


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


def compressed(
    above: NDArray[np.float32], peak: NDArray[np.float32], scatter: NDArray[np.float32]
) -> tuple[NDArray, NDArray, NDArray]:
    """The maps of `in_sigmas` on scales of order 1.

    Parameters
    ----------
    above, peak, scatter : float32 arrays

    Returns
    -------
    above, peak, scatter : float32 arrays
        asinh(above / `SOFTENING`) / 3, asinh(peak / 3) / 3 and log10(scatter), the last at least -3.
    """
    return (
        np.arcsinh(above / np.float32(SOFTENING)) / 3,
        np.arcsinh(peak / 3) / 3,
        np.log10(np.maximum(scatter, np.float32(1e-3))),
    )


def log_spread(planes: Mapping[str, NDArray[np.float64]], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """log10 of the scatter of all pixels over that of the sky; 0 where there is none."""
    return np.log10(np.where(planes["pixel_std"] > 0, planes["pixel_std"] / sigma, 1.0))


def bounded(values: NDArray, limit: float = LIMIT) -> NDArray:
    """Finite values within +-limit; NaN becomes 0."""
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=limit, neginf=-limit), -limit, limit)
