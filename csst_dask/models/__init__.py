"""The networks: how they are built, stored, read and calibrated."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csst_dask.models.calibrate import interval, residual_quantiles
    from csst_dask.models.card import write_model_card
    from csst_dask.models.classifiers import CLASSIFIERS, build_classifier
    from csst_dask.models.files import weights_folder
    from csst_dask.models.regressor import REGRESSORS, build_regressor
    from csst_dask.models.weights import LoadedModel, build_network, load_weights, round_weights, save_weights

__all__ = [
    "CLASSIFIERS",
    "REGRESSORS",
    "LoadedModel",
    "build_classifier",
    "build_network",
    "build_regressor",
    "interval",
    "load_weights",
    "residual_quantiles",
    "round_weights",
    "save_weights",
    "weights_folder",
    "write_model_card",
]

_PLACES = {
    "CLASSIFIERS": "classifiers",
    "LoadedModel": "weights",
    "REGRESSORS": "regressor",
    "build_classifier": "classifiers",
    "build_network": "weights",
    "build_regressor": "regressor",
    "interval": "calibrate",
    "load_weights": "weights",
    "residual_quantiles": "calibrate",
    "round_weights": "weights",
    "save_weights": "weights",
    "weights_folder": "files",
    "write_model_card": "card",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and much of the package does without."""
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
