"""How good the classes and counts are, as tables; every error comes from resamples of whole fields."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.scores import DRAWS, ERROR, class_scores, dex_scores, mean_scores, row_of
from csst_dask.evaluation.weighting import WEIGHTINGS, weigh
from csst_dask.metrics import scatter
from csst_dask.schema import BANDS, CLASS_BORDERS, CLASS_EDGES, CLASS_LABELS, N_CLASSES

COUNT_EDGES = (0, 20, 100, 300, 1000, 2000, 10_000)
"""Least true bright stars of each range; 20 is what astrometry needs, 2000 the end of the published range."""
DISTANCES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Distances from a class edge, dex; the last range is open."""
OVERALL = ("accuracy", "macro_f1", "beyond_adjacent", "beyond_of_errors", "class5_recall")
"""Scores of all classes together, as `scores.class_scores` names them."""


def class_table(judged: Judged, weighting: str = "flat", draws: int = DRAWS) -> pd.DataFrame:
    """Precision, recall and F1 of every class.

    Parameters
    ----------
    judged : Judged
    weighting : str
        One of `weighting.WEIGHTINGS`. Recall is the same under both.
    draws : int
        Resamples.

    Returns
    -------
    pandas.DataFrame
        ``class``, ``stars``, ``support`` (chips of the true class), then each score and its standard error.
    """
    scores = class_scores(judged, weighting, draws)
    table = pd.DataFrame({"class": range(N_CLASSES), "stars": CLASS_LABELS})
    table["support"] = np.bincount(judged.true_class, minlength=N_CLASSES)
    for name in ("precision", "recall", "f1"):
        table[name], table[name + ERROR] = scores[name][0], scatter(scores[name])
    return table


def overall_table(judged: Judged, draws: int = DRAWS) -> pd.DataFrame:
    """Scores of all classes together, flat and reweighted.

    Parameters
    ----------
    judged : Judged
    draws : int

    Returns
    -------
    pandas.DataFrame
        A row for each of `weighting.WEIGHTINGS`: ``chips``, ``effective_chips``, and `OVERALL` with errors.
    """
    rows = []
    for name in WEIGHTINGS:
        scores = class_scores(judged, name, draws)
        effective = weigh(judged.true_class, name).effective
        head = {"weighting": name, "chips": len(judged), "effective_chips": effective}
        rows.append(head | row_of({score: scores[score] for score in OVERALL}))
    return pd.DataFrame(rows)


def band_table(judged: Judged, draws: int = DRAWS) -> pd.DataFrame:
    """Scores of all classes together by band, as the chips come; NUV on its own, and all others without it.

    Parameters
    ----------
    judged : Judged
    draws : int

    Returns
    -------
    pandas.DataFrame
        ``band``, ``chips``, and `OVERALL` with errors.
    """
    rows = []
    for _, band, some in parts(judged):
        scores = class_scores(judged.take(some), "flat", draws)
        rows.append({"band": band, "chips": int(some.sum())} | row_of({name: scores[name] for name in OVERALL}))
    return pd.DataFrame(rows)


def bypass_table(judged: Judged) -> pd.DataFrame:
    """Which chips have a count of bright stars and which were bypassed.

    Returns
    -------
    pandas.DataFrame
        ``chips`` and ``share`` of what befell them; the rows after the first add up to it.
    """
    given, known = np.isfinite(judged.log_bright), judged.n_bright >= 0
    crowded = judged.true_class == N_CLASSES - 1
    cases = {
        "all": np.ones(len(judged), bool),
        f"counted, truly below class {N_CLASSES - 1}": given & known & ~crowded,
        f"counted, truly class {N_CLASSES - 1}": given & known & crowded,
        f"bypassed, truly class {N_CLASSES - 1}": ~given & crowded,
        f"bypassed, truly below class {N_CLASSES - 1}": ~given & ~crowded,
        "counted, true number unknown": given & ~known,
    }
    table = pd.DataFrame({"case": list(cases), "chips": [int(rows.sum()) for rows in cases.values()]})
    table["share"] = table["chips"] / max(len(judged), 1)
    return table


