"""Tables as Markdown, with every value beside its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype

from csst_dask.evaluation.scores import ERROR

DIGITS = 5
"""Most decimals of numbers with an error."""


def with_error(value: float, error: float, digits: int = DIGITS) -> str:
    """A number to two figures of its error: ``0.0412 ± 0.0021``.

    Parameters
    ----------
    value : float
        NaN gives an empty text.
    error : float
        Left out if NaN. An error that rounds to 0 gives four decimals.
    digits : int
        Most decimals.

    Returns
    -------
    str
    """
    if not (math.isfinite(value) and math.isfinite(error)):
        return plain([value])[0]
    digits = min(max(1 - math.floor(math.log10(error)), 0), digits) if round(error, digits) > 0 else min(4, digits)
    return f"{round(value, digits) + 0.0:,.{digits}f} ± {error:.{digits}f}"


def plain(values: Sequence[float]) -> list[str]:
    """Numbers of one column with as many decimals as they need, at most four; fewer above 10, none above 1000."""
    known = [abs(value) for value in values if math.isfinite(value)]
    most = max(known, default=0.0)
    digits = 4 if most < 10 else 2 if most < 1000 else 0
    while digits and all(abs(value - round(value, digits - 1)) < 0.01 * 10.0**-digits for value in known):
        digits -= 1
    return [
        f"{round(value, digits) + 0.0:,.{digits}f}" if math.isfinite(value) else "" if math.isnan(value) else "infinite"
        for value in values
    ]


def markdown_table(table: pd.DataFrame) -> list[str]:
    """Lines of a Markdown table; columns of errors join those that they belong to.

    Parameters
    ----------
    table : pandas.DataFrame
        Its index is left out. Underscores in names of columns become spaces.

    Returns
    -------
    list of str
        Text to the left, numbers to the right.
    """
    names = [name for name in table.columns if not (name.endswith(ERROR) and name.removesuffix(ERROR) in table)]
    cells, bars = [], []
    for name in names:
        column = table[name]
        if name + ERROR in table:
            text = [with_error(value, error) for value, error in zip(column, table[name + ERROR], strict=True)]
        elif is_float_dtype(column):
            text = plain(column.tolist())
        elif is_integer_dtype(column) and not is_bool_dtype(column):
            text = [f"{value:,}" for value in column]
        else:
            text = [str(value) for value in column]
        cells.append(text)
        bars.append("---" if column.dtype.kind not in "iuf" else "---:")
    rows = [[name.replace("_", " ") for name in names], bars, *map(list, zip(*cells, strict=True))]
    return ["| " + " | ".join(row) + " |" for row in rows]
