"""How the pipeline scales, what it moves, and what scheduler and client cost, measured side by side on one machine.

``python benchmarks/scaling.py [PART...] [--chips 16] [--tasks 100000] [--out costs.json]`` prints tables and writes
what ``csst-dask plan --costs`` reads; parts that are measured one by one go into the same file. Full-size chips are
simulated first (eight, 7 GB in TMPDIR, removed at the end) and given more names. Ray Data is compared where it can be
imported.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scaling_chips import STAGES, linked, ours, plain, ray_is_here, runs, simulate, stages, with_ray
from scaling_tasks import overheads

from csst_dask.capacity import GB, MB, Costs

PARTS = ("tasks", "runs", "stages", "compare")
WORKERS = 2
CLOSE = 1e-4
"""Logarithms of star counts of the loops and the run agree to this."""
console = Console(width=120)


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def measure_tasks(chips: int, singles: int) -> dict:
    """Chips that cost nothing: what is left is the scheduler and the client."""
    rows, runs_of_survey = [], []
    for used in overheads(chips, singles):
        memory = [f"{number / MB:.0f}" for number in used.memory]
        rows.append(
            [used.what, f"{used.chips}", f"{used.tasks}", f"{used.tasks / used.wall:.0f}",
             f"{1e3 * used.scheduler / used.tasks:.2f}", f"{1e3 * used.client / used.tasks:.2f}",
             f"{1e3 * used.scheduler / used.chips:.2f}", f"{1e3 * used.client / used.chips:.2f}",
             f"{memory[0]}, {memory[1]} .. {memory[-1]}", f"{used.scheduler_memory / MB:.0f}"]
        )  # fmt: skip
        console.print(rows[-1][0], *rows[-1][1:3], "client, MB:", *memory, highlight=False)
        if used.what == "whole run":
            runs_of_survey.append(used)
    show(
        "tasks that do nothing on two workers; CPU ms, client's memory MB before, at a tenth and at the end",
        [
            "task",
            "chips",
            "tasks",
            "tasks/s",
            "scheduler a task",
            "client",
            "a chip",
            "client",
            "client, MB",
            "scheduler",
        ],
        rows,
    )
    small, large = runs_of_survey
    grown = max(large.memory) - max(small.memory)
    return {
        "scheduler": large.scheduler / large.chips,
        "client": large.client / large.chips,
        "client_memory": max(grown, 0) / (large.chips - small.chips),
    }


def measure_runs(files: list[Path], folder: Path, chips: int, rounds: int) -> dict:
    """Strong and weak scaling of the fused run."""
    half, rows, memory = chips // 2, [], 0
    for number in range(1, rounds + 1):
        one_half, one_all = runs(files, folder, 1, [half, chips])
        (two_all,) = runs(files, folder, WORKERS, [chips])
        memory = max(memory, two_all.memory, one_all.memory)
        rows.append(
            [f"{number}", f"{one_half.wall:.1f}", f"{one_all.wall:.1f}", f"{two_all.wall:.1f}",
             f"{one_all.wall / two_all.wall:.2f}", f"{one_half.wall / two_all.wall:.2f}",
             f"{one_half.cpu / half:.2f}", f"{one_all.cpu / chips:.2f}", f"{two_all.cpu / chips:.2f}",
             f"{memory / GB:.2f}", f"{os.getloadavg()[0]:.1f}"]
        )  # fmt: skip
        console.print("round", *rows[-1], highlight=False)
    show(
        f"fused run: {half} chips on 1 worker, {chips} on 1, {chips} on 2",
        ["round", "wall s", "wall s", "wall s", "strong: speed-up", "weak: efficiency", "CPU s a chip", "CPU", "CPU",
         "worker, GB", "load"],
        rows,
    )  # fmt: skip
    return {"worker_memory": float(memory)}


def measure_stages(files: list[Path], folder: Path, chips: int) -> dict:
    """What each stage uses and moves."""
    found = stages(files, folder, chips)
    show(
        f"one worker, {chips} chips; a chip",
        ["stage", "CPU s", "wall s", "read, MB", "written, MB", "in the store, MB"],
        [
            [name, f"{used.cpu / chips:.3f}", f"{used.wall / chips:.3f}", f"{used.read / chips / MB:.1f}",
             f"{used.written / chips / MB:.2f}", f"{size / chips / MB:.2f}"]
            for name, (used, size) in found.items()
        ],
    )  # fmt: skip
    ingest = {kind: found[f"ingest, pixels {kind}"] for kind in STAGES}
    sizes = [[path.stat().st_size for path in files[kind : 3 * chips : 3]] for kind in range(3)]
    return {
        "read": {name: float(np.mean(some)) for name, some in zip(("image", "weights", "flags"), sizes, strict=True)},
        "written": {kind: used.written / chips for kind, (used, _) in ingest.items()},
        "ingest": {kind: used.cpu / chips for kind, (used, _) in ingest.items()},
        "predict": found["predict"][0].cpu / chips,
    }


def compare(files: list[Path], folder: Path, rounds: int) -> None:
    """The fused run, a plain loop and Ray Data: the same files, reduction and networks, one after the other."""
    images = [str(path) for path in files[::3]]
    if missing := ray_is_here():
        console.print(f"Ray Data is left out: it cannot be imported here ({missing})")
    rows = []
    for number in range(1, rounds + 1):
        (run, expected), (loop, answers) = ours(files, folder, WORKERS), plain(images, WORKERS)
        np.testing.assert_allclose(answers, expected, atol=CLOSE)
        row = [f"{number}", f"{run.wall:.1f}", f"{loop.wall:.1f}", "", f"{run.cpu / len(images):.2f}",
               f"{loop.cpu / len(images):.2f}", "", f"{loop.cpu / run.cpu:.2f}", ""]  # fmt: skip
        if not missing:
            ray, answers = with_ray(images, WORKERS)
            np.testing.assert_allclose(answers, expected, atol=CLOSE)
            row[3], row[6], row[8] = f"{ray.wall:.1f}", f"{ray.cpu / len(images):.2f}", f"{ray.cpu / run.cpu:.2f}"
        rows.append([*row, f"{os.getloadavg()[0]:.1f}"])
        console.print("round", *rows[-1], highlight=False)
    show(
        f"{len(images)} chips on {WORKERS} processes: csst-dask run, a multiprocessing loop, Ray Data",
        [
            "round",
            "run, wall s",
            "loop",
            "Ray",
            "run, CPU s a chip",
            "loop",
            "Ray",
            "loop / run, CPU",
            "Ray / run",
            "load",
        ],
        rows,
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--chips", type=int, default=16, help="full-size chips; a multiple of 16")
    parser.add_argument("--stage-chips", type=int, default=8, help="full-size chips of each stage")
    parser.add_argument("--tasks", type=int, default=100_000, help="chips that cost nothing")
    parser.add_argument("--singles", type=int, default=10_000, help="tasks that are a number; a tenth of them chips")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exposures", type=Path, help="folder with eight full-size chips, instead of simulating them")
    parser.add_argument("--out", type=Path, help="file for what csst-dask plan reads")
    given = parser.parse_args()
    parts = given.parts or PARTS
    if wrong := set(parts) - set(PARTS):
        parser.error(f"found {', '.join(sorted(wrong))}; expected some of {', '.join(PARTS)}")
    console.print(f"{len(os.sched_getaffinity(0))} cores, load average {os.getloadavg()[0]:.1f}", highlight=False)
    known = vars(Costs.load(given.out)) if given.out and given.out.exists() else {}

    def keep(costs: dict) -> None:
        known.update(costs)
        if given.out:
            given.out.write_text(Costs(**known).dump())

    if "tasks" in parts:
        keep(measure_tasks(given.tasks, given.singles))
    if set(parts) - {"tasks"}:
        near = given.exposures.parent if given.exposures else None  # hard links stay on one file system
        with tempfile.TemporaryDirectory(dir=near) as name:
            folder = Path(name)
            files = (
                linked(given.exposures, folder / "linked", given.chips)
                if given.exposures
                else simulate(folder, given.chips)
            )
            if "runs" in parts:
                keep(measure_runs(files, folder, given.chips, given.rounds))
            if "stages" in parts:
                keep(measure_stages(files, folder, min(given.stage_chips, given.chips)))
            if "compare" in parts:
                compare(files, folder, given.rounds)


if __name__ == "__main__":
    main()
