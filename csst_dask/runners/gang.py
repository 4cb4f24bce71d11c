"""Ranks of one training on Dask workers: one process each, pinned, started together and ended together.

A rank is a process of its own under the worker's task, the same that torchrun starts. So a worker outlives a rank that
is killed for memory, a rank that hangs can be killed, and torch's state never stays behind in a worker.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distributed import Client, Future, get_worker

from csst_dask.errors import ConfigError
from csst_dask.training.rank import LEASH, STOPPED, TOLD, WRONG

POLL = 0.25
"""Seconds between looks at a gang."""
PATIENCE = 20.0
"""Seconds that ranks get to write a checkpoint when they are asked to stop, and the gang to end."""
SILENCE = 10
"""A gang that says nothing for so many timeouts has hung before its first step."""

Progress = Callable[[int, int, int, int, float], None]

_running: dict[str, subprocess.Popen] = {}
"""Ranks of this worker, by gang."""


class GangBroken(RuntimeError):
    """A rank or its worker was lost."""


class RankStopped(RuntimeError):
    """A rank was asked to stop and has written a checkpoint."""


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
        Wanted; no more than there are workers.
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
        If the ranks find their settings wrong, or if there is no worker.
    GangBroken
        If it broke once too often.
    KeyboardInterrupt
        If they were asked to stop.
    """
    for attempt in range(restarts + 1):
        workers = _workers(client, ranks)
        try:
            _one_gang(client, spec, workers, timeout, progress)
            return
        except GangBroken as broken:
            if attempt == restarts:
                raise GangBroken(f"{broken}; given up after {restarts} restarts, run it again to go on") from None
            tell(f"{broken}; starting again from the last checkpoint ({attempt + 1} of {restarts})")
            _wait_for_workers(client)


def _workers(client: Client, ranks: int) -> list[str]:
    """Addresses of as many workers as there shall be ranks, those of one host beside each other."""
    known = sorted(client.scheduler_info(n_workers=-1)["workers"])
    if not known:
        raise ConfigError("the cluster has no worker to train on; start workers first, or choose fewer ranks")
    return known[:ranks]


def _wait_for_workers(client: Client) -> None:
    """A nanny needs a moment to start a lost worker again; one worker is enough to go on."""
    end = time.monotonic() + PATIENCE
    while not client.scheduler_info(n_workers=-1)["workers"] and time.monotonic() < end:
        time.sleep(POLL)
    time.sleep(1.0)


def _one_gang(client: Client, spec: Path, workers: Sequence[str], timeout: float, progress: Progress | None) -> None:
    gang = f"train-{uuid.uuid4().hex[:8]}"
    heard = [time.monotonic()]

    def listen(event: tuple[float, Any]) -> None:
        heard[0] = time.monotonic()
        if progress and isinstance(event[1], list):
            progress(*event[1])

    client.subscribe_topic(gang, listen)
    try:
        host, port = client.submit(_free_port, workers=[workers[0]], pure=False).result(timeout=PATIENCE)
        futures = [
            client.submit(
                run_rank, gang, str(spec), rank, list(workers), host, port,
                key=f"{gang}-rank-{rank}", workers=[address], allow_other_workers=False, pure=False, retries=0,
            )
            for rank, address in enumerate(workers)
        ]  # fmt: skip
        _watch(client, gang, futures, workers, heard, SILENCE * timeout)
    except TimeoutError:
        raise GangBroken(f"the worker {workers[0]} does not answer") from None
    finally:
        client.unsubscribe_topic(gang)


