"""Blocks of chips as tasks of a cluster: what workers do with them is `csst_dask.pipeline.block`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from distributed import Client

from csst_dask.config import ExecutionConfig
from csst_dask.pipeline.block import Block, BlockResult, Work, process_block
from csst_dask.pipeline.record import Recorder
from csst_dask.pipeline.summary import TaskStats
from csst_dask.runners.cluster import known_workers
from csst_dask.runners.faults import Failure, finishing, retry_storage
from csst_dask.runners.guard import limited
from csst_dask.runners.window import Task, run_tasks

LARGE = 64
"""Chips of a block that is only projected on the sky."""
SHARE = 4
"""Blocks for each thread, at least, that few chips are divided into."""

Expect = Callable[[int], None]
"""Called with the number of chips to work on."""


def run_blocks(
    client: Client, stage: str, blocks: Iterable[Block], work: Work, recorder: Recorder, stats: TaskStats
) -> None:
    """Work on blocks and record what became of their chips.

    Parameters
    ----------
    client : distributed.Client
    stage : str
        Prefix of the tasks' names on the dashboard.
    blocks : iterable of Block
    work : Work
    recorder : Recorder
        Is finished at the end, however that comes.
    stats : TaskStats
        Receives what the tasks took.
    """
    tasks = (block_task(block, work) for block in blocks)
    with finishing(recorder.finish):
        for task, result in run_tasks(client, stage, process_block, tasks, work.config.execution, stats):
            if isinstance(result, Failure):
                recorder.fail(task.key, result.reason)
            else:
                recorder.take(task.key, result)


def block_task(block: Block, work: Work) -> Task:
    """`process_block` of a block, as a task in which each chip is read within its time."""
    rows = block.rows
    name = f"chip-{rows[0]}" if len(rows) == 1 else f"chips-{rows[0]}-{rows[-1]}"

    def part(row: int, before: BlockResult | None) -> Task:
        return block_task(block.part(row, before), work)

    limit = partial(limited, work.config.execution.time_limit)
    return Task(name, (block, work, limit), block, len(rows), rows, part)


def divide(
    size: int,
    read: Mapping[int, Any] | None = None,
    known: Mapping[int, dict] | None = None,
    predicted: Mapping[int, dict] | None = None,
) -> Iterator[Block]:
    """Divide chips into blocks of neighbouring rows, in the order in which the rows are given.

    Parameters
    ----------
    size : int
        Chips of a block.
    read, known, predicted : mapping, optional
        As in `Block`.

    Yields
    ------
    Block
    """
    parts = (read or {}, known or {}, predicted or {})
    rows = list(dict.fromkeys(row for part in parts for row in part))
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        yield Block(*({row: part[row] for row in some if row in part} for part in parts))


def block_size(client: Client, config: ExecutionConfig, chips: int) -> int:
    """Chips of a block: those of the configuration, or fewer where there are too few chips for all threads."""
    threads = sum(worker["nthreads"] for worker in known_workers(client).values())
    return max(1, min(config.block, chips // (SHARE * max(threads, 1))))


def recording(config: ExecutionConfig) -> dict[str, Any]:
    """Options of a `Recorder`: it writes again while storage fails, and gives chips up that failed too often."""
    return {"retry": partial(retry_storage, config.storage_timeout), "attempts": config.attempts}


def announce(expect: Expect | None, *parts: Sequence[Any] | Mapping[Any, Any]) -> None:
    """Say how many chips there are to work on."""
    if expect is not None:
        expect(len({row for part in parts for row in part}))
