"""Survey store to predictions: one task per fixed, row-aligned block of chips."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import zarr
from distributed import Client
from numpy.typing import NDArray

from csst_dask.config import Config
from csst_dask.inference.routing import route
from csst_dask.models.calibrate import INTERVAL_LEVEL
from csst_dask.models.files import identify_pair
from csst_dask.runners.ledger import Summary, supersede
from csst_dask.runners.window import Failure, Task, run_tasks
from csst_dask.schema import ROUTE_FLAGS, ROUTES
from csst_dask.store import predictions as store
from csst_dask.store.survey import array_of, locate, open_scalars

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

    from csst_dask.inference.two_stage import TwoStage

CPU_BATCH = 32
"""Chips per forward pass where the batch is chosen for a CPU."""

ROUTED_BY = ("density_class", "bright_count", "confidence", "unlike")
"""Predictions that decide the route."""

SCALARS = ("band", "exptime", "pixel_mean", "pixel_std", "n_valid", "sky_level", "sky_sigma")
"""Per-chip variables that travel with a task."""


@lru_cache(maxsize=1)
def _models(folder: str, checksums: tuple[str, ...]) -> TwoStage:
    """Networks of this process, read once; the checksums make changed files new ones."""
    import torch

    from csst_dask.errors import ConfigError
    from csst_dask.inference.two_stage import load_two_stage

    torch.set_num_threads(1)  # one thread per task: the same bits whatever the machine, and no contention
    models = load_two_stage(folder)
    found = tuple(models.checksums.values())
    if found != checksums:
        raise ConfigError(f"{folder} holds other weights here than at the client; give the workers the same files")
    return models


def predict_block(
    path: str,
    rows: Sequence[int],
    wanted: Sequence[int],
    scalars: dict,
    folder: str,
    checksums: tuple[str, ...],
) -> dict[str, NDArray]:
    """Predict some chips of one block.

    Every chip keeps its place in the block and the block its size, so that a result depends on nothing else.

    Parameters
    ----------
    path : str
        Survey store.
    rows : sequence of int
        Rows of the block; as many as a batch has, the last ones possibly beyond the store's end.
    wanted : sequence of int
        Places in the block to predict.
    scalars : dict of arrays
        `SCALARS` of the wanted chips.
    folder : str
        Weights.
    checksums : tuple of str
        What the client found there.

    Returns
    -------
    dict of arrays
        `store.predictions.PREDICTED` of the wanted chips.
    """
    from csst_dask.inference.two_stage import predict_batch

    reduced = array_of(zarr.open_group(path, mode="r"), "reduced")
    maps = np.zeros((len(rows), *reduced.shape[1:]), np.float32)
    padded = {name: np.ones(len(rows)) for name in SCALARS if name != "band"}
    band = np.full(len(rows), "g", dtype=object)
    for place, k in enumerate(wanted):
        maps[k] = reduced[rows[k]]
        band[k] = str(scalars["band"][place])
        for name in padded:
            padded[name][k] = scalars[name][place]
    found = predict_batch(_models(folder, checksums), maps, padded, band.tolist(), len(rows))
    return {name: values[list(wanted)] for name, values in found.items()}


def predict_survey(
    client: Client,
    path: str,
    config: Config,
    progress: Callable[[str, str, str], None] | None = None,
    expect: Callable[[int], None] | None = None,
    chips: Sequence[int] | None = None,
) -> Summary:
    """Predict every chip of a store that is done and has no prediction of these weights yet.

    Parameters
    ----------
    client : distributed.Client
    path : str
        Survey store.
    config : Config
        Sections ``inference`` and ``routing``.
    progress, expect : callable, optional
        Called once per block, and with the number of chips.
    chips : sequence of int, optional
        Rows to look at; by default all.

    Returns
    -------
    Summary

    Raises
    ------
    ConfigError
        If the store or the weights are missing or damaged.
    """
    start, summary, path = time.monotonic(), Summary(), locate(path)
    supersede(path)
    folder, checksums = identify_pair(config.inference.weights)
    batch = CPU_BATCH if config.inference.batch == "auto" else config.inference.batch
    scalars = open_scalars(path)
    status = scalars["status"].values
    identity = {f"{task}_sha256": value for task, value in checksums.items()} | {"batch": batch}
    have = store.prepare(path, status.size, identity) >= 0
    _describe(path, config)
    _refresh(path, config)
    todo = (status == "done") & ~have
    if chips is not None:
        todo &= np.isin(np.arange(status.size), chips)
    summary.skipped = int(((status == "done") & have).sum())
    if expect is not None:
        expect(int(todo.sum()))
    tasks = block_tasks(path, scalars, todo, batch, folder, checksums)
    for task, result in run_tasks(client, "predict", predict_block, tasks):
        if isinstance(result, Failure):
            summary.failed += len(task.key)
            summary.reasons[result.reason] += 1
        else:
            store.write(path, task.key, result | _routes(result, np.ones(len(task.key), bool), config))
            summary.done += len(task.key)
        if progress is not None:
            for row in task.key:
                progress(f"chip {row}", "failed" if isinstance(result, Failure) else "done", "")
    summary.seconds = time.monotonic() - start
    return summary


def block_tasks(
    path: str, scalars: xr.Dataset, todo: NDArray[np.bool_], batch: int, folder: Path, checksums: Mapping[str, str]
) -> list[Task]:
    """Tasks of `predict_block`: one for each fixed block of rows that has a chip to predict.

    Parameters
    ----------
    path : str
        Survey store.
    scalars : xarray.Dataset
        Its per-chip variables.
    todo : (n,) bool array
        Chips to predict.
    batch : int
        Rows of a block.
    folder : Path
        Weights.
    checksums : mapping of str to str
        Of the weights, by task.

    Returns
    -------
    list of Task
        The key of each are the rows that it predicts.
    """
    tasks = []
    for block in np.unique(np.flatnonzero(todo) // batch):
        rows = np.arange(block * batch, (block + 1) * batch)
        wanted = np.flatnonzero(todo[rows[0] : rows[-1] + 1])
        some = {name: scalars[name].values[rows[wanted]].tolist() for name in SCALARS}
        args = (path, rows.tolist(), wanted.tolist(), some, str(folder), tuple(checksums.values()))
        tasks.append(Task(f"chips-{rows[0]}-{rows[-1]}", args, rows[wanted]))
    return tasks


def _describe(path: str, config: Config) -> None:
    thresholds = {f"routing_{name}": value for name, value in config.routing.model_dump().items()}
    store.describe(path, {"interval_level": INTERVAL_LEVEL, **thresholds})


def _refresh(path: str, config: Config) -> None:
    """Bring coordinates and routes of all chips up to date, and blank predictions of chips that are done no more.

    Before the first task: whatever happens later, every row of the group can be read and mapped.
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
    classes, bright, confidence, unlike = (found[name] for name in ROUTED_BY)
    names, flags = route(classes, bright, confidence, predicted, unlike, config.routing)
    return {"route": np.where(predicted, names.astype(object), ""), "route_flags": np.where(predicted, flags, 0)}
