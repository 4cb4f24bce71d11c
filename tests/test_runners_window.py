"""The executor: every task comes back once, whatever happens to workers, and nothing waits for ever."""

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from csst_dask.config import ExecutionConfig
from csst_dask.errors import ConfigError
from csst_dask.pipeline import stopping
from csst_dask.pipeline.isolated import Died, run_alone
from csst_dask.pipeline.summary import TaskStats
from csst_dask.runners import faults, window
from csst_dask.runners.cluster import connect
from csst_dask.runners.faults import ClusterLost, Failure, StorageLost, TooManyFailures, retry_storage
from csst_dask.runners.guard import DEVICE_LOST, limited
from csst_dask.runners.settings import SETTINGS
from csst_dask.runners.window import Task, run_tasks

pytestmark = pytest.mark.processes

QUICK = ExecutionConfig(time_limit=60, storage_timeout=60, process_deaths=2)


@pytest.fixture(scope="module")
def own():
    client = connect(workers=2, quiet=True)
    yield client
    client.close()


@pytest.fixture
def mine(own):
    own.wait_for_workers(2, timeout=60)
    return own


def double(x):
    return 2 * x


def slow_double(x):
    time.sleep(0.1)
    return 2 * x


def misbehave(x, how, folder):
    """Double a number, unless it is 13."""
    if x == 13:
        tries = Path(folder) / "tries"
        with tries.open("a") as file:
            file.write("x")
        count = tries.stat().st_size
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            ctypes.PyDLL(None).sleep(1000)  # holds the interpreter lock
        if how == "raise twice" and count <= 2:
            raise ValueError("chance")
        if how == "raise":
            raise ValueError("always")
        if how == "outage" and count <= 3:
            raise ConnectionError("500 Internal Server Error")
        if how == "outage, then raise twice" and count <= 5:
            raise ConnectionError("500 Internal Server Error") if count <= 3 else ValueError("chance")
        if how == "die, then outage" and count == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "die, then outage" and count == 2:
            time.sleep(2.5)
            raise ConnectionError("500 Internal Server Error")
        if how == "configuration":
            raise ConfigError("these weights are others")
    return 2 * x


def results(client, function, tasks, limits=QUICK, stats=None):
    found = {}
    for task, result in run_tasks(client, "test", function, tasks, limits, stats):
        assert task.key not in found, "a task came back twice"
        found[task.key] = result
    return found


def numbers(n, *args):
    return (Task(f"{k}", (k, *args), k) for k in range(n))


def test_each_task_comes_back_once_and_few_are_in_flight(mine):
    taken, given, widest, known = 0, 0, 0, 0

    def source():
        nonlocal taken
        for task in numbers(1500):
            taken += 1
            yield task

    for task, result in run_tasks(mine, "test", double, source(), QUICK):
        given += 1
        widest, known = max(widest, taken - given), max(known, len(mine.futures))
        assert result == 2 * task.key
    assert given == taken == 1500
    assert widest <= QUICK.in_flight * 2
    assert known <= 2 * QUICK.in_flight * 2  # released futures go a moment later
    deadline = time.monotonic() + 10
    while mine.futures:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["raise twice", "outage"])
def test_what_passes_is_tried_again(mine, tmp_path, how):
    limits = ExecutionConfig(retries=2 if how == "raise twice" else 0, storage_timeout=60)
    stats = TaskStats()
    found = results(mine, misbehave, numbers(20, how, str(tmp_path)), limits, stats)
    assert found == {k: 2 * k for k in range(20)}
    assert stats.repeats == (2 if how == "raise twice" else 3)


