"""Running statistics of normalisations when a step has several micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from csst_dask.training.ranks import Ranks


class RunningStatistics:
    """Running means, variances and counts for each micro-batch of a step, on whatever rank it is.

    A running statistic is linear in what it has seen. So the mean over the micro-batches does not depend on how many
    ranks they are spread over, nor on when it is taken.

    Parameters
    ----------
    module : torch.nn.Module
    ranks : Ranks
    parts : int
        Micro-batches of a step over all ranks.
    """

    def __init__(self, module: nn.Module, ranks: Ranks, parts: int) -> None:
        self.ranks, self.parts = ranks, parts
        layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        self.buffers: list[Tensor] = [
            buffer
            for layer in layers
            for buffer in (layer.running_mean, layer.running_var, layer.num_batches_tracked)
            if buffer is not None
        ]
        self.kept = {place: self._copy() for place in range(ranks.rank, parts, ranks.world)}

    def _copy(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self.buffers]

    @contextmanager
    def of(self, place: int) -> Iterator[None]:
        """Let one micro-batch update its own."""
        if self.parts > self.ranks.world and self.buffers:
            torch._foreach_copy_(self.buffers, self.kept[place])
        yield
        self.kept[place] = self._copy() if self.parts > self.ranks.world else self.buffers

    @torch.no_grad()
    def gather(self) -> Tensor:
        """Those of all micro-batches, on every rank.

        Returns
        -------
        (parts, n) float32 tensor
            All buffers of a micro-batch, one after the other.
        """
        sizes = [buffer.numel() for buffer in self.buffers]
        whole = torch.zeros(self.parts, sum(sizes), device=self.ranks.device)
        if not self.buffers:
            return whole
        for place, kept in self.kept.items():
            whole[place] = torch.cat([buffer.flatten().float() for buffer in kept])
        return self.ranks.add_up(whole)

    @torch.no_grad()
    def scatter(self, whole: Tensor) -> None:
        """Take up what `gather` gave, on however many ranks that was."""
        if not self.buffers:
            return
        rows = {place: whole[place].to(self.ranks.device) for place in self.kept}
        self.kept = {place: self._cut(row) for place, row in rows.items()}
        torch._foreach_copy_(self.buffers, next(iter(self.kept.values())))

    @torch.no_grad()
    def average(self) -> None:
        """Give the module, and every micro-batch, the mean over all of them."""
        mean = self.gather().mean(0)
        self.scatter(mean.expand(self.parts, -1))

    def _cut(self, row: Tensor) -> list[Tensor]:
        pieces = row.split([buffer.numel() for buffer in self.buffers])
        return [
            piece.reshape(buffer.shape).to(buffer.dtype, copy=True)
            for piece, buffer in zip(pieces, self.buffers, strict=True)
        ]
