"""Ctrl-C in a terminal: once, what is there is written and workers end; twice, all is over at once."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from whole_run import COMMAND, assert_same_run, configuration, run

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("terminal"), pytest.mark.timeout(300)]

SCRIPT = """
import ctypes, sys, time
from csst_dask.cli.app import app, main
from csst_dask.cli.stage import connected
from csst_dask.config import Config, with_settings

def hold(seconds):
    ctypes.PyDLL(None).sleep(seconds)  # holds the interpreter lock: such a worker is slow to leave

@app.command()
def work(seconds: int, leave: str):
    with connected(with_settings(Config(), {"cluster.workers": 2})) as (client, stages):
        futures = [client.submit(hold, seconds, pure=False) for _ in range(2)]
        while client.processing() and sum(map(len, client.processing().values())) < 2:
            time.sleep(0.1)
        print("working", flush=True)
        try:
            while leave == "no" and not all(future.done() for future in futures):
                time.sleep(0.1)
        finally:
            print("closing", flush=True)

if __name__ == "__main__":
    main()
"""
SOON = 5.0
"""Seconds in which a command ends that was interrupted twice."""


def begin(words, **options):
    """A command as the foreground group of a terminal."""
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def press(process):
    """Ctrl-C reaches every process of the group."""
    os.killpg(process.pid, signal.SIGINT)


def under(process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def await_workers(process) -> None:
    """Until worker processes exist, which takes much less time than until they work."""
    deadline = time.monotonic() + 60
    while True:
        with suppress(psutil.Error):
            if any("spawn_main" in " ".join(child.cmdline()) for child in under(process)):
                return
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def assert_gone(process, known) -> None:
    """Neither a process that was seen under the command is left, nor one of its group."""
    deadline = time.monotonic() + 3
    while True:
        group = []
        for one in psutil.process_iter():
            with suppress(ProcessLookupError):
                if os.getpgid(one.pid) == process.pid:
                    group.append(one)
        left = [one for one in {*known, *group} if lives(one)]
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def assert_ended(process, known, said, times: int) -> None:
    assert process.returncode == 1, said
    assert "Traceback" not in said, said
    words = {1: "interrupted; run the same command again to go on", 2: "interrupted twice; ended at once"}
    assert words[times] in said.splitlines()
    assert_gone(process, known)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("moment", ["starting", "working", "closing"])
def test_at_any_moment(tmp_path, moment, times):
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    leave = "yes" if moment == "closing" else "no"
    process = begin([sys.executable, str(script), "work", "60", leave])
    try:
        if moment == "starting":
            await_workers(process)
        else:
            for line in process.stdout:
                if line.startswith(moment):
                    break
        known = under(process)
        assert known
        press(process)
        if times == 2:
            time.sleep(0.3)
            assert process.poll() is None, "it was over before the second time"
            known += under(process)
            press(process)
        start = time.monotonic()
        _, said = process.communicate(timeout=60)
        assert times == 1 or time.monotonic() - start < SOON
        assert_ended(process, known, said, times)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_run_goes_on_where_it_was_interrupted(tmp_path, exposures, weights, undisturbed, times):
    folder = tmp_path / "run"
    config = configuration(folder, exposures, weights)
    process = begin([*COMMAND, "run", str(config), "--workers", "2"])
    try:
        deadline = time.monotonic() + 120
        while sum(1 for _ in (folder / "survey.zarr" / "block_stats" / "c").glob("*")) < 4:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        known = under(process)
        press(process)
        if times == 2:
            time.sleep(0.15)
            with suppress(ProcessLookupError):
                press(process)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1, said
        assert "interrupted" in said
        assert "Traceback" not in said, said
        assert_gone(process, known)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    again = run(config)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_same_run(undisturbed, folder)


def test_a_command_in_the_background_is_not_interrupted(tmp_path):
    """A shell without job control starts what is followed by `&` with SIGINT ignored."""
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    process = begin(["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, str(script), "work", "2", "no"])
    try:
        for line in process.stdout:
            if line.startswith("working"):
                press(process)
                time.sleep(0.3)
                press(process)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.wait()


def test_two_signals_of_one_press_count_as_one(tmp_path):
    """Launchers such as srun pass on what the terminal has sent already."""
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    process = begin([sys.executable, str(script), "work", "60", "no"])
    try:
        for line in process.stdout:
            if line.startswith("working"):
                break
        known = under(process)
        press(process)
        time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert_ended(process, known, said, 1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
