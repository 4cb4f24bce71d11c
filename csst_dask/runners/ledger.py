"""The client's side of a store: which chips have rows, what became of them, and what is still to do."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from csst_dask.config import Config
from csst_dask.runners.faults import Failure
from csst_dask.runners.patience import finishing, patiently
from csst_dask.runners.window import Effort
from csst_dask.schema import ChipFiles, ChipKey, ChipResult
from csst_dask.store import rows as store
from csst_dask.store.survey import check_same_format, create_survey, exists, open_scalars

FLUSH_SECONDS = 5.0
FLUSH_RESULTS = 256


@dataclass
class Summary:
    """What a runner did."""

    done: int = 0
    rejected: int = 0
    failed: int = 0
    """Left pending: a task failed in an unforeseen way; the next run tries again."""
    skipped: int = 0
    """Finished by an earlier run."""
    files: int = 0
    """Inputs that gave no chip."""
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    effort: Effort = field(default_factory=Effort)

    @property
    def exit_status(self) -> int:
        """0 all done, 3 some inputs rejected, 1 something unexpected."""
        return 1 if self.failed else 3 if self.rejected or self.files else 0


class Ledger:
    """Rows and status of the chips of one store.

    Parameters
    ----------
    path : str
        Store; created where there is none.
    config : Config
    keep_mask : bool
        Whether a new store has a mask.
    """

    def __init__(self, path: str, config: Config, *, keep_mask: bool = True):
        self.path, self.patience = path, config.execution.patience
        if exists(path):
            check_same_format(path, config.ingest, config.mask)
            store.mend(path)
        else:
            create_survey(path, config.ingest, config.mask, keep_mask=keep_mask)
        self.rows = store.chip_rows(path)
        self._results: list[ChipResult] = []
        self._last_flush = time.monotonic()

    def to_do(self, chips: Sequence[tuple[ChipKey, str, str]], summary: Summary) -> list[tuple[ChipKey, int]]:
        """Give new chips rows and say which ones still need work.

        A rejected chip is tried again when its files have changed; otherwise it counts as rejected again.

        Parameters
        ----------
        chips : sequence of (ChipKey, source, source_id)
            What the survey should hold, and what identifies the bytes it comes from.
        summary : Summary
            Receives the chips that need nothing.

        Returns
        -------
        list of (ChipKey, row)
            Chips to work on, in the order given.
        """
        new = [chip for chip in chips if chip[0] not in self.rows]
        if new:
            rows = store.allocate(self.path, [key for key, _, _ in new])
            self.rows.update(zip((key for key, _, _ in new), rows, strict=True))
        scalars = open_scalars(self.path)
        status, known, reason = (scalars[name].values for name in ("status", "source_id", "reason"))
        todo, changed = [], []
        for key, source, source_id in chips:
            row = self.rows[key]
            if status[row] == "rejected" and known[row] == source_id:
                summary.rejected += 1
                summary.reasons[str(reason[row])] += 1
            elif status[row] in ("pending", "rejected"):
                todo.append((key, row))
                changed.append((row, source, source_id))
            else:
                summary.skipped += 1
        self._take_up(changed)
        return todo

    def _take_up(self, chips: list[tuple[int, str, str]]) -> None:
        """Make chips pending, then note what they come from: in this order a kill on the way loses nothing."""
        group, rows = zarr.open_group(self.path, mode="r+"), [row for row, _, _ in chips]
        for name, values in (
            ("status", ["pending"] * len(chips)),
            ("reason", [""] * len(chips)),
            ("source", [source for _, source, _ in chips]),
            ("source_id", [source_id for _, _, source_id in chips]),
        ):
            store.write_columns(group, rows, {name: np.array(values, dtype=object)})

    def record(self, result: ChipResult) -> None:
        """Note a result; written in blocks."""
        self._results.append(result)
        if len(self._results) >= FLUSH_RESULTS or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has been noted."""
        results, self._results = self._results, []
        patiently(self.patience, store.write_results, self.path, [self.rows[result.key] for result in results], results)
        self._last_flush = time.monotonic()

    def consume(self, outcomes: Iterable[tuple[Any, Any]], summary: Summary, progress: Any = None) -> None:
        """Record the outcomes of tasks whose key is a chip's, and count them."""
        with finishing(self.flush):
            for task, result in outcomes:
                self.take(task.key, result, summary, progress)

    def take(self, key: ChipKey, result: ChipResult | Failure, summary: Summary, progress: Any = None) -> None:
        """Record what became of one chip, and count it."""
        if isinstance(result, Failure) and not result.poison:
            summary.failed += 1
            summary.reasons[result.reason] += 1
            result = ChipResult(key, "pending", f"failed, will be tried again: {result.reason}")
        elif isinstance(result, Failure):
            result = ChipResult(key, "rejected", result.reason)
        if result.status == "done":
            summary.done += 1
        elif result.status == "rejected":
            summary.rejected += 1
            summary.reasons[result.reason] += 1
        self.record(result)
        if progress is not None:
            progress(str(key), result.status, result.reason)


def supersede(path: str) -> int:
    """Mark older versions of an exposure and detector whose newer one is done.

    Parameters
    ----------
    path : str
        Survey store.

    Returns
    -------
    int
        Chips newly marked.
    """
    status = open_scalars(path)["status"].values
    done = {key: row for key, row in store.chip_rows(path).items() if status[row] == "done"}
    newest: dict[tuple[str, int], int] = {}
    for key in done:
        pair = (key.obs_id, key.detector)
        newest[pair] = max(newest.get(pair, -1), key.version)
    old = [(row, newest[key.obs_id, key.detector]) for key, row in done.items()
           if key.version < newest[key.obs_id, key.detector]]  # fmt: skip
    group, rows = zarr.open_group(path, mode="r+"), [row for row, _ in old]
    why = np.array([f"superseded by version {version}" for _, version in old], dtype=object)
    store.write_columns(group, rows, {"reason": why})
    store.write_columns(group, rows, {"status": np.array(["superseded"] * len(old), dtype=object)})
    return len(old)


def reject(path: str, rows: Sequence[int] | NDArray[np.int64], reason: str) -> None:
    """Reject chips that a later stage cannot do; whoever ingests their files again after a change tries again."""
    group = zarr.open_group(path, mode="r+")
    store.write_columns(group, rows, {"reason": np.array([reason] * len(rows), dtype=object)})
    store.write_columns(group, rows, {"status": np.array(["rejected"] * len(rows), dtype=object)})


def identity(files: ChipFiles) -> str:
    """Size and modification time of a chip's files, as one text."""
    parts = []
    for path in files.paths():
        try:
            found = os.stat(path)
            parts.append(f"{found.st_size}:{found.st_mtime_ns}")
        except OSError:
            parts.append("gone")
    return " ".join(parts)
