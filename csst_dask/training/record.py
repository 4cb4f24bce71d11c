"""What weights record of the chips that they learned from, so that nothing is judged on sky that they have seen."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from csst_dask.instrument.sphere import unit_vectors
from csst_dask.training.split import SEPARATION, Split

if TYPE_CHECKING:
    from csst_dask.training.samples import Samples

COVER = 0.5
"""Positions of chips that were learned from are recorded to this, deg, or twice that until there are `MOST_CENTRES`."""

MOST_CENTRES = 10_000
"""Most positions that are recorded."""


def record_split(samples: Samples, split: Split, seed: int) -> dict[str, Any]:
    """What tells later which chips a network may be judged on; for the metadata of its weights.

    Parameters
    ----------
    samples : Samples
    split : Split
        Rows that it learned from (training and validation) and the others.
    seed : int
        That made the split.

    Returns
    -------
    dict
        ``kind`` (``field`` if no field stands on both sides, else ``random``), ``seed``; ``bands`` of the chips that
        were divided, and number and SHA-256 (`checksum_chips`) of those of each of their ``stores``; ``test_fields``,
        or for a random split ``test_rows`` among all these chips; ``centres`` (ra, dec, deg): every chip that was
        learned from lies within ``radius`` (deg) of one; ``separation``, within which of these sky counts as seen, deg.
    """
    learned = np.concatenate([split.train, split.validation])
    shared = np.isin(samples.field[split.test], samples.field[learned]).any()
    centres, radius = cover(samples.ra[learned], samples.dec[learned])
    return {
        "kind": "random" if shared else "field",
        "seed": seed,
        "bands": sorted(set(samples.band.tolist())),
        "stores": [
            {"chips": size, "chips_sha256": checksum}
            for size, checksum in zip(samples.sizes or (len(samples),), samples.checksums, strict=True)
        ],
        "test_fields": [] if shared else np.unique(samples.field[split.test]).tolist(),
        "test_rows": split.test.tolist() if shared else [],
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
