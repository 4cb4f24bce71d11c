"""Variables of many chips, axes and records of files whose chunks were torn: found, and filled from what is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from csst_dask.errors import DamagedStore
from csst_dask.schema import PENDING
from csst_dask.store.arrays import read_column
from csst_dask.store.layout import (
    BLOCK,
    CHIP,
    CHIP_VARIABLES,
    COPIED,
    FILE_VARIABLES,
    FILES,
    IDENTITY,
    INCOMPLETE,
    PREDICTION_AXES,
    PREDICTION_VARIABLES,
    PREDICTIONS,
    ROOT_AXES,
    WHOLE,
    Variable,
)
from csst_dask.store.survey import SurveyStore


@dataclass(frozen=True, eq=False)
class DamagedColumn:
    """A chunk of a variable that cannot be read."""

    variable: Variable
    group: str
    """Of the store: ``predictions``, ``files``, or empty for the root."""
    first: int
    """First row."""
    last: int
    why: str

    @property
    def name(self) -> str:
        """Of the array, from the root."""
        return f"{self.group}/{self.variable.name}" if self.group else self.variable.name

    @property
    def rows(self) -> slice:
        """Of the chunk."""
        return slice(self.first, self.last + 1)

    @property
    def twin(self) -> str:
        """Name of the array that holds the same values; empty if there is none from which this one can be filled."""
        name = self.variable.name
        if self.group == PREDICTIONS and any(variable.name == name for variable in COPIED):
            return name
        return f"{PREDICTIONS}/{name}" if not self.group and name in IDENTITY else ""


def damaged_columns(store: SurveyStore) -> list[DamagedColumn]:
    """Chunks that cannot be read, of all variables of the root and its groups but those with chunks for each chip."""
    found = []
    for group, variable in _variables():
        array = _arrays(store, group)[variable.name]
        length = store.rows if variable.dims[0] == "chip" else array.shape[0]
        for first in range(0, length, BLOCK):
            rows = np.arange(first, min(first + BLOCK, length))
            try:
                read_column(array, length, rows)
            except DamagedStore as error:
                why = str(error).partition("(")[2].rpartition(");")[0]
                found.append(DamagedColumn(variable, group, first, int(rows[-1]), why))
    return found


def repair_columns(store: SurveyStore, found: list[DamagedColumn]) -> None:
    """Fill damaged chunks.

    Coordinates of predicted chips come from the store, what identifies a chip from the predictions, and axes from the
    layout. Other variables of chips are emptied and their chips made pending; other predictions, and records of files
    that gave no chip, are dropped. A chip is pending before anything of it is emptied: the process may die.

    Parameters
    ----------
    store : SurveyStore
        Opened to write.
    found : list of DamagedColumn

    Raises
    ------
    DamagedStore
        If both copies of what identifies a chip are damaged; nothing is written then.
    """
    places = {(part.name, part.first) for part in found}
    copies = [part for part in found if part.twin and (part.twin, part.first) not in places]
    for part in found:
        if part.twin and part.variable.name in IDENTITY and part not in copies:
            raise DamagedStore(
                f"{store.location}: {part.variable.name!r} of rows {part.first} to {part.last} is damaged here and in "
                "the predictions; restore the store from a copy"
            )
    emptied = [
        part for part in found if part not in copies and part.variable.dims[0] == "chip" and part.variable is not CHIP
    ]
    pending = sorted({row for part in emptied if not part.group for row in range(part.first, part.last + 1)})
    store.begin()
    for part in emptied:
        if not part.group:
            store.arrays["status"][part.rows] = PENDING
        store.predictions.arrays["predicted"][part.rows] = INCOMPLETE
    for part in found:
        _fill(store, part, part in copies)
    store.forget_memory()
    store.predictions.clear_incomplete()
    store.predictions.blank(pending)
    store.set_status(pending, PENDING, ["a variable of the store was damaged"] * len(pending))


def _fill(store: SurveyStore, part: DamagedColumn, copied: bool) -> None:
    name, array = part.variable.name, _arrays(store, part.group)[part.variable.name]
    if copied:
        values = (store.arrays if part.group else store.predictions.arrays)[name][part.rows]
        if name not in IDENTITY:
            values[store.predictions.arrays["predicted"][part.rows] != WHOLE] = array.metadata.fill_value
        array[part.rows] = values
    elif part.variable.values is not None:
        array[part.rows] = part.variable.values[part.rows]
    elif part.variable is CHIP:
        array[part.rows] = np.arange(part.first, part.last + 1)
    elif name not in ("status", "predicted"):  # these are written already
        array[part.rows] = array.metadata.fill_value


def _variables() -> Iterator[tuple[str, Variable]]:
    for group, variables in (
        ("", (*CHIP_VARIABLES, *ROOT_AXES)),
        (PREDICTIONS, (*PREDICTION_VARIABLES, *PREDICTION_AXES)),
        (FILES, FILE_VARIABLES),
    ):
        yield from ((group, variable) for variable in variables)


def _arrays(store: SurveyStore, group: str) -> dict[str, Any]:
    return {"": store.arrays, PREDICTIONS: store.predictions.arrays, FILES: store.files.arrays}[group]
