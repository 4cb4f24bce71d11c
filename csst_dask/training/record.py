"""What weights record of the chips that they learned from, so that nothing is judged on sky that they have seen."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from csst_dask.instrument.focal_plane import unit_vectors
from csst_dask.training.split import SEPARATION, Split

if TYPE_CHECKING:
    from csst_dask.training.samples import Samples

COVER = 0.5
"""Positions of chips that were learned from are recorded to this, deg, or twice that until there are `MOST_CENTRES`."""

MOST_CENTRES = 10_000
"""Most positions that are recorded."""


def kind_of_split(samples: Samples, split: Split, how: str) -> str:
    """Whether sets share no patch of sky.

    Parameters
    ----------
    samples : Samples
    split : Split
    how : str
        ``field`` or ``random``, as it was asked for.

    Returns
    -------
    str
        ``field`` if that was asked for and no test chip stands in a field, or within `SEPARATION`, of one that was
        learned from; else ``random``.
    """
    learned, test = np.concatenate([split.train, split.validation]), split.test
    if how == "random" or np.isin(samples.field[test], samples.field[learned]).any():
        return "random"
    tree = cKDTree(unit_vectors(samples.ra[learned], samples.dec[learned]))
    distance, _ = tree.query(unit_vectors(samples.ra[test], samples.dec[test]))
    return "field" if (distance > 2 * np.sin(np.radians(SEPARATION) / 2)).all() else "random"


def record_split(samples: Samples, split: Split, seed: int, how: str = "field") -> dict[str, Any]:
    """What tells later which chips a network may be judged on; for the metadata of its weights.

    Parameters
    ----------
    samples : Samples
    split : Split
        Rows that it learned from (training and validation) and the others.
    seed : int
        That made the split.
    how : str
        ``field`` or ``random``, as it was asked for.

    Returns
    -------
    dict
        ``kind`` (`kind_of_split`), ``seed``; ``bands`` of the chips that were divided, and number and SHA-256
        (`checksum_chips`) of those of each of their ``stores``; ``test_fields``, or for a random split ``test_rows``
        among all these chips; ``centres`` (ra, dec, deg): every chip that was learned from lies within ``radius`` (deg)
        of one; ``separation``, within which of these sky counts as seen, deg.
    """
    learned = np.concatenate([split.train, split.validation])
    kind = kind_of_split(samples, split, how)
    centres, radius = cover(samples.ra[learned], samples.dec[learned])
    return {
        "kind": kind,
        "seed": seed,
        "bands": sorted(set(samples.band.tolist())),
        "stores": [
            {"chips": size, "chips_sha256": checksum}
            for size, checksum in zip(samples.sizes or (len(samples),), samples.checksums, strict=True)
        ],
        "test_fields": np.unique(samples.field[split.test]).tolist() if kind == "field" else [],
        "test_rows": split.test.tolist() if kind == "random" else [],
        "centres": centres,
        "radius": radius,
        "separation": SEPARATION,
    }


def checksum_chips(
    band: ArrayLike, field: ArrayLike, n_star: ArrayLike, n_bright: ArrayLike, ra: ArrayLike, dec: ArrayLike
) -> str:
    """SHA-256 of what chips are, in their order; positions (deg) to a millionth."""
    digest = hashlib.sha256("\n".join([*map(str, np.asarray(band)), *map(str, np.asarray(field))]).encode())
    for counts in (n_star, n_bright):
        digest.update(np.asarray(counts).astype("<i8").tobytes())
    for angle in (ra, dec):
        digest.update(np.round(1e6 * np.asarray(angle, np.float64)).astype("<i8").tobytes())
    return digest.hexdigest()


def cover(ra: ArrayLike, dec: ArrayLike) -> tuple[dict[str, list[float]], float]:
    """Few positions near which all others lie.

    Parameters
    ----------
    ra, dec : (n,) array_like
        deg

    Returns
    -------
    centres : dict of str to list of float
        ``ra``, ``dec``, rounded to 0.01 deg; some of the positions, each the first that the ones before leave out.
    radius : float
        Every position lies within it of a centre, deg.
    """
    ra, dec = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    points, radius = unit_vectors(ra, dec), COVER / 2
    tree, chosen = cKDTree(points), list(range(len(ra)))
    while radius < COVER or len(chosen) > MOST_CENTRES:
        radius, chosen, left = 2 * radius, [], np.ones(len(ra), bool)
        for place in range(len(ra)):
            if left[place]:
                chosen.append(place)
                left[tree.query_ball_point(points[place], 2 * np.sin(np.radians(min(radius, 180)) / 2))] = False
    rounded = {"ra": np.round(ra[chosen], 2).tolist(), "dec": np.round(dec[chosen], 2).tolist()}
    return rounded, radius + 0.01
