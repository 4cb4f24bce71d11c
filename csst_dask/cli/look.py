"""Commands that look: status, doctor."""

from __future__ import annotations

import json as jsons
from collections import Counter
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from csst_dask.cli.app import StoreOption, app, console

SHOWN = 50
"""Rejected chips that are listed one by one."""


def survey_status(store: str) -> dict[str, Any]:
    """How far a store is.

    Parameters
    ----------
    store : str

    Returns
    -------
    dict
        ``chips`` (count by status), ``predicted``, ``routes``, and lists of ``rejected`` and ``failed`` chips,
        ``notes`` on accepted ones, and ``files`` that gave no chip, each with its reason.
    """
    from csst_dask.errors import ConfigError
    from csst_dask.schema import STATUSES, ChipKey
    from csst_dask.store import predictions
    from csst_dask.store.survey import FILES, array_of, open_group, open_scalars

    scalars, group = open_scalars(store), open_group(store)
    status, reason = scalars["status"].values, scalars["reason"].values
    counts = Counter(status.tolist())

    def listed(wanted: Any) -> list[dict[str, Any]]:
        keys = zip(scalars["obs_id"].values, scalars["detector"].values, scalars["version"].values, strict=True)
        names = [str(ChipKey(str(obs), int(detector), int(version))) for obs, detector, version in keys]
        return [
            {
                "chip": names[row],
                "row": row,
                "source": str(scalars["source"].values[row]),
                "reason": str(reason[row]),
            }
            for row in range(len(names))
            if wanted(row)
        ]

    routes: dict[str, int] = {}
    try:
        found = predictions.read(store)
        routes = dict(Counter(name for name in found["route"].values.tolist() if name))
        predicted = int((found["density_class"].values >= 0).sum())
    except ConfigError:
        predicted = 0
    files = array_of(group, FILES)
    return {
        "store": store,
        "chips": {name: counts.get(name, 0) for name in STATUSES},
        "predicted": predicted,
        "routes": routes,
        "rejected": listed(lambda row: status[row] == "rejected"),
        "failed": listed(lambda row: status[row] == "pending" and reason[row]),
        "notes": listed(lambda row: status[row] in ("done", "superseded") and reason[row]),
        "files": [
            {"path": str(path), "reason": str(why)}
            for path, why in zip(array_of(files, "path")[:], array_of(files, "reason")[:], strict=True)
        ],
    }


@app.command()
def status(
    store: StoreOption,
    json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """How many chips of a store are done, rejected or pending, and why."""
    found = survey_status(store)
    if json:
        typer.echo(jsons.dumps(found, indent=1))
        return
    counts = ", ".join(f"{count} {name}" for name, count in found["chips"].items())
    console.print(f"{store}: {counts}; {found['predicted']} predicted", highlight=False, soft_wrap=True, markup=False)
    if found["routes"]:
        console.print(
            "routes: " + ", ".join(f"{n} {name}" for name, n in sorted(found["routes"].items())),
            highlight=False,
        )
    for heading, name in (
        ("rejected", "rejected"),
        ("failed, will be tried again", "failed"),
        ("noted", "notes"),
    ):
        for row in found[name][:SHOWN]:
            console.print(f"{heading}: {row['chip']}: {row['reason']}", highlight=False, soft_wrap=True, markup=False)
        if len(found[name]) > SHOWN:
            console.print(f"{heading}: {len(found[name]) - SHOWN} more; see --json", highlight=False)
    for row in found["files"][:SHOWN]:
        console.print(f"no chip: {row['path']}: {row['reason']}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def doctor() -> None:
    """What this machine can do, and what is missing."""
    from csst_dask.runners.doctor import examine

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
