"""Predictions to sky map: tasks project blocks of chips on the sky, the client adds them up in row order."""

from __future__ import annotations

import time
from pathlib import Path

import xarray as xr
from distributed import Client

from csst_dask.config import Config
from csst_dask.maps.density import DensitySums
from csst_dask.pipeline.block import Work, process_block
from csst_dask.pipeline.plan import predictions_of
from csst_dask.pipeline.record import Progress, Recorder
from csst_dask.pipeline.skymap import MapPlan, MapSums
from csst_dask.pipeline.summary import Summary
from csst_dask.runners.blocks import LARGE, Expect, announce, block_task, divide
from csst_dask.runners.faults import Failure, TaskFailed
from csst_dask.runners.window import run_tasks
from csst_dask.store import SurveyStore


def map_survey(
    client: Client,
    store: SurveyStore,
    config: Config,
    add: Path | None = None,
    progress: Progress | None = None,
    expect: Expect | None = None,
    chips: list[int] | None = None,
) -> tuple[xr.Dataset, Summary]:
    """Map the predicted chips of a store, and write the map where the configuration says.

    Parameters
    ----------
    client : distributed.Client
    store : SurveyStore
    config : Config
        Sections ``map`` and ``execution``.
    add : Path, optional
        An older map of other chips, to which these are added.
    progress, expect : callable, optional
    chips : list of int, optional
        Rows to look at; by default all.

    Returns
    -------
    sky : xarray.Dataset
    summary : Summary

    Raises
    ------
    ConfigError
        If the store has no predictions, or `add` shares chips with it.
    TaskFailed
        If a chip could not be projected for a reason that was not foreseen: the map would lack it.
    """
    start, summary = time.monotonic(), Summary()
    plan = MapPlan(store, config.map, add, chips)
    if plan.is_made:
        announce(expect, [])
        sky = plan.open_made(summary)
        summary.seconds = time.monotonic() - start
        return sky, summary
    announce(expect, plan.rows)
    sums = _density_sums(client, store, config, plan.rows, summary, progress)
    sky = plan.finish(sums, summary)
    summary.seconds = time.monotonic() - start
    return sky, summary


def _density_sums(
    client: Client, store: SurveyStore, config: Config, rows: list[int], summary: Summary, progress: Progress | None
) -> DensitySums:
    sums = MapSums(config.map.nside, rows, store)
    recorder = Recorder(store, Summary(), Summary(), summary, progress, sums)
    work = Work(store.location, store.rows, config.model_copy(update={"inputs": ()}), nside=config.map.nside)
    tasks = (block_task(block, work) for block in divide(LARGE, predicted=predictions_of(store, rows)))
    for task, result in run_tasks(client, "map", process_block, tasks, config.execution, summary.tasks):
        if not isinstance(result, Failure):
            recorder.take(task.key, result)
        elif result.poison:
            recorder.leave_out(task.key, result.reason)
        else:
            names = ", ".join(store.name(row) for row in task.key.rows[:3])
            raise TaskFailed(f"mapping {names} failed: {result.reason}")
    return sums.total(rows)
