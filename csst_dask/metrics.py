"""How good predictions are: plain formulas over arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.schema import N_CLASSES


@dataclass(frozen=True, eq=False)
class ClassReport:
    """Scores of each class; NaN where a class occurs neither in truth nor in prediction."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]
    """Chips of each true class."""


@dataclass(frozen=True)
class DexErrors:
    """Errors of log10(1 + n)."""

    mae: float
    """Mean absolute error, dex."""
    mse: float
    """Mean squared error, dex2."""
    rmse: float
    """Root mean squared error, dex."""
    r2: float
    """1 - residual / total sum of squares; NaN if the truth does not vary."""


def accuracy(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Share of chips whose class is right; NaN for no chips.

    Parameters
    ----------
    truth, predicted : (n,) array_like of int
        Density classes.

    Returns
    -------
    float
    """
    truth, predicted = _pair(truth, predicted)
    return float(np.mean(truth == predicted)) if len(truth) else float("nan")


def confusion_matrix(truth: ArrayLike, predicted: ArrayLike, n_classes: int = N_CLASSES) -> NDArray[np.int64]:
    """Counts of (true class, predicted class).

    Parameters
    ----------
    truth, predicted : (n,) array_like of int
        Classes from 0 to n_classes - 1.
    n_classes : int

    Returns
    -------
    (n_classes, n_classes) int64 array
        Rows are true, columns predicted classes.

    Raises
    ------
    ValueError
        If the lengths differ or a class is out of range.
    """
    truth, predicted = _pair(truth, predicted)
    for name, classes in (("true", truth), ("predicted", predicted)):
        if len(classes) and not (classes.min() >= 0 and classes.max() < n_classes):
            raise ValueError(
                f"{name} classes run from {classes.min()} to {classes.max()}; expected 0 to "
                f"{n_classes - 1}: leave out chips whose class is unknown"
            )
    flat = truth.astype(np.int64) * n_classes + predicted.astype(np.int64)
    return np.bincount(flat, minlength=n_classes**2).reshape(n_classes, n_classes)


def class_report(truth: ArrayLike, predicted: ArrayLike, n_classes: int = N_CLASSES) -> ClassReport:
    """Precision, recall and F1 of each class.

    Precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2 TP / (2 TP + FP + FN) [1]_. A ratio whose
    denominator is 0 counts as 0 if the class occurs at all.

    Parameters
    ----------
    truth, predicted : (n,) array_like of int
    n_classes : int

    Returns
    -------
    ClassReport

    References
    ----------
    .. [1] Sokolova & Lapalme (2009), Information Processing & Management 45, 427.
    """
    matrix = confusion_matrix(truth, predicted, n_classes)
    return ClassReport(*matrix_scores(matrix), matrix.sum(axis=1))


def matrix_scores(matrix: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 of each class from confusion matrices, as `class_report` defines them.

    Parameters
    ----------
    matrix : (..., n_classes, n_classes) array_like
        Counts, or sums of weights, of (true class, predicted class).

    Returns
    -------
    precision, recall, f1 : (..., n_classes) float64 arrays
        NaN where a class occurs neither in truth nor in prediction.
    """
    matrix = np.asarray(matrix, np.float64)
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    support, called = matrix.sum(axis=-1), matrix.sum(axis=-2)
    occurs = support + called > 0

    def ratio(top: NDArray, bottom: NDArray) -> NDArray[np.float64]:
        values = np.divide(top, bottom, out=np.zeros(right.shape), where=bottom > 0)
        return np.where(occurs, values, np.nan)

    return ratio(right, called), ratio(right, support), ratio(2 * right, support + called)


def macro_f1(truth: ArrayLike, predicted: ArrayLike, n_classes: int = N_CLASSES) -> float:
    """Plain mean of F1 over the classes that occur in truth or prediction; NaN for no chips.

    Parameters
    ----------
    truth, predicted : (n,) array_like of int
    n_classes : int

    Returns
    -------
    float
    """
    f1 = class_report(truth, predicted, n_classes).f1
    return float(np.nanmean(f1)) if np.isfinite(f1).any() else float("nan")


def dex_errors(truth: ArrayLike, predicted: ArrayLike) -> DexErrors:
    """Errors of logarithmic counts, as in the paper's table 5.

    Parameters
    ----------
    truth, predicted : (n,) array_like of float
        log10(1 + n), dex; all finite.

    Returns
    -------
    DexErrors
        NaN for no chips.
    """
    truth, predicted = _pair(truth, predicted)
    if not len(truth):
        return DexErrors(*[float("nan")] * 4)
    residual = predicted.astype(np.float64) - truth
    mse = float(np.mean(residual**2))
    spread = float(np.mean((truth - truth.mean()) ** 2))
    r2 = 1 - mse / spread if spread > 0 else float("nan")
    return DexErrors(float(np.mean(np.abs(residual))), mse, float(np.sqrt(mse)), r2)


def bootstrap_error(
    statistic: Callable[[NDArray, NDArray], float],
    truth: ArrayLike,
    predicted: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    draws: int = 500,
    seed: int = 0,
) -> float:
    """Standard error of a score: its scatter over resamples with replacement [1]_.

    Parameters
    ----------
    statistic : callable
        (truth, predicted) -> float.
    truth, predicted : (n,) array_like
    groups : (n,) array_like, optional
        Labels such as the field. Whole groups are drawn, since the chips of one field err together.
    draws : int
        Number of resamples.
    seed : int

    Returns
    -------
    float
        NaN with fewer than two chips (or groups).

    References
    ----------
    .. [1] Efron (1979), Annals of Statistics 7, 1; groups: Cameron, Gelbach & Miller (2008), REStat 90, 414.
    """
    truth, predicted = _pair(truth, predicted)
    labels = np.arange(len(truth)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(labels) != len(truth):
        raise ValueError(f"{len(labels)} group labels for {len(truth)} chips; give one for each chip")
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    if len(members) < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(draws):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        scores.append(statistic(truth[rows], predicted[rows]))
    return float(np.nanstd(scores, ddof=1))


def bootstrap_sums(terms: ArrayLike, groups: ArrayLike, *, draws: int = 500, seed: int = 0) -> NDArray[np.float64]:
    """Sums over resamples with replacement, drawn in whole groups; for scores that are functions of sums.

    Such a score's standard error is its scatter over the resamples, and all scores of one set of sums, and of
    several methods with the same groups and seed, see the same resamples.

    Parameters
    ----------
    terms : (n, ...) array_like of float
        What every chip adds.
    groups : (n,) array_like
        Labels such as the field; only their sorted order matters, not that of the chips.
    draws : int
        Number of resamples.
    seed : int

    Returns
    -------
    (draws + 1, ...) float64 array
        The plain sums first; NaN in all further rows with fewer than two groups.

    Raises
    ------
    ValueError
        If there is not one label for each chip.
    """
    terms = np.asarray(terms, np.float64)
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(labels) != len(terms):
        raise ValueError(f"{len(labels)} group labels for {len(terms)} chips; give one for each chip")
    n = int(labels.max(initial=-1)) + 1
    sums = np.zeros((n, *terms.shape[1:]))
    np.add.at(sums, labels, terms)
    if n < 2:
        rest = np.full((draws, *terms.shape[1:]), np.nan)
    else:
        times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
        rest = np.tensordot(times.astype(np.float64), sums, axes=1)
    return np.concatenate([sums.sum(axis=0)[None], rest])


def scatter(values: ArrayLike) -> NDArray[np.float64]:
    """Standard error of scores of which the first row is the plain one and the others are resampled ones.

    Parameters
    ----------
    values : (draws + 1, ...) array_like of float
        Scores of what `bootstrap_sums` returns; NaN where a resample has none.

    Returns
    -------
    (...) float64 array
        NaN where fewer than two resamples have the score.
    """
    drawn = np.asarray(values, np.float64)[1:]
    known = np.isfinite(drawn)
    n = known.sum(axis=0)
    mean = np.where(known, drawn, 0).sum(axis=0) / np.maximum(n, 1)
    squares = np.where(known, (drawn - mean) ** 2, 0).sum(axis=0)
    return np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)


def _pair(truth: ArrayLike, predicted: ArrayLike) -> tuple[NDArray, NDArray]:
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != predicted.shape:
        raise ValueError(f"truth {truth.shape} and predicted {predicted.shape} must be (n,) and alike")
    return truth, predicted
