"""Judge networks and baselines on the chips of a store that have truth. The store is only read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from distributed import Client
from numpy.typing import NDArray

from csst_dask.config import Config, RoutingConfig
from csst_dask.errors import ConfigError
from csst_dask.evaluation.calibration import apply_calibration, fit_calibration
from csst_dask.evaluation.cost import Cost, describe_machine, measure_extraction, measure_network, measure_trees
from csst_dask.evaluation.figures import near_edge
from csst_dask.evaluation.gates import Gates
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.judgement import Comparison, write_judgement
from csst_dask.evaluation.page import EXTRACTION, TREES, name_methods
from csst_dask.evaluation.tasks import count_chip, statistics_block
from csst_dask.evaluation.trees import TreesBaseline, fit_trees, predict_trees
from csst_dask.evaluation.truth import Truth
from csst_dask.evaluation.unseen import Judgeable, choose_chips
from csst_dask.inference.routing import gate, route
from csst_dask.models.files import TASKS, identify_pair, read_weights
from csst_dask.runners.faults import Failure
from csst_dask.runners.joint import estimate_jointly
from csst_dask.runners.networks import choose_pair
from csst_dask.runners.predict import block_tasks, predict_block
from csst_dask.runners.window import Task, run_tasks
from csst_dask.schema import CHANNELS, CROWDED, density_class
from csst_dask.store.survey import array_of

STATISTICS_BLOCK = 64
"""Chips whose statistics one task takes."""

LEAST_PIXELS = 200
"""Chips that keep their pixels, to calibrate with and to judge on, that the classical baseline needs."""

Stages = Callable[[str], tuple[Callable[[str, str, str], None], Callable[[int], None]]]
"""Starts a stage: what to call after each task, and with the number of tasks."""


def judge_store(
    client: Client,
    store: str,
    out: Path,
    config: Config,
    weights: Sequence[Path | None],
    *,
    part: str = "all",
    baselines: str | None = None,
    pixel_stores: tuple[str, str] | None = None,
    least_pixels: int = LEAST_PIXELS,
    costs: bool = True,
    stages: Stages | None = None,
) -> Path:
    """Write the tables and figures of the paper for networks and baselines.

    Chips on sky that a network learned from are left out, and baselines learn nothing from the sky that is judged.

    Parameters
    ----------
    client : distributed.Client
    store : str
        Survey store with truth.
    out : Path
        Folder for ``evaluation.md`` and what it shows.
    config : Config
        Sections ``inference`` (batch), ``routing`` and ``training`` (seed of the baselines).
    weights : sequence of Path or None
        Folders of pairs of networks, the principal one first; None is what ships with the package.
    part : str
        One of `evaluation.unseen.PARTS`.
    baselines : str, optional
        Store that the baselines learn from: trees and a support vector machine on the statistics of the maps, and
        source extraction where both stores keep pixels.
    pixel_stores : (str, str), optional
        Stores that keep pixels, for source extraction: one to calibrate with and one to judge on, where all other
        methods are judged too.
    least_pixels : int
        Chips that each of these must have.
    costs : bool
        Measure parameters, time and memory of every method.
    stages : callable, optional
        Starts the progress of a stage.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ConfigError
        If a store has no truth, weights are missing or damaged, or nothing may be judged.
    """
    folders = name_methods(weights)
    chosen, pixels = _choose(store, folders, part), None
    if pixel_stores is not None:
        pixels = _choose(pixel_stores[1], folders, "all")
    truth = chosen.chips
    notes = [f"{Path(store).name}: {len(truth)} chips with truth ({part}).", *chosen.notes]
    methods = {name: judge_weights(client, truth, config, folder, stages) for name, folder in folders.items()}
    there = {} if pixels is None else {
        name: judge_weights(client, pixels.chips, config, folder, stages) for name, folder in folders.items()
    }  # fmt: skip
    measured = _network_costs(folders, config, out) if costs else []
    if baselines is not None:
        everything = [truth] if pixels is None else [truth, pixels.chips]
        trees, note, cost = _try_trees(client, baselines, everything, config, stages, out if costs else None)
        for place, judged in zip((methods, there), trees, strict=False):
            place[TREES] = judged
        notes.append(note)
        measured += cost
    others: list[Comparison] = []
    if pixel_stores is not None and pixels is not None:
        found, note, cost = _try_extraction(client, pixel_stores[0], pixels.chips, least_pixels, stages, costs)
        title = f"On chips that keep their pixels: {Path(pixel_stores[1]).stem}, {len(pixels.chips)} chips"
        others.append(Comparison(title, there | found, [*pixels.notes, note]))
    else:
        learn = baselines or store
        found, note, cost = _try_extraction(client, learn, truth, least_pixels, stages, costs)
        methods |= found
        notes.append(note)
    principal = next(iter(methods.values()))
    return write_judgement(
        methods, out, title=f"{Path(store).stem}: {part}", notes=notes, maps=_maps(truth, principal),
        logs=_logs(folders), costs=measured + cost, machine=describe_machine(), others=others,
        joint=estimate_jointly(truth, principal, config.training.seed), gates=_gates(principal, config.routing),
    )  # fmt: skip


def _choose(store: str, folders: dict[str, Path | None], part: str) -> Judgeable:
    """Chips of a store that all networks may be judged on."""
    from csst_dask.training.record import checksum_chips

    def checksum(chips: Truth) -> str:
        return checksum_chips(*(chips.column(name) for name in ("band", "field", "n_star", "n_bright", "ra", "dec")))

    metadata = {
        f"{name} ({task})": read_weights(identify_pair(folder)[0] / f"{task}.safetensors", task)[1]
        for name, folder in folders.items()
        for task in TASKS
    }
    return choose_chips(Truth.open(store), metadata, part, checksum)


def _gates(judged: Judged, routing: RoutingConfig) -> Gates:
    """What predictions send to the crowded pipeline by the most probable class and by expected cost."""
    likely = np.where(judged.density_class == CROWDED, "crowded", "standard")
    rules = {
        "most probable class": likely,
        "most probable class, review of doubt": np.where(judged.confidence < routing.min_confidence, "review", likely),
        "expected cost": gate(judged.class_probability[:, CROWDED], routing),
    }
    return Gates(rules, routing.missed_cost, routing.needless_cost, routing.review_cost)


def _maps(truth: Truth, judged: Judged) -> dict[int, NDArray[np.float32]]:
    """Maps of the chips that are shown."""
    reduced = array_of(zarr.open_group(truth.path, mode="r"), "reduced")
    places = near_edge(judged)
    return {place: reduced[int(truth.rows[place]), CHANNELS.index("mean")] for place in places}


def _logs(folders: dict[str, Path | None]) -> dict[str, Path]:
    return {
        f"{name}: {log.parent.name}": log
        for name, folder in folders.items()
        for log in (sorted(folder.glob("**/log.csv")) if folder else [])
    }


def _network_costs(folders: dict[str, Path | None], config: Config, out: Path) -> list[Cost]:
    import torch

    from csst_dask.inference.batching import CPU_BATCH

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    batch = CPU_BATCH if config.inference.batch == "auto" else config.inference.batch
    return [
        measure_network(name, identify_pair(folder)[0] / f"{task}.safetensors", batch, device)
        for name, folder in folders.items()
        for task in TASKS
        for device in devices
    ]


def judge_weights(
    client: Client, truth: Truth, config: Config, folder: Path | None, stages: Stages | None = None
) -> Judged:
    """Predictions of a pair of networks beside the truth."""
    pair = choose_pair(client, config, folder=folder)
    todo = np.zeros(truth.scalars.sizes["chip"], bool)
    todo[truth.rows] = True
    tasks = list(block_tasks(truth.path, truth.scalars, todo, pair))
    found = _collect(client, "evaluate", predict_block, tasks, truth.rows, stages)
    valid = np.ones(len(truth), bool)
    routes, _ = route(
        found["class_probability"][:, CROWDED], found["bright_count"], found["confidence"], valid, found["unlike"],
        config.routing,
    )  # fmt: skip
    return truth.judge(found, routes)


def _apart(store: str, judged: Sequence[Truth]) -> tuple[Truth, str]:
    """Chips of a store to learn from: none near those that are judged. And how many were dropped."""
    from csst_dask.training.split import SEPARATION

    whole = learning = Truth.open(store)
    for chips in judged:
        learning = learning.apart_from(chips, SEPARATION)
    dropped = len(whole) - len(learning)
    note = (
        f"{Path(store).name}, {len(learning)} chips; {dropped} within {SEPARATION:g} deg of judged chips were dropped"
    )
    return learning, note


def _try_trees(
    client: Client, store: str, judged: Sequence[Truth], config: Config, stages: Stages | None, folder: Path | None
) -> tuple[list[Judged], str, list[Cost]]:
    """Trees judged on each set of chips (nothing if they cannot learn), what to say of it, and their cost."""
    learning, note = _apart(store, judged)
    try:
        fitted = learn_trees(client, learning, config, stages)
    except ConfigError as reason:
        return [], f"No {TREES}: they would learn from {note}; {reason}.", []
    found: list[Judged] = []
    cost: list[Cost] = []
    for chips in judged:
        table = _statistics(client, chips, stages)
        found.append(chips.judge(predict_trees(fitted, table["statistics"], chips.column("band"))))
        if folder is not None and not cost:
            folder.mkdir(parents=True, exist_ok=True)
            cost.append(measure_trees(TREES, fitted, table["statistics"], chips.column("band"), folder))
            note += f". The statistics take {1e3 * np.median(table['seconds']):.0f} ms a chip"
    return found, f"The {TREES} learned from {note}.", cost


def learn_trees(client: Client, learning: Truth, config: Config, stages: Stages | None = None) -> TreesBaseline:
    """Trees and a support vector machine from the statistics of some chips, a tenth of which (by field) calibrates."""
    from csst_dask.training.split import split_by_field

    columns = {name: learning.column(name) for name in ("field", "band", "n_star", "n_bright", "ra", "dec")}
    seed = config.training.seed
    split = split_by_field(columns["field"], density_class(columns["n_star"]), columns["ra"], columns["dec"], seed=seed)
    train = np.sort(np.concatenate([split.train, split.test]))
    table = _statistics(client, learning, stages)["statistics"]
    known = columns["band"], columns["n_star"], columns["n_bright"]
    return fit_trees(table, *known, train, split.validation, seed=seed)


def _statistics(client: Client, chips: Truth, stages: Stages | None) -> dict[str, NDArray]:
    from csst_dask.preprocess.inputs import SCALARS

    tasks = []
    for start in range(0, len(chips), STATISTICS_BLOCK):
        rows = chips.rows[start : start + STATISTICS_BLOCK]
        some = {name: chips.scalars[name].values[rows].tolist() for name in SCALARS}
        tasks.append(Task(f"chips-{rows[0]}-{rows[-1]}", (chips.path, rows.tolist(), some), rows))
    return _collect(client, "statistics", statistics_block, tasks, chips.rows, stages)


def _try_extraction(
    client: Client, store: str, truth: Truth, least: int, stages: Stages | None, costs: bool
) -> tuple[dict[str, Judged], str, list[Cost]]:
    """Source extraction judged on some chips (nothing if it cannot run), what to say of it, and its cost."""
    learning, note = _apart(store, [truth])
    learning = learning.take(learning.column("n_bright") >= 0)
    for chips, what in ((learning, "to calibrate with"), (truth, "to judge on")):
        if not chips.keeps_pixels:
            return {}, f"No {EXTRACTION}: the chips {what} ({Path(chips.path).name}) keep no pixels.", []
        if len(chips) < least:
            reason = f"{len(chips)} chips {what} ({note if chips is learning else Path(chips.path).name})"
            return {}, f"No {EXTRACTION}: {reason}; it needs at least {least}.", []
    judged, seconds = judge_extraction(client, learning, truth, stages)
    cost: list[Cost] = []
    if costs:
        exptime, band = truth.column("exptime"), truth.column("band")
        usual = int(np.argsort(seconds)[len(seconds) // 2])
        row = int(truth.rows[usual])
        cost.append(measure_extraction(EXTRACTION, truth.path, row, float(exptime[usual]), str(band[usual])))
    note = f"Calibrated with {note}. {EXTRACTION.capitalize()} took {seconds.mean():.2f} CPU s a chip"
    return {EXTRACTION: judged}, f"{note}, {seconds.max():.2f} at most.", cost


def judge_extraction(
    client: Client, learning: Truth, truth: Truth, stages: Stages | None = None
) -> tuple[Judged, NDArray[np.float64]]:
    """Source extraction on chips that keep their pixels, calibrated on others; with the CPU time of each chip, s."""
    found = [_detections(client, chips, stages) for chips in (learning, truth)]
    known = (learning.column(name) for name in ("band", "n_star", "n_bright"))
    calibration = fit_calibration(found[0]["counts"].tolist(), *known)
    predicted = apply_calibration(calibration, found[1]["counts"].tolist(), truth.column("band"))
    return truth.judge(predicted), found[1]["seconds"]


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
    keys = np.concatenate([key for key, _ in parts])
    order = np.argsort(keys, kind="stable")
    if not np.array_equal(keys[order], rows):
        raise RuntimeError(f"{stage} gave {len(keys)} chips where {len(rows)} were asked for")
    return {name: np.concatenate([part[name] for _, part in parts])[order] for name in parts[0][1]}
