"""Scores as functions of sums over chips, so that weights and resampled fields come for free."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.weighting import class_factors
from csst_dask.metrics import bootstrap_sums, matrix_scores, scatter
from csst_dask.schema import N_CLASSES

DRAWS = 500
"""Resamples of whole fields behind every standard error."""
ERROR = "_error"
"""Ending of the name of a column that holds the standard errors of another."""

Scores = dict[str, NDArray[np.float64]]
"""By name, (draws + 1, ...): the plain score first, then those of the resamples."""


def class_sums(judged: Judged, terms: ArrayLike, weighting: str = "flat", draws: int = DRAWS) -> NDArray[np.float64]:
    """Weighted sums over chips by true class, in the sample and in resamples of whole fields.

    The weights are those of each resample: under ``published`` every one has the published shares.

    Parameters
    ----------
    judged : Judged
    terms : (n, k) array_like of float
        What each chip adds; 0 where a score leaves it out.
    weighting : str
        One of `weighting.WEIGHTINGS`.
    draws : int

    Returns
    -------
    (draws + 1, 6, k) float64 array
        As `metrics.bootstrap_sums`: plain sums first.
    """
    terms = np.asarray(terms, np.float64)
    by_class = np.zeros((len(judged), N_CLASSES, terms.shape[1] + 1))
    by_class[np.arange(len(judged)), judged.true_class] = np.concatenate([np.ones((len(judged), 1)), terms], axis=1)
    sums = bootstrap_sums(by_class, judged.field, draws=draws)
    return class_factors(sums[..., 0], weighting)[..., None] * sums[..., 1:]


def mean_scores(judged: Judged, values: Mapping[str, ArrayLike], weighting: str = "flat", draws: int = DRAWS) -> Scores:
    """Weighted means over the chips; for shares of chips, values are bools.

    Parameters
    ----------
    judged : Judged
    values : mapping of str to (n,) array_like
        A chip with NaN is left out of that mean.
    weighting : str
    draws : int

    Returns
    -------
    Scores
    """
    columns = {name: np.asarray(column, np.float64) for name, column in values.items()}
    terms = [term for x in columns.values() for term in (np.isfinite(x), np.nan_to_num(x, posinf=0, neginf=0))]
    sums = class_sums(judged, np.stack(terms, axis=1), weighting, draws).sum(axis=1)
    return {name: divide(sums[:, 2 * i + 1], sums[:, 2 * i]) for i, name in enumerate(columns)}


def class_scores(judged: Judged, weighting: str = "flat", draws: int = DRAWS) -> Scores:
    """Scores of the predicted classes.

    Parameters
    ----------
    judged : Judged
    weighting : str
    draws : int

    Returns
    -------
    Scores
        ``precision``, ``recall``, ``f1``: (.., 6); ``accuracy``; ``macro_f1`` over the classes that occur;
        ``beyond_adjacent``, share of chips whose class is off by more than one; ``beyond_of_errors``, their share
        of the wrong ones; ``class5_recall``.
    """
    matrix = class_sums(judged, np.eye(N_CLASSES)[judged.density_class], weighting, draws)
    precision, recall, f1 = matrix_scores(matrix)
    off = np.abs(np.subtract.outer(np.arange(N_CLASSES), np.arange(N_CLASSES)))
    total, wrong, far = ((matrix * which).sum(axis=(1, 2)) for which in (off >= 0, off > 0, off > 1))
    occurs = np.isfinite(f1).sum(axis=1)
    supported = matrix.sum(axis=2) > 0
    return {
        "precision": precision,
        "recall": np.where(supported, recall, np.nan),
        "f1": f1,
        "accuracy": divide(total - wrong, total),
        "macro_f1": divide(np.nan_to_num(f1).sum(axis=1), occurs),
        "beyond_adjacent": divide(far, total),
        "beyond_of_errors": divide(far, wrong),
        "class5_recall": np.where(supported[:, -1], recall[:, -1], np.nan),
    }


def dex_scores(
    judged: Judged, truth: ArrayLike, predicted: ArrayLike, weighting: str = "flat", draws: int = DRAWS
) -> Scores:
    """Errors of logarithmic counts; chips without truth or prediction are left out.

    Parameters
    ----------
    judged : Judged
    truth, predicted : (n,) array_like of float
        dex; NaN where there is none.
    weighting : str
    draws : int

    Returns
    -------
    Scores
        ``mae``, ``mse``, ``rmse`` and ``r2`` as in `metrics.DexErrors`, and ``bias``, the mean of predicted
        minus true, dex.
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    known = np.isfinite(truth) & np.isfinite(predicted)
    if not known.any():
        return {name: np.full(draws + 1, np.nan) for name in ("mae", "mse", "rmse", "r2", "bias")}
    residual = np.where(known, predicted, 0) - np.where(known, truth, 0)
    centred = np.where(known, truth - truth[known].mean(), 0)
    terms = np.stack([known, np.abs(residual), residual**2, residual, centred, centred**2], axis=1)
    n, *sums = class_sums(judged, terms, weighting, draws).sum(axis=1).T
    mae, mse, bias, mean, square = (divide(total, n) for total in sums)
    spread = square - mean**2
    r2 = 1 - divide(mse, np.where(spread > 1e-12, spread, 0))
    return {"mae": mae, "mse": mse, "rmse": np.sqrt(mse), "r2": r2, "bias": bias}


def row_of(scores: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Plain scores and, under the same name with `ERROR`, their standard errors."""
    row = {}
    for name, values in scores.items():
        row[name], row[name + ERROR] = float(values[0]), float(scatter(values))
    return row


def divide(top: NDArray[np.float64], bottom: NDArray) -> NDArray[np.float64]:
    """A ratio; NaN where its denominator is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=np.asarray(bottom) > 0)
