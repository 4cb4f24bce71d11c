"""Judge networks and baselines on the chips of a store that have truth. The store is only read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from distributed import Client
from numpy.typing import NDArray

from csst_dask.config import Config
from csst_dask.errors import ConfigError
from csst_dask.evaluation.calibration import apply_calibration, fit_calibration
from csst_dask.evaluation.classical import count_sources
from csst_dask.evaluation.figures import near_edge
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.judgement import write_judgement
from csst_dask.evaluation.trees import fit_trees, predict_trees
from csst_dask.inference.routing import route
from csst_dask.models.files import identify_pair
from csst_dask.preprocess.statistics import map_statistics
from csst_dask.runners.predict import CPU_BATCH, block_tasks, predict_block
from csst_dask.runners.window import Failure, Task, run_tasks
from csst_dask.schema import CHANNELS
from csst_dask.store.survey import array_of, locate, open_group, open_scalars

SETS = ("all", "test", "random-test")
"""Chips to judge: all, the test fields of the split by field, or a tenth at random as in the paper."""

STATISTICS_BLOCK = 64
"""Chips whose statistics one task takes."""

LEAST_PIXELS = 20
"""Chips with pixels, of fields to calibrate with and of fields to judge on, that the classical baseline needs."""

Stages = Callable[[str], tuple[Callable[[str, str, str], None], Callable[[int], None]]]
"""Starts a stage: what to call after each task, and with the number of tasks."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Chips of a store that are done and have truth."""

    path: str
    scalars: xr.Dataset
    rows: NDArray[np.int64]

    def column(self, name: str) -> NDArray:
        """One variable of these chips; text as str."""
        values = self.scalars[name].values[self.rows]
        return values.astype(str) if values.dtype.kind in "OTU" else values

    def take(self, places: NDArray[np.int64]) -> Truth:
        """Some of these chips."""
        return Truth(self.path, self.scalars, self.rows[places])

    @classmethod
    def open(cls, store: str) -> Truth:
        """All such chips.

        Raises
        ------
        ConfigError
            If there is none.
        """
        path = locate(store)
        scalars = open_scalars(path)
        good = (scalars["status"].values == "done") & (scalars["n_star"].values >= 0)
        if not good.any():
            raise ConfigError(f"{store} has no chip that is done and has truth; give one that was made with truth")
        return cls(path, scalars, np.flatnonzero(good))

    def part(self, which: str, seed: int) -> Truth:
        """The chips of one of `SETS`."""
        from csst_dask.schema import density_class
        from csst_dask.training.samples import FRACTIONS, split_by_field

        if which == "all":
            return self
        if which == "random-test":
            chosen = np.random.default_rng(seed).permutation(len(self.rows))[: round(FRACTIONS[2] * len(self.rows))]
            return self.take(np.sort(chosen))
        classes = density_class(self.column("n_star"))
        return self.take(
            split_by_field(self.column("field"), classes, self.column("ra"), self.column("dec"), seed=seed).test
        )


