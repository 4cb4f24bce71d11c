"""Speed, memory and accuracy of the pass over the pixels, side by side in one run and with the targets beside them.

Wall times on a shared machine move by factors; ratios of variants that take turns do not. Every group of variants
therefore runs round by round, and a ratio is the median over rounds of the ratio within a round. The unit is one
thread summing the same 9232 x 9216 float32 image. Prints a table; a missed target is no error.

Run as ``python benchmarks/bench.py [--rounds 9] [--quick] [--context]``. Files take 0.9 GB of the temporary folder
(TMPDIR).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
from memory import extra_memory
from naive import naive_file, naive_image, reference
from numpy.typing import NDArray
from real import (
    maps_of_file,
    maps_of_triplet,
    plan,
    read_files,
    render_and_reduce,
    stage_clock,
    store_without_pixels,
    triplet_to_store,
)
from rerun import time_rerun
from rich.console import Console
from rich.table import Table
from scaling_tasks import blocks, cluster, no_block, window

from csst_dask.config import Config, ExecutionConfig, MaskConfig
from csst_dask.evaluation.classical import count_sources
from csst_dask.inference.predictor import CPU_BATCH
from csst_dask.instrument.flags import mask_table
from csst_dask.preprocess import measure_image, standardised
from csst_dask.preprocess.inputs import SCALARS, make_context
from csst_dask.runners.networks import choose_pair
from csst_dask.schema import ChipFiles
from csst_dask.simulation.exposure import Chip, Exposure
from csst_dask.simulation.product import write_chip
from csst_dask.simulation.renderer import Renderer

G_BAND, I_BAND = 8, 7
STARS = 30_000
CROWDED = 200_000
EXPTIME = 150.0
BUFFER = 1 << 20
CONTEXT_STARS = (0, 300, 3e4, 2e5)
FULL_WELL = 600.0
"""Of the saturated test case, e-/s."""

Variants = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    value: str
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


@numba.njit(cache=True, nogil=True, fastmath=True, boundscheck=False)
def total(pixels):
    """Sum of a contiguous 1-D float32 array, in float32."""
    result = np.float32(0)
    for k in range(pixels.shape[0]):
        result += pixels[k]
    return result


def interleave(variants: Variants, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Wall seconds (rounds,) of every variant; they take turns, every second round in reverse."""
    for work in variants.values():
        work()
    seconds = {name: np.empty(rounds) for name in variants}
    for k in range(rounds):
        for name in reversed(variants) if k % 2 else variants:
            start = time.perf_counter()
            variants[name]()
            seconds[name][k] = time.perf_counter() - start
    return seconds


def ratio_row(
    what: str, seconds: NDArray[np.float64], unit: NDArray[np.float64], most: float | None = None, least: float = 0
) -> Row:
    """Fastest round and median ratio to the unit; the target is an upper or, for a speed-up, a lower bound."""
    ratio = float(np.median(unit / seconds if least else seconds / unit))
    target = f">= {least:g}" if least else "" if most is None else f"<= {most:g}"
    met = ratio >= least if least else None if most is None else ratio <= most
    return Row(what, f"{seconds.min() * 1e3:.1f} ms", ratio, target, met)


def memory_rows(image: NDArray[np.float32], mask: NDArray[np.uint8], pool: ThreadPoolExecutor, rounds: int) -> list:
    """Measuring a frame in memory against a sum of it."""
    flat, copy, swapped = image.ravel(), np.empty_like(image), image.astype(">f4")
    halves = np.array_split(flat, 2)
    seconds = interleave(
        {
            "sum": lambda: total(flat),
            "sum, 2 threads": lambda: list(pool.map(total, halves)),
            "copy": lambda: np.copyto(copy, image),
            "all": lambda: measure_image(image),
            "all, 2 threads": lambda: measure_image(image, threads=2),
            "flags": lambda: measure_image(image, mask),
            "swapped": lambda: measure_image(swapped),
        },
        rounds,
    )
    unit = seconds["sum"]
    return [
        ratio_row("sum, 1 thread (the unit)", unit, unit),
        ratio_row("sum, 2 threads", seconds["sum, 2 threads"], unit),
        ratio_row("copy", seconds["copy"], unit),
        ratio_row("measuring, 1 thread: block statistics, sky and peaks", seconds["all"], unit, 10.0),
        ratio_row("measuring, 2 threads", seconds["all, 2 threads"], unit, 10.0),
        ratio_row("measuring, 1 thread, uint8 flags", seconds["flags"], unit, 10.0),
        ratio_row("measuring, 1 thread, big-endian pixels", seconds["swapped"], unit, 10.0),
    ]


