"""Run the command line with one worker in this process, trace its calls, and print what was entered as JSON."""

import json
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from distributed import Client, LocalCluster
from typer.testing import CliRunner

import csst_dask
from csst_dask.cli import app
from csst_dask.pipeline.block import process_block
from csst_dask.runners.guard import guarded
from csst_dask.store.location import open_group, open_zarr_store

PACKAGE = Path(csst_dask.__file__).parent
THREADS = ("Dask-Default-Threads", "read-ahead")
"""Parts of the names of the threads that work on a chip: one calls the task, the other reads pixels for it."""


@dataclass
class Trace:
    """Calls of the package's Python functions; compiled ones are no calls of Python, and do not show."""

    blocks: list[list[str]] = field(default_factory=list)
    """For each block of chips: modules in the order in which the threads that work on it entered them first."""
    around: list[list[str]] = field(default_factory=list)
    """The same, of calls before and after the work on a block."""
    opened: Counter = field(default_factory=Counter)
    """Calls that open a store, by function and side."""
    main: set[str] = field(default_factory=set)
    """Modules that the client has entered."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _within: bool = False

    def _leave(self, frame, event, arg):
        if event == "return":
            self._within = False

    def __call__(self, frame, event, arg):
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(str(PACKAGE)):
            return None
        module = Path(name).relative_to(PACKAGE).as_posix()
        thread = threading.current_thread().name
        with self._lock:
            there = any(name in thread for name in THREADS)
            if frame.f_code in (open_group.__code__, open_zarr_store.__code__):
                self.opened[frame.f_code.co_name, "worker" if there else "client"] += 1
            if not there:
                self.main.add(module)
                return None
            if frame.f_code is guarded.__code__:
                self.around.append([])
            if frame.f_code is process_block.__code__:
                self.blocks.append([])
                self._within, frame.f_trace_lines = True, False
            entered = self.blocks if self._within else self.around
            if entered and module not in entered[-1]:
                entered[-1].append(module)
        return self._leave if frame.f_code is process_block.__code__ else None


def main(config: str) -> None:
    """Trace a run; the last line of standard output is the trace."""
    found = Trace()
    threading.settrace(found)
    sys.settrace(found)
    try:
        with LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", host="127.0.0.1",
            dashboard_address=None, silence_logs=50,
        ) as cluster, Client(cluster):  # fmt: skip
            result = CliRunner().invoke(app, ["run", config, "--scheduler", cluster.scheduler_address])
    finally:
        threading.settrace(None)
        sys.settrace(None)
    assert result.exit_code == 0, result.output
    opened = {f"{function} {side}": count for (function, side), count in found.opened.items()}
    told = {"blocks": found.blocks, "around": found.around, "opened": opened, "main": sorted(found.main)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
