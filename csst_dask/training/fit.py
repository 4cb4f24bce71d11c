"""Train one network in one process: an ordinary loop that can be killed and called again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.models.files import write_atomically
from csst_dask.training.augment import apply_dihedral, apply_jitter, draw_dihedral, draw_jitter
from csst_dask.training.checkpoint import load_checkpoint, random_state, restore_random_state, save_checkpoint
from csst_dask.training.finish import FitResult, finish
from csst_dask.training.recipes import build_schedule, task_named
from csst_dask.training.run import Run, plan_run
from csst_dask.training.samples import Samples, Split

Progress = Callable[[int, int, int, int, float], None]
"""(epoch, epochs, step, steps, loss); epoch and step count from 1."""

LOG_COLUMNS = ("epoch", "train_loss", "validation_loss", "learning_rate", "seconds")


def fit(
    task: str,
    samples: Samples,
    split: Split,
    config: TrainingConfig,
    out: Path,
    progress: Progress | None = None,
    *,
    threads: int | None = None,
    device: str | None = None,
    crowded: bool = False,
    data: str = "",
    command: str = "",
) -> FitResult:
    """Train a network, keep what was best on the validation chips, measure it on the test chips, write it.

    Called again with the same arguments it goes on after the last whole epoch, and with the same result as if
    it had not stopped; once finished it returns at once. Torch's global generators are left as they were.

    Parameters
    ----------
    task : str
        ``classifier`` or ``regressor``.
    samples : Samples
        Not modified.
    split : Split
        Rows of the three sets.
    config : TrainingConfig
        Its ``bands`` choose among the samples.
    out : Path
        Folder for ``checkpoint.pt``, ``log.csv``, ``<task>.safetensors`` and ``<task>.md``.
    progress : callable, optional
        Called after every step.
    threads : int, optional
        CPU threads of torch meanwhile; by default every core.
    device : str, optional
        By default ``cuda`` where there is one, else ``cpu``.
    crowded : bool
        Let the regressor learn from class 5 too, which inference bypasses.
    data, command : str
        Where the samples come from and how to repeat this, for the model card.

    Returns
    -------
    FitResult

    Raises
    ------
    ConfigError
        If the task or architecture is unknown, a set is too small, ``out`` holds another training, or the
        loss is no longer finite.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = plan_run(task_named(task), samples, split, config, crowded, where)
    out = Path(out)
    state = load_checkpoint(out / "checkpoint.pt", run.fingerprint)
    if state and state["finished"]:
        return FitResult.from_folder(out, task)
    cuda = [where] if where.type == "cuda" else []
    with _threads(threads), torch.random.fork_rng(devices=cuda):
        module = run.build()
        history, best = _train(run, module, state, out, progress)
        module.load_state_dict(best)
        result = finish(run, module, history, out, data, command)
    save_checkpoint(out / "checkpoint.pt", {"fingerprint": run.fingerprint, "finished": True})
    return result


def _train(
    run: Run, module: nn.Module, state: dict[str, Any] | None, out: Path, progress: Progress | None
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """All epochs that are left; the history of all, and the best weights."""
    config = run.config
    torch.manual_seed(config.seed)
    optimiser = torch.optim.AdamW(module.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = build_schedule(run.recipe.schedule, optimiser, config.epochs * run.steps, config.patience)
    history: list[dict[str, float]] = []
    best: dict[str, torch.Tensor] = {}
    if state:
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        restore_random_state(state["random"], run.device)
        history, best = state["history"], state["best"]
    while len(history) < config.epochs and not _rests(history, config.patience):
        history.append(_one_epoch(run, module, optimiser, schedule, len(history), progress))
        if history[-1]["validation_loss"] <= min(row["validation_loss"] for row in history):
            best = {name: tensor.cpu().clone() for name, tensor in module.state_dict().items()}
        state = {
            "fingerprint": run.fingerprint,
            "finished": False,
            "module": module.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "random": random_state(run.device),
            "history": history,
            "best": best,
        }
        save_checkpoint(out / "checkpoint.pt", state)
        _write_log(out / "log.csv", history)
    return history, best


def _one_epoch(
    run: Run, module: nn.Module, optimiser, schedule, epoch: int, progress: Progress | None
) -> dict[str, float]:
    """Train on every chip once, then validate; a row of the log."""
    started = time.perf_counter()
    rate = optimiser.param_groups[0]["lr"]
    loss = _learn(run, module, optimiser, schedule, epoch, progress)
    validation = _validate(run, module)
    if not (np.isfinite(loss) and np.isfinite(validation)):
        raise ConfigError(
            f"the {run.task.name}'s loss is {loss} (training) and {validation} (validation) in epoch "
            f"{epoch + 1}; expected finite ones: lower training.learning_rate or training.clip and "
            "choose a new folder"
        )
    if run.recipe.schedule == "plateau":
        schedule.step(validation)
    row = (epoch + 1, loss, validation, float(rate), time.perf_counter() - started)
    return dict(zip(LOG_COLUMNS, row, strict=True))


def _learn(run: Run, module: nn.Module, optimiser, schedule, epoch: int, progress: Progress | None) -> float:
    """One pass over the training chips; the mean loss."""
    config, n = run.config, len(run.samples)
    order = np.random.default_rng((config.seed, epoch, 2)).permutation(run.split.train)
    symmetry = draw_dihedral(config.seed, epoch, n)
    jitter = draw_jitter(config.seed, epoch, n, run.recipe.jitter)
    module.train()
    total = 0.0
    for step in range(run.steps):
        rows = order[step * config.batch : (step + 1) * config.batch]
        inputs = apply_dihedral(run.cache.batch(rows, run.device), symmetry[rows])
        if run.recipe.jitter:
            inputs = apply_jitter(inputs, jitter[rows])
        outputs = module(inputs.contiguous(memory_format=torch.channels_last))
        loss = run.task.loss(outputs, torch.from_numpy(run.targets[rows]).to(run.device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), config.clip)
        optimiser.step()
        if run.recipe.schedule == "cosine":
            schedule.step()
        total += loss.item()
        if progress:
            progress(epoch + 1, config.epochs, step + 1, run.steps, loss.item())
    return total / run.steps


@torch.inference_mode()
def _validate(run: Run, module: nn.Module) -> float:
    """Mean loss of the validation chips."""
    module.eval()
    rows = run.split.validation
    total = 0.0
    for start in range(0, len(rows), run.config.batch):
        block = rows[start : start + run.config.batch]
        outputs = module(run.cache.batch(block, run.device))
        loss = run.task.loss(outputs, torch.from_numpy(run.targets[block]).to(run.device))
        total += loss.item() * len(block)
    return total / len(rows)


def _rests(history: list[dict[str, float]], patience: int) -> bool:
    """No better validation loss in the last ``patience`` epochs."""
    losses = [row["validation_loss"] for row in history]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _write_log(path: Path, history: list[dict[str, float]]) -> None:
    lines = [
        ",".join(LOG_COLUMNS),
        *(",".join(f"{row[name]:.6g}" for name in LOG_COLUMNS) for row in history),
    ]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
