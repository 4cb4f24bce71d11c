"""The outcome of one comparison, and the optional packages that comparisons are made with."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from csst_dask.errors import ConfigError


@dataclass(frozen=True)
class Finding:
    """A measured number beside the one that it should be."""

    name: str
    measured: float
    expected: float
    tolerance: float
    """Largest difference from `expected`; in the sense and the unit that `text` says."""
    passed: bool
    text: str = ""


def near(name: str, measured: float, expected: float, tolerance: float, text: str = "") -> Finding:
    """A finding that passes if it lies within an absolute tolerance; a NaN never does."""
    return Finding(name, measured, expected, tolerance, bool(abs(measured - expected) <= tolerance), text)


def below(name: str, measured: float, limit: float, text: str = "") -> Finding:
    """A finding whose size must stay under a limit: an error that should be nought."""
    return near(name, measured, 0.0, limit, text)


def load_package(name: str) -> ModuleType:
    """Import a package that only the checks need.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the fidelity report compares with the package {name!r}, which cannot be imported ({error}): "
            "install the extra with `pip install 'csst_dask[check]'`"
        ) from error
