"""Survey store to predictions: one task per fixed, row-aligned block of chips."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import zarr
from distributed import Client
from numpy.typing import NDArray

from csst_dask.config import Config
from csst_dask.runners.ledger import Summary, supersede
from csst_dask.runners.networks import Pair, choose_pair, predictor_of
from csst_dask.runners.patience import finishing
from csst_dask.runners.predictions import PredictionLog, prepare_predictions
from csst_dask.runners.window import Task, run_tasks
from csst_dask.store.survey import array_of, locate, open_scalars

if TYPE_CHECKING:
    import xarray as xr

SCALARS = ("band", "exptime", "pixel_mean", "pixel_std", "n_valid", "sky_level", "sky_sigma")
"""Per-chip variables that travel with a task."""


def predict_block(
    path: str,
    rows: Sequence[int],
    wanted: Sequence[int],
    scalars: dict,
    pair: Pair,
    maps: Mapping[int, NDArray[np.float32]] | None = None,
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
    pair : Pair
        Networks.
    maps : mapping of int to (channel, iy, ix) float32 array, optional
        Reduced maps by place, where they are at hand; the others are read.

    Returns
    -------
    dict of arrays
        `store.predictions.PREDICTED` of the wanted chips.
    """
    reduced = array_of(zarr.open_group(path, mode="r"), "reduced")
    known, block = maps or {}, np.zeros((len(rows), *reduced.shape[1:]), np.float32)
    padded = {name: np.ones(len(rows)) for name in SCALARS if name != "band"}
    band = np.full(len(rows), "g", dtype=object)
    for place, k in enumerate(wanted):
        block[k] = known[k] if k in known else reduced[rows[k]]
        band[k] = str(scalars["band"][place])
        for name in padded:
            padded[name][k] = scalars[name][place]
    found = predictor_of(pair).predict(block, padded, band.tolist())
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
    scalars = open_scalars(path)
    status = scalars["status"].values
    pair = choose_pair(client, config, path)
    have = prepare_predictions(path, status.size, pair, config)
    todo = (status == "done") & ~have
    if chips is not None:
        todo &= np.isin(np.arange(status.size), chips)
    summary.skipped = int(((status == "done") & have).sum())
    if expect is not None:
        expect(int(todo.sum()))
    tasks = block_tasks(path, scalars, todo, pair)
    log = PredictionLog(path, config, summary)
    with finishing(log.flush):
        for task, result in run_tasks(client, "predict", predict_block, tasks, config.execution, summary.effort):
            told = log.record(task.key, result)
            if log.due:
                log.flush()
            if progress is not None:
                for row in task.key:
                    progress(f"chip {row}", *told)
    summary.seconds = time.monotonic() - start
    return summary


def block_tasks(path: str, scalars: xr.Dataset, todo: NDArray[np.bool_], pair: Pair) -> Iterator[Task]:
    """Tasks of `predict_block`: one for each fixed block of rows that has a chip to predict.

    Parameters
    ----------
    path : str
        Survey store.
    scalars : xarray.Dataset
        Its per-chip variables.
    todo : (n,) bool array
        Chips to predict.
    pair : Pair

    Yields
    ------
    Task
        Its key are the rows that it predicts.
    """
    columns = {name: scalars[name].values for name in SCALARS}

    def task(block: NDArray[np.int64], wanted: NDArray[np.int64]) -> Task:
        rows = block[wanted]
        some = {name: values[rows].tolist() for name, values in columns.items()}
        args = (path, block.tolist(), wanted.tolist(), some, pair)
        name = f"chips-{block[0]}-{block[-1]}" if len(rows) > 1 else f"chip-{rows[0]}"
        return Task(name, args, rows, len(rows), lambda: [task(block, wanted[k : k + 1]) for k in range(len(wanted))])

    for number in np.unique(np.flatnonzero(todo) // pair.batch):
        block = np.arange(number * pair.batch, (number + 1) * pair.batch)
        yield task(block, np.flatnonzero(todo[block[0] : block[-1] + 1]))
