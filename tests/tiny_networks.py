"""Networks that nobody trained, which answer at once and tell every chip something else."""

from pathlib import Path

import numpy as np
import torch

from csst_dask.models import build_network, residual_quantiles, save_weights
from csst_dask.models.calibrate import COUNT_QUANTILES
from csst_dask.preprocess.inputs import anchor_count, context_length, histogram_length
from csst_dask.schema import BANDS, MAGNITUDES


def save_perceptron(task: str, folder: Path, limit: float = np.inf, level: float | None = None, bands=BANDS) -> None:
    """Write a density network that looks at the context alone.

    ``limit`` is how far from nothing a chip may lie to be like those that it learned from, ``level`` about the
    logarithm of the stars that it finds.
    """
    network = {"context": context_length("context"), "histograms": histogram_length("context")}
    metadata = {"task": task, "arch": "perceptron", "inputs": "context", "channels": 0, "bands": list(bands), **network}
    torch.manual_seed(1)
    module = build_network(metadata)
    module.standardise(torch.rand(64, network["context"]))
    if level is not None:
        with torch.no_grad():
            module.context_head[-1].bias[[0, 2]] = torch.tensor([level, level - 1])  # of all, and of bright ones
    quantiles = residual_quantiles(np.linspace(-0.2, 0.3, 101), np.zeros(101), scale=np.ones(101))
    extra = {"ood_limit": limit, "residual_quantiles": quantiles, "star_quantiles": quantiles}
    save_weights(module, folder / f"{task}.safetensors", metadata | extra)


def save_correction(task: str, folder: Path, bands=BANDS, limit: float = np.inf, **more) -> None:
    """Write a network that corrects direct counts, at random but within its bounds."""
    anchors, kind = anchor_count("counts"), "counts"
    network = {"context": context_length(kind), "histograms": histogram_length(kind), "anchors": anchors}
    metadata = {"task": task, "arch": "perceptron", "inputs": kind, "channels": 0, "bands": list(bands), **network}
    torch.manual_seed(2)
    module = build_network(metadata)
    module.standardise(torch.rand(64, network["context"]))
    quantiles = residual_quantiles(np.linspace(-0.2, 0.3, 101), np.zeros(101), scale=np.ones(101))
    extra = {"ood_limit": limit, "residual_quantiles": quantiles, "star_quantiles": quantiles}
    extra |= {COUNT_QUANTILES: [quantiles] * len(MAGNITUDES)} | more
    save_weights(module, folder / f"{task}.safetensors", metadata | extra)
