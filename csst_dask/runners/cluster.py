"""Connect to a Dask cluster, or start one of our own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import dask
from dask.typing import no_default
from distributed import Client, LocalCluster, SpecCluster
from distributed.core import Status

from csst_dask.config import ClusterConfig
from csst_dask.errors import ConfigError
from csst_dask.pipeline.stopping import uninterrupted
from csst_dask.runners.cuda import NoGpuCluster, check_gpu_cluster, count_gpus, start_cuda_cluster
from csst_dask.runners.nanny import LocalNanny
from csst_dask.runners.settings import HOST, applied
from csst_dask.runners.slurm import start_slurm_cluster, wait_for_first_worker

ARRIVAL = 120.0
"""Seconds in which the workers of a cluster arrive."""

ANSWER = 30.0
"""Seconds in which a scheduler that was named answers."""

CLOSING = 30.0
"""Seconds in which a cluster of our own is closed."""

GUARD = "in a script call it below `if __name__ == '__main__':`, since every worker process imports the script"

BUSY = "100ms"
"""A cluster of our own grows to as many workers as what is submitted keeps busy for so long."""

_most: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""Workers that clusters of our own may grow to."""


class OwnClient(Client):
    """The client of a cluster that was started for it, and ends with it."""

    def close(self, timeout: Any = no_default) -> Any:
        """Close the client and its cluster.

        A client is closed again when it is collected, maybe while its thread holds the lock of Dask's loops, for which
        closing a cluster would wait for ever: of what is closed nothing is touched.
        """
        with uninterrupted():
            result = super().close(timeout)
            cluster = self.cluster
            if not self.asynchronous and cluster is not None and cluster.status is not Status.closed:
                cluster.close(timeout=CLOSING)
            return result


def connect(
    config: ClusterConfig | None = None, *, quiet: bool = False, share_gpus: bool = False, **settings: object
) -> Client:
    """Connect to the cluster of the configuration, and say in one line where the work goes and why.

    Parameters
    ----------
    config : ClusterConfig, optional
        An address or scheduler file joins a running cluster. With a section ``slurm`` workers are SLURM jobs.
        Otherwise worker processes are started here: one for each GPU, where there are GPUs and dask-cuda, or one for
        each core. What is started ends with the client, and has our settings; Dask's configuration here stays as it is.
    quiet : bool
        Do not print anything.
    share_gpus : bool
        Workers of a cluster here that get no GPU each see all of them: for what chooses its GPU itself. By default
        such workers see none, lest all of them fill the same one.
    **settings
        Fields of `ClusterConfig`, instead of ``config``.

    Returns
    -------
    distributed.Client

    Raises
    ------
    ConfigError
        If the scheduler cannot be reached, SLURM refuses the jobs, or a setting is wrong.
    """
    from csst_dask.config import build_config

    config = config or build_config({"cluster": settings}, "connect()").cluster
    if config.scheduler or config.scheduler_file:
        client = _join(config)
        why = "joined the scheduler that was named"
    else:
        _refuse_import()
        client, why = _start_with_client(config, share_gpus)
    if not quiet:
        print(f"Dask: {why}; dashboard {client.dashboard_link}", flush=True)
    if config.slurm and not (config.scheduler or config.scheduler_file) and config.minimum != 0:
        try:
            wait_for_first_worker(client, client.cluster, config, quiet)
        except BaseException:
            client.close()
            raise
    return client


