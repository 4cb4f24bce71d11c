"""One writer at a time: who gets a lease, who waits, who is followed, and who may write no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import assert_same_result
from places import bucket, place  # noqa: F401

from csst_dask.config import Config, with_settings
from csst_dask.errors import ConfigError
from csst_dask.schema import ChipKey
from csst_dask.store import SurveyStore, lease
from csst_dask.store.lease import Lease, LeaseLost
from csst_dask.store.location import Folder, locate

HOLD = """
import sys, time
from csst_dask.store import lease
lease.HEARTBEAT = 0.2
with lease.Lease(sys.argv[1]) as held:
    print("held", flush=True)
    for line in sys.stdin:  # one line a question: may it still write?
        try:
            held.check()
            print("yes", flush=True)
        except lease.LeaseLost:
            print("no", flush=True)
"""


@pytest.fixture
def quick(monkeypatch):
    """Seconds become tenths."""
    monkeypatch.setattr(lease, "HEARTBEAT", 0.2)
    monkeypatch.setattr(lease, "STALE", 2.0)
    monkeypatch.setattr(lease, "LOOK", 0.05)


@pytest.fixture
def elsewhere(monkeypatch):
    """Processes of this machine are taken for those of another one: only their heartbeat tells whether they live."""
    monkeypatch.setattr(lease, "_machine", lambda: "another machine")


@pytest.fixture
def holder():
    """Starts a process that holds a lease."""
    started = []

    def start(where: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def ask(process: subprocess.Popen) -> str:
    process.stdin.write("may I?\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def at(place) -> str:  # noqa: F811
    return locate(place.url)


def test_of_many_that_create_an_object_at_once_one_succeeds(place):  # noqa: F811
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        folder = Folder(at(place))
        start.wait()
        return folder.create("lease-1.json", str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert sum(created) == 1
    assert Folder(at(place)).read("lease-1.json") == str(created.index(True)).encode()


def test_a_lease_is_taken_renewed_and_given_back_again_and_again(place, quick):  # noqa: F811
    for _ in range(3):
        with Lease(at(place)) as held:
            held.check()
            [name] = Folder(at(place)).names()
            before = Folder(at(place)).read(name)
            deadline = time.monotonic() + 20
            while Folder(at(place)).read(name) == before:  # a sign of life
                assert time.monotonic() < deadline
                time.sleep(0.05)
            held.check()
        assert Folder(at(place)).names() == []
        with pytest.raises(LeaseLost):
            held.check()


def test_a_second_writer_in_one_process_is_refused_at_once(place):  # noqa: F811
    with Lease(at(place)) as held:
        start = time.monotonic()
        with pytest.raises(ConfigError, match="by this process already"):
            Lease(at(place)).acquire()
        assert time.monotonic() - start < 2 * lease.HEARTBEAT
        held.check()


def test_a_lease_that_another_took_away_is_lost_and_not_given_back(place, quick):  # noqa: F811
    held = Lease(at(place))
    held.acquire()
    other = Folder(at(place)).read("lease-1.json").replace(held._mine[1].token.encode(), b"x" * 32)
    assert Folder(at(place)).create("lease-2.json", other)
    with pytest.raises(LeaseLost, match="taken over"):
        held.check()
    held.release()
    assert Folder(at(place)).read("lease-2.json") == other


def test_a_process_that_was_killed_is_followed_at_once(tmp_path, holder):
    where, lines = str(tmp_path / "s.zarr"), []
    process = holder(where)
    process.kill()
    process.wait()
    start = time.monotonic()
    with Lease(where, lines.append):
        assert time.monotonic() - start < lease.HEARTBEAT
    assert lines == []


def test_a_live_process_is_named_and_refused_once_its_heart_has_beaten(tmp_path, holder, quick):
    where, lines = str(tmp_path / "s.zarr"), []
    process = holder(where)
    with pytest.raises(ConfigError, match=f"being written to by process {process.pid} on "):
        Lease(where, lines.append).acquire()
    assert len(lines) == 1
    assert f"process {process.pid}" in lines[0]
    assert ask(process) == "yes"


def test_a_live_process_of_another_machine_is_refused_too(tmp_path, holder, quick, elsewhere):
    process = holder(str(tmp_path / "s.zarr"))
    with pytest.raises(ConfigError, match="being written to"):
        Lease(str(tmp_path / "s.zarr"), str).acquire()
    assert ask(process) == "yes"


def test_a_suspended_process_of_another_machine_is_followed_and_may_write_no_more(tmp_path, holder, quick, elsewhere):
    where = str(tmp_path / "s.zarr")
    process = holder(where)
    process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    with Lease(where, str) as held:
        assert time.monotonic() - start >= lease.STALE
        process.send_signal(signal.SIGCONT)
        assert ask(process) == "no"
        time.sleep(3 * lease.HEARTBEAT)  # in which it would have renewed it
        held.check()
    with Lease(where, str) as again:
        again.check()
        assert ask(process) == "no"


def test_a_run_whose_lease_is_lost_writes_nothing_more(tmp_path, small):
    config = with_settings(Config(), small)
    store = SurveyStore.write(tmp_path / "s.zarr", config.ingest, config.mask)
    store.allocate([ChipKey("100000001", 8, 1)])
    token = store.lease._mine[1].token.encode()
    mine = (tmp_path / "s.zarr" / "lease-1.json").read_bytes()
    (tmp_path / "s.zarr" / "lease-2.json").write_bytes(mine.replace(token, b"x" * 32))
    before = {path: path.read_bytes() for path in (tmp_path / "s.zarr").rglob("*") if path.is_file()}
    for write in (
        lambda: store.allocate([ChipKey("100000002", 8, 1)]),
        lambda: store.set_reasons([0], ["no"]),
        lambda: store.predictions.set_attrs({"a": 1}),
        store.close,
    ):
        with pytest.raises(LeaseLost):
            write()
    after = {path: path.read_bytes() for path in (tmp_path / "s.zarr").rglob("*") if path.is_file()}
    assert after == before


def test_readers_take_no_lease(tmp_path, small):
    config = with_settings(Config(), small)
    SurveyStore.write(tmp_path / "s.zarr", config.ingest, config.mask).close()
    with Lease(str(tmp_path / "s.zarr")):
        assert SurveyStore.read(tmp_path / "s.zarr").rows == 0
        assert [name for name in os.listdir(tmp_path / "s.zarr") if name.startswith("lease")] == ["lease-1.json"]


@pytest.mark.processes
def test_two_ingests_of_one_store_at_once_end_whole(tmp_path, write_exposures, small):
    write_exposures(tmp_path / "in", exposures=2)
    (tmp_path / "c.yaml").write_text("ingest: {frame: [184, 192], chunks: [92, 96]}\n")
    words = [sys.executable, "-m", "csst_dask", "ingest", str(tmp_path / "in"), "--config", str(tmp_path / "c.yaml")]
    words += ["--workers", "1", "--store"]

    def start(store: Path) -> subprocess.Popen:
        return subprocess.Popen([*words, str(store)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    both = [start(tmp_path / "s.zarr") for _ in range(2)]
    said = [process.communicate(timeout=250)[0] for process in both]
    codes = sorted(process.returncode for process in both)
    # the second one is refused while the first one lives, or finds that all is done
    assert codes in ([0, 0], [0, 2]), said
    alone = start(tmp_path / "alone.zarr")
    assert alone.wait(250) == 0
    assert_same_result(str(tmp_path / "s.zarr"), str(tmp_path / "alone.zarr"))
