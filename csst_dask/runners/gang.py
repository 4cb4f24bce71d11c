"""Ranks of one training on Dask workers: one process each, pinned, started together and ended together.

A rank is a process of its own under the worker's task, the same that torchrun starts. So a worker outlives a rank that
is killed for memory, a rank that hangs can be killed, and torch's state never stays behind in a worker.
"""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from distributed import Client, Future, KilledWorker

from csst_dask.errors import ConfigError
from csst_dask.runners.cluster import known_workers, wait_for_workers
from csst_dask.runners.rank_process import introduce, run_rank, signal_ranks

POLL = 0.25
"""Seconds between looks at a gang."""
LOST = 256
"""Instead of the exit status, which is below it, of a rank that ended with its worker."""
GRACE = 3.0
"""Seconds that the other ranks get, when one has failed, to tell whose fault it was."""
REPLY = 60.0
"""Seconds in which a worker answers, the first time too, when it imports this package."""
PATIENCE = 60.0
"""Seconds that ranks get to write a checkpoint when they are asked to stop, and to end when they are killed."""
LOUD = 10.0
"""Seconds in which a worker passes on a signal."""
RETURN = 10.0
"""Seconds that a lost worker gets to be replaced before the gang goes on without it."""
START = 600.0
"""Seconds in which a gang shows its first sign of life."""
SILENCE = 3
"""A gang that shows none for so many timeouts has hung."""

Progress = Callable[[int, int, int, int, float], None]


class GangBroken(RuntimeError):
    """A rank or its worker was lost."""


class RanksStopped(Exception):
    """Somebody asked the ranks to stop; a checkpoint is there."""


