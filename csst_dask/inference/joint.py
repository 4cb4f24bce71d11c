"""One estimate of a chip's stars from all chips of its exposure.

The detectors of one exposure look at neighbouring sky in several bands. Their true counts are nearly alike, the errors
of their predictions nearly independent, and far smaller in some bands than in others: so a chip can borrow from its
neighbours. This is the best linear unbiased prediction of a random effect [1]_ about an unknown mean; generalised least
squares with independent errors, since learning how those of different bands go together made it worse.

References
----------
.. [1] Robinson (1991), That BLUP is a good thing, Statistical Science 6, 15.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ConfigError

LEVELS = (0.2, 1.0, 2.0, 3.0, 4.0, 5.0)
"""Edges between levels of log10(1 + stars), dex: how far neighbouring chips differ depends on their stars."""

LEAST = 20
"""Numbers that a scatter of a band or level is learned from; with fewer it is that of all."""

FLOOR = 1e-3
"""Least scatter, dex: counts are whole numbers, and no prediction is exact."""


@dataclass(frozen=True, eq=False)
class JointModel:
    """What was learned from chips with truth."""

    error: Mapping[str, float]
    """Band -> standard deviation of predicted minus true, in units of the chips' own predicted uncertainty."""
    other_bands: float
    """The same of all bands together, for those that were not seen."""
    truth: NDArray[np.float64]
    """(7,) standard deviation of the true counts of one exposure, dex, by level; see `LEVELS`."""


TYPICAL = JointModel({}, 0.7, np.array([0.05, 0.25, 0.2, 0.05, 0.05, 0.06, 0.06]))
"""For chips without truth, in units of half the 68 % interval: as simulated skies and the shipped networks are. A chip
errs by less than its interval says, which is one for all bands and so for the worst of them."""


def learn_joint(
    truth: ArrayLike, predicted: ArrayLike, scale: ArrayLike, band: ArrayLike, exposure: ArrayLike
) -> JointModel:
    """Learn how far predictions are off, and how far neighbouring chips differ.

    Parameters
    ----------
    truth, predicted : (n,) array_like
        log10(1 + stars), dex.
    scale : (n,) array_like
        Uncertainty of each prediction, dex, on any common scale.
    band, exposure : (n,) array_like of str
        What belongs to one exposure borrows from each other.

    Returns
    -------
    JointModel

    Raises
    ------
    ConfigError
        If fewer than `LEAST` chips can be used, or fewer pairs of chips share an exposure.
    """
    t, y, s, group, used = _columns(predicted, scale, exposure, truth)
    bands = np.asarray(band).astype(str)[used]
    ratio = (y - t) / s
    one, other = _pairs(group)
    if len(t) < LEAST or len(one) < LEAST:
        raise ConfigError(
            f"found {len(t)} chips with truth and uncertainty, {len(one)} pairs of them in one exposure; expected at "
            f"least {LEAST} of both: give a store with several detectors an exposure"
        )
    apart, level = (t[one] - t[other]) / np.sqrt(2), np.digitize(_medians(y, group), LEVELS)[group[one]]
    by_level = [apart[level == k] for k in range(len(LEVELS) + 1)]
    by_band = {name: ratio[bands == name] for name in np.unique(bands).tolist()}
    return JointModel(
        {name: _scatter(some if len(some) >= LEAST else ratio) for name, some in by_band.items()},
        _scatter(ratio),
        np.array([max(_scatter(some if len(some) >= LEAST else apart), FLOOR) for some in by_level]),
    )


def combine(
    model: JointModel, predicted: ArrayLike, scale: ArrayLike, band: ArrayLike, exposure: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimate the stars of every chip from all chips of its exposure.

    Parameters
    ----------
    model : JointModel
    predicted, scale, band, exposure : (n,) array_like
        As for `learn_joint`.

    Returns
    -------
    estimate, error : (n,) float64 arrays
        log10(1 + stars), at least 0, and its standard error, dex; NaN where the prediction or its uncertainty is not
        finite or the uncertainty not positive. A chip alone in its exposure keeps its prediction.
    """
    _, y, s, group, used = _columns(predicted, scale, exposure)
    names = np.asarray(band).astype(str)[used].tolist()
    noise = (s * np.array([model.error.get(name, model.other_bands) for name in names])) ** 2
    apart = model.truth[np.digitize(_medians(y, group), LEVELS)][group] ** 2
    total = apart + noise
    weight = np.bincount(group, 1 / total)[group]
    mean = np.bincount(group, y / total)[group] / weight
    own = apart / total
    estimate, error = np.full((2, len(used)), np.nan)
    estimate[used] = np.maximum(mean + own * (y - mean), 0)
    # what the neighbours leave open if their mean is known, and that it is not
    error[used] = np.sqrt(own * noise + (1 - own) ** 2 / weight)
    return estimate, error


def _columns(
    predicted: ArrayLike, scale: ArrayLike, exposure: ArrayLike, truth: ArrayLike | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Truth, prediction, scale and number of the exposure of the chips that can be used, and which these are."""
    y, s = np.asarray(predicted, np.float64), np.asarray(scale, np.float64)
    t = y if truth is None else np.asarray(truth, np.float64)
    used = np.isfinite(t) & np.isfinite(y) & np.isfinite(s) & (s > 0)
    group = np.unique(np.asarray(exposure).astype(str)[used], return_inverse=True)[1]
    return t[used], y[used], np.maximum(s[used], FLOOR), group.astype(np.int64), used


def _pairs(group: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of both chips of every pair within a group."""
    order = np.argsort(group, kind="stable")
    ends = np.flatnonzero(np.diff(group[order])) + 1
    found = [some[np.array(np.triu_indices(len(some), 1))] for some in np.split(order, ends)]
    one, other = np.concatenate(found, axis=1)
    return one, other


def _medians(values: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Median of every group."""
    order = np.lexsort([values, group])
    size = np.bincount(group)
    first = np.cumsum(size) - size
    low, high = values[order[first + (size - 1) // 2]], values[order[first + size // 2]]
    return (low + high) / 2


def _scatter(values: NDArray[np.float64]) -> float:
    """Root mean square, with what is beyond three times the 68th percentile of the sizes cut back to that."""
    size = np.abs(values)
    return float(np.sqrt(np.mean(np.minimum(size, 3 * np.quantile(size, 0.6827)) ** 2)))
