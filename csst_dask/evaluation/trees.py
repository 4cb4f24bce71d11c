"""Baseline without a network: boosted trees and a support vector machine on the statistics of the maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from csst_dask.errors import ConfigError
from csst_dask.models.calibrate import INTERVAL_LEVEL, interval, residual_quantiles
from csst_dask.schema import BANDS, CLASS_EDGES, N_CLASSES, density_class

DEPTHS = (4, 8)
"""Depths of the trees that are tried."""

LEARNING_RATE, MOST_TREES, PATIENCE = 0.05, 600, 30
"""Shrinkage of each tree; at most so many trees, and none after so many that did not help the validation chips."""

WEIGHTS = (0.0, 0.5, 0.65, 1.0)
"""Shares of the support vector machine in the prediction that are tried; 0 is the trees alone."""

LEAST_CHIPS = 20
"""Fewer chips to learn from, or to choose and calibrate with, are refused."""

POOLED = 20
"""A band's spread counts as much as the common one if it has so many validation chips."""

Sets = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows to learn from, and rows to choose and calibrate with."""

_EDGES = np.log10(np.asarray(CLASS_EDGES) + 0.5)
"""Class edges in log10(1 + n), half way between two whole numbers."""


@dataclass(frozen=True, eq=False)
class TreesBaseline:
    """Fitted estimators and what was chosen on the validation chips."""

    star: _Blend
    """Predicts log10(1 + n_star)."""
    bright: _Blend
    """Predicts log10(1 + n_bright)."""
    classifier: _Classifier
    residuals: dict[str, Any]
    """Of log10(1 + n_bright) on the validation chips, as `models.calibrate.residual_quantiles` gives them."""
    choices: dict[str, Any]
    """Depths, shares and the source of the class, with the validation scores that decided."""


@dataclass(frozen=True, eq=False)
class _Blend:
    """Weighted mean of boosted trees and a support vector machine."""

    trees: Any
    machine: Any
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    weight: float
    depth: int

    def predict(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) log10(1 + count), at least 0."""
        parts = self.trees.predict(table), self.machine.predict((table - self.centre) / self.scale)
        return np.maximum((1 - self.weight) * parts[0] + self.weight * parts[1], 0.0)


