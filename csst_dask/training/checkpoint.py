"""One file from which a killed training goes on as if nothing had happened."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from csst_dask.errors import ConfigError
from csst_dask.outputs import write_atomically


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, so that a reader sees the old one or the whole new one.

    Parameters
    ----------
    path : Path
        Replaced if it exists; its folder is made.
    state : dict
        Tensors and plain values only; a copy of it is made in memory.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)  # into a file it hides what the disk says
    write_atomically(path, buffer.getbuffer())


def tidy(path: Path) -> None:
    """Remove what kills have left of checkpoints that were being written at ``path``."""
    for stray in path.parent.glob(f".{path.name}.*"):
        stray.unlink(missing_ok=True)


def load_checkpoint(
    path: Path, expected: Callable[[dict[str, Any]], str], settings: Callable[[], Mapping[str, Any]] = dict
) -> dict[str, Any] | None:
    """Read the checkpoint of this very training.

    Parameters
    ----------
    path : Path
    expected : callable
        Fingerprint of task, settings and data, given what is stored; must equal the one that is stored.
    settings : callable
        Those of this training, asked for to say how they differ from what is stored.

    Returns
    -------
    dict or None
        None if there is no checkpoint yet.

    Raises
    ------
    ConfigError
        If the checkpoint is damaged or belongs to another training.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["fingerprint"]
    except (OSError, MemoryError):  # of the storage, which may come back
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ConfigError(f"the checkpoint {path} is damaged: {error}; delete it to start anew") from None
    if found != expected(state):
        raise ConfigError(
            f"{path.parent} holds another training: {_differences(state.get('settings', {}), settings())}; choose "
            "another folder, or delete it to start anew"
        )
    return state


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Settings that were others, or what else there is."""
    found = [f"{name} was {then[name]}, is {now[name]}" for name in then if name in now and then[name] != now[name]]
    return "; ".join(found) or "its chips, their truth, or what its inputs are made of differ"
