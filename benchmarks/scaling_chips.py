"""What real chips take: full-size files, one and two workers, stage by stage, and beside a plain loop and Ray Data."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from distributed import Client
from plain_loop import predict_file, warm_up

from csst_dask.config import Config, build_config, with_settings
from csst_dask.pipeline.summary import Summary
from csst_dask.runners.cluster import connect
from csst_dask.runners.ingest import ingest_survey
from csst_dask.runners.predict import predict_survey
from csst_dask.runners.run import run_survey
from csst_dask.store import SurveyStore

DETECTORS = (6, 7, 8, 9, 11, 12, 13, 14)
"""Eight chips of an exposure, in six bands."""
STAGES = ("none", "quantised", "lossless")
LOOK = 0.2
"""Seconds between looks at the CPU time of processes, which may end."""


@dataclass(frozen=True)
class Used:
    """What some processes used."""

    wall: float
    """s."""
    cpu: float
    """s."""
    read: int = 0
    """Bytes, from page cache or disk."""
    written: int = 0
    memory: int = 0
    """Resident bytes of the largest."""


def simulate(folder: Path, chips: int) -> list[Path]:
    """Files of an exposure of full-size chips, under as many names as it takes; chip by chip, the image first."""
    out = folder / "exposures"
    words = ["simulate", "--out", str(out), "--region", "demo", "--exposures", "1", "--seed", "5", "--workers", "2"]
    words += ["--detectors", ",".join(map(str, DETECTORS))]
    subprocess.run([sys.executable, "-m", "csst_dask", *words], check=True, stdout=subprocess.DEVNULL)
    return linked(out, folder / "linked", chips)


def linked(source: Path, folder: Path, chips: int) -> list[Path]:
    """Give the files of one exposure other exposures' names, so that few files stand for many."""
    files = sorted(source.rglob("*_img_*.fits")) or sorted(source.rglob("*_img.fits"))
    found: list[Path] = []
    for number in range(chips):
        image, old = files[number % len(files)], files[0].parent.name
        new = f"{int(old) + number // len(files):0{len(old)}d}"
        (folder / new).mkdir(parents=True, exist_ok=True)
        for kind in ("img", "wht", "flg"):
            name = image.name.replace("_img", f"_{kind}")
            found.append(folder / new / name.replace(old, new))
            os.link(image.with_name(name), found[-1])
    return found


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


@contextmanager
def whole(found: list[Used]) -> Iterator[None]:
    """Note what this process and all below it use in a block, those too that end in it."""
    seen: dict[int, float] = {}
    done = threading.Event()

    def look() -> None:
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            try:
                seen[process.pid] = sum(process.cpu_times()[:2])
            except psutil.Error:
                continue

    def keep_looking() -> None:
        while not done.wait(LOOK):
            look()

    look()
    before, start = dict(seen), time.perf_counter()
    watch = threading.Thread(target=keep_looking)
    watch.start()
    try:
        yield
    finally:
        wall = time.perf_counter() - start
        done.set()
        watch.join()
    look()
    found.append(Used(wall, sum(cpu - before.get(pid, 0.0) for pid, cpu in seen.items())))


def configuration(pixels: str = "none") -> Config:
    """Default settings, but for what is kept."""
    return build_config({"ingest": {"pixels": pixels, "truth": False}}, "benchmark")


def run(client: Client, files: Sequence[Path], store: Path) -> dict[str, Summary]:
    """Files to a map in one pass; the map is thrown away."""
    out = store.with_name(f"{store.stem}-map.zarr")
    config = with_settings(configuration(), {"inputs": tuple(files), "map.out": out})
    with SurveyStore.write(str(store), config.ingest, config.mask) as opened:
        summaries, _ = run_survey(client, opened, config, lambda name: (lambda *chip: None, lambda total: None))
    shutil.rmtree(out)
    return summaries


@contextmanager
def warm(files: list[Path], folder: Path, workers: int) -> Iterator[Client]:
    """A cluster whose workers have loaded what they need."""
    client = connect(workers=workers, quiet=True)
    try:
        client.wait_for_workers(workers)
        run(client, files[:3], folder / "warm.zarr")
        # every worker, whoever got the block
        client.run(lambda: warm_up())
        yield client
    finally:
        client.close()
        shutil.rmtree(folder / "warm.zarr", ignore_errors=True)


