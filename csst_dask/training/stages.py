"""Which layers learn when, how fast, and by which schedule."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import Weights, get_model_weights

from csst_dask.config import DOWNLOAD, EPOCHS, START_EPOCHS, TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.models.density import CONTEXT_PARTS

WARM_UP = 0.05
"""Share of all steps over which the cosine schedule climbs."""

GROUPS = (("fc", *CONTEXT_PARTS), ("layer4",))
"""Head, or what answers without maps, and last residual layer; the rest is the third group."""

CONTEXT_RATES, JOINT_RATES = (3.0, 0.0, 0.0), (0.3, 1.0, 1.0)
"""Multipliers of the learning rate while a network learns from the context alone, and after that."""

START_RATES = (0.1, 0.1, 0.1)
"""The same for a network that has learned before."""


@dataclass(frozen=True)
class Stage:
    """Some epochs in which a part of the network learns."""

    epochs: int
    multipliers: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of the learning rate, for the `GROUPS` and the rest; what has 0 is frozen."""
    maps: bool = True
    """Whether the network sees maps, or its context alone."""


def plan_stages(config: TrainingConfig, staged: str, maps: bool = True) -> tuple[Stage, ...]:
    """Stages of a training.

    Parameters
    ----------
    config : TrainingConfig
    staged : str
        ``context``: first from the context alone, then from the maps too; ``layers``: a pretrained network is unfrozen
        step by step; else all at once.
    maps : bool
        Whether the network looks at maps.

    Returns
    -------
    tuple of Stage
    """
    if config.start is not None:
        return (Stage(config.epochs or START_EPOCHS, START_RATES, maps=maps),)
    if not maps:
        return (Stage(config.epochs or max(1, config.context_epochs), CONTEXT_RATES, maps=False),)
    whole = config.epochs or EPOCHS
    if staged == "context" and config.context_epochs:
        return Stage(config.context_epochs, CONTEXT_RATES, maps=False), Stage(whole, JOINT_RATES)
    if staged == "layers" and config.pretrained is not None:
        (head, last, rest), epochs = config.layer_rates, config.stage_epochs
        return (
            Stage(epochs[0], (head, 0.0, 0.0)),
            Stage(epochs[1], (head, last, 0.0)),
            Stage(epochs[2], (head, last, rest)),
        )
    return (Stage(whole),)


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
    groups = []
    for multiplier, parameters in zip(stage.multipliers, _grouped(module), strict=True):
        for parameter in parameters:
            parameter.requires_grad_(multiplier > 0)
        if multiplier > 0 and parameters:
            groups.append({"params": parameters, "lr": multiplier * config.learning_rate})
    return torch.optim.AdamW(groups, config.learning_rate, weight_decay=config.weight_decay)


def _grouped(module: nn.Module) -> Iterator[list[nn.Parameter]]:
    named = list(module.named_parameters())
    for names in GROUPS:
        yield [parameter for name, parameter in named if name.split(".")[0] in names]
    yield [parameter for name, parameter in named if name.split(".")[0] not in sum(GROUPS, ())]


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


def pretrained_file(wanted: str | Path, arch: str) -> Path:
    """Where ImageNet weights are, or will be once they are fetched.

    Parameters
    ----------
    wanted : path or "download"
        ``training.pretrained``; a download goes into the cache of torch.hub (``TORCH_HOME``).
    arch : str
        Architecture of torchvision.

    Returns
    -------
    Path
    """
    if wanted != DOWNLOAD:
        return Path(wanted)
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_weights_of(arch).url).name


def fetch_pretrained(wanted: str | Path, arch: str) -> Path:
    """A file of ImageNet weights, fetched if that is wanted and it is not there.

    Parameters
    ----------
    wanted, arch
        As for `pretrained_file`.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        If they cannot be fetched.
    """
    path = pretrained_file(wanted, arch)
    if wanted == DOWNLOAD and not path.exists():
        url = _weights_of(arch).url
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:  # no network; another checksum
            raise ConfigError(
                f"training.pretrained: cannot fetch {url}: {error}; name a file that you have, or leave it out to "
                "train from scratch"
            ) from None
    return path


def _weights_of(arch: str) -> Weights:
    """The first that torchvision published, which its papers and ours mean."""
    try:
        return get_model_weights(arch)["IMAGENET1K_V1"]
    except ValueError:
        raise ConfigError(
            f"training.pretrained: torchvision has no weights for training.arch {arch!r}; name a network of "
            "torchvision, such as resnet50, or leave pretrained out to train from scratch"
        ) from None


def checksum_pretrained(path: Path) -> str:
    """SHA-256 of a file of weights, hexadecimal.

    Parameters
    ----------
    path : Path

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"training.pretrained: cannot read {path}: {error.strerror}; expected a file of torchvision weights, check "
            "the path or leave it out to train from scratch"
        ) from None


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
        raise ConfigError(f"training.pretrained: {path} is no state of a torchvision network: {error}") from None
    own = module.state_dict()
    channels = own["conv1.weight"].shape[1]
    state["conv1.weight"] = kernel.mean(1, keepdim=True).expand(-1, channels, -1, -1) * (kernel.shape[1] / channels)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    left_out = ("fc.",), ("num_batches_tracked",)  # the head, and counters that older files lack
    expected = {n: t.shape for n, t in own.items() if not n.startswith(left_out[0]) and not n.endswith(left_out[1])}
    if {n: t.shape for n, t in state.items() if not n.endswith(left_out[1])} != expected:
        raise ConfigError(f"training.pretrained: {path} is not of the architecture of training.arch; name its weights")
    module.load_state_dict(state, strict=False)
