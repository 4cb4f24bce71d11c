"""A process that dies between two writes to its store, played in this one: that write and all after it raise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import WrapperStore

from csst_dask.store import create, location
from csst_dask.store.writer import task_arrays


class Death(BaseException):
    """No handler of an error takes it for one."""


class Writes:
    """Counts writes and removals, and dies at one of them.

    Parameters
    ----------
    last : int, optional
        Writes that are made before the death; by default there is none.
    """

    def __init__(self, last: int | None = None):
        self.last, self.made = last, 0
        self.dead = False

    def step(self) -> None:
        """Before a write."""
        if self.dead or self.made == self.last:
            self.dead = True
            raise Death
        self.made += 1


class DyingStore(WrapperStore[Store]):
    """A Zarr store whose process dies at a write."""

    def __init__(self, store: Store, writes: Writes):
        super().__init__(store)
        self._writes = writes

    def _with_store(self, store: Store) -> DyingStore:
        return DyingStore(store, self._writes)

    async def set(self, key: str, value: Buffer) -> None:
        self._writes.step()
        await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        self._writes.step()
        await super().set_if_not_exists(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        self._writes.step()
        await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        raise AssertionError(f"{prefix} is removed as a whole: who knows what is in it")


@contextmanager
def writing(writes: Writes) -> Iterator[Writes]:
    """Count the writes to all stores that are opened in the block."""
    opened = location.open_zarr_store

    def wrapped(where: str, *, read_only: bool) -> Store:
        return DyingStore(opened(where, read_only=read_only), writes)

    with pytest.MonkeyPatch.context() as patch:
        for module in (location, create):
            patch.setattr(module, "open_zarr_store", wrapped)
        task_arrays.cache_clear()
        try:
            yield writes
        finally:
            task_arrays.cache_clear()


def dies(last: int, function: Callable[..., Any], *args: Any) -> bool:
    """Whether a function that writes to a store dies after so many writes; False where it makes no more."""
    with writing(Writes(last)) as writes:
        try:
            function(*args)
        except Death:
            return True
        assert not writes.dead, "a handler has swallowed the death"
        return False
