"""What there is to do: which chips of some inputs are new, changed, failed before, and what is already done."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csst_dask.config import Config
from csst_dask.errors import ConfigError
from csst_dask.io.discovery import discover
from csst_dask.pipeline.block import ON_MAP, PLACE, SCALARS
from csst_dask.pipeline.summary import Summary
from csst_dask.schema import DONE, FAILED, PENDING, REJECTED, SUPERSEDED, ChipFiles, ChipKey
from csst_dask.store import SurveyStore

PREDICTION_FAILED = "prediction failed: "
"""Begins the part of a chip's ``reason`` that says why it could not be predicted."""


@dataclass(frozen=True)
class Candidate:
    """A chip that the store should hold."""

    key: ChipKey
    item: Any
    """What a source opens."""
    source: str
    source_id: str = ""
    truth_id: str = ""


def find_candidates(inputs: Sequence[str | os.PathLike[str]], truth: bool) -> tuple[list[Candidate], dict[str, str]]:
    """The chips of files and folders.

    Parameters
    ----------
    inputs : sequence of path
    truth : bool
        Whether truth catalogues are read.

    Returns
    -------
    chips : list of Candidate
    left : dict of str to str
        Inputs that gave no chip, and why.

    Raises
    ------
    ConfigError
        If there is no input, or none holds a FITS file.
    """
    if not inputs:
        raise ConfigError("inputs: no files or folders given; name at least one")
    with _without_collection():
        chips, left = discover([os.fspath(path) for path in inputs])
        found = [
            Candidate(files.key, files, files.image, identity(files), identity_of(files.truth) if truth else "")
            for files in chips
        ]
    if not chips and not left:
        raise ConfigError(f"inputs: no FITS files in {', '.join(map(str, inputs))}; check the paths")
    return found, dict(left)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Without Python's search for cycles, which takes a third of the time where a million small objects are made."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def identity(files: ChipFiles) -> str:
    """Size and modification time of a chip's image, weights and flags, as one text."""
    return " ".join(identity_of(path) for path in (files.image, files.weight, files.flag) if path)


def identity_of(path: str | None) -> str:
    """Size and modification time of a file; nothing where there is none."""
    if not path:
        return ""
    try:
        found = os.stat(path)
    except OSError:
        return "gone"
    return f"{found.st_size}:{found.st_mtime_ns}"


def plan_reading(
    store: SurveyStore,
    chips: Sequence[Candidate],
    config: Config,
    summary: Summary,
    *,
    update: bool = False,
    retry_failed: bool = False,
) -> dict[int, Any]:
    """Give new chips rows, and say which chips have to be read.

    Parameters
    ----------
    store : SurveyStore
        Opened to write.
    chips : sequence of Candidate
    config : Config
        Section ``execution``.
    summary : Summary
        Receives the chips that need nothing, and those that changed.
    update : bool
        Read chips again whose files have changed.
    retry_failed : bool
        Try chips again that failed in too many runs.

    Returns
    -------
    dict of int to object
        What the source opens, by row: new chips in the order given, those that failed before at the end.
    """
    new = [chip.key for chip in chips if chip.key not in store.row_of]
    if new:
        store.allocate(new)
    ledger, limit = store.ledger, config.execution.attempts
    status, attempts = ledger["status"].tolist(), ledger["attempts"].tolist()
    known_source, known_truth = ledger["source_id"].tolist(), ledger["truth_id"].tolist()
    todo: dict[int, Candidate] = {}
    last: dict[int, Candidate] = {}
    refused: list[int] = []
    for chip in chips:
        row = store.row_of[chip.key]
        same = chip.source_id == known_source[row]
        changed = not same or (chip.truth_id not in ("", known_truth[row]))
        state = status[row]
        stored = state in (DONE, SUPERSEDED)
        if state == PENDING or (state == REJECTED and not same) or (stored and changed and update):
            todo[row] = chip
        elif state == REJECTED:
            refused.append(row)
        elif state == FAILED and (attempts[row] < limit or retry_failed or not same):
            last[row] = chip
        elif state == FAILED:
            summary.given_up += 1
            summary.reasons[f"failed in {attempts[row]} runs, given up (--retry-failed tries again)"] += 1
        else:
            summary.skipped += 1
            if changed:
                summary.changed.append(str(chip.key))
    if refused:
        summary.rejected += len(refused)
        summary.reasons.update(store.column("reason", refused).tolist())
    found = {**todo, **last}
    fresh = [row for row, chip in found.items() if status[row] != FAILED or chip.source_id != known_source[row]]
    store.take_up(
        fresh, {name: [getattr(found[row], name) for row in fresh] for name in ("source", "source_id", "truth_id")}
    )
    return {row: chip.item for row, chip in found.items()}


def plan_predicting(
    store: SurveyStore,
    have: NDArray[np.bool_],
    config: Config,
    summary: Summary,
    *,
    chosen: NDArray[np.bool_] | None = None,
    retry_failed: bool = False,
) -> list[int]:
    """Chips that have to be predicted; those that failed before at the end.

    Parameters
    ----------
    store : SurveyStore
    have : (rows,) bool array
        Chips that these networks have predicted.
    config : Config
        Section ``execution``.
    summary : Summary
        Receives the chips that need nothing.
    chosen : (rows,) bool array, optional
        Chips to look at; by default all.
    retry_failed : bool
        Try chips again that failed in too many runs.

    Returns
    -------
    list of int
        Rows.
    """
    ledger = store.ledger
    look = ledger["status"] == DONE
    if chosen is not None:
        look &= chosen
    summary.skipped += int((look & have).sum())
    todo, failed = look & ~have, ledger["predict_attempts"]
    hopeless = todo & (failed >= config.execution.attempts) & (not retry_failed)
    summary.given_up += int(hopeless.sum())
    if hopeless.any():
        summary.reasons["prediction failed in too many runs, given up (--retry-failed tries again)"] += hopeless.sum()
    todo &= ~hopeless
    return [*np.flatnonzero(todo & (failed == 0)).tolist(), *np.flatnonzero(todo & (failed > 0)).tolist()]


def scalars_of(store: SurveyStore, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """`block.SCALARS` and `block.PLACE` of some chips, by row."""
    return records_of(rows, {name: store.column(name, rows) for name in (*SCALARS, *PLACE)})


def predictions_of(store: SurveyStore, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """`block.PLACE` and `block.ON_MAP` of some predicted chips, by row."""
    columns = {name: store.column(name, rows) for name in PLACE}
    columns |= {name: store.predictions.column(name, rows) for name in ON_MAP}
    level = float(store.predictions.attrs.get("interval_level", 0.9))
    return {row: record | {"level": level} for row, record in records_of(rows, columns).items()}


def records_of(rows: Sequence[int], columns: Mapping[str, NDArray]) -> dict[int, dict[str, Any]]:
    """Values of some chips by row, from columns."""
    return {row: {name: values[k] for name, values in columns.items()} for k, row in enumerate(rows)}
