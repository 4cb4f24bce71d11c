"""Preprocessed samples as ``.pt`` files, one for each chip, for other tools; and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from csst_dask.errors import ConfigError
from csst_dask.models.files import write_atomically
from csst_dask.preprocess.context import make_context
from csst_dask.preprocess.inputs import make_inputs
from csst_dask.training.samples import Samples

FORMAT = "csst_dask.sample/1"

COLUMNS = ("n_star", "n_bright", "band", "field", "ra", "dec")
"""What every file holds of a chip besides its tensors and scalars."""


def export_samples(samples: Samples, folder: Path, kind: str) -> Iterator[Path]:
    """Write chips as files that `torch.load` reads with ``weights_only=True``.

    Parameters
    ----------
    samples : Samples
    folder : Path
        Receives ``000000.pt`` and so on, in the order of the samples. Files of the same samples that are there stay.
    kind : str
        Kind of network inputs to add.

    Yields
    ------
    Path
        Each file: a dictionary of ``inputs`` (channels, iy, ix) and ``context`` (k,), float32, as the networks take
        them; ``reduced`` (6, iy, ix) float32, e-/s; the scalars by name; `COLUMNS`; ``density_class``; ``kind`` and
        ``format``.
    """
    for row in range(len(samples)):
        path = folder / f"{row:06d}.pt"
        if not path.exists():
            write_atomically(path, _as_bytes(_sample(samples, row, kind)))
        yield path


def _sample(samples: Samples, row: int, kind: str) -> dict:
    reduced, band = samples.reduced[np.array([row])], samples.band[[row]]
    scalars = {name: values[[row]] for name, values in samples.scalars.items()}
    plain = {name: getattr(samples, name)[row].item() for name in COLUMNS}
    return {
        "inputs": torch.from_numpy(make_inputs(kind, reduced, scalars, band)[0]),
        "context": torch.from_numpy(make_context(kind, reduced, scalars, band)[0]),
        "reduced": torch.from_numpy(np.asarray(reduced[0], np.float32)),
        "scalars": {name: values[0].item() for name, values in scalars.items()},
        "density_class": int(samples.density_class[row]),
        "kind": kind,
        "format": FORMAT,
        **plain,
    }


def _as_bytes(sample: dict) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    torch.save(sample, buffer)
    return buffer.getvalue()


class ExportedMaps:
    """Reduced maps that stay in their files until they are asked for."""

    def __init__(self, paths: list[Path], shape: tuple[int, ...]) -> None:
        self.paths, self.shape = paths, (len(paths), *shape)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.stack([_load(self.paths[row])["reduced"].numpy() for row in rows])


def import_samples(folder: Path) -> Samples:
    """Read what `export_samples` wrote.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    Samples
        In the order of the files' names; the maps stay in the files.

    Raises
    ------
    ConfigError
        If there is no such file, or one cannot be read or is of another kind.
    """
    paths = sorted(folder.glob("*.pt"))
    if not paths:
        raise ConfigError(f"{folder} holds no .pt files; export samples first")
    shape = tuple(_load(paths[0])["reduced"].shape)
    rows = [_plain(_load(path)) for path in paths]
    scalars = {name: np.array([row["scalars"][name] for row in rows], np.float64) for name in rows[0]["scalars"]}
    columns = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
    return Samples(reduced=ExportedMaps(paths, shape), scalars=scalars, **columns)


def _plain(sample: dict) -> dict:
    return {name: value for name, value in sample.items() if not isinstance(value, torch.Tensor)}


def _load(path: Path) -> dict:
    try:
        sample = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = sample["format"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ConfigError(f"{path} cannot be read as a sample: {error}; export it again") from None
    if found != FORMAT:
        raise ConfigError(f"{path} has the format {found!r}; expected {FORMAT!r}: export it again")
    return sample
