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


@app.command()
def evaluate(
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the page, its tables and pictures.")],
    weights: Annotated[
        list[Path] | None,
        typer.Option("--weights", help="Folder of two networks; give several to compare.", show_default="shipped"),
    ] = None,
    part: Annotated[
        Part,
        typer.Option("--part", help="All chips on sky that was not learned from, or the weights' own test chips."),
    ] = Part.all,
    baselines: Annotated[
        list[str] | None,
        typer.Option("--baselines", help="Store that the baselines learn from; several at will.", show_default="none"),
    ] = None,
    pixel_stores: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--pixel-stores",
            metavar="LEARN JUDGE",
            show_default="none",
            help="Stores that keep pixels, for source extraction: to calibrate with, and to judge all methods on.",
        ),
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost/--no-cost", help="Measure parameters, time and memory of every method.")
    ] = True,
    dataset: Annotated[
        bool, typer.Option("--dataset", help="Describe the data set from its truth instead; needs no weights.")
    ] = False,
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Judge networks on the chips of a store that have truth, in the tables and figures of the paper."""
    if dataset and (weights or baselines or pixel_stores or part is not Part.all):
        raise ConfigError(
            "--dataset describes a store and judges nothing; leave out --weights, --baselines, --pixel-stores, --part"
        )
    if dataset:
        describe(store, out)
        return
    from csst_dask.runners.evaluate import judge_store

    chosen = configure(config, scheduler, scheduler_file, workers)
    with connected(chosen) as (client, stages):
        page = judge_store(
            client, store, out.resolve(), chosen, [*weights] if weights else [None], part=part.value,
            baselines=baselines or (), pixel_stores=pixel_stores, costs=cost, stages=stages,
        )  # fmt: skip
    for line in (*_headlines(page.parent), f"evaluation: {page}"):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _headlines(folder: Path) -> list[str]:
    """The two scores that matter most, of the principal networks, from the tables of a judgement."""
    import pandas as pd

    overall = pd.read_csv(folder / "overall.csv").set_index("weighting")
    shares = [
        f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_error']:.1f} % {words}"
        for name, words in (("flat", "as the chips come"), ("published", "with the published shares"))
        if not pd.isna((row := overall.loc[name])["accuracy"])
    ]
    lines = [f"right class: {', '.join(shares)}"]
    if (folder / "bright.csv").exists():
        row = pd.read_csv(folder / "bright.csv").set_index("part").loc["flat"]
        lines.append(f"bright stars: mean absolute error {row['mae']:.4f} ± {row['mae_error']:.4f} dex")
    return lines


def describe(store: str, out: Path) -> None:
    """Write the description of a data set."""
    from csst_dask.cli.dataset import describe_dataset

    with console.status("reading the store") as status:

        def progress(done: int, total: int) -> None:
            status.update(f"drawing scenes again: {done} of {total}")

        report = describe_dataset(store, out.resolve(), progress=progress)
    console.print(f"data set: {report}", highlight=False, soft_wrap=True, markup=False)