def parts(judged: Judged, *, classes: bool = False, counts: bool = False) -> Iterator[tuple[str, str, NDArray]]:
    """Chips by band and, where asked for, by true class and by range of true bright stars.

    Yields
    ------
    by, part : str
        What it is divided by, and the name of the part.
    rows : (n,) bool array
        Each division covers every chip once, save ``all but NUV``, and chips without a true count in ``count``.
    """
    known = [band for band in BANDS if (judged.band == band).any()]
    for band in (*known, *sorted(set(judged.band.tolist()) - set(BANDS))):
        yield "band", band, judged.band == band
        if band == "NUV":
            yield "band", "all but NUV", judged.band != "NUV"
    for k in range(N_CLASSES if classes else 0):
        yield "class", str(k), judged.true_class == k
    for low, high in zip(COUNT_EDGES, (*COUNT_EDGES[1:], None), strict=True) if counts else ():
        name = f">= {low}" if high is None else f"{low} to {high - 1}"
        yield "count", name, (judged.n_bright >= low) & (judged.n_bright < (np.inf if high is None else high))


def count_table(judged: Judged, of: str = "bright", draws: int = DRAWS) -> pd.DataFrame:
    """Errors of predicted counts in dex of log10(1 + n), of all chips that have one and of parts of them.

    Parameters
    ----------
    judged : Judged
    of : str
        ``bright`` for bright stars, ``star`` for all stars.
    draws : int

    Returns
    -------
    pandas.DataFrame
        ``by``, ``part``, ``chips`` with a count, then ``mae``, ``mse``, ``rmse``, ``r2`` and ``bias`` with errors:
        all chips, flat and reweighted, then by band, true class and, of bright stars, range of the true count.
        Parts without a chip are left out. R2 compares the errors with the spread of the truth, so it is NaN in
        parts that are chosen by the truth.

    Raises
    ------
    ValueError
        If ``of`` is neither.
    """
    truth, predicted = logs(judged, of)
    rows = []
    everything = [("all", name, np.ones(len(judged), bool)) for name in WEIGHTINGS]
    for by, part, some in (*everything, *parts(judged, classes=True, counts=of == "bright")):
        n = int((np.isfinite(truth) & np.isfinite(predicted))[some].sum())
        if n or by == "all":
            weighting = part if by == "all" else "flat"
            scores = dex_scores(judged.take(some), truth[some], predicted[some], weighting, draws)
            if by in ("class", "count"):
                scores["r2"] = np.full(draws + 1, np.nan)
            rows.append({"by": by, "part": part, "chips": n} | row_of(scores))
    return pd.DataFrame(rows)


def logs(judged: Judged, of: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True and predicted log10(1 + n) of ``bright`` or ``star``, dex; NaN where there is none."""
    if of not in ("bright", "star"):
        raise ValueError(f"counts are of 'bright' or of 'star', not {of!r}")
    if of == "bright":
        return judged.true_log_bright, judged.log_bright
    return judged.true_log_star, judged.log_star


def edge_distance(n_star: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distance of a star count from the nearest class edge.

    On the scale log10(1 + n), with every edge halfway between the last count of a class and the first of the
    next, at log10(edge + 1/2): no count lies on an edge, and 0 and 1 have a place. Void chips lie 0.18 dex below
    their edge, those with one star 0.12 dex above it.

    Parameters
    ----------
    n_star : (n,) array_like of int
        Not negative.

    Returns
    -------
    distance : (n,) float64 array
        dex; negative below the edge.
    edge : (n,) int64 array
        The one of `schema.CLASS_EDGES`.
    """
    away = np.log10(1.0 + np.asarray(n_star, np.float64))[:, None] - np.array(CLASS_BORDERS)
    nearest = np.argmin(np.abs(away), axis=1)
    return np.take_along_axis(away, nearest[:, None], axis=1)[:, 0], np.asarray(CLASS_EDGES)[nearest]


def edge_table(judged: Judged, draws: int = DRAWS) -> pd.DataFrame:
    """Accuracy by distance from the nearest class edge (`edge_distance`).

    Parameters
    ----------
    judged : Judged
    draws : int

    Returns
    -------
    pandas.DataFrame
        ``distance`` (dex), ``chips``, their ``share``, ``accuracy`` with its error, and ``share_of_errors``, the
        share of all wrong chips that lie there.
    """
    distance = np.abs(edge_distance(judged.n_star)[0])
    wrong = int((~judged.right).sum())
    rows = []
    for low, high in zip(DISTANCES, (*DISTANCES[1:], np.inf), strict=True):
        some = (distance >= low) & (distance < high)
        part = judged.take(some)
        rows.append(
            {"distance": f"{low:g} to {high:g}" if np.isfinite(high) else f">= {low:g}", "chips": len(part)}
            | {"share": len(part) / max(len(judged), 1)}
            | row_of(mean_scores(part, {"accuracy": part.right}, draws=draws))
            | {"share_of_errors": float((~part.right).sum()) / wrong if wrong else float("nan")}
        )
    return pd.DataFrame(rows)
