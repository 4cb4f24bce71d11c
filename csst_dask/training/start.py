"""Weights that a training goes on from: shipped ones on new chips, such as those of the commissioning of a camera."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csst_dask.errors import ConfigError
from csst_dask.models.weights import LoadedModel, load_weights
from csst_dask.preprocess.inputs import context_definition

NETWORK = ("task", "arch", "inputs", "channels", "context", "histograms", "anchors")
"""Entries of the metadata that say what network it is."""


def start_file(start: Path, task: str) -> Path:
    """The file of a task's weights: the path itself, or of that name in a folder."""
    return start / f"{task}.safetensors" if start.is_dir() else start


def load_start(start: Path, task: str) -> LoadedModel:
    """Read weights that a training is to go on from.

    Parameters
    ----------
    start : Path
        A file, or a folder with ``<task>.safetensors``.
    task : str

    Returns
    -------
    LoadedModel

    Raises
    ------
    ConfigError
        If there are none, or they are for another task, or know their inputs by another definition.
    """
    path = start_file(start, task)
    found = load_weights(path, task)
    definition = context_definition(found.inputs)
    if found.metadata.get("context_sha256", definition) != definition:
        raise ConfigError(
            f"{path} learned from numbers that are defined otherwise in this release: go on from weights of this one"
        )
    return found


def network_of(start: LoadedModel) -> dict[str, Any]:
    """What `csst_dask.models.build_network` builds the network of the weights from."""
    return {name: start.metadata[name] for name in NETWORK if name in start.metadata}
