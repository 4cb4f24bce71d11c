"""Connect to a Dask cluster, or start one of our own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
from distributed import Client, LocalCluster, get_client, performance_report

from csst_dask.config import ClusterConfig
from csst_dask.errors import ConfigError

ARRIVAL = 120.0
"""Seconds in which the workers of a cluster arrive."""

# glibc gives memory back so eagerly by default that big buffers cost a page fault a page on every task
_ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
SETTINGS = {
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in _ENVIRONMENT.items()},
    "distributed.comm.timeouts.connect": "30s",
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    # what a lost worker means for its tasks is decided by the client, which knows more
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-ttl": "120s",
}
"""Dask's settings for a cluster of our own."""


def connect(config: ClusterConfig | None = None, *, quiet: bool = False, **settings: object) -> Client:
    """Connect to the cluster of the configuration.

    Parameters
    ----------
    config : ClusterConfig, optional
        An address or scheduler file joins a running cluster; otherwise one worker process per core is started here,
        and ends with the client.
    quiet : bool
        Do not print where the work goes.
    **settings
        Fields of `ClusterConfig`, instead of ``config``.

    Returns
    -------
    distributed.Client

    Raises
    ------
    ConfigError
        If the scheduler cannot be reached or a setting is wrong.
    """
    from csst_dask.config import build_config

    config = config or build_config({"cluster": settings}, "connect()").cluster
    if config.scheduler or config.scheduler_file:
        client = _join(config)
        why = "joined the scheduler that was named"
    else:
        dask.config.set(SETTINGS)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = config.workers or cores
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=config.dashboard,
            preload=[__name__],
            silence_logs=40,
        )
        cluster.adapt(minimum=workers, maximum=workers)  # a nanny that loses its worker too early gives up
        client = Client(cluster)
        _close_cluster_with(client, cluster)
        why = f"local cluster of {workers} worker process{'es' if workers > 1 else ''}, since no scheduler was named"
    if not quiet:
        print(f"Dask: {why}; dashboard {client.dashboard_link}", flush=True)
    return client


def dask_setup(worker: object) -> None:
    """Ctrl-C in a terminal is for the client, which lets its workers end what they do; Dask calls this in each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def known_workers(client: Client) -> dict[str, dict]:
    """What the scheduler knows of every worker, by address."""
    return client.scheduler_info(n_workers=-1)["workers"]


def wait_for_workers(client: Client, number: int, seconds: float = ARRIVAL) -> None:
    """Wait until there are enough workers.

    Parameters
    ----------
    client : distributed.Client
    number : int
    seconds : float
        For so long at most.

    Raises
    ------
    ConfigError
        If they do not come.
    """
    end = time.monotonic() + seconds
    while (found := len(known_workers(client))) < number:
        if time.monotonic() > end:
            raise ConfigError(
                f"found {found} workers after {seconds:g} s, expected {number}; start more workers, or ask for fewer "
                "ranks with --ranks"
            )
        time.sleep(0.2)


def _join(config: ClusterConfig) -> Client:
    try:
        if config.scheduler_file:
            if not config.scheduler_file.exists():
                raise ConfigError(
                    f"cluster.scheduler_file: {config.scheduler_file} does not exist; start 'dask scheduler "
                    "--scheduler-file FILE' first, and wait for the file"
                )
            return Client(scheduler_file=str(config.scheduler_file), timeout="30s")
        return Client(config.scheduler, timeout="30s")
    except (OSError, TimeoutError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        where = config.scheduler or config.scheduler_file
        raise ConfigError(f"cluster: no scheduler answers at {where} ({error}); check the address") from None


def _close_cluster_with(client: Client, cluster: LocalCluster) -> None:
    close = client.close

    def close_both(*args: object, **kwargs: object) -> object:
        result = close(*args, **kwargs)
        if not client.asynchronous:
            cluster.close(timeout=10)
        return result

    client.close = close_both  # type: ignore[method-assign]


@contextmanager
def current_client(client: Client | None = None) -> Iterator[Client]:
    """The client given, else the one in use, else one of a local cluster that ends with the block."""
    if client is None:
        try:
            client = get_client()
        except ValueError:
            own = connect()
            try:
                yield own
            finally:
                own.close()
            return
    yield client


@contextmanager
def reporting(path: Path | None) -> Iterator[None]:
    """Save Dask's performance report of a block of work.

    Parameters
    ----------
    path : Path or None
        HTML file; None for no report.
    """
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with performance_report(filename=str(path)):
        yield
