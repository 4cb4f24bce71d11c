"""Make a store ready for predictions: whose they are, and routes and limits that follow the thresholds in force."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from csst_dask.config import Config
from csst_dask.inference.limits import reference_limit
from csst_dask.inference.networks import ModelPair
from csst_dask.inference.routing import route_chips
from csst_dask.models.calibrate import INTERVAL_LEVEL
from csst_dask.pipeline.exposures import adopt_law, settle_exposures
from csst_dask.schema import FAILED, REJECTED, ROUTE_CODES, ROUTE_FLAGS
from csst_dask.store import SurveyStore
from csst_dask.store.layout import MEASURED, WHOLE

ROUTED_BY = (
    "class_probability", "bright_count", "confidence", "out_of_distribution", "review_reason", "star_counts",
    "direct_counts",
)  # fmt: skip
"""Predictions that decide what follows from thresholds."""

FOLLOWS = ("reference_limit", "review_reason", "route_flags", "route")
"""Predictions that follow from thresholds; the route comes last."""

UNSETTLED = "routing_unsettled"
"""Attribute of predictions whose routes are being written."""


def prepare_predictions(store: SurveyStore, pair: ModelPair, config: Config) -> NDArray[np.bool_]:
    """Make a store ready for predictions of a pair of networks.

    Predictions of other networks, or of another batch, are dropped. Those that stay get the routes and the
    ``reference_limit`` that follow from the thresholds of the configuration.

    Parameters
    ----------
    store : SurveyStore
        Opened to write.
    pair : ModelPair
    config : Config
        Section ``routing``.

    Returns
    -------
    (rows,) bool array
        Chips that these networks have predicted already.

    Raises
    ------
    ConfigError
        If the store was filled without what the networks need.
    """
    store.require(*MEASURED)
    thresholds = {f"routing_{name}": value for name, value in config.routing.model_dump().items()}
    identity = pair.identity | {"batch": pair.batch, "interval_level": INTERVAL_LEVEL}
    have = store.predictions.prepare(identity)
    adopt_law(store)
    found = store.predictions.attrs
    if found.get(UNSETTLED) or any(found.get(name) != value for name, value in thresholds.items()):
        store.predictions.set_attrs({UNSETTLED: True})
        _route_again(store, np.flatnonzero(have), config)
        store.predictions.set_attrs(thresholds | {UNSETTLED: False})
    return have


def _route_again(store: SurveyStore, rows: NDArray[np.int64], config: Config) -> None:
    if not rows.size:
        return
    column = store.predictions.column
    found = {name: column(name, rows) for name in ROUTED_BY}
    routes = route_chips(found, config.routing)
    routes["reference_limit"] = reference_limit(found["star_counts"], found["direct_counts"], config.routing.references)
    differ = [_differ(routes[name], column(name, rows)) for name in FOLLOWS]
    some = np.any(differ, axis=0)
    store.predictions.set_route(rows[some], {name: routes[name][some] for name in FOLLOWS})


def _differ(one: NDArray, other: NDArray) -> NDArray[np.bool_]:
    return (one != other) & ~((one != one) & (other != other))


def settle(store: SurveyStore) -> None:
    """Mark superseded versions, route chips that cannot have a prediction as invalid, and settle exposures."""
    store.supersede()
    settle_exposures(store)
    status, predictions = store.ledger["status"], store.predictions
    unusable = np.flatnonzero(((status == REJECTED) | (status == FAILED)) & (predictions.state != WHOLE))
    invalid = ROUTE_CODES.index("invalid")
    rows = unusable[predictions.column("route", unusable) != invalid]
    flags = np.full(rows.size, ROUTE_FLAGS["invalid"])
    predictions.set_route(rows, {"route_flags": flags, "route": np.full(rows.size, invalid)})
