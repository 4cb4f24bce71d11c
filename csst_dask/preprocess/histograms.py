"""Joint histograms of a chip's block maps: how often a block is so bright, so uneven and so peaked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.preprocess import block_kernels as kernels
from csst_dask.preprocess.blocks import MAPS, Blocks, scaled_blocks
from csst_dask.preprocess.scaling import SOFTENING, checked_maps, compressed, robust_scale, scalar_planes
from csst_dask.preprocess.statistics import BLOCKS

EDGES = {
    "mean": (
        -0.57, -0.3, -0.2, -0.12, -0.05, 0.02, 0.1, 0.19,
        0.27, 0.36, 0.48, 0.62, 0.8, 1.0, 1.3, 1.7, 2.1, 2.5, 2.9,
    ),
    "std": (
        -0.022, -0.011, -0.0075, -0.0045, -0.002, 0.0005, 0.0035, 0.007,
        0.013, 0.03, 0.07, 0.15, 0.3, 0.5, 0.8, 1.2, 1.6, 2.1, 2.6,
    ),
    "max": (
        0.276, 0.297, 0.306, 0.314, 0.322, 0.33, 0.34, 0.356,
        0.38, 0.42, 0.48, 0.58, 0.75, 1.0, 1.3, 1.7, 2.1, 2.5, 2.9,
    ),
}  # fmt: skip
"""Edges of the bins of each compressed map (`scaling.compressed`): about the tenths of the blocks of common chips up to
the eighth, then wider and wider where stars are."""

BINS = len(EDGES["mean"]) + 1
"""Bins of each map, the open ones at both ends included."""

PAIRS = (("mean", "std"), ("std", "max"), ("mean", "max"))
"""Maps whose joint histograms are taken."""

ANSCOMBE = 0.375
"""Added to a count before the square root, so that the noise of all bins is alike [1]_.

References
----------
.. [1] Anscombe (1948), Biometrika 35, 246.
"""

HISTOGRAMS = tuple(f"{one}_{i}_{other}_{j}" for one, other in PAIRS for i in range(BINS) for j in range(BINS))
"""Names of the bins, in order."""


def map_histograms(reduced: NDArray[np.float32], scalars: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
    """Joint histograms of block mean, scatter and maximum, in units of the chip's own sky.

    They do not change if the maps are flipped or transposed, nor if all pixels are scaled or shifted. Blocks without a
    valid pixel or with a value that is not finite are left out, and the others stand for them.

    Parameters
    ----------
    reduced : (n, 6, iy, ix) float32 array
        Reduced maps in the order of `schema.CHANNELS`; e-/s, NaN where nothing is valid. Not modified.
    scalars : mapping of str to (n,) array
        `scaling.SCALARS` of each chip; values that are not finite are survived.

    Returns
    -------
    (n, k) float32 array
        Square roots of the counts in the order of `HISTOGRAMS`, as if every chip had `BLOCKS` blocks, plus `ANSCOMBE`.

    Raises
    ------
    ValueError
        If the shapes do not agree or a scalar is missing.
    """
    reduced = checked_maps(reduced)
    planes = scalar_planes(scalars, len(reduced))
    with np.errstate(all="ignore"):
        sky, sigma = robust_scale(planes)
        found = [block_histograms(blocks) for blocks in scaled_blocks(reduced, sky, sigma)]
    return np.array(found, np.float32).reshape(len(reduced), len(HISTOGRAMS))


def block_histograms(blocks: Blocks) -> NDArray[np.float64]:
    """Histograms of one chip.

    Parameters
    ----------
    blocks : Blocks
        Its block maps.

    Returns
    -------
    (k,) float64 array
        As `map_histograms` gives them.
    """
    bins = {}
    for name, values, limits in zip(MAPS, blocks.scaled, _limits(), strict=True):
        bins[name] = np.empty(values.shape, np.uint8)
        kernels.bin_of(values.ravel(), limits, bins[name].ravel())
    counts = np.zeros((len(PAIRS), BINS, BINS), np.int64)
    for (one, other), out in zip(PAIRS, counts, strict=True):
        kernels.joint_counts(bins[one], bins[other], blocks.seen, out)
    return np.sqrt(counts.ravel() * (BLOCKS / max(blocks.count, 1)) + ANSCOMBE)


@cache
def _limits() -> NDArray[np.float32]:
    """(3, bins - 1) largest values of each of `MAPS`, in sky sigmas, that are not above an edge once compressed."""
    edges = np.array([EDGES[name] for name in MAPS])
    guess = np.stack([SOFTENING * np.sinh(3 * edges[0]), 3 * np.sinh(3 * edges[1]), 10.0 ** edges[2]])
    bits = guess.astype(np.float32).view(np.int32)[..., None] + np.arange(-64, 65, dtype=np.int32)
    near: NDArray[np.float32] = np.sort(bits.view(np.float32))
    beyond = np.stack(compressed(*near)) > edges.astype(np.float32)[..., None]
    return np.take_along_axis(near, beyond.argmax(axis=2)[..., None] - 1, axis=2)[..., 0]
