"""The fidelity report of the simulator, on the terminal."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from csst_dask.cli.app import UNEXPECTED, console


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
