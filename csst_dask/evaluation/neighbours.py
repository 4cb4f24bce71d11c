"""What a chip's stars gain if it borrows from the other chips of its exposure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.scores import DRAWS, mean_scores, row_of
from csst_dask.evaluation.tables import parts
from csst_dask.evaluation.weighting import WEIGHTINGS
from csst_dask.schema import CLASS_BORDERS


@dataclass(frozen=True, eq=False)
class Joint:
    """Estimates from whole exposures; NaN where there is none."""

    log_star: NDArray[np.float64]
    """(n,) log10(1 + stars), dex."""
    error: NDArray[np.float64]
    """(n,) its standard error, dex."""


def joint_table(judged: Judged, joint: Joint, draws: int = DRAWS) -> pd.DataFrame:
    """Counts of each chip alone, and of all chips of an exposure together.

    Parameters
    ----------
    judged : Judged
    joint : Joint
        Of the same chips, learned from chips of other fields.
    draws : int

    Returns
    -------
    pandas.DataFrame
        All chips, flat and reweighted, by band and by true class: ``chips`` with both estimates; ``mae`` of
        log10(1 + stars) alone, ``mae_joint`` and their ``gain`` (negative: better), dex; ``accuracy`` of the class that
        the count alone lies in, and ``accuracy_joint``; ``within``, the share of joint estimates that err by less than
        their standard error, 0.68 if these are right and normal; all with errors.
    """
    truth = judged.true_log_star
    both = np.isfinite(judged.log_star) & np.isfinite(joint.log_star)
    alone, together = np.abs(judged.log_star - truth), np.abs(joint.log_star - truth)
    values = {
        "mae": alone,
        "mae_joint": together,
        "gain": together - alone,
        "accuracy": class_of(judged.log_star) == judged.true_class,
        "accuracy_joint": class_of(joint.log_star) == judged.true_class,
        "within": together < joint.error,
    }
    values = {name: np.where(both, column, np.nan) for name, column in values.items()}
    rows = []
    everything = [("all", name, np.ones(len(judged), bool)) for name in WEIGHTINGS]
    for by, part, some in (*everything, *parts(judged, classes=True)):
        if n := int((both & some).sum()):
            chosen = {name: column[some] for name, column in values.items()}
            scores = mean_scores(judged.take(some), chosen, part if by == "all" else "flat", draws)
            rows.append({"by": by, "part": part, "chips": n} | row_of(scores))
    return pd.DataFrame(rows)


def class_of(log_star: NDArray[np.float64]) -> NDArray[np.int64]:
    """Density class in which log10(1 + stars) lies; halfway between two counts, the class of the larger one begins."""
    return np.searchsorted(CLASS_BORDERS, log_star, side="right")
