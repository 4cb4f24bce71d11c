"""Train one network from a survey store with truth: here, as ranks on Dask workers, or under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psutil
from distributed import Client

from csst_dask.config import Config, TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.runners.cluster import connect, known_workers, wait_for_workers
from csst_dask.runners.gang import PATIENCE, POLL, SILENCE, START, GangBroken, Progress, tell_restart, train_gang
from csst_dask.runners.rank_process import events_in, last_words
from csst_dask.store.location import locate_all

if TYPE_CHECKING:
    from csst_dask.training import FitResult


def train_network(
    task: str,
    store: str | Sequence[str],
    out: Path,
    config: Config,
    progress: Progress | None = None,
    command: str = "",
) -> FitResult:
    """Train a network; an interrupted training goes on from its last checkpoint.

    Parameters
    ----------
    task : str
        ``classifier`` or ``regressor``.
    store : str or sequence of str
        Survey stores whose chips have truth: folders or URLs.
    out : Path
        Receives checkpoints, log, weights and model card; with several ranks, all see it.
    config : Config
        Sections ``training`` and ``cluster``. On a cluster that is named, or of SLURM jobs, one rank runs there too;
        by default there is one for each job, or for each worker with a GPU of the cluster that is named; one
        alone for a network without maps, whose steps are too small to share, unless there are jobs.
    progress : callable, optional
        Called with epoch, epochs, step, steps and loss.
    command : str
        How to repeat this, for the model card.

    Returns
    -------
    FitResult

    Raises
    ------
    ConfigError
        If a store has no chips to learn from, a setting is wrong, or the workers do not come.
    RuntimeError
        If ranks failed more often than they may.
    KeyboardInterrupt
        If SIGINT or SIGTERM asked it to stop; a checkpoint is there.
    """
    from csst_dask.training import FitResult, fit, load_samples
    from csst_dask.training.recipes import describe_network, task_named

    out, stores, training, cluster = Path(out).resolve(), locate_all(store), config.training, config.cluster
    named = cluster.scheduler or cluster.scheduler_file
    if named and training.launcher == "torchrun":
        raise ConfigError(
            f"the scheduler {named} cannot serve torchrun, which starts its ranks here; leave out --scheduler, or "
            "choose --launcher dask"
        )
    samples = load_samples(stores, training.bands)
    sizes = samples.sizes or (len(samples),)
    data = "; ".join(f"{Path(one).name}: {size} chips with truth" for one, size in zip(stores, sizes, strict=True))
    jobs = not named and cluster.slurm and (cluster.maximum or cluster.workers)
    alone = not describe_network(task_named(task), training)["channels"]
    here = 0 if named else min(gpus_here(), training.batch // 2) or 1
    ranks = training.ranks or jobs or (1 if alone else here)
    if ranks == 1 and not cluster.elsewhere:
        split = samples.split(training.seed, training.split, training.chips)
        return fit(task, samples, split, training, out, progress, data=data, command=command)
    with _stopped_by_sigterm():
        if training.launcher == "torchrun":
            spec = _write_spec(training, ranks, out, task=task, store=stores, data=data, command=command)
            run_torchrun(spec, ranks, training, progress)
        else:
            if not named and (cluster.workers or ranks) < ranks:
                raise ConfigError(
                    f"found cluster.workers = {cluster.workers} for {ranks} ranks; expected a worker for each rank: "
                    "leave out --workers, or ask for fewer ranks with --ranks"
                )
            own = {"workers": cluster.workers or ranks, "minimum": None, "maximum": None}
            client = connect(cluster if named else cluster.model_copy(update=own), share_gpus=True)
            try:
                ranks = ranks or min(gpus_of(client), training.batch // 2) or 1
                spec = _write_spec(training, ranks, out, task=task, store=stores, data=data, command=command)
                train_gang(client, spec, ranks, training.timeout, training.restarts, progress)
            finally:
                client.close()
    return FitResult.from_folder(out, task)


def _write_spec(training: TrainingConfig, ranks: int, out: Path, **spec: str | list[str]) -> Path:
    """What the ranks are to do; micro-batches are fixed, so that a gang that has lost a rank takes the same steps."""
    from csst_dask.training.rank import write_spec

    update: dict[str, object] = {}
    if isinstance(training.pretrained, Path):
        update["pretrained"] = training.pretrained.expanduser().resolve()
    settings = training.model_copy(update=update).model_dump(mode="json")
    return write_spec(out / "rank.json", out=str(out), config=settings, parts=ranks, **spec)


def gpus_here() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def gpus_of(client: Client) -> int:
    """Workers of a cluster that have told their scheduler of a GPU; waits for the first worker."""
    wait_for_workers(client, 1)
    return sum("gpu" in worker for worker in known_workers(client).values())


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that ranks can write a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_torchrun(
    spec: Path,
    ranks: int,
    config: TrainingConfig,
    progress: Progress | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Train under torchrun on this machine.

    torchrun starts the ranks again when one fails. It does not notice that all have hung, or the one that others do
    not wait for: then it is ended with its ranks, and started again from the last checkpoint.

    Parameters
    ----------
    spec : Path
        From `csst_dask.training.rank.write_spec`.
    ranks : int
    config : TrainingConfig
        ``restarts`` is torchrun's ``--max-restarts``, and how often torchrun itself is started again.
    progress : callable, optional
    tell : callable
        Called with a line when the ranks have hung.

    Raises
    ------
    ConfigError, KeyboardInterrupt
        As for `csst_dask.runners.train.train_network`.
    RuntimeError
        If ranks failed or hung more often than they may.
    """
    for attempt in range(config.restarts + 1):
        try:
            return _launch(spec, ranks, config, progress)
        except GangBroken as broken:
            tell_restart(broken, attempt, config.restarts, tell)


