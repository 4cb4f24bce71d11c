"""Star-density maps from survey images: CSST detector frames in, an xarray sky map out.

>>> import csst_dask as cd
>>> client = cd.connect()
>>> survey = cd.ingest("exposures/", "survey.zarr")
>>> predictions = cd.predict(survey)
>>> sky = cd.density_map(predictions, nside=1024)
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csst_dask.runners.api import connect, density_map, ingest, open_survey, predict, simulate, train

__all__ = ["connect", "density_map", "ingest", "open_survey", "predict", "simulate", "train"]

try:
    __version__ = version("csst_dask")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import the API on first use: torch, Dask and astropy take seconds."""
    if name in __all__:
        return getattr(import_module("csst_dask.runners.api"), name)
    raise AttributeError(f"module 'csst_dask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
