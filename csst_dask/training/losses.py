"""What training makes small.

Every loss is a sum over chips divided by ``count``, by default the number of chips that it was given. With the count of
a whole batch the losses of its micro-batches add up to the loss of the batch, however they are cut.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from csst_dask.errors import ConfigError

RELATIVE_LIMIT = 10.0
"""Largest relative squared error of a chip (paper, section 3.2.2)."""

RELATIVE_FLOOR = 0.1
"""Least target that a residual is divided by, dex: log10(1 + n) is 0 where there is no star. The paper gives
no value."""


class Diverged(ConfigError):
    """The loss is no longer finite: this training cannot go on with its settings."""


def class_loss(logits: Tensor, target: Tensor, *, count: int | None = None) -> Tensor:
    """Cross entropy.

    Parameters
    ----------
    logits : (n, classes) tensor
    target : (n,) int64 tensor
    count : int, optional
        Chips of the whole batch; by default n.

    Returns
    -------
    scalar tensor
        Mean over the chips, nat.
    """
    loss = functional.cross_entropy(logits, target, reduction="sum")
    return loss / max(1, len(target) if count is None else count)


def count_loss(
    predicted: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 0.1,
    *,
    count: int | None = None,
) -> Tensor:
    """alpha MSE + beta MAE + gamma relative MSE, the last one limited per chip (paper, section 3.2.2).

    Parameters
    ----------
    predicted, target : (n,) tensor
        log10(1 + n_bright), dex.
    alpha, beta, gamma : float
        Weights of the terms. The paper gives no values.
    count : int, optional
        Chips of the whole batch; by default n.

    Returns
    -------
    scalar tensor
        Mean over the chips.
    """
    residual = predicted - target
    relative = (residual / target.abs().clamp(min=RELATIVE_FLOOR)) ** 2
    terms = alpha * residual**2 + beta * residual.abs() + gamma * relative.clamp(max=RELATIVE_LIMIT)
    return terms.sum() / max(1, len(target) if count is None else count)


def laplace_loss(median: Tensor, log_scale: Tensor, target: Tensor, *, count: int | None = None) -> Tensor:
    """Negative logarithm of a Laplace likelihood, less ln 2: absolute errors, weighed by how large they should be.

    Parameters
    ----------
    median, log_scale, target : (n,) tensor
        Counts in dex, natural logarithm of the scale in dex. Chips whose target is NaN are left out.
    count : int, optional
        Chips with a target in the whole batch; by default those among the n.

    Returns
    -------
    scalar tensor
        Mean over the chips with a target, nat; 0 if there is none.
    """
    known = torch.isfinite(target)
    residual = (median - torch.where(known, target, median.detach())).abs()
    loss = residual * torch.exp(-log_scale) + log_scale
    return torch.where(known, loss, torch.zeros_like(loss)).sum() / max(1, int(known.sum()) if count is None else count)