def judge_store(
    client: Client,
    store: str,
    out: Path,
    config: Config,
    weights: Sequence[Path | None],
    *,
    which: str = "all",
    baselines: str | None = None,
    stages: Stages | None = None,
) -> Path:
    """Write the tables and figures of the paper for networks and baselines.

    Parameters
    ----------
    client : distributed.Client
    store : str
        Survey store with truth.
    out : Path
        Folder for ``evaluation.md`` and what it shows.
    config : Config
        Sections ``inference`` (batch), ``routing`` and ``training`` (seed of the split).
    weights : sequence of Path or None
        Folders of pairs of networks, the principal one first; None is what ships with the package.
    which : str
        One of `SETS`.
    baselines : str, optional
        Store that the baselines learn from: trees and a support vector machine on the statistics
        of the maps, and source extraction where
        both stores keep pixels.
    stages : callable, optional
        Starts the progress of a stage.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ConfigError
        If the store has no truth, or weights are missing or damaged.
    """
    truth = Truth.open(store).part(which, config.training.seed)
    methods: dict[str, Judged] = {}
    logs: dict[str, Path] = {}
    for folder in weights:
        name = Path(folder).name if folder else "shipped"
        methods[name] = judge_weights(client, truth, config, folder, stages)
        for log in sorted(Path(folder).glob("**/log.csv")) if folder else []:
            logs[f"{name}: {log.parent.name}"] = log
    notes = [f"{Path(store).name}: {len(truth.rows)} chips with truth ({which})."]
    if baselines is not None:
        learning = Truth.open(baselines)
        methods["trees and SVM"] = judge_trees(client, learning, truth, config, stages)
        notes.append(f"The baselines learned from {Path(baselines).name}, {len(learning.rows)} chips.")
        classical = judge_classical(client, learning, truth, stages)
        if classical is not None:
            methods["source extraction"], cost = classical
            notes.append(f"Source extraction took {cost:.1f} CPU s a chip, and saw only the chips that keep pixels.")
    principal = next(iter(methods.values()))
    rows = truth.rows[near_edge(principal)]
    reduced = array_of(zarr.open_group(truth.path, mode="r"), "reduced")
    mean = CHANNELS.index("mean")
    maps = {int(place): reduced[int(row), mean] for place, row in zip(near_edge(principal), rows, strict=True)}
    return write_judgement(methods, out, title=f"{Path(store).stem}: {which}", notes=notes, maps=maps, logs=logs)


def judge_weights(
    client: Client, truth: Truth, config: Config, folder: Path | None, stages: Stages | None = None
) -> Judged:
    """Predictions of a pair of networks beside the truth."""
    where, checksums = identify_pair(folder)
    batch = CPU_BATCH if config.inference.batch == "auto" else config.inference.batch
    todo = np.zeros(truth.scalars.sizes["chip"], bool)
    todo[truth.rows] = True
    tasks = block_tasks(truth.path, truth.scalars, todo, batch, where, checksums)
    found = _collect(client, "evaluate", predict_block, tasks, truth.rows, stages)
    valid = np.ones(len(truth.rows), bool)
    routes, _ = route(
        found["density_class"], found["bright_count"], found["confidence"], valid, found["unlike"], config.routing
    )
    return _judged(truth, found, routes)


def _judged(truth: Truth, found: dict[str, NDArray], routes: NDArray | None = None) -> Judged:
    wanted = ("density_class", "class_probability", "log_star", "log_bright", "bright_lower", "bright_upper")
    return Judged.build(
        band=truth.column("band"), field=truth.column("field"), n_star=truth.column("n_star"),
        n_bright=truth.column("n_bright"), route=routes, **{name: found[name] for name in wanted if name in found},
    )  # fmt: skip


def statistics_block(path: str, rows: Sequence[int], scalars: dict[str, list[float]]) -> dict[str, NDArray]:
    """``statistics`` (n, k) of some chips of a store."""
    reduced = array_of(zarr.open_group(path, mode="r"), "reduced")
    maps = np.stack([reduced[row] for row in rows])
    return {"statistics": map_statistics(maps, {name: np.asarray(values) for name, values in scalars.items()})}


def judge_trees(client: Client, learning: Truth, truth: Truth, config: Config, stages: Stages | None = None) -> Judged:
    """Trees and a support vector machine on statistics: learned from one store, judged on another or on itself."""
    from csst_dask.schema import density_class
    from csst_dask.training.samples import split_by_field

    own = learning.path == truth.path
    classes = density_class(learning.column("n_star"))
    split = split_by_field(
        learning.column("field"), classes, learning.column("ra"), learning.column("dec"), seed=config.training.seed
    )
    train = split.train if own else np.concatenate([split.train, split.test])
    tables = [_statistics(client, chips, stages) for chips in ((learning,) if own else (learning, truth))]
    fitted = fit_trees(
        tables[0], learning.column("band"), learning.column("n_star"), learning.column("n_bright"),
        train, split.validation, seed=config.training.seed,
    )  # fmt: skip
    table = tables[0][np.searchsorted(learning.rows, truth.rows)] if own else tables[1]
    found = predict_trees(fitted, table, truth.column("band"))
    bounds = {
        name: np.maximum(10.0 ** found[name].astype(np.float64) - 1, 0) for name in ("bright_lower", "bright_upper")
    }
    return _judged(truth, found | bounds)