def _launch(spec: Path, ranks: int, config: TrainingConfig, progress: Progress | None) -> None:
    from csst_dask.training.rank import LEASH, TOLD

    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
        f"--max-restarts={config.restarts}", "-m", "csst_dask.training.rank", str(spec),
    ]  # fmt: skip
    said: deque[str] = deque(maxlen=200)
    process = subprocess.Popen(
        command, env=os.environ | {LEASH: "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    watch = _Watch(process)
    with process:
        watch.start()
        try:
            for line in process.stdout or ():
                found = events_in(line, TOLD, said)
                # what is no sign of life may be of torchrun, which starts ranks again
                watch.hear(SILENCE * config.timeout if found else START)
                for step in found:
                    if step and progress:
                        progress(*step)
        except BaseException:
            _end(process)
            raise
    if watch.hung:
        raise GangBroken(f"no rank has moved for {watch.patience:g} s")
    if process.returncode:
        _raise_for(spec, process.returncode, said)


class _Watch(threading.Thread):
    """Ends torchrun and its ranks if nothing is heard of them for too long."""

    def __init__(self, process: subprocess.Popen) -> None:
        super().__init__(daemon=True)
        self.process, self.hung = process, False
        self.hear(START)

    def hear(self, patience: float) -> None:
        """Something was heard; the next must come within so many seconds."""
        self.heard, self.patience = time.monotonic(), patience

    def run(self) -> None:
        while self.process.poll() is None:
            time.sleep(POLL)
            if time.monotonic() - self.heard > self.patience:
                self.hung = True
                with suppress(psutil.Error):  # ranks that are stopped do not end when they lose standard input
                    ranks = psutil.Process(self.process.pid).children(recursive=True)
                    self.process.kill()
                    for rank in ranks:
                        with suppress(psutil.Error):
                            rank.kill()
                return


def _end(process: subprocess.Popen) -> None:
    """Ask torchrun and its ranks to stop, with a checkpoint; ranks that do not end when they lose standard input."""
    process.terminate()
    if process.stdout:  # a full pipe would hold them up
        threading.Thread(target=process.stdout.read, daemon=True).start()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


def _raise_for(spec: Path, status: int, said: deque[str]) -> NoReturn:
    from csst_dask.training.rank import WRONG, end_of

    end = end_of(spec)
    if end.exists():
        known = json.loads(end.read_text())
        raise (ConfigError if known["status"] == WRONG else KeyboardInterrupt)(known["text"])
    raise RuntimeError(f"torchrun ended with exit status {status}, run it again to go on: {last_words(said)}")
