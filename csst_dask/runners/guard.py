"""What stands round a task on its worker: a time limit, and a note of what it took.

A limit ends the process of a worker that has a nanny, and a process that was started for one task: nothing else helps
against a call that never comes back from C. Any other process is its user's (a notebook, a script with a cluster of
threads), and lives: there the limit raises `TimeLimitExceeded`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from distributed import get_worker

from csst_dask.errors import CsstDaskError
from csst_dask.inference.device import is_fatal
from csst_dask.memory import peak_memory
from csst_dask.pipeline import isolated
from csst_dask.pipeline.isolated import DEVICE_LOST

LATE = 0.5
"""Seconds beyond its limit in which a call that was interrupted ends by itself; then nobody waits for it any more."""


class TimeLimitExceeded(CsstDaskError):
    """A task took too long in a process that is not ended for it.

    No `TimeoutError`, which is what storage and networks raise: trying again later does not help.
    """


class _Interrupted(BaseException):
    """Raised in a thread whose time is over; what catches every `Exception` does not catch it."""


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

    Where the process may be ended (see the module), a task that takes too long, or leaves a GPU that answers nothing
    any more, ends it, and the nanny starts another one.

    Elsewhere a call with a limit runs in a thread of its own, which sees the same worker. When its time is over it
    is interrupted at its next step in Python, and abandoned if it is in C: it then keeps its memory, its locks and
    its core until it comes back to Python, where it ends, and what it would have returned is lost.

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

    Raises
    ------
    TimeLimitExceeded
        If the task takes too long and the process is not ended for it.
    """
    start = time.perf_counter()
    try:
        if time_limit is None or may_end():
            with limited(time_limit):
                value = function(*args)
        else:
            value = _call_in_thread(function, time_limit, args)
    except Exception as error:
        if is_fatal(error) and may_end():
            print(f"csst_dask: the GPU of this worker is lost ({error}); ending it", file=sys.stderr, flush=True)
            os._exit(DEVICE_LOST)
        raise
    return Outcome(value, time.perf_counter() - start, peak_memory())


def may_end() -> bool:
    """Whether a task may end this process: a worker's that a nanny starts again, or one that was started for a task.

    Returns
    -------
    bool
    """
    if isolated.started_for_a_task():
        return True
    try:
        return bool(get_worker().nanny)
    except ValueError:  # no worker
        return False


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Limit the time of a block.

    Where the process may be ended (see the module), it is, with a traceback of all its threads. Elsewhere the block is
    interrupted at its next step in Python; a call into C is not.

    Parameters
    ----------
    seconds : float or None
        None for no limit.

    Raises
    ------
    TimeLimitExceeded
        If the block takes longer and the process is not ended for it.
    """
    if seconds is None:
        yield
    else:
        with _ending(seconds) if may_end() else _interrupting(seconds):
            yield


_deadlines: dict[int, float] = {}
_lock = threading.Lock()


@contextmanager
def _ending(seconds: float) -> Iterator[None]:
    """End the process; the timer is a thread that needs no interpreter lock."""
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


class _Interrupt:
    """Interrupts the thread that made it, unless called off before."""

    def __init__(self) -> None:
        self.thread, self.lock, self.off, self.struck = threading.get_ident(), threading.Lock(), False, False

    def strike(self) -> None:
        with self.lock:
            if not self.off:
                self.struck = True
                self._raise(ctypes.py_object(_Interrupted))

    def call_off(self) -> None:
        """Also take back what was raised but has not arrived."""
        with self.lock:
            self.off = True
            if self.struck:
                self._raise(None)

    def _raise(self, error: ctypes.py_object | None) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread), error)


@contextmanager
def _interrupting(seconds: float) -> Iterator[None]:
    interrupt = _Interrupt()
    timer = threading.Timer(seconds, interrupt.strike)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            timer.cancel()
            interrupt.call_off()
    except _Interrupted:
        if not interrupt.struck:  # one of a block around this one
            raise
    if interrupt.struck:
        raise _too_long(seconds)


def _call_in_thread(function: Callable[..., Any], seconds: float, args: tuple[Any, ...]) -> Any:
    answer: Future = Future()

    def call() -> None:
        try:
            with limited(seconds):
                value = function(*args)
        except _Interrupted:  # between two blocks
            answer.set_exception(_too_long(seconds))
        except BaseException as error:
            answer.set_exception(error)
        else:
            answer.set_result(value)

    # with the context, in which Dask keeps the worker
    threading.Thread(target=copy_context().run, args=(call,), name="csst_dask task", daemon=True).start()
    wait([answer], seconds + LATE)
    if not answer.done():
        raise _too_long(seconds)
    return answer.result()


def _too_long(seconds: float) -> TimeLimitExceeded:
    return TimeLimitExceeded(f"took longer than its time limit of {seconds:g} s")
