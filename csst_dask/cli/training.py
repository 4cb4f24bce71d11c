"""Commands that learn: train."""

from __future__ import annotations

import sys
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

from csst_dask.cli.app import ConfigOption, StoreOption, app, console
from csst_dask.config import load_config, with_settings


class Kind(StrEnum):
    """Which of the two networks."""

    classifier = "classifier"
    regressor = "regressor"


class Recipe(StrEnum):
    """Inputs, augmentation and schedule."""

    paper = "paper"
    csst = "csst"


@app.command()
def train(
    task: Annotated[Kind, typer.Argument(help="Which network.")],
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for checkpoints, weights and model card.")],
    recipe: Annotated[Recipe | None, typer.Option("--recipe", help="How to train.", show_default="csst")] = None,
    arch: Annotated[
        str | None, typer.Option("--arch", help="Architecture, such as resnet34.", show_default=False)
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the chips.", show_default="15")] = None,
    config: ConfigOption = None,
) -> None:
    """Train a network from a store with truth; called again it goes on from the last epoch."""
    from csst_dask.runners.train import train_network

    chosen = with_settings(
        load_config(config),
        {
            "training.recipe": recipe.value if recipe else None,
            "training.arch": arch,
            "training.epochs": epochs,
        },
    )
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task(f"train {task.value}", total=None)

        def progress(epoch: int, epochs: int, step: int, steps: int, loss: float) -> None:
            bars.update(
                bar,
                total=epochs * steps,
                completed=(epoch - 1) * steps + step,
                description=f"epoch {epoch} loss {loss:.4f}",
            )
            if step == steps and not console.is_terminal:
                console.print(f"epoch {epoch} of {epochs}: loss of the last step {loss:.4f}", highlight=False)

        command = "csst-dask " + " ".join(Path(word).name if "/" in word else word for word in sys.argv[1:])
        result = train_network(task.value, store, out, chosen.training, progress, command)
    console.print(result)
