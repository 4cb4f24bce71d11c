"""The two networks on their way to the workers: only names and checksums travel, every process loads them once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from distributed import Client

from csst_dask.config import Config, InferenceConfig
from csst_dask.errors import ConfigError
from csst_dask.inference.device import choose_device
from csst_dask.models.files import identify_pair
from csst_dask.runners.faults import Failure
from csst_dask.runners.window import Task, run_tasks
from csst_dask.store import predictions

if TYPE_CHECKING:
    from csst_dask.inference.batching import Predictor
    from csst_dask.inference.two_stage import TwoStage

AUTO = 0
"""Rows of a block that are not chosen yet."""


@dataclass(frozen=True)
class Pair:
    """The two networks that predictions are made with, and how."""

    folder: Path
    checksums: Mapping[str, str]
    """SHA-256 by task."""
    settings: InferenceConfig
    batch: int = AUTO
    """Chips of a task and of a forward pass."""

    @property
    def identity(self) -> dict[str, str]:
        """Whose predictions they are, as attributes of a store's group."""
        return {f"{task}_sha256": value for task, value in self.checksums.items()}


def choose_pair(client: Client, config: Config, path: str | None = None, folder: Path | None = None) -> Pair:
    """The networks of a configuration, with the batch that workers can take.

    Parameters
    ----------
    client : distributed.Client
    config : Config
        Sections ``inference`` and ``execution``.
    path : str, optional
        Store whose predictions are continued: a batch that is chosen is theirs, whatever the workers could take.
    folder : path, optional
        Weights; by default those of the configuration.

    Returns
    -------
    Pair

    Raises
    ------
    ConfigError
        If the weights are missing or damaged, or no worker can load them.
    """
    settings = config.inference
    pair = Pair(*identify_pair(folder or settings.weights), settings)
    if settings.batch != "auto":
        return replace(pair, batch=settings.batch)
    batch = predictions.batch_of(path, pair.identity) if path else None
    return replace(pair, batch=batch or _ask(client, pair, config))


def _ask(client: Client, pair: Pair, config: Config) -> int:
    """The batch that a worker can take; a task like any other, since workers may still have to come."""
    [(_, found)] = run_tasks(client, "batch", fitting_batch, [Task("auto", (pair,))], config.execution)
    if isinstance(found, Failure):
        raise ConfigError(
            f"no worker could load the networks ({found.reason}); mend that, or set inference.device to cpu"
        )
    return found


def fitting_batch(pair: Pair) -> int:
    """Chips per forward pass that suit the device of this process."""
    if choose_device(pair.settings.device) == "cpu":  # without torch, which takes seconds
        from csst_dask.inference.batching import CPU_BATCH

        return CPU_BATCH
    return predictor_of(pair).batch


def predictor_of(pair: Pair) -> Predictor:
    """The networks on the device of this process, loaded at the first call.

    Parameters
    ----------
    pair : Pair

    Returns
    -------
    Predictor

    Raises
    ------
    ConfigError
        If the folder holds other weights here than at the client, or none.
    """
    return _predictor(pair.folder, tuple(pair.checksums.values()), pair.settings, pair.batch)


@lru_cache(maxsize=1)
def _predictor(folder: Path, checksums: tuple[str, ...], settings: InferenceConfig, batch: int) -> Predictor:
    from csst_dask.inference.batching import Predictor

    models = _models(folder, checksums, choose_device(settings.device), settings.compile)
    return Predictor(models, batch or "auto", settings.amp, settings.compile)


@lru_cache(maxsize=1)
def _models(folder: Path, checksums: tuple[str, ...], device: str, compiled: bool) -> TwoStage:
    """The same ones whatever the batch, which a worker may have been asked for first; compiling changes them."""
    import torch

    from csst_dask.inference.two_stage import load_two_stage

    torch.set_num_threads(1)  # one thread per task: the same bits whatever the machine, and no contention
    models = load_two_stage(folder, device)
    found = tuple(models.checksums.values())
    if found != checksums:
        raise ConfigError(f"{folder} holds other weights here than at the client; give the workers the same files")
    return models
