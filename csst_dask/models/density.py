"""A network that reads both counts of a chip from its maps, knowing band, noise and statistics of the maps.

What matters is how often a block of pixels looks like a star. So the first branch sorts single blocks, and blocks with
their neighbours, by learned marks and hands on the logarithm of how many bear each mark; the second is a residual
network that is pooled at every stage. Statistics of the maps enter beside them. The class follows from the count and
its uncertainty, and a correction that is learned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from csst_dask.errors import ConfigError
from csst_dask.models.classifiers import CLASSIFIERS, set_channels
from csst_dask.models.regressor import REGRESSORS
from csst_dask.schema import CLASS_EDGES, N_CLASSES

OUTPUTS = {"class": N_CLASSES, "star": 2, "bright": 2}
"""What the network tells, and how many numbers each takes: logits of the classes; log10(1 + n), dex, and the natural
logarithm of its scale, dex, for all and for bright stars."""

LOCAL, MARKS = 16, 32
"""Features of a single block of pixels, and marks that it can bear."""
RAREST = 1e-5
"""Added to the share of blocks that bear a mark; a map of 224 x 224 blocks has shares of 2e-5."""
EMBEDDING, HIDDEN = 64, (256, 128)
DROPOUT = 0.1
CONSTANT = 1e-3
"""Context that scatters less among the chips learned from is not looked at."""
CHANGED = 0.05
"""A chip whose context differs by so much from the only value that was ever seen is unlike all others."""
CONTEXT_LIMIT = 6.0
"""Standardised context is cut off here."""
LEAST_VARIANCE = 0.01
"""Added to the variances of the standardised context, so that noise in a constant direction does not look strange."""
SCALES = (-5.0, 1.0)
"""Range of the natural logarithm of a scale, ln dex."""


class FiLM(nn.Module):
    """Scale and shift every channel by the context (Perez et al. 2018, AAAI 32, 3942); starts as the identity."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.affine = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    def forward(self, maps: Tensor, context: Tensor) -> Tensor:
        """(n, c, y, x) maps and (n, embedding) context -> (n, c, y, x)."""
        gain, shift = self.affine(context)[:, :, None, None].chunk(2, dim=1)
        return maps * (1 + gain) + shift


class DensityNetwork(nn.Module):
    """Counts of stars, and the class of their density, from reduced maps and context.

    Parameters
    ----------
    body : torchvision.models.ResNet
        For the number of channels of the maps.
    channels : int
        Channels of the maps.
    context : int
        Length of the context.
    outputs : tuple of str
        Keys of `OUTPUTS`, in their order.
    """

    center: Tensor
    spread: Tensor
    whitening: Tensor
    edges: Tensor

    def __init__(self, body: ResNet, channels: int, context: int, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.outputs = outputs
        self.register_buffer("center", torch.zeros(context))
        self.register_buffer("spread", torch.ones(context))
        self.register_buffer("whitening", torch.zeros(context, context))
        self.embed = nn.Sequential(nn.Linear(context, EMBEDDING), nn.GELU(), nn.Linear(EMBEDDING, EMBEDDING), nn.GELU())
        self.point = nn.Conv2d(channels, LOCAL, 1)
        self.point_film = FiLM(EMBEDDING, LOCAL)
        self.mark = nn.Conv2d(LOCAL, MARKS, 1)
        self.near = nn.Conv2d(LOCAL, MARKS, 3, stride=2, padding=1)
        self.stem = nn.Sequential(body.conv1, body.bn1, body.relu)
        self.stages = nn.ModuleList([body.layer1, body.layer2, body.layer3, body.layer4])
        widths = [_width(stage) for stage in self.stages]
        self.films = nn.ModuleList(FiLM(EMBEDDING, width) for width in [body.conv1.out_channels, *widths[:-1]])
        self.level = nn.BatchNorm1d(2 * MARKS + sum(widths))
        self.head = _head(2 * MARKS + sum(widths) + context, sum(OUTPUTS[name] for name in outputs))
        edges = np.log10(1 + np.asarray(CLASS_EDGES, np.float64) - 0.5)
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float32), persistent=False)

    def standardise(self, context: Tensor) -> None:
        """Take mean and covariance of the context of the chips to learn from, (n, context) float32."""
        self.center.copy_(context.mean(0))
        scatter = context.std(0)
        self.spread.copy_(torch.where(scatter > CONSTANT, scatter, torch.inf))  # what never changed says nothing
        known = self._known(context).double()
        values, vectors = torch.linalg.eigh(known.T @ known / len(known))
        self.whitening.copy_(vectors / (values.clamp_min(0) + LEAST_VARIANCE).sqrt())

    def strangeness(self, context: Tensor) -> Tensor:
        """How far (n, context) lies from the chips learned from: (n,), root mean square of the whitened context.

        The Mahalanobis distance (Lee et al. 2018, NeurIPS 31), where directions with next to no variance count less.
        """
        distance = (self._known(context) @ self.whitening).square().mean(1).sqrt()
        changed = (torch.isinf(self.spread) & ((context - self.center).abs() > CHANGED)).any(1)
        return torch.where(changed, torch.inf, distance)

    def _known(self, context: Tensor) -> Tensor:
        return ((context - self.center) / self.spread).clamp(-CONTEXT_LIMIT, CONTEXT_LIMIT)

    def forward(self, maps: Tensor, context: Tensor) -> Tensor:
        """(n, channels, y, x) maps and (n, context) context -> (n, k) outputs, one after the other."""
        known = self._known(context)
        embedded = self.embed(known)
        local = nn.functional.gelu(self.point_film(self.point(maps), embedded))
        pools = [torch.log(_pooled(torch.sigmoid(marks)) + RAREST) for marks in (self.mark(local), self.near(local))]
        features = self.stem(maps)
        features = nn.functional.max_pool2d(features, 3, stride=2, padding=1)
        for stage, film in zip(self.stages, self.films, strict=True):
            features = stage(film(features, embedded))
            pools.append(_pooled(features))
        with torch.autocast(maps.device.type, enabled=False):  # half precision would round counts to 0.03 dex
            pooled = self.level(torch.cat([pool.float() for pool in pools], dim=1))
            return self._finish(self.head(torch.cat([pooled, known.float()], dim=1)))

    def _finish(self, raw: Tensor) -> Tensor:
        parts = split_outputs(raw, self.outputs)
        for name in ("star", "bright"):
            if name in parts:
                scale = SCALES[0] + (SCALES[1] - SCALES[0]) * torch.sigmoid(parts[name][:, 1])
                parts[name] = torch.stack([parts[name][:, 0], scale], dim=1)
        if "class" in parts and "star" in parts:
            parts["class"] = parts["class"] + class_log_probability(parts["star"], self.edges)
        return torch.cat([parts[name] for name in self.outputs], dim=1)


