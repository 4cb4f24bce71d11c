"""The division of chips into sets: so that these share no patch of sky, or at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from csst_dask.errors import ConfigError
from csst_dask.instrument.focal_plane import unit_vectors
from csst_dask.schema import N_CLASSES

SEPARATION = 1.5
"""Chips of different sets are farther apart than this, deg."""

FRACTIONS = (0.8, 0.1, 0.1)
"""Shares of training, validation and test chips (paper, table 2)."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of each set, sorted."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_by_field(
    fields: ArrayLike,
    classes: ArrayLike,
    ra: ArrayLike,
    dec: ArrayLike,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    separation: float = SEPARATION,
) -> Split:
    """Divide chips into training, validation and test sets without a shared field.

    Fields of which any two positions lie within ``separation`` form one group, and a group goes to one set as
    a whole: the largest first, each to the set whose class counts it brings closest to their goal.

    Parameters
    ----------
    fields : (n,) array_like of str
        Field of each chip.
    classes : (n,) array_like of int
        Density class of each chip, 0 to 5.
    ra, dec : (n,) array_like of float
        Position that stands for the chip (its own centre, or that of its field), deg ICRS.
    seed : int
        Breaks ties between groups of one size.
    fractions : tuple of float
        Shares of the three sets; positive.
    separation : float
        deg.

    Returns
    -------
    Split

    Raises
    ------
    ConfigError
        If there are fewer than three separate groups.
    """
    names, field = np.unique(np.asarray(fields).astype(str), return_inverse=True)
    group = _groups(field, len(names), np.asarray(ra, float), np.asarray(dec, float), separation)[field]
    n_groups = int(group.max(initial=-1)) + 1
    if n_groups < 3:
        raise ConfigError(
            f"{len(names)} fields form {n_groups} group(s) more than {separation} deg apart; three sets "
            "need at least 3: add exposures elsewhere on the sky"
        )
    counts = np.zeros((n_groups, N_CLASSES))
    np.add.at(counts, (group, np.asarray(classes, int)), 1)
    home = _assign(counts, np.asarray(fractions) / np.sum(fractions), np.random.default_rng(seed))
    return Split(*(np.flatnonzero(home[group] == part) for part in range(3)))


def split_at_random(classes: ArrayLike, *, seed: int = 0, fractions: tuple[float, float, float] = FRACTIONS) -> Split:
    """Divide chips at random, each class alike, whatever their field.

    As the published method does. Chips of one field, even of one exposure, then stand on both sides, and scores on the
    test chips flatter: for comparison with published figures only.

    Parameters
    ----------
    classes : (n,) array_like of int
        Density class of each chip.
    seed : int
    fractions : tuple of float
        Shares of the three sets; positive.

    Returns
    -------
    Split

    Raises
    ------
    ConfigError
        If there are fewer than three chips.
    """
    classes = np.asarray(classes, int)
    if len(classes) < 3:
        raise ConfigError(f"{len(classes)} chips are too few for three sets; give a store with at least 3")
    order = np.random.default_rng(seed).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    # every class is spread evenly over this order, so that it is cut in the wanted shares, to one chip
    place = np.empty(len(order))
    for rows in np.split(np.arange(len(order)), np.flatnonzero(np.diff(classes[order])) + 1):
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = order[np.argsort(place, kind="stable")]
    ends = np.round(np.cumsum(fractions) / np.sum(fractions) * len(order)).astype(int)
    ends = np.clip(ends, (1, 2, 3), (len(order) - 2, len(order) - 1, len(order)))
    return Split(*(np.sort(part) for part in np.split(order, ends[:2])))


def refuse_common_chips(names: Sequence[str | Path], chips: Sequence[Mapping[str, NDArray]]) -> None:
    """See that no two surveys have a chip in common.

    Parameters
    ----------
    names : sequence of str or Path
        Of the surveys.
    chips : sequence of mappings
        ``field``, ``band``, ``ra``, ``dec`` (deg), ``n_star`` and ``n_bright``, which tell what a chip is.

    Raises
    ------
    ConfigError
        Names the first two that do.
    """
    known = [set(zip(*(values.tolist() for _, values in sorted(columns.items())), strict=True)) for columns in chips]
    for k, name in enumerate(names):
        for other, before in zip(names[:k], known[:k], strict=True):
            if shared := len(known[k] & before):
                raise ConfigError(
                    f"{other} and {name} have {shared} chips in common, alike in field, band, place and counts; name "
                    "each survey once, and each chip in one of them"
                )


def some_fields(fields: ArrayLike, rows: NDArray[np.int64], chips: int | None, *, seed: int = 0) -> NDArray[np.int64]:
    """As many chips as asked for, of whole fields in a random order, the last of which may be cut; for learning curves.

    Parameters
    ----------
    fields : (n,) array_like of str
        Field of each chip.
    rows : (k,) int array
        Chips to choose from.
    chips : int or None
        None takes all.
    seed : int
        Of the order: fewer chips are some of those that a larger number takes.

    Returns
    -------
    (m,) int array
        Sorted.

    Raises
    ------
    ConfigError
        If there are not as many.
    """
    if chips is None:
        return rows
    if chips > len(rows):
        raise ConfigError(f"training.chips: found {chips}; expected at most the {len(rows)} chips of the training set")
    names, field = np.unique(np.asarray(fields).astype(str)[rows], return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(names))[field]
    return np.sort(rows[np.argsort(place, kind="stable")[:chips]])


def _groups(field: NDArray, n_fields: int, ra: NDArray, dec: NDArray, separation: float) -> NDArray[np.int64]:
    """Group of each field: connected components of the graph of fields that come too close."""
    chord = 2 * np.sin(np.radians(separation) / 2)
    near = cKDTree(unit_vectors(ra, dec)).query_pairs(chord, output_type="ndarray")
    one, other = field[near].T
    graph = coo_array((np.ones(len(near), bool), (one, other)), shape=(n_fields, n_fields))
    return connected_components(graph, directed=False)[1]


def _assign(counts: NDArray, shares: NDArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """Set of each group: greedy, the largest group first, least squared distance of the class counts."""
    goal = shares[:, None] * counts.sum(axis=0)
    weight = 1 / np.maximum(counts.sum(axis=0), 1)
    have = np.zeros_like(goal)
    home = np.zeros(len(counts), np.int64)
    order = np.lexsort([rng.permutation(len(counts)), -counts.sum(axis=1)])
    for group in order:
        gain = ((have + counts[group] - goal) ** 2 - (have - goal) ** 2) @ weight
        home[group] = np.argmin(gain)
        have[home[group]] += counts[group]
    for empty in np.flatnonzero(np.bincount(home, minlength=3) == 0):
        rich = np.argmax(np.bincount(home, minlength=3))
        home[[g for g in order if home[g] == rich][-1]] = empty
    return home
