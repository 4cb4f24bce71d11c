"""The end of a run before its work is done: a signal, Ctrl-C, or the walltime of a batch job that comes near."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from csst_dask.errors import RunEnded

WALLTIME = "SLURM_JOB_END_TIME"
"""Environment variable with the Unix time at which SLURM ends the job."""

LOOK = 0.1
"""Seconds between looks at whether a sleep is to end."""

APART = 0.1
"""Seconds between two presses of Ctrl-C; of less, launchers that pass it on make one press two signals."""

CHATTY = "distributed"
"""Logger that says, with tracebacks, that connections end which an interruption ends."""


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


@contextmanager
def interruptible() -> Iterator[None]:
    """For a command: Ctrl-C is a `KeyboardInterrupt` once, and ends the process and all its children the second time.

    Where SIGINT is ignored, as in a command that a script starts in the background, that stays so.

    Notes
    -----
    The second one does not wait for the main thread, whatever that is about. Workers that are SLURM jobs are no
    children; they leave when they miss their scheduler. Some hundred bytes of semaphores stay in shared memory.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second, args=(read,), name="Ctrl-C", daemon=True).start()
    over = threading.Event()

    def once(number: int, frame: FrameType | None) -> None:
        if not over.is_set():
            over.set()
            logging.getLogger(CHATTY).setLevel(logging.CRITICAL)
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, once)
    # registered before those of other packages, so called after them: the interpreter's own end is short
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        over.set()  # the work is over, and the process about to end


def _end_at_second(pipe: int) -> None:
    """Read the numbers of the signals that arrive; the interpreter writes them at once, whatever it is about."""
    last, count = -APART, 0
    while number := os.read(pipe, 1):
        if number[0] == signal.SIGINT:
            now = time.monotonic()
            count += now - last > APART
            last = now
        if count == 2:
            _end_at_once()


def _end_at_once() -> None:
    """Leave with status 1, and no child behind."""
    # a progress bar hides the cursor
    show = b"\x1b[?25h\n" if os.isatty(2) else b""
    with suppress(OSError):
        os.write(2, show + b"interrupted twice; ended at once\n")
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    os._exit(1)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a block end, such as the start of a cluster, of which half would stay; a Ctrl-C comes when it has ended.

    The second one comes at once. In other threads than the main one there is nothing to do.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    noted: list[FrameType | None] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            before(number, frame)
        noted.append(frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if noted:
            before(signal.SIGINT, noted[0])
