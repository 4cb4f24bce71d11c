"""What commands that work on chips share: their configuration, the cluster, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from csst_dask.config import Config, load_config, with_settings


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
    from csst_dask.pipeline.progress import Stages
    from csst_dask.pipeline.stopping import stopping
    from csst_dask.runners.cluster import connect, reporting

    with stopping(config.execution.walltime_margin):
        client = connect(config.cluster)
        try:
            with reporting(config.execution.report), Stages() as stages:
                yield client, stages
        finally:
            client.close()


def finish(summaries: dict, **outputs: object) -> None:
    """Print the summary and leave with its exit status."""
    from csst_dask.pipeline.progress import print_summary

    status = print_summary(summaries, {name.replace("_", " "): value for name, value in outputs.items() if value})
    raise typer.Exit(status)
