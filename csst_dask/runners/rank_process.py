"""A rank on its worker: a process of its own, what it tells, and signals to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from distributed import get_worker

OURS = "csst-dask: "
"""Starts the message with which a rank ends."""

_running: dict[str, subprocess.Popen] = {}
"""Ranks of this worker, by gang and rank."""
_over: set[str] = set()
"""Gangs that were ended, whose ranks start too late."""


def introduce() -> dict[str, Any]:
    """A port that nobody uses on this worker's host, and which GPUs the worker sees."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return {"port": probe.getsockname()[1], "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}


def signal_ranks(gang: str, number: int) -> None:
    """Send a signal to the ranks of a gang on this worker; after SIGKILL none starts any more."""
    if number == signal.SIGKILL:
        _over.add(gang)
    for name, process in list(_running.items()):
        if name.startswith(gang) and process.poll() is None:
            process.send_signal(number)


def run_rank(gang: str, spec: str, rank: int, environment: dict[str, str], told: str) -> tuple[int, str]:
    """Run one rank under this worker and pass on what it tells.

    Parameters
    ----------
    gang : str
        Topic of the events that carry what it tells.
    spec : str
        What to do.
    rank : int
    environment : dict
        Of the rank, on top of the worker's own.
    told : str
        Starts the lines that carry an event; what follows is JSON.

    Returns
    -------
    status : int
        Exit status, or minus the number of the signal that killed it.
    text : str
        Its last words.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "csst_dask.training.rank", spec],
        env=os.environ | environment,
        stdin=subprocess.PIPE,  # the rank ends when it is closed
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,  # Ctrl-C is for the client, which asks the ranks to stop
    )  # fmt: skip
    name, said = f"{gang}-{rank}", deque[str](maxlen=20)
    _running[name] = process
    try:
        if gang in _over:
            process.kill()
        for line in process.stdout or ():
            for event in events_in(line, told, said):
                get_worker().log_event(gang, event)
        return process.wait(), last_words(said)
    finally:
        process.kill()
        process.wait()
        _running.pop(name, None)


def events_in(line: str, told: str, said: deque[str]) -> list[Any]:
    """What a line of a rank tells, if it does; any other line goes to ``said``."""
    if line.startswith(told):
        with suppress(json.JSONDecodeError):  # somebody else wrote into the line
            return [json.loads(line.removeprefix(told))]
    if line.strip():
        said.append(line.strip())
    return []


def last_words(said: Iterable[str]) -> str:
    """Our own message among the lines of a process, or its last line."""
    lines = list(said)
    ours = [line.removeprefix(OURS) for line in lines if line.startswith(OURS)]
    return (ours or lines or ["it said nothing"])[-1]
