"""Storage that fails for a while is waited for; storage that stays away ends the run with one clear message."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from csst_dask.errors import RunEnded, describe_error, is_full
from csst_dask.runners.faults import Fault, classify
from csst_dask.runners.stopping import stop_requested, wait_for_stop

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a write is tried again; twice as long each time."""

T = TypeVar("T")


class StorageLost(RunEnded):
    """The store cannot be read or written."""


def patiently(patience: float, function: Callable[..., T], *args: Any) -> T:
    """Call a function that works on a store, again and again while its storage fails.

    Parameters
    ----------
    patience : float
        For so long at most, s.
    function : callable
        May be called again after it has failed half-way.
    *args
        Of the function.

    Returns
    -------
    object
        What the function returned.

    Raises
    ------
    StorageLost
        If storage is full, or fails for too long.
    """
    start, pause = time.monotonic(), FIRST_PAUSE
    while True:
        try:
            return function(*args)
        except Exception as error:
            lost = lost_storage(error)
            if lost is None:
                raise
            waited = time.monotonic() - start
            if is_full(error) or waited + pause > patience or stop_requested():
                raise lost from error
        wait_for_stop(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def lost_storage(error: Exception) -> StorageLost | None:
    """What an error means for a run if storage is its cause; else None."""
    if is_full(error) or classify(error) is Fault.OUTAGE:
        return StorageLost(f"storage or the network failed: {describe_error(error)}")
    return None


@contextmanager
def finishing(*steps: Callable[[], Any]) -> Iterator[None]:
    """Take some last steps after a block, whatever it raised: unless storage is gone, which they need."""
    reachable = True
    try:
        yield
    except StorageLost:
        reachable = False
        raise
    finally:
        if reachable:
            for step in steps:
                step()
