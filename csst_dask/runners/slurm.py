"""Workers as SLURM jobs of their own, through dask-jobqueue; the scheduler is in the client's process.

Both listen on the network, so what they say is encrypted, and only who holds the certificates of this cluster is
heard: they are made for it, and lie in files that its user alone can read until it ends.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.security import Security

from csst_dask.config import ClusterConfig, SlurmConfig
from csst_dask.errors import ConfigError
from csst_dask.runners.settings import HOST, exports

POLL = 1.0
"""Seconds between looks at the queue."""
LEAVE = 60
"""Seconds before its walltime at which a worker leaves, so that its tasks go to others."""
GONE = 20.0
"""Seconds after which jobs that SLURM knows no more have failed; a worker may be on its way until then."""
ANSWER = 60.0
"""Seconds in which SLURM answers a question."""


class NoAnswer(Exception):
    """SLURM did not answer in time; the message says what was asked."""


def ask_slurm(*words: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    """Ask a command of SLURM.

    Parameters
    ----------
    *words : str
        The command.
    script : str, optional
        Its standard input.

    Returns
    -------
    subprocess.CompletedProcess

    Raises
    ------
    NoAnswer
        If it does not end in time.
    """
    try:
        return subprocess.run(words, input=script, capture_output=True, text=True, timeout=ANSWER)
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{words[0]} gave no answer in {ANSWER:g} s") from None


def start_slurm_cluster(config: ClusterConfig) -> Any:
    """Prepare a cluster that submits a job for each worker, or for the workers of each node with GPUs.

    Parameters
    ----------
    config : ClusterConfig
        With a section ``slurm``.

    Returns
    -------
    dask_jobqueue.SLURMCluster
        Without workers.

    Raises
    ------
    ConfigError
        If a program or package is missing, or SLURM would refuse the jobs, or does not answer.
    """
    slurm = config.slurm or SlurmConfig()
    if not (config.workers or config.maximum):
        raise ConfigError("cluster.slurm: found no number of workers; give cluster.workers, or cluster.maximum")
    if shutil.which("sbatch") is None:
        raise ConfigError("cluster.slurm: sbatch is not on PATH; start this on a machine that submits to SLURM")
    kind, security = slurm_cluster(), certificates()
    shared = slurm.log_directory or Path.cwd()
    try:
        shared.mkdir(parents=True, exist_ok=True)
        cluster = kind(
            scheduler_options={"dashboard_address": config.dashboard}, security=security,
            shared_temp_directory=str(shared.absolute()), silence_logs="error", **job_options(slurm),
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cluster.slurm: dask-jobqueue refuses this ({error})") from None
    try:
        check_job(cluster.job_script())
    except ConfigError:
        cluster.close(timeout=10)
        raise
    return cluster


def certificates() -> Security:
    """Make certificates for one cluster: of its scheduler, its workers and its client.

    Returns
    -------
    distributed.Security

    Raises
    ------
    ConfigError
        If the package that makes them is missing.
    """
    try:
        return Security.temporary()
    except ImportError:
        raise ConfigError("cluster.slurm: cryptography is missing: pip install 'csst_dask[slurm]'") from None


def slurm_cluster() -> type:
    """The class of dask-jobqueue, whose import alone would turn Ctrl-C into a silent end of this process.

    Returns
    -------
    type
        `dask_jobqueue.SLURMCluster`.

    Raises
    ------
    ConfigError
        If dask-jobqueue is missing.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ConfigError("cluster.slurm: dask-jobqueue is missing: pip install 'csst_dask[slurm]'") from None
    if before is not None:
        signal.signal(signal.SIGINT, before)
    found: type = SLURMCluster
    return found


