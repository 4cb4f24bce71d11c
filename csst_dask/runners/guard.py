"""What stands round a task on its worker: a time limit, and a note of what it took."""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from csst_dask.inference.device import is_fatal

TIMED_OUT = 1
"""Exit status of a worker that was ended because a task took too long; `faulthandler` knows no other."""
DEVICE_LOST = 70
"""Exit status of a worker whose GPU context is broken beyond use."""


@dataclass(frozen=True)
class Outcome:
    """What a task returned, and what it took."""

    value: Any
    seconds: float
    """Wall time."""
    peak_memory: int
    """Largest resident memory of the process so far, byte."""


def guarded(function: Callable[..., Any], time_limit: float | None, *args: Any) -> Outcome:
    """Call a task's function on a worker.

    A task that takes too long, or leaves a GPU that answers nothing any more, ends its worker process: nothing else
    helps. The nanny starts another one.

    Parameters
    ----------
    function : callable
    time_limit : float or None
        s.
    *args
        Of the function.

    Returns
    -------
    Outcome
    """
    start = time.perf_counter()
    try:
        with limited(time_limit):
            value = function(*args)
    except Exception as error:
        if is_fatal(error):
            print(f"csst_dask: the GPU of this worker is lost ({error}); ending it", file=sys.stderr, flush=True)
            os._exit(DEVICE_LOST)
        raise
    return Outcome(value, time.perf_counter() - start, peak_memory())


def peak_memory() -> int:
    """Largest resident memory of this process so far, byte."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


_deadlines: dict[int, float] = {}
_lock = threading.Lock()


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """End the process with a traceback of all its threads if the block takes longer.

    The timer is a thread that needs no interpreter lock, so it also ends a call that never comes back to Python.

    Parameters
    ----------
    seconds : float or None
        None for no limit.
    """
    if seconds is None:
        yield
        return
    block = object()
    with _lock:
        _deadlines[id(block)] = time.monotonic() + seconds
        _arm()
    try:
        yield
    finally:
        with _lock:
            del _deadlines[id(block)]
            _arm()


def _arm() -> None:
    """Set the one timer of the process to the earliest deadline."""
    if _deadlines:
        left = max(min(_deadlines.values()) - time.monotonic(), 1e-3)
        faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__ or sys.stderr)
    else:
        faulthandler.cancel_dump_traceback_later()