def _statistics(client: Client, chips: Truth, stages: Stages | None) -> NDArray[np.float32]:
    from csst_dask.preprocess.inputs import SCALARS

    tasks = []
    for start in range(0, len(chips.rows), STATISTICS_BLOCK):
        rows = chips.rows[start : start + STATISTICS_BLOCK]
        some = {name: chips.scalars[name].values[rows].tolist() for name in SCALARS}
        tasks.append(Task(f"chips-{rows[0]}-{rows[-1]}", (chips.path, rows.tolist(), some), rows))
    return _collect(client, "statistics", statistics_block, tasks, chips.rows, stages)["statistics"]


def count_chip(path: str, row: int, exptime: float, band: str) -> dict[str, NDArray]:
    """Detections on one chip that keeps its pixels: ``counts`` (1,) of dict, and ``seconds`` (1,) of CPU time."""
    import time

    group, started = zarr.open_group(path, mode="r"), time.process_time()
    counts = count_sources(array_of(group, "image")[row], array_of(group, "mask")[row], exptime, band)
    return {"counts": np.array([counts], object), "seconds": np.array([time.process_time() - started])}


def judge_classical(
    client: Client, learning: Truth, truth: Truth, stages: Stages | None = None
) -> tuple[Judged, float] | None:
    """Source extraction, calibrated on the learning store; None where a store keeps no pixels, or too few."""
    if any("image" not in open_group(chips.path) for chips in (learning, truth)):
        return None
    if learning.path == truth.path:
        learning = learning.take(np.flatnonzero(~np.isin(learning.column("field"), truth.column("field"))))
    if min(len(learning.rows), len(truth.rows)) < LEAST_PIXELS:
        return None
    found = [_detections(client, chips, stages) for chips in (learning, truth)]
    calibration = fit_calibration(
        found[0]["counts"].tolist(), learning.column("band"), learning.column("n_star"), learning.column("n_bright")
    )
    predicted = apply_calibration(calibration, found[1]["counts"].tolist(), truth.column("band"))
    return _judged(truth, predicted), float(found[1]["seconds"].mean())


def _detections(client: Client, chips: Truth, stages: Stages | None) -> dict[str, NDArray]:
    exptime, band = chips.column("exptime"), chips.column("band")
    tasks = [
        Task(f"chip-{row}", (chips.path, int(row), float(exptime[k]), str(band[k])), np.array([row]))
        for k, row in enumerate(chips.rows)
    ]
    return _collect(client, "extract", count_chip, tasks, chips.rows, stages)


def _collect(
    client: Client,
    stage: str,
    function: Callable[..., dict[str, NDArray]],
    tasks: Sequence[Task],
    rows: NDArray[np.int64],
    stages: Stages | None,
) -> dict[str, NDArray]:
    """Results of all tasks in the order of the rows. One that fails ends it: a judgement leaves no chip out."""
    progress, expect = stages(stage) if stages else (None, None)
    if expect:
        expect(len(tasks))
    parts: list[tuple[NDArray[np.int64], dict[str, Any]]] = []
    for task, result in run_tasks(client, stage, function, tasks):
        if isinstance(result, Failure):
            raise RuntimeError(f"{stage} of {task.name} failed: {result.reason}")
        parts.append((task.key, result))
        if progress:
            progress(task.name, "done", "")
    order = np.argsort(np.concatenate([key for key, _ in parts]), kind="stable")
    together = {name: np.concatenate([part[name] for _, part in parts])[order] for name in parts[0][1]}
    assert len(order) == len(rows)
    return together