def test_outages_use_up_no_retries(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(window, "FIRST_PAUSE", 0.05)
    stats = TaskStats()
    found = results(mine, misbehave, numbers(20, "outage, then raise twice", str(tmp_path)), QUICK, stats)
    assert found == {k: 2 * k for k in range(20)}
    assert stats.repeats == 3 + QUICK.retries


def test_patience_with_storage_does_not_count_from_the_loss_of_a_worker(mine, tmp_path):
    found = results(mine, misbehave, numbers(20, "die, then outage", str(tmp_path)), ExecutionConfig(storage_timeout=2))
    assert found == {k: 2 * k for k in range(20)}


def test_what_does_not_pass_fails_alone(mine, tmp_path):
    found = results(mine, misbehave, numbers(20, "raise", str(tmp_path)))
    bad = found.pop(13)
    assert isinstance(bad, Failure)
    assert not bad.poison
    assert "always" in bad.reason
    assert found == {k: 2 * k for k in range(20) if k != 13}
    assert (tmp_path / "tries").stat().st_size == 1 + QUICK.retries


@pytest.mark.parametrize(("how", "words"), [("kill", "SIGKILL"), ("hang", "took longer")])
def test_what_ends_its_worker_is_rejected_and_its_neighbours_finish(mine, tmp_path, how, words):
    limits = QUICK.model_copy(update={"time_limit": 3.0} if how == "hang" else {})
    found = results(mine, misbehave, numbers(40, how, str(tmp_path)), limits)
    bad = found.pop(13)
    assert isinstance(bad, Failure)
    assert bad.poison
    assert words in bad.reason
    assert found == {k: 2 * k for k in range(40) if k != 13}
    assert (tmp_path / "tries").stat().st_size == QUICK.worker_losses + QUICK.process_deaths


@dataclass
class Some:
    """What could be done of a block, and what was raised for the rest."""

    done: dict = field(default_factory=dict)
    errors: dict = field(default_factory=dict)


def misbehave_all(xs, how, folder):
    return Some({x: misbehave(x, how, folder) for x in xs})


def raise_partly(xs, how, folder):
    found = Some()
    for x in xs:
        try:
            found.done[x] = misbehave(x, how, folder)
        except ValueError as error:
            found.errors[x] = error
    return found


def blocks(n, size, *args):
    def task(xs):
        return Task(f"block-{xs[0]}-{len(xs)}", (xs, *args), tuple(xs), len(xs), xs, lambda x, before: task([x]))

    return (task(list(range(k, k + size))) for k in range(0, n, size))


def results_of_blocks(client, function, tasks, limits=QUICK, stats=None):
    """What was done, each once, and the failures."""
    done, failed = {}, {}
    for task, result in run_tasks(client, "test", function, tasks, limits, stats):
        if isinstance(result, Failure):
            assert task.key not in failed
            failed[task.key] = result
        else:
            assert not done.keys() & result.done.keys()
            done |= result.done
    return done, failed


@pytest.mark.parametrize("how", ["kill", "raise"])
def test_the_one_bad_chip_of_a_block_is_found(mine, tmp_path, how):
    done, failed = results_of_blocks(mine, misbehave_all, blocks(24, 4, how, str(tmp_path)))
    assert list(failed) == [(13,)]
    assert failed[13,].poison == (how == "kill")
    assert done == {k: 2 * k for k in range(24) if k != 13}


@pytest.mark.parametrize("size", [1, 4])
def test_what_a_block_could_do_counts_and_the_rest_is_tried_again(mine, tmp_path, size):
    stats = TaskStats()
    done, failed = results_of_blocks(mine, raise_partly, blocks(24, size, "raise", str(tmp_path)), stats=stats)
    assert list(failed) == [(13,)]
    assert not failed[13,].poison
    assert "always" in failed[13,].reason
    assert done == {k: 2 * k for k in range(24) if k != 13}
    assert (tmp_path / "tries").stat().st_size == 1 + QUICK.retries
    assert stats.repeats == QUICK.retries


def test_what_passes_in_a_block_is_tried_again(mine, tmp_path):
    done, failed = results_of_blocks(mine, raise_partly, blocks(24, 4, "raise twice", str(tmp_path)))
    assert (done, failed) == ({k: 2 * k for k in range(24)}, {})


def test_the_task_of_a_part_is_given_what_was_done_before(mine, tmp_path):
    seen = []

    def task(xs):
        def part(x, before):
            seen.append((x, before.done))
            return task([x])

        return Task(f"block-{xs[0]}-{len(xs)}", (xs, "raise twice", str(tmp_path)), tuple(xs), len(xs), xs, part)

    results_of_blocks(mine, raise_partly, [task([11, 12, 13])])
    assert seen == [(13, {11: 22, 12: 24}), (13, {})]


def test_killed_workers_lose_nothing(mine):
    stop, killed = threading.Event(), 0

    def kill():
        nonlocal killed
        rng = random.Random(1)
        while not stop.is_set():
            before = found.total()
            time.sleep(rng.uniform(0.05, 0.5))
            if found.total() == before and killed:
                continue  # workers that never live long enough for a task prove nothing
            there = set(mine.cluster.scheduler.workers)
            pids = [nanny.pid for nanny in mine.cluster.workers.values() if nanny.worker_address in there and nanny.pid]
            if pids:
                try:
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    pass

    found = Counter()
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        k = 0

        def source():
            nonlocal k
            while killed < 6:
                k += 1
                yield Task(f"{k}", (k,), k)

        for task, result in run_tasks(mine, "test", slow_double, source(), QUICK):
            assert result == 2 * task.key
            found[task.key] += 1
    finally:
        stop.set()
        thread.join()
    assert killed >= 6
    assert found == Counter(range(1, k + 1))


def test_one_fault_of_all_tasks_ends_the_run(mine, tmp_path):
    limits = ExecutionConfig(retries=0, consecutive_failures=7)
    tasks = (Task(f"{k}", (13, "raise", str(tmp_path)), k) for k in range(1000))
    given = 0
    with pytest.raises(TooManyFailures, match="always"):  # noqa: PT012
        for _ in run_tasks(mine, "test", misbehave, tasks, limits):
            given += 1
    assert given == 7


def test_one_fault_of_all_blocks_ends_the_run(mine, tmp_path):
    """Though each gives a result, in which nothing is done."""
    limits = ExecutionConfig(retries=1, consecutive_failures=7)
    folder, given = str(tmp_path), 0

    def task(k, xs):
        return Task(f"{k}-{len(xs)}", (xs, "raise", folder), k, len(xs), xs, lambda x, before: task(k, [x]))

    tasks = (task(k, [13]) for k in range(1000))
    with pytest.raises(TooManyFailures, match="always"):  # noqa: PT012
        for _, result in run_tasks(mine, "test", raise_partly, tasks, limits):
            given += isinstance(result, Failure)
    assert given == 7


def test_a_wrong_configuration_ends_the_run(mine, tmp_path):
    with pytest.raises(ConfigError, match="these weights are others"):
        results(mine, misbehave, numbers(20, "configuration", str(tmp_path)))


def test_a_request_to_stop_lets_running_tasks_end(mine):
    found = {}

    def ask():
        os.kill(os.getpid(), signal.SIGTERM)

    with stopping.stopping(0), pytest.raises(stopping.Stopped, match="SIGTERM"):  # noqa: PT012
        for task, result in run_tasks(mine, "test", slow_double, numbers(10_000), QUICK):
            found[task.key] = result
            if len(found) == 10:
                ask()
    assert 10 <= len(found) <= 10 + QUICK.in_flight * 2
    assert not stopping.stop_requested()


def test_storage_that_fails_is_not_waited_for_once_the_run_is_to_stop(monkeypatch):
    monkeypatch.setattr(faults, "FIRST_PAUSE", 30.0)
    tries = []

    def fail():
        tries.append(time.monotonic())
        raise ConnectionError("500 Internal Server Error")

    with stopping.stopping(0):
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]).start()
        with pytest.raises(StorageLost, match="500"):
            retry_storage(600, fail)
    assert len(tries) == 2
    assert 0.4 < tries[1] - tries[0] < 10


