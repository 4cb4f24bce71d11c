"""Train one network, alone or as one of several ranks."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.training.cache import InputCache
from csst_dask.training.checkpoint import load_checkpoint, save_checkpoint, tidy
from csst_dask.training.describe import describe_hardware
from csst_dask.training.finish import FitResult, finish
from csst_dask.training.loop import Loop, Progress, Stopped
from csst_dask.training.ranks import MEETING, Ranks, joined
from csst_dask.training.recipes import task_named
from csst_dask.training.run import Run, plan_run
from csst_dask.training.samples import Samples
from csst_dask.training.split import Split


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
    data: str = "",
    command: str = "",
    inputs: Path | None = None,
    parts: int | None = None,
    watch: Callable[[dict[str, float]], None] | None = None,
    alive: Callable[[], None] = lambda: None,
) -> FitResult:
    """Train a network, keep what was best on the validation chips, measure it on the test chips, write it.

    Called again with the same arguments it goes on after the last checkpoint, and with the same result as if
    it had not stopped (other threads or another device round otherwise); once finished it returns at once. Where the
    environment names several ranks (as torchrun does), this process is one of them. Torch's global generators are left
    as they were. While it takes steps, SIGINT and SIGTERM end it after the one at hand with a checkpoint.

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
        Folder for ``checkpoint.pt``, ``log.csv``, ``<task>.safetensors`` and ``<task>.md``; all ranks see it.
    progress : callable, optional
        Called after every step of the first rank.
    threads : int, optional
        CPU threads of torch meanwhile; by default one for each core that this process may use, shared among the ranks
        here. A network without maps takes one.
    device : str, optional
        By default ``cuda`` where there is one, else ``cpu``.
    data, command : str
        Where the samples come from and how to repeat this, for the model card.
    inputs : Path, optional
        Folder of inputs that several trainings share; by default one in ``out`` that goes when this is finished.
    parts : int, optional
        Micro-batches of a step where neither a checkpoint nor ``config`` says so; by default one for each rank.
    watch : callable, optional
        Called with each line of the log, by name; what it raises ends the training.
    alive : callable
        Called whenever something has been done: a block of inputs, a forward pass, a checkpoint read.

    Returns
    -------
    FitResult

    Raises
    ------
    ConfigError
        If the task or architecture is unknown, a set is too small, ``out`` holds another training, or the
        loss is no longer finite.
    KeyboardInterrupt
        If a signal ended it.
    """
    run, out = plan_run(task_named(task), samples, split, config), Path(out)
    checkpoint, weights = out / "checkpoint.pt", out / f"{task}.safetensors"
    with _threads(_useful_threads(run, threads)):
        with joined(device, config.timeout) as ranks:
            alive()
            state = ranks.share(partial(load_checkpoint, checkpoint, run.fingerprint_beside, lambda: run.settings))
            stored = _stored_parts(state, config, out)
            finished, history, stopped = bool(state and state["finished"]), [], None
            if not finished:
                parts = stored or config.parts or parts or ranks.world
                loop = _prepare(run, ranks, out, inputs or out / "inputs", parts, bool(state), alive)
                loop.progress, loop.watch = progress, watch
                stopped = _learn(loop, state)
                history, module, best = loop.history, loop.module, loop.best
                del loop
        if stopped:
            raise KeyboardInterrupt(f"{stopped}; call it again to go on")
        if not finished and ranks.first:
            module.load_state_dict(best)
            hardware = describe_hardware(ranks.device, ranks.world)
            finish(run, module, ranks.device, history, out, data, command, hardware, parts or 1)
            ended = {"fingerprint": run.fingerprint, "settings": run.settings, "pretrained": run.pretrained}
            save_checkpoint(checkpoint, ended | {"parts": parts, "finished": True})
    if ranks.first:
        tidy(checkpoint)
        if inputs is None:
            shutil.rmtree(out / "inputs", ignore_errors=True)
    elif not finished:
        return FitResult(weights, weights.with_suffix(".md"), len(history), 0, {})
    return FitResult.from_folder(out, task)


def _stored_parts(state: dict | None, config: TrainingConfig, out: Path) -> int | None:
    """Micro-batches of a step that a training began with: they decide what comes out."""
    stored = (state or {}).get("parts")
    if stored and config.parts not in (None, stored):
        raise ConfigError(
            f"training.parts: found {config.parts} for the training in {out}, which took {stored} micro-batches a "
            f"step; expected {stored}: leave it out, or choose another folder"
        )
    return stored


def _prepare(
    run: Run, ranks: Ranks, out: Path, inputs: Path, parts: int, begun: bool, alive: Callable[[], None]
) -> Loop:
    """The first rank makes the inputs while the others wait for it."""
    config = run.config
    step = min(config.batch, run.visits)
    if begun and ranks.world > parts:
        raise ConfigError(
            f"found {ranks.world} ranks for a training that began with {parts} micro-batches a step; expected no more "
            f"ranks than these: give --ranks {parts}, or another folder to begin anew"
        )
    if ranks.world > parts or step < 2 * parts:
        raise ConfigError(
            f"{ranks.world} ranks and {step} chips a step for {parts} micro-batches; expected no more ranks than "
            "micro-batches, of two chips at least: set training.parts and training.batch"
        )
    fingerprint = run.fingerprint_beside({"finished": False})
    run.draw()  # tells at once of a network that cannot be
    folder = inputs / run.inputs_key
    if ranks.first:
        InputCache.fill(folder, run.samples, run.visited, run.inputs, alive)
    cache = InputCache.open(folder, run.samples, run.visited, max(MEETING, config.timeout))
    ranks.meet()
    module = run.build(cache, ranks.device)
    module.register_forward_hook(lambda *_: alive())  # in training, in validation and when it is measured
    return Loop(run, ranks, cache, module, out, parts, fingerprint)


def _learn(loop: Loop, state: dict | None) -> str | None:
    """Take all steps that are left; what there is to say if a signal ended it."""
    cuda = [loop.ranks.device] if loop.ranks.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), _watched() as stopping:
        loop.stopping = stopping
        try:
            loop.train(state)
        except Stopped as stopped:
            return str(stopped)
    return None


@contextmanager
def _watched() -> Iterator[Callable[[], bool]]:
    """Whether a signal has asked to stop; a second SIGINT acts as it always does, a second SIGTERM adds nothing."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: object) -> None:
        asked.set()
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _useful_threads(run: Run, wanted: int | None) -> int:
    """One for networks without maps, whose steps are too small to share; else a rank's share of the cores."""
    if not run.network["channels"]:
        return 1
    if wanted:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
