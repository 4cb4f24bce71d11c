"""FITS files to survey store: one task per chip."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distributed import Client

from csst_dask.config import Config
from csst_dask.errors import ConfigError
from csst_dask.io.discovery import discover
from csst_dask.runners.chips import ingest_chip
from csst_dask.runners.ledger import Ledger, Summary, identity, supersede
from csst_dask.runners.patience import finishing, patiently
from csst_dask.runners.window import Task, run_tasks
from csst_dask.schema import ChipFiles, ChipKey
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
    start, path = time.monotonic(), locate(path)
    stock = take_stock(inputs, path, config)
    summary, lean = stock.summary, config.model_copy(update={"inputs": ()})
    if expect is not None:
        expect(len(stock.todo))
    tasks = (Task(str(key), (stock.files[key], row, path, lean), key) for key, row in stock.todo)
    outcomes = run_tasks(client, "ingest", ingest_chip, tasks, config.execution, summary.effort)
    with finishing(partial(patiently, config.execution.patience, supersede, path)):
        stock.ledger.consume(outcomes, summary, progress)
    summary.seconds = time.monotonic() - start
    return summary


@dataclass
class Stock:
    """What there is to ingest."""

    ledger: Ledger
    files: dict[ChipKey, ChipFiles]
    todo: list[tuple[ChipKey, int]]
    """Chips that need work, and their rows."""
    summary: Summary
    """Counts what needs none."""


def take_stock(inputs: Sequence[str | Path], path: str, config: Config) -> Stock:
    """Find the chips of some inputs and give each a row.

    Parameters
    ----------
    inputs : sequence of path
    path : str
        Store; created where there is none.
    config : Config

    Returns
    -------
    Stock

    Raises
    ------
    ConfigError
        If an input does not exist, or the store was made with other settings.
    """
    if not inputs:
        raise ConfigError("inputs: no files or folders given; name at least one")
    chips, strays = discover([str(path) for path in inputs])
    if not chips and not strays:
        raise ConfigError(f"inputs: no FITS files in {', '.join(map(str, inputs))}; check the paths")
    ledger, summary = Ledger(path, config), Summary(files=len(strays))
    write_files(path, strays, [name for chip in chips for name in chip.paths()])
    summary.reasons.update(reason for _, reason in strays)
    todo = ledger.to_do([(chip.key, chip.image, identity(chip)) for chip in chips], summary)
    return Stock(ledger, {chip.key: chip for chip in chips}, todo, summary)
