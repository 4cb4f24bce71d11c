"""Prediction intervals from the residuals on chips that the network was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ConfigError

INTERVAL_LEVEL = 0.9
"""Share of chips whose true count lies between ``bright_lower`` and ``bright_upper``."""

LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95)
"""Levels that are stored with the weights."""


def residual_quantiles(truth: ArrayLike, predicted: ArrayLike, levels: Sequence[float] = LEVELS) -> dict[str, Any]:
    """Bounds of truth - predicted that hold a share ``level`` of new chips.

    Split conformal prediction [1]_ with signed residuals and the two tails apart: of n residuals the
    ceil((n+1)(1+level)/2)-th smallest is the upper bound, the floor((n+1)(1-level)/2)-th the lower one. The
    share is at least ``level`` when new chips are exchangeable with these; chips of one field are alike, so
    with few fields it is approximate.

    Parameters
    ----------
    truth, predicted : (n,) array_like
        log10(1 + n_bright) of validation chips, dex.
    levels : sequence of float
        Each in (0, 1).

    Returns
    -------
    dict
        ``n`` and ``levels``, which maps each level as text to [lower, upper], dex; None where n residuals are
        too few to bound that tail.

    Raises
    ------
    ValueError
        If the shapes differ or a value is not finite.

    References
    ----------
    .. [1] Lei et al. (2018), Distribution-free predictive inference for regression, JASA 113, 1094.
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"truth {truth.shape} and predicted {predicted.shape} must be (n,) and alike")
    residual = np.sort(truth - predicted)
    if not np.isfinite(residual).all():
        raise ValueError("residuals must be finite; leave out chips without truth or prediction")
    bounds = {f"{level:g}": _bounds(residual, level) for level in levels}
    return {"n": len(residual), "levels": bounds}


def _bounds(residual: NDArray[np.float64], level: float) -> list[float | None]:
    n = len(residual)
    low = int(np.floor((n + 1) * (1 - level) / 2 + 1e-9))
    high = int(np.ceil((n + 1) * (1 + level) / 2 - 1e-9))
    return [
        float(residual[low - 1]) if low >= 1 else None,
        float(residual[high - 1]) if high <= n else None,
    ]


def interval(
    log_bright: ArrayLike, metadata: Mapping[str, Any], level: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Interval around predicted counts.

    Parameters
    ----------
    log_bright : array_like
        Predicted log10(1 + n_bright), dex; NaN where there is none.
    metadata : mapping
        Of the regressor; holds ``residual_quantiles``.
    level : float
        A level that is stored there.

    Returns
    -------
    lower, upper : float32 arrays
        In log10(1 + n_bright), dex; lower is at least 0 (no star), upper may be infinite.

    Raises
    ------
    ConfigError
        If the weights hold no such level.
    """
    stored = metadata.get("residual_quantiles", {}).get("levels", {})
    if f"{level:g}" not in stored:
        known = ", ".join(stored) or "none"
        raise ConfigError(f"the regressor holds no interval of level {level:g}; it holds: {known}")
    low, high = stored[f"{level:g}"]
    centre = np.asarray(log_bright, np.float64)
    lower = np.maximum(centre + (-np.inf if low is None else low), 0.0)
    upper = np.maximum(centre + (np.inf if high is None else high), 0.0)
    return lower.astype(np.float32), upper.astype(np.float32)
