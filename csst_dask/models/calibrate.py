"""Prediction intervals from the residuals on chips that the network was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ConfigError

INTERVAL_LEVEL = 0.9
"""Share of chips whose true count lies between ``bright_lower`` and ``bright_upper``."""

LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95)
"""Levels that are stored with the weights."""

QUANTILES = {"star": "star_quantiles", "bright": "residual_quantiles"}
"""Entries of the metadata that hold the bounds of each count's residuals."""

COUNT_QUANTILES = "count_quantiles"
"""Entry of the metadata that holds those of the stars brighter than each magnitude."""

TEMPERATURES = (0.5, 5.0)
"""Range that temperatures are looked for in: a few chips that are all right do not make a network certain."""


def fit_temperature(logits: ArrayLike, truth: ArrayLike) -> float:
    """Temperature scaling: the number to divide logits by so that their probabilities are right on the average.

    Parameters
    ----------
    logits : (n, classes) array_like
    truth : (n,) array_like of int

    Returns
    -------
    float
        As `best_temperature` finds it [1]_.

    References
    ----------
    .. [1] Guo et al. (2017), On calibration of modern neural networks, ICML 70, 1321.
    """
    from scipy.special import log_softmax

    logits = np.asarray(logits, np.float64)
    return best_temperature(lambda temperature: log_softmax(logits / temperature, axis=1), truth)


def best_temperature(log_probability: Callable[[float], NDArray], truth: ArrayLike) -> float:
    """The temperature under which what came true was most likely.

    Parameters
    ----------
    log_probability : callable
        Given a temperature, returns (n, classes) natural logarithms of probabilities.
    truth : (n,) array_like of int

    Returns
    -------
    float
        Minimises the negative log likelihood within `TEMPERATURES`; 1 if nothing is better.
    """
    from scipy.optimize import minimize_scalar

    truth = np.asarray(truth)

    def loss(log_temperature: float) -> float:
        return -float(np.mean(log_probability(float(np.exp(log_temperature)))[np.arange(len(truth)), truth]))

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def residual_quantiles(
    truth: ArrayLike, predicted: ArrayLike, levels: Sequence[float] = LEVELS, scale: ArrayLike | None = None
) -> dict[str, Any]:
    """Bounds of truth - predicted that hold a share ``level`` of new chips.

    Split conformal prediction [1]_ with signed residuals and the two tails apart: of n residuals the
    ceil((n+1)(1+level)/2)-th smallest is the upper bound, the floor((n+1)(1-level)/2)-th the lower one. The
    share is at least ``level`` when new chips are exchangeable with these; chips of one field are alike, so
    with few fields it is approximate.

    Parameters
    ----------
    truth, predicted : (n,) array_like
        log10(1 + n) of validation chips, dex.
    levels : sequence of float
        Each in (0, 1).
    scale : (n,) array_like, optional
        How far off each chip is expected to be, dex: bounds are then in units of it, so that intervals are wide where
        the count is uncertain ([1]_, section 5.2).

    Returns
    -------
    dict
        ``n`` and ``levels``, which maps each level as text to [lower, upper], dex; None where n residuals are too few
        to bound that tail. With a scale also ``scaled``, and the bounds are in units of it.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite or a scale is not positive.

    References
    ----------
    .. [1] Lei et al. (2018), Distribution-free predictive inference for regression, JASA 113, 1094.
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"truth {truth.shape} and predicted {predicted.shape} must be (n,) and alike")
    residual = truth - predicted
    if scale is not None:
        unit = np.asarray(scale, np.float64)
        if unit.shape != truth.shape or not (unit > 0).all():
            raise ValueError(f"scales must be {truth.shape} and positive; found {unit.shape}, least {unit.min()}")
        residual = residual / unit
    if not np.isfinite(residual).all():
        raise ValueError("residuals must be finite; leave out chips without truth or prediction")
    residual = np.sort(residual)
    bounds = {f"{level:g}": _bounds(residual, level) for level in levels}
    return {"n": len(residual), "levels": bounds} | ({"scaled": True} if scale is not None else {})


def _bounds(residual: NDArray[np.float64], level: float) -> list[float | None]:
    n = len(residual)
    low = int(np.floor((n + 1) * (1 - level) / 2 + 1e-9))
    high = int(np.ceil((n + 1) * (1 + level) / 2 - 1e-9))
    return [
        float(residual[low - 1]) if low >= 1 else None,
        float(residual[high - 1]) if high <= n else None,
    ]


def interval(
    predicted: ArrayLike,
    metadata: Mapping[str, Any],
    level: float,
    scale: ArrayLike | None = None,
    count: str = "bright",
    stored: Mapping[str, Any] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Interval around predicted counts.

    Parameters
    ----------
    predicted : array_like
        log10(1 + n), dex; NaN where there is none.
    metadata : mapping
        Of the network; holds the entry of `QUANTILES`.
    level : float
        A level that is stored there.
    scale : array_like, optional
        How far off each chip is expected to be, dex; needed where the stored bounds are in units of it.
    count : str
        A key of `QUANTILES`.
    stored : mapping, optional
        Bounds, instead of those of the count.

    Returns
    -------
    lower, upper : float32 arrays
        In log10(1 + n), dex; lower is at least 0 (no star), upper may be infinite.

    Raises
    ------
    ConfigError
        If the weights hold no such level.
    """
    stored = metadata.get(QUANTILES[count], {}) if stored is None else stored
    if f"{level:g}" not in stored.get("levels", {}):
        known = ", ".join(stored.get("levels", {})) or "none"
        raise ConfigError(f"the {metadata.get('task')} holds no interval of level {level:g}; it holds: {known}")
    low, high = stored["levels"][f"{level:g}"]
    if stored.get("scaled") and scale is None:
        raise ConfigError(f"the intervals of the {metadata.get('task')} are in units of a scale that is not given")
    unit = np.asarray(scale, np.float64) if stored.get("scaled") else 1.0
    centre = np.asarray(predicted, np.float64)
    lower = np.maximum(centre + (-np.inf if low is None else low * unit), 0.0)
    upper = np.maximum(centre + (np.inf if high is None else high * unit), 0.0)
    return lower.astype(np.float32), upper.astype(np.float32)
