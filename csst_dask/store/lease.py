"""One writer at a time: a lease that a process holds on a store, renews while it lives, and gives back.

The lease is an object in the store, named by its generation. A process that wants it creates the next generation, which
only one can do; a holder whose generation is not the newest any more has lost it. A process that died on this host is
followed at once. Otherwise its heartbeat is watched: one that does not change for `STALE` seconds is taken for dead.

Such a process may have been suspended, and may write or remove its own object once more when it wakes up. So no
generation is used twice after that: a lease that follows such a process is not removed when it is given back, but
marked as free.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from csst_dask.errors import ConfigError, RunEnded
from csst_dask.store.location import Folder

HEARTBEAT = 5.0
"""Seconds between two signs of life."""
STALE = 60.0
"""Seconds, by the clock of the process that waits, without a sign of life after which a lease is of a dead process."""
LOOK = 0.5
"""Seconds between two looks at the lease of another process."""
_NAME = re.compile(r"lease-([1-9]\d*)\.json")


class LeaseLost(RunEnded):
    """Another process holds the store now."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    token: str
    """Of this lease alone."""
    host: str
    machine: str
    """Identity of the running kernel and of the process namespace, within which ``process`` means something."""
    process: int
    started: float
    """When the process was started, s since the machine was, which no change of its clock moves."""
    command: str
    beat: int = 0
    """Counts signs of life."""
    fenced: bool = False
    """Whether a process that was taken for dead may wake up: generations go on after this one."""
    free: bool = False
    """Whether it was given back."""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} ({self.command})"

    @property
    def dead(self) -> bool:
        """Whether the process is known to have ended: it ran on this machine, and does not any more."""
        if self.machine != _machine():
            return False
        try:
            if psutil.Process(self.process).status() == psutil.STATUS_ZOMBIE:  # ended, though its parent did not notice
                return True
            return abs(_started(self.process) - self.started) > 0.1
        except psutil.NoSuchProcess:
            return True
        except (psutil.Error, OSError):
            return False


class Lease:
    """The right to write to a store; a context manager.

    Parameters
    ----------
    location : str
        The store, as `csst_dask.store.location.locate` gives it.
    say : callable, optional
        Receives the line that names the process that is waited for; by default it goes to standard error.

    Raises
    ------
    ConfigError
        On entering, if a process that lives holds the lease.
    """

    def __init__(self, location: str, say: Callable[[str], None] | None = None):
        self.location = location
        self._folder = Folder(location)
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self._mine: tuple[int, Holder] | None = None
        self._end = threading.Event()
        self._beating: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lease, as far as it knows."""
        return self._mine is not None

    def acquire(self) -> None:
        """Take the lease; waits while it is unknown whether its holder lives."""
        watch: tuple[str, int, float] | None = None
        while True:
            generation, holder = self._newest()
            stale = holder is not None and watch is not None and self._stale(holder, watch)
            if holder is None or holder.free or holder.dead or stale:
                if self._take(generation, stale or (holder is not None and holder.fenced)):
                    return
                continue
            if holder.machine == _machine() and holder.process == os.getpid():
                raise ConfigError(f"{self.location} is written to by this process already; end that first")
            if watch is None or watch[0] != holder.token:
                self._say(f"{self.location} is held by {holder}; waiting for a sign of life from it")
                watch = (holder.token, holder.beat, time.monotonic())
            elif holder.beat != watch[1]:
                raise ConfigError(
                    f"{self.location} is being written to by {holder}; wait until it ends, or end it, then run the "
                    "same command again"
                )
            time.sleep(LOOK)

    def check(self) -> None:
        """Make sure that the lease is still held.

        Raises
        ------
        LeaseLost
            If it is not: nothing may be written any more.
        """
        if self._mine is None:
            raise LeaseLost(f"{self.location} is not held by this process")
        if not self._is_mine(*self._mine):
            holder = self._newest()[1]
            who = f"{holder} holds it" if holder and not holder.free else "its lease was removed"
            raise LeaseLost(f"{self.location} was taken over: {who}")

    def release(self) -> None:
        """Give the lease back; harmless if it is not held."""
        if self._mine is None:
            return
        generation, mine = self._mine
        self._end.set()
        if self._beating is not None:
            self._beating.join()
        if self._is_mine(generation, mine):
            if mine.fenced:
                self._folder.write(_name(generation), _encode(replace(mine, free=True)))
            else:
                self._folder.remove(_name(generation))
                self._folder.remove_if_empty()
        self._mine = None

    def __enter__(self) -> Self:
        if not self.held:
            self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _newest(self) -> tuple[int, Holder | None]:
        """Newest generation and its holder; 0 and None where no process has held the store."""
        found = max(self._generations(), default=0)
        return found, self._read(found) if found else None

    def _generations(self) -> list[int]:
        try:
            names = self._folder.names()
        except NotADirectoryError:
            raise ConfigError(f"{self.location} is a file; name another place for the store") from None
        return [int(match[1]) for match in map(_NAME.fullmatch, names) if match]

    def _is_mine(self, generation: int, mine: Holder) -> bool:
        """Whether a lease stands as this object took it: still there, and without a later generation."""
        newest, found = self._newest()
        return newest == generation and found is not None and found.token == mine.token

    def _read(self, generation: int) -> Holder | None:
        content = self._folder.read(_name(generation))
        if content is None:
            return None
        try:
            return Holder(**json.loads(content))
        except (ValueError, TypeError):  # half written, where files cannot be linked
            return Holder("", "an unknown host", "", 0, 0.0, f"unreadable {_name(generation)}")

    def _stale(self, holder: Holder, watch: tuple[str, int, float]) -> bool:
        same = (holder.token, holder.beat) == watch[:2]
        return same and time.monotonic() - watch[2] > STALE

    def _take(self, before: int, fenced: bool) -> bool:
        """Create the generation after one that no process holds; False if another process was faster."""
        process = os.getpid()
        started, token = _started(process), secrets.token_hex(16)
        mine = Holder(token, socket.gethostname(), _machine(), process, started, _command(), fenced=fenced)
        if not self._folder.create(_name(before + 1), _encode(mine)):
            found = self._read(before + 1)
            if found is None or found.token != mine.token:  # else it was written, though the storage did not say so
                return False
        for old in self._generations():
            if old <= before:
                self._folder.remove(_name(old))
        self._mine = before + 1, mine
        self._end.clear()
        self._beating = threading.Thread(target=self._beat, args=(before + 1, mine), daemon=True, name="lease")
        self._beating.start()
        return True

    def _beat(self, generation: int, mine: Holder) -> None:
        """Renew the lease; storage that fails is tried again at the next beat."""
        while not self._end.wait(HEARTBEAT):
            mine = replace(mine, beat=mine.beat + 1)
            try:
                if not self._is_mine(generation, mine):
                    return
                self._folder.write(_name(generation), _encode(mine))
            except Exception as error:
                print(f"csst_dask: the lease of {self.location} was not renewed ({error})", file=sys.stderr, flush=True)


def _name(generation: int) -> str:
    return f"lease-{generation}.json"


def _encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _started(process: int) -> float:
    """When a process was started, s; since the machine was where the system says so, else since 1970."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return psutil.Process(process).create_time()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def is_lease(name: str) -> bool:
    """Whether an object of this name is a lease."""
    return _NAME.fullmatch(name) is not None


def _command() -> str:
    return " ".join([os.path.basename(sys.argv[0]) or "python", *sys.argv[1:]])[:200]


@lru_cache(maxsize=1)
def _machine() -> str:
    """What tells one space of process numbers from another: the boot of the kernel, and a container's namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
