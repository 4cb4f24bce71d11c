"""What a data set holds, as tables: density classes by set, bands, counts and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype

from csst_dask.schema import BANDS, BRIGHT_LIMIT, CLASS_LABELS, N_CLASSES, STAR_LIMIT, density_class

SETS = ("training", "validation", "test")
FRACTIONS = (0.8, 0.1, 0.1)
"""Shares of the sets (Lai et al. 2026, Table 2)."""
PUBLISHED = (1421, 4168, 13798, 5748, 1755, 1310)
"""Chips of each class in the classification set of Lai et al. (2026), Table 2: sums over its three sets."""
SHOWN_BANDS = ("g", "r", "i", "z", "y", "u", "NUV")
"""Bands that stand for a class in a picture, the first of which it has chips."""
MAGNITUDE_EDGES = np.arange(7.0, 33.1, 0.5)
"""Bins of magnitudes; `BRIGHT_LIMIT` is one of the edges."""

Rows = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Chips of each of `SETS`, as places in `Chips`."""


@dataclass(frozen=True, eq=False)
class Chips:
    """Chips with truth; all arrays have one length."""

    obs_id: NDArray[np.str_]
    band: NDArray[np.str_]
    field: NDArray[np.str_]
    n_star: NDArray[np.int64]
    n_bright: NDArray[np.int64]
    """-1 where unknown."""

    def __len__(self) -> int:
        return len(self.n_star)

    @property
    def density_class(self) -> NDArray[np.int8]:
        """Class 0 to 5."""
        return density_class(self.n_star)


@dataclass(frozen=True, eq=False)
class Scenes:
    """Some chips whose sources are known one by one."""

    chips: NDArray[np.int64]
    """(n,) places in `Chips`."""
    magnitudes: NDArray[np.int64]
    """(n, bins) stars of each chip, counted or not, in the bins of `MAGNITUDE_EDGES`, in the chip's own band."""
    n_galaxy: NDArray[np.int64]
    """(n,) galaxies on each chip."""
    galaxies: bool = True
    """Whether the survey holds any."""


def random_split(n: int, seed: int = 0, fractions: tuple[float, float, float] = FRACTIONS) -> Rows:
    """Divide chips at random, whatever their field, as the published method does.

    Parameters
    ----------
    n : int
        Number of chips.
    seed : int
    fractions : tuple of float
        Shares of the three sets.

    Returns
    -------
    Rows
        Sorted.
    """
    order = np.random.default_rng(seed).permutation(n)
    ends = np.round(np.cumsum(fractions) / np.sum(fractions) * n).astype(int)
    first, second, third = np.split(order, ends[:2])
    return np.sort(first), np.sort(second), np.sort(third)


def sample_chips(classes: NDArray[np.int8], usable: NDArray[np.bool_], few: int, seed: int = 0) -> NDArray[np.int64]:
    """A random choice of chips of every class.

    Parameters
    ----------
    classes : (n,) int8 array
    usable : (n,) bool array
        Chips to choose from.
    few : int
        Most chips of one class.
    seed : int

    Returns
    -------
    (m,) int64 array
        Sorted.
    """
    rng = np.random.default_rng(seed)
    picked = [rng.permutation(np.flatnonzero(usable & (classes == k)))[:few] for k in range(N_CLASSES)]
    return np.sort(np.concatenate(picked))


def composition(classes: NDArray[np.int8], rows: Rows) -> pd.DataFrame:
    """Chips of every class in every set: Table 2 of Lai et al. (2026).

    Parameters
    ----------
    classes : (n,) int8 array
        Density class of each chip.
    rows : Rows

    Returns
    -------
    pandas.DataFrame
        By class 0 to 5 and ``all``: ``training``, ``validation``, ``test``, ``total``, and ``share`` and the
        ``published`` share of all chips, in percent.
    """
    count = np.stack([np.bincount(classes[part], minlength=N_CLASSES) for part in rows], axis=1)
    table = pd.DataFrame(count, columns=list(SETS))
    table.loc[N_CLASSES] = table.sum()
    table["total"] = table.sum(axis=1)
    table["share"] = 100 * table["total"] / max(int(count.sum()), 1)
    table["published"] = [100 * n / sum(PUBLISHED) for n in (*PUBLISHED, sum(PUBLISHED))]
    table.index = pd.Index([*map(str, range(N_CLASSES)), "all"], name="class")
    table.insert(0, "stars", [*CLASS_LABELS, ""])
    return table


def split_table(classes: NDArray[np.int8], splits: Mapping[str, Rows]) -> pd.DataFrame:
    """`composition` of several splits, one below the other, with the column ``split`` first."""
    return pd.concat({name: composition(classes, rows) for name, rows in splits.items()}, names=["split"]).reset_index()


def band_table(bands: NDArray[np.str_], classes: NDArray[np.int8]) -> pd.DataFrame:
    """Chips by band (rows) and density class (columns), with totals."""
    known = [*(b for b in BANDS if b in bands), *sorted(set(bands.tolist()) - set(BANDS))]
    count = [[int(((bands == band) & (classes == k)).sum()) for k in range(N_CLASSES)] for band in known]
    table = pd.DataFrame(count, index=pd.Index(known, name="band"), columns=[f"class {k}" for k in range(N_CLASSES)])
    table.loc["all"] = table.sum()
    table["all"] = table.sum(axis=1)
    return table


