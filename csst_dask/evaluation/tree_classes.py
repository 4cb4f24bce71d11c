"""Class probabilities of the baseline of trees: from the spread of its counts, or from trees of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import logistic

from csst_dask.evaluation.boosting import Sets, boosting_options, count_nodes, ensemble
from csst_dask.models.calibrate import fit_temperature
from csst_dask.schema import BANDS, CLASS_BORDERS, N_CLASSES, density_class

DEPTH = 4
"""Of the trees of the classifier."""

POOLED = 20
"""A band's spread counts as much as the common one if it has so many validation chips."""

LEAST = 1e-6
"""Smaller probabilities count as this one when they are calibrated."""

_BORDERS = np.array([-np.inf, *CLASS_BORDERS, np.inf])
"""Borders of the classes in log10(1 + n), half way between two whole numbers."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """Probabilities, calibrated by one temperature."""

    trees: Any
    """None where the regression is thresholded."""
    temperature: float
    spread: NDArray[np.float64]
    """(bands,) scale of a logistic distribution around log10(1 + n_star), dex."""

    def probability(self, table: NDArray, log_star: NDArray, band: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, 6), rows sum to one."""
        return softmax(self.logits(table, log_star, band) / self.temperature, axis=1)

    def logits(self, table: NDArray, log_star: NDArray, band: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, 6) logarithms of the probabilities before they are calibrated."""
        if self.trees is None:
            below = logistic.cdf(_BORDERS, loc=log_star[:, None], scale=self.spread[band][:, None])
            found = np.diff(below, axis=1)
        else:
            found = np.zeros((len(table), N_CLASSES))
            found[:, self.trees.classes_] = self.trees.predict_proba(table)
        return np.log(np.maximum(found, LEAST))

    @property
    def parameters(self) -> int:
        """Nodes of the trees, if it has its own; temperature and spreads."""
        return 1 + self.spread.size + (count_nodes(self.trees) if self.trees is not None else 0)


def fit_classifier(
    table: NDArray, band: NDArray[np.int64], n_star: NDArray, log_star: NDArray, sets: Sets, seed: int
) -> tuple[Classifier, dict[str, Any]]:
    """Whichever is more often right on the validation chips; the regression in a tie.

    Parameters
    ----------
    table : (n, k) float64 array
    band : (n,) int array
        Place in `schema.BANDS`.
    n_star : (n,) int array
        True stars.
    log_star : (n,) float64 array
        Predicted log10(1 + stars).
    sets : Sets
    seed : int

    Returns
    -------
    Classifier
    scores : dict
        ``source``, and the accuracy of each candidate on the validation chips.
    """
    train, validation = sets
    truth = density_class(n_star).astype(np.int64)
    inputs = table[validation], log_star[validation], band[validation]
    spread = _spread(np.log10(1.0 + n_star[validation]) - inputs[1], inputs[2])
    candidates = {"regression": Classifier(None, 1.0, spread)}
    if len(np.unique(truth[train])) > 1:
        candidates["classifier"] = Classifier(_boosted(table, truth, sets, seed), 1.0, spread)
    scores, fitted = {}, {}
    for name, candidate in candidates.items():
        temperature = fit_temperature(candidate.logits(*inputs), truth[validation])
        fitted[name] = replace(candidate, temperature=temperature)
        called = fitted[name].probability(*inputs).argmax(axis=1)
        scores[name] = float(np.mean(called == truth[validation]))
    source = max(scores, key=lambda name: scores[name])
    return fitted[source], {"source": source} | {f"{name}_accuracy": score for name, score in scores.items()}


def _boosted(table: NDArray, truth: NDArray, sets: Sets, seed: int) -> Any:
    train, validation = sets
    trees = ensemble().HistGradientBoostingClassifier(**boosting_options(DEPTH, seed))
    seen = validation[np.isin(truth[validation], truth[train])]
    return trees.fit(table[train], truth[train], X_val=table[seen], y_val=truth[seen])


def _spread(residual: NDArray[np.float64], band: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scale of a logistic distribution for each band: its mean |x| is 2 ln 2 times the scale."""
    size = np.abs(residual)
    chips = np.bincount(band, minlength=len(BANDS))
    sums = np.bincount(band, weights=size, minlength=len(BANDS))
    return np.maximum((sums + POOLED * size.mean()) / (chips + POOLED), 1e-4) / (2 * np.log(2))
