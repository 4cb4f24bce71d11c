"""Train one network, alone or as one of several ranks."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.training.cache import InputCache
from csst_dask.training.checkpoint import load_checkpoint, save_checkpoint
from csst_dask.training.finish import FitResult, finish
from csst_dask.training.loop import Loop, Progress, Stopped
from csst_dask.training.ranks import Ranks, joined
from csst_dask.training.recipes import task_named
from csst_dask.training.run import Run, plan_run
from csst_dask.training.samples import Samples, Split


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
    inputs: Path | None = None,
    watch: Callable[[dict[str, float]], None] | None = None,
) -> FitResult:
    """Train a network, keep what was best on the validation chips, measure it on the test chips, write it.

    Called again with the same arguments it goes on after the last checkpoint, and with the same result as if
    it had not stopped; once finished it returns at once. Where the environment names several ranks (as torchrun
    does), this process is one of them. Torch's global generators are left as they were. SIGINT and SIGTERM end it
    after the step at hand with a checkpoint.

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
        CPU threads of torch meanwhile; by default every core, shared among the ranks here.
    device : str, optional
        By default ``cuda`` where there is one, else ``cpu``.
    crowded : bool
        Let the regressor learn from class 5 too, which inference bypasses.
    data, command : str
        Where the samples come from and how to repeat this, for the model card.
    inputs : Path, optional
        Folder of inputs that several trainings share; by default one in ``out`` that goes when this is finished.
    watch : callable, optional
        Called with each line of the log, by name; what it raises ends the training.

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
    run, out = plan_run(task_named(task), samples, split, config, crowded), Path(out)
    state = load_checkpoint(out / "checkpoint.pt", run.fingerprint)
    if state and state["finished"]:
        if inputs is None:
            shutil.rmtree(out / "inputs", ignore_errors=True)
        return FitResult.from_folder(out, task)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with _threads(threads or max(1, (os.cpu_count() or 1) // local)), _watched() as stopping:
        with joined(device, config.timeout) as ranks:
            loop = _prepare(run, ranks, out, inputs or out / "inputs", state)
            loop.progress, loop.stopping, loop.watch = progress, stopping, watch
            cuda = [ranks.device] if ranks.device.type == "cuda" else []
            with torch.random.fork_rng(devices=cuda):
                try:
                    loop.train(state)
                except Stopped as stopped:
                    raise KeyboardInterrupt(f"{stopped}; call it again to go on") from None
            history, best, device_used = loop.history, loop.best, ranks.device
            first, module = ranks.first, loop.module
            del loop
        if not first:
            return FitResult(out / f"{task}.safetensors", out / f"{task}.md", len(history), 0, {})
        module.load_state_dict(best)
        result = finish(run, module, device_used, history, out, data, command)
    save_checkpoint(out / "checkpoint.pt", {"fingerprint": run.fingerprint, "finished": True})
    if inputs is None:
        shutil.rmtree(out / "inputs", ignore_errors=True)
    return result


def make_inputs_of(task: str, samples: Samples, split: Split, config: TrainingConfig, inputs: Path) -> None:
    """Make the inputs that `fit` would make, for trainings that share the folder ``inputs``."""
    run = plan_run(task_named(task), samples, split, config)
    InputCache.fill(inputs / run.inputs_key, run.samples, run.visited, run.recipe.inputs)


def _prepare(run: Run, ranks: Ranks, out: Path, inputs: Path, state: dict | None) -> Loop:
    """The first rank makes the inputs while the others wait for it."""
    config = run.config
    parts = (state or {}).get("parts") or config.parts or ranks.world
    step = min(config.batch, run.visits)
    if ranks.world > parts or step < 2 * parts:
        raise ConfigError(
            f"{ranks.world} ranks and {step} chips a step for {parts} micro-batches; expected no more ranks than "
            "micro-batches, of two chips at least: set training.parts and training.batch"
        )
    folder = inputs / run.inputs_key
    if ranks.first:
        InputCache.fill(folder, run.samples, run.visited, run.recipe.inputs)
    cache = InputCache.open(folder, run.samples, run.visited)
    return Loop(run, ranks, cache, run.build(cache, ranks.device), out, parts)


@contextmanager
def _watched() -> Iterator[Callable[[], bool]]:
    """Whether a signal has asked to stop; a second one acts as it always does."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: object) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
