"""Live progress of a command, and the summary at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from csst_dask.pipeline.summary import Summary

console = Console()

QUIET_SECONDS = 30.0
"""Between two lines of progress where there is no terminal."""


SHOWN = 5
"""Chips and reasons that a summary names."""


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


def print_summary(summaries: dict[str, Summary]) -> None:
    """Print one screen of what was done, by stage."""
    table = Table(box=None, pad_edge=False)
    headings = ("stage", "done", "rejected", "failed", "given up", "already done", "seconds", "chips/s")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, summary in summaries.items():
        rate = f"{summary.done / summary.seconds:.2f}" if summary.seconds and summary.done else ""
        counts = (summary.done, summary.rejected, summary.failed, summary.given_up, summary.skipped)
        table.add_row(name, *map(str, counts), f"{summary.seconds:.1f}", rate)
    console.print(table)
    peak = max((summary.tasks.peak_memory for summary in summaries.values()), default=0)
    if peak:
        say(f"largest worker: {peak / 1e9:.2f} GB of memory")
    lost = sum(tasks.lost_workers for tasks in {id(s.tasks): s.tasks for s in summaries.values()}.values())
    if lost:
        say(f"{lost} {'worker was' if lost == 1 else 'workers were'} lost; what they had was done again")
    for name, summary in summaries.items():
        if summary.files:
            say(f"{name}: {summary.files} inputs gave no chip")
        if summary.changed:
            some = ", ".join(summary.changed[:SHOWN]) + (", ..." if len(summary.changed) > SHOWN else "")
            many = len(summary.changed)
            say(
                f"{name}: {many} {'chip has' if many == 1 else 'chips have'} changed since ingested ({some}); "
                "--update takes them up"
            )
        for reason, count in summary.reasons.most_common(SHOWN):
            say(f"{name}: {count} x {reason}")
        for remark in summary.remarks:
            say(f"{name}: {remark}")


def say(line: str) -> None:
    """Print a line as it is, whatever its width."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)
