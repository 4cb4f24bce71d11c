"""Trained networks on disk: half-precision safetensors whose header says what they are."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
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
from csst_dask.models.regressor import build_regressor

FORMAT = "csst_dask.weights/1"
"""Format and version, in every file's header."""

HEADER = "csst_dask"
"""Entry of the safetensors header that holds all metadata, as JSON."""

BUILDERS = {"classifier": build_classifier, "regressor": build_regressor}
"""Tasks, and what builds their networks from ``arch`` and ``channels``."""

REQUIRED = ("task", "arch", "channels", "inputs", "bands")
"""Metadata without which a network cannot be rebuilt and fed."""

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

    @property
    def task(self) -> str:
        """``classifier`` or ``regressor``."""
        return self.metadata["task"]

    @property
    def inputs(self) -> str:
        """Kind of inputs that it was trained on."""
        return self.metadata["inputs"]

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands that it was trained on."""
        return tuple(self.metadata["bands"])


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
    wide = tensor.ndim < 2 or not tensor.is_floating_point()
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
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the weights {path}: {error.strerror}; train a network or name another folder"
        ) from None
    metadata = _read_header(path, data)
    if task is not None and metadata["task"] != task:
        raise ConfigError(f"{path} holds a {metadata['task']}; expected a {task}: name another file")
    try:
        module = BUILDERS[metadata["task"]](metadata["arch"], metadata["channels"])
        module.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in load(data).items()})
    except ConfigError as error:
        raise ConfigError(f"{path} holds a network that this release cannot build: {error}") from None
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"the weights {path} are damaged: {error}; fetch or train them again") from None
    module = module.eval().to(memory_format=torch.channels_last)
    return LoadedModel(module, metadata, hashlib.sha256(data).hexdigest())


def _read_header(path: Path, data: bytes) -> dict[str, Any]:
    """Header of a safetensors file: its length as 8 bytes (little endian), then JSON."""
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = dict(json.loads(json.loads(data[8 : 8 + size])["__metadata__"][HEADER]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{path} is not a weights file of this package (no readable header); expected {FORMAT}: "
            "fetch or train it again"
        ) from None
    if metadata.get("format") != FORMAT:
        raise ConfigError(
            f"{path} has the format {metadata.get('format')!r}; expected {FORMAT!r}: "
            "use the release that wrote it, or train it again"
        )
    missing = [name for name in REQUIRED if name not in metadata]
    if missing or metadata["task"] not in BUILDERS:
        found = f"lacks {', '.join(missing)}" if missing else f"is for the task {metadata['task']!r}"
        raise ConfigError(f"{path} {found}; expected a task of {', '.join(BUILDERS)}: train it again")
    return metadata


def weights_folder(path: str | Path | None = None) -> Path:
    """Folder of the weights to use.

    Parameters
    ----------
    path : path, optional
        By default the folder that ships with the package.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        If there is no such folder.
    """
    folder = Path(path) if path is not None else Path(__file__).parents[1] / "weights"
    if not folder.is_dir():
        raise ConfigError(
            f"there is no weights folder {folder}; expected one with classifier.safetensors and "
            "regressor.safetensors: check the path or train them with `csst-dask train`"
        )
    return folder


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file under a passing name beside it, then rename.

    Parameters
    ----------
    path : path
        Replaced if it exists; its folder is made.
    data : bytes
        Whole content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with passing.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        passing.replace(path)
    finally:
        passing.unlink(missing_ok=True)
