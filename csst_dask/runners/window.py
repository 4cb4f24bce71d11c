"""Run many tasks with few in flight, so that neither the scheduler nor the client grows with the survey.

What a task returns comes back in the order in which tasks end. A task that fails is tried again: at once when its
worker died, later when storage failed, and in a process of its own when it may be what kills workers.
"""

from __future__ import annotations

import asyncio
import heapq
import queue
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Client, Future, KilledWorker, get_worker

from csst_dask.config import ExecutionConfig
from csst_dask.errors import ConfigError, describe_error
from csst_dask.pipeline.isolated import Died, run_alone
from csst_dask.pipeline.stopping import Stopped, stop_requested
from csst_dask.pipeline.summary import TaskStats
from csst_dask.runners.cluster import most_workers
from csst_dask.runners.faults import Failure, Fault, TooManyFailures, classify
from csst_dask.runners.guard import Outcome, guarded
from csst_dask.runners.watch import ClusterWatch

LEAST = 4
"""Tasks in flight where there are hardly any workers."""
TICK = 0.5
"""Seconds between looks at what is due while nothing arrives."""
MOST_LOSSES = 20
"""A task that has lost so many workers, most of them though it ran in a process of its own, is given up."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a task is tried again; twice as long each time."""


@dataclass(frozen=True)
class Task:
    """One call of a stage's function."""

    name: str
    """What it works on, such as a chip; shown on the dashboard behind the stage."""
    args: tuple[Any, ...]
    key: Any = None
    """The chip's key, where the task is about one chip."""
    chips: int = 1
    """How many chips it works on; its time limit grows with them."""
    parts: Sequence[Any] = ()
    """Names of what it is made of, such as rows of chips."""
    part: Callable[[Any, Any], Task] | None = None
    """Makes the task of one of them, given its name and what the whole task has returned, or None: to find out which
    of them ends its process, and to try again those whose errors the result names."""


@dataclass
class _Job:
    """A task on its way, and what has happened to it."""

    task: Task
    number: int
    alone: bool = False
    tries: int = 0
    errors: int = 0
    """Times that it raised something unforeseen."""
    outages: int = 0
    """Times that storage or network failed, one after the other."""
    forgotten: int = 0
    """Times that the scheduler did not know it any more."""
    losses: int = 0
    """Workers that died."""
    suspicion: int = 0
    """Those that died while it ran in their own process, one after the other."""
    deaths: int = 0
    """Processes of its own that died."""
    failing_since: float | None = None
    """When the first of these outages was met."""

    def __lt__(self, other: _Job) -> bool:
        return self.number < other.number


