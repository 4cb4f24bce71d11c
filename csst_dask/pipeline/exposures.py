"""All chips of an exposure together: estimates from stored predictions, made again where one of them has changed.

A chip without its estimate tells that its exposure has changed: whoever changes a prediction first drops the estimates
of its exposure. So a process may die at any time, and nothing but the exposures that have changed is computed again.
"""

from __future__ import annotations

import json
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from csst_dask.inference.joint import FLOOR, TYPICAL, JointModel, combine
from csst_dask.inference.routing import AGAINST
from csst_dask.models.calibrate import INTERVAL_LEVEL
from csst_dask.schema import DONE
from csst_dask.store import SurveyStore
from csst_dask.store.layout import WHOLE

LENDS = ("log_star", "star_upper", "out_of_distribution", "review_reason")
"""Predictions that an estimate follows from, beside the chips' bands."""

LAW = "exposure_law"
"""Attribute of predictions: the numbers that their estimates were made with."""

HALF_WIDTH = NormalDist().inv_cdf((1 + INTERVAL_LEVEL) / 2)
"""Half the width of an interval of a normal law, in standard deviations."""


def adopt_law(store: SurveyStore, model: JointModel = TYPICAL) -> None:
    """Note what estimates are made with, and drop those that were made with other numbers."""
    table = store.predictions
    law = json.dumps([dict(model.error), model.other_bands, model.truth.tolist()])
    if table.attrs.get(LAW) != law:
        table.unsettle(np.flatnonzero(table.settled))
        table.set_attrs({LAW: law})


def settle_exposures(store: SurveyStore, model: JointModel = TYPICAL) -> int:
    """Estimate the stars of chips from whole exposures, where that has not been done since something changed.

    Parameters
    ----------
    store : SurveyStore
        Opened to write; superseded versions are marked.
    model : JointModel
        With other numbers than the estimates that are stored, all are made again.

    Returns
    -------
    int
        Exposures that were computed.

    Notes
    -----
    Chips that are done and predicted, and have a count with an interval, lend to each other and borrow, those of
    density class 5 like the others: they have a count of all stars, and to leave them out would make the exposure's
    mean too low where it is near that class. A chip out of distribution, or against which physics speaks, neither lends
    nor borrows and has no estimate: its count says nothing, and what makes it unlike, such as a cluster, is what its
    neighbours do not have.
    """
    table = store.predictions
    predicted = (table.state == WHOLE) & (store.ledger["status"] == DONE)
    if not predicted.any():
        return 0
    adopt_law(store, model)
    waiting = np.flatnonzero(predicted & ~table.settled)
    waiting = waiting[_usable({name: table.column(name, waiting) for name in LENDS})]
    if not waiting.size:
        return 0
    changed = np.unique(store.exposure[waiting])
    rows = np.flatnonzero(predicted & np.isin(store.exposure, changed))
    # in the order of the detectors, so that sums are the same in whatever order chips came
    rows = rows[np.lexsort([store.ledger["detector"][rows], store.exposure[rows]])]
    found = {name: table.column(name, rows) for name in LENDS}
    estimate = joint_estimate(model, found, store.column("band", rows), store.exposure[rows])
    table.settle(rows, estimate)
    return int(changed.size)


def joint_estimate(
    model: JointModel, found: dict[str, NDArray], band: NDArray[np.str_], exposure: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Estimates of chips from all chips of their exposures.

    Parameters
    ----------
    model : JointModel
    found : dict of (n,) arrays
        `LENDS` of each chip.
    band : (n,) str array
    exposure : (n,) int array
        What is alike belongs together.

    Returns
    -------
    (n,) float32 array
        log10(1 + stars on the frame), dex; NaN of chips that neither lend nor borrow.
    """
    log_star = found["log_star"].astype(np.float64)
    # the lower bound may be cut off at no star
    scale = (np.log10(1 + found["star_upper"].astype(np.float64)) - log_star) / HALF_WIDTH
    scale = np.where(_usable(found), np.maximum(scale, FLOOR), np.nan)
    return combine(model, log_star, scale, band, exposure)[0].astype(np.float32)


def _usable(found: dict[str, NDArray]) -> NDArray[np.bool_]:
    doubtful = found["out_of_distribution"] | ((found["review_reason"] & AGAINST) > 0)
    return np.isfinite(found["log_star"]) & np.isfinite(found["star_upper"]) & ~doubtful
