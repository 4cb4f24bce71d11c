"""Live progress of a command, and the summary at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from csst_dask.cli.app import console
from csst_dask.runners.ledger import Summary

QUIET_SECONDS = 20.0
"""Between two lines of progress where there is no terminal."""


class Stages:
    """One progress bar a stage; a line now and then where the output is not a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, name: str) -> tuple[Callable[[str, str, str], None], Callable[[int], None]]:
        """Start a stage; returns what to call for each chip, and with the number of chips."""
        bar = self._progress.add_task(name, total=None)
        state = {"count": 0, "total": 0, "said": time.monotonic()}

        def expect(total: int) -> None:
            state["total"] = total
            self._progress.update(bar, total=total)
            if not console.is_terminal and total:
                console.print(f"{name}: {total} to do", highlight=False)

        def advance(chip: str, status: str, reason: str) -> None:
            state["count"] += 1
            self._progress.advance(bar)
            if status not in ("done",):
                console.print(f"{name}: {chip} {status}: {reason}", highlight=False, soft_wrap=True, markup=False)
            if not console.is_terminal and time.monotonic() - state["said"] > QUIET_SECONDS:
                state["said"] = time.monotonic()
                console.print(f"{name}: {state['count']:.0f} of {state['total']:.0f}", highlight=False)

        return advance, expect


def print_summary(summaries: dict[str, Summary], outputs: dict[str, object]) -> int:
    """Print one screen of what was done; returns the exit status."""
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "done", "rejected", "failed", "already done", "seconds", "chips/s"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, summary in summaries.items():
        rate = f"{summary.done / summary.seconds:.2f}" if summary.seconds and summary.done else ""
        counts = (summary.done, summary.rejected, summary.failed, summary.skipped)
        table.add_row(name, *map(str, counts), f"{summary.seconds:.1f}", rate)
    console.print(table)
    peak = max((summary.effort.peak_memory for summary in summaries.values()), default=0)
    if peak:
        console.print(f"largest worker: {peak / 1e9:.2f} GB of memory", highlight=False)
    lost = sum(summary.effort.lost_workers for summary in {id(s.effort): s for s in summaries.values()}.values())
    if lost:
        were = "worker was" if lost == 1 else "workers were"
        console.print(f"{lost} {were} lost; what they had was done again", highlight=False)
    for name, summary in summaries.items():
        if summary.files:
            console.print(f"{name}: {summary.files} inputs gave no chip", highlight=False)
        for reason, count in summary.reasons.most_common(5):
            console.print(f"{name}: {count} x {reason}", highlight=False, soft_wrap=True, markup=False)
    for what, where in outputs.items():
        console.print(f"{what}: {where}", highlight=False, soft_wrap=True, markup=False)
    statuses = {summary.exit_status for summary in summaries.values()}
    return 1 if 1 in statuses else 3 if 3 in statuses else 0