def class_log_probability(star: Tensor, edges: Tensor) -> Tensor:
    """Logarithm of the probability of every class if log10(1 + n) follows a Laplace law.

    Parameters
    ----------
    star : (n, 2) tensor
        Median, dex, and natural logarithm of the scale.
    edges : (5,) tensor
        log10(1 + n) between the classes.

    Returns
    -------
    (n, 6) tensor
        Not below ln(1e-4), so that a class is never ruled out.
    """
    z = (edges - star[:, :1]) / star[:, 1:].exp()
    below = 0.5 + 0.5 * torch.sign(z) * -torch.expm1(-z.abs())
    none, all_ = torch.zeros_like(below[:, :1]), torch.ones_like(below[:, :1])
    return torch.log(torch.diff(torch.cat([none, below, all_], dim=1), dim=1).clamp_min(0) + 1e-4)


def split_outputs(raw: Tensor, outputs: tuple[str, ...]) -> dict[str, Tensor]:
    """The columns of each output; (n, k) -> (n, `OUTPUTS`[name]) by name."""
    return dict(zip(outputs, raw.split([OUTPUTS[name] for name in outputs], dim=1), strict=True))


def build_density_network(arch: str, channels: int, context: int, outputs: tuple[str, ...]) -> DensityNetwork:
    """A network with random weights, drawn from torch's global generator.

    Parameters
    ----------
    arch : str
        ``resnet18``, ``resnet34`` or ``resnet50``.
    channels, context : int
        Channels of the maps, and length of the context.
    outputs : tuple of str
        Keys of `OUTPUTS`.

    Returns
    -------
    DensityNetwork

    Raises
    ------
    ConfigError
        If the architecture is not a residual network, or an output is unknown.
    """
    known: dict[str, Any] = CLASSIFIERS | REGRESSORS
    bodies = {name: build for name, build in known.items() if name.startswith("resnet")}
    if arch not in bodies:
        raise ConfigError(f"unknown body {arch!r} of a density network; expected one of {', '.join(bodies)}")
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs:
        raise ConfigError(f"unknown outputs {unknown} of a density network; expected some of {', '.join(OUTPUTS)}")
    body = bodies[arch](weights=None)
    set_channels(body, channels)
    ordered = tuple(name for name in OUTPUTS if name in outputs)
    return DensityNetwork(body, channels, context, ordered)


def _width(stage: nn.Module) -> int:
    """Channels that a stage of a residual network gives."""
    return [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)][-1].out_channels


def _pooled(maps: Tensor) -> Tensor:
    """Mean over a map, (n, c, y, x) -> (n, c)."""
    return nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1)


def _head(width: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for hidden in HIDDEN:
        layers += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(DROPOUT)]
        width = hidden
    last = nn.Linear(width, outputs)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
