"""What can happen to a task on a cluster, and what to do about it."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from dataclasses import dataclass
from enum import Enum, auto

from distributed import KilledWorker

from csst_dask.errors import RunEnded, is_full

PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors of the operating system that seldom go away by waiting."""
REMOTE = ("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs", "gcsfs", "adlfs", "obstore", "urllib3", "requests")
"""Packages whose errors tell of a server or of the way to it."""


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
    """Whether it ended its process every time, on its own: what it works on is to be rejected."""
