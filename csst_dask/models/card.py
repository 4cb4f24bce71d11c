"""The model card: what a reader must know before using a set of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csst_dask.outputs import write_atomically


def write_model_card(
    path: str | Path,
    metadata: Mapping[str, Any],
    *,
    network: str,
    data: str,
    split: str,
    training: str,
    budget: str,
    metrics: Mapping[str, tuple[float, float]],
    command: str,
    limits: str,
    checksum: str = "",
) -> None:
    """Write a model card in Markdown.

    Parameters
    ----------
    path : path
        Replaced if it exists.
    metadata : mapping
        Of the weights: ``task``, ``arch`` and ``bands`` are shown.
    network, data, split, training, budget : str
        Architecture and what its weights were at first; what it learned from; how the chips were divided; recipe and
        stages; what it took. Markdown.
    metrics : mapping of str to (value, standard error)
        On chips of fields that it has not seen.
    command : str
        What trains it again.
    limits : str
        Where it should not be trusted; sentences.
    checksum : str
        SHA-256 of the weights.
    """
    rows = [f"| {name} | {value:.4g} | {error:.2g} |" for name, (value, error) in metrics.items()]
    bands = ", ".join(metadata["bands"])
    lines = [
        f"# {str(metadata['task']).capitalize()} ({metadata['arch']})",
        "",
        f"Bands {bands}.",
        *([f"SHA-256 `{checksum}`."] if checksum else []),
        *["", "## Network", "", network],
        *["", "## Data", "", data, "", "## Split", "", split],
        *["", "## Training", "", training, "", "## Budget", "", budget],
        *["", "## On the test chips", "", "| metric | value | standard error |", "|---|---|---|", *rows],
        *["", "## Limits", "", limits],
        *["", "## Train it again", "", *(f"    {line}" for line in command.splitlines()), ""],
    ]
    write_atomically(path, "\n".join(lines).encode())