def test_the_walltime_is_a_request_to_stop(monkeypatch):
    monkeypatch.setenv(stopping.WALLTIME, str(int(time.time()) + 60))
    with stopping.stopping(margin=60):
        deadline = time.monotonic() + 10
        while not stopping.stop_requested():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "walltime" in stopping.stop_requested()


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler process of its own, and how to start a worker of it."""
    file = tmp_path / "scheduler.json"
    words = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "3s",
    }
    process = subprocess.Popen(
        [*words, "--scheduler-file", str(file), "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        env=environment,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started = [process]

    def worker(*words, **settings):
        started.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "distributed.cli.dask_worker",
                    "--scheduler-file",
                    str(file),
                    "--nthreads",
                    "1",
                    "--no-dashboard",
                    "--local-directory",
                    str(tmp_path),
                    *words,
                ],
                env=environment | settings,
                stderr=subprocess.DEVNULL,
            )
        )

    deadline = time.monotonic() + 60
    while not file.exists() or not file.stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process, file, worker
    for one in reversed(started):
        one.kill()
        one.wait()


def test_a_cluster_without_workers_is_not_waited_for_for_ever(scheduler):
    _, file, _ = scheduler
    with Client(scheduler_file=str(file)) as client, pytest.raises(ClusterLost, match="no worker"):
        results(client, double, numbers(5), ExecutionConfig(storage_timeout=3))


def test_paused_workers_are_not_waited_for_for_ever(scheduler):
    """Of a cluster that was started by others, whose workers pause when memory is scarce."""
    _, file, worker = scheduler
    worker("--memory-limit", "2GB", DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE="0.001")
    with Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(1, timeout=60)
        with pytest.raises(ClusterLost, match="all workers have been paused"):
            results(client, double, numbers(5), ExecutionConfig(storage_timeout=3))


def test_a_killed_scheduler_ends_the_run(scheduler):
    process, file, worker = scheduler
    worker()
    found = 0
    with Client(scheduler_file=str(file), timeout=5) as client, pytest.raises(ClusterLost, match="gone"):  # noqa: PT012
        for _ in run_tasks(client, "test", slow_double, numbers(10_000), QUICK):
            found += 1
            if found == 5:
                process.kill()
    assert found >= 5


def test_a_worker_that_hangs_is_replaced(scheduler):
    _, file, worker = scheduler
    worker()
    with Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(1, timeout=60)
        found, frozen = {}, None
        for task, result in run_tasks(client, "test", slow_double, numbers(30), QUICK):
            found[task.key] = result
            if len(found) == 5:
                (frozen,) = client.run(os.getpid).values()
                os.kill(frozen, signal.SIGSTOP)
    assert found == {k: 2 * k for k in range(30)}
    assert not Path(f"/proc/{frozen}").exists()


def hog(size):
    block = bytearray(size)
    for k in range(0, size, 4096):
        block[k] = 1
    time.sleep(30)


def leave(status, after=0.0):
    time.sleep(after)
    os._exit(status)


def lose_gpu(folder):
    """Tell the process, and lose the GPU unless another one did before."""
    first = not any(Path(folder).iterdir())
    (Path(folder) / f"{os.getpid()}").touch()
    if first:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return os.getpid()


class Unreadable:
    """Cannot be unpickled, or ends the process that tries."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def cannot_be_read():
    raise ValueError("cannot be read")


