"""Commands that work on chips: demo, simulate, ingest, predict, map, run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from csst_dask.cli.app import (
    ConfigOption,
    SchedulerFileOption,
    SchedulerOption,
    StoreOption,
    WorkersOption,
    app,
)
from csst_dask.cli.check import report_fidelity
from csst_dask.config import Config, load_config, with_settings
from csst_dask.errors import ConfigError


class Pixels(StrEnum):
    """What a store keeps of the pixels."""

    lossless = "lossless"
    quantised = "quantised"
    none = "none"


class Depth(StrEnum):
    """How faint stars are rendered."""

    paper = "paper"
    deep = "deep"


class Physics(StrEnum):
    """Laws of sky and instrument."""

    nominal = "nominal"
    randomised = "randomised"
    off_nominal = "off-nominal"


class Product(StrEnum):
    """Kinds of FITS files."""

    level1 = "level1"
    level0 = "level0"
    readout = "readout"


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
    """A client and the progress of its stages."""
    from csst_dask.cli.progress import Stages
    from csst_dask.runners.cluster import connect

    client = connect(config.cluster)
    try:
        with Stages() as stages:
            yield client, stages
    finally:
        client.close()


def finish(summaries: dict, **outputs: object) -> None:
    """Print the summary and leave with its exit status."""
    from csst_dask.cli.progress import print_summary

    status = print_summary(summaries, {name.replace("_", " "): value for name, value in outputs.items() if value})
    raise typer.Exit(status)


def parse_detectors(text: str | None) -> tuple[int, ...] | None:
    """Detectors such as ``6,7,22``."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--detectors: found {text!r}, expected numbers such as 6,7,22") from None


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
    from csst_dask.runners.demo import demo_config, run_demo
    from csst_dask.runners.map import check_map
    from csst_dask.store.survey import check_usable

    chosen = demo_config(out.resolve(), configure(config, scheduler, scheduler_file, workers))
    check_usable(str(chosen.store), chosen.ingest, chosen.mask)
    check_map(chosen.map)
    with connected(chosen) as (client, stages):
        summaries, _, report = run_demo(client, out.resolve(), chosen, stages, keep)
    finish(summaries, store=chosen.store, map=chosen.map.out, picture=chosen.map.png, report=report)


@app.command()
def simulate(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for FITS files and truth.", show_default=False)
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="Reduce in memory into this store; no FITS.", show_default=False),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check", help="Write a report on the simulator's fidelity here, and no survey.", show_default=False
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            "--region", help="A region's name, 'RA,DEC', a box 'RA0:RA1,DEC0:DEC1', or 'mixed'.", show_default="mixed"
        ),
    ] = None,
    exposures: Annotated[int | None, typer.Option("--exposures", help="Pointings.", show_default="1")] = None,
    detectors: Annotated[
        str | None,
        typer.Option("--detectors", help="Such as 6,7,22.", show_default="all 18 imaging detectors"),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="One seed is one survey.", show_default="0")] = None,
    galaxies: Annotated[
        bool | None,
        typer.Option("--galaxies/--no-galaxies", help="Galaxies as well as stars.", show_default="galaxies"),
    ] = None,
    depth: Annotated[
        Depth | None, typer.Option("--depth", help="How faint stars are rendered.", show_default="paper")
    ] = None,
    physics: Annotated[
        Physics | None, typer.Option("--physics", help="Laws of sky and instrument.", show_default="nominal")
    ] = None,
    product: Annotated[
        Product | None, typer.Option("--product", help="Kind of FITS files.", show_default="level1")
    ] = None,
    pixels: Annotated[
        Pixels | None, typer.Option("--pixels", help="What --store keeps of the pixels.", show_default="lossless")
    ] = None,
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Simulate exposures with truth: FITS files, or straight into a store."""
    from csst_dask.runners.simulate import check_same_survey, simulate_files, simulate_store
    from csst_dask.simulation.survey import plan_survey
    from csst_dask.store.survey import check_usable, locate

    if sum(place is not None for place in (out, store, check)) != 1:
        raise ConfigError("give --out (FITS files), --store (no FITS) or --check (a report), one of them")
    if check is not None:
        report_fidelity(check.resolve())
    chosen = configure(
        config, scheduler, scheduler_file, workers,
        simulation__region=region, simulation__exposures=exposures, simulation__detectors=parse_detectors(detectors),
        simulation__seed=seed, simulation__galaxies=galaxies, simulation__depth=depth, simulation__physics=physics,
        simulation__product=product, ingest__pixels=pixels,
    )  # fmt: skip
    plan_survey(chosen.simulation)
    if store is not None:
        check_usable(store, chosen.ingest, chosen.mask)
    check_same_survey(Path(str(out)).resolve() if store is None else locate(store), chosen.simulation)
    with connected(chosen) as (client, stages):
        if store is None:
            summary = simulate_files(client, Path(str(out)).resolve(), chosen, *stages("simulate"))
        else:
            summary = simulate_store(client, store, chosen, *stages("simulate"))
    finish({"simulate": summary}, files=out, store=store)


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
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Bring FITS images into a survey store; chips that are in it already are left alone."""
    from csst_dask.runners.ingest import ingest_survey
    from csst_dask.store.survey import check_usable

    chosen = configure(
        config,
        scheduler,
        scheduler_file,
        workers,
        ingest__pixels=pixels.value if pixels else None,
        ingest__truth=truth,
    )
    missing = [path for path in inputs if not path.exists() and not path.is_symlink()]
    if missing:
        raise ConfigError(f"inputs: {', '.join(map(str, missing))} does not exist; check the path")
    check_usable(store, chosen.ingest, chosen.mask)
    with connected(chosen) as (client, stages):
        summary = ingest_survey(client, [path.resolve() for path in inputs], store, chosen, *stages("ingest"))
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
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Classify every chip of a store, count bright stars and route."""
    from csst_dask.runners.predict import predict_survey
    from csst_dask.store.survey import open_group

    size = int(batch) if batch is not None and batch.lstrip("-").isdigit() else batch
    chosen = configure(config, scheduler, scheduler_file, workers, inference__weights=weights, inference__batch=size)
    open_group(store)
    with connected(chosen) as (client, stages):
        summary = predict_survey(client, store, chosen, *stages("predict"))
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
    from csst_dask.runners.map import check_map, map_survey
    from csst_dask.store import predictions

    chosen = configure(
        config, scheduler, scheduler_file, workers,
        map__out=out, map__nside=nside, map__fits=fits, map__moc=moc, map__png=png,
    )  # fmt: skip
    check_map(chosen.map, add)
    found = predictions.read(store).load()
    with connected(chosen) as (client, stages):
        sky, summary = map_survey(client, found, chosen.map, add, *stages("map"))
    cells = f"{sky.sizes['cells']} of nside {chosen.map.nside} in {sky.sizes['band']} bands"
    finish({"map": summary}, map=out, cells=cells, FITS=fits, MOC=moc, picture=png)


@app.command()
def run(
    settings: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML with inputs, store and map.out.")],
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Ingest, predict and map as one configuration says; running it again resumes."""
    from csst_dask.runners.run import check, run_survey

    chosen = configure(settings, scheduler, scheduler_file, workers)
    check(chosen)
    with connected(chosen) as (client, stages):
        summaries, _ = run_survey(client, chosen, stages)
    finish(summaries, store=chosen.store, map=chosen.map.out, picture=chosen.map.png)
