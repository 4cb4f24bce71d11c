"""What the numbers that a network puts out mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from csst_dask.models.density import LEAST_CHANCE, class_log_probability, split_outputs
from csst_dask.schema import CLASS_BORDERS

Answer = dict[str, Tensor]
"""``logits`` (n, 6); ``star`` and ``bright`` (n,), log10(1 + n), dex; ``star_scale`` and ``bright_scale`` (n,), natural
logarithms of how far off these are expected to be, ln dex. What a network does not give is not there."""


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
    parts = split_outputs(module(maps, context).float())
    answer: Answer = {"logits": parts["logits"]}
    for name in ("star", "bright"):
        answer[name], answer[f"{name}_scale"] = parts[name].unbind(1)
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
