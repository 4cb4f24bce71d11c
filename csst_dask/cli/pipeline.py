"""Commands that take images to a map: demo, ingest, predict, map, run."""

from __future__ import annotations

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
)
from csst_dask.cli.stage import Pixels, configure, finish, survey_of
from csst_dask.errors import ConfigError
from csst_dask.outputs import local_path

UpdateOption = Annotated[bool, typer.Option("--update", help="Read chips again whose files have changed.")]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Try chips again that failed in too many runs.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for store, map, picture and report.")] = Path("demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the FITS files.")] = False,
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Simulate a strip of sky, and turn its full-size images into a map with a report."""
    from csst_dask.api import demonstrate
    from csst_dask.pipeline.stopping import stopping

    chosen, folder = configure(config, scheduler, scheduler_file, workers), out.resolve()
    with stopping(chosen.execution.walltime_margin):
        survey = demonstrate(folder, chosen, keep=keep)
    made = survey.config.map
    finish(survey.summaries, store=survey.location, map=made.out, picture=made.png, report=folder / "report.md")


@app.command()
def ingest(
    inputs: Annotated[list[Path], typer.Argument(help="FITS files, or folders that are searched recursively.")],
    store: StoreOption,
    pixels: Annotated[
        Pixels | None, typer.Option("--pixels", help="What is kept of the pixels.", show_default="lossless")
    ] = None,
    truth: Annotated[
        bool | None, typer.Option("--truth/--no-truth", help="Read truth catalogues.", show_default="truth")
    ] = None,
    update: UpdateOption = False,
    retry_failed: RetryOption = False,
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Bring FITS images into a survey store; chips that are in it already are left alone."""
    kept = pixels.value if pixels else None
    chosen = configure(config, scheduler, scheduler_file, workers, ingest__pixels=kept, ingest__truth=truth)
    with survey_of(store, chosen) as survey:
        survey.ingest(inputs, update=update, retry_failed=retry_failed)
    finish(survey.summaries, store=store)


@app.command()
def predict(
    store: StoreOption,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Folder of the two networks.", show_default="the shipped ones"),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch", help="Chips per pass, or auto; another size predicts all chips again.", show_default="auto"
        ),
    ] = None,
    retry_failed: RetryOption = False,
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Classify every chip of a store, count bright stars and route."""
    size = int(batch) if batch is not None and batch.lstrip("-").isdigit() else batch
    chosen = configure(config, scheduler, scheduler_file, workers, inference__weights=weights, inference__batch=size)
    with survey_of(store, chosen) as survey:
        survey.predict(retry_failed=retry_failed)
    finish(survey.summaries, predictions=f"{store}/predictions")


@app.command("map")
def map_command(
    store: StoreOption,
    out: Annotated[Path, typer.Option("--out", help="Map to write, MAP.zarr.")],
    nside: Annotated[int | None, typer.Option("--nside", help="HEALPix resolution.", show_default="1024")] = None,
    fits: Annotated[Path | None, typer.Option("--fits", help="Also a HEALPix FITS file.", show_default=False)] = None,
    moc: Annotated[Path | None, typer.Option("--moc", help="Also the footprint as a MOC.", show_default=False)] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Also a picture.", show_default=False)] = None,
    add: Annotated[Path | None, typer.Option("--add", help="Add to this older map.", show_default=False)] = None,
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Turn a store's predictions into a HEALPix density map."""
    chosen = configure(
        config, scheduler, scheduler_file, workers,
        map__out=out, map__nside=nside, map__fits=fits, map__moc=moc, map__png=png,
    )  # fmt: skip
    older = None if add is None else local_path(add, "--add")
    with survey_of(store, chosen) as survey:
        sky = survey.map(chosen.map.nside, add=older)
    cells = f"{sky.sizes['cells']} of nside {chosen.map.nside} in {sky.sizes['band']} bands"
    finish(survey.summaries, map=out, cells=cells, FITS=fits, MOC=moc, picture=png)


@app.command()
def run(
    settings: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML with inputs, store and map.out.")],
    update: UpdateOption = False,
    retry_failed: RetryOption = False,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Ingest, predict and map as one configuration says; running it again resumes."""
    chosen = configure(settings, scheduler, scheduler_file, workers)
    if chosen.store is None:
        raise ConfigError(f"store is missing in {settings}; a run needs inputs, store and map.out")
    with survey_of(chosen.store, chosen) as survey:
        survey.run(update=update, retry_failed=retry_failed)
    finish(survey.summaries, store=chosen.store, map=chosen.map.out, picture=chosen.map.png)
