"""Judge networks and baselines on the chips of a store that have truth. The store is only read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from csst_dask.config import Config, RoutingConfig
from csst_dask.evaluation.cost import Cost, describe_machine, measure_network, try_cost
from csst_dask.evaluation.figures import near_edge
from csst_dask.evaluation.gates import Gates
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.judgement import Comparison, write_judgement
from csst_dask.evaluation.page import TREES, name_methods
from csst_dask.evaluation.truth import Truth
from csst_dask.evaluation.unseen import Judgeable, choose_chips
from csst_dask.inference.routing import gate, route
from csst_dask.models.files import TASKS, identify_pair, read_weights
from csst_dask.pipeline.block import Block, Limit, Work, process_block
from csst_dask.pipeline.joint import estimate_jointly
from csst_dask.pipeline.plan import scalars_of
from csst_dask.runners.baselines import LEAST_PIXELS, open_distinct, try_extraction, try_trees
from csst_dask.runners.blocks import block_task, divide
from csst_dask.runners.collect import Stages, collect
from csst_dask.runners.networks import choose_pair
from csst_dask.schema import BLOCK_STATS, CROWDED


def judge_store(
    client: Client,
    store: str,
    out: Path,
    config: Config,
    weights: Sequence[Path | None],
    *,
    part: str = "all",
    baselines: Sequence[str] = (),
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
        Folders of pairs of networks, the principal one first; None is what ``inference.weights`` names, by default
        what ships with the package.
    part : str
        One of `evaluation.unseen.PARTS`.
    baselines : sequence of str
        Stores that the baselines learn from: trees and a support vector machine on the statistics of the maps, from
        all of them, and source extraction from the first one, where that and ``store`` keep pixels. Without them, and
        without ``pixel_stores``, networks alone are judged.
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
        If a store has no truth, weights are missing or damaged, nothing may be judged, or two of the baselines' stores
        have a chip in common.
    """
    folders = name_methods([folder or config.inference.weights for folder in weights])
    learned = open_distinct(baselines)
    chosen, pixels = _choose(store, folders, part), None
    if pixel_stores is not None:
        pixels = _choose(pixel_stores[1], folders, "all")
    truth = chosen.chips
    notes = [f"{Path(store).name}: {len(truth)} chips with truth ({part}).", *chosen.notes]
    methods = {name: judge_weights(client, truth, config, folder, stages) for name, folder in folders.items()}
    there = {} if pixels is None else {
        name: judge_weights(client, pixels.chips, config, folder, stages) for name, folder in folders.items()
    }  # fmt: skip
    measured: list[Cost] = []
    if costs:
        measured, why = _network_costs(folders, config)
        notes += why
    if learned:
        everything = [truth] if pixels is None else [truth, pixels.chips]
        trees, note, cost = try_trees(client, learned, everything, config, stages, out if costs else None)
        for place, judged in zip((methods, there), trees, strict=False):
            place[TREES] = judged
        notes.append(note)
        measured += cost
    others: list[Comparison] = []
    if pixel_stores is not None and pixels is not None:
        found, note, cost = try_extraction(
            client, Truth.open(pixel_stores[0]), pixels.chips, least_pixels, stages, costs, config.execution, out
        )
        measured += cost
        title = f"On chips that keep their pixels: {Path(pixel_stores[1]).stem}, {len(pixels.chips)} chips"
        others.append(Comparison(title, there | found, [*pixels.notes, note]))
    elif learned:
        found, note, cost = try_extraction(
            client, learned[0], truth, least_pixels, stages, costs, config.execution, out
        )
        methods |= found
        measured += cost
        notes.append(note)
    principal = next(iter(methods.values()))
    return write_judgement(
        methods, out, title=f"{Path(store).stem}: {part}", notes=notes, maps=_maps(truth, principal),
        logs=_logs(folders), costs=measured, machine=describe_machine(), others=others,
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
    places, mean = near_edge(judged), BLOCK_STATS.index("mean")
    return {place: truth.store.read_chips("block_stats", truth.rows[[place]])[0, mean] for place in places}


def _logs(folders: dict[str, Path | None]) -> dict[str, Path]:
    return {
        f"{name}: {log.parent.relative_to(folder)}" if log.parent != folder else name: log
        for name, folder in folders.items()
        if folder
        for log in sorted(folder.glob("**/log.csv"))
    }


def _network_costs(folders: dict[str, Path | None], config: Config) -> tuple[list[Cost], list[str]]:
    """What the networks cost, and what could not be measured."""
    import torch

    from csst_dask.inference.predictor import CPU_BATCH, MAX_BATCH

    batches = {"cpu": CPU_BATCH} | ({"cuda": MAX_BATCH} if torch.cuda.is_available() else {})
    costs, notes = [], []
    for name, folder in folders.items():
        for task in TASKS:
            for device, usual in batches.items():
                batch = usual if config.inference.batch == "auto" else config.inference.batch
                path = identify_pair(folder)[0] / f"{task}.safetensors"
                found, why = try_cost(measure_network, name, path, batch, device)
                costs += found
                notes += why
    return costs, notes


def judge_weights(
    client: Client, truth: Truth, config: Config, folder: Path | None, stages: Stages | None = None
) -> Judged:
    """Predictions of a pair of networks beside the truth."""
    pair = choose_pair(client, config, folder=folder)
    work = Work(truth.path, truth.store.rows, config.model_copy(update={"inputs": ()}), pair=pair)
    blocks = divide(pair.batch, known=scalars_of(truth.store, truth.rows.tolist()))
    tasks = [replace(block_task(block, work), key=np.array(block.rows)) for block in blocks]
    found = collect(client, "evaluate", predict_rows, tasks, truth.rows, stages, config.execution)
    valid = np.ones(len(truth), bool)
    routes, _ = route(
        found["class_probability"][:, CROWDED], found["bright_count"], found["confidence"], valid,
        found["out_of_distribution"], config.routing,
    )  # fmt: skip
    return truth.judge(found, routes)


def predict_rows(block: Block, work: Work, limit: Limit) -> dict[str, NDArray]:
    """On a worker: predictions of the chips of a block, in the order of their rows."""
    result = process_block(block, work, limit)
    for error in result.errors.values():
        raise error
    found = [result.predictions[row] for row in block.rows]
    values = {name: np.stack([one[name] for one in found]) for name in found[0]}
    return values | {"confidence": values["class_probability"].max(axis=1)}
