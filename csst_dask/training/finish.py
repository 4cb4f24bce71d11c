"""What follows the last epoch: calibrate, measure on unseen fields, write weights and model card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from csst_dask.metrics import accuracy, bootstrap_error, dex_errors, macro_f1
from csst_dask.models import load_weights, residual_quantiles, round_weights, save_weights, write_model_card
from csst_dask.preprocess.inputs import input_channels, make_inputs
from csst_dask.schema import N_CLASSES
from csst_dask.training.run import Run

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
        metadata = load_weights(out / f"{task}.safetensors", task).metadata
        training = metadata["training"]
        metrics = {name: (_number(value), _number(error)) for name, (value, error) in metadata["metrics"].items()}
        return cls(
            out / f"{task}.safetensors",
            out / f"{task}.md",
            training["epochs"],
            training["best_epoch"],
            metrics,
        )


def finish(
    run: Run, module: nn.Module, history: list[dict[str, float]], out: Path, data: str = "", command: str = ""
) -> FitResult:
    """Round a trained network to what is stored, measure it, and write it with its model card.

    Parameters
    ----------
    run : Run
        Its validation chips give the intervals, its test chips the scores.
    module : torch.nn.Module
        Trained; its weights are rounded in place.
    history : list of dict
        One row an epoch, with ``validation_loss``.
    out : Path
        Folder for ``<task>.safetensors`` and ``<task>.md``.
    data, command : str
        For the model card.

    Returns
    -------
    FitResult
    """
    round_weights(module)
    name, losses = run.task.name, [epoch["validation_loss"] for epoch in history]
    best = len(losses) - int(np.argmin(losses[::-1]))
    metrics = _scores(run, predict_rows(run, module, run.split.test))
    metadata = _describe(run, metrics, len(history), best)
    if name == "regressor":
        rows = run.split.validation
        metadata["residual_quantiles"] = residual_quantiles(run.targets[rows], predict_rows(run, module, rows))
    weights, card = out / f"{name}.safetensors", out / f"{name}.md"
    write_model_card(
        card,
        metadata,
        data=_describe_data(run, data),
        split=_describe_split(run),
        metrics=metrics,
        command=command
        or f"csst-dask train {name} --recipe {run.config.recipe} --arch {run.arch} --store STORE --out DIR",
        limits=LIMITS[name],
        checksum=save_weights(module, weights, metadata),
    )
    return FitResult(weights, card, len(history), best, metrics)


@torch.inference_mode()
def predict_rows(run: Run, module: nn.Module, rows: NDArray[np.int64]) -> NDArray:
    """Predictions for some chips, from full-precision inputs.

    Parameters
    ----------
    run : Run
    module : torch.nn.Module
        Put in evaluation mode.
    rows : (n,) int array

    Returns
    -------
    (n,) array
        Density class (int64) of a classifier, log10(1 + n_bright) (float32, dex) of a regressor.
    """
    module.eval()
    found, samples, kind = [], run.samples, run.recipe.inputs
    for start in range(0, len(rows), run.config.batch):
        block = rows[start : start + run.config.batch]
        scalars = {name: values[block] for name, values in samples.scalars.items()}
        inputs = torch.from_numpy(make_inputs(kind, samples.reduced[block], scalars, samples.band[block]))
        output = module(inputs.to(run.device).contiguous(memory_format=torch.channels_last))
        found.append((output.argmax(1) if output.ndim == 2 else output).cpu().numpy())
    return np.concatenate(found)


def _scores(run: Run, predicted: NDArray) -> dict[str, tuple[float, float]]:
    rows, seed = run.split.test, run.config.seed
    truth, groups = run.targets[rows], run.samples.field[rows]
    return {
        name: (score(truth, predicted), bootstrap_error(score, truth, predicted, groups=groups, seed=seed))
        for name, score in SCORES[run.task.name].items()
    }


def _describe(run: Run, metrics: dict[str, tuple[float, float]], epochs: int, best: int) -> dict[str, Any]:
    """Metadata of the weights."""
    bands = set(run.samples.band[run.split.train].tolist())
    return {
        "task": run.task.name,
        "arch": run.arch,
        "inputs": run.recipe.inputs,
        "channels": input_channels(run.recipe.inputs),
        "bands": [band for band in run.config.bands if band in bands],
        "metrics": {name: [_finite(value), _finite(error)] for name, (value, error) in metrics.items()},
        "training": {
            "epochs": epochs,
            "best_epoch": best,
            "chips": {name: len(getattr(run.split, name)) for name in ("train", "validation", "test")},
            "config": json.loads(run.config.model_dump_json()),
        },
    }


def _describe_data(run: Run, data: str) -> str:
    rows = np.concatenate([run.split.train, run.split.validation, run.split.test])
    counts = np.bincount(run.samples.density_class[rows], minlength=N_CLASSES)
    shares = ", ".join(f"{label}: {count}" for label, count in enumerate(counts))
    target = "the density class" if run.task.name == "classifier" else "log10(1 + n_bright)"
    text = f"{len(rows)} chips with truth; the target is {target}. Chips of each density class: {shares}."
    return f"{text} {data}" if data else text


def _describe_split(run: Run) -> str:
    parts = [
        f"{len(rows)} chips of {len(np.unique(run.samples.field[rows]))} fields {what}"
        for rows, what in (
            (run.split.train, "to learn from"),
            (run.split.validation, "to choose the epoch and calibrate intervals"),
            (run.split.test, "for the scores below"),
        )
    ]
    return f"By sky field: {'; '.join(parts)}. {_overlap(run)} Seed {run.config.seed}."


def _overlap(run: Run) -> str:
    sets = [set(run.samples.field[rows]) for rows in (run.split.train, run.split.validation, run.split.test)]
    shared = (sets[0] & sets[1]) | (sets[0] & sets[2]) | (sets[1] & sets[2])
    return f"{len(shared)} fields stand in more than one set." if shared else "No field is shared."


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
