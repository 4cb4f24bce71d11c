"""Inputs of the chips that every epoch visits, made once and kept in files that all ranks share."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csst_dask.preprocess.context import context_length, make_context
from csst_dask.preprocess.inputs import input_channels, make_inputs
from csst_dask.training.samples import Samples

BLOCK = 32
"""Chips whose inputs are made at a time."""


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
    def fill(folder: Path, samples: Samples, rows: NDArray[np.int64], kind: str) -> None:
        """Make the inputs of some chips, unless the folder holds them already.

        Parameters
        ----------
        folder : Path
            Of this training alone. A folder that is not complete is made anew.
        samples : Samples
        rows : (k,) int array
        kind : str
            Kind of inputs; a chip takes 0.4 MB with four channels.
        """
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            shape = (len(rows), input_channels(kind), *samples.reduced.shape[2:])
            maps = np.lib.format.open_memmap(folder / "maps.npy", "w+", np.float16, shape)
            context = np.empty((len(rows), context_length(kind)), np.float32)
            for start in range(0, len(rows), BLOCK):
                maps[start : start + BLOCK], context[start : start + BLOCK] = make_block(
                    samples, rows[start : start + BLOCK], kind
                )
            maps.flush()
            np.save(folder / "context.npy", context)
            (folder / "whole").touch()

    @classmethod
    def open(cls, folder: Path, samples: Samples, rows: NDArray[np.int64]) -> InputCache:
        """What `fill` makes, once it is whole; another rank may still be at it."""
        while not (folder / "whole").exists():
            time.sleep(0.2)
        place = np.full(len(samples), -1)
        place[rows] = np.arange(len(rows))
        return cls(np.load(folder / "maps.npy", mmap_mode="r"), np.load(folder / "context.npy"), place)

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs of some chips.

        Parameters
        ----------
        rows : (k,) int array
            Rows of the samples that `fill` was given.
        device : torch.device

        Returns
        -------
        maps : (k, channels, iy, ix) float32 tensor
            Channels last.
        context : (k, context) float32 tensor
        """
        place = self.place[rows]
        maps = torch.from_numpy(self.maps[place]).to(device).float()
        context = torch.from_numpy(self.context[place]).to(device)
        return maps.contiguous(memory_format=torch.channels_last), context


def make_block(samples: Samples, rows: NDArray[np.int64], kind: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs (k, channels, iy, ix) and context (k, context) of a few chips, float32."""
    reduced, band = samples.reduced[rows], samples.band[rows]
    scalars = {name: values[rows] for name, values in samples.scalars.items()}
    return make_inputs(kind, reduced, scalars, band), make_context(kind, reduced, scalars, band)
