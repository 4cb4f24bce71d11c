"""Inputs that gave no chip, in the ``files`` group of a survey store: a path and a reason each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import zarr

from csst_dask.store.arrays import array_of, decode, grow, read_column, write_rows
from csst_dask.store.layout import FILE_VARIABLES


class FileTable:
    """Inputs that gave no chip.

    Parameters
    ----------
    group : zarr.Group
    begin : callable
        Called before every write.
    """

    def __init__(self, group: zarr.Group, begin: Callable[[], None]):
        self.group, self._begin = group, begin

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """``path`` and ``reason``."""
        return {variable.name: array_of(self.group, variable.name) for variable in FILE_VARIABLES}

    def read(self) -> dict[str, str]:
        """Reasons by path.

        Raises
        ------
        DamagedStore
            If a chunk was torn or changed.
        """
        where = str(self.group.store_path)
        path, reason = (
            read_column(self.arrays[name], self.arrays[name].shape[0], where=where).tolist()
            for name in ("path", "reason")
        )
        found: dict[str, str] = {}
        for name, why in zip(path, reason, strict=False):
            if name:
                found.setdefault(name, why)
        return found

    def write(self, files: Mapping[str, str], accounted: Iterable[str] = ()) -> None:
        """Record inputs that gave no chip.

        A process may die between any two writes. So what is known stays in its row, or is moved to the row of what is
        dropped before its own row is; and a path is written after its reason.

        Parameters
        ----------
        files : mapping of path to reason
        accounted : iterable of path
            Inputs that did give a chip this time; older records of them are dropped.
        """
        before = self.read()
        known = before | dict(files)
        for name in accounted:
            known.pop(name, None)
        lengths = [array.shape[0] for array in self.arrays.values()]
        if known == before and set(lengths) == {len(known)}:
            return
        self._begin()
        paths = self._rows(known)
        surplus = range(len(paths), max(lengths))
        grow(self.arrays.values(), max(len(paths), *lengths))
        write_rows(self.arrays, range(len(paths)), {"reason": [known[name] for name in paths], "path": paths})
        write_rows(self.arrays, surplus, {"path": [""] * len(surplus)})
        grow(self.arrays.values(), len(paths))

    def _rows(self, known: Mapping[str, str]) -> list[str]:
        """Paths in the rows where they are, as far as these are not beyond the end; the others in free rows."""
        rows: list[str] = []
        left = dict.fromkeys(known)
        for name in decode(self.arrays["path"][: len(known)]).tolist():
            rows.append(name if name in left else "")
            left.pop(name, None)
        others = iter(left)
        return [name or next(others) for name in rows] + list(others)
