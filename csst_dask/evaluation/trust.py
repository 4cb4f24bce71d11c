"""Whether the method knows how good it is: intervals, probabilities and routes, as tables."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.scores import DRAWS, Scores, class_sums, divide, mean_scores, row_of
from csst_dask.evaluation.tables import logs, parts
from csst_dask.evaluation.weighting import WEIGHTINGS
from csst_dask.schema import N_CLASSES, ROUTES

CONFIDENCES = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Edges of the ranges of confidence; narrow where most chips are."""
KEPT = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8, 0.5)
"""Least shares of chips that are kept in `selective_table`."""
LEAST_PROBABILITY = 1e-7
"""Smaller probabilities count as this one in the likelihood; single precision near 1 ends there."""
SLACK = 1e-6
"""Rounding of bounds in single precision, dex."""


def interval_table(judged: Judged, of: str = "bright", draws: int = DRAWS) -> pd.DataFrame:
    """Whether the intervals of counts hold the true number.

    Bounds are taken as they are, not rounded outwards to whole stars.

    Parameters
    ----------
    judged : Judged
    of : str
        ``bright`` for bright stars, ``star`` for all stars.
    draws : int

    Returns
    -------
    pandas.DataFrame
        ``by``, ``part``, ``chips`` with an interval, ``coverage``, and the shares ``below`` the lower and ``above``
        the upper bound, with errors; ``width``, the median of log10(1 + upper) - log10(1 + lower), dex. All chips, flat
        and reweighted, by band, by true class and, of bright stars, by range of the true number; parts without a chip
        are left out.
    """
    inside, below, above = within(judged, of)
    lower, upper = _bounds(judged, of)
    width, rows = upper - lower, []
    everything = [("all", name, np.ones(len(judged), bool)) for name in WEIGHTINGS]
    for by, part, some in (*everything, *parts(judged, classes=True, counts=of == "bright")):
        n = int(np.isfinite(inside[some]).sum())
        if n or by == "all":
            values = {"coverage": inside[some], "below": below[some], "above": above[some]}
            found = width[some & np.isfinite(inside)]
            rows.append(
                {"by": by, "part": part, "chips": n}
                | row_of(mean_scores(judged.take(some), values, part if by == "all" else "flat", draws))
                | {"width": float(np.median(found)) if n else float("nan")}
            )
    return pd.DataFrame(rows)


def within(judged: Judged, of: str = "bright") -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Whether the true number of bright or of all stars lies in the interval, below it, above it.

    Parameters
    ----------
    judged : Judged
    of : str
        ``bright`` or ``star``.

    Returns
    -------
    inside, below, above : (n,) float64 arrays
        1, 0, or NaN without an interval or without truth.
    """
    truth, (lower, upper) = logs(judged, of)[0], _bounds(judged, of)
    known = ~(np.isnan(lower) | np.isnan(upper)) & np.isfinite(truth)
    below, above = truth < lower - SLACK, truth > upper + SLACK
    inside, under, over = (np.where(known, case, np.nan) for case in (~below & ~above, below, above))
    return inside, under, over


def _bounds(judged: Judged, of: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds in log10(1 + n), dex."""
    lower, upper = (getattr(judged, f"{of}_{side}") for side in ("lower", "upper"))
    return np.log10(1 + lower), np.log10(1 + upper)


def probability_table(judged: Judged, draws: int = DRAWS) -> pd.DataFrame:
    """Scores of the class probabilities, flat and reweighted.

    Parameters
    ----------
    judged : Judged
    draws : int

    Returns
    -------
    pandas.DataFrame
        ``chips`` with probabilities, mean ``confidence``, ``accuracy``, ``ece``, the expected calibration error over
        `CONFIDENCES` [1]_, ``brier``, the sum of squared differences over the classes [2]_, and ``nll``, minus
        the mean natural logarithm of the true class's probability; with errors.

    References
    ----------
    .. [1] Guo et al. (2017), On calibration of modern neural networks, ICML.
    .. [2] Brier (1950), Monthly Weather Review 78, 1.
    """
    rows = []
    some = judged.take(np.isfinite(judged.class_probability).all(axis=1))
    true = np.eye(N_CLASSES)[some.true_class]
    chance = (some.class_probability * true).sum(axis=1)
    values = {
        "confidence": some.confidence,
        "accuracy": some.right,
        "brier": ((some.class_probability - true) ** 2).sum(axis=1),
        "nll": -np.log(np.maximum(chance, LEAST_PROBABILITY)),
    }
    for name in WEIGHTINGS:
        n, confidence, right = _bins(some, name, draws)
        scores = mean_scores(some, values, name, draws)
        scores["ece"] = divide(np.abs(confidence - right).sum(axis=1), n.sum(axis=1))
        rows.append({"weighting": name, "chips": len(some)} | row_of(scores))
    return pd.DataFrame(rows)


