"""The estimators that the baseline of trees is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csst_dask.errors import ConfigError

DEPTHS = (4, 8)
"""Depths of the trees that are tried."""

LEARNING_RATE, MOST_TREES, PATIENCE = 0.05, 600, 30
"""Shrinkage of each tree; at most so many trees, and none after so many that did not help the validation chips."""

WEIGHTS = (0.0, 0.5, 0.65, 1.0)
"""Shares of the support vector machine in the prediction that are tried; 0 is the trees alone."""

LEAST_VARIANCE = 1e-6
"""The support vector machine does not see columns that vary less than this over the training chips."""

Sets = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows to learn from, and rows to choose and calibrate with."""


@dataclass(frozen=True, eq=False)
class Blend:
    """Weighted mean of boosted trees and a support vector machine."""

    trees: Any
    machine: Any
    weight: float
    """Of the machine."""
    depth: int

    def predict(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) log10(1 + count), at least 0."""
        parts = self.trees.predict(table), self.machine.predict(table)
        return np.maximum((1 - self.weight) * parts[0] + self.weight * parts[1], 0.0)

    @property
    def parameters(self) -> int:
        """Nodes of the trees; support vectors times features, and their coefficients."""
        machine = self.machine[-1]
        return count_nodes(self.trees) + machine.support_vectors_.size + machine.dual_coef_.size


def ensemble() -> Any:
    """Scikit-learn's ensembles.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        from sklearn import ensemble
    except ImportError:
        raise ConfigError(
            "the baseline of boosted trees needs scikit-learn, which is not installed: "
            "pip install 'csst_dask[evaluate]'"
        ) from None
    return ensemble


def one_thread() -> Any:
    """Threads that wait for each other cost more than so few chips gain, and on a busy machine very much more."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1)


def boosting_options(depth: int, seed: int) -> dict[str, Any]:
    """Settings of scikit-learn's histogram boosting, which stops by the validation chips that it is given."""
    return {
        "max_depth": depth, "learning_rate": LEARNING_RATE, "max_iter": MOST_TREES, "n_iter_no_change": PATIENCE,
        "tol": 0.0, "min_samples_leaf": 5, "max_features": 0.3, "early_stopping": True, "random_state": seed,
    }  # fmt: skip


def count_nodes(trees: Any) -> int:
    """Nodes of all trees of a histogram boosting."""
    return sum(len(tree.nodes) for step in trees._predictors for tree in step)


MOST_FOR_MACHINE = 16_000
"""Nearly every chip becomes a support vector, and the time to find them grows with more than the square: two minutes
for so many."""


def fit_blend(table: NDArray, target: NDArray, sets: Sets, seed: int) -> tuple[Blend, dict[str, Any]]:
    """The blend with the least mean absolute error on the validation chips.

    The support vector machine learns from `MOST_FOR_MACHINE` of the chips at most, drawn at random.

    Parameters
    ----------
    table : (n, k) float64 array
    target : (n,) float64 array
        log10(1 + count), dex.
    sets : Sets
    seed : int

    Returns
    -------
    Blend
    scores : dict
        What was chosen, and its error on the validation chips.
    """
    from sklearn.feature_selection import VarianceThreshold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    train, validation = sets
    machine = make_pipeline(
        VarianceThreshold(LEAST_VARIANCE), StandardScaler(), SVR(C=30.0, gamma=1 / (3 * table.shape[1]), epsilon=0.01)
    )
    some = train
    if len(train) > MOST_FOR_MACHINE:
        some = np.sort(np.random.default_rng(seed).choice(train, MOST_FOR_MACHINE, replace=False))
    machine.fit(table[some], target[some])
    found = []
    for depth in DEPTHS:
        trees = ensemble().HistGradientBoostingRegressor(**boosting_options(depth, seed))
        trees.fit(table[train], target[train], X_val=table[validation], y_val=target[validation])
        for weight in WEIGHTS:
            blend = Blend(trees, machine, weight, depth)
            error = np.abs(blend.predict(table[validation]) - target[validation]).mean()
            found.append((float(error), blend))
    error, best = min(found, key=lambda pair: pair[0])
    scores = {"depth": best.depth, "trees": int(best.trees.n_iter_), "machine": best.weight, "validation_mae": error}
    return best, scores
