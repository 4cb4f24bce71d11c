"""How a network is trained: what the two recipes and the two tasks differ in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csst_dask.errors import ConfigError
from csst_dask.models import build_classifier, build_regressor
from csst_dask.training.losses import class_loss, count_loss
from csst_dask.training.samples import Samples

CROWDED = 5
"""Density class that the regressor is not asked about (paper, section 4.5)."""

WARM_UP = 0.05
"""Share of all steps over which the cosine schedule climbs."""


@dataclass(frozen=True)
class Recipe:
    """Choices that belong together."""

    inputs: str
    """Kind of inputs."""
    jitter: float
    """Half width of the contrast and brightness jitter; 0 is none."""
    schedule: str
    """``cosine`` by step, or ``plateau`` of the validation loss."""


RECIPES = {
    "paper": Recipe(inputs="paper-point", jitter=0.1, schedule="plateau"),
    "csst": Recipe(inputs="csst", jitter=0.0, schedule="cosine"),
}
"""Recipes by the name in the configuration."""


@dataclass(frozen=True)
class Task:
    """What a network learns."""

    name: str
    arch: str
    """Architecture unless another one is asked for."""
    build: Callable[[str, int], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]

    def targets(self, samples: Samples) -> NDArray:
        """(n,) density class (int64), or log10(1 + n_bright) (float32, dex; NaN where unknown)."""
        if self.name == "classifier":
            return samples.density_class.astype(np.int64)
        known = np.where(samples.n_bright >= 0, samples.n_bright, np.nan)
        return np.log10(1 + known).astype(np.float32)

    def usable(self, samples: Samples, crowded: bool = False) -> NDArray[np.bool_]:
        """(n,) chips to learn from; the regressor leaves class 5 out unless ``crowded``."""
        if self.name == "classifier":
            return samples.n_star >= 0
        return (samples.n_bright >= 0) & (crowded | (samples.density_class < CROWDED))


TASKS = {
    "classifier": Task("classifier", "resnet34", build_classifier, class_loss),
    "regressor": Task("regressor", "resnet50", build_regressor, count_loss),
}


def task_named(name: str) -> Task:
    """The task of a name.

    Parameters
    ----------
    name : str
        ``classifier`` or ``regressor``.

    Returns
    -------
    Task

    Raises
    ------
    ConfigError
        If there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]


def build_schedule(kind: str, optimiser: torch.optim.Optimizer, steps: int, patience: int):
    """Learning-rate schedule.

    Parameters
    ----------
    kind : str
        ``cosine``: a climb over `WARM_UP` of the steps, then half a cosine down to a hundredth; step it after
        every batch. ``plateau``: halve when the validation loss rests; step it with that loss every epoch.
    optimiser : torch.optim.Optimizer
    steps : int
        Batches of the whole training.
    patience : int
        Epochs without improvement after which training would stop; the rate halves after a third of them.

    Returns
    -------
    torch.optim.lr_scheduler.LambdaLR or ReduceLROnPlateau
    """
    if kind == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=max(1, patience // 3))
    climb = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        if step < climb:
            return (step + 1) / climb
        progress = min(1.0, (step - climb) / max(1, steps - climb))
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
