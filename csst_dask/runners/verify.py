"""Verify the chips of a store on a cluster, and make damaged ones pending."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from distributed import Client

from csst_dask.config import Config
from csst_dask.pipeline.plan import records_of
from csst_dask.pipeline.record import Progress
from csst_dask.pipeline.summary import Summary
from csst_dask.pipeline.verify import STATISTICS, Finding, verify_chips
from csst_dask.runners.blocks import Expect, announce, block_size
from csst_dask.runners.faults import Failure
from csst_dask.runners.window import Task, run_tasks
from csst_dask.schema import DONE, FAILED, SUPERSEDED
from csst_dask.store import SurveyStore
from csst_dask.store.repair import damaged_columns, repair_columns


def verify_survey(
    client: Client,
    store: SurveyStore,
    config: Config,
    progress: Progress | None = None,
    expect: Expect | None = None,
    *,
    repair: bool = False,
) -> tuple[list[dict[str, Any]], Summary]:
    """Read every chunk of the chips that are done or superseded, and compute again what follows from stored pixels.

    Parameters
    ----------
    client : distributed.Client
    store : SurveyStore
        Opened to write where it is to be repaired.
    config : Config
        Section ``execution``.
    progress, expect : callable, optional
    repair : bool
        Make damaged chips pending, so that the next ingest reads them again; those whose files are gone have failed.

    Returns
    -------
    findings : list of dict
        ``chip``, ``variable`` and ``difference`` of each damage, in the order of the rows.
    summary : Summary
    """
    start, summary = time.monotonic(), Summary()
    columns = damaged_columns(store)
    findings = [
        {
            "chip": f"rows {part.first} to {part.last}",
            "variable": part.name,
            "difference": f"is damaged ({part.why})",
        }
        for part in columns
    ]
    if columns and repair:
        repair_columns(store, columns)
    elif columns:
        summary.rejected = len(columns)
        summary.remarks.append("variables of many chips are damaged; --repair fills them and makes the chips pending")
        return findings, summary
    rows = np.flatnonzero(np.isin(store.ledger["status"], (DONE, SUPERSEDED))).tolist()
    announce(expect, rows)
    exact, invalid = store.attrs.get("devices", ["cpu"]) == ["cpu"], int(store.attrs["invalid_bits"])
    scalars = records_of(rows, {name: store.column(name, rows) for name in STATISTICS})
    size = block_size(client, config.execution, len(rows))

    def task(some: Sequence[int]) -> Task:
        args = (store.location, store.rows, list(some), {row: scalars[row] for row in some}, invalid)
        name = store.name(some[0]) if len(some) == 1 else f"{store.name(some[0])} to {store.name(some[-1])}"
        return Task(name, (*args, exact), list(some), len(some), list(some), lambda row, _: task([row]))

    damaged: dict[int, list[Finding]] = {}
    tasks = (task(rows[k : k + size]) for k in range(0, len(rows), size))
    for done, result in run_tasks(client, "verify", verify_block, tasks, config.execution, summary.tasks):
        for row in done.key:
            reason = result.reason if isinstance(result, Failure) else ""
            summary.failed += bool(reason)
            summary.reasons.update([reason] if reason else [])
            summary.done += not reason
            if not reason and row in result:
                damaged[row] = result[row]
            if progress is not None:
                bad = ", ".join(name for name, _ in damaged.get(row, []))
                progress(store.name(row), "failed" if reason else "damaged" if bad else "done", reason or bad)
    for row in sorted(damaged):
        for name, text in damaged[row]:
            findings.append({"chip": store.name(row), "variable": name, "difference": text})
    if damaged:
        summary.rejected += len(damaged)
        summary.done -= len(damaged)
        summary.remarks.append(_repair(store, damaged) if repair else "--repair makes these chips pending")
    summary.seconds = time.monotonic() - start
    return findings, summary


def verify_block(
    location: str, n_rows: int, rows: Sequence[int], scalars: dict[int, dict[str, Any]], invalid: int, exact: bool
) -> dict[int, list[Finding]]:
    """On a worker: findings on some chips, by row."""
    return verify_chips(location, n_rows, rows, scalars, invalid, exact=exact)


def _repair(store: SurveyStore, damaged: dict[int, list[Finding]]) -> str:
    rows = sorted(damaged)
    sources = dict(zip(rows, store.column("source", rows).tolist(), strict=True))
    there = [row for row in rows if sources[row].startswith("simulated ") or os.path.exists(sources[row])]
    gone = [row for row in rows if row not in set(there)]
    names = {row: ", ".join(dict.fromkeys(name for name, _ in damaged[row])) for row in rows}
    store.predictions.blank(rows)
    store.take_up(there, {"source_id": [""] * len(there)})
    reasons = [f"damaged in the store ({names[row]}), and {sources[row] or 'its source'} is gone" for row in gone]
    store.set_status(gone, FAILED, reasons)
    lost = f"; failed, since their files are gone: {len(gone)}" if gone else ""
    return f"now pending: {len(there)}; ingest or simulate again{lost}"
