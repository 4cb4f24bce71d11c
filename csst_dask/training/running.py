"""Statistics of normalisations, from many chips under the parameters as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from csst_dask.training.ranks import Ranks
from csst_dask.training.stages import freeze_statistics

CHIPS = 1024
"""So many chips are enough."""


@torch.no_grad()
def settle_statistics(module: nn.Module, ranks: Ranks, batches: Sequence, look: Callable) -> None:
    """Give batch normalisations the mean of the statistics of many batches (Wu & Johnson 2021, arXiv:2105.07576).

    What they run along while they learn belongs to parameters that have moved since, and to the last few batches; where
    a bright star makes one chip's activations a hundred times those of another, a network that counts well by the
    statistics of its batch is far off by those.

    Parameters
    ----------
    module : torch.nn.Module
        Modified: running mean and variance of the normalisations that learn. In evaluation mode afterwards.
    ranks : Ranks
        Each takes some of the batches; how many there are does not matter to the last bit.
    batches : sequence
        Batches of the size of a micro-batch, whose statistics it is that the network learned with.
    look : callable
        Lets the module see one of them.
    """
    module.train()
    freeze_statistics(module)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    layers = [layer for layer in layers if layer.training]
    module.eval()
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    buffers = [b for layer in layers for b in (layer.running_mean, layer.running_var) if isinstance(b, Tensor)]
    found = torch.zeros(len(batches), sum(buffer.numel() for buffer in buffers), device=ranks.device)
    for layer in layers:
        layer.train()
        layer.momentum = 1.0
    for place in range(ranks.rank, len(batches), ranks.world):
        look(batches[place])
        found[place] = torch.cat([buffer.flatten() for buffer in buffers])
    mean = ranks.add_up(found).mean(0)
    for buffer, piece in zip(buffers, mean.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(piece.reshape(buffer.shape))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(len(batches))
    module.eval()