def shared_fields(fields: NDArray[np.str_], rows: Rows) -> float:
    """Share of the test chips whose field also has training chips; NaN without test chips."""
    train, _, test = rows
    return float(np.isin(fields[test], fields[train]).mean()) if len(test) else float("nan")


def representatives(chips: Chips) -> dict[int, int]:
    """One chip for every class that has any.

    Of the first of `SHOWN_BANDS` with chips of the class, the one whose star count is nearest to their median.

    Returns
    -------
    dict of int to int
        Density class to place in ``chips``.
    """
    found: dict[int, int] = {}
    for k in np.unique(chips.density_class).tolist():
        of_class = chips.density_class == k
        band = next((band for band in SHOWN_BANDS if (of_class & (chips.band == band)).any()), None)
        rows = np.flatnonzero(of_class if band is None else of_class & (chips.band == band))
        size = np.log10(1.0 + chips.n_star[rows])
        found[int(k)] = int(rows[np.argmin(np.abs(size - np.median(size)))])
    return found


def class_weights(classes: NDArray[np.int8], chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many chips of the data set each chip of a sample stands for, by class."""
    whole = np.bincount(classes, minlength=N_CLASSES)
    part = np.bincount(classes[chosen], minlength=N_CLASSES)
    return (whole / np.maximum(part, 1))[classes[chosen]]


def describe(
    title: str,
    chips: Chips,
    splits: Mapping[str, Rows],
    sizes: Mapping[str, int],
    facts: Sequence[str] = (),
    notes: Sequence[str] = (),
    pictures: Mapping[str, str] | None = None,
) -> str:
    """The description of a data set as Markdown.

    Parameters
    ----------
    title : str
    chips : Chips
    splits : mapping of str to Rows
        By name.
    sizes : mapping of str to int
        Bytes on disk, by what they hold.
    facts : sequence of str
        More lines of the data sheet.
    notes : sequence of str
        What was left out, and why.
    pictures : mapping of str to str, optional
        Caption to path.

    Returns
    -------
    str
    """
    classes = chips.density_class
    lines = [f"# {title}", "", *(f"* {line}" for line in (*_sheet(chips, sizes), *facts)), ""]
    lines += [*(f"Left out: {note}" for note in notes), ""] if notes else []
    lines += ["## Chips by band and density class", "", *_markdown(band_table(chips.band, classes)), ""]
    for name, rows in splits.items():
        lines += [f"## Composition, split {name}", ""]
        lines += [*_markdown(composition(classes, rows)), "", _fields_line(chips.field, rows), ""]
    if splits:
        lines += [
            "Shares are per cent of all chips; published: the classification set of Lai et al. (2026), Table 2.",
            "",
        ]
    for caption, path in (pictures or {}).items():
        lines += [f"![{caption}]({path})", "", f"*{caption}*", ""]
    return "\n".join(lines).rstrip() + "\n"


def _sheet(chips: Chips, sizes: Mapping[str, int]) -> list[str]:
    known = chips.n_bright[chips.n_bright >= 0]
    bright = f"{known.min():,} to {known.max():,}, median {np.median(known):,.0f}" if len(known) else "unknown"
    whole = sum(sizes.values())
    parts = ", ".join(f"{name} {_size(n)}" for name, n in sorted(sizes.items(), key=lambda item: -item[1]))
    return [
        f"{len(chips):,} chips with truth, of {len(np.unique(chips.obs_id)):,} exposures "
        f"in {len(np.unique(chips.field)):,} sky fields",
        f"stars on a chip (g < {STAR_LIMIT} where they are simulated): {chips.n_star.min():,} to "
        f"{chips.n_star.max():,}, median {np.median(chips.n_star):,.0f}",
        f"bright stars on a chip (< {BRIGHT_LIMIT} in its own band): {bright}",
        f"on disk: {_size(whole)} ({parts}), {_size(whole / len(chips))} a chip",
    ]


def _fields_line(fields: NDArray[np.str_], rows: Rows) -> str:
    share = shared_fields(fields, rows)
    return f"Test chips whose field also has training chips: {'none to test' if np.isnan(share) else f'{share:.1%}'}."


def _size(n: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"


def _markdown(table: pd.DataFrame) -> list[str]:
    """A table with its index first; text to the left, numbers to the right."""
    text = [table.index.map(str).tolist(), *(_cells(table[name]) for name in table.columns)]
    bars = ["---", *("---:" if is_numeric_dtype(table[name]) else "---" for name in table.columns)]
    rows = [[str(table.index.name), *map(str, table.columns)], bars, *map(list, zip(*text, strict=True))]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cells(column: pd.Series) -> list[str]:
    if column.dtype.kind == "f":
        return [f"{value:.1f}" for value in column]
    return [f"{value:,}" if column.dtype.kind in "iu" else str(value) for value in column]
