"""Weights files as bytes: where they are, what their headers say, and whether they are whole. No torch needed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from csst_dask.errors import ConfigError
from csst_dask.models.calibrate import INTERVAL_LEVEL, interval

FORMAT = "csst_dask.weights/2"
"""Format and version, in every file's header."""

HEADER = "csst_dask"
"""Entry of the safetensors header that holds all metadata, as JSON."""

TASKS = ("classifier", "regressor")
"""What a network can be for."""

REQUIRED = ("task", "arch", "channels", "inputs", "bands")
"""Metadata without which a network cannot be rebuilt and fed."""


def read_weights(path: str | Path, task: str | None = None) -> tuple[bytes, dict[str, Any], str]:
    """Read a weights file and check it as far as its header goes.

    Parameters
    ----------
    path : path
        A file that `save_weights` wrote.
    task : str, optional
        What it must be for.

    Returns
    -------
    data : bytes
        The whole file.
    metadata : dict
        What `save_weights` was given, and ``format``.
    checksum : str
        SHA-256, hexadecimal.

    Raises
    ------
    ConfigError
        If the file is missing, truncated, of another format or for another task.
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
    return data, metadata, hashlib.sha256(data).hexdigest()


def identify_pair(folder: str | Path | None = None) -> tuple[Path, dict[str, str]]:
    """Checksums of the two networks of a folder, without building them.

    Parameters
    ----------
    folder : path, optional
        By default the one that ships with the package.

    Returns
    -------
    folder : Path
        From the root.
    checksums : dict of str to str
        SHA-256 by task.

    Raises
    ------
    ConfigError
        If a file is missing, truncated or of the wrong task, or has no interval of the level that predictions state.
    """
    where, checksums = weights_folder(folder).resolve(), {}
    for task in TASKS:
        _, metadata, checksums[task] = read_weights(where / f"{task}.safetensors", task)
        if task == "regressor":
            interval(np.zeros(1), metadata, INTERVAL_LEVEL, scale=np.ones(1))
    return where, checksums


def _read_header(path: Path, data: bytes) -> dict[str, Any]:
    """Header of a safetensors file: its length as 8 bytes (little endian), then JSON."""
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        metadata = dict(json.loads(header.pop("__metadata__")[HEADER]))
        whole = 8 + size + max(tensor["data_offsets"][1] for tensor in header.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{path} is not a weights file of this package (no readable header); expected {FORMAT}: "
            "fetch or train it again"
        ) from None
    if len(data) != whole:
        raise ConfigError(f"the weights {path} are damaged: {len(data)} bytes, expected {whole}; fetch them again")
    if metadata.get("format") != FORMAT:
        raise ConfigError(
            f"{path} has the format {metadata.get('format')!r}; expected {FORMAT!r}: "
            "use the release that wrote it, or train it again"
        )
    missing = [name for name in REQUIRED if name not in metadata]
    if missing or metadata["task"] not in TASKS:
        found = f"lacks {', '.join(missing)}" if missing else f"is for the task {metadata['task']!r}"
        raise ConfigError(f"{path} {found}; expected a task of {', '.join(TASKS)}: train it again")
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
