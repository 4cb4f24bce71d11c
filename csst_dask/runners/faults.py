"""What can happen to a task on a cluster or to storage, and what to do about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

from distributed import KilledWorker

from csst_dask.errors import RunEnded, describe_error, is_full
from csst_dask.pipeline.stopping import stop_requested, wait_for_stop
from csst_dask.store.lease import LeaseLost

PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors of the operating system that seldom go away by waiting."""
REMOTE = ("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs", "gcsfs", "adlfs", "obstore", "urllib3", "requests")
"""Packages whose errors tell of a server or of the way to it."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a write is tried again; twice as long each time."""

T = TypeVar("T")


class Fault(Enum):
    """Kinds of faults, by what helps."""

    LOST_WORKER = auto()
    """The worker died; the task may be why, or not."""
    LOST_SCHEDULER = auto()
    """The scheduler forgot the task, or went away."""
    OUTAGE = auto()
    """Storage or network failed: waiting helps."""
    ERROR = auto()
    """The task raised something; once or twice it may be chance."""


class ClusterLost(RunEnded):
    """There is no scheduler or no worker any more."""


class TooManyFailures(RunEnded):
    """Task after task failed: going on would only fail the rest."""


class TaskFailed(RunEnded):
    """A task failed whose result nothing can do without."""


def classify(error: BaseException) -> Fault:
    """Kind of a fault.

    Parameters
    ----------
    error : BaseException
        What came instead of a task's result.

    Returns
    -------
    Fault
    """
    if isinstance(error, KilledWorker):
        return Fault.LOST_WORKER
    if isinstance(error, CancelledError | asyncio.CancelledError):
        return Fault.LOST_SCHEDULER
    if isinstance(error, PERMANENT) or is_full(error):
        return Fault.ERROR
    if isinstance(error, OSError | TimeoutError) or type(error).__module__.partition(".")[0] in REMOTE:
        return Fault.OUTAGE
    return Fault.ERROR


@dataclass(frozen=True)
class Failure:
    """A task that gave no result, though it was tried again."""

    reason: str
    poison: bool = False
    """Whether it ended its process every time, on its own."""


class StorageLost(RunEnded):
    """The store cannot be read or written."""


def retry_storage(timeout: float, function: Callable[..., T], *args: Any) -> T:
    """Call a function that works on a store, again and again while its storage fails.

    Parameters
    ----------
    timeout : float
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
            if is_full(error) or waited + pause > timeout or stop_requested():
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
    """Take some last steps after a block, whatever it raised: unless the store can be written no more.

    Each is taken though another fails. What the block raised is not hidden by what they raise.
    """
    try:
        yield
    except (StorageLost, LeaseLost):
        raise
    except BaseException as error:
        for failed in _tried(steps):
            error.add_note(f"and then: {describe_error(failed)}")
        raise
    else:
        for failed in _tried(steps):
            raise failed


def _tried(steps: tuple[Callable[[], Any], ...]) -> list[Exception]:
    failed = []
    for step in steps:
        try:
            step()
        except Exception as error:
            failed.append(error)
    return failed
