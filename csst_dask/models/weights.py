"""Trained networks on disk: half-precision safetensors whose header says what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from csst_dask.errors import ConfigError
from csst_dask.models.classifiers import build_classifier
from csst_dask.models.density import build_density_network
from csst_dask.models.files import FORMAT, HEADER, REQUIRED, read_weights
from csst_dask.models.regressor import build_regressor
from csst_dask.outputs import write_atomically

BUILDERS = {"classifier": build_classifier, "regressor": build_regressor}
"""Tasks, and what builds the paper's networks from ``arch`` and ``channels``."""

HALF_MAX = 6.0e4
"""Tensors with larger values stay in single precision."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network that is ready to predict."""

    module: nn.Module
    """Float32, in evaluation mode, channels last."""
    metadata: dict[str, Any]
    """What `save_weights` was given, and ``format``."""
    checksum: str
    """SHA-256 of the file, hexadecimal."""
    task: str
    """``classifier`` or ``regressor``."""
    inputs: str
    """Kind of inputs that it was trained on."""
    bands: tuple[str, ...]
    """Bands that it was trained on."""


def build_network(metadata: Mapping[str, Any]) -> nn.Module:
    """A network with random weights, drawn from torch's global generator.

    Parameters
    ----------
    metadata : mapping
        ``task``, ``arch`` and ``channels``; with ``context`` above 0 a density network, for so many numbers of context
        of which ``histograms`` are bins, else a network of the paper.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ConfigError
        If the architecture is unknown.
    """
    if metadata.get("context"):
        return build_density_network(
            metadata["arch"],
            metadata["channels"],
            metadata["context"],
            metadata["histograms"],
            metadata.get("anchors", 0),
        )
    return BUILDERS[metadata["task"]](metadata["arch"], metadata["channels"])


def round_weights(module: nn.Module) -> None:
    """Round a network to what `save_weights` stores, in place.

    What is measured afterwards is then measured on the very network that a reader loads.

    Parameters
    ----------
    module : torch.nn.Module
        Kernels and matrices are rounded to half precision; vectors (biases, batch normalisation and its
        running statistics) stay as they are: they are small, and a variance can leave the range of a half.
    """
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(_stored(tensor))


def save_weights(module: nn.Module, path: str | Path, metadata: Mapping[str, Any]) -> str:
    """Write a network, so that a reader sees the old file or the whole new one.

    Parameters
    ----------
    module : torch.nn.Module
        Not modified; see `round_weights` for the precision that is kept.
    path : path
        Replaced if it exists; its folder is made.
    metadata : mapping
        Plain values that JSON can hold: `REQUIRED` and whatever else describes the network.

    Returns
    -------
    str
        SHA-256 of the file.

    Raises
    ------
    ConfigError
        If a required entry is missing or the task is unknown.
    """
    missing = [name for name in REQUIRED if name not in metadata]
    if missing:
        raise ConfigError(f"the metadata of {path} lack {', '.join(missing)}; a reader needs them")
    if metadata["task"] not in BUILDERS:
        raise ConfigError(f"unknown task {metadata['task']!r}; expected one of {', '.join(BUILDERS)}")
    header = {HEADER: json.dumps({**metadata, "format": FORMAT}, sort_keys=True)}
    tensors = {name: _stored(t).cpu().contiguous() for name, t in module.state_dict().items()}
    data = save(tensors, metadata=header)  # one entry: the order of several would change from run to run
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def _stored(tensor: Tensor) -> Tensor:
    wide = tensor.ndim < 2 or not tensor.numel() or not tensor.is_floating_point()
    return tensor if wide or not tensor.abs().max() < HALF_MAX else tensor.half()


def load_weights(path: str | Path, task: str | None = None) -> LoadedModel:
    """Read a network.

    Parameters
    ----------
    path : path
        A file that `save_weights` wrote.
    task : str, optional
        What it must be for.

    Returns
    -------
    LoadedModel

    Raises
    ------
    ConfigError
        If the file is missing, damaged, of another format or for another task.
    """
    path = Path(path)
    data, metadata, checksum = read_weights(path, task)
    try:
        with torch.random.fork_rng(devices=[]):  # random weights that are replaced at once
            module = build_network(metadata)
        module.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in load(data).items()})
    except ConfigError as error:
        raise ConfigError(f"{path} holds a network that this release cannot build: {error}") from None
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"the weights {path} are damaged: {error}; fetch or train them again") from None
    module = module.eval().to(memory_format=torch.channels_last)
    return LoadedModel(module, metadata, checksum, metadata["task"], metadata["inputs"], tuple(metadata["bands"]))
