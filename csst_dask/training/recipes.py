"""How a network is trained: what the two recipes and the two tasks differ in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.models import build_network
from csst_dask.models.density import PERCEPTRON, Answer, DensityNetwork
from csst_dask.models.regressor import set_output_level
from csst_dask.preprocess.inputs import anchor_count, context_length, histogram_length, input_channels
from csst_dask.schema import CROWDED, MAGNITUDES
from csst_dask.training.losses import class_loss, count_loss, laplace_loss
from csst_dask.training.samples import Samples

ARCHS = {"classifier": "resnet34", "regressor": "resnet50"}
"""Architectures of the paper."""

SMALL = dict.fromkeys(ARCHS, PERCEPTRON)
"""What is as good as a residual network beside it, at a hundredth of the cost."""


CORRECTION = dict.fromkeys(ARCHS, PERCEPTRON)
"""A perceptron that corrects direct counts."""


@dataclass(frozen=True)
class Recipe:
    """Choices that belong together."""

    inputs: str
    """Kind of inputs; a perceptron takes the context alone."""
    copies: int
    """How often an epoch visits a chip, each time with other flips, turns and jitter."""
    jitter: float
    """Half width of the contrast and brightness jitter; 0 is none."""
    schedule: str
    """``cosine`` by step, or ``plateau`` of the validation loss."""
    archs: dict[str, str]
    """Architecture for each task, unless another one is asked for."""
    staged: str = ""
    """``layers``: a pretrained regressor's are unfrozen one after the other; ``context``: learn from it first."""
    crowded: bool = False
    """Whether a regressor learns from class 5 too, though inference bypasses it: what lies between is more certain."""


RECIPES = {
    "paper": Recipe("paper-point", 4, 0.1, "plateau", ARCHS, staged="layers"),
    "csst": Recipe("maps", 1, 0.0, "cosine", SMALL, staged="context", crowded=True),
    "counts": Recipe("counts", 1, 0.0, "cosine", CORRECTION, staged="context", crowded=True),
}
"""Recipes by the name in the configuration; ``counts`` corrects direct counts. The paper gives no jitter."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What a network should say of every chip of the samples."""

    density_class: NDArray[np.int64]
    log_star: NDArray[np.float32]
    log_bright: NDArray[np.float32]
    """log10(1 + n), dex; NaN where it is unknown or not to be learned."""
    log_counts: NDArray[np.float32]
    """(n, magnitude) of stars brighter than each of `schema.MAGNITUDES`; NaN where unknown."""

    @classmethod
    def of(cls, samples: Samples, crowded: bool) -> Targets:
        """Targets of all samples; without bright stars of crowded chips unless ``crowded``."""
        known = (samples.n_bright >= 0) & (crowded | (samples.density_class < CROWDED))
        bright = np.where(known, np.log10(1.0 + np.maximum(samples.n_bright, 0)), np.nan)
        star = np.log10(1.0 + np.maximum(samples.n_star, 0))
        counts = np.full((len(samples), len(MAGNITUDES)), -1) if samples.n_brighter is None else samples.n_brighter
        log_counts = np.where(counts >= 0, np.log10(1.0 + np.maximum(counts, 0)), np.nan).astype(np.float32)
        density = samples.density_class.astype(np.int64)
        return cls(density, star.astype(np.float32), bright.astype(np.float32), log_counts)

    def at(self, rows: NDArray[np.int64]) -> dict[str, NDArray]:
        """Targets of some chips: ``class``, ``star``, ``bright`` and ``counts``."""
        return {
            "class": self.density_class[rows],
            "star": self.log_star[rows],
            "bright": self.log_bright[rows],
            "counts": self.log_counts[rows],
        }


@dataclass(frozen=True, eq=False)
class Task:
    """What one network learns."""

    name: str
    """``classifier`` or ``regressor``."""
    weights: dict[str, float]
    """Share of each term of the loss: ``class``, ``star``, ``bright``, ``counts``; of those that a network gives."""

    def usable(self, samples: Samples, crowded: bool = False) -> NDArray[np.bool_]:
        """(n,) chips to learn from; the regressor leaves class 5 out unless ``crowded``."""
        if self.name == "classifier":
            return samples.n_star >= 0
        return (samples.n_bright >= 0) & (crowded | (samples.density_class < CROWDED))

    def loss(
        self,
        answer: Answer,
        targets: Targets,
        rows: NDArray[np.int64],
        config: TrainingConfig,
        batch: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """Share of some chips in the mean loss of a batch.

        Parameters
        ----------
        answer : dict of tensors
            Of the chips.
        targets : Targets
            Of all samples.
        rows : (n,) int array
            The chips.
        config : TrainingConfig
            Weights of the terms of the paper's regressor.
        batch : (m,) int array, optional
            The whole batch, of which these chips are a part, wherever the others are; by default the chips themselves.
            A term is the mean over the chips of the batch that have its target, so the shares of all parts add up to
            the loss of the batch.

        Returns
        -------
        scalar tensor
        """
        device = next(iter(answer.values())).device
        known = targets.at(rows if batch is None else batch)
        count = {name: int(np.isfinite(values).sum()) for name, values in known.items()}
        wanted = {name: torch.from_numpy(values).to(device) for name, values in targets.at(rows).items()}
        if answer.keys() == {"logits"}:
            return class_loss(answer["logits"], wanted["class"], count=count["class"])
        if answer.keys() == {"bright"}:
            weights = config.mse_weight, config.mae_weight, config.relative_weight
            return count_loss(answer["bright"], wanted["bright"], *weights, count=count["bright"])
        parts = [self.weights["class"] * class_loss(answer["logits"], wanted["class"], count=count["class"])]
        for name in ("star", "bright", *({"counts"} & answer.keys())):
            loss = laplace_loss(answer[name], answer[f"{name}_scale"], wanted[name], count=count[name])
            parts.append(self.weights[name] * loss)
        return torch.stack(parts).sum()

    def score(self, answer: Answer, targets: Targets, rows: NDArray[np.int64]) -> float:
        """Accuracy of a classifier, mean absolute error of a regressor, dex."""
        if self.name == "classifier":
            return float(np.mean(answer["logits"].argmax(1).cpu().numpy() == targets.density_class[rows]))
        return float(np.mean(np.abs(answer["bright"].cpu().numpy() - targets.log_bright[rows])))


TASKS = {
    "classifier": Task("classifier", {"class": 1.0, "star": 1.0, "bright": 0.3, "counts": 0.3}),
    "regressor": Task("regressor", {"class": 0.1, "star": 0.3, "bright": 1.0, "counts": 1.0}),
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


def describe_network(task: Task, config: TrainingConfig) -> dict:
    """What `csst_dask.models.build_network` needs to build the network of a task."""
    recipe = RECIPES[config.recipe]
    arch = config.arch or recipe.archs[task.name]
    inputs = config.inputs or recipe.inputs
    if arch == PERCEPTRON and not anchor_count(inputs):
        inputs = "context"
    return {
        "task": task.name,
        "arch": arch,
        "inputs": inputs,
        "channels": input_channels(inputs),
        "context": context_length(inputs),
        "histograms": histogram_length(inputs),
    } | ({"anchors": anchor_count(inputs)} if anchor_count(inputs) else {})


def new_network(task: Task, config: TrainingConfig, level: float) -> nn.Module:
    """The network before its first step, the same for every call; a regressor of the paper starts at ``level``, dex."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module = build_network(describe_network(task, config))
    if task.name == "regressor" and not isinstance(module, DensityNetwork):
        set_output_level(module, level)
    return module
