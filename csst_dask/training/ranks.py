"""The processes that train one network together, or the only one."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from csst_dask.errors import ConfigError

MEETING = 300.0
"""Ranks may start so many seconds apart."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    world: int = 1
    group: Any = None
    """Process group whose operations fail after the timeout; None if there is one rank."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose gradients are averaged over the ranks; the module itself if there is one rank."""
        if self.world == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        known = signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # the newer name
        options: dict[str, Any] = {"device_ids": devices, "process_group": self.group, option: False}
        return DistributedDataParallel(module, **options)

    def silent(self, module: nn.Module, last: bool) -> Any:
        """A context in which gradients are only added up here; before the last micro-batch of a step."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()

    def sum(self, values: list[float]) -> list[float]:
        """Sums over the ranks."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def meet(self) -> None:
        """Wait for all ranks, which may be `MEETING` seconds apart."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))

    def share(self, make: Callable[[], Any]) -> Any:
        """What the first rank makes, on all ranks; a `ConfigError` there is one everywhere."""
        if self.world == 1:
            return make()
        made: list[Any] = [None, None]
        if self.first:
            try:
                made[0] = make()
            except ConfigError as error:
                made[1] = error
        dist.broadcast_object_list(made, src=0, group=self.group, device=torch.device("cpu"))
        if made[1] is not None:
            raise made[1]
        return made[0]


@contextmanager
def joined(device: str | None = None, timeout: float = 60.0) -> Iterator[Ranks]:
    """Join the ranks that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK).

    Ranks that end with an error do not take leave of each other: they could wait for one that is gone.

    Parameters
    ----------
    device : str, optional
        By default the GPU that LOCAL_RANK counts among those that are visible, else the CPU.
    timeout : float
        A rank that keeps the others waiting for longer fails them all, s.

    Yields
    ------
    Ranks
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    where = torch.device(device or _own_device())
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world == 1:
        yield Ranks(where)
        return
    # gloo first: the first collective of NCCL ignores the timeout
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=max(MEETING, timeout)))
    dist.all_reduce(torch.zeros(1))
    group = dist.new_group(timeout=timedelta(seconds=timeout))
    yield Ranks(where, dist.get_rank(), world, group)
    gc.collect()  # a module that still holds the group would keep it from closing
    dist.destroy_process_group()


def _own_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
