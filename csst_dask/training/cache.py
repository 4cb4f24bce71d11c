"""Inputs of the chips that every epoch visits, made once and kept in files that all ranks share."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csst_dask.preprocess.inputs import WITH_COUNTS, context_length, input_channels, make_context, make_inputs
from csst_dask.schema import BLOCK_STATS
from csst_dask.training.samples import Samples

BLOCK = 32
"""Chips whose inputs are made at a time."""

_OWNER = f"{socket.gethostname().replace('.', '_')}-{os.getpid()}"
"""Names this process among all that share a file system."""


@dataclass(frozen=True, eq=False)
class InputCache:
    """Half-precision inputs in a file; the system keeps in memory what fits."""

    maps: NDArray[np.float16]
    """(rows, channels, iy, ix)."""
    context: NDArray[np.float32]
    """(rows, context)."""
    place: NDArray[np.int64]
    """Row of the samples -> row of ``maps``, -1 where it has none."""

    @staticmethod
    def fill(
        folder: Path,
        samples: Samples,
        rows: NDArray[np.int64],
        kind: str,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the inputs of some chips, unless the folder holds them already.

        Parameters
        ----------
        folder : Path
            Appears when it is complete. Trainings that make it at the same time do not disturb each other.
        samples : Samples
        rows : (k,) int array
        kind : str
            Kind of inputs; a chip takes 0.4 MB with four channels.
        alive : callable
            Called after every block of chips.
        """
        if folder.exists():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(folder)
        passing = folder.with_name(f".{folder.name}.{_OWNER}.{secrets.token_hex(4)}")
        try:
            _write(passing, samples, rows, kind, alive)
            os.replace(passing, folder)
        except OSError as error:
            if not folder.exists():  # else somebody else was faster
                if error.errno and not error.filename:
                    error.filename = str(folder)
                raise
        finally:
            shutil.rmtree(passing, ignore_errors=True)

    @classmethod
    def open(cls, folder: Path, samples: Samples, rows: NDArray[np.int64], patience: float = 0.0) -> InputCache:
        """What `fill` makes; waits for it, since another rank may be at it.

        Parameters
        ----------
        folder : Path
        samples : Samples
        rows : (k,) int array
            As for `fill`.
        patience : float
            Seconds in which whoever makes it must write something.

        Raises
        ------
        TimeoutError
            If nothing was written for so long.
        """
        written, since = _written(folder), time.monotonic()
        while not folder.exists():
            if (now := _written(folder)) != written:
                written, since = now, time.monotonic()
            elif time.monotonic() - since > patience:
                raise TimeoutError(f"the rank that makes the inputs {folder} has written nothing for {patience:g} s")
            time.sleep(0.2)
        place = np.full(len(samples), -1)
        place[rows] = np.arange(len(rows))
        return cls(np.load(folder / "maps.npy", mmap_mode="r"), np.load(folder / "context.npy"), place)

    def batch(
        self, rows: NDArray[np.int64], device: torch.device, *, maps: bool = True
    ) -> tuple[Tensor | None, Tensor]:
        """Inputs of some chips.

        Parameters
        ----------
        rows : (k,) int array
            Rows of the samples that `fill` was given.
        device : torch.device
        maps : bool
            Read them; else None stands for them.

        Returns
        -------
        maps : (k, channels, iy, ix) float32 tensor or None
            Channels last.
        context : (k, context) float32 tensor
        """
        place = self.place[rows]
        context = torch.from_numpy(self.context[place]).to(device)
        if not maps:
            return None, context
        tensor = torch.from_numpy(self.maps[place]).to(device).float()
        return tensor.contiguous(memory_format=torch.channels_last), context


def _write(folder: Path, samples: Samples, rows: NDArray[np.int64], kind: str, alive: Callable[[], None]) -> None:
    folder.mkdir()
    shape = (len(rows), input_channels(kind), *samples.block_stats.shape[2:])
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    context = np.empty((len(rows), context_length(kind)), np.float32)
    with (folder / "maps.npy").open("wb") as file:  # not mapped: a full disk would end the process by SIGBUS
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), BLOCK):
            block = slice(start, start + BLOCK)
            maps, context[block] = make_block(samples, rows[block], kind)
            file.write(maps.astype(np.float16).tobytes())
            alive()
    np.save(folder / "context.npy", context)


def _written(folder: Path) -> dict[str, int]:
    """Size of what is on its way to be a folder."""
    found = {}
    for file in folder.parent.glob(f".{folder.name}.*/*"):
        with suppress(FileNotFoundError):
            found[str(file)] = file.stat().st_size
    return found


def _remove_orphans(folder: Path) -> None:
    """Remove what processes of this machine that were killed have left of a folder."""
    host = _OWNER.rpartition("-")[0]
    for stray in folder.parent.glob(f".{folder.name}.{host}-*"):
        process = int(stray.name.split(".")[-2].rpartition("-")[2])
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            shutil.rmtree(stray, ignore_errors=True)
        except OSError:
            continue


def make_block(samples: Samples, rows: NDArray[np.int64], kind: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs (k, channels, iy, ix) and context (k, context) of a few chips, float32."""
    band = samples.band[rows]
    # what was counted goes without maps, which would take long to read
    none = np.zeros((len(rows), len(BLOCK_STATS), 1, 1), np.float32)
    block_stats = none if kind in WITH_COUNTS else samples.block_stats[rows]
    scalars = {name: values[rows] for name, values in samples.scalars.items()}
    counted = samples.counted(rows) if kind in WITH_COUNTS and samples.counted is not None else None
    return make_inputs(kind, block_stats, scalars, band), make_context(kind, block_stats, scalars, band, counted)
