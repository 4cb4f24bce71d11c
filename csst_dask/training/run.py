"""What one training consists of, fixed before its first step."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.models.regressor import set_output_level
from csst_dask.preprocess.inputs import input_channels, make_inputs
from csst_dask.training.recipes import RECIPES, Recipe, Task
from csst_dask.training.samples import Samples, Split


@dataclass(frozen=True, eq=False)
class Run:
    """One training: what is learned, from what, and how."""

    task: Task
    samples: Samples
    split: Split
    """Rows that the task can use, in the wanted bands."""
    config: TrainingConfig
    recipe: Recipe
    arch: str
    device: torch.device

    @property
    def steps(self) -> int:
        """Steps of an epoch; a last batch that is not full is left out if a full one exists."""
        return max(1, len(self.split.train) // self.config.batch)

    @cached_property
    def targets(self) -> NDArray:
        """(n,) what every chip of the samples should give; NaN where unknown."""
        return self.task.targets(self.samples)

    @cached_property
    def cache(self) -> InputCache:
        """Inputs of the chips that every epoch visits."""
        rows = np.concatenate([self.split.train, self.split.validation])
        return InputCache.fill(self.samples, rows, self.recipe.inputs)

    def build(self) -> nn.Module:
        """The network before its first step, on the device; the same for every call.

        Returns
        -------
        torch.nn.Module
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            module = self.task.build(self.arch, input_channels(self.recipe.inputs))
        if self.task.name == "regressor":
            set_output_level(module, float(self.targets[self.split.train].mean()))
        return module.to(self.device).to(memory_format=torch.channels_last)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of task, configuration, sets and truth: what a checkpoint must agree with."""
        samples, split = self.samples, self.split
        text = f"{self.task.name} {self.config.model_dump_json()} {samples.reduced.shape}"
        digest = hashlib.sha256(text.encode())
        for rows in (split.train, split.validation, split.test):
            digest.update(rows.astype("<i8").tobytes() + b"|")
        for counts in (samples.n_star, samples.n_bright):
            digest.update(counts.astype("<i8").tobytes())
        digest.update("\n".join([*samples.band, *samples.field]).encode())
        digest.update(samples.scalars["pixel_mean"].astype("<f8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class InputCache:
    """Half-precision inputs: making them once is cheaper than in every epoch."""

    inputs: NDArray[np.float16]
    """(rows, channels, iy, ix)."""
    place: NDArray[np.int64]
    """Row of the samples -> row of ``inputs``, -1 where it has none."""

    @classmethod
    def fill(cls, samples: Samples, rows: NDArray[np.int64], kind: str) -> InputCache:
        """Make the inputs of some chips.

        Parameters
        ----------
        samples : Samples
        rows : (k,) int array
        kind : str
            Kind of inputs.

        Returns
        -------
        InputCache
            1.3 MB a chip for the 13 channels of ``csst``.
        """
        inputs = np.empty((len(rows), input_channels(kind), *samples.reduced.shape[2:]), np.float16)
        for start in range(0, len(rows), 32):
            block = rows[start : start + 32]
            scalars = {name: values[block] for name, values in samples.scalars.items()}
            inputs[start : start + 32] = make_inputs(kind, samples.reduced[block], scalars, samples.band[block])
        place = np.full(len(samples), -1)
        place[rows] = np.arange(len(rows))
        return cls(inputs, place)

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        """Inputs of some chips.

        Parameters
        ----------
        rows : (k,) int array
            Rows of the samples that `fill` was given.
        device : torch.device

        Returns
        -------
        (k, channels, iy, ix) float32 tensor
            Channels last.
        """
        block = torch.from_numpy(self.inputs[self.place[rows]]).to(device).float()
        return block.contiguous(memory_format=torch.channels_last)


def plan_run(
    task: Task, samples: Samples, split: Split, config: TrainingConfig, crowded: bool, device: torch.device
) -> Run:
    """Choose the chips, recipe and architecture of a training.

    Parameters
    ----------
    task : Task
    samples : Samples
    split : Split
        Rows of the three sets, before those that the task cannot use are left out.
    config : TrainingConfig
    crowded : bool
        Let the regressor learn from class 5.
    device : torch.device

    Returns
    -------
    Run

    Raises
    ------
    ConfigError
        If a set is too small.
    """
    usable = task.usable(samples, crowded) & np.isin(samples.band, config.bands)
    kept = Split(*(rows[usable[rows]] for rows in (split.train, split.validation, split.test)))
    sizes = {name: len(getattr(kept, name)) for name in ("train", "validation", "test")}
    if sizes["train"] < 2 or min(sizes.values()) < 1:
        raise ConfigError(
            f"a {task.name} needs at least 2 training, 1 validation and 1 test chips; found {sizes}: "
            "give a store with more chips that have truth"
        )
    return Run(task, samples, kept, config, RECIPES[config.recipe], config.arch or task.arch, device)
