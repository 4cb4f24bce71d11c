"""Whole runs that something happens to: the result is that of an undisturbed one, or a message says what is missing."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from conftest import EXPOSURES, assert_same_result
from distributed import Client, LocalCluster
from s3_server import Bucket
from whole_run import COMMAND, assert_same_run, configuration, run

from csst_dask.config import Config, with_settings
from csst_dask.pipeline.block import process_block
from csst_dask.runners import blocks
from csst_dask.runners.run import run_survey
from csst_dask.runners.settings import SETTINGS
from csst_dask.store import SurveyStore

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

CHIPS = 2 * EXPOSURES
QUICK = {"AWS_MAX_ATTEMPTS": "1"}
"""The client library itself does not try again: the run does."""
PATIENT = 300.0
"""Seconds in which what a test waits for must come."""


@contextmanager
def started(words, **options):
    """A process of its own group, ended with the block whatever happens."""
    process = subprocess.Popen(words, start_new_session=True, **options)
    try:
        yield process
    finally:
        leave(process)


def leave(process) -> None:
    """A node that is gone: everything on it dies at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def until(condition, process=None):
    """Wait for something; the process must live as long."""
    deadline = time.monotonic() + PATIENT
    while not (found := condition()):
        assert process is None or process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
    return found


def block_stats(folder: Path) -> int:
    """Chips whose maps are in the store."""
    return sum(1 for _ in (folder / "survey.zarr" / "block_stats" / "c").glob("*"))


def pending(folder: Path) -> int:
    """Chips of a run that it has not finished."""
    return int((SurveyStore.read(folder / "survey.zarr").scalars()["status"].values == "pending").sum())


