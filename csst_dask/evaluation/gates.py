"""What it costs to send chips to the wrong pipeline, by the rule that sends them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.scores import DRAWS, mean_scores, row_of
from csst_dask.evaluation.weighting import WEIGHTINGS
from csst_dask.schema import CROWDED


@dataclass(frozen=True, eq=False)
class Gates:
    """Rules, and the costs of their mistakes on one scale."""

    rules: Mapping[str, NDArray[np.str_]]
    """Name -> (n,) ``standard``, ``crowded`` or ``review`` for each chip."""
    missed_cost: float
    """Of a chip of class 5 that the standard pipeline takes."""
    needless_cost: float
    """Of a chip below class 5 that the crowded pipeline takes."""
    review_cost: float


def gate_table(judged: Judged, gates: Gates, draws: int = DRAWS) -> pd.DataFrame:
    """Where rules send the chips, and what that costs.

    Parameters
    ----------
    judged : Judged
    gates : Gates
        Of the same chips.
    draws : int

    Returns
    -------
    pandas.DataFrame
        A row for each rule: chips sent to the ``crowded`` pipeline and to ``review``; ``missed`` chips of class 5 and
        ``needless`` ones; mean ``cost`` of a chip, and the same ``cost_reweighted`` to the published shares of the
        classes, with errors.
    """
    truly = judged.true_class == CROWDED
    rows = []
    for name, sent in gates.rules.items():
        crowded, review = sent == "crowded", sent == "review"
        missed, needless = truly & ~crowded & ~review, crowded & ~truly
        cost = gates.missed_cost * missed + gates.needless_cost * needless + gates.review_cost * review
        flat, other = (mean_scores(judged, {"cost": cost}, weighting, draws)["cost"] for weighting in WEIGHTINGS)
        counts = {"crowded": crowded, "review": review, "missed": missed, "needless": needless}
        rows.append(
            {"rule": name, "chips": len(judged)} | {key: int(some.sum()) for key, some in counts.items()}
            | row_of({"cost": flat, "cost_reweighted": other})
        )  # fmt: skip
    return pd.DataFrame(rows)
