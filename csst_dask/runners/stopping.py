"""The end of a run before its work is done: a signal, or the walltime of a batch job that comes near."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from csst_dask.errors import RunEnded

WALLTIME = "SLURM_JOB_END_TIME"
"""Environment variable with the Unix time at which SLURM ends the job."""

LOOK = 0.1
"""Seconds between looks at whether a sleep is to end."""


class Stopped(RunEnded):
    """The run was asked to end."""


class _Request:
    def __init__(self) -> None:
        self.event, self.reason = threading.Event(), ""


_request = _Request()


def request_stop(reason: str) -> None:
    """Ask the runs of this process to end: nothing new is submitted, what runs is waited for a while.

    Parameters
    ----------
    reason : str
        Such as ``SIGTERM``; the first one counts.
    """
    if not _request.event.is_set():
        _request.reason = reason
        _request.event.set()


def stop_requested() -> str:
    """Why the runs of this process shall end; empty if they need not."""
    return _request.reason if _request.event.is_set() else ""


def wait_for_stop(seconds: float) -> bool:
    """Sleep, unless the runs of this process shall end; whether they shall.

    In short sleeps: a signal's handler that sets an event while its own thread is about to wait for it would wait for
    that thread, for ever.
    """
    end = time.monotonic() + seconds
    while not _request.event.is_set() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, LOOK))
    return _request.event.is_set()


@contextmanager
def stopping(margin: float) -> Iterator[None]:
    """Turn SIGTERM, and a walltime that comes near, into a request to stop.

    Parameters
    ----------
    margin : float
        Seconds before the walltime.

    Notes
    -----
    Handlers can only be set in a process's main thread; elsewhere the block runs without them.
    """
    timer, before = _walltime_timer(margin), None
    if threading.current_thread() is threading.main_thread():

        def terminate(number: int, frame: FrameType | None) -> None:
            request_stop(signal.Signals(number).name)

        before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        _request.event.clear()


def _walltime_timer(margin: float) -> threading.Timer | None:
    end = os.environ.get(WALLTIME, "")
    if not end.isdigit():
        return None
    timer = threading.Timer(max(0.0, int(end) - margin - time.time()), request_stop, ["the walltime of the job"])
    timer.daemon = True
    timer.start()
    return timer
