"""FITS files to survey store: one task per chip."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from distributed import Client

from csst_dask.config import Config
from csst_dask.errors import ConfigError
from csst_dask.io.discovery import discover
from csst_dask.runners.chips import ingest_chip
from csst_dask.runners.ledger import Ledger, Summary, identity, supersede
from csst_dask.runners.window import Task, run_tasks
from csst_dask.store.rows import write_files
from csst_dask.store.survey import locate

Progress = Callable[[str, str, str], None]
"""Called with a chip's name, its status and its reason."""


def ingest_survey(
    client: Client,
    inputs: Sequence[str | Path],
    path: str,
    config: Config,
    progress: Progress | None = None,
    expect: Callable[[int], None] | None = None,
) -> Summary:
    """Bring files into a store; chips that are in it already are left alone.

    Parameters
    ----------
    client : distributed.Client
    inputs : sequence of path
        FITS files, or folders that are searched recursively.
    path : str
        Store; created where there is none.
    config : Config
    progress : callable, optional
    expect : callable, optional
        Called once with the number of chips to work on.

    Returns
    -------
    Summary

    Raises
    ------
    ConfigError
        If an input does not exist, or the store was made with other settings.
    """
    start, summary, path = time.monotonic(), Summary(), locate(path)
    if not inputs:
        raise ConfigError("inputs: no files or folders given; name at least one")
    chips, strays = discover([str(path) for path in inputs])
    if not chips and not strays:
        raise ConfigError(f"inputs: no FITS files in {', '.join(map(str, inputs))}; check the paths")
    ledger = Ledger(path, config)
    write_files(path, strays, [name for chip in chips for name in chip.paths()])
    summary.files = len(strays)
    summary.reasons.update(reason for _, reason in strays)
    files = {chip.key: chip for chip in chips}
    todo = ledger.to_do([(chip.key, chip.image, identity(chip)) for chip in chips], summary)
    lean = config.model_copy(update={"inputs": ()})
    if expect is not None:
        expect(len(todo))
    tasks = (Task(str(key), (files[key], row, path, lean), key) for key, row in todo)
    try:
        ledger.consume(run_tasks(client, "ingest", ingest_chip, tasks), summary, progress)
    finally:
        supersede(path)
    summary.seconds = time.monotonic() - start
    return summary
