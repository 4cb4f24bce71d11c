"""The baselines beside the networks: trees on statistics of the maps, and source extraction from pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from csst_dask.config import Config, ExecutionConfig
from csst_dask.errors import ConfigError
from csst_dask.evaluation.calibration import apply_calibration, fit_calibration
from csst_dask.evaluation.classical import extraction_definition
from csst_dask.evaluation.cost import Cost, measure_extraction, measure_trees, try_cost
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.page import EXTRACTION, TREES
from csst_dask.evaluation.tasks import count_chip, statistics_block
from csst_dask.evaluation.trees import TreesBaseline, fit_trees, predict_trees
from csst_dask.evaluation.truth import Truth
from csst_dask.pipeline.kept import KeptResults
from csst_dask.runners.collect import Stages, collect
from csst_dask.runners.window import Task
from csst_dask.schema import density_class

STATISTICS_BLOCK = 64
"""Chips whose statistics one task takes."""

LEAST_PIXELS = 200
"""Chips that keep their pixels, to calibrate with and to judge on, that the classical baseline needs."""


MOST_CALIBRATING = 1000
"""Chips that source extraction is calibrated with at most: a few numbers of each band are fitted, and each chip takes
seconds."""


def open_distinct(stores: Sequence[str]) -> list[Truth]:
    """Chips with truth of some stores.

    Raises
    ------
    ConfigError
        If a store has none, or two have a chip in common.
    """
    from csst_dask.training.samples import COLUMNS
    from csst_dask.training.split import refuse_common_chips

    opened = [Truth.open(store) for store in stores]
    refuse_common_chips(stores, [{name: chips.column(name) for name in COLUMNS} for chips in opened])
    return opened


def _apart(whole: Truth, judged: Sequence[Truth]) -> tuple[Truth, str]:
    """Chips to learn from: none near those that are judged. And how many were dropped."""
    from csst_dask.training.split import SEPARATION

    learning = whole
    for chips in judged:
        learning = learning.apart_from(chips, SEPARATION)
    dropped, name = len(whole) - len(learning), Path(whole.path).name
    note = f"{name}, {len(learning)} chips; {dropped} within {SEPARATION:g} deg of judged chips were dropped"
    return learning, note


def try_trees(
    client: Client,
    stores: Sequence[Truth],
    judged: Sequence[Truth],
    config: Config,
    stages: Stages | None,
    folder: Path | None,
) -> tuple[list[Judged], str, list[Cost]]:
    """Trees judged on each set of chips (nothing if they cannot learn), what to say of it, and their cost."""
    learning, notes = zip(*(_apart(store, judged) for store in stores), strict=True)
    note = "; ".join(notes)
    try:
        fitted = learn_trees(client, [chips for chips in learning if len(chips)], config, stages)
    except ConfigError as reason:
        return [], f"No {TREES}: they would learn from {note}; {reason}.", []
    found: list[Judged] = []
    cost: list[Cost] = []
    for chips in judged:
        table = measure_statistics(client, chips, stages, config.execution)
        found.append(chips.judge(predict_trees(fitted, table["statistics"], chips.column("band"))))
        if folder is not None and not cost:
            folder.mkdir(parents=True, exist_ok=True)
            cost, why = try_cost(measure_trees, TREES, fitted, table["statistics"], chips.column("band"), folder)
            note = ". ".join([note, f"The statistics take {1e3 * np.median(table['seconds']):.0f} ms a chip", *why])
    return found, f"The {TREES} learned from {note}.", cost


def learn_trees(
    client: Client, learning: Sequence[Truth], config: Config, stages: Stages | None = None
) -> TreesBaseline:
    """Trees and a support vector machine from the statistics of chips of some stores; a tenth (by field) calibrates."""
    from csst_dask.training.split import split_by_field

    if not learning:
        raise ConfigError("no chip is left: name a store of other sky")
    names = "field", "band", "n_star", "n_bright", "ra", "dec"
    columns = {name: np.concatenate([chips.column(name) for chips in learning]) for name in names}
    seed = config.training.seed
    split = split_by_field(columns["field"], density_class(columns["n_star"]), columns["ra"], columns["dec"], seed=seed)
    train = np.sort(np.concatenate([split.train, split.test]))
    table = np.concatenate(
        [measure_statistics(client, chips, stages, config.execution)["statistics"] for chips in learning]
    )
    known = columns["band"], columns["n_star"], columns["n_bright"]
    return fit_trees(table, *known, train, split.validation, seed=seed)


def measure_statistics(
    client: Client, chips: Truth, stages: Stages | None = None, execution: ExecutionConfig | None = None
) -> dict[str, NDArray]:
    """``statistics`` of the maps of some chips, (n, k), and the ``seconds`` that each took, (n,)."""
    from csst_dask.preprocess.inputs import SCALARS

    tasks = []
    for start in range(0, len(chips), STATISTICS_BLOCK):
        rows = chips.rows[start : start + STATISTICS_BLOCK]
        some = {name: chips.scalars[name].values[rows].tolist() for name in SCALARS}
        tasks.append(Task(f"chips-{rows[0]}-{rows[-1]}", (chips.path, rows.tolist(), some), rows, len(rows)))
    return collect(client, "statistics", statistics_block, tasks, chips.rows, stages, execution)


def try_extraction(
    client: Client,
    whole: Truth,
    truth: Truth,
    least: int,
    stages: Stages | None,
    costs: bool,
    execution: ExecutionConfig | None = None,
    folder: Path | None = None,
) -> tuple[dict[str, Judged], str, list[Cost]]:
    """Source extraction judged on some chips (nothing if it cannot run), what to say of it, and its cost.

    It is calibrated with chips of ``whole``, `MOST_CALIBRATING` at most, spread evenly over it. A folder keeps what was
    extracted: one that is interrupted goes on.
    """
    learning, note = _apart(whole, [truth])
    learning = learning.take(learning.column("n_bright") >= 0)
    if len(learning) > MOST_CALIBRATING:
        note += f"; {MOST_CALIBRATING} of the others were taken"
        learning = learning.take(np.linspace(0, len(learning) - 1, MOST_CALIBRATING).astype(int))
    for chips, what in ((learning, "to calibrate with"), (truth, "to judge on")):
        if not chips.keeps_pixels:
            return {}, f"No {EXTRACTION}: the chips {what} ({Path(chips.path).name}) keep no pixels.", []
        if len(chips) < least:
            reason = f"{len(chips)} chips {what} ({note if chips is learning else Path(chips.path).name})"
            return {}, f"No {EXTRACTION}: {reason}; it needs at least {least}.", []
    try:
        extraction_definition()
    except ConfigError as reason:
        return {}, f"No {EXTRACTION}: {reason}.", []
    judged, seconds = judge_extraction(client, learning, truth, stages, execution, folder)
    cost: list[Cost] = []
    why: list[str] = []
    if costs:
        exptime, band = truth.column("exptime"), truth.column("band")
        usual = int(np.argsort(seconds)[len(seconds) // 2])
        row = int(truth.rows[usual])
        one = EXTRACTION, truth.path, row, float(exptime[usual]), str(band[usual])
        cost, why = try_cost(measure_extraction, *one)
    took = f"{EXTRACTION.capitalize()} took {seconds.mean():.2f} CPU s a chip, {seconds.max():.2f} at most."
    return {EXTRACTION: judged}, " ".join([f"Calibrated with {note}. {took}", *why]), cost


def judge_extraction(
    client: Client,
    learning: Truth,
    truth: Truth,
    stages: Stages | None = None,
    execution: ExecutionConfig | None = None,
    folder: Path | None = None,
) -> tuple[Judged, NDArray[np.float64]]:
    """Source extraction on chips that keep their pixels, calibrated on others; with the CPU time of each chip, s."""
    found = [_detections(client, chips, stages, execution, folder) for chips in (learning, truth)]
    known = (learning.column(name) for name in ("band", "n_star", "n_bright"))
    calibration = fit_calibration(found[0]["counts"].tolist(), *known)
    predicted = apply_calibration(calibration, found[1]["counts"].tolist(), truth.column("band"))
    return truth.judge(predicted), found[1]["seconds"]


def _detections(
    client: Client, chips: Truth, stages: Stages | None, execution: ExecutionConfig | None, folder: Path | None
) -> dict[str, NDArray]:
    kept = None
    if folder is not None:
        of = hashlib.sha256(extraction_definition().encode())
        for name in ("source_id", "exptime", "pixel_mean", "pixel_std"):
            of.update(repr(chips.column(name).tolist()).encode())
        kept = KeptResults(folder / f"extracted-{of.hexdigest()[:12]}.jsonl", of.hexdigest())
    exptime, band = chips.column("exptime"), chips.column("band")
    tasks = [
        Task(f"chip-{row}", (chips.path, int(row), float(exptime[k]), str(band[k])), np.array([row]))
        for k, row in enumerate(chips.rows)
    ]
    return collect(client, "extract", count_chip, tasks, chips.rows, stages, execution, kept)
