"""No process that was taken for dead comes back into a lease, and none that lives is taken for dead."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import CHUNKS, FRAME
from places import KINDS, Place, bucket, place

from csst_dask.config import IngestConfig, MaskConfig
from csst_dask.schema import ChipKey
from csst_dask.store import SurveyStore, lease
from csst_dask.store.lease import Lease, LeaseLost
from csst_dask.store.location import Folder, locate

__all__ = ["bucket", "place"]

INGEST, MASK = IngestConfig(frame=FRAME, chunks=CHUNKS), MaskConfig()
SHARED = [kind for kind in KINDS if kind != "memory"]
"""Places that two processes see."""

HOLD = """
import sys, time
from csst_dask.config import IngestConfig, MaskConfig
from csst_dask.schema import ChipKey
from csst_dask.store import SurveyStore, lease
lease.HEARTBEAT, lease.STALE, lease.LOOK = map(float, sys.argv[2:5])
store = SurveyStore.write(sys.argv[1], IngestConfig(frame=({}, {}), chunks=({}, {})), MaskConfig())
print("held", flush=True)
for line in sys.stdin:
    if line.strip() == "end":
        store.close()
        break
    try:
        store.allocate([ChipKey(line.strip(), 8, 1)])
        print("written", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


@contextmanager
def holder(where: Place, heartbeat: float = 0.2, stale: float = 60.0) -> Iterator[subprocess.Popen]:
    """A process that holds a store, and gives a chip a row when it is told a name."""
    script = HOLD.format(*FRAME, *CHUNKS)
    command = [sys.executable, "-c", script, where.url, str(heartbeat), str(stale), "0.05"]
    found = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert found.stdout.readline() == "held\n"
        yield found
    finally:
        found.kill()
        found.communicate()


def ask(process: subprocess.Popen, name: str) -> str:
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def leases(where: Place) -> list[str]:
    return [name for name in Folder(locate(where.url)).names() if lease.is_lease(name)]


def held(where: Place) -> dict:
    [name] = leases(where)
    return json.loads(Folder(locate(where.url)).read(name))


def write(where: Place) -> SurveyStore:
    return SurveyStore.write(where.url, INGEST, MASK)


@pytest.fixture
def fast(monkeypatch):
    """A second stands for a minute."""
    monkeypatch.setattr(lease, "HEARTBEAT", 0.2)
    monkeypatch.setattr(lease, "STALE", 1.0)
    monkeypatch.setattr(lease, "LOOK", 0.05)


def at_once(n: int, function: Callable[[int], object]) -> list:
    """What calls in so many threads returned or raised, begun at the same moment."""
    found, start = [None] * n, threading.Barrier(n)

    def call(k: int) -> None:
        start.wait()
        try:
            found[k] = function(k)
        except Exception as error:
            found[k] = error

    threads = [threading.Thread(target=call, args=(k,)) for k in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


# objects


def test_objects_are_written_whole_and_removed(place):
    folder = Folder(locate(place.url))
    assert (folder.names(), folder.read("a")) == ([], None)
    assert folder.create("a", b"one")
    folder.write("a", b"two")
    folder.write("b", b"three")
    assert not folder.create("b", b"four")
    assert (folder.names(), folder.read("a"), folder.read("b")) == (["a", "b"], b"two", b"three")
    for _ in range(2):
        folder.remove("a")
    folder.remove_if_empty()
    assert folder.names() == ["b"]


# leases


def test_of_several_threads_one_takes_the_lease(place):
    found = [Lease(locate(place.url)) for _ in range(4)]
    outcomes = at_once(4, lambda k: found[k].acquire())
    assert Counter(type(outcome).__name__ for outcome in outcomes) == {"NoneType": 1, "ConfigError": 3}
    assert sum(one.held for one in found) == 1
    for one in found:
        one.release()
    assert leases(place) == []


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
def test_a_clock_that_was_set_kills_no_process(tmp_path, monkeypatch, seconds):
    """Of a process that lives it is known when it began, whatever the clock says since."""
    where = Place(str(tmp_path / "s"))
    with holder(where) as process:
        found = lease.Holder(**held(where))
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: time.time() + seconds)
        assert not found.dead
        process.kill()
        process.wait()
        assert found.dead


@pytest.mark.processes
@pytest.mark.parametrize("place", SHARED, indirect=True)
@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_was_killed_here_is_followed_at_once(place, reaped):
    with holder(place, heartbeat=60) as process:
        assert ask(process, "100") == "written"
        os.kill(process.pid, signal.SIGKILL)
        if reaped:
            process.wait()
        else:  # its parent has not noticed
            deadline = time.monotonic() + 30
            while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                assert time.monotonic() < deadline
        start = time.monotonic()
        with write(place) as store:
            assert time.monotonic() - start < lease.STALE / 2
            assert store.rows == 1
            assert len(leases(place)) == 1
    assert leases(place) == []


@pytest.mark.processes
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("place", SHARED, indirect=True)
def test_a_suspended_process_is_followed_and_writes_no_more_when_it_wakes(place):
    with holder(place) as process:
        assert ask(process, "100") == "written"
        os.kill(process.pid, signal.SIGSTOP)
        try:
            start = time.monotonic()
            with write(place) as store:
                assert time.monotonic() - start > lease.STALE
                store.allocate([ChipKey("200", 8, 1)])
                mine = held(place)
                assert mine["process"] == os.getpid()
                os.kill(process.pid, signal.SIGCONT)
                assert ask(process, "300").startswith(
                    f"LeaseLost {locate(place.url)} was taken over: process {os.getpid()}"
                )
                time.sleep(3 * lease.HEARTBEAT)
                assert held(place)["token"] == mine["token"]
                store.allocate([ChipKey("400", 8, 1)])
                assert [key[0] for key in store.row_of] == ["100", "200", "400"]
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert ask(process, "500").startswith("LeaseLost")
        ask(process, "end")
        process.wait(60)
    assert [key[0] for key in SurveyStore.read(place.url).row_of] == ["100", "200", "400"]


@pytest.mark.usefixtures("fast")
def test_what_a_suspended_process_still_does_to_its_own_lease_harms_no_later_one(place, monkeypatch):
    """It may have looked already, and renew or remove its lease whenever it wakes up."""
    folder, first = Folder(locate(place.url)), Lease(locate(place.url))
    first.acquire()
    first._end.set()  # suspended: no sign of life any more
    [name] = leases(place)
    content = folder.read(name)
    machine = json.loads(content)["machine"]
    folder.write(name, content.replace(machine.encode(), b"elsewhere"))  # of which it is unknown whether it lives
    for _ in range(2):
        with Lease(locate(place.url)) as later:
            for late in (lambda: folder.remove(name), lambda: folder.write(name, content)):
                late()
                later.check()
                with pytest.raises(LeaseLost):
                    first.check()
        with pytest.raises(LeaseLost, match="its lease was removed"):
            first.check()
        folder.write(name, content)
        with pytest.raises(LeaseLost):
            first.check()
    first.release()


@pytest.mark.usefixtures("fast")
def test_an_object_that_is_no_lease_gives_way_in_the_end(tmp_path):
    (tmp_path / "lease-3.json").write_bytes(b'{"token": ')
    start = time.monotonic()
    with Lease(str(tmp_path)):
        assert time.monotonic() - start > lease.STALE
        assert leases(Place(str(tmp_path))) == ["lease-4.json"]


def test_a_lease_that_was_written_though_the_storage_did_not_say_so_is_held(place, monkeypatch):
    create = Folder.create
    monkeypatch.setattr(Folder, "create", lambda *args: create(*args) and False)
    with Lease(locate(place.url)) as mine:
        mine.check()
    assert leases(place) == []


def test_a_store_whose_maker_died_before_the_first_document_is_made(tmp_path):
    """The files that it had not renamed yet are not taken for those of another."""
    for name in (f".lease-1.json.{16 * 'a'}", f"zarr.{32 * 'b'}.partial"):
        (tmp_path / "s" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "s" / name).write_bytes(b"{")
    write(Place(str(tmp_path / "s"))).close()
    assert SurveyStore.read(str(tmp_path / "s")).rows == 0