def workers_of(process) -> list[psutil.Process]:
    """Worker processes under one that has nannies."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def cluster(tmp_path):
    """Starts a scheduler, and workers, each as if on a node of its own."""
    file = tmp_path / "scheduler.json"
    environment = os.environ | {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "4s"}
    options = {"env": environment, "stderr": subprocess.DEVNULL}
    with ExitStack() as stack:

        def start(part, *words):
            command = [sys.executable, "-m", f"distributed.cli.dask_{part}", "--scheduler-file", str(file), *words]
            return stack.enter_context(started([*command, "--no-dashboard"], **options))

        def scheduler():
            file.unlink(missing_ok=True)
            process = start("scheduler", "--host", "127.0.0.1", "--port", "0")
            until(lambda: file.exists() and file.stat().st_size, process)
            return process

        def worker():
            return start("worker", "--nthreads", "1", "--local-directory", str(tmp_path), "--death-timeout", "60")

        yield file, scheduler, worker


def test_twenty_workers_killed_in_a_run(tmp_path, write_exposures, weights):
    """Every kill hits a worker that has done something since the last one, at a random moment."""
    exposures = tmp_path / "exposures"
    exposures.mkdir()
    write_exposures(exposures, exposures=80)
    one_by_one = {"inference": {"weights": str(weights), "batch": 1}}
    quiet, killed = tmp_path / "quiet", 0
    assert run(configuration(quiet, exposures, weights, **one_by_one)).returncode == 0
    folder, rng = tmp_path / "run", random.Random(1)
    config = configuration(folder, exposures, weights, **one_by_one)
    seen: set[int] = set()

    def workers():
        found = workers_of(process)
        seen.update(worker.pid for worker in found)
        return found

    with started([*COMMAND, "run", str(config), "--workers", "2"], stdout=subprocess.PIPE, text=True) as process:
        while killed < 20:
            before = block_stats(folder)
            until(lambda: workers() and block_stats(folder) > before, process)  # noqa: B023
            time.sleep(rng.uniform(0, 0.05))
            rng.choice(until(workers, process)).kill()
            killed += 1
        while process.poll() is None:
            workers()
            time.sleep(0.05)
        said = process.stdout.read()
    assert process.returncode == 0, said
    lost = re.search(r"(\d+) workers? (was|were) lost; what they had was done again", said)
    assert lost, said
    # some die between two tasks; others are ended by Dask, which replaces one that is missing when it looks
    assert 1 <= int(lost[1]) < len(seen)
    assert_same_run(quiet, folder)


def test_a_node_leaves_in_the_middle_of_a_batch(cluster, tmp_path, exposures, weights, undisturbed):
    file, scheduler, worker = cluster
    scheduler()
    staying, leaving = worker(), worker()
    folder = tmp_path / "run"
    config = configuration(folder, exposures, weights)
    with started([*COMMAND, "run", str(config), "--scheduler-file", str(file)]) as process:
        until(lambda: block_stats(folder) >= 2, process)
        leave(leaving)
        process.wait(PATIENT)
    assert process.returncode == 0
    assert staying.poll() is None
    assert_same_run(undisturbed, folder)


def test_the_client_is_killed_and_another_joins_the_same_workers(cluster, tmp_path, exposures, weights, undisturbed):
    """What the workers were at when their client died does no harm, and the next client goes on."""
    file, scheduler, worker = cluster
    processes = [scheduler(), worker(), worker()]
    folder = tmp_path / "run"
    config = configuration(folder, exposures, weights)
    with started([*COMMAND, "run", str(config), "--scheduler-file", str(file)]) as process:
        until(lambda: block_stats(folder) >= 2, process)
        process.kill()
        process.wait()
    assert pending(folder)
    again = run(config, "--scheduler-file", str(file))
    assert again.returncode == 0, again.stdout + again.stderr
    assert all(one.poll() is None for one in processes)
    assert_same_run(undisturbed, folder)


def test_a_worker_hangs(cluster, tmp_path, exposures, weights, undisturbed):
    file, scheduler, worker = cluster
    scheduler()
    nannies = [worker(), worker()]
    folder = tmp_path / "run"
    config = configuration(folder, exposures, weights)
    with started([*COMMAND, "run", str(config), "--scheduler-file", str(file)]) as process:
        until(lambda: block_stats(folder) >= 2, process)
        frozen = until(lambda: workers_of(nannies[0]))[0]
        frozen.suspend()
        process.wait(PATIENT)
    assert process.returncode == 0
    assert_same_run(undisturbed, folder)
    until(lambda: not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE)


DEADLY = 9
"""Row of a chip that ends the process that works on it."""


def deadly_block(block, work, limit):
    """Process a block; runs on workers, where the package is as it is."""
    if DEADLY in block.read:
        os.kill(os.getpid(), signal.SIGKILL)
    return process_block(block, work, limit)


def greedy_block(block, work, limit):
    """Process a block, with a chip that takes all memory that it can get."""
    if DEADLY in block.read:
        taken = []
        while True:
            taken.append(np.ones(10_000_000))
            time.sleep(0.01)
    return process_block(block, work, limit)


@pytest.fixture(scope="module")
def narrow():
    """A worker that is ended when it needs more than 1.5 GB."""
    with dask.config.set(SETTINGS | {"distributed.worker.memory.terminate": 0.9}), LocalCluster(
        n_workers=1, threads_per_worker=1, memory_limit="1.5GB", host="127.0.0.1", dashboard_address=":0",
        silence_logs=50,
    ) as cluster, Client(cluster) as client:  # fmt: skip
        yield client


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (deadly_block, "killed its process by SIGKILL, 2 times on its own"),
        (greedy_block, "needed more than the 1.50 GB"),
    ],
)
def test_a_chip_that_ends_its_process_has_failed_and_all_others_are_done(
    narrow, tmp_path, exposures, weights, small, undisturbed, monkeypatch, function, words
):
    """The machine may be at fault: other runs try again, and one on a better machine ends as if nothing had been."""
    settings = {
        "inference.weights": weights,
        "inference.batch": 2,
        "execution.worker_losses": 1,
        "execution.process_deaths": 2,
    }
    settings |= {"inputs": [exposures], "map.out": tmp_path / "map.zarr", "map.nside": 4096}
    config, path = with_settings(Config(), {**small, **settings}), str(tmp_path / "survey.zarr")

    def go():
        with SurveyStore.write(path, config.ingest, config.mask) as store:
            summaries, _ = run_survey(narrow, store, config, lambda name: (None, None))
            return summaries["ingest"], summaries["predict"]

    monkeypatch.setattr(blocks, "process_block", function)
    ingested, predicted = go()
    store = SurveyStore.read(path)
    scalars, found = store.scalars(), store.predictions.scalars()
    status = scalars["status"].values
    [bad] = np.flatnonzero(status != "done")
    assert bad == DEADLY
    assert (status[bad], found["route"].values[bad]) == ("failed", "invalid")
    assert words in str(scalars["reason"].values[bad])
    assert (found["density_class"].values >= 0).tolist() == (status == "done").tolist()
    assert (ingested.done, ingested.rejected, ingested.failed, predicted.done) == (CHIPS - 1, 0, 1, CHIPS - 1)
    assert ingested.exit_status == 1
    monkeypatch.undo()
    again, _ = go()
    assert (again.done, again.failed, again.skipped, again.exit_status) == (1, 0, CHIPS - 1, 0)
    assert_same_result(path, str(undisturbed / "survey.zarr"))


def test_the_scheduler_is_killed(cluster, tmp_path, exposures, weights, undisturbed):
    file, scheduler, worker = cluster
    head = scheduler()
    worker()
    folder = tmp_path / "run"
    config = configuration(folder, exposures, weights)
    words = [*COMMAND, "run", str(config), "--scheduler-file", str(file)]
    with started(words, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: block_stats(folder) >= 2, process)
        leave(head)
        _, said = process.communicate(timeout=PATIENT)
    assert process.returncode == 1
    assert "scheduler" in said
    assert "run the same command again" in said
    assert "Traceback" not in said, said
    assert pending(folder)
    scheduler()
    worker()
    again = run(config, "--scheduler-file", str(file))
    assert again.returncode == 0, again.stdout + again.stderr
    assert_same_run(undisturbed, folder)


def test_the_disk_is_full(small_disk, exposures, weights, undisturbed):
    disk, resize = small_disk
    folder = disk / "run"
    config = configuration(folder, exposures, weights, execution={"retries": 0})
    full = run(config)
    assert full.returncode == 1, full.stdout + full.stderr
    assert "No space left on device" in full.stdout + full.stderr
    assert "free some space" in full.stdout + full.stderr
    assert "Traceback" not in full.stderr
    resize("200m")
    again = run(config)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_same_run(undisturbed, folder)


def test_object_storage_fails_for_a_while(tmp_path, exposures, weights, undisturbed, monkeypatch):
    """Requests are answered with 500, then nobody listens; the run waits, and goes on."""
    folder = tmp_path / "run"
    config = configuration(folder, exposures, weights, store="s3://survey/survey.zarr")
    with Bucket() as bucket:
        for name, value in (bucket.environment | QUICK).items():
            monkeypatch.setenv(name, value)
        with started([*COMMAND, "run", str(config), "--workers", "2"], stdout=subprocess.PIPE, text=True) as process:
            until(lambda: bucket.keys("survey.zarr/block_stats/c/") >= 2, process)
            with bucket.broken():
                until(lambda: bucket.failed >= 20, process)
                time.sleep(5)
            time.sleep(1)
            bucket.stop()
            time.sleep(5)
            bucket.start()
            said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert_same_run(undisturbed, folder, "s3://survey/survey.zarr")


def test_object_storage_that_stays_away_ends_the_run(tmp_path, exposures, weights):
    config = configuration(
        tmp_path / "run",
        exposures,
        weights,
        store="s3://survey/survey.zarr",
        execution={"storage_timeout": 5, "retries": 0},
    )
    with Bucket() as bucket, started(
        [*COMMAND, "run", str(config), "--workers", "1"], stderr=subprocess.PIPE, text=True,
        env=os.environ | bucket.environment | QUICK,
    ) as process:  # fmt: skip
        until(lambda: bucket.keys("survey.zarr/block_stats/c/") >= 1, process)
        with bucket.broken():
            _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    # libraries may complain of their own before it
    last = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(last) == 1
    assert "storage or the network failed" in last[0]
    assert "run the same command again" in last[0]
