"""Commands that judge: evaluate."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from csst_dask.cli.app import (
    ConfigOption,
    SchedulerFileOption,
    SchedulerOption,
    StoreOption,
    WorkersOption,
    app,
    console,
)
from csst_dask.cli.stage import configure, connected
from csst_dask.errors import ConfigError


class Part(StrEnum):
    """Chips of a store to judge."""

    all = "all"
    test = "test"
    random_test = "random-test"


@app.command()
def evaluate(
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the page, its tables and pictures.")],
    weights: Annotated[
        list[Path] | None,
        typer.Option("--weights", help="Folder of two networks; give several to compare.", show_default="shipped"),
    ] = None,
    part: Annotated[
        Part, typer.Option("--part", help="All chips, the test fields of the split by field, or a tenth at random.")
    ] = Part.all,
    baselines: Annotated[
        str | None,
        typer.Option("--baselines", help="Store that the baselines learn from.", show_default="none"),
    ] = None,
    dataset: Annotated[
        bool, typer.Option("--dataset", help="Describe the data set from its truth instead; needs no weights.")
    ] = False,
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Judge networks on the chips of a store that have truth, in the tables and figures of the paper."""
    if dataset and (weights or baselines or part is not Part.all):
        raise ConfigError("--dataset describes a store and judges nothing; leave out --weights, --baselines, --part")
    if dataset:
        describe(store, out)
        return
    from csst_dask.runners.evaluate import judge_store

    chosen = configure(config, scheduler, scheduler_file, workers)
    with connected(chosen) as (client, stages):
        page = judge_store(
            client, store, out.resolve(), chosen, [*weights] if weights else [None], which=part.value,
            baselines=baselines, stages=stages,
        )  # fmt: skip
    console.print(f"evaluation: {page}", highlight=False, soft_wrap=True, markup=False)


def describe(store: str, out: Path) -> None:
    """Write the description of a data set."""
    from csst_dask.runners.dataset import describe_dataset

    with console.status("reading the store") as status:

        def progress(done: int, total: int) -> None:
            status.update(f"drawing scenes again: {done} of {total}")

        report = describe_dataset(store, out.resolve(), progress=progress)
    console.print(f"data set: {report}", highlight=False, soft_wrap=True, markup=False)
