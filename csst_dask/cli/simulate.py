"""The command that simulates: FITS files, a store, or a report on how right it is."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from csst_dask.cli.app import (
    UNEXPECTED,
    ConfigOption,
    SchedulerFileOption,
    SchedulerOption,
    WorkersOption,
    app,
    console,
)
from csst_dask.cli.stage import Pixels, configure, finish
from csst_dask.errors import ConfigError
from csst_dask.outputs import local_path


class Depth(StrEnum):
    """How faint stars are rendered."""

    paper = "paper"
    catalogue = "catalogue"
    deep = "deep"


class Physics(StrEnum):
    """Laws of sky and instrument."""

    nominal = "nominal"
    randomised = "randomised"
    off_nominal = "off-nominal"
    wide = "wide"


class Product(StrEnum):
    """Kinds of FITS files."""

    level1 = "level1"
    level0 = "level0"
    readout = "readout"


def parse_detectors(text: str | None) -> tuple[int, ...] | None:
    """Detectors such as ``6,7,22``."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--detectors: found {text!r}, expected numbers such as 6,7,22") from None


def report_fidelity(folder: Path) -> None:
    """Run every check into a folder, show what differs, and leave with status 1 if anything does."""
    from csst_dask.simulation.check.report import run_checks

    with console.status("") as status:
        found = run_checks(folder, lambda title: status.update(f"checking: {title.lower()}"))
    failed = [finding for finding in found if not finding.passed]
    table = Table(title=f"{len(found) - len(failed)} of {len(found)} comparisons pass", title_justify="left")
    for name in ("comparison", "measured", "expected", "tolerance"):
        table.add_column(name, justify="left" if name == "comparison" else "right")
    for finding in failed:
        table.add_row(finding.name, f"{finding.measured:.5g}", f"{finding.expected:.5g}", f"{finding.tolerance:.3g}")
    console.print(table if failed else table.title)
    console.print(f"report: {folder / 'fidelity.md'}", soft_wrap=True)
    raise typer.Exit(UNEXPECTED if failed else 0)


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
    from csst_dask.api import simulate_folder, simulate_survey
    from csst_dask.pipeline.stopping import stopping

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
    with stopping(chosen.execution.walltime_margin):
        if store is None:
            folder = local_path(str(out), "--out").resolve()
            summaries = {"simulate": simulate_folder(folder, chosen)}
        else:
            summaries = simulate_survey(store, chosen).summaries
    finish(summaries, files=out, store=store)