def run_tasks(
    client: Client,
    stage: str,
    function: Callable[..., Any],
    tasks: Iterable[Task],
    limits: ExecutionConfig | None = None,
    stats: TaskStats | None = None,
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
    limits : ExecutionConfig, optional
        Without them no task is limited in time.
    stats : TaskStats, optional
        Receives what the tasks took.

    Yields
    ------
    task : Task
        One that was given, or a part of one.
    result
        What the function returned, or a `Failure`.

    Raises
    ------
    ClusterLost
        If the scheduler is gone, or no worker has been there for too long.
    TooManyFailures
        If task after task fails.
    Stopped
        If the run was asked to stop; the tasks that ended in time have been yielded.
    """
    window = _Window(client, stage, function, limits or ExecutionConfig(time_limit=None), stats or TaskStats())
    try:
        yield from window.results(iter(tasks))
    finally:
        window.close()


@dataclass
class _Window:
    client: Client
    stage: str
    function: Callable[..., Any]
    limits: ExecutionConfig
    stats: TaskStats
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    pending: dict[str, tuple[Future, _Job]] = field(default_factory=dict)
    """Submitted, by key."""
    later: list[tuple[float, _Job]] = field(default_factory=list)
    """To be tried again, a heap by time."""
    arrived: queue.SimpleQueue[tuple[str, Any, BaseException | None]] = field(default_factory=queue.SimpleQueue)
    waits: dict[str, asyncio.Task] = field(default_factory=dict)
    """Coroutines that fetch results, by key."""
    lost: set[str] = field(default_factory=set)
    """Workers that died; each may have held several tasks, those that it had not begun too."""
    made: int = 0
    failed_in_row: int = 0
    exhausted: bool = False

    def __post_init__(self) -> None:
        self.watch = ClusterWatch(self.client, self.limits.storage_timeout)

    def results(self, source: Iterator[Task]) -> Iterator[tuple[Task, Any]]:
        stop_at: float | None = None
        while True:
            if reason := stop_requested():
                stop_at = stop_at or time.monotonic() + self.limits.grace
                if not self.pending or time.monotonic() > stop_at:
                    raise Stopped(f"stopped on {reason}")
            else:
                self._fill(source)
                if not self.pending and not self.later:
                    return
            self.watch.look()
            try:
                key, outcome, error = self.arrived.get(timeout=TICK)
            except queue.Empty:
                continue
            if key not in self.pending:
                continue
            future, job = self.pending.pop(key)
            future.release()
            for task, result in self._fault(job, error) if error is not None else self._judge(job, outcome):
                yield task, result
                self._count(task, result)

    def close(self) -> None:
        """Let go of what is in flight."""
        for wait in list(self.waits.values()):
            self._on_loop(wait.cancel)
        for future, _ in self.pending.values():
            future.release()
        self.pending.clear()
        self.later.clear()

    def _fill(self, source: Iterator[Task]) -> None:
        """Submit what is due again, then new tasks, until the window is full."""
        # a cluster grows only if it is shown work for more workers than it has; those of our own have one thread each
        size = max(self.limits.in_flight * max(self.watch.threads, most_workers(self.client)), LEAST)
        room = size - len(self.pending)
        while room > 0 and self.later and self.later[0][0] <= time.monotonic():
            self._submit(heapq.heappop(self.later)[1])
            room -= 1
        while room > 0 and not self.exhausted and len(self.later) < 2 * size:
            task = next(source, None)
            if task is None:
                self.exhausted = True
                return
            self._submit(self._job(task))
            room -= 1

    def _submit(self, job: _Job) -> None:
        limit = self.limits.time_limit and self.limits.time_limit * job.task.chips
        key = f"{self.stage}-{job.task.name}-{self.run}" + (f"-{job.tries}" if job.tries else "")
        job.tries += 1
        future = self.client.submit(
            _call_alone if job.alone else guarded, self.function, limit, *job.task.args, key=key, retries=0, pure=False
        )
        self.pending[key] = future, job
        self._on_loop(self._await, key, future)

    def _on_loop(self, function: Callable[..., Any], *args: Any) -> None:
        assert self.client.loop is not None
        self.client.loop.add_callback(function, *args)

    async def _await(self, key: str, future: Future) -> None:
        """Fetch a result on the client's event loop, so that a worker that does not answer holds up nobody."""
        self.waits[key] = asyncio.current_task()  # type: ignore[assignment]
        try:
            outcome = await future.result()  # in the loop: of the future itself, as a gather would leave tasks behind
        except (Exception, asyncio.CancelledError) as error:
            self.arrived.put((key, None, error))
        else:
            self.arrived.put((key, outcome, None))
        finally:
            del self.waits[key]

    def _judge(self, job: _Job, outcome: Outcome) -> list[tuple[Task, Any]]:
        self.stats.peak_memory = max(self.stats.peak_memory, outcome.peak_memory)
        errors = getattr(outcome.value, "errors", None)
        if errors:
            return self._judge_parts(job, outcome.value, errors)
        if not isinstance(outcome.value, Died):
            return [(job.task, outcome.value)]
        if self._split(job, alone=True):
            return []
        job.deaths += 1
        if job.deaths < self.limits.process_deaths:
            self._again(job, 0.0)
            return []
        reason = f"{outcome.value.reason}, {job.deaths} times on its own; nothing else was lost"
        return [(job.task, Failure(reason, poison=True))]

    def _judge_parts(self, job: _Job, value: Any, errors: Mapping[Any, Exception]) -> list[tuple[Task, Any]]:
        """A result that names errors: what was done counts, the rest is tried again."""
        found: list[tuple[Task, Any]] = [(job.task, value)]
        assert job.task.part is not None
        for name, error in errors.items():
            task = job.task.part(name, value)
            if len(job.task.parts) == 1:
                job.task, part = task, job
            else:
                part = self._job(task, job.alone)
            found += self._fault(part, error)
        return found

    def _split(self, job: _Job, alone: bool) -> bool:
        """Try the parts of a task one by one; whether there are several."""
        if len(job.task.parts) < 2 or job.task.part is None:
            return False
        for name in job.task.parts:
            self._again(self._job(job.task.part(name, None), alone), 0.0)
        return True

    def _job(self, task: Task, alone: bool = False) -> _Job:
        self.made += 1
        return _Job(task, self.made, alone)

    def _fault(self, job: _Job, error: BaseException) -> list[tuple[Task, Any]]:
        """Try again, now or later, or give up."""
        if isinstance(error, ConfigError):
            raise error
        fault, now, pause = classify(error), time.monotonic(), 0.0
        if fault is not Fault.OUTAGE:
            job.outages, job.failing_since = 0, None
        if fault is Fault.LOST_WORKER:
            if isinstance(error, KilledWorker) and error.last_worker.server_id not in self.lost:
                self.lost.add(error.last_worker.server_id)
                self.stats.lost_workers += 1
            job.losses += 1
            # one that loses its worker though it runs in a process of its own is not to blame
            job.suspicion = 0 if job.alone else job.suspicion + 1
            job.alone = job.suspicion >= self.limits.worker_losses
            again = job.losses < MOST_LOSSES
        elif fault is Fault.LOST_SCHEDULER:
            again, pause = True, _pause(job.forgotten)
            job.forgotten += 1
        elif fault is Fault.OUTAGE:
            job.failing_since = job.failing_since or now
            again, pause = now - job.failing_since < self.limits.storage_timeout, _pause(job.outages)
            job.outages += 1
        else:
            again, pause = job.errors < self.limits.retries, _pause(job.errors)
            job.errors += 1
        if not again:
            return [] if self._split(job, alone=False) else [(job.task, Failure(describe_error(error)))]
        self._again(job, pause)
        return []

    def _again(self, job: _Job, pause: float) -> None:
        self.stats.repeats += 1
        heapq.heappush(self.later, (time.monotonic() + pause, job))

    def _count(self, task: Task, result: Any) -> None:
        if not isinstance(result, Failure):
            if len(getattr(result, "errors", ())) < max(len(task.parts), 1):  # else no part of it succeeded
                self.failed_in_row = 0
            return
        self.failed_in_row += 1
        if self.failed_in_row >= self.limits.consecutive_failures:
            raise TooManyFailures(
                f"{self.failed_in_row} tasks failed one after the other, the last with: {result.reason}"
            )


def _pause(before: int) -> float:
    """Seconds before a task is tried again that was so often tried again before, for faults of the same kind."""
    return min(FIRST_PAUSE * 2.0**before, LONGEST_PAUSE)


def _call_alone(function: Callable[..., Any], time_limit: float | None, *args: Any) -> Outcome:
    """On a worker: call a function in a process of its own."""
    limit = get_worker().memory_manager.memory_limit
    return guarded(run_alone, None, function, time_limit, limit, *args)
