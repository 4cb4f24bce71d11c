"""A client and the progress of its stages, for the length of a call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from distributed import Client, get_client, performance_report

from csst_dask.config import Config
from csst_dask.pipeline.progress import Stages
from csst_dask.runners.cluster import connect

Stage = Callable[[str], tuple[Any, Any]]
"""Given a stage's name, returns what to call for each chip and with the number of chips."""


@contextmanager
def session(config: Config, client: Client | None = None, *, quiet: bool = False) -> Iterator[tuple[Client, Stage]]:
    """The client given, else the one in use, else one of the configuration's cluster, which ends with the block.

    Parameters
    ----------
    config : Config
        Sections ``cluster`` and ``execution``, which may ask for a performance report.
    client : distributed.Client, optional
    quiet : bool
        Show no progress.

    Yields
    ------
    client : distributed.Client
    stages : callable
    """
    with ExitStack() as ends:
        if client is None:
            try:
                client = get_client()
            except ValueError:
                client = connect(config.cluster, quiet=quiet)
                ends.callback(client.close)
        ends.enter_context(reporting(config.execution.report))
        yield client, _silent if quiet else ends.enter_context(Stages())


def _silent(name: str) -> tuple[None, None]:
    return None, None


@contextmanager
def reporting(path: Path | None) -> Iterator[None]:
    """Save Dask's performance report of a block of work, or say in one line why there is none.

    Parameters
    ----------
    path : Path or None
        HTML file; None for no report.
    """
    if path is None:
        yield
        return
    report = performance_report(filename=str(path))
    began = False
    with _warning(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        report.__enter__()
        began = True
    try:
        yield
    finally:
        if began:
            with _warning(path):
                report.__exit__(None, None, None)


@contextmanager
def _warning(path: Path) -> Iterator[None]:
    """A report is no reason to fail."""
    try:
        yield
    except Exception as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        print(f"csst_dask: no performance report in {path} ({why})", file=sys.stderr, flush=True)
