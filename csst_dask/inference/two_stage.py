"""Reduced maps to predictions: classify every chip, then count the bright stars of all but the crowded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from csst_dask.models.calibrate import INTERVAL_LEVEL, interval
from csst_dask.models.files import weights_folder
from csst_dask.models.weights import LoadedModel, load_weights
from csst_dask.preprocess.inputs import SCALARS, make_inputs
from csst_dask.schema import N_CLASSES

CROWDED = N_CLASSES - 1
"""Class for which the regression is bypassed (paper, section 4.5)."""


@dataclass(frozen=True, eq=False)
class TwoStage:
    """The two networks of the method."""

    classifier: LoadedModel
    regressor: LoadedModel

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of each weights file, by task."""
        return {"classifier": self.classifier.checksum, "regressor": self.regressor.checksum}

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands that both networks have learned from."""
        return tuple(band for band in self.classifier.bands if band in self.regressor.bands)


def load_two_stage(folder: str | Path | None = None, device: str = "cpu") -> TwoStage:
    """Read both networks.

    Parameters
    ----------
    folder : path, optional
        Holds ``classifier.safetensors`` and ``regressor.safetensors``; by default the shipped weights.
    device : str
        Where they go: ``cpu``, ``cuda`` or ``cuda:0``.

    Returns
    -------
    TwoStage

    Raises
    ------
    ConfigError
        If the folder or a file is missing, damaged or of the wrong task, or holds no interval of the level
        that predictions state.
    """
    folder = weights_folder(folder)
    classifier, regressor = (load_weights(folder / f"{task}.safetensors", task) for task in ("classifier", "regressor"))
    interval(np.zeros(1), regressor.metadata, INTERVAL_LEVEL)
    for model in (classifier, regressor):
        model.module.to(device)
    return TwoStage(classifier, regressor)


def predict_batch(
    models: TwoStage,
    reduced: NDArray[np.float32],
    scalars: Mapping[str, ArrayLike],
    band: Sequence[str],
    batch: int,
) -> dict[str, NDArray]:
    """Predict a block of chips.

    Every forward pass has exactly ``batch`` chips, the last one padded with zeros, so that a chip's result
    does not depend on its neighbours or their number. Both networks see the whole block and the counts of
    crowded chips are dropped afterwards: one shape is worth more than the time that leaving them out saves.

    Parameters
    ----------
    models : TwoStage
    reduced : (n, 6, iy, ix) float32 array
        Reduced maps, e-/s. Not modified.
    scalars : mapping of str to (n,) array
        At least `preprocess.inputs.SCALARS`.
    band : sequence of n str
    batch : int
        Chips per forward pass, at least 1.

    Returns
    -------
    dict of arrays
        ``class_probability`` (n, 6) float32; ``density_class`` (n,) int8; ``confidence`` (n,) float32, the
        largest probability; ``log_bright`` (n,) float32, log10(1 + count); ``bright_count``,
        ``bright_lower``, ``bright_upper`` (n,) float32, stars per chip, the bounds at `INTERVAL_LEVEL`; the
        last four are NaN for class 5; ``unlike`` (n,) bool, the band was not learned from.

    Raises
    ------
    ValueError
        If ``batch`` is not positive or the shapes do not agree.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, found {batch}")
    n = len(reduced)
    probability = np.empty((n, N_CLASSES), np.float32)
    log_bright = np.empty(n, np.float32)
    for start in range(0, n, batch):
        part = slice(start, min(start + batch, n))
        some = {name: np.asarray(scalars[name])[part] for name in SCALARS}
        logits, counts = _forward(models, np.asarray(reduced)[part], some, band[part], batch)
        probability[part] = torch.softmax(logits, dim=1).cpu().numpy()[: part.stop - start]
        log_bright[part] = counts.cpu().numpy()[: part.stop - start]
    return _assemble(models, probability, log_bright, band)


@torch.inference_mode()
def _forward(
    models: TwoStage, reduced: NDArray, scalars: dict, band: Sequence[str], batch: int
) -> tuple[Tensor, Tensor]:
    made: dict[str, Tensor] = {}
    outputs = []
    for model in (models.classifier, models.regressor):
        if model.inputs not in made:
            inputs = make_inputs(model.inputs, reduced, scalars, band)
            padded = np.zeros((batch, *inputs.shape[1:]), np.float32)
            padded[: len(inputs)] = inputs
            made[model.inputs] = torch.from_numpy(padded)
        device = next(model.module.parameters()).device
        outputs.append(model.module(made[model.inputs].to(device, memory_format=torch.channels_last)))
    return outputs[0], outputs[1]


def _assemble(models: TwoStage, probability: NDArray, log_bright: NDArray, band: Sequence[str]) -> dict[str, NDArray]:
    classes = probability.argmax(axis=1).astype(np.int8)
    log_bright = np.where(classes == CROWDED, np.float32(np.nan), np.maximum(log_bright, 0))
    lower, upper = interval(log_bright, models.regressor.metadata, INTERVAL_LEVEL)
    return {
        "class_probability": probability,
        "density_class": classes,
        "confidence": probability.max(axis=1, initial=0),
        "log_bright": log_bright,
        "bright_count": _count(log_bright),
        "bright_lower": _count(lower),
        "bright_upper": _count(upper),
        "unlike": ~np.isin(np.asarray(band, dtype=str), models.bands),
    }


def _count(log_count: NDArray) -> NDArray[np.float32]:
    """Stars of log10(1 + n), at least 0; NaN stays NaN."""
    with np.errstate(over="ignore"):
        return np.maximum(10.0 ** log_count.astype(np.float64) - 1, 0).astype(np.float32)
