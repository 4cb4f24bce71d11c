"""What training makes small."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

RELATIVE_LIMIT = 10.0
"""Largest relative squared error of a chip (paper, section 3.2.2)."""

RELATIVE_FLOOR = 0.1
"""Least target that a residual is divided by, dex: log10(1 + n) is 0 where there is no star. The paper gives
no value."""


def class_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy, with label smoothing if asked.

    Parameters
    ----------
    logits : (n, classes) tensor
    target : (n,) int64 tensor
    smoothing : float
        Share of the label that is spread evenly over all classes, in [0, 1).

    Returns
    -------
    scalar tensor
        Mean over the chips, nat.
    """
    return functional.cross_entropy(logits, target, label_smoothing=smoothing)


def count_loss(predicted: Tensor, target: Tensor, alpha: float = 1.0, beta: float = 1.0, gamma: float = 0.1) -> Tensor:
    """alpha MSE + beta MAE + gamma relative MSE, the last one limited per chip (paper, section 3.2.2).

    Parameters
    ----------
    predicted, target : (n,) tensor
        log10(1 + n_bright), dex.
    alpha, beta, gamma : float
        Weights of the terms. The paper gives no values.

    Returns
    -------
    scalar tensor
        Mean over the chips.
    """
    residual = predicted - target
    relative = (residual / target.abs().clamp(min=RELATIVE_FLOOR)) ** 2
    terms = alpha * residual**2 + beta * residual.abs() + gamma * relative.clamp(max=RELATIVE_LIMIT)
    return torch.mean(terms)


def laplace_loss(median: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
    """Negative logarithm of a Laplace likelihood: absolute errors, weighed by how large they are expected to be.

    Parameters
    ----------
    median, log_scale, target : (n,) tensor
        Counts in dex, natural logarithm of the scale in dex. Chips whose target is NaN are left out.

    Returns
    -------
    scalar tensor
        Mean over the chips that count, nat; 0 if there is none.
    """
    known = torch.isfinite(target)
    residual = (median - torch.where(known, target, median.detach())).abs()
    loss = residual * torch.exp(-log_scale) + log_scale
    return torch.where(known, loss, torch.zeros_like(loss)).sum() / known.sum().clamp_min(1)
