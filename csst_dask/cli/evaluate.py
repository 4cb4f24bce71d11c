"""Commands that judge: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csst_dask.cli.app import StoreOption, app, console


@app.command()
def evaluate(
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the description, its tables and pictures.")],
    dataset: Annotated[bool, typer.Option("--dataset", help="Describe the data set from its truth.")] = True,
) -> None:
    """Describe the data set in a store with truth: its classes, splits, counts and magnitudes; needs no weights."""
    from csst_dask.runners.dataset import describe_dataset

    with console.status("reading the store") as status:

        def progress(done: int, total: int) -> None:
            status.update(f"drawing scenes again: {done} of {total}")

        report = describe_dataset(store, out.resolve(), progress=progress)
    console.print(f"data set: {report}", highlight=False, soft_wrap=True, markup=False)
