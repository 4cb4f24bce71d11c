"""Which layers learn when, how fast, and by which schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError

WARM_UP = 0.05
"""Share of all steps over which the cosine schedule climbs."""

GROUPS = ("fc", "layer4")
"""Head and last residual layer, by the names of torchvision; the rest is the third group."""


@dataclass(frozen=True)
class Stage:
    """Some epochs in which a part of the network learns."""

    epochs: int
    rates: tuple[float, ...] = (1.0,)
    """Factor on the learning rate of head, last layer and rest; shorter: those left out rest. One: all alike."""


def plan_stages(config: TrainingConfig, staged: bool) -> tuple[Stage, ...]:
    """Stages of a training: three for a pretrained network that is set free step by step, else one."""
    if not staged or config.pretrained is None:
        return (Stage(config.epochs),)
    return tuple(
        Stage(epochs, config.layer_rates[: k + 1] if k else (config.layer_rates[0], 0.0))
        for k, epochs in enumerate(config.stage_epochs)
    )


def build_optimiser(module: nn.Module, stage: Stage, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over what learns in a stage; freezes the rest of the module.

    Parameters
    ----------
    module : torch.nn.Module
        Modified: which parameters ask for a gradient.
    stage : Stage
    config : TrainingConfig

    Returns
    -------
    torch.optim.AdamW
    """
    rates = stage.rates if len(stage.rates) > 1 else stage.rates * 3
    groups = []
    for place, parameters in enumerate(_grouped(module)):
        rate = rates[place] if place < len(rates) else 0.0
        for parameter in parameters:
            parameter.requires_grad_(rate > 0)
        if rate > 0 and parameters:
            groups.append({"params": parameters, "lr": rate * config.learning_rate})
    return torch.optim.AdamW(groups, config.learning_rate, weight_decay=config.weight_decay)


def _grouped(module: nn.Module) -> Iterator[list[nn.Parameter]]:
    named = list(module.named_parameters())
    for prefix in GROUPS:
        yield [parameter for name, parameter in named if name.split(".")[0] == prefix]
    yield [parameter for name, parameter in named if name.split(".")[0] not in GROUPS]


def freeze_statistics(module: nn.Module) -> None:
    """Layers that do not learn keep their running statistics too: put their normalisations in evaluation mode."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not any(p.requires_grad for p in layer.parameters()):
            layer.eval()


def build_schedule(kind: str, optimiser: torch.optim.Optimizer, steps: int, patience: int) -> Any:
    """Learning-rate schedule.

    Parameters
    ----------
    kind : str
        ``cosine``: a climb over `WARM_UP` of the steps, then half a cosine down to a hundredth; step it after
        every batch. ``plateau``: halve when the validation loss rests; step it with that loss every epoch.
    optimiser : torch.optim.Optimizer
    steps : int
        Batches of the whole stage.
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


def load_pretrained(module: nn.Module, path: Path) -> None:
    """Give a residual network the convolutions that were learned on ImageNet.

    The first convolution sees other channels: each gets the mean of the three colours' kernels, scaled so that the
    sum over the channels stays. The head keeps its random weights.

    Parameters
    ----------
    module : torch.nn.Module
        A torchvision residual network of the paper's regressor; modified in place.
    path : Path
        State dictionary as torchvision publishes it.

    Raises
    ------
    ConfigError
        If the file cannot be read or is of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        kernel = state["conv1.weight"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ConfigError(f"training.pretrained: {path} cannot be read as a torchvision network: {error}") from None
    own = module.state_dict()
    channels = own["conv1.weight"].shape[1]
    state["conv1.weight"] = kernel.mean(1, keepdim=True).expand(-1, channels, -1, -1) * (kernel.shape[1] / channels)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    left_out = ("fc.",), ("num_batches_tracked",)  # the head, and counters that older files lack
    expected = {n: t.shape for n, t in own.items() if not n.startswith(left_out[0]) and not n.endswith(left_out[1])}
    if {n: t.shape for n, t in state.items() if not n.endswith(left_out[1])} != expected:
        raise ConfigError(f"training.pretrained: {path} is not of the architecture of training.arch; name its weights")
    module.load_state_dict(state, strict=False)
