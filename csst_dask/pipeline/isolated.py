"""A task in a process of its own, under the worker: it can end nobody else, and what ends it is seen exactly."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import cloudpickle
import psutil

from csst_dask.inference.device import is_fatal

TIMED_OUT = 1
"""Exit status of a worker that was ended because a task took too long; `faulthandler` knows no other."""
DEVICE_LOST = 70
"""Exit status of a worker whose GPU context is broken beyond use."""
ORPHANED = 71
"""Exit status of a process whose worker has died."""
START = 300.0
"""Seconds in which a process begins; its time limit counts from there."""
POLL = 0.1
"""Seconds between looks at the process."""
BEGUN, NOT_BEGUN = b"b", b"n"
"""First byte of what the process says."""
SLACK = 0.5
"""Seconds by which the beginning of a process may be seen late."""


@dataclass(frozen=True)
class Died:
    """The process of a task ended before the task did."""

    reason: str


def run_alone(function: Callable[..., Any], time_limit: float | None, memory_limit: int | None, *args: Any) -> Any:
    """Call a function in a process of its own.

    Parameters
    ----------
    function : callable
    time_limit : float or None
        s.
    memory_limit : int or None
        Of resident memory, byte.
    *args
        Of the function.

    Returns
    -------
    object
        What the function returned, or a `Died`.

    Raises
    ------
    Exception
        What the function raised.
    RuntimeError
        If the process ended before it called the function, of which that tells nothing.
    """
    payload = pickle.dumps((sys.path, cloudpickle.dumps((function, args))))
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "csst_dask.pipeline.isolated", str(write)],
        stdin=subprocess.PIPE, pass_fds=(write,), start_new_session=True,
    )  # fmt: skip
    os.close(write)
    reply = _Reply(read)
    reply.start()
    try:
        with suppress(BrokenPipeError):
            stdin = process.stdin
            stdin.write(len(payload).to_bytes(8, "little") + payload)  # type: ignore[union-attr]
            stdin.flush()  # type: ignore[union-attr]
        reason = _watch(process, reply.began, time_limit, memory_limit)
    finally:
        process.kill()
        process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]
    reply.join()
    if reason or not reply.data:
        reason = reason or _ended_by(process.returncode, reply.lasted, time_limit)
        if not reply.began.is_set():
            raise RuntimeError(f"a process of its own for a task did not begin: {reason}")
        return Died(reason)
    good, value = pickle.loads(reply.data)
    if good:
        return value
    raise value


class _Reply(threading.Thread):
    """Reads what the process says: a byte when it begins, then the answer."""

    def __init__(self, descriptor: int):
        super().__init__(daemon=True)
        self.descriptor, self.began, self.data = descriptor, threading.Event(), b""
        self.lasted = 0.0
        """Seconds from the beginning to the end."""

    def run(self) -> None:
        with os.fdopen(self.descriptor, "rb") as pipe:
            if pipe.read(1) == BEGUN:
                self.began.set()
            start = time.monotonic()
            self.data = pipe.read()
            self.lasted = time.monotonic() - start


def _watch(
    process: subprocess.Popen, began: threading.Event, time_limit: float | None, memory_limit: int | None
) -> str:
    """Wait for the process to end; why it had to be ended, if it had."""
    start, allowed = time.monotonic(), START
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL)
            return ""
        if began.is_set() and allowed == START:
            start, allowed = time.monotonic(), time_limit or float("inf")
        if time.monotonic() - start > allowed:
            return f"took longer than {allowed:g} s"
        if memory_limit:
            with suppress(psutil.Error):
                if psutil.Process(process.pid).memory_info().rss > memory_limit:
                    return f"needed more than the {memory_limit / 1e9:.2f} GB of its worker"


def _ended_by(status: int, lasted: float, time_limit: float | None) -> str:
    # the timer of a part of the task, see `guard.limited`, has no status of its own
    if status == TIMED_OUT and time_limit and lasted > time_limit - SLACK:
        return "took longer than its time limit"
    if status == DEVICE_LOST:
        return "lost the GPU to a fatal CUDA error"
    if status < 0:
        return f"killed its process by {signal.Signals(-status).name}"
    return f"ended its process with exit status {status}"


_isolated = False


def allow_end() -> None:
    """Say that this process was started for one task, and may be ended with it."""
    global _isolated
    _isolated = True


def started_for_a_task() -> bool:
    """Whether this process was started for one task, and may be ended with it."""
    return _isolated


def main() -> None:
    """Read a call from standard input, and write what it gives into the pipe that was named."""
    # this file runs as ``__main__``; what asks later imports it by its name
    import_module("csst_dask.pipeline.isolated").allow_end()
    with os.fdopen(int(sys.argv[1]), "wb") as pipe:
        stdin = sys.stdin.buffer
        payload = stdin.read(int.from_bytes(stdin.read(8), "little"))
        threading.Thread(target=_leave_with_worker, args=(stdin,), daemon=True).start()
        answer = _answer(payload, pipe)
        try:
            found = cloudpickle.dumps(answer)
        except Exception:
            found = cloudpickle.dumps((False, RuntimeError(repr(answer[1]))))
        pipe.write(found)
    os._exit(0)


def _answer(payload: bytes, pipe: Any) -> tuple[bool, Any]:
    """Whether the call was good, and what it gave; the pipe is told first whether it was made at all."""
    begun = False
    try:
        sys.path[:], call = pickle.loads(payload)
        function, args = pickle.loads(call)  # only now, since what it names is found on that path
        pipe.write(BEGUN)
        pipe.flush()
        begun = True
        return True, function(*args)
    except Exception as error:
        if is_fatal(error):
            print(f"csst_dask: a task lost its GPU ({error})", file=sys.stderr, flush=True)
            os._exit(DEVICE_LOST)
        if not begun:
            pipe.write(NOT_BEGUN)
        return False, error


def _leave_with_worker(stdin: Any) -> None:
    """The pipe closes when the worker dies, whatever it died of."""
    stdin.read()
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
