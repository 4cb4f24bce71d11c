"""What one training consists of, fixed before its first step."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from csst_dask.config import PaperInputs, TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.models.density import PERCEPTRON, DensityNetwork
from csst_dask.models.weights import LoadedModel
from csst_dask.preprocess.inputs import WITH_COUNTS, context_definition
from csst_dask.training.cache import InputCache
from csst_dask.training.recipes import RECIPES, Recipe, Targets, Task, describe_network, new_network
from csst_dask.training.samples import Samples
from csst_dask.training.split import Split
from csst_dask.training.stages import (
    Stage,
    checksum_pretrained,
    fetch_pretrained,
    load_pretrained,
    plan_stages,
    pretrained_file,
)
from csst_dask.training.start import load_start, network_of

HOW = {"ranks", "launcher", "timeout", "restarts", "checkpoint_minutes"}
"""Settings that say how a training is carried out, and not what comes out of it."""


@dataclass(frozen=True, eq=False)
class Run:
    """One training: what is learned, from what, and how."""

    task: Task
    samples: Samples
    split: Split
    """Rows that the task can use, in the wanted bands."""
    config: TrainingConfig
    recipe: Recipe
    targets: Targets
    crowded: bool
    """Whether the regressor learns from class 5, though inference bypasses it."""

    @cached_property
    def network(self) -> dict:
        """What `csst_dask.models.build_network` builds it from."""
        return describe_network(self.task, self.config) if self.start is None else network_of(self.start)

    @cached_property
    def start(self) -> LoadedModel | None:
        """Weights that it goes on from."""
        return None if self.config.start is None else load_start(self.config.start, self.task.name)

    @property
    def inputs(self) -> str:
        """Kind of inputs that the network takes."""
        return self.network["inputs"]

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """What learns when."""
        return plan_stages(self.config, self.recipe.staged, maps=bool(self.network["channels"]))

    @property
    def visits(self) -> int:
        """Chips that an epoch visits; each as often as the recipe says."""
        return self.recipe.copies * len(self.split.train)

    @property
    def steps(self) -> int:
        """Steps of an epoch; a last batch that is not full is left out if a full one exists."""
        return max(1, self.visits // self.config.batch)

    @property
    def visited(self) -> NDArray[np.int64]:
        """Rows whose inputs every epoch needs."""
        return np.concatenate([self.split.train, self.split.validation])

    def build(self, cache: InputCache, device: torch.device) -> nn.Module:
        """The network before its first step, on the device; the same for every call.

        Parameters
        ----------
        cache : InputCache
            A density network takes mean and scatter of its context from the training chips; one that has learned before
            keeps what it knows of them.
        device : torch.device

        Returns
        -------
        torch.nn.Module
        """
        module = self.draw()
        if isinstance(module, DensityNetwork) and self.start is None:
            module.standardise(torch.from_numpy(cache.context[cache.place[self.split.train]]))
        return module.to(device).to(memory_format=torch.channels_last)

    def draw(self) -> nn.Module:
        """The network of `build` before it knows its inputs.

        Raises
        ------
        ConfigError
            If there is no such architecture, or the pretrained weights do not fit it: known before inputs are made.
        """
        if self.start is not None:
            return copy.deepcopy(self.start.module)
        known = self.targets.log_bright[self.split.train]
        known = known[np.isfinite(known)]
        module = new_network(self.task, self.config, float(known.mean()) if len(known) else 0.0)
        if self.config.pretrained is not None:
            load_pretrained(module, fetch_pretrained(self.config.pretrained, self.network["arch"]))
        return module

    @cached_property
    def pretrained(self) -> str | None:
        """SHA-256 of the pretrained weights, hexadecimal; fetches them if need be."""
        wanted = self.config.pretrained
        return None if wanted is None else checksum_pretrained(fetch_pretrained(wanted, self.network["arch"]))

    @property
    def pretrained_file(self) -> Path | None:
        """Where the pretrained weights are, or will be."""
        wanted = self.config.pretrained
        return None if wanted is None else pretrained_file(wanted, self.network["arch"])

    @property
    def settings(self) -> dict[str, Any]:
        """Task and settings that decide what comes out: architecture in full, pretrained weights by their SHA-256."""
        return self._settings(self.pretrained)

    @property
    def open_ended(self) -> bool:
        """Whether the number of epochs says when to stop and nothing else, so that it can be changed on the way."""
        return self.recipe.schedule == "plateau" and len(self.stages) == 1

    def _settings(self, pretrained: str | None, finished: bool = True) -> dict[str, Any]:
        on_the_way = {"epochs"} if self.open_ended and not finished else set()
        settings = self.config.model_dump(mode="json", exclude=HOW | {"parts"} | on_the_way)
        start = None if self.start is None else self.start.checksum
        known = {"arch": self.network["arch"], "pretrained": pretrained, "start": start}
        return {"task": self.task.name, "crowded": self.crowded} | settings | known

    @property
    def fingerprint(self) -> str:
        """SHA-256 of settings, sets, truth, scalars and definition of the context."""
        return self.fingerprint_beside({"finished": True})

    def fingerprint_beside(self, state: Mapping[str, Any]) -> str:
        """The fingerprint that a checkpoint must have.

        A finished training can do without its pretrained file; one under way may get more or fewer epochs than it
        began with if it is open-ended.
        """
        path, finished = self.pretrained_file, state["finished"]
        gone = finished and "pretrained" in state and path is not None and not path.exists()
        pretrained = state["pretrained"] if gone else self.pretrained
        return self._digest(json.dumps(self._settings(pretrained, finished), sort_keys=True))

    @property
    def inputs_key(self) -> str:
        """Name of the folder of the inputs: trainings with other settings on the same chips share it."""
        return self._digest(self.inputs)[:16]

    def _digest(self, text: str) -> str:
        samples, split = self.samples, self.split
        digest = hashlib.sha256(f"{text} {tuple(samples.block_stats.shape)}".encode())
        for rows in (split.train, split.validation, split.test):
            digest.update(rows.astype("<i8").tobytes() + b"|")
        for counts in (samples.n_star, samples.n_bright):
            digest.update(counts.astype("<i8").tobytes())
        digest.update("\n".join([*samples.band, *samples.field]).encode())
        for name, values in sorted(samples.scalars.items()):
            digest.update(name.encode() + values.astype("<f8").tobytes())
        if self.network["context"]:
            digest.update(context_definition(self.inputs).encode())
        return digest.hexdigest()


def check_start(task: Task, config: TrainingConfig) -> None:
    """Refuse weights to go on from that the recipe does not train.

    Raises
    ------
    ConfigError
        If there are no such weights, or they are of another architecture, inputs or recipe than the settings ask for.
    """
    assert config.start is not None
    found = network_of(load_start(config.start, task.name))
    asked = config.model_copy(update={"arch": config.arch or found["arch"]})
    if config.recipe == "paper" and config.inputs is None and found["inputs"] in get_args(PaperInputs):
        asked = asked.model_copy(update={"inputs": found["inputs"]})
    wanted = describe_network(task, asked)
    if config.pretrained is not None:
        raise ConfigError("training.start and training.pretrained are two beginnings; leave one out")
    if found != wanted:
        differ = ", ".join(f"{name} {found.get(name)!r}" for name in wanted if found.get(name) != wanted[name])
        expected = ", ".join(f"{name} {wanted[name]!r}" for name in wanted if found.get(name) != wanted[name])
        raise ConfigError(
            f"{config.start} holds a {task.name} with {differ}; expected {expected}, as the recipe {config.recipe} "
            "trains it: give training.recipe and training.arch of the weights"
        )


def plan_run(task: Task, samples: Samples, split: Split, config: TrainingConfig) -> Run:
    """Choose the chips, recipe and architecture of a training.

    Parameters
    ----------
    task : Task
    samples : Samples
    split : Split
        Rows of the three sets, before those that the task cannot use are left out.
    config : TrainingConfig

    Returns
    -------
    Run

    Raises
    ------
    ConfigError
        If a set is too small, or a setting does not fit the recipe.
    """
    recipe = RECIPES[config.recipe]
    if config.pretrained is not None and (recipe.staged != "layers" or task.name != "regressor"):
        raise ConfigError(
            f"training.pretrained is for the regressor of the recipe paper; found the {task.name} of the recipe "
            f"{config.recipe}: leave training.pretrained out"
        )
    if config.start is not None:
        check_start(task, config)
    if config.inputs is not None and config.recipe != "paper":
        raise ConfigError(
            f"training.inputs is for the recipe paper; found {config.inputs} for the recipe {config.recipe}: leave "
            "training.inputs out"
        )
    if recipe.inputs in WITH_COUNTS and samples.counted is None:
        raise ConfigError(
            f"the recipe {config.recipe} learns from peaks, which these samples do not hold; give survey stores"
        )
    if recipe.inputs in WITH_COUNTS and config.arch not in (None, PERCEPTRON):
        raise ConfigError(
            f"the recipe {config.recipe} has no maps for {config.arch!r} to look at; leave training.arch out"
        )
    crowded = recipe.crowded and task.name == "regressor"
    wanted = np.isin(samples.band, config.bands)
    learned, judged = (task.usable(samples, allowed) & wanted for allowed in (crowded, False))
    kept = Split(*(
        rows[usable[rows]]
        for rows, usable in ((split.train, learned), (split.validation, judged), (split.test, judged))
    ))  # fmt: skip
    sizes = {name: len(getattr(kept, name)) for name in ("train", "validation", "test")}
    if sizes["train"] < 2 or min(sizes.values()) < 1:
        raise ConfigError(
            f"a {task.name} needs at least 2 training, 1 validation and 1 test chips; found {sizes}: "
            "give a store with more chips that have truth"
        )
    return Run(task, samples, kept, config, recipe, Targets.of(samples, crowded), crowded)
