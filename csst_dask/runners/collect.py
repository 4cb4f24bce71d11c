"""Results of tasks over chips, in the order of the chips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from csst_dask.config import ExecutionConfig
from csst_dask.pipeline.kept import KeptResults
from csst_dask.runners.faults import Failure, TaskFailed
from csst_dask.runners.window import Task, run_tasks

Stages = Callable[[str], tuple[Callable[[str, str, str], None], Callable[[int], None]]]
"""Starts a stage: what to call after each task, and with the number of tasks."""


def collect(
    client: Client,
    stage: str,
    function: Callable[..., dict[str, NDArray]],
    tasks: Sequence[Task],
    rows: NDArray[np.int64],
    stages: Stages | None,
    execution: ExecutionConfig | None = None,
    kept: KeptResults | None = None,
) -> dict[str, NDArray]:
    """Results of all tasks in the order of the rows. One that fails ends it: a judgement leaves no chip out.

    What is ``kept`` from before is not done again, and what is done is added to it.
    """
    parts: list[tuple[NDArray[np.int64], dict[str, Any]]] = []
    todo = []
    for task in tasks:
        found = kept.get(task.name) if kept else None
        if found is None:
            todo.append(task)
        else:
            parts.append((task.key, found))
    progress, expect = stages(stage) if stages else (None, None)
    if expect:
        expect(len(todo))
    for task, result in run_tasks(client, stage, function, todo, execution):
        if isinstance(result, Failure):
            raise TaskFailed(f"{stage} of {task.name} failed: {result.reason}")
        parts.append((task.key, result))
        if kept:
            kept.add(task.name, result)
        if progress:
            progress(task.name, "done", "")
    keys = np.concatenate([key for key, _ in parts])
    order = np.argsort(keys, kind="stable")
    if not np.array_equal(keys[order], rows):
        raise RuntimeError(f"{stage} gave {len(keys)} chips where {len(rows)} were asked for")
    return {name: np.concatenate([part[name] for _, part in parts])[order] for name in parts[0][1]}