def _watch(
    client: Client, gang: str, futures: list[Future], workers: Sequence[str], heard: list[float], silence: float
) -> None:
    """Wait for all ranks; end them all when one is lost."""
    try:
        while any(future.status == "pending" for future in futures):
            time.sleep(POLL)
            for rank, future in enumerate(futures):
                if future.status == "error":
                    _raise_for(rank, future)
            lost = set(workers) - set(client.scheduler_info(n_workers=-1)["workers"])
            if lost:
                raise GangBroken(f"lost the worker {sorted(lost)[0]} of a rank")
            if time.monotonic() - heard[0] > silence:
                raise GangBroken(f"no rank has moved for {silence:g} s")
        for rank, future in enumerate(futures):
            if future.status != "finished":
                _raise_for(rank, future)
    except KeyboardInterrupt:
        _signal(client, gang, workers, signal.SIGTERM)
        _settle(futures, PATIENCE)
        raise
    finally:
        _signal(client, gang, workers, signal.SIGKILL)
        _settle(futures, PATIENCE)
        client.cancel(futures, force=True)


def _raise_for(rank: int, future: Future) -> None:
    error = future.exception() if future.status == "error" else None
    if isinstance(error, ConfigError):
        raise error
    if isinstance(error, RankStopped):
        raise KeyboardInterrupt(str(error))
    raise GangBroken(f"rank {rank} failed: {error or future.status}")


def _settle(futures: list[Future], seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(future.status == "pending" for future in futures) and time.monotonic() < end:
        time.sleep(POLL)


def _signal(client: Client, gang: str, workers: Sequence[str], number: int) -> None:
    alive = [address for address in workers if address in client.scheduler_info(n_workers=-1)["workers"]]
    if alive:
        client.run(signal_rank, gang, int(number), workers=alive, on_error="ignore")


def signal_rank(gang: str, number: int) -> None:
    """Send a signal to the rank that runs on this worker, if it still does."""
    for name, process in list(_running.items()):
        if name.startswith(gang) and process.poll() is None:
            process.send_signal(number)


def _free_port() -> tuple[str, int]:
    """Where the first rank can be met: its worker's host, and a port that nobody uses there."""
    host = get_worker().address.split("://")[-1].rpartition(":")[0].strip("[]")
    with socket.socket() as probe:
        probe.bind(("", 0))
        return host, probe.getsockname()[1]


def run_rank(gang: str, spec: str, rank: int, workers: list[str], host: str, port: int) -> None:
    """Run one rank under this worker and pass on what it says.

    Parameters
    ----------
    gang : str
        Topic of the events that carry the progress.
    spec : str
        What to do.
    rank : int
    workers : list of str
        Addresses of all ranks' workers.
    host, port : str, int
        Where the first rank is met.

    Raises
    ------
    ConfigError
        If the rank found its settings wrong.
    RankStopped
        If it was asked to stop.
    RuntimeError
        If it failed.
    """
    own = [place for place, other in enumerate(workers) if _host(other) == _host(workers[rank])]
    environment = {
        "RANK": rank, "WORLD_SIZE": len(workers), "LOCAL_RANK": own.index(rank), "LOCAL_WORLD_SIZE": len(own),
        "MASTER_ADDR": host, "MASTER_PORT": port, LEASH: 1,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "csst_dask.training.rank", spec],
        env=os.environ | {name: str(value) for name, value in environment.items()},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    name = f"{gang}-{rank}"
    _running[name] = process
    said: deque[str] = deque(maxlen=20)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(TOLD):
                get_worker().log_event(gang, json.loads(line.removeprefix(TOLD)))
            elif line.strip():
                said.append(line.strip())
        status = process.wait()
    finally:
        process.kill()
        _running.pop(name, None)
    if status == WRONG:
        raise ConfigError(_last(said).removeprefix("csst-dask: "))
    if status == STOPPED:
        raise RankStopped(_last(said).removeprefix("csst-dask: "))
    if status:
        raise RuntimeError(f"exit status {status}: {_last(said)}")


def _host(address: str) -> str:
    return address.split("://")[-1].rpartition(":")[0]


def _last(said: deque[str]) -> str:
    ours = [line for line in said if line.startswith("csst-dask: ")]
    return (ours or list(said) or ["it said nothing"])[-1]