def _refuse_import() -> None:
    """A script without the guard starts a cluster in each worker that imports it; multiprocessing says so at length."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        print(f"csst_dask: {GUARD}", file=sys.stderr, flush=True)
        os._exit(1)


def _start_with_client(config: ClusterConfig, share_gpus: bool) -> tuple[Client, str]:
    with uninterrupted():
        try:
            with applied():  # for the scheduler, which reads them now; workers start at any time
                cluster, why = _start(config, share_gpus)
        except RuntimeError as error:
            raise ConfigError(f"no cluster could be started here: {error}; {GUARD}") from None
        try:
            return OwnClient(cluster), why
        except BaseException:
            cluster.close(timeout=CLOSING)
            raise


def _start(config: ClusterConfig, share_gpus: bool) -> tuple[SpecCluster, str]:
    """A cluster of our own, and what it is."""
    wanted = config.maximum or config.workers
    if config.slurm is not None:
        cluster, kind = start_slurm_cluster(config), "SLURM job"
        _keep(cluster, config, wanted or 1, interval="5s")
        return cluster, f"{_number(config, wanted or 1, kind)}, since there is a section cluster.slurm"
    options = {
        "host": HOST, "dashboard_address": config.dashboard, "worker_class": LocalNanny, "silence_logs": 40,
    }  # fmt: skip
    gpus = count_gpus()
    try:
        check_gpu_cluster(gpus, wanted)
        workers = wanted or gpus
        cluster = start_cuda_cluster(_first(config, workers), **options)
        why = f"local cluster of {_number(config, workers, 'worker process')}, each with one of {gpus} GPUs"
    except NoGpuCluster as reason:
        workers = wanted or max(_cores(), config.minimum or 1)
        if gpus and not share_gpus:
            options["env"] = {"CUDA_VISIBLE_DEVICES": ""}
        cluster = LocalCluster(n_workers=_first(config, workers), threads_per_worker=1, **options)
        why = f"local cluster of {_number(config, workers, 'worker process')}, since no scheduler was named: {reason}"
    _keep(cluster, config, workers)
    return cluster, why


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _least(config: ClusterConfig, most: int) -> int:
    """Workers that a cluster keeps when it has nothing to do."""
    if config.minimum is not None:
        return config.minimum
    return 1 if config.maximum else most


def _first(config: ClusterConfig, most: int) -> int:
    return max(_least(config, most), 1)


def _number(config: ClusterConfig, most: int, kind: str) -> str:
    least, plural = _least(config, most), "es" if kind.endswith("s") else "s"
    return f"{least if least < most else ''}{' to ' if least < most else ''}{most} {kind}{plural if most > 1 else ''}"


def _keep(cluster: SpecCluster, config: ClusterConfig, most: int, **how: Any) -> None:
    """Let the cluster follow its work, and replace what it loses: a nanny that loses its worker too early gives up,
    and a SLURM job ends."""
    _most[cluster] = most
    cluster.adapt(minimum=_least(config, most), maximum=most, target_duration=BUSY, **how)


def most_workers(client: Client) -> int:
    """Workers that the client's cluster may grow to; 0 for one that was joined, where that is for others to say."""
    return _most.get(client.cluster, 0) if client.cluster is not None else 0


def known_workers(client: Client) -> dict[str, dict]:
    """What the scheduler knows of every worker, by address; OSError if it does not answer.

    Asked for each time: what `Client.scheduler_info` returns is replaced every two seconds, in another thread, by a
    summary without workers.
    """
    if client.scheduler is None:
        raise OSError("the client is not connected")
    found: dict[str, dict] = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    return found


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


@contextmanager
def _restored() -> Iterator[None]:
    """A client that cannot be made leaves itself behind as Dask's scheduler, for all that is computed afterwards."""
    before = dask.config.get("scheduler", None)
    try:
        yield
    except BaseException:
        dask.config.set({"scheduler": before})
        raise


def _join(config: ClusterConfig) -> Client:
    where = config.scheduler or config.scheduler_file
    try:
        if config.scheduler_file and not config.scheduler_file.exists():
            raise ConfigError(
                f"cluster.scheduler_file: {config.scheduler_file} does not exist; start 'dask scheduler "
                "--scheduler-file FILE' first, and wait for the file"
            )
        with _restored():
            if config.scheduler_file:
                return Client(scheduler_file=str(config.scheduler_file), timeout=ANSWER)
            return Client(config.scheduler, timeout=ANSWER)
    except (OSError, TimeoutError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cluster: no scheduler answers at {where} ({error}); check the address") from None
    except TypeError as error:
        if "TLS" not in str(error):
            raise
        raise ConfigError(
            f"cluster: the scheduler at {where} speaks TLS, but no certificates are known here; name them in Dask's "
            "configuration, distributed.comm.tls (docs/cluster.md)"
        ) from None
