"""Bleeding and defects of frames on a torch device, by the functions that work on the host's frames."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csst_dask.simulation import detector as ccd
from csst_dask.simulation.shot import Shot


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _within_reach(rows, columns, values, full_well, ny, out):
    """List the pixels that charge may reach: (column, row) pairs; returns their number, which may exceed the list.

    ``rows``, ``columns`` and ``values`` are the pixels that are more than half full, by columns. On its way along a
    column charge passes those, and each other pixel takes half a full well or more before charge passes it.
    """
    n, a = 0, 0
    while a < rows.shape[0]:
        b, excess = a, 0.0
        while b < rows.shape[0] and columns[b] == columns[a]:
            excess += max(np.float64(values[b]) - full_well, 0.0)
            b += 1
        reach, free = int(excess / (0.5 * full_well)) + (b - a) + 2, 0
        for k in range(a, b):
            if values[k] >= full_well:
                for y in range(max(rows[k] - reach, free), min(rows[k] + reach + 1, ny)):
                    if n < out.shape[0]:
                        out[n, 0], out[n, 1] = columns[a], y
                    n += 1
                    free = y + 1
        a = b
    return n


class Bleeding:
    """Lets charge bleed on the host: few pixels hold or receive any, and only these are moved there and back.

    Parameters
    ----------
    shape : (int, int)
        Frame, pixel.
    """

    def __init__(self, shape: tuple[int, int]):
        # blank pages cost nothing before they are touched; by columns, along which charge runs
        self._light, self._flags = np.zeros(shape[::-1], np.float32), np.zeros(shape[::-1], np.uint16)

    def run(self, image: Tensor, flags: Tensor, shot: Shot) -> None:
        """Let charge above the full well run along its column, in place.

        Parameters
        ----------
        image : (ny, nx) float32 tensor
            Electrons above the background.
        flags : (ny, nx) int16 tensor
        shot : Shot
        """
        (star_y, star_x), full_well = shot.saturating, np.float32(shot.room)
        if not star_y.size:
            return
        half_full = torch.nonzero(image.view(-1) > 0.5 * float(full_well))[:, 0]
        values, places = image.view(-1)[half_full].cpu().numpy(), half_full.cpu().numpy()
        if not (values >= full_well).any():
            return
        y, x = self._reached(places, values, full_well, image.shape)
        index = torch.from_numpy(y * image.shape[1] + x).to(image.device)
        self._light[x, y] = image.view(-1)[index].cpu().numpy()
        ccd.bleed(self._light.T, self._flags.T, star_y, star_x, shot.room)
        image.view(-1)[index] = torch.from_numpy(self._light[x, y]).to(image.device)
        flags.view(-1)[index] |= torch.from_numpy(self._flags[x, y].view(np.int16)).to(image.device)
        self._light[x, y], self._flags[x, y] = 0, 0

    @staticmethod
    def _reached(
        places: NDArray[np.int64], values: NDArray[np.float32], full_well: np.float32, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, columns = np.divmod(places, shape[1])
        order = np.argsort(columns.astype(np.uint16), kind="stable")
        found, n = np.empty((0, 2), np.int32), 1
        while n > len(found):
            found = np.empty((n, 2), np.int32)
            n = _within_reach(rows[order], columns[order], values[order], full_well, shape[0], found)
        return found[:n, 1].astype(np.int64), found[:n, 0].astype(np.int64)


def add_defects(image: Tensor, flags: Tensor, shot: Shot) -> None:
    """Add a detector's defects to a frame, in place.

    Parameters
    ----------
    image : (ny, nx) float32 tensor
        Electrons above the background.
    flags : (ny, nx) int16 tensor
    shot : Shot
    """
    rng = ccd.defect_rng(shot.seed, shot.detector)
    pixels, bits = _Pixels(image), _Pixels(flags)
    ccd.add_defects(pixels, bits, shot.model, rng, shot.background, shot.exptime)  # type: ignore[arg-type]


class _Pixels:
    """A tensor that takes the assignments by which `add_defects` works on NumPy arrays."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def __getitem__(self, key: Any) -> _Pixels:
        return _Pixels(self.tensor[self._key(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        parts = key if isinstance(key, tuple) else (key,)
        value = value.tensor if isinstance(value, _Pixels) else value
        if isinstance(parts[0], np.ndarray):
            # of a pixel that is named twice NumPy keeps the last value, a device any
            places = np.asarray(np.ravel_multi_index(parts, self.shape))[::-1]
            kept = places.size - 1 - np.unique(places, return_index=True)[1]
            key = tuple(part[kept] for part in parts)
            if isinstance(value, Tensor):
                value = value[torch.from_numpy(kept).to(value.device)]
        self.tensor[self._key(key)] = value

    def __iadd__(self, other: NDArray) -> _Pixels:
        return _Pixels(self.tensor + torch.from_numpy(other).to(self.tensor.device))

    def __isub__(self, other: float) -> _Pixels:
        return _Pixels(self.tensor - float(other))

    def __imul__(self, other: float) -> _Pixels:
        return _Pixels(self.tensor * float(other))

    def __ior__(self, other: int) -> _Pixels:
        return _Pixels(self.tensor | int(other))

    def _key(self, key: Any) -> Any:
        if isinstance(key, tuple):
            return tuple(self._key(part) for part in key)
        if isinstance(key, np.ndarray):
            return torch.from_numpy(key).to(self.tensor.device)
        return key if isinstance(key, slice) else int(key)
