"""Baseline without a network: boosted trees and a support vector machine on the statistics of the maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ConfigError
from csst_dask.evaluation.boosting import Blend, ensemble, fit_blend, one_thread
from csst_dask.evaluation.tree_classes import Classifier, fit_classifier
from csst_dask.models.calibrate import INTERVAL_LEVEL, QUANTILES, interval, residual_quantiles
from csst_dask.schema import BANDS

LEAST_CHIPS = 20
"""Fewer chips to learn from, or to choose and calibrate with, are refused."""


@dataclass(frozen=True, eq=False)
class TreesBaseline:
    """Fitted estimators and what was chosen on the validation chips."""

    star: Blend
    """Predicts log10(1 + n_star)."""
    bright: Blend
    """Predicts log10(1 + n_bright)."""
    classifier: Classifier
    quantiles: dict[str, Any]
    """Of the residuals on the validation chips: `models.calibrate.residual_quantiles` of each count, by the names of
    `models.calibrate.QUANTILES`."""
    choices: dict[str, Any]
    """Depths, shares and the source of the class, with the validation scores that decided."""


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
        Such as `preprocess.inputs.map_statistics` gives; finite.
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
    ensemble()
    table, bands = _table(statistics, band)
    counts = {"star": np.asarray(n_star), "bright": np.asarray(n_bright)}
    if any(count.shape != (len(table),) for count in counts.values()):
        shapes = [count.shape for count in counts.values()]
        raise ValueError(f"{len(table)} rows of statistics, but counts of shapes {shapes}")
    fitted, quantiles, choices = {}, {}, {}
    with one_thread():
        for name, count in counts.items():
            sets = _known(count, train, f"n_{name}"), _known(count, validation, f"n_{name}")
            log = np.log10(1.0 + np.maximum(count, 0))
            fitted[name], choices[name] = fit_blend(table, log, sets, seed)
            quantiles[QUANTILES[name]] = residual_quantiles(log[sets[1]], fitted[name].predict(table[sets[1]]))
        sets = _known(counts["star"], train, "n_star"), _known(counts["star"], validation, "n_star")
        log_star = fitted["star"].predict(table)
        classifier, choices["class"] = fit_classifier(table, bands, counts["star"], log_star, sets, seed)
    return TreesBaseline(fitted["star"], fitted["bright"], classifier, quantiles, choices)


def count_parameters(baseline: TreesBaseline) -> int:
    """Nodes of all trees, numbers of the support vectors and of the calibration."""
    return baseline.star.parameters + baseline.bright.parameters + baseline.classifier.parameters


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
        ``class_probability`` (n, 6) float32, ``density_class`` (n,) int8; (n,) float32 ``log_star``, ``log_bright``,
        log10(1 + count), dex, and ``star_lower``, ``star_upper``, ``bright_lower``, ``bright_upper``, stars per chip.
    """
    table, bands = _table(statistics, band)
    with one_thread():
        logs = {"star": baseline.star.predict(table), "bright": baseline.bright.predict(table)}
        probability = baseline.classifier.probability(table, logs["star"], bands)
    found = {
        "class_probability": probability.astype(np.float32),
        "density_class": probability.argmax(axis=1).astype(np.int8),
    }
    for name, log in logs.items():
        found[f"log_{name}"] = log.astype(np.float32)
        lower, upper = interval(log, baseline.quantiles, level, count=name)
        for side, bound in (("lower", lower), ("upper", upper)):
            found[f"{name}_{side}"] = np.maximum(10.0 ** bound.astype(np.float64) - 1, 0).astype(np.float32)
    return found


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
