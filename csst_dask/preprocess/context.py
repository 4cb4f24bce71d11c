"""What a network is told besides the maps: band, exposure time, statistics and joint histograms of the maps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.preprocess.blocks import scaled_blocks
from csst_dask.preprocess.histograms import ANSCOMBE, EDGES, HISTOGRAMS, block_histograms
from csst_dask.preprocess.inputs import Bands, input_channels
from csst_dask.preprocess.scaling import (
    SOFTENING,
    TYPICAL_LOG_SIGMA,
    checked_maps,
    log_spread,
    robust_scale,
    scalar_planes,
)
from csst_dask.preprocess.statistics import STATISTICS, block_statistics
from csst_dask.schema import BANDS

WITH_CONTEXT = ("maps", "context")
"""Kinds of inputs that come with context."""

USUAL_EXPTIME = 150.0
"""s"""

CONTEXT = (*(f"band_{band}" for band in BANDS), "log_exptime", *STATISTICS, *HISTOGRAMS)
"""Names of the numbers of the context; the histograms come last."""


@cache
def context_definition() -> str:
    """SHA-256 of what the numbers are; weights hold for the context that they learned from."""
    scales = USUAL_EXPTIME, SOFTENING, TYPICAL_LOG_SIGMA, ANSCOMBE
    return hashlib.sha256(json.dumps([CONTEXT, EDGES, scales]).encode()).hexdigest()


def context_length(kind: str) -> int:
    """Numbers of the context of a kind of inputs; 0 for one that has none."""
    input_channels(kind)
    return len(CONTEXT) if kind in WITH_CONTEXT else 0


def histogram_length(kind: str) -> int:
    """How many of these, the last ones, are bins of joint histograms."""
    return len(HISTOGRAMS) if context_length(kind) else 0


def make_context(
    kind: str, reduced: NDArray[np.float32], scalars: Mapping[str, ArrayLike], band: Bands
) -> NDArray[np.float32]:
    """Context of a block of chips.

    Parameters
    ----------
    kind, reduced, scalars, band
        As for `csst_dask.preprocess.inputs.make_inputs`; ``exptime`` (s) stands for the usual one where it is missing.

    Returns
    -------
    (n, context) float32 array
        `CONTEXT` of each chip, finite.
    """
    out = np.zeros((len(reduced), context_length(kind)), np.float32)
    if not out.size:
        return out
    exptime = np.asarray(scalars.get("exptime", np.full(len(out), USUAL_EXPTIME)), np.float64)
    known = np.isfinite(exptime) & (exptime > 0)
    for column, name in enumerate(BANDS):
        out[:, column] = [b == name for b in band]
    out[:, len(BANDS)] = np.log10(np.where(known, exptime, USUAL_EXPTIME) / USUAL_EXPTIME)
    planes = scalar_planes(scalars, len(out))
    with np.errstate(all="ignore"):
        sky, sigma = robust_scale(planes)
        spread = log_spread(planes, sigma)
        for chip, blocks in enumerate(scaled_blocks(checked_maps(reduced), sky, sigma)):
            statistics = block_statistics(blocks, float(sigma[chip, 0, 0]), float(spread[chip, 0, 0]))
            out[chip, len(BANDS) + 1 : -len(HISTOGRAMS)] = statistics
            out[chip, -len(HISTOGRAMS) :] = block_histograms(blocks)
    return out