@dataclass(frozen=True, eq=False)
class _Classifier:
    """Probabilities from the regression's spread, or from boosted trees of their own."""

    trees: Any
    """None where the regression is thresholded."""
    temperature: float
    spread: NDArray[np.float64]
    """(bands,) scale of a logistic distribution around log10(1 + n_star), dex."""

    def probability(self, table: NDArray, log_star: NDArray, band: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, 6), rows sum to one."""
        if self.trees is not None:
            return _tempered(_raw_probability(self.trees, table), self.temperature)
        return _around(log_star, self.spread[band] * self.temperature)


def fit_trees(
    statistics: NDArray[np.float32],
    band: Sequence[str] | NDArray[np.str_],
    n_star: ArrayLike,
    n_bright: ArrayLike,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    *,
    seed: int = 0,
) -> TreesBaseline:
    """Learn counts and classes from the statistics of the maps.

    log10(1 + count) is the weighted mean of gradient-boosted trees [1]_ and of a support vector machine with a Gaussian
    kernel: trees find thresholds and the machine what is smooth. Depth, number of trees and weight are those with the
    least mean absolute error on the validation chips. The class comes from the regression's thresholds, with a logistic
    spread about it that depends on the band, or from a boosted classifier, whichever is more often right on the
    validation chips; one temperature calibrates the probabilities there [2]_. So scores on the validation chips
    flatter, and only chips in neither set measure the baseline.

    Parameters
    ----------
    statistics : (n, k) float32 array
        Such as `preprocess.statistics.map_statistics` gives; finite.
    band : (n,) sequence of str
        Of `schema.BANDS`.
    n_star, n_bright : (n,) array_like of int
        Counts; negative where unknown or where they are to be left out.
    train, validation : int arrays
        Rows to learn from, and rows to choose and calibrate with.
    seed : int
        The same one gives the same baseline.

    Returns
    -------
    TreesBaseline

    Raises
    ------
    ConfigError
        If scikit-learn is not installed, or a set has fewer than `LEAST_CHIPS` chips with a known count.
    ValueError
        If the lengths differ or a band is unknown.

    References
    ----------
    .. [1] Friedman (2001), Annals of Statistics 29, 1189; histograms as in Ke et al. (2017), NeurIPS 30.
    .. [2] Guo et al. (2017), On calibration of modern neural networks, ICML.
    """
    _ensemble()
    table, bands = _table(statistics, band)
    counts = [np.asarray(n_star), np.asarray(n_bright)]
    if any(count.shape != (len(table),) for count in counts):
        raise ValueError(f"{len(table)} rows of statistics, but counts of shapes {[c.shape for c in counts]}")
    star_sets, bright_sets = (
        (_known(count, train, name), _known(count, validation, name))
        for name, count in zip(("n_star", "n_bright"), counts, strict=True)
    )
    log = [np.log10(1.0 + np.maximum(count, 0)) for count in counts]
    rows = bright_sets[1]
    with _one_thread():
        star, star_scores = _fit_blend(table, log[0], star_sets, seed)
        bright, bright_scores = _fit_blend(table, log[1], bright_sets, seed)
        classifier, class_scores = _fit_classifier(table, bands, counts[0], star, star_sets, seed)
        residuals = residual_quantiles(log[1][rows], bright.predict(table[rows]))
    return TreesBaseline(
        star=star,
        bright=bright,
        classifier=classifier,
        residuals=residuals,
        choices={"star": star_scores, "bright": bright_scores, "class": class_scores},
    )


def predict_trees(
    baseline: TreesBaseline,
    statistics: NDArray[np.float32],
    band: Sequence[str] | NDArray[np.str_],
    level: float = INTERVAL_LEVEL,
) -> dict[str, NDArray]:
    """Predictions for chips, each row on its own.

    Parameters
    ----------
    baseline : TreesBaseline
    statistics : (n, k) float32 array
        Of the same columns as it was fitted with.
    band : (n,) sequence of str
    level : float
        Of the interval; one of `models.calibrate.LEVELS`.

    Returns
    -------
    dict of str to array
        ``class_probability`` (n, 6) float32, ``density_class`` (n,) int8, ``log_star``, ``log_bright``,
        ``bright_lower``, ``bright_upper`` (n,) float32: log10(1 + count), dex.
    """
    table, bands = _table(statistics, band)
    with _one_thread():
        log_star, log_bright = baseline.star.predict(table), baseline.bright.predict(table)
        probability = baseline.classifier.probability(table, log_star, bands)
    lower, upper = interval(log_bright, {"residual_quantiles": baseline.residuals}, level)
    return {
        "class_probability": probability.astype(np.float32),
        "density_class": probability.argmax(axis=1).astype(np.int8),
        "log_star": log_star.astype(np.float32),
        "log_bright": log_bright.astype(np.float32),
        "bright_lower": lower,
        "bright_upper": upper,
    }


def _ensemble() -> Any:
    try:
        from sklearn import ensemble
    except ImportError:
        raise ConfigError(
            "the baseline of boosted trees needs scikit-learn, which is not installed: "
            "pip install 'csst_dask[evaluate]'"
        ) from None
    return ensemble


def _one_thread() -> Any:
    """Threads that wait for each other cost more than so few chips gain, and on a busy machine very much more."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1)


