"""The parent of each worker process of a local cluster, which gives it our settings and keeps it to this machine."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from distributed import Nanny
from distributed.core import Status

from csst_dask.runners.settings import ENVIRONMENT, HOST, SETTINGS


class LocalNanny(Nanny):
    """A nanny whose workers have our settings whenever it starts them, while the process around it keeps its own.

    Clusters start nannies as they grow, and nannies start workers again, long after the cluster itself was started.
    """

    def __init__(self, *args: Any, **options: Any):
        # a worker without a dashboard serves its health and metrics all the same, on all interfaces by default
        options |= {"dashboard": False, "dashboard_address": f"{HOST}:0"}
        options["config"] = {**(options.get("config") or {}), **SETTINGS}
        super().__init__(*args, **options)
        needed = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
        self.pre_spawn_env, self.env = self.pre_spawn_env | needed, self.env | needed

    async def instantiate(self) -> Status:
        """Start the worker process, which never hears of Ctrl-C: that is for the client, which ends workers."""
        if threading.current_thread() is not threading.main_thread():
            resource_tracker.ensure_running()  # its start would let the signal through again
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # processes inherit it from this thread
        with _borrowed(self.pre_spawn_env):
            return await super().instantiate()


_lock = threading.Lock()
_borrowers: Counter[str] = Counter()
_before: dict[str, str | None] = {}


@contextmanager
def _borrowed(variables: Mapping[str, str]) -> Iterator[None]:
    """Put environment variables, which a nanny sets for the process that it starts, back once no nanny needs them."""
    with _lock:
        for name in variables:
            if not _borrowers[name]:
                _before[name] = os.environ.get(name)
            _borrowers[name] += 1
    try:
        yield
    finally:
        with _lock:
            for name, value in variables.items():
                _borrowers[name] -= 1
                if _borrowers[name] or os.environ.get(name) != value:
                    continue
                if (before := _before[name]) is None:
                    del os.environ[name]
                else:
                    os.environ[name] = before
