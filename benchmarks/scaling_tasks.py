"""What chips cost that cost nothing: scheduler and client, with tasks and answers as a run has them.

Scheduler and workers are processes of their own; memory is looked at on the way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
from distributed import Client

from csst_dask.config import ExecutionConfig, build_config
from csst_dask.inference.networks import ModelPair
from csst_dask.io.filenames import survey_name
from csst_dask.maps.density import AREAS, DensitySums
from csst_dask.pipeline.block import Block, BlockResult, Work
from csst_dask.pipeline.source import open_files
from csst_dask.runners import blocks as runner
from csst_dask.runners.blocks import block_task, divide
from csst_dask.runners.faults import Failure
from csst_dask.runners.networks import choose_pair
from csst_dask.runners.run import run_survey
from csst_dask.runners.window import Task, run_tasks
from csst_dask.schema import N_CLASSES, ChipFiles, ChipInfo, ChipKey, ChipResult
from csst_dask.store import SurveyStore
from csst_dask.store.layout import PREDICTED

DETECTORS = range(6, 24)
"""18 chips of an exposure."""
PRODUCTS = ("img", "wht", "flg")
CELLS = 20
"""Cells of nside 1024 that a chip touches."""
WIDE = 300
"""Tasks in flight for each worker where many workers are imitated: with two, as many as 200 workers have."""


@dataclass(frozen=True)
class Overhead:
    """What some chips took that are no work."""

    what: str
    chips: int
    tasks: int
    wall: float
    """s."""
    scheduler: float
    """CPU time, s."""
    client: float
    memory: list[int]
    """Resident bytes of the client: before, at each tenth of the way, and after."""
    scheduler_memory: int


def no_chip(number: int) -> int:
    """Do nothing."""
    return number


def no_block(block: Block, work: Work, limit: Callable | None = None) -> BlockResult:
    """Answer as `csst_dask.pipeline.block.process_block` does."""
    result = BlockResult()
    values = {v.name: np.ones(v.shape, v.dtype)[()] for v in PREDICTED if v.dims in ((), ("density_level",))}
    for row in block.read:
        corners = (1.0, 2.0, 3.0, 4.0)
        info = ChipInfo("g", 150.0, 61000.0, 1.0 + row % 359, 2.0, corners, corners, f"field-{row // 18}",
                        n_star=1, n_bright=1, pixel_mean=0.5, pixel_std=0.1, n_valid=85_000_000, sky_level=0.5,
                        sky_sigma=0.1)  # fmt: skip
        result.chips[row] = ChipResult("done", "", info)
        result.predictions[row] = dict(values)
        result.sums[row] = no_sums(row)
    return result


def no_sums(row: int) -> DensitySums:
    """Sums as a chip has them, of cells that it shares with its neighbours."""
    cell, ones = np.arange(CELLS, dtype=np.int64) + CELLS // 2 * (row % 100_000), np.ones(CELLS)
    index = np.full(CELLS, 2)
    return DensitySums(1024, index, cell, index, class_area=np.ones((CELLS, N_CLASSES)), **dict.fromkeys(AREAS, ones))


def chip_files(folder: Path, number: int) -> ChipFiles:
    """Files of the chip of a number; 18 make an exposure with a folder of its own."""
    exposure, place = divmod(number, len(DETECTORS))
    key = ChipKey(str(10_100_000_000 + exposure), DETECTORS[place], 1)
    names = (survey_name(key.obs_id, key.detector, "20270101000000", "20270101000230", product) for product in PRODUCTS)
    return ChipFiles(key, *(str(folder / key.obs_id / name) for name in names))


def bare(chips: int) -> Iterator[Task]:
    """A number in, a number out."""
    return (Task(str(k), (k,), k) for k in range(chips))


def blocks(chips: int, pair: ModelPair, size: int) -> Iterator[Task]:
    """A task for every few chips, as `csst_dask.runners.run` makes them."""
    work = Work("/survey/store.zarr", chips, build_config({}, "benchmark"), open_files, pair, 1024)
    for start in range(0, chips, size):
        rows = range(start, min(start + size, chips))
        read = {row: chip_files(Path("/survey/exposures"), row) for row in rows}
        for block in divide(size, read):
            yield block_task(block, work)


@contextmanager
def cluster(workers: int = 2) -> Iterator[tuple[Client, psutil.Process]]:
    """A client, and the scheduler's process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        start = [sys.executable, "-m"]
        common = ["--scheduler-file", str(file), "--no-dashboard"]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        }
        head = subprocess.Popen(
            [*start, "distributed.cli.dask_scheduler", *common, "--host", "127.0.0.1", "--port", "0"],
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        rest = ["--nthreads", "1", "--nworkers", str(workers), "--local-directory", folder]
        crew = subprocess.Popen(
            [*start, "distributed.cli.dask_worker", *common, *rest], stderr=subprocess.DEVNULL, env=environment
        )
        try:
            while not file.exists() or not file.stat().st_size:
                time.sleep(0.1)
            with Client(scheduler_file=str(file)) as client:
                client.wait_for_workers(workers)
                yield client, psutil.Process(head.pid)
        finally:
            for process in (crew, head):
                process.terminate()
                process.wait()


class Watch:
    """CPU time and memory of the scheduler and of this process, from its making on."""

    def __init__(self, scheduler: psutil.Process):
        self.processes = scheduler, psutil.Process()
        self.memory = [self.processes[1].memory_info().rss]
        self.before, self.start = self._cpu(), time.perf_counter()

    def _cpu(self) -> list[float]:
        return [sum(process.cpu_times()[:2]) for process in self.processes]

    def look(self) -> None:
        """Note the memory of this process."""
        self.memory.append(self.processes[1].memory_info().rss)

    def end(self, what: str, chips: int, tasks: int) -> Overhead:
        """What was used."""
        wall = time.perf_counter() - self.start
        scheduler, client = (now - then for now, then in zip(self._cpu(), self.before, strict=True))
        memory = self.processes[0].memory_info().rss
        return Overhead(what, chips, tasks, wall, scheduler, client, self.memory, memory)


def window(
    client: Client, scheduler: psutil.Process, what: str, function: Callable, tasks: Iterator[Task], chips: int,
    in_flight: int | None = None,
) -> Overhead:  # fmt: skip
    """Run tasks through the window, look at the memory at each tenth."""
    limits = ExecutionConfig(time_limit=None, **({"in_flight": in_flight} if in_flight else {}))
    get_ready(client)
    watch, count, done = Watch(scheduler), 0, 0
    for task, result in run_tasks(client, what, function, tasks, limits):
        assert not isinstance(result, Failure), result
        count, done = count + 1, done + task.chips
        if done * 10 // chips > (done - task.chips) * 10 // chips:
            watch.look()
    return watch.end(what, done, count)


def get_ready(client: Client) -> None:
    """Let workers import what tasks need, and the scheduler what it unpacks of them."""
    client.run(import_runner)
    client.run_on_scheduler(import_runner)


def import_runner() -> str:
    """Import what tasks need."""
    import csst_dask.pipeline.block
    import csst_dask.runners.guard

    return f"{csst_dask.pipeline.block.__name__} {csst_dask.runners.guard.__name__}"


def survey(client: Client, scheduler: psutil.Process, chips: int, folder: Path) -> Overhead:
    """A whole run, whose tasks do nothing, on empty files."""
    source = folder / "exposures"
    for number in range(chips):
        files = chip_files(source, number)
        if number % len(DETECTORS) == 0:
            os.makedirs(os.path.dirname(files.image))
        for path in files.paths():
            os.close(os.open(path, os.O_CREAT))
    settings = {"ingest": {"pixels": "none", "truth": False}, "map": {"out": str(folder / "map.zarr")}}
    config = build_config({"inputs": [str(source)], "store": str(folder / "survey.zarr"), **settings}, "benchmark")
    get_ready(client)
    watch, seen = Watch(scheduler), 0

    def progress(*_: str) -> None:
        nonlocal seen
        seen += 1
        if seen % max(chips // 10, 1) == 0:
            watch.look()

    with (
        patch.object(runner, "process_block", no_block),
        SurveyStore.write(str(config.store), config.ingest, config.mask) as store,
    ):
        summaries, _ = run_survey(client, store, config, lambda name: (progress, lambda total: None))
    assert {summary.done for summary in summaries.values()} == {chips}, summaries
    return watch.end("whole run", chips, -(-chips // config.execution.block))


def overheads(chips: int, singles: int) -> Iterator[Overhead]:
    """All of them, one after the other, each with a cluster of its own.

    Parameters
    ----------
    chips : int
        In blocks, and of a whole run.
    singles : int
        Tasks of one chip, and tasks that are a number.
    """
    size = ExecutionConfig().block
    with cluster() as (client, scheduler):
        pair = choose_pair(client, build_config({}, "benchmark"))
        for number in (chips // 100, chips // 10, chips):
            yield window(client, scheduler, "block of chips", no_block, blocks(number, pair, size), number)
    with cluster() as (client, scheduler):
        yield window(client, scheduler, "block, wide window", no_block, blocks(chips, pair, size), chips, WIDE)
    for number in (chips // 10, chips):
        with cluster() as (client, scheduler), tempfile.TemporaryDirectory() as name:
            yield survey(client, scheduler, number, Path(name))
    for what, function, make, number in (
        ("one chip", no_block, lambda number: blocks(number, pair, 1), singles // 10),
        ("a number", no_chip, bare, singles),
    ):
        with cluster() as (client, scheduler):
            yield window(client, scheduler, what, function, make(number), number)
