"""A network that reads both counts of a chip from its maps, knowing band, noise and statistics of the maps.

A perceptron answers from the context: statistics, and the leading principal components of histograms. A residual
network under FiLM by the context, pooled at every stage, may add what these miss; it starts at nothing. The class
follows from the count and its uncertainty. `ask` names what this network, or one of the paper's, puts out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from csst_dask.errors import ConfigError
from csst_dask.models.classifiers import CLASSIFIERS, set_channels
from csst_dask.models.regressor import REGRESSORS
from csst_dask.schema import BANDS, BRIGHT_LIMIT, CLASS_BORDERS, MAGNITUDES, N_CLASSES

if TYPE_CHECKING:
    from torchvision.models import ResNet

OUTPUTS = {"logits": N_CLASSES, "star": 2, "bright": 2}
"""What the network tells, and how many numbers each takes: logits of the classes; log10(1 + n), dex, and the natural
logarithm of its scale, dex, for all and for bright stars."""
COUNTS = {"counts": len(MAGNITUDES), "counts_scale": len(MAGNITUDES)}
"""What one that corrects direct counts tells besides: those brighter than each magnitude, and their scales."""
LEAST_LOWER, LEAST_UPPER, BOUND_SPANS = 0.3, 0.15, 3.0
"""Corrections of direct counts stay above minus the first and below the second, dex, each widened by so many times what
the count may be off; so that no network runs away from what is seen."""

EMBEDDING, TRUNK, HIDDEN = 64, 256, 128
COMPONENTS = 60
"""Principal components of the histograms that the network sees."""
CONTEXT_NOISE = 0.03
"""Standard deviation of what is added to the standardised context in training."""
COUNTS_NOISE, DROPPED = 0.1, 0.2
"""The same for networks that correct counts, and what is left out of their trunk: else they are too sure of what they
have seen once."""
PERCEPTRON = "perceptron"
"""Architecture without a body."""
CONTEXT_PARTS = ("trunk", "context_head")
"""Modules that answer without maps."""
CONSTANT = 1e-3
"""Context that scatters less among the chips learned from is not looked at."""
CHANGED = 0.05
"""A chip whose context differs by so much from the only value that was ever seen is unlike all others."""
CONTEXT_LIMIT = 6.0
"""Standardised context is cut off here."""
LEAST_VARIANCE = 0.01
"""Added to the variances of the standardised context, so that noise in a constant direction does not look strange."""
LEARNED_CHANCE, LEAST_CHANCE = 1e-4, 1e-3
"""Added to the probability of every class, so that none is ever ruled out: while it is learned, so that one chip cannot
rule the loss, and in what is told then. One chip in a hundred errs by many times what its law allows; with a chance as
small as 1e-6 these few would widen the laws of all others, for no temperature can make them likely."""
SCALES = (-5.0, 1.0)
"""Range of the natural logarithm of a scale, ln dex."""

ANCHORED = len(BANDS) + 1
"""Direct counts follow the bands and the exposure time in the context."""
BRIGHT_PLACE = MAGNITUDES.index(BRIGHT_LIMIT)
"""Of bright stars among the counts."""

Answer = dict[str, Tensor]
"""``logits`` (n, 6); ``star`` and ``bright`` (n,), log10(1 + n), dex; ``star_scale`` and ``bright_scale`` (n,), natural
logarithms of how far off these are expected to be, ln dex; ``counts`` and ``counts_scale`` (n, magnitude) likewise for
stars brighter than each. What a network does not give is not there."""


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
    """Counts of stars, and the class of their density, from block statistics and context.

    Parameters
    ----------
    body : torchvision.models.ResNet or None
        For the number of channels of the maps; None if there are none.
    context : int
        Length of the context, which begins with one indicator for each of `schema.BANDS`.
    histograms : int
        How many numbers at the end of the context are square roots of counts in bins.
    anchors : int
        Direct counts in the context, which are corrected: one for each of `schema.MAGNITUDES`, and that of all stars.
        None where 0: the network tells counts themselves.
    """

    center: Tensor
    spread: Tensor
    components: Tensor
    band_center: Tensor
    whitening: Tensor
    edges: Tensor

    def __init__(self, body: ResNet | None, context: int, histograms: int, anchors: int = 0) -> None:
        super().__init__()
        self.anchors = anchors
        components = min(COMPONENTS, histograms)
        self.plain = context - histograms
        known = self.plain + components
        self.register_buffer("center", torch.zeros(context))
        self.register_buffer("spread", torch.ones(self.plain))
        self.register_buffer("components", torch.zeros(histograms, components))
        self.register_buffer("band_center", torch.zeros(len(BANDS), known))
        self.register_buffer("whitening", torch.zeros(known, known))
        numbers = 2 * anchors or OUTPUTS["star"] + OUTPUTS["bright"]
        self.trunk = nn.Sequential(*_layer(known), *_layer(TRUNK))
        self.context_head = _head(TRUNK, numbers)
        self.register_buffer("edges", torch.tensor(CLASS_BORDERS), persistent=False)
        self.looks = body is not None
        if body is not None:
            self._add_body(body, known, numbers)

    def _add_body(self, body: ResNet, known: int, numbers: int) -> None:
        self.embed = nn.Sequential(nn.Linear(known, EMBEDDING), nn.GELU(), nn.Linear(EMBEDDING, EMBEDDING), nn.GELU())
        self.stem = nn.Sequential(body.conv1, body.bn1, body.relu)
        self.stages = nn.ModuleList([body.layer1, body.layer2, body.layer3, body.layer4])
        widths = [_width(stage) for stage in self.stages]
        self.films = nn.ModuleList(FiLM(EMBEDDING, width) for width in [body.conv1.out_channels, *widths[:-1]])
        self.level = nn.BatchNorm1d(sum(widths))
        self.project = nn.Sequential(nn.Linear(sum(widths), TRUNK), nn.GELU())
        self.maps_head = _head(2 * TRUNK, numbers, scale=0.0)

    def standardise(self, context: Tensor) -> None:
        """Take the distribution of the context of the chips to learn from, (n, context) float32."""
        self.center.copy_(context.mean(0))
        scatter = context[:, : self.plain].std(0)
        self.spread.copy_(torch.where(scatter > CONSTANT, scatter, torch.inf))  # what never changed says nothing
        self.components.copy_(_principal(context[:, self.plain :].double(), self.components.shape[1]))
        known, band = self._known(context).double(), _band(context)
        for place in range(len(BANDS)):
            if (band == place).any():
                self.band_center[place] = known[band == place].mean(0)
        residual = known - self.band_center[band].double()
        values, vectors = _eigh(residual.T @ residual / len(residual))
        self.whitening.copy_(vectors / (values.clamp_min(0) + LEAST_VARIANCE).sqrt())

    def ood_score(self, context: Tensor) -> Tensor:
        """How far (n, context) lies from the chips of the same band that were learned from: (n,).

        The Mahalanobis distance from the mean of the band, with one covariance for all bands (Lee et al. 2018,
        NeurIPS 31, equation 2), over the square root of the dimension; `LEAST_VARIANCE` is added to all variances.
        """
        residual = self._known(context) - self.band_center[_band(context)]
        distance = (residual @ self.whitening).square().mean(1).sqrt()
        changed = (torch.isinf(self.spread) & ((context - self.center)[:, : self.plain].abs() > CHANGED)).any(1)
        return torch.where(changed, torch.inf, distance)

    def _known(self, context: Tensor) -> Tensor:
        """Standardised context, its histograms as principal components: (n, known)."""
        apart = context - self.center
        known = torch.cat([apart[:, : self.plain] / self.spread, apart[:, self.plain :] @ self.components], dim=1)
        return known.clamp(-CONTEXT_LIMIT, CONTEXT_LIMIT)

    def forward(self, maps: Tensor | None, context: Tensor) -> Tensor:
        """(n, channels, y, x) maps and (n, context) context -> (n, k) outputs, one after the other.

        Without maps, or without a body, the context alone answers.
        """
        with torch.autocast(context.device.type, enabled=False):  # half precision would round counts to 0.03 dex
            known = self._known(context.float())
            if self.training:
                known = known + (COUNTS_NOISE if self.anchors else CONTEXT_NOISE) * torch.randn_like(known)
            told = self._trunk(known)
            raw = self.context_head(told)
        if maps is not None and self.looks:
            pooled = self._look(maps, self.embed(known))
            with torch.autocast(context.device.type, enabled=False):
                seen = self.project(self.level(pooled.float()))
                raw = raw + self.maps_head(torch.cat([told, seen], dim=1))
        return self._correct(raw, context.float()) if self.anchors else self._finish(raw)

    def _trunk(self, known: Tensor) -> Tensor:
        """What the trunk makes of the context; a part is left out while a correction is learned."""
        told = known
        for layer in self.trunk:
            told = layer(told)
            if self.anchors and isinstance(layer, nn.GELU):
                told = nn.functional.dropout(told, DROPPED, self.training)
        return told

    def _look(self, maps: Tensor, embedded: Tensor) -> Tensor:
        """Means over the maps of all stages' features."""
        features, pools = nn.functional.max_pool2d(self.stem(maps), 3, stride=2, padding=1), []
        for stage, film in zip(self.stages, self.films, strict=True):
            features = stage(film(features, embedded))
            pools.append(_pooled(features))
        return torch.cat(pools, dim=1)

    def _correct(self, raw: Tensor, context: Tensor) -> Tensor:
        """Direct counts, each corrected within its bounds."""
        direct, span = context[:, ANCHORED : ANCHORED + 2 * self.anchors].chunk(2, dim=1)
        lower, upper = LEAST_LOWER + BOUND_SPANS * span, LEAST_UPPER + BOUND_SPANS * span
        change, scale = raw.chunk(2, dim=1)
        bound = torch.where(change < 0, lower, upper)
        counts = direct + bound * torch.tanh(change / bound)
        scale = SCALES[0] + (SCALES[1] - SCALES[0]) * torch.sigmoid(scale)
        star = torch.stack([counts[:, -1], scale[:, -1]], dim=1)
        bright = torch.stack([counts[:, BRIGHT_PLACE], scale[:, BRIGHT_PLACE]], dim=1)
        return torch.cat([class_log_probability(star, self.edges), star, bright, counts[:, :-1], scale[:, :-1]], dim=1)

    def _finish(self, raw: Tensor) -> Tensor:
        star, bright = (_bounded(part) for part in raw.split([OUTPUTS["star"], OUTPUTS["bright"]], dim=1))
        return torch.cat([class_log_probability(star, self.edges), star, bright], dim=1)


