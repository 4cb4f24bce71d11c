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


def nonnegative_fit(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with coefficients >= 0.

    Lawson & Hanson (1974), Solving Least Squares Problems, chapter 23.

    Parameters
    ----------
    matrix : (m, k) float64 array
    target : (m,) float64 array

    Returns
    -------
    (k,) float64 array
    """
    k = matrix.shape[1]
    found, used = np.zeros(k), np.zeros(k, bool)
    for _ in range(3 * k):
        slope = np.where(used, -np.inf, matrix.T @ (target - matrix @ found))
        if not slope.max() > 1e-12 * np.abs(target).max():
            break
        used[slope.argmax()] = True
        while True:
            trial = np.zeros(k)
            trial[used] = np.linalg.lstsq(matrix[:, used], target, rcond=None)[0]
            low = used & (trial <= 0)
            if not low.any():
                break
            found += (found[low] / (found[low] - trial[low])).min() * (trial - found)
            used &= found > 1e-15
            found[~used] = 0
        found = trial
    return found


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
    radius, sigmas = np.asarray(radius, np.float64), np.asarray(sigmas, np.float64)
    weights = nonnegative_fit(gaussian_energy(radius, sigmas), np.asarray(encircled, np.float64))
    kept = weights > 1e-4 * weights.sum()
    return np.column_stack([weights[kept] / weights[kept].sum(), sigmas[kept]])
