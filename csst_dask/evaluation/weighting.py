"""What each chip counts for: as it comes, or so that density classes have the shares of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.evaluation.dataset import PUBLISHED
from csst_dask.schema import N_CLASSES

WEIGHTINGS = ("flat", "published")
"""All chips alike; or true classes in the shares of Lai et al. (2026), Table 2."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of n chips."""

    name: str
    """One of `WEIGHTINGS`."""
    values: NDArray[np.float64]
    """(n,) with mean 1."""
    absent: tuple[int, ...] = ()
    """Classes that have a published share but no chip; the shares of the others are scaled to 1."""

    @property
    def effective(self) -> float:
        """Effective number of chips, (sum w)^2 / sum w^2 [1]_; 0 for no chips.

        References
        ----------
        .. [1] Kish (1965), Survey Sampling, Wiley.
        """
        squares = float((self.values**2).sum())
        return float(self.values.sum() ** 2 / squares) if squares else 0.0

    @property
    def note(self) -> str:
        """What has to be said with a score of these weights."""
        if self.name == "flat":
            return f"flat: each of the {len(self.values):,} chips counts once"
        text = (
            "published: the classes have the shares of the published classification set; "
            f"{self.effective:,.0f} effective chips"
        )
        if self.absent:
            text += f"; without class {', '.join(map(str, self.absent))}, of which there is no chip"
        return text


def weigh(true_class: ArrayLike, name: str) -> Weights:
    """Weights of chips of the given true classes.

    Parameters
    ----------
    true_class : (n,) array_like of int
        0 to 5.
    name : str
        One of `WEIGHTINGS`.

    Returns
    -------
    Weights

    Raises
    ------
    ValueError
        If there is no such weighting.
    """
    classes = np.asarray(true_class, np.int64)
    count = np.bincount(classes, minlength=N_CLASSES)
    factor = class_factors(count, name)
    absent = () if name == "flat" else tuple(np.flatnonzero(count == 0).tolist())
    return Weights(name, factor[classes], absent)


def class_factors(count: ArrayLike, name: str, shares: Sequence[float] = PUBLISHED) -> NDArray[np.float64]:
    """Weight of a chip of each class.

    Parameters
    ----------
    count : (..., 6) array_like
        Chips of each class.
    name : str
        One of `WEIGHTINGS`.
    shares : sequence of 6 float
        Shares that classes get under ``published``, on any scale.

    Returns
    -------
    (..., 6) float64 array
        Weights of mean 1 over the chips; 0 for a class without chips unless ``flat``.

    Raises
    ------
    ValueError
        If there is no such weighting.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f"there is no weighting {name!r}; choose one of {', '.join(WEIGHTINGS)}")
    count = np.asarray(count, np.float64)
    if name == "flat":
        return np.ones_like(count)
    wanted = np.where(count > 0, np.asarray(shares, np.float64), 0)
    total = wanted.sum(axis=-1, keepdims=True)
    wanted = np.divide(wanted, total, out=np.zeros_like(wanted), where=total > 0)
    return wanted * count.sum(axis=-1, keepdims=True) / np.maximum(count, 1e-300)
