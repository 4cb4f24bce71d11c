"""Where the errors come from: what scatter of the counts costs in accuracy, how near the edges the wrong chips lie."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import laplace, norm

from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.scores import DRAWS, mean_scores, row_of
from csst_dask.evaluation.tables import edge_distance, parts
from csst_dask.evaluation.weighting import WEIGHTINGS, weigh
from csst_dask.schema import CLASS_BORDERS, density_class

TARGET = 0.9883
"""Accuracy of Lai et al. (2026)."""
NEAR_EDGE = (0.02, 0.05, 0.1)
"""Distances from a class edge, dex."""
MAES = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1)
"""Mean absolute errors of log10(1 + stars) in `accuracy_curve`, dex."""
WIDEST = 3.0
"""Largest mean absolute error that is looked for, dex."""

LEAST_FREEDOM = 100
"""Chips more than fields that tell what is common to a field from the rest."""

LAWS = {
    "laplace": lambda mae: laplace(scale=mae),
    "normal": lambda mae: norm(scale=mae * np.sqrt(np.pi / 2)),
}
"""Distributions about zero by their mean absolute value."""

_BORDERS = np.array([-np.inf, *CLASS_BORDERS, np.inf])


def expected_accuracy(n_star: ArrayLike, mae: float, law: str = "laplace", weights: ArrayLike | None = None) -> float:
    """Share of chips whose class stays right if log10(1 + stars) errs at random.

    Parameters
    ----------
    n_star : (n,) array_like of int
        True stars.
    mae : float
        Mean absolute error, dex, the same for all chips.
    law : str
        A key of `LAWS`.
    weights : (n,) array_like, optional

    Returns
    -------
    float
        Mean probability that a draw about the true count lies between the edges of its class, log10(edge + 1/2);
        NaN for no chips.
    """
    n_star = np.asarray(n_star)
    if not len(n_star):
        return float("nan")
    if mae <= 0:
        return 1.0
    truth, classes = np.log10(1.0 + n_star), density_class(n_star).astype(int)
    spread = LAWS[law](mae)
    inside = spread.cdf(_BORDERS[classes + 1] - truth) - spread.cdf(_BORDERS[classes] - truth)
    return float(np.average(inside, weights=None if weights is None else np.asarray(weights, np.float64)))


def needed_mae(
    n_star: ArrayLike, law: str = "laplace", weights: ArrayLike | None = None, target: float = TARGET
) -> float:
    """Mean absolute error of log10(1 + stars) at which `expected_accuracy` is a target, dex; NaN if none does."""

    def excess(mae: float) -> float:
        return expected_accuracy(n_star, mae, law, weights) - target

    if not len(np.asarray(n_star)) or excess(WIDEST) > 0:
        return float("nan")
    return float(brentq(excess, 1e-9, WIDEST, xtol=1e-7))


def budget_table(judged: Judged, draws: int = DRAWS) -> pd.DataFrame:
    """What accuracy the scatter of the star counts allows, and where the wrong chips lie.

    Parameters
    ----------
    judged : Judged
    draws : int

    Returns
    -------
    pandas.DataFrame
        All chips, flat and reweighted, and by band: ``chips``; measured ``mae`` of log10(1 + stars) (dex) and
        ``accuracy`` with errors; accuracy ``expected_laplace`` and ``expected_normal`` if counts erred by so much;
        ``needed_laplace`` and ``needed_normal``, the error (dex) at which that is `TARGET`; ``wrong`` chips, and the
        shares of chips and of wrong ones within each of `NEAR_EDGE` of a class edge.
    """
    size = np.abs(judged.log_star - judged.true_log_star)
    distance = np.abs(edge_distance(judged.n_star)[0])
    rows = []
    everything = [("all", name, np.ones(len(judged), bool)) for name in WEIGHTINGS]
    for by, part, some in (*everything, *parts(judged)):
        chips, weighting = judged.take(some), part if by == "all" else "flat"
        weights = weigh(chips.true_class, weighting).values
        row = row_of(mean_scores(chips, {"mae": size[some], "accuracy": chips.right}, weighting, draws))
        known = np.isfinite(row["mae"])
        law = {
            f"expected_{name}": expected_accuracy(chips.n_star, row["mae"], name, weights) if known else float("nan")
            for name in LAWS
        }
        needed = {f"needed_{name}": needed_mae(chips.n_star, name, weights) for name in LAWS}
        rows.append(
            {"by": by, "part": part, "chips": len(chips)} | row | law | needed
            | _near_edge(distance[some], ~chips.right, weights)
        )  # fmt: skip
    return pd.DataFrame(rows)


def _near_edge(distance: NDArray, wrong: NDArray[np.bool_], weights: NDArray) -> dict[str, float]:
    row: dict[str, float] = {"wrong": int(wrong.sum())}
    for reach in NEAR_EDGE:
        near = distance < reach
        row[f"chips_within_{reach:g}"] = float(np.average(near, weights=weights))
        share = np.average(near[wrong], weights=weights[wrong]) if wrong.any() else float("nan")
        row[f"wrong_within_{reach:g}"] = float(share)
    return row


def accuracy_curve(judged: Judged) -> pd.DataFrame:
    """`expected_accuracy` of these chips for the errors of `MAES`.

    Parameters
    ----------
    judged : Judged

    Returns
    -------
    pandas.DataFrame
        ``mae`` (dex), and for each of `LAWS` and of `weighting.WEIGHTINGS` the accuracy.
    """
    weights = {name: weigh(judged.true_class, name).values for name in WEIGHTINGS}
    return pd.DataFrame(
        {"mae": mae} | {
            f"{law}_{name}": expected_accuracy(judged.n_star, mae, law, values)
            for law in LAWS for name, values in weights.items()
        }
        for mae in MAES
    )  # fmt: skip


def variance_components(judged: Judged, least: int = LEAST_FREEDOM) -> pd.DataFrame:
    """How far star counts are off for all chips of a band, of a field, and of one chip alone.

    The estimates of a one-way analysis of variance with random fields [1]_: chips of one field share their stars'
    true distribution and the sky, so what is common to them is not noise of the image.

    Parameters
    ----------
    judged : Judged
    least : int
        A band is left out if it has fewer chips more than fields.

    Returns
    -------
    pandas.DataFrame
        By ``band``, all together (each less its bias) first: ``chips``; ``bias`` (absolute value of the mean of
        predicted minus true; of all together, root mean square over the chips' bands), ``between_fields`` and
        ``within_fields`` (standard deviations), and ``rms``, dex.

    References
    ----------
    .. [1] Searle, Casella & McCulloch (1992), Variance Components, Wiley, section 3.5.
    """
    residual = judged.log_star - judged.true_log_star
    known, centred = np.isfinite(residual), residual.copy()
    rows = []
    for _, band, some in parts(judged):
        chips = some & known
        if band != "all but NUV" and chips.any():
            centred[chips] -= residual[chips].mean()
            rows.append((band, chips))
    table = []
    for band, chips in [("all", known), *rows]:
        between, within = _components(centred[chips], judged.field[chips], least)
        bias = np.sqrt(np.mean((residual - centred)[chips] ** 2)) if chips.any() else np.nan
        if np.isfinite(within):
            table.append({
                "band": band, "chips": int(chips.sum()), "bias": bias, "between_fields": between,
                "within_fields": within, "rms": np.sqrt((residual[chips] ** 2).mean()),
            })  # fmt: skip
    return pd.DataFrame(table, columns=["band", "chips", "bias", "between_fields", "within_fields", "rms"])


def _components(values: NDArray[np.float64], fields: NDArray[np.str_], least: int) -> tuple[float, float]:
    """Standard deviation of what is common to a field, and of the rest; NaN where chips are too few."""
    field = np.unique(fields, return_inverse=True)[1]
    chips = np.bincount(field)
    n, k = len(values), len(chips)
    if k < 2 or n - k < least:
        return float("nan"), float("nan")
    means = np.bincount(field, values) / chips
    within = ((values - means[field]) ** 2).sum() / (n - k)
    between = (chips * (means - values.mean()) ** 2).sum() / (k - 1)
    usual = (n - (chips**2).sum() / n) / (k - 1)
    return float(np.sqrt(max(0.0, (between - within) / usual))), float(np.sqrt(within))
