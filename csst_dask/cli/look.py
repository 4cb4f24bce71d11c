"""Commands that look: status, verify, doctor."""

from __future__ import annotations

import json as jsons
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from csst_dask.cli.app import (
    REJECTED,
    ConfigOption,
    SchedulerFileOption,
    SchedulerOption,
    StoreOption,
    WorkersOption,
    app,
    console,
)
from csst_dask.cli.stage import configure, finish, survey_of
from csst_dask.pipeline.progress import say

SHOWN = 50
"""Chips that are listed one by one."""


@app.command()
def status(
    store: StoreOption,
    json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """How many chips of a store are done, rejected, failed or pending, and why."""
    from csst_dask.survey import Survey

    found = Survey(store).status()
    if json:
        typer.echo(jsons.dumps(found, indent=1))
        return
    counts = ", ".join(f"{count} {name}" for name, count in found["chips"].items())
    say(f"{store}: {counts}; {found['predicted']} predicted")
    if found["routes"]:
        say("routes: " + ", ".join(f"{n} {name}" for name, n in sorted(found["routes"].items())))
    for heading, name in (
        ("rejected", "rejected"),
        ("failed, will be tried again", "failed"),
        ("not predicted, will be tried again", "unpredicted"),
        ("failed in too many runs, --retry-failed tries again", "given_up"),
        ("noted", "notes"),
    ):
        for row in found[name][:SHOWN]:
            say(f"{heading}: {row['chip']}: {row['reason']}")
        if len(found[name]) > SHOWN:
            say(f"{heading}: {len(found[name]) - SHOWN} more; see --json")
    for row in found["files"][:SHOWN]:
        say(f"no chip: {row['path']}: {row['reason']}")


@app.command()
def verify(
    store: StoreOption,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make damaged chips pending, so that the next ingest reads them again.")
    ] = False,
    config: ConfigOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    workers: WorkersOption = None,
) -> None:
    """Read every chunk of a store again, compute again what follows from stored pixels, and name what differs."""
    chosen = configure(config, scheduler, scheduler_file, workers)
    with survey_of(store, chosen) as survey:
        found = survey.verify(repair=repair)
    for damage in found:
        say(f"{damage['chip']}: {damage['variable']}: {damage['difference']}")
    if found:
        raise typer.Exit(REJECTED)
    finish(survey.summaries, store=store)


@app.command()
def doctor() -> None:
    """What this machine can do, and what is missing."""
    from csst_dask.cli.doctor import examine

    table = Table(box=None, pad_edge=False)
    for heading in ("what", "found", "verdict"):
        table.add_column(heading)
    findings = examine()
    colours = {"ok": "green", "missing": "red", "optional": "yellow"}
    for item in findings:
        table.add_row(
            item.what, escape(item.found), f"[{colours[item.verdict]}]{item.verdict}[/] {escape(item.advice)}"
        )
    console.print(table)
    raise typer.Exit(1 if any(item.verdict == "missing" for item in findings) else 0)