def train_gang(
    client: Client,
    spec: Path,
    ranks: int,
    timeout: float,
    restarts: int,
    progress: Progress | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Train with ranks on the workers of a cluster.

    When a rank fails, the others are ended, and all start again from the last checkpoint on the workers that are left.

    Parameters
    ----------
    client : distributed.Client
    spec : Path
        From `csst_dask.training.rank.write_spec`; all workers see it, and the folders that it names.
    ranks : int
        Workers to begin with.
    timeout : float
        Of a collective operation, s.
    restarts : int
        How often a gang is started again.
    progress : callable, optional
        Called with what the first rank tells.
    tell : callable
        Called with a line when a gang breaks.

    Raises
    ------
    ConfigError
        If the ranks find their settings wrong, or if there are not so many workers.
    GangBroken
        If it broke once too often.
    KeyboardInterrupt
        If they were asked to stop.
    """
    wait_for_workers(client, ranks)
    for attempt in range(restarts + 1):
        try:
            gang = Gang(client, spec, _addresses(client)[:ranks], timeout, progress)
            gang.train()
            return
        except RanksStopped as stopped:
            raise KeyboardInterrupt(str(stopped)) from None
        except GangBroken as broken:
            tell_restart(broken, attempt, restarts, tell)
        end = time.monotonic() + RETURN
        while len(_addresses(client, 0)) < ranks and time.monotonic() < end:
            time.sleep(POLL)


def tell_restart(broken: GangBroken, attempt: int, restarts: int, tell: Callable[[str], None]) -> None:
    """Say that ranks start again; or give up, if that was the last attempt of ``restarts`` and one."""
    if attempt == restarts:
        raise GangBroken(f"{broken}; given up after {restarts} restarts, run it again to go on") from None
    tell(f"{broken}; starting again from the last checkpoint ({attempt + 1} of {restarts})")


def _addresses(client: Client, least: int = 1) -> list[str]:
    """Workers that are there, those of one host beside each other."""
    try:
        found = sorted(known_workers(client))
    except (OSError, TimeoutError) as error:
        raise GangBroken(f"the scheduler does not answer ({error})") from None
    if len(found) < least:
        raise GangBroken("the cluster has no worker left")
    return found


@dataclass
class Gang:
    """Ranks that train together, from their start to their end."""

    client: Client
    spec: Path
    workers: list[str]
    """One for each rank, in their order."""
    timeout: float
    progress: Progress | None = None
    name: str = field(default_factory=lambda: f"train-{uuid.uuid4().hex[:8]}")
    futures: list[Future] = field(default_factory=list)
    heard: deque[Any] = field(default_factory=deque)
    """What ranks have told and nobody has looked at."""

    def train(self) -> None:
        """Start the ranks and wait for them; whatever happens, none is left.

        Raises
        ------
        ConfigError, GangBroken, RanksStopped, KeyboardInterrupt
            As for `train_gang`.
        """
        self.client.subscribe_topic(self.name, lambda event: self.heard.append(event[1]))
        try:
            self._start()
            self._watch()
        except KeyboardInterrupt:
            self._signal(signal.SIGTERM)
            self._settle(PATIENCE)
            raise
        finally:
            if self._pending():
                self._signal(signal.SIGKILL)
                self._settle(PATIENCE)
            self.client.cancel(self.futures, force=True)
            self.client.unsubscribe_topic(self.name)

    def _start(self) -> None:
        from csst_dask.training.rank import LEASH, TOLD

        met = self._on_workers(self.workers, introduce)
        for address in self.workers:
            if not isinstance(met.get(address), dict):
                raise GangBroken(f"the worker {address} does not answer: {met.get(address, f'waited {REPLY:g} s')}")
        for rank, environment in enumerate(environments(self.workers, met)):
            future = self.client.submit(
                run_rank, self.name, str(self.spec), rank, environment | {LEASH: "1"}, TOLD,
                key=f"{self.name}-rank-{rank}", workers=[self.workers[rank]], allow_other_workers=False,
                pure=False, retries=0,
            )  # fmt: skip
            self.futures.append(future)

    def _watch(self) -> None:
        """Until all ranks have ended well."""
        ends: dict[int, tuple[int, str]] = {}
        heard, patience = time.monotonic(), START
        while len(ends) < len(self.futures):
            time.sleep(POLL)
            if self._pass_on():
                heard, patience = time.monotonic(), SILENCE * self.timeout
            ends |= self._ended(ends)
            if any(status for status, _ in ends.values()):
                self._judge(ends)
            self._check_workers()
            if time.monotonic() - heard > patience:
                raise GangBroken(f"no rank has moved for {patience:g} s")
        self._pass_on()

    def _check_workers(self) -> None:
        there = _addresses(self.client, 0)
        for rank in self._pending():
            if self.workers[rank] not in there:
                raise GangBroken(f"lost the worker {self.workers[rank]} of rank {rank}")

    def _pass_on(self) -> bool:
        """Whether ranks have shown a sign of life; progress goes to who wants it."""
        told = [self.heard.popleft() for _ in range(len(self.heard))]
        for step in told:
            if step and self.progress:
                self.progress(*step)
        return bool(told)

    def _pending(self) -> list[int]:
        return [rank for rank, future in enumerate(self.futures) if future.status == "pending"]

    def _ended(self, known: Container[int]) -> dict[int, tuple[int, str]]:
        """Exit status and last words of ranks that have ended."""
        ends = {}
        for rank, future in enumerate(self.futures):
            if rank in known or future.status == "pending":
                continue
            try:
                ends[rank] = future.result(timeout=REPLY)
            except KilledWorker:
                ends[rank] = LOST, f"lost the worker {self.workers[rank]} of rank {rank}"
            except CancelledError:
                ends[rank] = 1, "the scheduler has forgotten it"
            except Exception as error:  # of the worker's
                ends[rank] = 1, f"{type(error).__name__}: {error}"
        return ends

    def _judge(self, ends: dict[int, tuple[int, str]]) -> NoReturn:
        """Say why ranks have ended; the first one to be noticed is not always the cause."""
        from csst_dask.training.rank import STOPPED, WRONG

        asked = any(status == STOPPED for status, _ in ends.values())
        self._settle(PATIENCE if asked else GRACE)
        ends = ends | self._ended(ends)
        bad = {rank: end for rank, end in sorted(ends.items()) if end[0]}
        for rank, (status, text) in bad.items():
            if status == WRONG:
                raise ConfigError(text)
            if status < 0:
                raise GangBroken(f"rank {rank} was killed by {signal.Signals(-status).name}")
            if status == LOST:
                raise GangBroken(text)
        for status, text in bad.values():
            if status == STOPPED:
                raise RanksStopped(text)
        self._check_workers()
        rank, (status, text) = next(iter(bad.items()))
        raise GangBroken(f"rank {rank} ended with exit status {status}: {text}")

    def _settle(self, seconds: float) -> None:
        """Wait for the ranks to end, but for those whose worker is gone."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                there = known_workers(self.client)
            except (OSError, TimeoutError):
                return
            if not any(self.workers[rank] in there for rank in self._pending()):
                return
            time.sleep(POLL)

    def _signal(self, number: int) -> None:
        try:
            there = known_workers(self.client)
        except (OSError, TimeoutError):
            return  # the leash ends ranks whose worker has lost its scheduler
        workers = [address for address in self.workers if address in there]
        self._on_workers(workers, signal_ranks, self.name, int(number), seconds=LOUD)

    def _on_workers(
        self, workers: Iterable[str], function: Callable, *args: Any, seconds: float = REPLY
    ) -> dict[str, Any]:
        """What a function returns, or the error that it raises, on those workers that answer in time."""
        found: dict[str, Any] = {}

        def ask(address: str) -> None:
            try:
                found.update(self.client.run(function, *args, workers=[address], on_error="return"))
            except Exception as error:  # the worker has left
                found[address] = error

        threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in workers]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return dict(found)


def environments(workers: Sequence[str], met: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """What each rank finds in its environment, as torchrun would put it there.

    LOCAL_RANK is the place of the rank's GPU among those that it sees. Where every worker of a host was given its own
    (as dask-cuda does: it turns the list, so that the worker's own comes first), that is 0.

    Parameters
    ----------
    workers : sequence of str
        Address of the worker of each rank.
    met : mapping
        Worker -> what `rank_process.introduce` returned there.

    Returns
    -------
    list of dict
    """
    hosts = [urlsplit(address).hostname or "" for address in workers]
    found = []
    for rank, host in enumerate(hosts):
        here = [place for place, other in enumerate(hosts) if other == host]
        firsts = [(met[workers[place]]["visible"] or "").split(",")[0] for place in here]
        apart = all(firsts) and len(set(firsts)) == len(firsts)
        environment = {
            "RANK": rank, "WORLD_SIZE": len(workers), "LOCAL_WORLD_SIZE": len(here),
            "LOCAL_RANK": 0 if apart else here.index(rank),
            "MASTER_ADDR": hosts[0], "MASTER_PORT": met[workers[0]]["port"],
        }  # fmt: skip
        found.append({name: str(value) for name, value in environment.items()})
    return found
