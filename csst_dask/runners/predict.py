"""Survey store to predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from distributed import Client

from csst_dask.config import Config
from csst_dask.pipeline.block import Work
from csst_dask.pipeline.plan import plan_predicting, scalars_of
from csst_dask.pipeline.record import Progress, Recorder
from csst_dask.pipeline.routes import prepare_predictions
from csst_dask.pipeline.summary import Summary
from csst_dask.runners.blocks import Expect, announce, divide, recording, run_blocks
from csst_dask.runners.networks import choose_pair
from csst_dask.store import SurveyStore


def predict_survey(
    client: Client,
    store: SurveyStore,
    config: Config,
    progress: Progress | None = None,
    expect: Expect | None = None,
    chips: Sequence[int] | None = None,
    *,
    retry_failed: bool = False,
) -> Summary:
    """Predict every chip of a store that is done and has no prediction of these weights yet.

    Parameters
    ----------
    client : distributed.Client
    store : SurveyStore
        Opened to write.
    config : Config
        Sections ``inference``, ``routing`` and ``execution``.
    progress, expect : callable, optional
    chips : sequence of int, optional
        Rows to look at; by default all.
    retry_failed : bool
        Try chips again that failed in too many runs.

    Returns
    -------
    Summary

    Raises
    ------
    ConfigError
        If the weights are missing or damaged, or the store was filled without what they need.
    """
    start, summary = time.monotonic(), Summary()
    store.supersede()
    pair = choose_pair(client, config, store)
    have = prepare_predictions(store, pair, config)
    chosen = None if chips is None else np.isin(np.arange(store.rows), chips)
    rows = plan_predicting(store, have, config, summary, chosen=chosen, retry_failed=retry_failed)
    announce(expect, rows)
    recorder = Recorder(store, Summary(), summary, Summary(), progress, **recording(config.execution))
    if rows:
        work = Work(store.location, store.rows, config.model_copy(update={"inputs": ()}), pair=pair)
        blocks = divide(pair.batch, known=scalars_of(store, rows))
        run_blocks(client, "predict", blocks, work, recorder, summary.tasks)
    else:
        recorder.finish()
    summary.seconds = time.monotonic() - start
    return summary
