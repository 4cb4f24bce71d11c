"""The ``predictions`` group of a survey store: one row for each chip, always as many as the store has.

It repeats the chips' coordinates, so that it can be mapped without the rest of the store. ``predicted`` is written
last: a row that a process left half written is marked, and cleared when the store is opened to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike, NDArray

from csst_dask.schema import ROUTE_CODES
from csst_dask.store.arrays import array_of, at_once, read_column, write_rows
from csst_dask.store.layout import (
    COPIED,
    IDENTITY,
    INCOMPLETE,
    NONE,
    PREDICTED,
    PREDICTION_AXES,
    PREDICTION_VARIABLES,
    WHOLE,
)

EXPOSURE = "log_star_exposure"
"""The variable that follows from other chips too, those of the exposure."""


class PredictionTable:
    """Predictions of a store's chips.

    Parameters
    ----------
    group : zarr.Group
    chips : mapping of str to zarr.Array
        Arrays of the store itself, whose coordinates are repeated.
    begin : callable
        Called before every write.
    exposures : callable
        Gives the number of the exposure of every chip, (rows,) int64.
    """

    def __init__(
        self,
        group: zarr.Group,
        chips: Mapping[str, Any],
        begin: Callable[[], None],
        exposures: Callable[[], NDArray[np.int64]],
    ):
        self.group, self._chips, self._begin, self._exposures = group, chips, begin, exposures

    def touch(self) -> None:
        """Remove consolidated metadata, which would be stale."""
        self.group.update_attributes({})

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes: whose predictions they are, and how they were made."""
        return dict(self.group.attrs)

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """All arrays of the group, by name, in the order of the layout."""
        names = [variable.name for variable in (*PREDICTION_VARIABLES, *PREDICTION_AXES)]
        return dict(zip(names, at_once(lambda name: array_of(self.group, name), names), strict=True))

    @cached_property
    def state(self) -> NDArray[np.uint8]:
        """`layout.PREDICTED_STATES` of all rows, in memory; this object keeps it up to date."""
        return self.column("predicted")

    @cached_property
    def settled(self) -> NDArray[np.bool_]:
        """Rows with a value from their whole exposure, in memory; this object keeps it up to date."""
        return np.isfinite(self.column(EXPOSURE))

    def column(self, name: str, rows: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray:
        """A variable of all rows or of some; text is decoded."""
        return read_column(self.arrays[name], self._chips["status"].shape[0], rows, str(self.group.store_path))

    def route_names(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.str_]:
        """Routes of all rows or of some, as text."""
        return np.array(ROUTE_CODES)[self.column("route", rows)]

    def scalars(self) -> xr.Dataset:
        """All predictions but the tiles, loaded, with ``route`` as text; an empty row where there is none."""
        wanted = [v for v in (*COPIED, *PREDICTED) if "ty" not in v.dims]
        columns = at_once(lambda variable: self.column(variable.name), wanted)
        data = {v.name: (v.dims, values) for v, values in zip(wanted, columns, strict=True)}
        data["route"] = ("chip",), self.route_names()
        data["predicted"] = ("chip",), self.column("predicted") == WHOLE
        return xr.Dataset(data, coords={"chip": np.arange(len(data["predicted"][1]))}, attrs=self.attrs)

    def prepare(self, identity: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Make the table ready for predictions of a pair of networks; those of others are dropped.

        Parameters
        ----------
        identity : mapping
            Attributes that must agree for predictions to be kept.

        Returns
        -------
        (rows,) bool array
            Chips that these networks have predicted already.
        """
        self._grown()
        if any(self.group.attrs.get(name) != value for name, value in identity.items()):
            self.blank(np.flatnonzero(self.state != NONE))
            self.set_attrs(identity)
        return self.state == WHOLE

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Add attributes, where they differ."""
        if any(self.group.attrs.get(name) != value for name, value in attrs.items()):
            self._begin()
            self.group.update_attributes(dict(attrs))

    def write(self, rows: Sequence[int] | NDArray[np.int64], values: Mapping[str, ArrayLike]) -> None:
        """Write predictions of some rows and repeat their coordinates; the marker comes last.

        Parameters
        ----------
        rows : (n,) sequence of int
        values : mapping of str to array
            Some of `layout.PREDICTED`.
        """
        if not len(rows):
            return
        self._begin()
        index = np.asarray(rows, np.int64)
        self.unsettle(index)
        self._mark(index, INCOMPLETE)
        copied = {v.name: self._chips[v.name].oindex[index] for v in COPIED}
        write_rows(self.arrays, index, {**copied, **values})
        if EXPOSURE in values:
            del self.settled
        self._mark(index, WHOLE)

    def set_route(self, rows: Sequence[int] | NDArray[np.int64], values: Mapping[str, ArrayLike]) -> None:
        """Write routes of some rows that have changed."""
        if len(rows):
            self._begin()
            write_rows(self.arrays, rows, values)

    def blank(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Drop what is predicted of some rows, and the copies of their coordinates but for what identifies them."""
        index = np.asarray(rows, np.int64)
        self._grown()
        index = index[(self.state[index] != NONE) | (self.column("route", index) != 0)]
        if not index.size:
            return
        self._begin()
        self.unsettle(index)
        self._mark(index, INCOMPLETE)
        dropped = [*PREDICTED, *(v for v in COPIED if v.name not in IDENTITY)]
        blank = {v.name: np.full((index.size, *v.shape), v.fill, v.dtype) for v in dropped}
        write_rows(self.arrays, index, blank)
        self._mark(index, NONE)

    def settle(self, rows: Sequence[int] | NDArray[np.int64], values: NDArray[np.floating]) -> None:
        """Write what whole exposures say of some rows."""
        if len(rows):
            self._begin()
            write_rows(self.arrays, rows, {EXPOSURE: values})
            self._grown()
            self.settled[np.asarray(rows, np.int64)] = np.isfinite(values)

    def unsettle(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Drop what whole exposures say, of all chips of the exposures that some rows belong to: these will change."""
        self._grown()
        known = np.flatnonzero(self.settled)
        if known.size:
            number = self._exposures()
            known = known[np.isin(number[known], number[np.asarray(rows, np.int64)])]
        self.settle(known, np.full(known.size, np.nan, np.float32))

    def clear_incomplete(self) -> None:
        """Drop what a process that died has left half written."""
        self.blank(np.flatnonzero(self.state == INCOMPLETE))

    def _mark(self, index: NDArray[np.int64], state: int) -> None:
        write_rows(self.arrays, index, {"predicted": np.full(index.size, state)})
        self._grown()
        self.state[index] = state

    def _grown(self) -> None:
        """New rows of the store are rows without a prediction."""
        rows = self._chips["status"].shape[0]
        for name in {"state", "settled"} & self.__dict__.keys():  # others are read when they are asked for
            values = self.__dict__[name]
            if values.size < rows:
                self.__dict__[name] = np.concatenate([values, np.zeros(rows - values.size, values.dtype)])
