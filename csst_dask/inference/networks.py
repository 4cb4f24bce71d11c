"""The two networks by name and checksum, which is all that travels; every process loads them once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from csst_dask.config import InferenceConfig
from csst_dask.errors import ConfigError
from csst_dask.inference.device import choose_device

if TYPE_CHECKING:
    from csst_dask.inference.predictor import Predictor, TwoStage

AUTO = 0
"""Rows of a block that are not chosen yet."""


@dataclass(frozen=True)
class ModelPair:
    """The two networks that predictions are made with, and how."""

    folder: Path
    checksums: Mapping[str, str] = field(hash=False)
    """SHA-256 by task."""
    settings: InferenceConfig
    batch: int = AUTO
    """Chips of a task and of a forward pass."""

    @property
    def identity(self) -> dict[str, str]:
        """Attributes of a store's predictions that identify the weights."""
        return {f"{task}_sha256": value for task, value in self.checksums.items()}


def fitting_batch(pair: ModelPair) -> int:
    """Chips per forward pass that suit the device of this process."""
    if choose_device(pair.settings.device) == "cpu":  # without torch, which takes seconds
        from csst_dask.inference.predictor import CPU_BATCH

        return CPU_BATCH
    return predictor_of(pair).batch


@lru_cache(maxsize=1)
def predictor_of(pair: ModelPair) -> Predictor:
    """The networks on the device of this process, loaded at the first call.

    Parameters
    ----------
    pair : ModelPair

    Returns
    -------
    Predictor

    Raises
    ------
    ConfigError
        If the folder holds other weights here than at the client, or none.
    """
    from csst_dask.inference.predictor import Predictor

    device = choose_device(pair.settings.device)
    models = _models(pair.folder, tuple(pair.checksums.values()), device, pair.settings.compile)
    return Predictor(models, pair.batch or "auto", pair.settings.amp, pair.settings.compile)


@lru_cache(maxsize=1)
def _models(folder: Path, checksums: tuple[str, ...], device: str, compiled: bool) -> TwoStage:
    """The same ones whatever the batch, which a worker may have been asked for first; compiling changes them."""
    import torch

    from csst_dask.inference.predictor import load_two_stage

    torch.set_num_threads(1)  # one thread per task: the same bits whatever the machine, and no contention
    models = load_two_stage(folder, device)
    found = tuple(models.checksums.values())
    if found != checksums:
        raise ConfigError(f"{folder} holds other weights here than at the client; give the workers the same files")
    return models