def crowded_rows(renderer: Renderer, rounds: int) -> list[Row]:
    """Measuring a frame of 2e5 stars and galaxies against a sum of it, and source extraction against both."""
    chip = renderer.render(plan(CROWDED, G_BAND, galaxies=True), G_BAND)
    mask = mask_table(MaskConfig().flag_bits)[chip.flags]
    seconds = interleave(
        {"sum": lambda: total(chip.image.ravel()), "all": lambda: measure_image(chip.image, mask)}, rounds
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        files = write_chip(chip, Path(folder))
        other = interleave(
            {
                "file": lambda: maps_of_triplet(files),
                "sep": lambda: count_sources(chip.image, mask, EXPTIME, "g"),
            },
            1,
        )
    return [
        ratio_row("measuring, 1 thread, 2e5 stars and uint8 flags", seconds["all"], seconds["sum"], 10.0),
        ratio_row("FITS to all of it: times faster than SEP", other["file"], other["sep"], least=25),
    ]


def naive_rows(image: NDArray[np.float32], path: str, rounds: int) -> list[Row]:
    """The naive pipeline over measuring, to the same two maps."""
    seconds = interleave(
        {
            "sum": lambda: total(image.ravel()),
            "memory": lambda: standardised(measure_image(image)),
            "file": lambda: standardised(maps_of_file(path)),
            "naive, memory": lambda: naive_image(image),
            "naive, file": lambda: naive_file(path),
        },
        rounds,
    )
    return [
        ratio_row("naive pipeline from memory, to the sum", seconds["naive, memory"], seconds["sum"]),
        ratio_row("naive pipeline from the file, to the sum", seconds["naive, file"], seconds["sum"]),
        ratio_row("measuring from memory: times faster", seconds["memory"], seconds["naive, memory"], least=20),
        ratio_row("FITS to maps: times faster", seconds["file"], seconds["naive, file"], least=20),
    ]


def file_rows(files: ChipFiles, rounds: int) -> list[Row]:
    """FITS to maps against reading the same bytes."""
    buffer = bytearray(BUFFER)
    with store_without_pixels(Path(files.image).parent) as writer:
        seconds = interleave(
            {
                "read": lambda: read_files(buffer, files.image),
                "maps": lambda: maps_of_file(files.image),
                "read three": lambda: read_files(buffer, files.image, files.weight, files.flag),
                "triplet": lambda: maps_of_triplet(files),
                "store": lambda: triplet_to_store(files, writer),
            },
            rounds,
        )
    return [
        ratio_row("reading the image file (the unit)", seconds["read"], seconds["read"]),
        ratio_row("FITS to maps: image", seconds["maps"], seconds["read"], 2.0),
        ratio_row("reading image, weight and flag file (the unit)", seconds["read three"], seconds["read three"]),
        ratio_row("FITS to maps: image, weights and flags", seconds["triplet"], seconds["read three"], 2.0),
        ratio_row(
            "the same into a store with masks, by reading and measuring", seconds["store"], seconds["triplet"], 1.5
        ),
    ]


def survey_rows(chips: int, tasks: int) -> list[Row]:
    """A rerun that finds nothing to do, and what scheduler and client take for blocks that cost nothing."""
    found = time_rerun(chips, Path(tempfile.gettempdir()))
    with cluster() as (client, scheduler):
        pair = choose_pair(client, Config())
        used = window(client, scheduler, "block", no_block, blocks(tasks, pair, ExecutionConfig().block), tasks)
    each = 1e6 * found["all"] / found["files"]
    return [
        Row(f"rerun with nothing to do, {chips} chips", f"{each:.1f} us a file", None, "<= 20 us", each <= 20),
        Row("openings of the store in it", f"{found['openings']:.0f}", None, "1", found["openings"] == 1),
        Row("scheduler, CPU a block", f"{1e3 * used.scheduler / used.tasks:.2f} ms"),
        Row("client, CPU a block", f"{1e3 * used.client / used.tasks:.2f} ms"),
    ]


def peak_rows(path: str) -> list[Row]:
    """Anonymous memory that one file takes on top of a loaded process."""
    maps, naive = extra_memory(path, "maps"), extra_memory(path, "naive")
    return [
        Row("peak extra memory, FITS to maps", f"{maps:.0f} MB", None, "<= 64 MB", maps <= 64),
        Row("peak extra memory, naive pipeline", f"{naive:.0f} MB"),
    ]


def error_cases(image: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Frames that are hard to standardise in float32, one at a time in the same memory."""
    rng, case = np.random.default_rng(1), image.copy()
    yield "plain", case
    case += np.float32(1e4)
    yield "offset 1e4", case
    np.copyto(case, image)
    case[rng.random(case.shape, np.float32) < 0.3] = np.nan
    yield "30 % NaN", case
    case.fill(np.nan)
    yield "all NaN", case
    case.fill(0.3)
    yield "constant", case
    np.copyto(case, image)
    for column in rng.integers(0, case.shape[1], 40):
        case[: case.shape[0] // 2, column] = FULL_WELL
    yield "saturated", case


def error_rows(image: NDArray[np.float32], quick: bool) -> list[Row]:
    """Largest deviation of standardised image and mask from float64."""
    rows = []
    for name, case in error_cases(image[:2308, :2304].copy() if quick else image):
        error = float(np.abs(standardised(measure_image(case)) - reference(case)).max())
        rows.append(Row(f"largest error: {name}", f"{error:.1e}", None, "<= 2e-06", error <= 2e-6))
    return rows


def simulator_rows(renderer: Renderer, quick: bool) -> list[Row]:
    """CPU time of rendering and reducing a chip, by stage: the better of two."""
    rows = []
    for band, detector in [("g", G_BAND)] if quick else [("g", G_BAND), ("i", I_BAND)]:
        for galaxies in (False, True):
            for wanted in (0, 1e5, 2e5):
                best, parts, stars = min(
                    (_simulate(renderer, plan(wanted, detector, galaxies), detector) for _ in range(2)),
                    key=lambda run: run[0],
                )
                limit = 1.5 if galaxies else 0.8
                target, met = (f"<= {limit} s CPU", best <= limit) if band == "g" else ("", None)
                what = f"simulate {band}, {stars} stars{' and galaxies' if galaxies else ''}: {parts}"
                rows.append(Row(what, f"{best:.2f} s", None, target, met))
    return rows


def _simulate(renderer: Renderer, exposure: Exposure, detector: int) -> tuple[float, str, int]:
    """CPU seconds, their parts, and the stars of the scene."""
    start = time.process_time()
    with stage_clock() as stages:
        chip = render_and_reduce(renderer, exposure, detector)
    seconds = time.process_time() - start
    stages["zeroing and reduction"] = seconds - sum(stages.values())
    parts = ", ".join(f"{name} {part:.2f}" for name, part in stages.items() if part >= 0.005)
    return seconds, parts, len(chip.scene.stars)


def context_rows(renderer: Renderer, rounds: int) -> list[Row]:
    """Statistics and histograms that the default networks see: CPU time of a chip in a batch as predict has it."""
    table = mask_table(MaskConfig().flag_bits)
    maps, scalars = [], []
    for stars in CONTEXT_STARS:
        chip = renderer.render(plan(stars, G_BAND, galaxies=True), G_BAND)
        reduced = measure_image(chip.image, table[chip.flags])
        maps.append(reduced.maps.astype(np.float32))
        scalars.append([getattr(reduced, name) for name in SCALARS])
    times = CPU_BATCH // len(maps)
    block, known = np.tile(maps, (times, 1, 1, 1)), dict(zip(SCALARS, np.tile(scalars, (times, 1)).T, strict=True))
    seconds = []
    for _ in range(rounds + 1):
        start = time.thread_time()
        make_context("context", block, known, ["g"] * len(block))
        seconds.append((time.thread_time() - start) / len(block))
    what = f"context of a chip with {', '.join(f'{stars:g}' for stars in CONTEXT_STARS)} stars, mean"
    return [Row(what, f"{min(seconds[1:]) * 1e3:.1f} ms CPU")]


def machine() -> str:
    """Processor, cores and load."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"{model}, {os.cpu_count()} cores, load average {load}"


def table_of(groups: list[list[Row]]) -> Table:
    """All rows, a rule between groups."""
    table = Table(title="9232 x 9216 float32 image")
    table.add_column("measurement", overflow="fold")
    for name in ("fastest", "median ratio", "target", "met"):
        table.add_column(name, justify="right", no_wrap=True)
    for rows in groups:
        for row in rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            met = "" if row.met is None else "[green]yes[/]" if row.met else "[red]no[/]"
            table.add_row(row.what, row.value, ratio, row.target, met)
        table.add_section()
    return table


def shared_chip(renderer: Renderer) -> tuple[Chip, NDArray[np.uint8]]:
    """The image that everything works on, and its mask."""
    chip = renderer.render(plan(STARS, G_BAND), G_BAND)
    return chip, mask_table(MaskConfig().flag_bits)[chip.flags]


def measure(rounds: int, quick: bool, only_context: bool = False) -> list[list[Row]]:
    """All groups of the table, or the one about the context."""
    renderer = Renderer()
    renderer.render(plan(10, G_BAND), G_BAND)
    context = context_rows(renderer, rounds)
    if only_context:
        return [context]
    chip, mask = shared_chip(renderer)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ThreadPoolExecutor(2) as pool:
        files = write_chip(chip, Path(folder))
        groups = [
            memory_rows(chip.image, mask, pool, rounds),
            crowded_rows(renderer, rounds),
            file_rows(files, rounds),
            naive_rows(chip.image, files.image, 1 if quick else 3),
            peak_rows(files.image),
        ]
    survey = survey_rows(10_000 if quick else 100_000, 400 if quick else 4000)
    return [*groups, survey, context, error_rows(chip.image, quick), simulator_rows(renderer, quick)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed, memory and accuracy of the pass over the pixels")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of every comparison")
    parser.add_argument("--quick", action="store_true", help="3 rounds, smaller error cases, one band to simulate")
    parser.add_argument("--context", action="store_true", help="only the context of the networks")
    options = parser.parse_args()
    console = Console(width=None if os.isatty(1) else 120)
    console.print(f"before: {machine()}")
    start = time.perf_counter()
    rounds = 3 if options.quick else max(options.rounds, 1)
    console.print(table_of(measure(rounds, options.quick, options.context)))
    console.print(f"after:  {machine()}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
