"""What follows the last epoch: calibrate, measure on unseen fields, write weights and model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from csst_dask.errors import ConfigError
from csst_dask.metrics import accuracy, bootstrap_error, dex_errors, macro_f1
from csst_dask.models import load_weights, residual_quantiles, round_weights, save_weights, write_model_card
from csst_dask.models.calibrate import COUNT_QUANTILES, QUANTILES, best_temperature
from csst_dask.models.density import DensityNetwork, ask, class_log_chance
from csst_dask.preprocess.inputs import context_definition
from csst_dask.schema import MAGNITUDES
from csst_dask.training.cache import BLOCK, make_block
from csst_dask.training.describe import (
    describe_architecture,
    describe_budget,
    describe_command,
    describe_data,
    describe_split,
    describe_training,
)
from csst_dask.training.record import record_split
from csst_dask.training.run import HOW, Run

CALIBRATED = ("ood_limit", "temperature", *QUANTILES.values(), COUNT_QUANTILES)
"""Entries of the metadata that validation chips give."""

ENOUGH = 39
"""Validation chips from which on intervals of all levels have ends."""

USUAL = 0.995
"""Share of the validation chips that do not count as unlike the training chips."""

SCORES = {
    "classifier": {"accuracy": accuracy, "macro_f1": macro_f1},
    "regressor": {
        "mae_dex": lambda truth, predicted: dex_errors(truth, predicted).mae,
        "rmse_dex": lambda truth, predicted: dex_errors(truth, predicted).rmse,
        "r2": lambda truth, predicted: dex_errors(truth, predicted).r2,
    },
}
"""Scores that are reported for each task."""

_SIMULATED = (
    "Learned from simulated images: sky, galaxies, point spread function and star counts of real images can "
    "differ. Bands other than those above are extrapolation. "
)
LIMITS = {
    "classifier": _SIMULATED + "Chips near a class edge are often given the neighbouring class.",
    "regressor": _SIMULATED
    + "Intervals are split-conformal: they assume that new chips resemble the validation chips. "
    "Not meant for density class 5.",
}
"""What the model card warns of."""


@dataclass(frozen=True)
class FitResult:
    """What a training came to."""

    weights: Path
    card: Path
    epochs: int
    """Epochs that were run."""
    best_epoch: int
    """From 1; the weights are those of this epoch."""
    metrics: dict[str, tuple[float, float]]
    """Score -> (value, standard error by drawing fields) on the test chips."""
    warnings: tuple[str, ...] = ()
    """What a user should know of the network."""

    @classmethod
    def from_folder(cls, out: Path, task: str) -> FitResult:
        """Result of a finished training.

        Parameters
        ----------
        out : Path
        task : str

        Returns
        -------
        FitResult

        Raises
        ------
        ConfigError
            If the weights are gone or damaged.
        """
        if not (out / f"{task}.safetensors").exists():
            raise ConfigError(
                f"{out} holds a finished training of the {task} without {task}.safetensors; put the file back, or "
                "delete checkpoint.pt there to train anew"
            )
        metadata = load_weights(out / f"{task}.safetensors", task).metadata
        training = metadata["training"]
        metrics = {name: (_number(value), _number(error)) for name, (value, error) in metadata["metrics"].items()}
        return cls(
            out / f"{task}.safetensors",
            out / f"{task}.md",
            training["epochs"],
            training["best_epoch"],
            metrics,
            _warnings(metadata),
        )


def finish(
    run: Run,
    module: nn.Module,
    device: torch.device,
    history: list[dict[str, float]],
    out: Path,
    data: str = "",
    command: str = "",
    hardware: str = "",
    parts: int = 1,
) -> FitResult:
    """Round a trained network to what is stored, calibrate and measure it, and write it with its model card.

    Parameters
    ----------
    run : Run
        Its validation chips calibrate, its test chips give the scores.
    module : torch.nn.Module
        Trained; its weights are rounded in place.
    device : torch.device
        Where it is.
    history : list of dict
        One row an epoch, with ``validation_loss`` and ``seconds``.
    out : Path
        Folder for ``<task>.safetensors`` and ``<task>.md``.
    data, command, hardware : str
        For the model card: where the chips come from, how to repeat this, and what it ran on.
    parts : int
        Micro-batches of a step.

    Returns
    -------
    FitResult
    """
    round_weights(module)
    name, losses = run.task.name, [epoch["validation_loss"] for epoch in history]
    best = len(losses)  # the end of a cosine: likelihoods rise again where scales are too sure, yet errors still fall
    if run.recipe.schedule == "plateau":
        best -= int(np.argmin(losses[::-1]))
    found = {part: predict_rows(run, module, device, getattr(run.split, part)) for part in ("validation", "test")}
    calibration = _calibrate(run, found["validation"])
    metrics = _scores(run, found["test"], calibration.get("temperature", 1.0))
    metadata = _describe(run, metrics, len(history), best, parts) | calibration
    weights, card, warnings = out / f"{name}.safetensors", out / f"{name}.md", _warnings(metadata)
    write_model_card(
        card,
        metadata,
        network=describe_architecture(run, module),
        data=describe_data(run, data),
        split=describe_split(run),
        training=describe_training(run, len(history), best, parts),
        budget=describe_budget(run, len(history), sum(epoch["seconds"] for epoch in history), hardware),
        metrics=metrics,
        command=command or describe_command(run, parts),
        limits=" ".join([LIMITS[name], *warnings]),
        checksum=save_weights(module, weights, metadata),
    )
    return FitResult(weights, card, len(history), best, metrics, warnings)


@torch.inference_mode()
def predict_rows(
    run: Run, module: nn.Module, device: torch.device, rows: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """Answers for some chips, from full-precision inputs.

    Parameters
    ----------
    run : Run
    module : torch.nn.Module
        Put in evaluation mode.
    device : torch.device
        Where it is.
    rows : (n,) int array

    Returns
    -------
    dict of arrays
        The `csst_dask.models.density.Answer`, and ``ood_score`` (n,) where the network tells it.
    """
    module.eval()
    found: dict[str, list[NDArray]] = {}
    for start in range(0, len(rows), BLOCK):
        maps, context = make_block(run.samples, rows[start : start + BLOCK], run.inputs)
        inputs = torch.from_numpy(maps).to(device), torch.from_numpy(context).to(device)
        answer = ask(module, run.network, inputs[0].contiguous(memory_format=torch.channels_last), inputs[1])
        for name, values in answer.items():
            found.setdefault(name, []).append(values.cpu().numpy())
        if isinstance(module, DensityNetwork):
            found.setdefault("ood_score", []).append(module.ood_score(inputs[1]).cpu().numpy())
    return {name: np.concatenate(blocks) for name, blocks in found.items()}


def _scores(run: Run, found: dict[str, NDArray], temperature: float) -> dict[str, tuple[float, float]]:
    rows, seed = run.split.test, run.config.seed
    groups, targets = run.samples.field[rows], run.targets
    truth: NDArray = targets.density_class[rows]
    if run.task.name == "regressor":
        truth = targets.log_bright[rows]
    predicted = _chances(found, temperature).argmax(1) if run.task.name == "classifier" else found["bright"]
    return {
        name: (score(truth, predicted), bootstrap_error(score, truth, predicted, groups=groups, seed=seed))
        for name, score in SCORES[run.task.name].items()
    }


def _calibrate(run: Run, found: dict[str, NDArray]) -> dict[str, Any]:
    """What the validation chips say of probabilities, intervals and of what is unlike the training chips."""
    rows, targets = run.split.validation, run.targets
    known: dict[str, Any] = {}
    before = {} if run.start is None else run.start.metadata
    if before and len(rows) < ENOUGH:  # too few to calibrate with; what was known holds on
        return {name: before[name] for name in CALIBRATED if name in before}
    if "ood_score" in found:
        known["ood_limit"] = max(_usual(found["ood_score"]), before.get("ood_limit", 0.0))
    if run.task.name == "classifier":
        known["temperature"] = best_temperature(partial(_chances, found), targets.density_class[rows])
    for name, truth in (("star", targets.log_star[rows]), ("bright", targets.log_bright[rows])):
        if name in found and (name == "star") == (run.task.name == "classifier"):
            scale = np.exp(found[f"{name}_scale"]) if f"{name}_scale" in found else None
            known[QUANTILES[name]] = residual_quantiles(truth, found[name], scale=scale)
    if "counts" in found and run.task.name == "regressor":
        known[COUNT_QUANTILES] = [_count_quantiles(targets.log_counts[rows], found, k) for k in range(len(MAGNITUDES))]
    return known


def _count_quantiles(truth: NDArray[np.float32], found: dict[str, NDArray], k: int) -> dict[str, Any]:
    """Bounds of the residuals of the counts at one magnitude, from chips that reach it."""
    deep = np.isfinite(truth[:, k])
    return residual_quantiles(truth[deep, k], found["counts"][deep, k], scale=np.exp(found["counts_scale"][deep, k]))


def _warnings(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Intervals that have no end for want of chips to calibrate them with."""
    [found] = [metadata[name] for name in QUANTILES.values() if name in metadata] or [{"levels": {}}]
    levels = sorted(float(level) for level, bounds in found["levels"].items() if None in bounds)
    if not levels:
        return ()
    names, needed = ", ".join(f"{100 * level:g}" for level in levels), ceil(round(2 / (1 - levels[-1]), 6)) - 1
    return (f"Intervals of {names} % have no end: {found['n']} validation chips are too few, {needed} are needed.",)


