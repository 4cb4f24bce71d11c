"""Ingest and prediction in one task for each block of chips, so that nothing waits for the whole survey."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from csst_dask.config import Config
from csst_dask.runners.chips import ingest_chips
from csst_dask.runners.faults import Failure
from csst_dask.runners.guard import limited
from csst_dask.runners.ingest import Stock, take_stock
from csst_dask.runners.ledger import Summary, supersede
from csst_dask.runners.networks import Pair, choose_pair
from csst_dask.runners.patience import finishing, patiently
from csst_dask.runners.predict import SCALARS, predict_block
from csst_dask.runners.predictions import PredictionLog, prepare_predictions, refresh
from csst_dask.runners.window import Partial, Task, run_tasks
from csst_dask.schema import ChipFiles, ChipResult
from csst_dask.store.survey import locate, open_scalars


@dataclass(frozen=True)
class BlockResult:
    """What a task tells of the chips of its block."""

    chips: dict[int, ChipResult]
    """Outcome of each chip that was read, by its place in the block."""
    predicted: list[int]
    """Places of the chips that were predicted."""
    predictions: dict[str, NDArray]
    """`store.predictions.PREDICTED` of those."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a store, aligned to their number, and what is to be done with them."""

    rows: list[int]
    files: dict[int, ChipFiles]
    """Chips to read, by their place in the block."""
    known: dict[int, dict]
    """`SCALARS` of chips that only have to be predicted, by place."""

    @property
    def places(self) -> list[int]:
        """Places with something to do."""
        return sorted({*self.files, *self.known})

    def part(self, place: int) -> Block:
        """The block with one chip alone to do."""
        return Block(self.rows, _only(self.files, place), _only(self.known, place))


def _only(items: Mapping[int, object], place: int) -> dict:
    return {place: items[place]} if place in items else {}


def process_block(block: Block, path: str, config: Config, pair: Pair) -> BlockResult | Partial:
    """Read, mask, reduce, store and predict the chips of a block.

    Parameters
    ----------
    block : Block
    path : str
        Survey store.
    config : Config
    pair : Pair

    Returns
    -------
    BlockResult or Partial
        Partial where reading some chips raised something: the others are done all the same.
    """
    results: dict[int, ChipResult] = {}
    errors: dict[int, Exception] = {}
    maps: dict[int, NDArray[np.float32]] = {}
    arriving = ingest_chips([(files, block.rows[place]) for place, files in block.files.items()], path, config)
    for place in block.files:
        with limited(config.execution.time_limit):
            result, reduced = next(arriving)
        if isinstance(result, Exception):
            errors[block.places.index(place)] = result
            continue
        results[place] = result
        if reduced is not None:
            maps[place] = reduced
    known = block.known | {
        place: {name: getattr(result.info, name) for name in SCALARS}
        for place, result in results.items()
        if result.info is not None
    }
    places = sorted(known)
    predictions: dict[str, NDArray] = {}
    if places:
        scalars = {name: [known[place][name] for place in places] for name in SCALARS}
        predictions = predict_block(path, block.rows, places, scalars, pair, maps)
    found = BlockResult(results, places, predictions)
    return Partial(found if results or places else None, errors) if errors else found


def process_survey(
    client: Client,
    inputs: Sequence[str | Path],
    path: str,
    config: Config,
    progress: Callable[[str, str, str], None] | None = None,
    expect: Callable[[int], None] | None = None,
) -> tuple[Summary, Summary]:
    """Bring files into a store and predict them; what is done already is left alone.

    The store ends up the same as after `ingest_survey` and `predict_survey`.

    Parameters
    ----------
    client : distributed.Client
    inputs : sequence of path
    path : str
        Store; created where there is none.
    config : Config
    progress, expect : callable, optional
        Called once per chip, and with the number of chips.

    Returns
    -------
    ingested, predicted : Summary

    Raises
    ------
    ConfigError
        As `ingest_survey` and `predict_survey`.
    """
    start, path = time.monotonic(), locate(path)
    stock = take_stock(inputs, path, config)
    pair = choose_pair(client, config, path)
    supersede(path)
    scalars = open_scalars(path)
    status = scalars["status"].values
    have = prepare_predictions(path, status.size, pair, config)
    summary, predicted = stock.summary, Summary(skipped=int(((status == "done") & have).sum()))
    predicted.effort = summary.effort
    unpredicted = np.flatnonzero((status == "done") & ~have)
    columns = {name: scalars[name].values for name in SCALARS}
    known = {int(row): {name: column[row] for name, column in columns.items()} for row in unpredicted}
    blocks = list(_blocks(stock, known, pair.batch))
    if expect is not None:
        expect(sum(len(block.places) for block in blocks))
    tasks = _tasks(blocks, path, config, pair)
    record = _Recorder(stock, PredictionLog(path, config, predicted), progress)
    with finishing(record.flush, partial(patiently, config.execution.patience, _bring_up_to_date, path, config)):
        for task, result in run_tasks(client, "run", process_block, tasks, config.execution, summary.effort):
            record.take(task.key, result)
    summary.seconds = predicted.seconds = time.monotonic() - start
    return summary, predicted


def _bring_up_to_date(path: str, config: Config) -> None:
    supersede(path)
    refresh(path, config)


def _blocks(stock: Stock, known: dict[int, dict], size: int) -> Iterator[Block]:
    rows = {row: stock.files[key] for key, row in stock.todo}
    for number in sorted({row // size for row in (*rows, *known)}):
        block = list(range(number * size, (number + 1) * size))
        yield Block(
            block,
            {place: rows[row] for place, row in enumerate(block) if row in rows},
            {place: known[row] for place, row in enumerate(block) if row in known},
        )


def _tasks(blocks: list[Block], path: str, config: Config, pair: Pair) -> Iterator[Task]:
    lean = config.model_copy(update={"inputs": ()})

    def task(block: Block) -> Task:
        places = block.places
        first, last = block.rows[places[0]], block.rows[places[-1]]
        name = f"chip-{first}" if len(places) == 1 else f"chips-{first}-{last}"
        return Task(
            name, (block, path, lean, pair), block, len(places), lambda: [task(block.part(place)) for place in places]
        )

    for block in blocks:
        yield task(block)


class _Recorder:
    """Writes what became of the chips of blocks: images first, so that what is predicted is done."""

    def __init__(self, stock: Stock, log: PredictionLog, progress: Callable[[str, str, str], None] | None):
        self.stock, self.log, self.progress = stock, log, progress
        self.keys = {row: key for key, row in stock.todo}

    def take(self, block: Block, result: BlockResult | Failure) -> None:
        ledger, rows = self.stock.ledger, np.asarray(block.rows)
        if isinstance(result, Failure):
            for place in block.files:
                ledger.take(self.keys[block.rows[place]], result, self.stock.summary, self.progress)
            self._predicted(rows[list(block.known)], result, rows[list(block.known)])
        else:
            for place, found in result.chips.items():
                ledger.take(self.keys[block.rows[place]], found, self.stock.summary, self.progress)
            only = rows[[place for place in result.predicted if place in block.known]]
            self._predicted(rows[result.predicted], result.predictions, only)
        if self.log.due:
            self.flush()

    def _predicted(self, rows: NDArray[np.int64], result: Any, told: NDArray[np.int64]) -> None:
        if rows.size:
            status, reason = self.log.record(rows, result)
            for row in told if self.progress is not None else ():
                self.progress(f"chip {row}", status, reason)  # type: ignore[misc]

    def flush(self) -> None:
        self.stock.ledger.flush()
        self.log.flush()