def _bounded(count: Tensor) -> Tensor:
    """(n, 2) median and raw scale -> median and logarithm of the scale within `SCALES`."""
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * torch.sigmoid(count[:, 1])
    return torch.stack([count[:, 0], scale], dim=1)


def class_log_probability(star: Tensor, edges: Tensor, least: float = LEARNED_CHANCE) -> Tensor:
    """Logarithm of the probability of every class if log10(1 + n) follows a Laplace law.

    Parameters
    ----------
    star : (n, 2) tensor
        Median, dex, and natural logarithm of the scale.
    edges : (5,) tensor
        log10(1 + n) between the classes.
    least : float
        Added to every probability.

    Returns
    -------
    (n, 6) tensor
    """
    z = (edges - star[:, :1]) / star[:, 1:].exp()
    below = 0.5 + 0.5 * torch.sign(z) * -torch.expm1(-z.abs())
    none, all_ = torch.zeros_like(below[:, :1]), torch.ones_like(below[:, :1])
    return torch.log(torch.diff(torch.cat([none, below, all_], dim=1), dim=1).clamp_min(0) + least)


def ask(module: nn.Module, metadata: Mapping[str, Any], maps: Tensor | None, context: Tensor) -> Answer:
    """Run a network and name what comes out.

    Parameters
    ----------
    module : torch.nn.Module
        From `csst_dask.models.build_network`.
    metadata : mapping
        ``task``, and ``context`` of a density network.
    maps : (n, channels, y, x) tensor or None
        A density network can do without.
    context : (n, k) tensor
        Not looked at by the networks of the paper.

    Returns
    -------
    dict of tensors
        An `Answer`, float32.
    """
    if not metadata.get("context"):
        return {"logits" if metadata["task"] == "classifier" else "bright": module(maps).float()}
    sizes = OUTPUTS | (COUNTS if metadata.get("anchors") else {})
    logits, star, bright, *counts = module(maps, context).float().split(list(sizes.values()), dim=1)
    answer: Answer = {"logits": logits} | dict(zip(COUNTS, counts, strict=False))
    for name, count in (("star", star), ("bright", bright)):
        answer[name], answer[f"{name}_scale"] = count.unbind(1)
    return answer


