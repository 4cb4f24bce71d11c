"""Star density on the sky as sums over chips: addition in any grouping gives the same map.

A chip enters a cell with the weight w = shared area times valid fraction, deg2 (`coverage`). All that is
stored adds over chips; the density, its error, the class and the crowded fraction are ratios taken at the
end. The sums of one chip, of a night and of a survey are one type, `DensitySums`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from csst_dask.errors import ChipRejected, ConfigError
from csst_dask.maps.coverage import detector_area, visit
from csst_dask.maps.grid import HealpixGrid
from csst_dask.schema import BANDS, N_CLASSES


@dataclass(frozen=True)
class ChipForMap:
    """What a map needs to know of one chip."""

    band: str
    corner_ra: NDArray[np.float64]
    """(4,) deg ICRS, in the order (0,0), (nx,0), (nx,ny), (0,ny)."""
    corner_dec: NDArray[np.float64]
    valid: NDArray[np.float32]
    """(iy, ix) fraction of valid pixels in each block of the frame."""
    bright_count: float
    """Bright stars on the whole frame; NaN where the regression was bypassed."""
    bright_lower: float
    """Bounds of the central interval of that count."""
    bright_upper: float
    density_class: int
    """0 to 5."""
    crowded: bool
    level: float = 0.9
    """Probability that the interval holds the count."""
    review: bool = False
    """Whether its prediction is not to be trusted: the chip adds area under review, and neither count nor class."""


@dataclass(frozen=True)
class DensitySums:
    """Sums over chips, one row for each (band, cell) that was seen, sorted by both."""

    nside: int
    band: NDArray[np.int64]
    """(n,) index into `schema.BANDS`."""
    cell: NDArray[np.int64]
    """(n,) NESTED index."""
    n_visits: NDArray[np.int64]
    """(n,) chips with valid pixels in the cell."""
    visit_area: NDArray[np.float64]
    """(n,) sum of w, deg2."""
    review_area: NDArray[np.float64]
    """(n,) sum of w over chips under review, which enter no other sum below, deg2."""
    bright_area: NDArray[np.float64]
    """(n,) sum of w over chips with a bright count, deg2."""
    bright_sum: NDArray[np.float64]
    """(n,) sum of w times count per detector area, stars."""
    bright_err_sum: NDArray[np.float64]
    """(n,) sum of w times the error of that density, stars."""
    crowded_area: NDArray[np.float64]
    """(n,) sum of w over crowded chips, deg2."""
    class_area: NDArray[np.float64]
    """(n, 6) sum of w over the chips of each density class, deg2."""


AREAS = ("visit_area", "review_area", "bright_area", "bright_sum", "bright_err_sum", "crowded_area")
"""The plain float sums of `DensitySums`."""

_ROWS = ("band", "cell", "n_visits", "class_area", *AREAS)


def empty_sums(nside: int) -> DensitySums:
    """Sums of no chips: the zero of `merge`."""
    index, zeros = np.zeros(0, np.int64), np.zeros(0)
    areas = dict.fromkeys(AREAS, zeros)
    return DensitySums(nside, band=index, cell=index, n_visits=index, class_area=np.zeros((0, N_CLASSES)), **areas)


def chip_sums(chip: ChipForMap, grid: HealpixGrid) -> DensitySums:
    """Sums of one chip.

    Parameters
    ----------
    chip : ChipForMap
        A finished chip with a prediction, or under review, with or without one. Count and error are spread evenly
        over its whole detector area: masked pixels do not change a count, they only take weight.
    grid : HealpixGrid

    Returns
    -------
    DensitySums

    Raises
    ------
    ChipRejected
        If the corners are impossible or the band is unknown; or, of a chip that is not under review, the class is
        not 0 to 5 or a count lacks an interval.
    """
    _check(chip)
    cells, area, fraction = visit(chip.valid, chip.corner_ra, chip.corner_dec, grid)
    weight = area * fraction
    cells, weight = cells[weight > 0], weight[weight > 0]
    counted = bool(np.isfinite(chip.bright_count)) and not chip.review
    whole = detector_area(chip.corner_ra, chip.corner_dec)
    density, error = (chip.bright_count / whole, _count_error(chip) / whole) if counted else (0.0, 0.0)
    class_area = np.zeros((cells.size, N_CLASSES))
    if not chip.review:
        class_area[:, chip.density_class] = weight
    return DensitySums(
        nside=grid.nside,
        band=np.full(cells.size, BANDS.index(chip.band), np.int64),
        cell=cells,
        n_visits=np.ones(cells.size, np.int64),
        visit_area=weight,
        review_area=weight * bool(chip.review),
        bright_area=weight * counted,
        bright_sum=weight * density,
        bright_err_sum=weight * error,
        crowded_area=weight * bool(chip.crowded and not chip.review),
        class_area=class_area,
    )


def accumulate(parts: Iterable[DensitySums], start: DensitySums | None = None) -> DensitySums:
    """Add sums one after the other, in the order given.

    Parameters
    ----------
    parts : iterable of DensitySums
        Usually one for each chip, in chip order.
    start : DensitySums, optional
        Sums to go on from. Every row is a strict left-to-right sum, so going on from the sums of the first
        chips gives the same bits as adding all of them at once.

    Returns
    -------
    DensitySums

    Raises
    ------
    ConfigError
        If there is nothing to add, or the parts are of different nside.
    """
    parts = ([] if start is None else [start]) + list(parts)
    sides = sorted({part.nside for part in parts})
    if len(sides) != 1:
        raise ConfigError(f"expected sums of one nside, found {sides}; degrade the finer ones first")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ROWS}
    grid = HealpixGrid(sides[0])
    keys, row = np.unique(joined["band"] * grid.n_cells + joined["cell"], return_inverse=True)

    def total(values: NDArray) -> NDArray[np.float64]:
        return np.bincount(row, values, minlength=keys.size).astype(np.float64)  # strictly in row order

    return DensitySums(
        nside=sides[0],
        band=keys // grid.n_cells,
        cell=keys % grid.n_cells,
        n_visits=np.rint(total(joined["n_visits"])).astype(np.int64),
        class_area=np.stack([total(column) for column in joined["class_area"].T], axis=1),
        **{name: total(joined[name]) for name in AREAS},
    )


def merge(a: DensitySums, b: DensitySums) -> DensitySums:
    """Sums of the chips of `a` and of `b`.

    Parameters
    ----------
    a, b : DensitySums
        Of one nside, and of different chips: a chip in both counts twice.

    Returns
    -------
    DensitySums

    Raises
    ------
    ConfigError
        If the nside differ.
    """
    return accumulate([a, b])


def degrade_sums(sums: DensitySums, nside: int) -> DensitySums:
    """Sums on a coarser grid.

    Parameters
    ----------
    sums : DensitySums
    nside : int
        At most that of `sums`.

    Returns
    -------
    DensitySums
        As if built at that nside, to rounding, except ``n_visits``: sums do not tell whether two cells were
        seen by one chip or two, so it is the largest of the children, a lower bound of the number of chips in
        the parent.

    Raises
    ------
    ConfigError
        If ``nside`` is no power of two or finer than that of `sums`.
    """
    cell = HealpixGrid(sums.nside).parents(sums.cell, nside)
    added = accumulate([replace(sums, nside=nside, cell=cell)])
    n_cells = HealpixGrid(nside).n_cells
    row = np.searchsorted(added.band * n_cells + added.cell, sums.band * n_cells + cell)
    most = np.zeros(added.cell.size, np.int64)
    np.maximum.at(most, row, sums.n_visits)
    return replace(added, n_visits=most)


def _check(chip: ChipForMap) -> None:
    if chip.band not in BANDS:
        raise ChipRejected(f"band {chip.band!r} is not one of {', '.join(BANDS)}; check the header")
    if chip.review:
        return
    if not 0 <= chip.density_class < N_CLASSES:
        raise ChipRejected(f"density class {chip.density_class} is not 0 to {N_CLASSES - 1}; predict the chip again")
    if not 0 < chip.level < 1:
        raise ChipRejected(f"interval level {chip.level} is not between 0 and 1; predict the chip again")
    bounds = (chip.bright_lower, chip.bright_upper)
    if np.isfinite(chip.bright_count) and not (np.isfinite(bounds).all() and bounds[0] <= bounds[1]):
        raise ChipRejected(
            f"bright count {chip.bright_count} has the interval {bounds}, expected finite bounds that rise; "
            "predict the chip again"
        )


def _count_error(chip: ChipForMap) -> float:
    """One standard deviation of the count: its interval as that of a normal distribution."""
    return float(chip.bright_upper - chip.bright_lower) / (2 * NormalDist().inv_cdf(0.5 + chip.level / 2))
