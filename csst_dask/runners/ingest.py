"""FITS files to survey store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed import Client

from csst_dask.config import Config
from csst_dask.pipeline.block import Work
from csst_dask.pipeline.plan import find_candidates, plan_reading
from csst_dask.pipeline.record import Progress, Recorder
from csst_dask.pipeline.source import open_files
from csst_dask.pipeline.summary import Summary
from csst_dask.runners.blocks import Expect, announce, block_size, divide, recording, run_blocks
from csst_dask.store import SurveyStore


def take_stock(
    store: SurveyStore, inputs: Sequence[str | Path], config: Config, summary: Summary, **again: bool
) -> dict[int, Any]:
    """Find the chips of some inputs, give new ones rows, and say which have to be read.

    Parameters
    ----------
    store : SurveyStore
        Opened to write.
    inputs : sequence of path
    config : Config
    summary : Summary
        Receives what needs no work.
    **again
        ``update`` and ``retry_failed`` of `csst_dask.pipeline.plan.plan_reading`.

    Returns
    -------
    dict of int to ChipFiles
        By row.

    Raises
    ------
    ConfigError
        If there is nothing among the inputs.
    """
    chips, left = find_candidates(inputs, config.ingest.truth)
    summary.files = len(left)
    summary.reasons.update(left.values())
    store.files.write(left, [path for chip in chips for path in chip.item.paths()])
    return plan_reading(store, chips, config, summary, **again)


def ingest_survey(
    client: Client,
    store: SurveyStore,
    inputs: Sequence[str | Path],
    config: Config,
    progress: Progress | None = None,
    expect: Expect | None = None,
    *,
    update: bool = False,
    retry_failed: bool = False,
) -> Summary:
    """Bring files into a store; chips that are in it already are left alone.

    Parameters
    ----------
    client : distributed.Client
    store : SurveyStore
        Opened to write.
    inputs : sequence of path
        FITS files, or folders that are searched recursively.
    config : Config
    progress, expect : callable, optional
    update : bool
        Read chips again whose files have changed.
    retry_failed : bool
        Try chips again that failed in too many runs.

    Returns
    -------
    Summary

    Raises
    ------
    ConfigError
        If an input does not exist.
    """
    start, summary = time.monotonic(), Summary()
    read = take_stock(store, inputs, config, summary, update=update, retry_failed=retry_failed)
    announce(expect, read)
    lean = config.model_copy(update={"inputs": ()})
    work = Work(store.location, store.rows, lean, open_files)
    recorder = Recorder(store, summary, Summary(), Summary(), progress, **recording(config.execution))
    if read:
        blocks = divide(block_size(client, config.execution, len(read)), read)
        run_blocks(client, "ingest", blocks, work, recorder, summary.tasks)
    else:
        recorder.finish()
    summary.seconds = time.monotonic() - start
    return summary