def class_log_chance(answer: Answer, temperature: float = 1.0) -> Tensor:
    """Logarithm of the calibrated probability of every class.

    Where the class follows from a count, the temperature widens the scale of the count; elsewhere it divides logits.

    Parameters
    ----------
    answer : Answer
        With ``logits``.
    temperature : float
        As it stands in the weights of a classifier.

    Returns
    -------
    (n, 6) float32 tensor
        Probabilities of a chip add up to 1.
    """
    if "star_scale" not in answer:
        return torch.log_softmax(answer["logits"] / temperature, dim=1)
    law = torch.stack([answer["star"], answer["star_scale"] + math.log(temperature)], dim=1)
    borders = torch.tensor(CLASS_BORDERS, device=law.device)
    return torch.log_softmax(class_log_probability(law, borders, LEAST_CHANCE), dim=1)


def build_density_network(arch: str, channels: int, context: int, histograms: int, anchors: int = 0) -> DensityNetwork:
    """A network with random weights, drawn from torch's global generator.

    Parameters
    ----------
    arch : str
        ``perceptron``, or the body: ``resnet18``, ``resnet34`` or ``resnet50``.
    channels, context, histograms, anchors : int
        Channels of the maps, length of the context, how many of its numbers, the last ones, are bins, and how many
        are direct counts that are corrected.

    Returns
    -------
    DensityNetwork

    Raises
    ------
    ConfigError
        If the architecture is unknown.
    """
    known: dict[str, Any] = CLASSIFIERS | REGRESSORS
    bodies = {name: build for name, build in known.items() if name.startswith("resnet")}
    if arch != PERCEPTRON and arch not in bodies:
        expected = ", ".join([PERCEPTRON, *bodies])
        raise ConfigError(f"unknown architecture {arch!r} of a density network; expected one of {expected}")
    body = None
    if arch != PERCEPTRON:
        body = bodies[arch](weights=None)
        set_channels(body, channels)
    return DensityNetwork(body, context, histograms, anchors)


