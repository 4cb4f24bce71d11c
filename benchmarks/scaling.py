"""How the pipeline scales, what it moves, and what the scheduler costs, measured side by side on one machine.

``python benchmarks/scaling.py [--chips 16] [--tasks 100000] [--out costs.json]`` prints tables and writes what
``csst-dask plan --costs`` reads. It simulates its own full-size exposures (0.85 GB a chip in
TMPDIR, removed at the end). Ray Data is compared where it can be imported.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from distributed import Client
from plain_loop import predict_file, warm_up
from rich.console import Console
from rich.table import Table

from csst_dask.capacity import Costs
from csst_dask.config import Config, build_config
from csst_dask.inference.batching import CPU_BATCH
from csst_dask.runners.cluster import connect
from csst_dask.runners.fused import process_survey
from csst_dask.runners.ingest import ingest_survey
from csst_dask.runners.predict import predict_survey
from csst_dask.runners.window import Task, run_tasks

DETECTORS = (6, 7, 8, 9, 11, 12, 13, 14)
"""Eight chips of an exposure, in six bands."""
console = Console(width=120)


@dataclass(frozen=True)
class Used:
    """What some processes used."""

    wall: float
    """s."""
    cpu: float
    """s."""
    read: int
    """Bytes, from page cache or disk."""
    written: int
    memory: int
    """Resident bytes of the largest."""


def usage() -> tuple[float, int, int, int]:
    """CPU time, bytes read and written, and resident memory of this process."""
    process = psutil.Process()
    cpu, io = process.cpu_times(), process.io_counters()
    return cpu.user + cpu.system, io.read_chars, io.write_chars, process.memory_info().rss


@contextmanager
def measured(client: Client, found: list[Used]) -> Iterator[None]:
    """Note what the workers of a cluster use in a block."""
    before, start = client.run(usage), time.perf_counter()
    yield
    wall, after = time.perf_counter() - start, client.run(usage)
    cpu, read, written = (sum(after[w][k] - before[w][k] for w in before) for k in range(3))
    found.append(Used(wall, cpu, int(read), int(written), max(values[3] for values in after.values())))


def configuration(pixels: str = "none") -> Config:
    """Default settings, but for what is kept."""
    return build_config({"ingest": {"pixels": pixels, "truth": False}}, "benchmark")


def simulate(folder: Path, chips: int) -> Path:
    """Exposures of crowded and empty fields, full size."""
    out = folder / "exposures"
    words = ["simulate", "--out", str(out), "--region", "demo", "--exposures", str(-(-chips // len(DETECTORS)))]
    words += ["--detectors", ",".join(map(str, DETECTORS)), "--seed", "5", "--workers", "2"]
    subprocess.run([sys.executable, "-m", "csst_dask", *words], check=True, stdout=subprocess.DEVNULL)
    return out


def nothing(chips: object) -> object:
    """A task that costs nothing."""
    return chips


def no_ops(tasks: int, chips: int) -> list[list[str]]:
    """Cost of the scheduler and the client for a task, and their memory on the way.

    The scheduler and two workers are processes of their own.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        base = [sys.executable, "-m"]
        head = subprocess.Popen(
            [*base, "distributed.cli.dask_scheduler", "--scheduler-file", str(file), "--host", "127.0.0.1",
             "--port", "0", "--no-dashboard"], stderr=subprocess.DEVNULL,
        )  # fmt: skip
        words = ["distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--nworkers", "2"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        workers = subprocess.Popen(
            [*base, *words, "--no-dashboard", "--local-directory", folder], stderr=subprocess.DEVNULL, env=environment
        )
        try:
            while not file.exists() or not file.stat().st_size:
                time.sleep(0.1)
            scheduler, own = psutil.Process(head.pid), psutil.Process()
            with Client(scheduler_file=str(file)) as client:
                client.wait_for_workers(2)
                for number in sorted({1000, max(tasks // 10, 1000), tasks}):
                    names = (Task(str(k), (k,), k, chips) for k in range(0, number * chips, chips))
                    memory, start = [own.memory_info().rss], time.perf_counter()
                    before = [sum(p.cpu_times()[:2]) for p in (scheduler, own)]
                    for done, _ in enumerate(run_tasks(client, "noop", nothing, names)):
                        if done % max(number // 10, 1) == 0:
                            memory.append(own.memory_info().rss)
                    wall = time.perf_counter() - start
                    cpu = [sum(p.cpu_times()[:2]) - b for p, b in zip((scheduler, own), before, strict=True)]
                    rows.append(
                        [f"{number * chips}", f"{chips}", f"{number / wall:.0f}", f"{1e3 * cpu[0] / number:.2f}",
                         f"{1e3 * cpu[1] / number:.2f}", f"{memory[1] / 1e6:.0f} to {max(memory[1:]) / 1e6:.0f}",
                         f"{scheduler.memory_info().rss / 1e6:.0f}"]
                    )  # fmt: skip
                    CENTRAL[chips] = sum(cpu) / number / chips
        finally:
            workers.terminate()
            workers.wait()
            head.terminate()
            head.wait()
    return rows


CENTRAL: dict[int, float] = {}
"""CPU time of scheduler and client for a chip, by chips of a task, s."""


def runs(files: list[Path], folder: Path, workers: int, parts: list[int]) -> list[Used]:
    """The fused run on some of the files, after one that warms up."""
    config, found = configuration(), []
    client = connect(workers=workers, quiet=True)
    try:
        client.wait_for_workers(workers)
        process_survey(client, files[: 3 * workers], str(folder / "warm.zarr"), config)
        # every worker, whoever got the block
        client.run(lambda: warm_up())
        for k, number in enumerate(parts):
            with measured(client, found):
                summaries = process_survey(client, files[: 3 * number], str(folder / f"{k}.zarr"), config)
            assert summaries[0].done == summaries[1].done == number, summaries
            shutil.rmtree(folder / f"{k}.zarr")
    finally:
        client.close()
        shutil.rmtree(folder / "warm.zarr")
    return found


def stages(files: list[Path], folder: Path, chips: int) -> dict[str, tuple[Used, int]]:
    """What each stage uses, and the bytes that the store has afterwards."""
    found: dict[str, tuple[Used, int]] = {}
    client = connect(workers=1, quiet=True)
    try:
        client.run(lambda: warm_up())
        for pixels in ("none", "quantised", "lossless"):
            config, store, used = configuration(pixels), folder / f"{pixels}.zarr", []
            ingest_survey(client, files[:3], str(folder / "warm.zarr"), config)
            with measured(client, used):
                ingest_survey(client, files[: 3 * chips], str(store), config)
            size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
            found[pixels] = used[0], size
            if pixels == "none":
                with measured(client, used):
                    predict_survey(client, str(store), config)
                found["predict"] = used[1], 0
            shutil.rmtree(store)
            shutil.rmtree(folder / "warm.zarr")
    finally:
        client.close()
    return found


def plain(images: list[str], workers: int) -> float:
    """Wall time of the loop that one writes first, its workers warm."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(warm_up, range(4 * workers), chunksize=1)
        start = time.perf_counter()
        answers = pool.map(predict_file, images, chunksize=1)
        wall = time.perf_counter() - start
    assert len(answers) == len(images)
    return wall


def with_ray(images: list[str], workers: int) -> float | None:
    """Wall time of the same functions under Ray Data; None where there is no Ray."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        console.print(f"Ray Data is left out: {error}")
        return None
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False

    class Predict:
        def __init__(self) -> None:
            warm_up()

        def __call__(self, row: dict) -> dict:
            return {"path": row["path"], "answer": predict_file(row["path"])}

    def chain(paths: list[str]) -> int:
        rows = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=len(paths))
        return len(rows.map(Predict, concurrency=workers).take_all())

    try:
        # actors start and load with the job: their time is taken from that of a job of one image for each
        start = time.perf_counter()
        chain(images[:workers])
        first = time.perf_counter() - start
        start = time.perf_counter()
        assert chain(images) == len(images)
        wall = time.perf_counter() - start
        return (wall - first) * len(images) / (len(images) - workers)
    finally:
        ray.shutdown()


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, default=16, help="full-size chips; a multiple of 8")
    parser.add_argument("--tasks", type=int, default=100_000, help="no-op tasks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["noop", "runs", "stages", "compare"])
    parser.add_argument("--out", type=Path, help="file for what csst-dask plan reads")
    given = parser.parse_args()

    def wanted(part: str) -> bool:
        return given.only in (None, part)

    cores = len(os.sched_getaffinity(0))
    console.print(f"{cores} cores, load average {os.getloadavg()[0]:.2f}")
    costs: dict = {}
    if wanted("noop"):
        rows = no_ops(given.tasks // CPU_BATCH, CPU_BATCH) + no_ops(given.tasks, 1)
        show(
            "tasks that do nothing, 2 workers",
            [
                "chips",
                "chips a task",
                "tasks/s",
                "scheduler, CPU ms a task",
                "client",
                "client memory, MB",
                "scheduler's",
            ],
            rows,
        )
        costs["central"] = CENTRAL[CPU_BATCH]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.only != "noop":
            source = simulate(folder, given.chips)
            images = sorted(map(str, source.rglob("*_img_*.fits*")))[: given.chips]
            files = [p for image in images for p in triplet(Path(image))]
        if wanted("runs"):
            half, rows = given.chips // 2, []
            for number in range(given.rounds):
                one_half, one_all = runs(files, folder, 1, [half, given.chips])
                (two_all,) = runs(files, folder, 2, [given.chips])
                rows.append(
                    [f"{number + 1}", f"{one_all.wall:.1f}", f"{two_all.wall:.1f}",
                     f"{one_all.wall / two_all.wall:.2f}",
                     f"{one_half.wall / two_all.wall:.2f}", f"{one_all.cpu / given.chips:.2f}",
                     f"{two_all.cpu / given.chips:.2f}", f"{two_all.memory / 1e9:.2f}"]
                )  # fmt: skip
                costs["memory"] = float(max(two_all.memory, costs.get("memory", 0)))
            show(
                f"fused run of {given.chips} chips, wall s with 1 and 2 workers; weak: {half} with 1 against "
                f"{given.chips} with 2",
                [
                    "round",
                    "1 worker",
                    "2",
                    "strong: speed-up",
                    "weak: efficiency",
                    "CPU s a chip, 1",
                    "2",
                    "worker, GB",
                ],
                rows,
            )
        if wanted("stages"):
            chips = min(given.chips, 8)
            found = stages(files, folder, chips)
            show(
                f"one worker, {chips} chips; a chip",
                ["stage", "CPU s", "wall s", "read, MB", "written, MB", "in the store, MB"],
                [[name if name == "predict" else f"ingest, pixels {name}", f"{u.cpu / chips:.3f}",
                  f"{u.wall / chips:.3f}",
                  f"{u.read / chips / 1e6:.1f}", f"{u.written / chips / 1e6:.2f}", f"{size / chips / 1e6:.2f}"]
                 for name, (u, size) in found.items()],
            )  # fmt: skip
            kinds = [name for name in found if name != "predict"]
            costs |= {
                "read": sum(path.stat().st_size for path in files) / len(images),
                "stored": {name: found[name][1] / chips for name in kinds},
                "ingest": {name: found[name][0].cpu / chips for name in kinds},
                "predict": found["predict"][0].cpu / chips,
            }
        if wanted("compare"):
            rows = []
            for number in range(given.rounds):
                (ours,) = runs(files, folder, 2, [given.chips])
                loop, ray = plain(images, 2), with_ray(images, 2)
                rows.append(
                    [f"{number + 1}", f"{given.chips / ours.wall:.2f}", f"{given.chips / loop:.2f}",
                     "" if ray is None else f"{given.chips / ray:.2f}", f"{loop / ours.wall:.2f}",
                     "" if ray is None else f"{ray / ours.wall:.2f}"]
                )  # fmt: skip
            show(
                f"{given.chips} chips on 2 processes, chips/s",
                ["round", "csst-dask run", "multiprocessing", "Ray Data", "loop / run", "Ray / run"],
                rows,
            )
    if given.out:
        given.out.write_text(Costs(**costs).dump())


def triplet(image: Path) -> list[Path]:
    """The three files of a chip, found by the image's name."""
    return [image, *(image.with_name(image.name.replace("_img_", f"_{kind}_")) for kind in ("wht", "flg"))]


if __name__ == "__main__":
    main()