def job_options(slurm: SlurmConfig) -> dict[str, Any]:
    """What dask-jobqueue is to write into a job: one thread for each worker, whatever is booked.

    Parameters
    ----------
    slurm : SlurmConfig

    Returns
    -------
    dict
        Arguments of `dask_jobqueue.SLURMCluster`.
    """
    directives, workers = list(slurm.directives), max(slurm.gpus, 1)
    if slurm.gpus:
        directives.append(f"--gres=gpu:{f'{slurm.gpu_type}:' if slurm.gpu_type else ''}{slurm.gpus}")
    leave = max(slurm.walltime_seconds - LEAVE, slurm.walltime_seconds // 2)
    # dask cuda worker has no option --lifetime, but both kinds read it from their settings
    lifetime = f"export DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION={leave}s"
    return {
        "cores": workers,
        "processes": workers,
        "memory": slurm.memory,
        "job_cpu": slurm.cpus * workers,
        "job_name": slurm.name,
        "queue": slurm.queue,
        "account": slurm.account,
        "walltime": slurm.walltime,
        "interface": slurm.interface,
        "local_directory": slurm.local_directory and str(slurm.local_directory),
        "log_directory": slurm.log_directory and str(slurm.log_directory),
        "job_extra_directives": directives,
        "job_script_prologue": [*exports(), lifetime, *slurm.prologue],
        "worker_command": "dask_cuda.cli" if slurm.gpus else "distributed.cli.dask_worker",
        "worker_extra_args": ["--no-dashboard", "--dashboard-address", f"{HOST}:0"],
        "python": shlex.quote(sys.executable),
    }


def check_job(script: str) -> None:
    """Let SLURM say whether it would take a job.

    Parameters
    ----------
    script : str

    Raises
    ------
    ConfigError
        With SLURM's words, if not; or if it does not answer.
    """
    try:
        found = ask_slurm("sbatch", "--test-only", script=script)
    except NoAnswer as error:
        raise ConfigError(f"cluster.slurm: {error}; look with sinfo whether SLURM is well, then try again") from None
    if found.returncode:
        said = found.stderr.strip() or f"exit status {found.returncode}"
        raise ConfigError(f"cluster.slurm: SLURM refuses the jobs: {said}")


def wait_for_first_worker(client: Client, cluster: Any, config: ClusterConfig, quiet: bool) -> None:
    """Wait until the first job runs and its worker has joined.

    Parameters
    ----------
    client : distributed.Client
    cluster : dask_jobqueue.SLURMCluster
    config : ClusterConfig
    quiet : bool
        Do not print what is waited for.

    Raises
    ------
    ConfigError
        If all jobs have ended without a worker, or none starts in ``slurm.wait`` seconds.
    """
    slurm = config.slurm or SlurmConfig()
    start = known = time.monotonic()
    told = ""
    while not client.nthreads():
        jobs = [job.job_id for job in cluster.workers.values() if getattr(job, "job_id", None)]
        states = job_states(jobs)
        now = time.monotonic()
        if states or states is None or not jobs:
            known = now
        if now - known > GONE:
            where = f"in {slurm.log_directory}" if slurm.log_directory else f"slurm-{jobs[0]}.out"
            raise ConfigError(
                f"cluster.slurm: the jobs {', '.join(jobs)} have ended and no worker came; look at their output {where}"
            )
        if now - start > slurm.wait:
            raise ConfigError(
                f"cluster.slurm: no worker after {slurm.wait:g} s ({_line(states) or 'nothing in the queue'}); "
                "wait longer with cluster.slurm.wait, or ask for less"
            )
        line = _line(states)
        if not quiet and line and line != told:
            print(f"Dask: waiting for SLURM ({line})", flush=True)
            told = line
        time.sleep(POLL)


def _line(states: list[str] | None) -> str:
    return "no answer from squeue" if states is None else ", ".join(states)


def job_states(jobs: list[str]) -> list[str] | None:
    """What the queue says of jobs.

    Parameters
    ----------
    jobs : list of str
        Their numbers.

    Returns
    -------
    list of str or None
        Such as ``2 PENDING (Resources)``, with nothing of jobs that have ended; None if SLURM does not answer.
    """
    if not jobs:
        return []
    try:
        found = ask_slurm("squeue", "-h", "-j", ",".join(jobs), "-o", "%T %r")
    except NoAnswer:
        return None
    if found.returncode and "Invalid job id" not in found.stderr:
        return None
    kinds = [line.replace(" None", "") for line in found.stdout.splitlines()]
    return [
        f"{kinds.count(kind)} {kind.replace(' ', ' (', 1) + ')' if ' ' in kind else kind}" for kind in sorted({*kinds})
    ]