def _table(
    statistics: NDArray, band: Sequence[str] | NDArray[np.str_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Statistics with a column for each band, and the band as a number."""
    statistics = np.asarray(statistics, np.float64)
    if statistics.ndim != 2 or len(statistics) != len(band):
        raise ValueError(f"statistics have shape {statistics.shape} for {len(band)} bands; expected (n, k) for n bands")
    unknown = sorted(set(map(str, band)) - set(BANDS))
    if unknown:
        raise ValueError(f"unknown bands {', '.join(unknown)}; expected some of {', '.join(BANDS)}")
    number = np.array([BANDS.index(str(name)) for name in band], np.int64)
    return np.hstack([statistics, number[:, None] == np.arange(len(BANDS))]), number


def _known(count: NDArray, rows: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    rows = np.asarray(rows, np.int64)
    rows = rows[count[rows] >= 0]
    if len(rows) < LEAST_CHIPS:
        raise ConfigError(
            f"{len(rows)} chips with a known {name} in one of the sets; the baseline needs at least {LEAST_CHIPS} "
            "to learn from and as many to calibrate with: give it more chips with truth"
        )
    return rows


def _fit_blend(table: NDArray, target: NDArray, sets: Sets, seed: int) -> tuple[_Blend, dict[str, Any]]:
    from sklearn.svm import SVR

    train, validation = sets
    options = {"learning_rate": LEARNING_RATE, "max_iter": MOST_TREES, "n_iter_no_change": PATIENCE, "tol": 0.0}
    options |= {"min_samples_leaf": 5, "max_features": 0.3, "early_stopping": True, "random_state": seed}
    centre, spread = table[train].mean(axis=0), table[train].std(axis=0)
    scale = np.where(spread > 1e-3, spread, 1.0)
    machine = SVR(C=30.0, gamma=1 / (3 * table.shape[1]), epsilon=0.01)
    machine.fit((table[train] - centre) / scale, target[train])
    found = []
    for depth in DEPTHS:
        trees = _ensemble().HistGradientBoostingRegressor(max_depth=depth, **options)
        trees.fit(table[train], target[train], X_val=table[validation], y_val=target[validation])
        for weight in WEIGHTS:
            blend = _Blend(trees, machine, centre, scale, weight, depth)
            error = np.abs(blend.predict(table[validation]) - target[validation]).mean()
            found.append((float(error), blend))
    error, best = min(found, key=lambda pair: pair[0])
    scores = {"depth": best.depth, "trees": int(best.trees.n_iter_), "machine": best.weight, "validation_mae": error}
    return best, scores


def _fit_classifier(
    table: NDArray, band: NDArray, n_star: NDArray, star: _Blend, sets: Sets, seed: int
) -> tuple[_Classifier, dict[str, Any]]:
    """The better of the two on the validation chips; the regression in a tie."""
    train, validation = sets
    truth = density_class(n_star).astype(np.int64)
    log_star = star.predict(table[validation])
    spread = _spread(np.log10(1.0 + n_star[validation]) - log_star, band[validation])
    candidates = {"regression": _Classifier(None, 1.0, spread)}
    if len(np.unique(truth[train])) > 1:
        candidates["classifier"] = _Classifier(_boosted(table, truth, train, validation, seed), 1.0, spread)
    scores, fitted = {}, {}
    for name, candidate in candidates.items():
        fitted[name] = _calibrated(candidate, table[validation], log_star, band[validation], truth[validation])
        probability = fitted[name].probability(table[validation], log_star, band[validation])
        scores[name] = float(np.mean(probability.argmax(axis=1) == truth[validation]))
    source = max(scores, key=lambda name: scores[name])
    return fitted[source], {"source": source} | {f"{name}_accuracy": score for name, score in scores.items()}


def _boosted(table: NDArray, truth: NDArray, train: NDArray, validation: NDArray, seed: int) -> Any:
    trees = _ensemble().HistGradientBoostingClassifier(
        max_depth=4, learning_rate=LEARNING_RATE, max_iter=MOST_TREES, min_samples_leaf=5, max_features=0.3,
        early_stopping=True, n_iter_no_change=PATIENCE, random_state=seed,
    )  # fmt: skip
    seen = validation[np.isin(truth[validation], truth[train])]
    return trees.fit(table[train], truth[train], X_val=table[seen], y_val=truth[seen])


def _spread(residual: NDArray[np.float64], band: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scale of a logistic distribution for each band: its mean |x| is 2 ln 2 times the scale."""
    size = np.abs(residual)
    chips = np.bincount(band, minlength=len(BANDS))
    sums = np.bincount(band, weights=size, minlength=len(BANDS))
    return np.maximum((sums + POOLED * size.mean()) / (chips + POOLED), 1e-4) / (2 * np.log(2))


def _around(log_star: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 6) share of a logistic distribution in each class."""
    below = expit((_EDGES - log_star[:, None]) / scale[:, None])
    rows = np.hstack([np.zeros((len(below), 1)), below, np.ones((len(below), 1))])
    return np.diff(rows, axis=1)


def _raw_probability(trees: Any, table: NDArray) -> NDArray[np.float64]:
    out = np.zeros((len(table), N_CLASSES))
    out[:, trees.classes_] = trees.predict_proba(table)
    return out


def _tempered(probability: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    powered = np.maximum(probability, 1e-6) ** (1 / temperature)
    return powered / powered.sum(axis=1, keepdims=True)


def _calibrated(
    candidate: _Classifier, table: NDArray, log_star: NDArray, band: NDArray, truth: NDArray
) -> _Classifier:
    """With the temperature that makes the validation chips' classes likeliest."""

    def loss(log_temperature: float) -> float:
        trial = replace(candidate, temperature=float(np.exp(log_temperature)))
        chosen = trial.probability(table, log_star, band)[np.arange(len(truth)), truth]
        return float(-np.log(np.maximum(chosen, 1e-9)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.2), np.log(5.0)), method="bounded")
    return replace(candidate, temperature=float(np.exp(found.x)))
