"""Truth catalogues: which stars a simulated frame holds, as counts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from csst_dask.errors import ChipRejected, ConfigError
from csst_dask.instrument import normalise_band
from csst_dask.schema import BRIGHT_LIMIT, UNKNOWN_BRIGHTER, ChipFiles, ChipKey, count_brighter

_NAMES = (
    "obj_ID ID_chip filter xImage yImage ra dec ra_orig dec_orig z mag obj_type pm_ra pm_dec RV parallax "
    "av stellarmass dm teff logg feh bulgemass diskmass detA e1 e2 kappa g1 g2 size galType veldisp"
)
TRUTH_COLUMNS = tuple(_NAMES.split())
"""Columns of a cycle-9 truth catalogue, in order."""

COUNTED = "counted"
"""Column beside those, of catalogues that list more stars than ``n_star`` counts: 0 for the ones beyond it."""

OBJECT_TYPES = {
    "star": "star",
    "stars": "star",
    "stellar": "star",
    "s": "star",
    "1": "star",
    "galaxy": "galaxy",
    "gal": "galaxy",
    "g": "galaxy",
    "0": "galaxy",
    "quasar": "quasar",
    "qso": "quasar",
    "agn": "quasar",
    "q": "quasar",
    "2": "quasar",
}
"""Kind of object by the spelling of ``obj_type`` in lower case, numbers without a fraction.

The public material gives the word ``star`` alone; the other words and the numeric codes are our assumption.
"""

_TAIL = 1 << 14
_NEEDED = ("ximage", "yimage", "mag", "obj_type")
_NAMING = ("id_chip", "filter")
_DEPTH = "depth:"


@dataclass(frozen=True)
class TruthCounts:
    """Stars of one frame."""

    n_star: int
    """Stars on the frame; -1 where unknown."""
    n_bright: int
    """Those brighter than `csst_dask.schema.BRIGHT_LIMIT` in the frame's own band, counted or not; -1 where unknown."""
    note: str = ""
    """Why the counts are unknown, or what was odd about them."""
    n_brighter: tuple[int, ...] = UNKNOWN_BRIGHTER
    """Those brighter than each of `csst_dask.schema.MAGNITUDES`; -1 beyond the catalogue's depth."""


class _NoCountError(Exception):
    """The catalogue cannot give counts; the text says why."""


def read_truth(files: ChipFiles, band: str, shape: tuple[int, int]) -> TruthCounts:
    """Count the stars that the truth catalogue of a chip places on its frame.

    Parameters
    ----------
    files : ChipFiles
        With a truth catalogue: whitespace-separated ASCII; the last line that starts with ``#`` before the first row
        names the columns. A line ``# depth: 26.7 mag`` before it says to which magnitude in the band it lists every
        star; by default that is the bright limit, or its faintest star where that is fainter.
    band : str
        Of the chip.
    shape : (int, int)
        Its frame (ny, nx), pixel. A position is on the frame where 0.5 <= xImage < nx + 0.5, and so for y
        (the centre of the first pixel is 1).

    Returns
    -------
    TruthCounts
        Counts are -1, and the note says why, where the catalogue is missing or an excerpt, is not readable, lacks
        columns or names another chip; this is no reason to lose the image.
    """
    path = files.truth or ""
    try:
        if files.truth_excerpt:
            raise _NoCountError("an excerpt of the brightest objects cannot be counted; give the whole catalogue")
        if files.truth_filter not in ("", band):
            raise _NoCountError(f"named for filter {files.truth_filter}, expected {band}")
        return _count(*_read_columns(path), files.key, band, shape)
    except _NoCountError as error:
        return TruthCounts(-1, -1, f"truth not used: {error} ({os.path.basename(path)})")