def _principal(bins: Tensor, number: int) -> Tensor:
    """(k, number) leading principal axes of (n, k) float64, for projections whose scatter is the square root of theirs.

    So what stands out of the noise is large, and what is close to it is small: 1 is the scatter of the first.
    """
    if not bins.shape[1]:
        return bins.new_zeros(0, 0)
    apart = bins - bins.mean(0)
    values, axes = _eigh(apart.T @ apart / len(apart))
    scatter = values.flip(0)[:number].clamp_min(1e-12).sqrt()
    return axes.flip(1)[:, :number] / (scatter * scatter[0]).sqrt()


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix: the same bits in every process.

    By numpy, because torch fails to converge with some thread counts where chips are fewer than bins; in one thread,
    because the last digit depends on their number.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        values, vectors = np.linalg.eigh(matrix.numpy())
    return torch.from_numpy(values), torch.from_numpy(vectors)


def _width(stage: nn.Module) -> int:
    """Channels that a stage of a residual network gives."""
    return [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)][-1].out_channels


def _band(context: Tensor) -> Tensor:
    """(n,) place in `schema.BANDS` of (n, context)."""
    return context[:, : len(BANDS)].argmax(1)


def _pooled(maps: Tensor) -> Tensor:
    """Mean over a map, (n, c, y, x) -> (n, c)."""
    return nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1)


def _layer(width: int) -> list[nn.Module]:
    return [nn.Linear(width, TRUNK), nn.GELU()]


def _head(width: int, outputs: int, scale: float = 0.01) -> nn.Sequential:
    """Two layers; the weights of the last one scatter by ``scale``."""
    last = nn.Linear(HIDDEN, outputs)
    nn.init.normal_(last.weight, std=scale)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), last)
