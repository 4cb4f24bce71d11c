"""The whole pipeline from one configuration, block by block; running it again resumes."""

from __future__ import annotations

import time

import numpy as np
import xarray as xr
from distributed import Client

from csst_dask.config import Config
from csst_dask.errors import ConfigError
from csst_dask.models.files import identify_pair
from csst_dask.pipeline.block import Work
from csst_dask.pipeline.plan import plan_predicting, predictions_of, scalars_of
from csst_dask.pipeline.record import Recorder
from csst_dask.pipeline.routes import prepare_predictions, settle
from csst_dask.pipeline.skymap import MapPlan, MapSums, check_map, on_map
from csst_dask.pipeline.source import open_files
from csst_dask.pipeline.summary import Summary
from csst_dask.runners.blocks import announce, block_size, divide, recording, run_blocks
from csst_dask.runners.faults import TaskFailed
from csst_dask.runners.ingest import take_stock
from csst_dask.runners.networks import choose_pair
from csst_dask.runners.session import Stage
from csst_dask.store import SurveyStore, check_usable


def check_run(config: Config) -> None:
    """Refuse a run that could not finish, before it starts.

    Raises
    ------
    ConfigError
        Names the field that is missing or wrong.
    """
    for name, value in (("inputs", config.inputs), ("store", config.store), ("map.out", config.map.out)):
        if not value:
            raise ConfigError(f"{name} is missing; a run needs inputs, store and map.out")
    for path in config.inputs:
        if not path.exists():
            raise ConfigError(f"inputs: {path} does not exist; check the path")
    check_usable(str(config.store), config.ingest, config.mask)
    check_map(config.map)
    identify_pair(config.inference.weights)


def run_survey(
    client: Client,
    store: SurveyStore,
    config: Config,
    stage: Stage,
    *,
    update: bool = False,
    retry_failed: bool = False,
) -> tuple[dict[str, Summary], xr.Dataset]:
    """Ingest, predict and project block by block, and write the map.

    Parameters
    ----------
    client : distributed.Client
    store : SurveyStore
        Opened to write.
    config : Config
        With ``inputs`` and ``map.out``.
    stage : callable
        Makes the progress calls of each stage.
    update : bool
        Read chips again whose files have changed.
    retry_failed : bool
        Try chips again that failed in too many runs.

    Returns
    -------
    summaries : dict of str to Summary
        By stage.
    sky : xarray.Dataset
    """
    start = time.monotonic()
    read, predict, sky = Summary(), Summary(), Summary()
    predict.tasks = sky.tasks = read.tasks
    files = take_stock(store, config.inputs, config, read, update=update, retry_failed=retry_failed)
    store.supersede()
    pair = choose_pair(client, config, store)
    have = prepare_predictions(store, pair, config)
    known = plan_predicting(store, have, config, predict, retry_failed=retry_failed)
    mapped = np.flatnonzero(on_map(store)).tolist()
    plan = MapPlan(store, config.map)
    progress, expect = stage("ingest, predict, map")
    if not files and not known and plan.is_made:
        announce(expect, [])
        settle(store)  # of the predictions a map shows some alone
        found = plan.open_made(sky)
        read.seconds = time.monotonic() - start
        return {"ingest": read, "predict": predict, "map": sky}, found
    announce(expect, files, known, mapped)
    lean = config.model_copy(update={"inputs": ()})
    work = Work(store.location, store.rows, lean, open_files, pair, config.map.nside)
    sums = MapSums(config.map.nside, [*files, *known, *mapped], store)
    recorder = Recorder(store, read, predict, sky, progress, sums, **recording(config.execution))
    blocks = divide(
        block_size(client, config.execution, len(files) + len(known) + len(mapped)),
        files, scalars_of(store, known), predictions_of(store, mapped),
    )  # fmt: skip
    run_blocks(client, "run", blocks, work, recorder, read.tasks)
    made = MapPlan(store, config.map)
    if lost := sums.lost.intersection(made.rows):
        raise TaskFailed(f"{len(lost)} chips could not be projected on the sky, such as {store.name(min(lost))}")
    found = made.finish(sums.total(made.rows), sky)
    for summary in (read, predict, sky):
        summary.seconds = time.monotonic() - start
    return {"ingest": read, "predict": predict, "map": sky}, found