def _usual(ood_score: NDArray[np.floating]) -> float:
    """What `USUAL` of the chips stay below whose context varies as that of the training chips does."""
    finite = ood_score[np.isfinite(ood_score)]
    if not len(finite):
        raise ConfigError(
            f"all {len(ood_score)} validation chips have a context, such as an exposure time, that no training chip "
            "has, so that chips unlike the training cannot be told; give stores whose fields have these in common"
        )
    return float(np.quantile(finite, USUAL))


def _chances(found: Mapping[str, NDArray], temperature: float) -> NDArray[np.float32]:
    """(n, 6) logarithms of the probabilities of the classes."""
    answer = {key: torch.from_numpy(found[key]) for key in found.keys() & {"logits", "star", "star_scale"}}
    return class_log_chance(answer, temperature).numpy()


def _describe(run: Run, metrics: dict[str, tuple[float, float]], epochs: int, best: int, parts: int) -> dict[str, Any]:
    """Metadata of the weights."""
    bands = set(run.samples.band[run.split.train].tolist())
    before = () if run.start is None else run.start.bands
    found = run.network | {
        "bands": [band for band in dict.fromkeys([*run.config.bands, *before]) if band in bands or band in before],
        "metrics": {name: [_finite(value), _finite(error)] for name, (value, error) in metrics.items()},
        "training": {
            "epochs": epochs,
            "best_epoch": best,
            "chips": {name: len(getattr(run.split, name)) for name in ("train", "validation", "test")},
            "config": json.loads(run.config.model_dump_json(exclude=HOW)) | {"parts": parts},
        },
        "split": record_split(run.samples, run.split, run.config.seed, run.config.split),
    }
    if run.start is not None:
        learned = run.start.metadata.get("training", {}).get("chips", {}).get("train")
        found["start"] = {"sha256": run.start.checksum, "chips": learned}
    return found | ({"context_sha256": context_definition(run.inputs)} if run.network["context"] else {})


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
