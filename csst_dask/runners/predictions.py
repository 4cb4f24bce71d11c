"""The client's side of a store's predictions: whose they are, which are there, and what is still to be written."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from csst_dask.config import Config
from csst_dask.inference.routing import route
from csst_dask.models.calibrate import INTERVAL_LEVEL
from csst_dask.runners.faults import Failure
from csst_dask.runners.ledger import FLUSH_RESULTS, FLUSH_SECONDS, Summary, reject
from csst_dask.runners.networks import Pair
from csst_dask.runners.patience import patiently
from csst_dask.schema import CROWDED, ROUTE_FLAGS, ROUTES
from csst_dask.store import predictions as store
from csst_dask.store.survey import open_scalars

ROUTED_BY = ("class_probability", "bright_count", "confidence", "unlike")
"""Predictions that decide the route."""


def prepare_predictions(path: str, rows: int, pair: Pair, config: Config) -> NDArray[np.bool_]:
    """Make a store ready for predictions of a pair of networks; those of others are dropped.

    Parameters
    ----------
    path : str
        Survey store.
    rows : int
        Chips in it.
    pair : Pair
    config : Config
        Section ``routing``.

    Returns
    -------
    (rows,) bool array
        Chips that the pair has predicted already.
    """
    have = store.prepare(path, rows, pair.identity | {"batch": pair.batch}) >= 0
    _describe(path, config)
    refresh(path, config)
    return have


class PredictionLog:
    """Writes predictions as they come, many at a time.

    Parameters
    ----------
    path : str
        Survey store, after `prepare_predictions`.
    config : Config
        Section ``routing``.
    summary : Summary
        Counts them.
    """

    def __init__(self, path: str, config: Config, summary: Summary):
        self.path, self.config, self.summary = path, config, summary
        self._rows: list[NDArray[np.int64]] = []
        self._results: list[Mapping[str, NDArray]] = []
        self._last_flush = time.monotonic()

    def record(self, rows: NDArray[np.int64], result: Mapping[str, NDArray] | Failure) -> tuple[str, str]:
        """Note what a task returned for some rows.

        Returns
        -------
        status, reason : str
            What became of them.
        """
        if isinstance(result, Failure):
            status = "rejected" if result.poison else "failed"
            if result.poison:
                patiently(self.config.execution.patience, reject, self.path, rows, f"prediction: {result.reason}")
            setattr(self.summary, status, getattr(self.summary, status) + len(rows))
            self.summary.reasons[result.reason] += len(rows)
            return status, result.reason
        self.summary.done += len(rows)
        self._rows.append(rows)
        self._results.append(result)
        return "done", ""

    @property
    def due(self) -> bool:
        """Whether enough has come, or long enough ago, to be written."""
        waiting = sum(map(len, self._rows))
        return waiting >= FLUSH_RESULTS or (waiting > 0 and time.monotonic() - self._last_flush > FLUSH_SECONDS)

    def flush(self) -> None:
        """Write what has been noted."""
        rows, results = self._rows, self._results
        self._rows, self._results, self._last_flush = [], [], time.monotonic()
        if rows:
            found = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
            every = np.ones(len(found["density_class"]), bool)
            values = found | _routes(found, every, self.config)
            patiently(self.config.execution.patience, store.write, self.path, np.concatenate(rows), values)


def _describe(path: str, config: Config) -> None:
    thresholds = {f"routing_{name}": value for name, value in config.routing.model_dump().items()}
    store.describe(path, {"interval_level": INTERVAL_LEVEL, **thresholds})


def refresh(path: str, config: Config) -> None:
    """Bring coordinates and routes of all chips up to date, and blank predictions of chips that are done no more.

    Before the first task: whatever happens later, every row of the group can be read and mapped.

    Parameters
    ----------
    path : str
        Survey store with room for its predictions.
    config : Config
        Section ``routing``.
    """
    scalars, found = open_scalars(path), store.read(path).load()
    status = scalars["status"].values
    predicted = (found["density_class"].values >= 0) & (status == "done")
    rows, stale = np.arange(status.size), np.flatnonzero(~predicted)
    blank = {v.name: np.full((stale.size, *v.shape), v.fill, v.dtype) for v in store.PREDICTED}
    store.write(path, stale, blank)
    routes = _routes({name: found[name].values for name in ROUTED_BY}, predicted, config)
    rejected = status == "rejected"
    routes["route"][rejected], routes["route_flags"][rejected] = ROUTES[0], ROUTE_FLAGS[ROUTES[0]]
    store.write(path, rows, {v.name: scalars[v.name].values for v in store.COPIED} | routes)


def _routes(found: Mapping[str, NDArray], predicted: NDArray[np.bool_], config: Config) -> dict[str, NDArray]:
    """Routes of some chips; nothing where there is no prediction."""
    probability, bright, confidence, unlike = (found[name] for name in ROUTED_BY)
    names, flags = route(probability[:, CROWDED], bright, confidence, predicted, unlike, config.routing)
    return {"route": np.where(predicted, names.astype(object), ""), "route_flags": np.where(predicted, flags, 0)}