def runs(files: list[Path], folder: Path, workers: int, parts: list[int]) -> list[Used]:
    """The fused run on some of the files; what its workers use."""
    found: list[Used] = []
    with warm(files, folder, workers) as client:
        for number in parts:
            with measured(client, found):
                summaries = run(client, files[: 3 * number], folder / "run.zarr")
            assert {summary.done for summary in summaries.values()} == {number}, summaries
            shutil.rmtree(folder / "run.zarr")
    return found


def stages(files: list[Path], folder: Path, chips: int) -> dict[str, tuple[Used, int]]:
    """What each stage uses, and the bytes that the store has afterwards."""
    found: dict[str, tuple[Used, int]] = {}
    with warm(files, folder, 1) as client:
        for pixels in STAGES:
            config, store, used = configuration(pixels), folder / f"{pixels}.zarr", []
            with measured(client, used), SurveyStore.write(str(store), config.ingest, config.mask) as opened:
                ingest_survey(client, opened, files[: 3 * chips], config)
            size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
            found[f"ingest, pixels {pixels}"] = used[0], size
            if pixels == "none":
                with measured(client, used), SurveyStore.write(str(store)) as opened:
                    predict_survey(client, opened, config)
                found["predict"] = used[1], 0
            shutil.rmtree(store)
    with warm(files, folder, 1) as client:
        used, store = [], folder / "run.zarr"
        with measured(client, used):
            run(client, files[: 3 * chips], store)
        found["run, pixels none"] = used[0], sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        shutil.rmtree(store)
    return found


def ours(files: list[Path], folder: Path, workers: int) -> tuple[Used, np.ndarray]:
    """The fused run, its client and scheduler too; logarithms of bright stars."""
    found: list[Used] = []
    with warm(files, folder, workers) as client:
        with whole(found):
            run(client, files, folder / "run.zarr")
        answers = SurveyStore.read(str(folder / "run.zarr")).predictions.column("log_bright")
        shutil.rmtree(folder / "run.zarr")
    return found[0], answers


def plain(images: Sequence[str], workers: int) -> tuple[Used, np.ndarray]:
    """The loop that one writes first, its workers warm."""
    found: list[Used] = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(warm_up, range(4 * workers), chunksize=1)
        with whole(found):
            answers = pool.map(predict_file, images, chunksize=1)
    return found[0], np.array([answer["log_bright"][0] for answer in answers])


def ray_is_here() -> str:
    """Nothing where Ray Data can be imported, else why not."""
    try:
        import ray.data
    except ImportError as error:
        return str(error)
    return "" if ray.data else "it is empty"


class Predict:
    """An actor of Ray Data that answers batches of one image."""

    def __init__(self) -> None:
        warm_up()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answers = [predict_file(str(path))["log_bright"][0] for path in batch["path"]]
        return {"path": batch["path"], "log_bright": np.array(answers)}


def with_ray(images: Sequence[str], workers: int) -> tuple[Used, np.ndarray]:
    """The same functions under Ray Data.

    Its actors start and load with each job: what a job of one image for each takes is subtracted. A first such job
    is not counted, since it fills the caches.
    """
    import ray
    import ray.data

    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=200_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    found: list[Used] = []

    def chain(some: Sequence[str]) -> np.ndarray:
        rows = ray.data.from_items([{"path": path} for path in some], override_num_blocks=len(some))
        batches = rows.map_batches(Predict, batch_size=1, compute=ray.data.ActorPoolStrategy(size=workers))
        with whole(found):
            answers = {row["path"]: row["log_bright"] for row in batches.take_all()}
        return np.array([answers[path] for path in some])

    try:
        for _ in range(2):
            chain(images[:workers])
        answers = chain(images)
    finally:
        ray.shutdown()
    _, start, everything = found
    scale = len(images) / (len(images) - workers)
    return Used((everything.wall - start.wall) * scale, (everything.cpu - start.cpu) * scale), answers
