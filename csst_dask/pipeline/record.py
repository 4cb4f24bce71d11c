"""Records what became of chips: images first, so that what is predicted is done; many at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from csst_dask.pipeline.block import Block, BlockResult
from csst_dask.pipeline.plan import PREDICTION_FAILED
from csst_dask.pipeline.routes import settle
from csst_dask.pipeline.skymap import MapSums
from csst_dask.pipeline.summary import Summary
from csst_dask.schema import ChipResult
from csst_dask.store import SurveyStore

FLUSH_SECONDS = 5.0
FLUSH_RESULTS = 256

Progress = Callable[[str, str, str], None]
"""Called with a chip's name, its status and its reason."""

Retry = Callable[[Callable[[], None]], None]
"""Calls a function that writes to the store, and again while its storage fails."""


class Recorder:
    """Takes the results of blocks and writes them to the store.

    Parameters
    ----------
    store : SurveyStore
        Opened to write.
    read, predict, sky : Summary
        Count what became of chips that were read, predicted and projected.
    progress : callable, optional
    sums : MapSums, optional
        Receives the sums of chips on the sky.
    retry : callable
        How the store is written.
    attempts : int
        Runs in which a chip may fail before it is given up.
    """

    def __init__(
        self,
        store: SurveyStore,
        read: Summary,
        predict: Summary,
        sky: Summary,
        progress: Progress | None = None,
        sums: MapSums | None = None,
        retry: Retry = lambda write: write(),
        attempts: int = 3,
    ):
        self.store, self.sums, self.progress, self.retry = store, sums, progress, retry
        self.read, self.predict, self.sky, self.attempts = read, predict, sky, attempts
        self._chips: dict[int, ChipResult] = {}
        self._predictions: dict[int, dict[str, Any]] = {}
        self._unpredicted: dict[int, str] = {}
        self._devices = set(store.attrs.get("devices", []))
        self._last_flush = time.monotonic()

    def take(self, block: Block, result: BlockResult) -> None:
        """Note what became of chips of a block."""
        for row, chip in result.chips.items():
            self._take_chip(row, chip)
        self._devices.add(result.device.partition(":")[0])
        for row, found in result.predictions.items():
            self.predict.done += 1
            self._predictions[row] = found
            if row in block.known:
                self._say(row, "done", "")
        for row, sums in result.sums.items():
            reason = sums if isinstance(sums, str) else ""
            self.sky.done += not reason
            self.sky.rejected += bool(reason)
            self.sky.reasons.update([reason] if reason else [])
            self._add(row, None if isinstance(sums, str) else sums)
            if row in block.predicted or reason:
                self._say(row, "rejected" if reason else "done", reason)
        self._flush_when_due()

    def fail(self, block: Block, reason: str) -> None:
        """Note that the chips of a block failed, though they were tried again: the machine's fault."""
        for row in block.read:
            self._take_chip(row, ChipResult("failed", reason))
        for row in block.known:
            self._count_failure(self.predict, reason, self.store.ledger["predict_attempts"][row])
            self._unpredicted[row] = reason
            self._lose(row)
            self._say(row, "failed", reason)
        for row in block.predicted:
            self._count_failure(self.sky, reason)
            self._lose(row)
            self._say(row, "failed", reason)
        self._flush_when_due()

    def leave_out(self, block: Block, reason: str) -> None:
        """Leave chips out of a map whose projection ends its process every time."""
        for row in block.predicted:
            self.sky.rejected += 1
            self.sky.reasons[reason] += 1
            self._add(row, None)
            self._say(row, "rejected", reason)

    def flush(self) -> None:
        """Write what has been noted."""
        self.retry(self._write)
        self._last_flush = time.monotonic()

    def finish(self) -> None:
        """Write what is left, mark superseded versions, route chips without a prediction, and settle exposures."""
        self.flush()
        self.retry(lambda: settle(self.store))

    def _take_chip(self, row: int, chip: ChipResult) -> None:
        if chip.status == "done":
            self.read.done += 1
        elif chip.status == "rejected":
            self.read.rejected += 1
            self.read.reasons[chip.reason] += 1
        else:
            self._count_failure(self.read, chip.reason, self.store.ledger["attempts"][row])
        if chip.status != "done":
            self._add(row, None)
        self._chips[row] = chip
        self._say(row, chip.status, chip.reason)

    def _count_failure(self, summary: Summary, reason: str, before: int = 0) -> None:
        """Count a chip that failed now, and in so many runs ``before``."""
        for_good = before + 1 >= self.attempts
        summary.given_up += for_good
        summary.failed += not for_good
        summary.reasons[reason] += 1

    def _add(self, row: int, sums: Any) -> None:
        if self.sums is not None:
            self.sums.take(row, sums)

    def _lose(self, row: int) -> None:
        if self.sums is not None:
            self.sums.lost.add(row)
            self.sums.take(row, None)

    def _say(self, row: int, status: str, reason: str) -> None:
        if self.progress is not None:
            self.progress(self.store.name(row), status, reason)

    def _flush_when_due(self) -> None:
        waiting = len(self._chips) + len(self._predictions) + len(self._unpredicted)
        if waiting >= FLUSH_RESULTS or (waiting and time.monotonic() - self._last_flush > FLUSH_SECONDS):
            self.flush()

    def _write(self) -> None:
        """May be called again after it has failed half-way."""
        if self._chips:
            self.store.set_attrs({"devices": sorted(self._devices)})
            rows = sorted(self._chips)
            self.store.record(rows, [self._chips[row] for row in rows])
            self._chips = {}
        if self._predictions:
            rows = sorted(self._predictions)
            names = self._predictions[rows[0]]
            values = {name: np.stack([self._predictions[row][name] for row in rows]) for name in names}
            self._forget_failures(rows)
            self.store.predictions.write(rows, values)
            self._predictions = {}
        if self._unpredicted:
            rows = sorted(self._unpredicted)
            before = self.store.column("reason", rows).tolist()
            reasons = [
                _joined(_without_failure(text), PREDICTION_FAILED + self._unpredicted[row])
                for row, text in zip(rows, before, strict=True)
            ]
            # first what makes the next success look at the reason, and clear it
            self.store.set_attempts("predict_attempts", rows, self.store.ledger["predict_attempts"][rows] + 1)
            self.store.set_reasons(rows, reasons)
            self._unpredicted = {}

    def _forget_failures(self, rows: list[int]) -> None:
        failed = [row for row in rows if self.store.ledger["predict_attempts"][row]]
        if failed:
            self.store.set_reasons(failed, [_without_failure(t) for t in self.store.column("reason", failed).tolist()])
            self.store.set_attempts("predict_attempts", failed, [0] * len(failed))


def _without_failure(reason: str) -> str:
    return reason.partition(PREDICTION_FAILED)[0].removesuffix("; ")


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))
