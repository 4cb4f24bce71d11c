"""A cluster of one: tasks run one after the other in this process, so that what a run does has one order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from csst_dask.runners.faults import Failure
from csst_dask.store import arrays

CLIENT: Any = None
"""Stands for the client, which nothing asks for anything."""


def run_tasks(client, stage, function, tasks, limits=None, stats=None) -> Iterator[tuple[Any, Any]]:
    """As `csst_dask.runners.window.run_tasks`: parts whose errors a result names are tried again, then given up."""
    for task in tasks:
        try:
            value = function(*task.args)
        except Exception as error:
            yield task, Failure(repr(error))
            continue
        yield task, value
        for name in getattr(value, "errors", {}):
            yield from _again(function, task.part(name, value))


def _again(function, task) -> Iterator[tuple[Any, Any]]:
    value = function(*task.args)
    errors = getattr(value, "errors", {})
    yield task, Failure(repr(next(iter(errors.values())))) if errors else value


def run_serially(patch: pytest.MonkeyPatch) -> None:
    """Run the stages without a cluster, and with one request to the storage at a time."""
    from csst_dask.runners import blocks, networks, verify
    from csst_dask.runners import map as mapping

    for module in (blocks, networks, verify, mapping):
        patch.setattr(module, "run_tasks", run_tasks)
    patch.setattr(blocks, "known_workers", lambda client: {"one": {"nthreads": 1}})
    patch.setattr(arrays, "REQUESTS", 1)
