"""Chips with truth, and their division into sets that share no patch of sky."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from csst_dask.errors import ConfigError
from csst_dask.instrument.sphere import unit_vectors
from csst_dask.preprocess.inputs import SCALARS
from csst_dask.schema import BANDS, CHANNELS, N_CLASSES, density_class

SEPARATION = 1.5
"""Chips of different sets are farther apart than this, deg."""

FRACTIONS = (0.8, 0.1, 0.1)
"""Shares of training, validation and test chips (paper, table 2)."""

COVER = 0.5
"""Positions of chips that were learned from are recorded to this, deg, or twice that until there are `MOST_CENTRES`."""

MOST_CENTRES = 4000
"""Most positions that are recorded."""


class Maps(Protocol):
    """Reduced maps of many chips, in memory or in a store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, 6, iy, ix)."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """Maps of some chips."""


@dataclass(frozen=True, eq=False)
class StoredMaps:
    """Reduced maps that stay in a survey store until they are asked for."""

    array: zarr.Array
    rows: NDArray[np.int64]
    """Rows of the store, in the order of the samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray:
        """All of them, in memory."""
        return self[np.arange(len(self.rows))].astype(dtype or np.float32, copy=False)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        wanted, place = np.unique(self.rows[rows], return_inverse=True)
        return np.asarray(self.array.oindex[wanted])[place]


@dataclass(frozen=True, eq=False)
class Samples:
    """Chips with truth."""

    reduced: Maps
    """(n, 6, iy, ix) reduced maps, e-/s; an array, or a store that is read by rows."""
    scalars: dict[str, NDArray[np.float64]]
    """(n,) each of `preprocess.inputs.SCALARS`, and ``exptime`` (s) where it is known."""
    band: NDArray[np.str_]
    n_star: NDArray[np.int64]
    n_bright: NDArray[np.int64]
    """-1 where unknown."""
    field: NDArray[np.str_]
    ra: NDArray[np.float64]
    """Centre of the chip, deg ICRS."""
    dec: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.n_star)

    @property
    def density_class(self) -> NDArray[np.int8]:
        """(n,) class 0 to 5."""
        return density_class(self.n_star)

    @property
    def checksum(self) -> str:
        """SHA-256 of what the chips are, in their order: band, field, true counts and position."""
        return checksum_chips(self.band, self.field, self.n_star, self.n_bright, self.ra, self.dec)

    def split(self, seed: int = 0, kind: Literal["field", "random"] = "field") -> Split:
        """Divide with `split_by_field`, or at random with `split_at_random`."""
        if kind == "random":
            return split_at_random(self.density_class, seed=seed)
        return split_by_field(self.field, self.density_class, self.ra, self.dec, seed=seed)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of each set, sorted."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def load_samples(store: str | Path, bands: tuple[str, ...] = BANDS) -> Samples:
    """Read the chips of a survey store that are done and have truth.

    Parameters
    ----------
    store : path
        Survey store.
    bands : tuple of str
        Bands to take.

    Returns
    -------
    Samples
        In the order of the store; the maps stay there.

    Raises
    ------
    ConfigError
        If the store cannot be opened, is of another kind, or has no such chip.
    """
    try:
        survey = xr.open_zarr(str(store), consolidated=False, chunks=None)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"cannot open the survey store {store}: {error}; check the path") from None
    needed = ("reduced", "status", "band", "n_star", "n_bright", "field", "ra", "dec", *SCALARS)
    missing = [name for name in needed if name not in survey.variables]
    if missing or survey["reduced"].shape[1:2] != (len(CHANNELS),):
        what = f"it lacks {', '.join(missing)}" if missing else f"its channels are not {', '.join(CHANNELS)}"
        raise ConfigError(f"{store} is not a survey store of this package: {what}; name another one")
    names = [name for name in (*needed, "exptime") if name in survey.variables and name != "reduced"]
    small = {name: survey[name].values for name in names}
    band, field, status = (np.array(small[name].tolist(), str) for name in ("band", "field", "status"))
    wanted = (status == "done") & (small["n_star"] >= 0) & np.isin(band, bands)
    rows = np.flatnonzero(wanted)
    if not len(rows):
        raise ConfigError(
            f"{store} has no chip that is done, has a truth count and lies in the bands {', '.join(bands)} "
            f"({len(wanted)} chips in all); ingest with truth catalogues or simulate with --store"
        )
    return Samples(
        reduced=StoredMaps(zarr.open_array(str(store), path="reduced", mode="r"), rows),
        scalars={name: small[name][rows].astype(np.float64) for name in (*SCALARS, "exptime") if name in small},
        band=band[rows],
        field=field[rows],
        **{name: small[name][rows].astype(np.int64) for name in ("n_star", "n_bright")},
        **{name: small[name][rows].astype(np.float64) for name in ("ra", "dec")},
    )


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
        ``kind`` (``field`` if no field stands on both sides, else ``random``), ``seed``; ``bands``, number and SHA-256
        (`checksum_chips`) of the ``chips`` that were divided; ``test_fields``, or for a random split ``test_rows``
        among these chips; ``centres`` (ra, dec, deg): every chip that was learned from lies within ``radius`` (deg) of
        one; ``separation``, within which of these sky counts as seen, deg.
    """
    learned = np.concatenate([split.train, split.validation])
    shared = np.isin(samples.field[split.test], samples.field[learned]).any()
    centres, radius = cover(samples.ra[learned], samples.dec[learned])
    return {
        "kind": "random" if shared else "field",
        "seed": seed,
        "bands": sorted(set(samples.band.tolist())),
        "chips": len(samples),
        "chips_sha256": samples.checksum,
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
