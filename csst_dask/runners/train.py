"""Train one network from a survey store with truth: here, as ranks on Dask workers, or under torchrun."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from csst_dask.config import Config, TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.runners.cluster import connect
from csst_dask.runners.gang import train_gang
from csst_dask.training.rank import STOPPED, TOLD, WRONG, write_spec

if TYPE_CHECKING:
    from csst_dask.training import FitResult

Progress = Callable[[int, int, int, int, float], None]


def train_network(
    task: str, store: str, out: Path, config: Config, progress: Progress | None = None, command: str = ""
) -> FitResult:
    """Train a network; an interrupted training goes on from its last checkpoint.

    Parameters
    ----------
    task : str
        ``classifier`` or ``regressor``.
    store : str
        Survey store whose chips have truth.
    out : Path
        Receives checkpoints, log, weights and model card; with several ranks, all see it.
    config : Config
        Sections ``training`` and, with several ranks under Dask, ``cluster``.
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
        If the store has no chips to learn from, or a setting is wrong.
    RuntimeError
        If ranks failed more often than they may.
    KeyboardInterrupt
        If it was asked to stop; a checkpoint is there.
    """
    from csst_dask.training import FitResult, fit, load_samples

    out = Path(out).resolve()
    samples = load_samples(store, config.training.bands)
    data = f"{Path(store).name}: {len(samples)} chips with truth"
    ranks = config.training.ranks or default_ranks()
    if ranks == 1:
        split = samples.split(config.training.seed)
        return fit(task, samples, split, config.training, out, progress, data=data, command=command)
    # fixed from the start: a gang that has lost a rank takes the same steps
    settings = config.training.model_copy(update={"parts": config.training.parts or ranks})
    spec = write_spec(
        out / "rank.json", task=task, store=str(Path(store).resolve()), out=str(out),
        config=settings.model_dump(mode="json"), data=data, command=command,
    )  # fmt: skip
    if config.training.launcher == "torchrun":
        run_torchrun(spec, ranks, config.training, progress)
    else:
        workers = config.cluster.workers or ranks
        client = connect(config.cluster.model_copy(update={"workers": workers}))
        try:
            train_gang(client, spec, ranks, config.training.timeout, config.training.restarts, progress)
        finally:
            client.close()
    return FitResult.from_folder(out, task)


def default_ranks() -> int:
    """One for each GPU, or one."""
    import torch

    return max(1, torch.cuda.device_count())


def run_torchrun(spec: Path, ranks: int, config: TrainingConfig, progress: Progress | None = None) -> None:
    """Train under torchrun on this machine.

    Parameters
    ----------
    spec : Path
        From `csst_dask.training.rank.write_spec`.
    ranks : int
    config : TrainingConfig
        ``restarts`` is torchrun's ``--max-restarts``.
    progress : callable, optional

    Raises
    ------
    ConfigError, RuntimeError, KeyboardInterrupt
        As for `train_network`.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
        f"--max-restarts={config.restarts}", "-m", "csst_dask.training.rank", str(spec),
    ]  # fmt: skip
    said: deque[str] = deque(maxlen=200)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(TOLD):
                    if progress:
                        progress(*json.loads(line.removeprefix(TOLD)))
                elif line.strip():
                    said.append(line.strip())
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        ours = [line.removeprefix("csst-dask: ") for line in said if line.startswith("csst-dask: ")]
        text = (ours or list(said) or ["it said nothing"])[-1]
        if any(f"exitcode  : {WRONG} " in line for line in said):
            raise ConfigError(text)
        if any(f"exitcode  : {STOPPED} " in line for line in said):
            raise KeyboardInterrupt(text)
        raise RuntimeError(f"torchrun ended with exit status {process.returncode}: {text}")
