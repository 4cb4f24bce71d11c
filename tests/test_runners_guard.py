"""A time limit ends a task. It ends a process only where that process is a worker that comes back, or was started for
the task; never that of a user."""

import subprocess
import sys
import threading
import time

import pytest
from distributed import Client, get_worker

from csst_dask.config import ExecutionConfig
from csst_dask.memory import peak_memory
from csst_dask.pipeline.isolated import Died, run_alone
from csst_dask.runners.faults import Failure, Fault, classify
from csst_dask.runners.guard import TimeLimitExceeded, guarded, limited
from csst_dask.runners.window import Task, run_tasks

LIMIT = 0.3


def spin(seconds, done=None):
    """Work in Python."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    if done is not None:
        done.append(threading.get_ident())
    return seconds


def spin_guarded(*args):
    """Catch what a careful function catches."""
    try:
        return spin(*args)
    except Exception:
        return "swallowed"


@pytest.mark.parametrize("function", [spin, spin_guarded, time.sleep], ids=["Python", "careful", "C"])
def test_a_task_that_takes_too_long_fails_in_time(function):
    start = time.monotonic()
    with pytest.raises(TimeLimitExceeded, match=rf"limit of {LIMIT:g} s"):
        guarded(function, LIMIT, 4)
    assert LIMIT <= time.monotonic() - start < 3
    assert guarded(function, 30, 0.01).value in (None, 0.01)


def test_a_call_that_is_given_up_ends_at_its_next_step_in_python():
    threads, done = set(threading.enumerate()), []
    with pytest.raises(TimeLimitExceeded):
        guarded(lambda: (time.sleep(2), spin(60, done)), LIMIT)
    left = [thread for thread in threading.enumerate() if thread not in threads]
    assert len(left) == 1, "the call in C should go on by itself"
    left[0].join(20)
    assert not left[0].is_alive()
    assert not done


def test_a_block_is_interrupted_and_what_comes_after_it_is_not():
    def over_and_over():
        for _ in range(30):
            with pytest.raises(TimeLimitExceeded), limited(0.01):
                spin(5)
            spin(0.002)
            with limited(5), limited(0.005):
                pass
        return "all"

    assert guarded(over_and_over, 60).value == "all"
    over_and_over()


def test_of_nested_limits_the_earlier_one_counts():
    for outer, inner in ((LIMIT, 60), (60, LIMIT)):
        with pytest.raises(TimeLimitExceeded, match=f"{LIMIT:g} s"), limited(outer), limited(inner):
            spin(20)


def test_what_a_task_raises_comes_through():
    for error in (TimeoutError("of the network"), ZeroDivisionError("1/0"), KeyboardInterrupt()):

        def fail(error=error):
            raise error

        with pytest.raises(type(error)):
            guarded(fail, 60)


def test_it_is_no_outage_that_goes_away_by_waiting():
    assert classify(TimeLimitExceeded("took longer")) is Fault.ERROR


def where(_):
    return get_worker().address


@pytest.mark.processes
def test_threads_of_this_process_live_through_a_task_that_hangs():
    limits = ExecutionConfig(time_limit=LIMIT, retries=1)
    tasks = [Task(f"{k}", (5 if k == 3 else 0.01,), k) for k in range(8)]
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        found = {task.key: result for task, result in run_tasks(client, "test", spin, tasks, limits)}
        seen = dict(run_tasks(client, "test", where, [Task("where", (0,), "where")], limits))
        [address] = client.scheduler_info(n_workers=-1)["workers"]
    bad = found.pop(3)
    assert isinstance(bad, Failure)
    assert "took longer than its time limit" in bad.reason
    assert not bad.poison, "it says nothing about the chip's own fault"
    assert found == {k: 0.01 for k in range(8) if k != 3}
    assert [*seen.values()] == [address], "a task under a limit sees its worker"


SESSION = """
import faulthandler, sys, time
from csst_dask.runners.guard import TimeLimitExceeded, guarded, limited
with open(sys.argv[1], "w") as file:
    faulthandler.dump_traceback_later(2, file=file)
    for use in (lambda: guarded(time.sleep, 0.1, 1), lambda: guarded(time.sleep, 60, 0.01)):
        try:
            use()
        except TimeLimitExceeded:
            pass
    with limited(60):
        pass
    time.sleep(3)
print("alive")
"""


def test_the_one_timer_of_a_session_is_left_to_its_user(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", SESSION, str(tmp_path / "dump")], capture_output=True, text=True, timeout=120
    )
    assert (found.stdout, found.returncode) == ("alive\n", 0), found.stderr
    assert "most recent call first" in (tmp_path / "dump").read_text()


def hang_in_part(seconds):
    with limited(seconds):
        spin(60)


def test_a_process_that_was_started_for_a_task_is_ended():
    found = run_alone(hang_in_part, 20, None, LIMIT)
    assert isinstance(found, Died)
    assert "exit status 1" in found.reason


def test_a_worker_that_has_a_nanny_is_ended(client):
    from distributed import KilledWorker

    assert client.submit(guarded, sum, 60, [1, 2]).result().value == 3
    with pytest.raises(KilledWorker):
        client.submit(guarded, spin, LIMIT, 60, pure=False).result()
    client.wait_for_workers(2, timeout=60)


def test_memory_is_that_of_the_process_and_not_of_its_parent():
    ballast = bytearray(b"x") * 480_000_000
    code = "from csst_dask.memory import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5e6 < int(done.stdout) < 300e6 < 480e6 < peak_memory()
    assert len(ballast) == 480_000_000


def test_memory_never_falls():
    first = peak_memory()
    ballast = bytearray(b"x") * (first + 50_000_000)
    grown = peak_memory()
    assert grown >= len(ballast)
    del ballast
    assert peak_memory() > 0.99 * grown  # the kernel counts in batches
