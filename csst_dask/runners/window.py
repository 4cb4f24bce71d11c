"""Run many tasks with few in flight, so that neither the scheduler nor the client grows with the survey."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from distributed import Client, as_completed

IN_FLIGHT = 3
"""Tasks per worker thread that are submitted and not done."""
RETRIES = 2
"""A task that raises is tried this many times more."""


@dataclass(frozen=True)
class Task:
    """One call of a stage's function."""

    name: str
    """What it works on, such as a chip; shown on the dashboard behind the stage."""
    args: tuple[Any, ...]
    key: Any = None
    """The chip's key, where the task is about one chip."""


@dataclass(frozen=True)
class Failure:
    """A task that failed in a way nobody foresaw, or whose workers died."""

    reason: str


def run_tasks(
    client: Client, stage: str, function: Callable[..., Any], tasks: Iterable[Task]
) -> Iterator[tuple[Task, Any]]:
    """Submit tasks in a sliding window and yield results as they come.

    Parameters
    ----------
    client : distributed.Client
    stage : str
        Prefix of the task names, which groups them on the dashboard.
    function : callable
        Called with each task's arguments; foreseen failures are part of what it returns.
    tasks : iterable of Task
        Read as the window moves on.

    Yields
    ------
    task : Task
    result
        What the function returned, or a `Failure`.
    """
    run = uuid.uuid4().hex[:8]
    source = iter(tasks)
    pending: dict[Any, Task] = {}

    def submit(task: Task) -> Any:
        future = client.submit(function, *task.args, key=f"{stage}-{task.name}-{run}", retries=RETRIES, pure=False)
        pending[future.key] = task
        return future

    done = as_completed([submit(task) for task in islice(source, _window(client))], raise_errors=False)
    try:
        for future in done:
            task = pending.pop(future.key)
            result = _result(future)
            future.release()
            for following in islice(source, max(1, _window(client) - len(pending))):
                done.add(submit(following))
            yield task, result
    finally:
        done.clear()
        pending.clear()


def _result(future: Any) -> Any:
    if future.status != "finished":
        return Failure(_why(future))
    try:
        return future.result()
    except Exception as error:  # the worker that held the result has died, and so did the next try
        return Failure(f"{type(error).__name__}: {error}")


def _window(client: Client) -> int:
    threads = sum(client.nthreads().values())
    return max(IN_FLIGHT * threads, 4)


def _why(future: Any) -> str:
    if future.status == "cancelled":
        return "cancelled by the scheduler"
    error = future.exception()
    return f"{type(error).__name__}: {error}"
