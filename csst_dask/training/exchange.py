"""Preprocessed samples as ``.pt`` files, one for each chip, for other tools; and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from csst_dask.errors import ConfigError
from csst_dask.outputs import write_atomically
from csst_dask.preprocess.inputs import input_channels, make_context, make_inputs
from csst_dask.training.samples import COLUMNS, Samples

FORMAT = "csst_dask.sample/3"

INDEX = "samples.json"
"""File beside the samples that says what they are."""


def export_samples(samples: Samples, folder: Path, kind: str) -> Iterator[Path]:
    """Write chips as files that `torch.load` reads with ``weights_only=True``.

    Parameters
    ----------
    samples : Samples
    folder : Path
        Receives ``000000.pt`` and so on, in the order of the samples, and `INDEX`: ``format``, ``kind``,
        ``fingerprint`` and ``samples``, their number. Files of the same export that are there stay.
    kind : str
        Kind of network inputs to add.

    Yields
    ------
    Path
        Each file: a dictionary of ``inputs`` (channels, iy, ix) and ``context`` (k,), float32, as the networks take
        them; ``block_stats`` (6, iy, ix) float32, e-/s; ``scalars`` by name; `COLUMNS`; ``density_class``; ``kind``,
        ``fingerprint`` and ``format``.

    Raises
    ------
    ConfigError
        If the kind is unknown, or the folder holds other samples or another kind of inputs.
    """
    input_channels(kind)
    index = {"format": FORMAT, "kind": kind, "fingerprint": fingerprint(samples, kind), "samples": len(samples)}
    _claim(folder, index)
    for row in range(len(samples)):
        path = folder / f"{row:06d}.pt"
        if not path.exists():
            write_atomically(path, _as_bytes(_sample(samples, row, kind) | {"fingerprint": index["fingerprint"]}))
        yield path


def fingerprint(samples: Samples, kind: str) -> str:
    """SHA-256 of what an export holds: kind of inputs, truth, places and the scalars that follow from all pixels.

    Parameters
    ----------
    samples : Samples
    kind : str

    Returns
    -------
    str
        Hexadecimal.
    """
    digest = hashlib.sha256(f"{FORMAT} {kind} {tuple(samples.block_stats.shape)}".encode())
    columns = {name: getattr(samples, name) for name in COLUMNS} | samples.scalars
    for name, values in sorted(columns.items()):
        plain = "\n".join(values.tolist()).encode() if values.dtype.kind == "U" else values.astype("<f8").tobytes()
        digest.update(f"|{name}|".encode() + plain)
    return digest.hexdigest()


def _claim(folder: Path, index: dict[str, Any]) -> None:
    """Say what the folder holds, unless it says something else."""
    if (folder / INDEX).exists():
        found = _read_index(folder)
        differs = [f"{name} {found[name]!r}, expected {index[name]!r}" for name in index if found[name] != index[name]]
        if differs:
            raise ConfigError(f"{folder} holds another export: {'; '.join(differs)}: choose another folder")
    elif next(folder.glob("*.pt"), None) is not None:
        raise ConfigError(f"{folder} holds .pt files but no {INDEX} that says what they are; choose another folder")
    else:
        write_atomically(folder / INDEX, json.dumps(index, indent=1).encode())


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_bytes())
        return {name: index[name] for name in ("format", "kind", "fingerprint", "samples")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / INDEX} cannot be read as the index of an export: {error}; export to another folder"
        ) from None


def _sample(samples: Samples, row: int, kind: str) -> dict[str, Any]:
    block_stats, band = samples.block_stats[np.array([row])], samples.band[[row]]
    scalars = {name: values[[row]] for name, values in samples.scalars.items()}
    plain = {name: getattr(samples, name)[row].item() for name in COLUMNS}
    return {
        "inputs": torch.from_numpy(make_inputs(kind, block_stats, scalars, band)[0]),
        "context": torch.from_numpy(make_context(kind, block_stats, scalars, band)[0]),
        "block_stats": torch.from_numpy(np.asarray(block_stats[0], np.float32)),
        "scalars": {name: values[0].item() for name, values in scalars.items()},
        "density_class": int(samples.density_class[row]),
        "kind": kind,
        "format": FORMAT,
        **plain,
    }


def _as_bytes(sample: dict[str, Any]) -> bytes:
    buffer = BytesIO()
    torch.save(sample, buffer)
    return buffer.getvalue()


class ExportedMaps:
    """Block statistics that stay in their files until they are asked for."""

    def __init__(self, paths: list[Path], shape: tuple[int, ...]) -> None:
        self.paths, self.shape = paths, (len(paths), *shape)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.stack([_load(self.paths[row])["block_stats"].numpy() for row in rows])


def import_samples(folder: Path) -> Samples:
    """Read what `export_samples` wrote.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    Samples
        All of the export, in its order; the maps stay in the files.

    Raises
    ------
    ConfigError
        If there is no export, or it is not whole, or a file cannot be read or belongs to another export.
    """
    if not (folder / INDEX).exists():
        raise ConfigError(f"{folder} holds no export of samples (no {INDEX}); export samples first, or check the path")
    index = _read_index(folder)
    paths = [folder / f"{row:06d}.pt" for row in range(index["samples"])]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise ConfigError(
            f"{folder} lacks {len(missing)} of {len(paths)} samples, such as {missing[0]}; export again to go on"
        )
    rows = [_plain(path, index["fingerprint"]) for path in paths]
    scalars = {name: np.array([row["scalars"][name] for row in rows], np.float64) for name in rows[0]["scalars"]}
    columns: dict[str, Any] = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
    shape = tuple(_load(paths[0])["block_stats"].shape)
    return Samples(block_stats=ExportedMaps(paths, shape), scalars=scalars, **columns)


def _plain(path: Path, expected: str) -> dict[str, Any]:
    """What a file holds besides tensors."""
    sample = _load(path)
    if sample["fingerprint"] != expected:
        raise ConfigError(f"{path} belongs to another export than {INDEX} beside it; export to another folder")
    return {name: value for name, value in sample.items() if not isinstance(value, torch.Tensor)}


def _load(path: Path) -> dict[str, Any]:
    try:
        sample = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = sample["format"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ConfigError(f"{path} cannot be read as a sample: {error}; delete it and export again") from None
    if found != FORMAT:
        raise ConfigError(f"{path} has the format {found!r}; expected {FORMAT!r}: export to another folder")
    return sample