def _read_columns(path: str) -> tuple[pd.DataFrame, float | None]:
    """Read the needed columns, and those of the others that exist, under lower-case names; and the depth, if given."""
    depth = None
    try:
        names, skip, depth = _head(path)
        missing = [name for name in _NEEDED if name not in names]
        if missing:
            raise _NoCountError(f"columns {', '.join(missing)} are missing; expected the names after a '#'")
        _check_end(path, len(names))
        wanted = [name for name in (*_NEEDED, *_NAMING, COUNTED) if name in names]
        columns = {f"column{names.index(name)}": name for name in wanted}
        table = pd.read_csv(
            path,
            sep=r"\s+",
            header=None,
            names=[f"column{i}" for i in range(len(names))],
            index_col=False,
            skiprows=skip,
            usecols=list(columns),
            dtype={column: str for column, name in columns.items() if name in ("obj_type", *_NAMING)},
            engine="c",
            encoding="latin-1",
        )
    except pd.errors.EmptyDataError:
        return pd.DataFrame({name: [] for name in wanted}), depth
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise _NoCountError(f"not readable as a table: {error}") from None
    return table.rename(columns=columns), depth


def _check_end(path: str, n_columns: int) -> None:
    """Refuse a file whose last row was cut short: then rows before it may be complete, but some are lost."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        tail = file.read()
    last = tail.rsplit(b"\n", 1)[-1].split()
    if last and not last[0].startswith(b"#") and len(last) < n_columns:
        raise _NoCountError(f"the last row ends after {len(last)} of {n_columns} columns; write the file again")


def _head(path: str) -> tuple[list[str], int, float | None]:
    """Column names in lower case, the number of lines before the first row, and the depth where it is given."""
    names: list[str] = []
    skip, depth = 0, None
    with open(path, encoding="latin-1") as file:
        for line in file:
            if line.strip() and not line.lstrip().startswith("#"):
                break
            skip += 1
            words = line.lstrip().lstrip("#").lower().split()
            if words[:1] == [_DEPTH]:
                depth = float(words[1])
            else:
                names = words or names
    return names, skip, depth


def _count(table: pd.DataFrame, depth: float | None, key: ChipKey, band: str, shape: tuple[int, int]) -> TruthCounts:
    if table.empty:
        return TruthCounts(0, 0, "", count_brighter(np.empty(0), BRIGHT_LIMIT if depth is None else depth))
    needed = [name for name in (*_NEEDED, COUNTED) if name != "mag" and name in table]
    if table[needed].isna().to_numpy().any():
        raise _NoCountError("some rows lack a position or a type, so the file may be cut short; write it again")
    _check_rows(table, key, band)
    stars, note = _is_star(table["obj_type"])
    numbers = ("ximage", "yimage", "mag", *((COUNTED,) if COUNTED in table else ()))
    try:
        x, y, mag, *counted = (table[name].to_numpy(np.float64) for name in numbers)
    except ValueError as error:
        raise _NoCountError(f"a position or magnitude is not a number: {error}") from None
    if depth is None:
        depth = max(BRIGHT_LIMIT, np.nanmax(mag[stars], initial=-np.inf))
    ny, nx = shape
    stars &= (x >= 0.5) & (x < nx + 0.5) & (y >= 0.5) & (y < ny + 0.5)
    n_star = int((stars & (counted[0] != 0)).sum() if counted else stars.sum())
    return TruthCounts(n_star, int((stars & (mag < BRIGHT_LIMIT)).sum()), note, count_brighter(mag[stars], depth))


def _check_rows(table: pd.DataFrame, key: ChipKey, band: str) -> None:
    """Refuse rows of another detector or band; 0 stands for a value that was not given."""
    if "id_chip" in table:
        for text in table["id_chip"].dropna().unique():
            digits = "".join(char for char in str(text).split(".")[0] if char.isdigit())[-2:]
            if digits and int(digits) not in (0, key.detector):
                raise _NoCountError(f"column ID_chip names {text}, expected {key.detector}")
    if "filter" in table:
        for text in table["filter"].dropna().unique():
            if str(text) != "0" and _known_band(str(text)) != band:
                raise _NoCountError(f"column filter names {text}, expected {band}")


def _known_band(text: str) -> str | None:
    try:
        return normalise_band(text)
    except ChipRejected:
        return None


def _is_star(types: pd.Series) -> tuple[np.ndarray, str]:
    codes, spellings = pd.factorize(types)
    kinds = [OBJECT_TYPES.get(_plain_type(str(text))) for text in spellings]
    unknown = sorted(str(text) for text, kind in zip(spellings, kinds, strict=True) if kind is None)
    if len(unknown) == len(kinds):
        raise _NoCountError(
            f"no known spelling of obj_type among {', '.join(unknown[:5])}; add it to truth.OBJECT_TYPES"
        )
    note = f"obj_type {', '.join(unknown[:5])} taken as no star" if unknown else ""
    return np.array([kind == "star" for kind in kinds])[codes], note


def _plain_type(text: str) -> str:
    """Spelling to look up: lower case, ``1.0`` as ``1``, without quotes."""
    text = text.strip("'\"").lower()
    try:
        return str(int(float(text))) if float(text).is_integer() else text
    except ValueError:
        return text


def write_truth(path: str | os.PathLike[str], columns: Mapping[str, ArrayLike], depth: float | None = None) -> None:
    """Write a truth catalogue with all of `TRUTH_COLUMNS`, and `COUNTED` where it is given.

    The file appears whole or not at all, and numbers keep every digit.

    Parameters
    ----------
    path : path
        File to write; an existing one is replaced.
    columns : mapping of str to (n,) array or scalar
        Values by column name. A scalar serves every row; a column that is not given is 0.
    depth : float, optional
        Magnitude in the band to which every star is listed.

    Raises
    ------
    ConfigError
        If a column is unknown, lengths differ, or a text is empty or holds white space.
    """
    names = (*TRUTH_COLUMNS, COUNTED) if COUNTED in columns else TRUTH_COLUMNS
    unknown = sorted(set(columns) - set(names))
    if unknown:
        raise ConfigError(f"truth columns {', '.join(unknown)} found, expected {', '.join(TRUTH_COLUMNS)}")
    arrays = {name: np.asarray(value) for name, value in columns.items()}
    lengths = {array.size for array in arrays.values() if array.ndim}
    if len(lengths) > 1 or any(array.ndim > 1 for array in arrays.values()):
        raise ConfigError(f"truth columns of lengths {sorted(lengths)} found, expected 1-D arrays of one length")
    for name, array in arrays.items():
        _check_text(name, array)
    part = Path(f"{os.fspath(path)}.part")
    with open(part, "w", encoding="ascii", errors="replace") as file:
        if depth is not None:
            file.write(f"# {_DEPTH} {float(depth):.6g} mag\n")
        file.write("# " + " ".join(names) + "\n")
        file.writelines(_lines(names, arrays, lengths.pop() if lengths else 1 if arrays else 0))
    os.replace(part, path)


def _check_text(name: str, array: np.ndarray) -> None:
    if array.dtype.kind in "US":
        for text in np.unique(array):
            if len(str(text).split()) != 1 or str(text).startswith("#"):
                raise ConfigError(f"truth column {name} holds {str(text)!r}; expected text without white space")


def _lines(names: tuple[str, ...], arrays: dict[str, np.ndarray], rows: int) -> Iterator[str]:
    """Rows as text; what is constant stands in the template, which is formatted once per row."""
    fields = []
    varying = []
    for name in names:
        array = arrays.get(name, np.asarray(0))
        if array.ndim:
            fields.append("%s")
            varying.append(array.tolist())
        else:
            fields.append(str(array.item()).replace("%", "%%"))
    template = " ".join(fields) + "\n"
    if not varying:
        return iter([template % ()] * rows)
    return map(template.__mod__, zip(*varying, strict=True))