def reliability_table(judged: Judged, draws: int = DRAWS) -> pd.DataFrame:
    """Accuracy of the chips in every range of confidence.

    Parameters
    ----------
    judged : Judged
    draws : int

    Returns
    -------
    pandas.DataFrame
        ``from``, ``to``, ``chips``, mean ``confidence``, and ``accuracy`` with its error.
    """
    some = judged.take(np.isfinite(judged.confidence))
    n, confidence, right = _bins(some, "flat", draws)
    rows = []
    for i, (low, high) in enumerate(pairwise(CONFIDENCES)):
        mean = float(divide(confidence[:1, i], n[:1, i])[0])
        head = {"from": low, "to": high, "chips": round(n[0, i]), "confidence": mean}
        rows.append(head | row_of({"accuracy": divide(right[:, i], n[:, i])}))
    return pd.DataFrame(rows)


def _bins(judged: Judged, weighting: str, draws: int) -> tuple[NDArray, NDArray, NDArray]:
    """Sums of 1, confidence and being right over each range of confidence; (draws + 1, ranges) each."""
    place = np.clip(np.searchsorted(CONFIDENCES, judged.confidence, side="right") - 1, 0, len(CONFIDENCES) - 2)
    member = np.eye(len(CONFIDENCES) - 1)[place]
    terms = [member, member * judged.confidence[:, None], member * judged.right[:, None]]
    sums = class_sums(judged, np.concatenate(terms, axis=1), weighting, draws).sum(axis=1)
    n, confidence, right = np.split(sums, 3, axis=1)
    return n, confidence, right


def route_table(judged: Judged, draws: int = DRAWS) -> pd.DataFrame:
    """Chips of each route and how many of them have the right class.

    Parameters
    ----------
    judged : Judged
    draws : int

    Returns
    -------
    pandas.DataFrame
        ``route``, ``chips``, ``share``, ``accuracy`` with its error; all, every route that occurs, and ``all but
        review``.
    """
    known = [name for name in ROUTES if (judged.route == name).any()]
    others = sorted(set(judged.route.tolist()) - set(ROUTES))
    cases = {"all": np.ones(len(judged), bool)}
    cases |= {name or "none given": judged.route == name for name in (*known, *others)}
    cases["all but review"] = judged.route != "review"
    rows = []
    for name, some in cases.items():
        part = judged.take(some)
        scores: Scores = mean_scores(part, {"accuracy": part.right}, draws=draws)
        rows.append({"route": name, "chips": len(part), "share": len(part) / max(len(judged), 1)} | row_of(scores))
    return pd.DataFrame(rows)


def selective_curve(judged: Judged) -> pd.DataFrame:
    """Accuracy of the most confident chips against how many they are [1]_.

    Parameters
    ----------
    judged : Judged
        Chips without probabilities are left out.

    Returns
    -------
    pandas.DataFrame
        By falling ``confidence`` of the last chip that is kept (chips alike in it are kept together): the share
        that is ``kept`` and its ``accuracy``.

    References
    ----------
    .. [1] Geifman & El-Yaniv (2017), Selective classification for deep neural networks, NeurIPS.
    """
    known = np.isfinite(judged.confidence)
    levels, place = np.unique(-judged.confidence[known], return_inverse=True)
    chips = np.cumsum(np.bincount(place, minlength=len(levels)))
    right = np.cumsum(np.bincount(place, judged.right[known], minlength=len(levels)))
    return pd.DataFrame({"confidence": -levels, "kept": chips / max(int(known.sum()), 1), "accuracy": right / chips})


def selective_table(judged: Judged, draws: int = DRAWS) -> pd.DataFrame:
    """Points of `selective_curve`, with errors: the highest threshold that keeps at least each of `KEPT`.

    Returns
    -------
    pandas.DataFrame
        ``at_least``, ``kept``, ``confidence`` (threshold), ``chips``, ``accuracy`` with its error.
    """
    curve = selective_curve(judged)
    rows = []
    for least in KEPT if len(curve) else ():
        point = curve.iloc[int(np.searchsorted(curve["kept"], least - 1e-12))]
        part = judged.take(judged.confidence >= point["confidence"])
        scores = mean_scores(part, {"accuracy": part.right}, draws=draws)
        head = {"at_least": least, "kept": point["kept"], "confidence": point["confidence"], "chips": len(part)}
        rows.append(head | row_of(scores))
    return pd.DataFrame(rows)
