"""Dask's settings for clusters of our own, and the environment of their processes.

``python -m csst_dask.runners.settings`` prints both as shell commands, for the batch scripts.
"""

from __future__ import annotations

import shlex

import dask

HOST = "127.0.0.1"
"""Address on which the processes of a local cluster listen."""

# glibc gives memory back so eagerly by default that big buffers cost a page fault a page on every task
ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "OMP_NUM_THREADS": "1",
}
"""Environment variables that a worker must have before it starts."""

_ENVIRON = "distributed.nanny.pre-spawn-environ."

SETTINGS = {
    **{_ENVIRON + name: value for name, value in ENVIRONMENT.items()},
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    # a paused worker would wait for memory that nobody frees; the nanny ends one that needs too much
    "distributed.worker.memory.pause": False,
    # what a lost worker means for its tasks is decided by the client, which knows more
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.worker-ttl": "120s",
    # workers that wait in a queue are no failure; the client has a patience of its own
    "distributed.scheduler.no-workers-timeout": None,
}
"""Dask's settings of schedulers and workers, which read them when they start."""


def applied() -> dask.config.set:
    """A context in which Dask's configuration has these settings; before and after it is the user's."""
    return dask.config.set(SETTINGS)


def exports() -> list[str]:
    """Shell commands that give a scheduler or worker process the environment and the settings.

    Returns
    -------
    list of str
    """
    found = dict(ENVIRONMENT)
    for name, value in SETTINGS.items():
        if not name.startswith(_ENVIRON):
            found["DASK_" + name.replace(".", "__").replace("-", "_").upper()] = str(value)
    return [f"export {name}={shlex.quote(value)}" for name, value in found.items()]


if __name__ == "__main__":
    print("\n".join(exports()))
