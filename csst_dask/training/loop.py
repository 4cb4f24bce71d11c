"""The loop: steps of micro-batches over the ranks, validation, checkpoints. It can be killed at any moment.

All that is random belongs to a sample or to a step's micro-batch, never to a process: one rank with two micro-batches
takes the same steps as two ranks with one each, and a training that goes on takes those that it would have taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from csst_dask.models.density import ask
from csst_dask.outputs import write_atomically
from csst_dask.training.augment import apply_dihedral, apply_jitter, draw_dihedral, draw_jitter
from csst_dask.training.cache import InputCache
from csst_dask.training.checkpoint import save_checkpoint
from csst_dask.training.losses import Diverged
from csst_dask.training.ranks import Ranks
from csst_dask.training.run import Run
from csst_dask.training.running import CHIPS, settle_statistics
from csst_dask.training.stages import build_optimiser, build_schedule, freeze_statistics

Progress = Callable[[int, int, int, int, float], None]
"""(epoch, epochs, step, steps, loss); epoch and step count from 1."""

LOG_COLUMNS = ("epoch", "train_loss", "validation_loss", "learning_rate", "seconds", "validation_score")
"""The score is the accuracy of a classifier and the mean absolute error, dex, of a regressor."""

QUICK = 25
"""Epochs without maps take a second; a checkpoint is written after so many of them."""


class Stopped(Exception):
    """The training was asked to stop and has written a checkpoint."""


@dataclass
class Loop:
    """A training under way."""

    run: Run
    ranks: Ranks
    cache: InputCache
    module: nn.Module
    """Where the parameters are."""
    out: Path
    parts: int
    """Micro-batches of a step; at least as many as ranks."""
    fingerprint: str
    """Of the run; goes into every checkpoint."""
    progress: Progress | None = None
    stopping: Callable[[], bool] = lambda: False
    """Asked after every step."""
    watch: Callable[[dict[str, float]], None] | None = None
    """Called on the first rank with the line of the log after every epoch; what it raises ends the training."""
    stage: int = -1
    step: int = 0
    """Steps of the epoch that are done."""
    total: float = 0.0
    """Sum of the losses of these steps."""
    rate: float = 0.0
    """Learning rate at the start of the epoch."""
    seconds: float = 0.0
    """Spent on these steps before the last start."""
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def train(self, state: dict[str, Any] | None) -> None:
        """Take all steps that are left; `history` and `best` hold what came of it.

        Parameters
        ----------
        state : dict or None
            A checkpoint of this training.

        Raises
        ------
        Stopped
            If it was asked to stop.
        ConfigError
            If the loss is no longer finite.
        """
        self._enter(state["stage"] if state else 0)
        if state:
            self._restore(state)
            if self.ranks.first:
                write_log(self.out / "log.csv", self.history)  # a kill may have come between checkpoint and log
        while self._more():
            self._epoch()

    def _more(self) -> bool:
        """Whether an epoch is left; goes on to the next stage where one is over."""
        run = self.run
        if self._more_of_stage():
            return True
        if self.stage + 1 == len(run.stages):
            return False
        self.module.load_state_dict(self.best)
        self._enter(self.stage + 1)
        return True

    def _more_of_stage(self) -> bool:
        """Whether an epoch of the stage is left; one by the plateau ends early where it rests."""
        run = self.run
        of_stage = [row for row in self.history if row["stage"] == self.stage]
        over = run.recipe.schedule == "plateau" and rests(of_stage, run.config.early_stopping_epochs)
        return len(of_stage) < run.stages[self.stage].epochs and not over

    def _enter(self, stage: int) -> None:
        run, config = self.run, self.run.config
        self.stage = stage
        self.optimiser = build_optimiser(self.module, run.stages[stage], config)
        steps = run.stages[stage].epochs * run.steps
        self.schedule = build_schedule(run.recipe.schedule, self.optimiser, steps, config.early_stopping_epochs)
        self.wrapped = self.ranks.wrap(self.module)
        self.precision = _precision(config.amp, self.ranks.device)
        self.scaler = torch.amp.GradScaler(self.ranks.device.type, enabled=self.precision is torch.float16)

    def _restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.total, self.seconds, self.rate = (state[n] for n in ("step", "total", "seconds", "rate"))
        self.history, self.best = state["history"], state["best"]

    def save(self) -> None:
        """Write a checkpoint: all ranks hold the same, save running statistics, which an epoch's end settles."""
        if self.ranks.first:
            state = {
                "fingerprint": self.fingerprint,
                "settings": self.run.settings,
                "finished": False,
                "parts": self.parts,
                "stage": self.stage,
                "step": self.step,
                "total": self.total,
                "seconds": self.seconds,
                "rate": self.rate,
                "module": self.module.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
                "history": self.history,
                "best": self.best,
            }
            save_checkpoint(self.out / "checkpoint.pt", state)
            write_log(self.out / "log.csv", self.history)

    def _epoch(self) -> None:
        """Train on what is left of an epoch, then validate."""
        run = self.run
        started, epoch = time.perf_counter() - self.seconds, len(self.history)
        if self.step == 0:
            self.rate = float(self.optimiser.param_groups[0]["lr"])
        self._learn(epoch, started)
        self._settle()
        loss, (validation, score) = self.total / run.steps, self._validate()
        if not (np.isfinite(loss) and np.isfinite(validation)):
            raise Diverged(
                f"the {run.task.name}'s loss is {loss} (training) and {validation} (validation) in epoch "
                f"{epoch + 1}; expected finite ones: lower training.learning_rate or training.clip and "
                "choose a new folder"
            )
        if run.recipe.schedule == "plateau":
            self.schedule.step(validation)
        row = (epoch + 1, loss, validation, self.rate, time.perf_counter() - started, score)
        self.history.append(dict(zip(LOG_COLUMNS, row, strict=True)) | {"stage": self.stage})
        if run.recipe.schedule == "cosine" or validation <= min(past["validation_loss"] for past in self.history):
            self.best = {name: tensor.cpu().clone() for name, tensor in self.module.state_dict().items()}
        self.step, self.total, self.seconds = 0, 0.0, 0.0
        stage = run.stages[self.stage]
        if stage.maps or len(self.history) % QUICK == 0 or not self._more_of_stage():
            self.save()
        if self.watch and self.ranks.first:
            self.watch(self.history[-1])

    def _learn(self, epoch: int, started: float) -> None:
        run, config = self.run, self.run.config
        visits = np.tile(run.split.train, run.recipe.copies)
        copies = np.repeat(np.arange(run.recipe.copies), len(run.split.train))
        order = np.random.default_rng((config.seed, epoch, 2)).permutation(len(visits))
        drawn = [self._draws(epoch * run.recipe.copies + copy) for copy in range(run.recipe.copies)]
        epochs, saved = sum(stage.epochs for stage in run.stages), time.monotonic()
        self.wrapped.train()
        freeze_statistics(self.module)
        while self.step < run.steps:
            chosen = order[self.step * config.batch : (self.step + 1) * config.batch]
            share = self._step(epoch, visits[chosen], copies[chosen], drawn)
            due = time.monotonic() - saved > 60 * config.checkpoint_minutes and self.step + 1 < run.steps
            loss, stop, due_somewhere = self.ranks.sum([share, float(self.stopping()), float(due)])
            self.total += loss
            self.step += 1
            if self.progress and self.ranks.first:
                self.progress(epoch + 1, epochs, self.step, run.steps, loss)
            if stop or due_somewhere:
                self.seconds = time.perf_counter() - started
                self.save()
                saved = time.monotonic()
            if stop:
                raise Stopped(f"stopped in epoch {epoch + 1} after step {self.step} of {run.steps}")

    def _draws(self, visit: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        seed, n = self.run.config.seed, len(self.run.samples)
        return draw_dihedral(seed, visit, n), draw_jitter(seed, visit, n, self.run.recipe.jitter)

    def _step(self, epoch: int, rows: NDArray[np.int64], copies: NDArray[np.int64], drawn: list) -> float:
        """One step of the optimiser; the share of this rank in the loss."""
        config, ranks = self.run.config, self.ranks
        parts = [part for part in np.array_split(np.arange(len(rows)), self.parts) if len(part)]
        mine = range(ranks.rank, len(parts), ranks.world)
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for place in mine:
            part = parts[place]
            torch.manual_seed(_key(config.seed, epoch, self.step, place))  # of dropout
            with ranks.silent(self.wrapped, place == mine[-1]):
                loss = self._loss(rows[part], copies[part], drawn, rows)
                self.scaler.scale(loss * ranks.world).backward()  # gradients are averaged over ranks
            total += loss.item()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.module.parameters(), config.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.run.recipe.schedule == "cosine":
            self.schedule.step()
        return total

    def _loss(
        self, rows: NDArray[np.int64], copies: NDArray[np.int64], drawn: list, batch: NDArray[np.int64]
    ) -> torch.Tensor:
        run, device = self.run, self.ranks.device
        maps, context = self.cache.batch(rows, device, maps=run.stages[self.stage].maps)
        if maps is not None:
            maps = apply_dihedral(maps, np.array([drawn[c][0][r] for c, r in zip(copies, rows, strict=True)]))
            if run.recipe.jitter:
                maps = apply_jitter(maps, np.array([drawn[c][1][r] for c, r in zip(copies, rows, strict=True)]))
            maps = maps.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, self.precision, enabled=self.precision is not torch.float32):
            answer = ask(self.wrapped, run.network, maps, context)
        return run.task.loss(answer, run.targets, rows, run.config, batch)

    def _settle(self) -> None:
        """Statistics of the normalisations from chips to learn from, as they are."""
        run, maps = self.run, self.run.stages[self.stage].maps
        if not maps:
            return
        rows, size = run.split.train, max(2, run.config.batch // self.parts)
        rows = np.random.default_rng(run.config.seed).permutation(rows)[: max(CHIPS, size)]
        batches = list(rows[: len(rows) // size * size].reshape(-1, size)) or [rows]
        settle_statistics(
            self.module,
            self.ranks,
            batches,
            lambda block: ask(self.module, run.network, *self.cache.batch(block, self.ranks.device, maps=maps)),
        )

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float]:
        """Mean loss and score of the validation chips; each rank takes some of them."""
        run, batch = self.run, max(1, self.run.config.batch // self.parts)
        self.module.eval()
        rows, sums = run.split.validation, [0.0, 0.0, 0.0]
        for start in range(self.ranks.rank * batch, len(rows), self.ranks.world * batch):
            block = rows[start : start + batch]
            inputs = self.cache.batch(block, self.ranks.device, maps=run.stages[self.stage].maps)
            answer = ask(self.module, run.network, *inputs)
            sums[0] += run.task.loss(answer, run.targets, block, run.config, rows).item()
            sums[1] += len(block)
            sums[2] += run.task.score(answer, run.targets, block) * len(block)
        total, count, scores = self.ranks.sum(sums)
        return total, scores / count


def rests(history: list[dict[str, float]], patience: int) -> bool:
    """No better validation loss in the last ``patience`` epochs."""
    losses = [row["validation_loss"] for row in history]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def write_log(path: Path, history: list[dict[str, float]]) -> None:
    """Write one line an epoch, `LOG_COLUMNS` separated by commas."""
    rows = (",".join(f"{row[name]:.6g}" for name in LOG_COLUMNS) for row in history)
    write_atomically(path, ("\n".join([",".join(LOG_COLUMNS), *rows]) + "\n").encode())


def _key(*words: int) -> int:
    """A seed of torch's generators for whole numbers."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def _precision(amp: str, device: torch.device) -> torch.dtype:
    if amp == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}[amp]
