"""Simulated surveys: to FITS files with truth, or straight into a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from distributed import Client

from csst_dask.config import Config
from csst_dask.runners.chips import simulate_to_files, simulate_to_store
from csst_dask.runners.ingest import Progress
from csst_dask.runners.ledger import Ledger, Summary
from csst_dask.runners.window import Failure, Task, run_tasks
from csst_dask.simulation.exposure import Exposure, plan_survey
from csst_dask.simulation.product import chip_key, expected_files
from csst_dask.store.survey import locate


def simulate_files(
    client: Client,
    folder: Path,
    config: Config,
    progress: Progress | None = None,
    expect: Callable[[int], None] | None = None,
    exposures: list[Exposure] | None = None,
) -> Summary:
    """Write level-1 files and truth catalogues; chips whose files exist are left alone.

    Parameters
    ----------
    client : distributed.Client
    folder : Path
        Receives a sub-folder for each exposure.
    config : Config
    progress, expect : callable, optional
    exposures : list of Exposure, optional
        By default all of the survey that the configuration describes.

    Returns
    -------
    Summary
    """
    start, summary = time.monotonic(), Summary()
    plan = plan_survey(config.simulation) if exposures is None else exposures
    wanted = [(exposure, detector) for exposure in plan for detector in exposure.detectors]
    todo = [chip for chip in wanted if not Path(expected_files(folder, *chip).image).exists()]
    summary.skipped = len(wanted) - len(todo)
    if expect is not None:
        expect(len(todo))
    tasks = (
        Task(str(chip_key(exposure, detector)), (exposure, detector, str(folder), config))
        for exposure, detector in todo
    )
    for task, result in run_tasks(client, "simulate", simulate_to_files, tasks):
        failed = isinstance(result, Failure)
        summary.failed += failed
        summary.done += not failed
        if failed:
            summary.reasons[result.reason] += 1
        if progress is not None:
            progress(task.name, "failed" if failed else "done", result.reason if failed else "")
    summary.seconds = time.monotonic() - start
    return summary


def simulate_store(
    client: Client,
    path: str,
    config: Config,
    progress: Progress | None = None,
    expect: Callable[[int], None] | None = None,
) -> Summary:
    """Render chips, reduce them in memory and store them; chips that are in the store are left alone.

    Parameters
    ----------
    client : distributed.Client
    path : str
        Store; created where there is none. With ``ingest.pixels: none`` it holds neither image nor mask.
    config : Config
    progress, expect : callable, optional

    Returns
    -------
    Summary
    """
    start, summary, path = time.monotonic(), Summary(), locate(path)
    plan = plan_survey(config.simulation)
    chips = {chip_key(e, detector): (e, detector) for e in plan for detector in e.detectors}
    ledger = Ledger(path, config, keep_mask=config.ingest.pixels != "none")
    todo, summary.skipped = ledger.to_do([(key, f"simulated {e.field}", "") for key, (e, _) in chips.items()])
    if expect is not None:
        expect(len(todo))
    tasks = (Task(str(key), (*chips[key], row, path, config), key) for key, row in todo)
    ledger.consume(run_tasks(client, "simulate", simulate_to_store, tasks), summary, progress)
    summary.seconds = time.monotonic() - start
    return summary
