"""A round profile as a sum of Gaussians, which convolve with each other by adding their variances."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def gaussian_energy(radius: ArrayLike, sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the light of round Gaussians within each radius.

    Parameters
    ----------
    radius : (...) array_like
    sigmas : (n,) float64 array
        In the unit of the radius.

    Returns
    -------
    (..., n) float64 array
    """
    return -np.expm1(-0.5 * np.square(np.asarray(radius, np.float64)[..., None] / sigmas))


def fit_mixture(radius: ArrayLike, encircled: ArrayLike, sigmas: ArrayLike) -> NDArray[np.float64]:
    """Gaussians whose sum has a given encircled energy.

    Parameters
    ----------
    radius : (m,) array_like
        pixel
    encircled : (m,) array_like
        Share of the flux within each radius.
    sigmas : (n,) array_like
        Widths to choose from, pixel.

    Returns
    -------
    (k, 2) float64 array
        Weight and sigma; k <= n, the weights sum to one.
    """
    from scipy.optimize import nnls

    radius, sigmas = np.asarray(radius, np.float64), np.asarray(sigmas, np.float64)
    weights, _ = nnls(gaussian_energy(radius, sigmas), np.asarray(encircled, np.float64))
    kept = weights > 1e-4 * weights.sum()
    return np.column_stack([weights[kept] / weights[kept].sum(), sigmas[kept]])
