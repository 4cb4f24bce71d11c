"""Commands that learn: train, tune; and export, for who learns elsewhere."""

from __future__ import annotations

import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from csst_dask.cli.app import (
    ConfigOption,
    SchedulerFileOption,
    SchedulerOption,
    StoresOption,
    WorkersOption,
    app,
    console,
)
from csst_dask.cli.stage import configure, connected


class Kind(StrEnum):
    """Which of the two networks."""

    classifier = "classifier"
    regressor = "regressor"


class Recipe(StrEnum):
    """Inputs, augmentation and schedule."""

    paper = "paper"
    csst = "csst"
    counts = "counts"


class Launcher(StrEnum):
    """What starts the ranks of a training."""

    dask = "dask"
    torchrun = "torchrun"


TELL_EVERY = 60.0
"""Seconds after which a log hears of a long epoch."""

MEASURES = {
    "accuracy": "right class",
    "macro_f1": "macro F1",
    "mae_dex": "mean absolute error, dex",
    "rmse_dex": "root mean square error, dex",
    "r2": "R2",
}
"""Scores of a training, as they are told."""


def without_folders(word: str) -> str:
    """A word of a command without what only one machine knows: the folders of an absolute path."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + (Path(value).name if value.startswith("/") else value)


@app.command()
def train(
    task: Annotated[Kind, typer.Argument(help="Which network.")],
    store: StoresOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for checkpoints, weights and model card.")],
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Weights to go on from on these chips: a file or a folder.", show_default=False),
    ] = None,
    recipe: Annotated[Recipe | None, typer.Option("--recipe", help="How to train.", show_default="csst")] = None,
    arch: Annotated[
        str | None, typer.Option("--arch", help="Architecture, such as resnet34.", show_default=False)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Passes over the chips.", show_default="15; a perceptron 250")
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", help="Processes that train together.", show_default="one per GPU, or one"),
    ] = None,
    launcher: Annotated[
        Launcher | None, typer.Option("--launcher", help="What starts the ranks.", show_default="dask")
    ] = None,
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Train a network from a store with truth; called again it goes on from its last checkpoint.

    The folder receives log.csv with losses, validation score and learning rate of every epoch.
    """
    from csst_dask.runners.train import train_network

    chosen = configure(
        config, scheduler, scheduler_file, workers,
        training__recipe=recipe, training__arch=arch, training__epochs=epochs, training__ranks=ranks,
        training__launcher=launcher, training__start=start,
    )  # fmt: skip
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar, told = bars.add_task(f"train {task.value}", total=None), [time.monotonic()]

        def progress(epoch: int, epochs: int, step: int, steps: int, loss: float) -> None:
            bars.update(
                bar,
                total=epochs * steps,
                completed=(epoch - 1) * steps + step,
                description=f"epoch {epoch} loss {loss:.4f}",
            )
            now, over = time.monotonic(), step == steps
            if not console.is_terminal and (over or now - told[0] >= TELL_EVERY):
                told[0], where = now, "" if over else f", step {step} of {steps}"
                console.print(f"epoch {epoch} of {epochs}{where}: loss of the last step {loss:.4f}", highlight=False)

        command = shlex.join(["csst-dask", *map(without_folders, sys.argv[1:])])
        result = train_network(task.value, store, out, chosen, progress, command)
    lines = [
        f"epochs run: {result.epochs}; the weights are those of epoch {result.best_epoch}; on the test chips:",
        *(
            f"  {words}: {result.metrics[name][0]:.4f} ± {result.metrics[name][1]:.4f}"
            for name, words in MEASURES.items()
            if name in result.metrics
        ),
        *result.warnings,
        f"weights: {result.weights}",
        f"model card: {result.card}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def tune(
    task: Annotated[Kind, typer.Argument(help="Which network.")],
    store: StoresOption,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Finished or pruned trials in all, over every call.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the study and its best settings.")],
    recipe: Annotated[Recipe | None, typer.Option("--recipe", help="How to train.", show_default="csst")] = None,
    arch: Annotated[
        str | None, typer.Option("--arch", help="Architecture, such as resnet34.", show_default=False)
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            help="Passes of a trial; with pretrained weights training.stage_epochs.",
            show_default="15; a perceptron 250",
        ),
    ] = None,
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Search for rates, layer multipliers and loss weights with Optuna; called again it goes on.

    The folder receives the study and best.yaml, with which `csst-dask train TASK --config best.yaml` repeats the best
    trial. A worker trains one trial at a time, with its share of the cores.
    """
    from csst_dask.runners.tune import tune_network

    chosen = configure(
        config, scheduler, scheduler_file, workers,
        training__recipe=recipe, training__arch=arch, training__epochs=epochs,
    )  # fmt: skip
    with connected(chosen) as (client, stages):
        found = tune_network(client, task.value, store, trials, out.resolve(), chosen, *stages("tune"))
    measure = "accuracy" if task is Kind.classifier else "mean absolute error, dex"
    lines = [
        f"{found['trials']} trials, {found['pruned']} of them pruned; {found['failed']} failed",
        f"best {measure}: {found['score']:.4f} on the validation chips",
        *(f"  {name}: {value}" for name, value in found["settings"].items()),
        f"settings: {out / 'best.yaml'}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def export(
    store: StoresOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for one .pt file a chip.")],
    inputs: Annotated[
        str, typer.Option("--inputs", help="Kind of network inputs: paper-point, paper-area or maps.")
    ] = "paper-point",
) -> None:
    """Write preprocessed chips with truth as .pt files that torch.load reads; called again it goes on.

    The folder holds one export: other chips or another kind of inputs need another folder.
    """
    from csst_dask.training.exchange import export_samples
    from csst_dask.training.samples import load_samples

    samples = load_samples(store)
    with Progress(console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("export", total=len(samples))
        for _ in export_samples(samples, out, inputs):
            bars.advance(bar)
    console.print(f"{len(samples)} samples: {out}", highlight=False, soft_wrap=True, markup=False)
