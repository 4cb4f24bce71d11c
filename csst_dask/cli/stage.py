"""What commands that work on chips share: their configuration, the cluster, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from csst_dask.config import Config, load_config, with_settings

if TYPE_CHECKING:
    from csst_dask.pipeline.summary import Summary


class Pixels(StrEnum):
    """What a store keeps of the pixels."""

    lossless = "lossless"
    quantised = "quantised"
    none = "none"


def configure(
    config: Path | None,
    scheduler: str | None,
    scheduler_file: Path | None,
    workers: int | None,
    **settings: Any,
) -> Config:
    """The configuration file with the command's options on top; section and field are joined by two underscores."""
    cluster = {
        "cluster.scheduler": scheduler,
        "cluster.scheduler_file": scheduler_file,
        "cluster.workers": workers,
    }
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return with_settings(load_config(config), cluster | named)


@contextmanager
def connected(config: Config) -> Iterator[tuple[Any, Any]]:
    """A client and the progress of its stages, which end when a signal or the walltime asks for it."""
    from csst_dask.pipeline.stopping import stopping
    from csst_dask.runners.session import session

    with stopping(config.execution.walltime_margin), session(config) as (client, stages):
        yield client, stages


@contextmanager
def survey_of(store: str | Path, config: Config) -> Iterator[Any]:
    """The survey of a store, whose work ends when a signal or the walltime asks for it."""
    from csst_dask.pipeline.stopping import stopping
    from csst_dask.survey import Survey

    with stopping(config.execution.walltime_margin):
        yield Survey(store, config=config)


def finish(summaries: dict[str, Summary], **outputs: object) -> None:
    """Print where the outputs are, and leave with the exit status of what was done."""
    from csst_dask.pipeline.progress import say

    for name, where in outputs.items():
        if where:
            say(f"{name.replace('_', ' ')}: {where}")
    statuses = {summary.exit_status for summary in summaries.values()}
    raise typer.Exit(1 if 1 in statuses else 3 if 3 in statuses else 0)
