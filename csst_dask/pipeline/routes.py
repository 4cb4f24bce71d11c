"""Make a store ready for predictions: whose they are, and routes that follow the thresholds in force."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from csst_dask.config import Config
from csst_dask.inference.networks import ModelPair
from csst_dask.inference.routing import route_chips
from csst_dask.models.calibrate import INTERVAL_LEVEL
from csst_dask.schema import FAILED, REJECTED, ROUTE_CODES, ROUTE_FLAGS
from csst_dask.store import SurveyStore
from csst_dask.store.layout import MEASURED, WHOLE

ROUTED_BY = ("class_probability", "bright_count", "confidence", "out_of_distribution", "review_reason")
"""Predictions that decide the route."""

UNSETTLED = "routing_unsettled"
"""Attribute of predictions whose routes are being written."""


def prepare_predictions(store: SurveyStore, pair: ModelPair, config: Config) -> NDArray[np.bool_]:
    """Make a store ready for predictions of a pair of networks.

    Predictions of other networks, or of another batch, are dropped. Those that stay are routed by the thresholds of the
    configuration.

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
    found = store.predictions.attrs
    if found.get(UNSETTLED) or any(found.get(name) != value for name, value in thresholds.items()):
        store.predictions.set_attrs({UNSETTLED: True})
        _route_again(store, np.flatnonzero(have), config)
        store.predictions.set_attrs(thresholds | {UNSETTLED: False})
    return have


def _route_again(store: SurveyStore, rows: NDArray[np.int64], config: Config) -> None:
    if not rows.size:
        return
    found = {name: store.predictions.column(name, rows) for name in ROUTED_BY}
    routes = route_chips(found, config.routing)
    differ = np.any([routes[name] != store.predictions.column(name, rows) for name in ("route_flags", "route")], axis=0)
    differ |= routes["review_reason"] != store.predictions.column("review_reason", rows)
    changed = {name: routes[name][differ] for name in ("review_reason", "route_flags", "route")}
    store.predictions.set_route(rows[differ], changed)


def settle(store: SurveyStore) -> None:
    """Mark superseded versions, and route chips that cannot have a prediction as invalid."""
    store.supersede()
    status, predictions = store.ledger["status"], store.predictions
    unusable = np.flatnonzero(((status == REJECTED) | (status == FAILED)) & (predictions.state != WHOLE))
    invalid = ROUTE_CODES.index("invalid")
    rows = unusable[predictions.column("route", unusable) != invalid]
    flags = np.full(rows.size, ROUTE_FLAGS["invalid"])
    predictions.set_route(rows, {"route_flags": flags, "route": np.full(rows.size, invalid)})