def test_a_task_on_its_own_tells_what_ended_it():
    assert run_alone(double, None, None, 4) == 8
    with pytest.raises(ZeroDivisionError):
        run_alone(divmod, None, None, 1, 0)
    assert run_alone(leave, None, None, 5) == Died("ended its process with exit status 5")
    assert run_alone(leave, 60, None, 1) == Died("ended its process with exit status 1")
    assert run_alone(within, 2, None, 1.9) == Died("took longer than its time limit")
    assert "took longer than 1 s" in run_alone(time.sleep, 1.0, None, 60).reason
    assert "needed more than the 0.30 GB" in run_alone(hog, 30.0, 300_000_000, 400_000_000).reason


def within(seconds):
    """Take too long in a part of a task that has a time limit of its own."""
    with limited(seconds):
        time.sleep(60)


def test_what_ends_before_it_begins_is_an_ordinary_error():
    with pytest.raises(ValueError, match="cannot be read"):
        run_alone(double, None, None, Unreadable(cannot_be_read))
    with pytest.raises(RuntimeError, match="did not begin: ended its process with exit status 5"):
        run_alone(double, None, None, Unreadable(leave, 5))


def test_a_gpu_that_a_task_on_its_own_loses_is_lost_to_nobody_else(mine, tmp_path):
    worker = {**mine.run(os.getpid)}
    assert "lost the GPU" in mine.submit(run_alone, lose_gpu, None, None, str(tmp_path)).result().reason
    assert mine.run(os.getpid) == worker


def test_a_worker_that_loses_its_gpu_is_replaced_and_its_task_done_again(mine, tmp_path):
    processes = [nanny.process.process for nanny in mine.cluster.workers.values()]
    stats = TaskStats()
    found = results(mine, lose_gpu, [Task("gpu", (str(tmp_path),), "gpu")], stats=stats)
    lost = {int(path.name) for path in tmp_path.iterdir()} - {found["gpu"]}
    assert len(lost) == 1
    assert stats.lost_workers == stats.repeats == 1
    deadline = time.monotonic() + 60
    while len(pids := set(mine.run(os.getpid).values())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not pids & lost
    assert sorted(process.exitcode or 0 for process in processes) == [0, DEVICE_LOST]


def test_a_task_that_needs_too_much_memory_is_rejected(tmp_path):
    import dask

    with dask.config.set(SETTINGS | {"distributed.worker.memory.terminate": 0.9}), LocalCluster(
        n_workers=1, threads_per_worker=1, memory_limit="600MB", host="127.0.0.1", dashboard_address=":0",
        silence_logs=50,
    ) as small, Client(small) as client:  # fmt: skip
        tasks = [Task("fine", (10_000_000,), "fine"), Task("hog", (900_000_000,), "hog")]
        found = results(client, touch, tasks)
    assert found["fine"] == 10_000_000
    assert found["hog"].poison
    assert "needed more than the 0.60 GB" in found["hog"].reason


def touch(size):
    block = bytearray(size)
    for k in range(0, size, 4096):
        block[k] = 1
    if size > 100_000_000:
        time.sleep(30)  # the memory is looked at now and then
    return len(block)
