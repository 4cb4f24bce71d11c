"""Augmentation whose draws belong to the sample, not to the batch that it happens to be in."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FLIP_Y, FLIP_X, TRANSPOSE = 1, 2, 4
"""Bits of a symmetry of the square: flips first, then the transposition; the eight of them are all."""


def draw_dihedral(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """One of the eight symmetries of the square for each sample of an epoch.

    Parameters
    ----------
    seed, epoch : int
        The draw of a sample depends on these and its row alone, so neither the order of the samples nor the
        number of processes changes it.
    n : int
        Number of samples.

    Returns
    -------
    (n,) int64 array
        0 to 7, bits `FLIP_Y`, `FLIP_X`, `TRANSPOSE`.
    """
    return np.random.default_rng((seed, epoch, 0)).integers(0, 8, size=n)


def apply_dihedral(maps: Tensor, symmetry: NDArray[np.int64]) -> Tensor:
    """Turn and flip every sample by its own symmetry, all channels alike.

    Parameters
    ----------
    maps : (n, channels, y, x) tensor
        Not modified.
    symmetry : (n,) int array
        From `draw_dihedral`.

    Returns
    -------
    (n, channels, y, x) tensor

    Raises
    ------
    ValueError
        If a transposition is asked of maps that are not square.
    """
    bits = torch.as_tensor(np.asarray(symmetry), device=maps.device)[:, None, None, None]
    if maps.shape[-1] != maps.shape[-2] and bool((bits & TRANSPOSE).any()):
        raise ValueError(f"maps of shape {tuple(maps.shape[-2:])} cannot be transposed in place; use square ones")
    maps = torch.where((bits & FLIP_Y) > 0, maps.flip(-2), maps)
    maps = torch.where((bits & FLIP_X) > 0, maps.flip(-1), maps)
    if maps.shape[-1] == maps.shape[-2]:
        maps = torch.where((bits & TRANSPOSE) > 0, maps.transpose(-1, -2), maps)
    return maps


def draw_jitter(seed: int, epoch: int, n: int, strength: float) -> NDArray[np.float32]:
    """Contrast and brightness of each sample of an epoch.

    Parameters
    ----------
    seed, epoch, n : int
        As for `draw_dihedral`.
    strength : float
        Half width of the two uniform laws. The paper gives no value.

    Returns
    -------
    (n, 2) float32 array
        Contrast around 1 and brightness around 0.
    """
    draws = np.random.default_rng((seed, epoch, 1)).uniform(-strength, strength, size=(n, 2))
    return (draws + np.array([1.0, 0.0])).astype(np.float32)


def apply_jitter(inputs: Tensor, jitter: NDArray[np.float32]) -> Tensor:
    """Change contrast and brightness of the standardised image; the paper's colour jitter.

    Parameters
    ----------
    inputs : (n, 2, y, x) tensor
        Image and mask. Not modified.
    jitter : (n, 2) float32 array
        From `draw_jitter`. Brightness counts in standard deviations and is added where the mask is, so that
        invalid pixels stay at 0.

    Returns
    -------
    (n, 2, y, x) tensor
    """
    contrast, brightness = torch.as_tensor(jitter, device=inputs.device, dtype=inputs.dtype).T[:, :, None, None]
    image, mask = inputs[:, 0], inputs[:, 1]
    return torch.stack([contrast * image + brightness * mask, mask], dim=1)
