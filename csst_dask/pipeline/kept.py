"""Results of a long judgement in a file, so that one that is interrupted goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csst_dask.outputs import write_atomically


class KeptResults:
    """Results of tasks by name, a line of JSON each, after a first line that says what they are of.

    Parameters
    ----------
    path : Path
        Made where it is missing. A file that is of something else, or damaged at its beginning, is begun anew; a line
        that was not finished is left out.
    of : str
        What the results follow from, such as a checksum of the chips and of what is done with them.
    """

    def __init__(self, path: Path, of: str) -> None:
        self.path, self._known = path, _read(path, of)
        lines = [{"of": of}, *({"task": name, "found": found} for name, found in self._known.items())]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def get(self, name: str) -> dict[str, NDArray] | None:
        """Result of a task; None if it is not there."""
        found = self._known.get(name)
        return None if found is None else {key: np.array(values) for key, values in found.items()}

    def add(self, name: str, found: dict[str, NDArray]) -> None:
        """Keep the result of a task: one-dimensional arrays of what JSON can hold."""
        self._known[name] = {key: np.asarray(values).tolist() for key, values in found.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"task": name, "found": self._known[name]}) + "\n")


def _read(path: Path, of: str) -> dict[str, dict[str, list[Any]]]:
    try:
        lines = [_parse(line) for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        return {}
    if not lines or lines[0].get("of") != of:
        return {}
    return {line["task"]: line["found"] for line in lines[1:] if {"task", "found"} <= line.keys()}


def _parse(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
