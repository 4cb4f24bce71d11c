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
from csst_dask.cli.stage import Pixels, configure, connected, finish
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
    from csst_dask.pipeline.skymap import check_map
    from csst_dask.runners.demo import demo_config, run_demo
    from csst_dask.store import SurveyStore

    chosen = demo_config(out.resolve(), configure(config, scheduler, scheduler_file, workers))
    check_map(chosen.map)
    with (
        SurveyStore.reserve(str(chosen.store), chosen.ingest, chosen.mask) as lease,
        connected(chosen) as (client, stages),
        SurveyStore.write(str(chosen.store), chosen.ingest, chosen.mask, lease=lease) as store,
    ):
        summaries, _, report = run_demo(client, store, out.resolve(), chosen, stages, keep)
    finish(summaries, store=chosen.store, map=chosen.map.out, picture=chosen.map.png, report=report)


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
    from csst_dask.runners.ingest import ingest_survey
    from csst_dask.store import SurveyStore
    from csst_dask.survey import check_inputs

    kept = pixels.value if pixels else None
    chosen = configure(config, scheduler, scheduler_file, workers, ingest__pixels=kept, ingest__truth=truth)
    paths = check_inputs(inputs)
    with (
        SurveyStore.reserve(store, chosen.ingest, chosen.mask) as lease,
        connected(chosen) as (client, stages),
        SurveyStore.write(store, chosen.ingest, chosen.mask, lease=lease) as survey,
    ):
        summary = ingest_survey(
            client, survey, paths, chosen, *stages("ingest"), update=update, retry_failed=retry_failed
        )
    finish({"ingest": summary}, store=store)


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
    from csst_dask.models.files import identify_pair
    from csst_dask.runners.predict import predict_survey
    from csst_dask.store import SurveyStore

    size = int(batch) if batch is not None and batch.lstrip("-").isdigit() else batch
    chosen = configure(config, scheduler, scheduler_file, workers, inference__weights=weights, inference__batch=size)
    identify_pair(chosen.inference.weights)
    with (
        SurveyStore.reserve(store) as lease,
        connected(chosen) as (client, stages),
        SurveyStore.write(store, lease=lease) as survey,
    ):
        summary = predict_survey(client, survey, chosen, *stages("predict"), retry_failed=retry_failed)
    finish({"predict": summary}, predictions=f"{store}/predictions")


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
    from csst_dask.pipeline.skymap import MapPlan, check_map
    from csst_dask.runners.map import map_survey
    from csst_dask.store import SurveyStore

    chosen = configure(
        config, scheduler, scheduler_file, workers,
        map__out=out, map__nside=nside, map__fits=fits, map__moc=moc, map__png=png,
    )  # fmt: skip
    older = None if add is None else local_path(add, "--add")
    check_map(chosen.map, older)
    survey = SurveyStore.read(store)
    MapPlan(survey, chosen.map, older)
    with connected(chosen) as (client, stages):
        sky, summary = map_survey(client, survey, chosen, older, *stages("map"))
    cells = f"{sky.sizes['cells']} of nside {chosen.map.nside} in {sky.sizes['band']} bands"
    finish({"map": summary}, map=out, cells=cells, FITS=fits, MOC=moc, picture=png)


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
    from csst_dask.runners.run import check_run, run_survey
    from csst_dask.store import SurveyStore

    chosen = configure(settings, scheduler, scheduler_file, workers)
    check_run(chosen)
    with (
        SurveyStore.reserve(str(chosen.store), chosen.ingest, chosen.mask) as lease,
        connected(chosen) as (client, stages),
        SurveyStore.write(str(chosen.store), chosen.ingest, chosen.mask, lease=lease) as store,
    ):
        summaries, _ = run_survey(client, store, chosen, stages, update=update, retry_failed=retry_failed)
    finish(summaries, store=chosen.store, map=chosen.map.out, picture=chosen.map.png)
