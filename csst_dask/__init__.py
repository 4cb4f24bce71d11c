"""Star-density maps from survey images: CSST detector frames in, an xarray sky map out.

>>> import csst_dask as cd
>>> client = cd.connect()
>>> survey = cd.Survey("survey.zarr")
>>> survey.ingest("exposures/")
>>> survey.predict()
>>> sky = survey.map(nside=1024)
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csst_dask.api import simulate, train
    from csst_dask.config import Config, load_config
    from csst_dask.errors import ConfigError
    from csst_dask.inference.arrays import predict_chips
    from csst_dask.maps import open_map
    from csst_dask.preprocess import measure_image
    from csst_dask.preprocess.direct import direct_counts
    from csst_dask.runners.cluster import connect
    from csst_dask.survey import Survey

_PLACES = {
    "Config": "config",
    "ConfigError": "errors",
    "Survey": "survey",
    "connect": "runners.cluster",
    "direct_counts": "preprocess.direct",
    "load_config": "config",
    "measure_image": "preprocess",
    "open_map": "maps",
    "predict_chips": "inference.arrays",
    "simulate": "api",
    "train": "api",
}

__all__ = [
    "Config",
    "ConfigError",
    "Survey",
    "connect",
    "direct_counts",
    "load_config",
    "measure_image",
    "open_map",
    "predict_chips",
    "simulate",
    "train",
]

try:
    __version__ = version("csst_dask")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import the API on first use: torch, Dask and astropy take seconds."""
    if name in _PLACES:
        return getattr(import_module(f"csst_dask.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'csst_dask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
