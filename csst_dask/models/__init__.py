"""The networks: how they are built, stored, read and calibrated."""

from csst_dask.models.calibrate import interval, residual_quantiles
from csst_dask.models.card import write_model_card
from csst_dask.models.classifiers import CLASSIFIERS, build_classifier
from csst_dask.models.regressor import REGRESSORS, build_regressor
from csst_dask.models.weights import LoadedModel, load_weights, round_weights, save_weights, weights_folder

__all__ = [
    "CLASSIFIERS",
    "REGRESSORS",
    "LoadedModel",
    "build_classifier",
    "build_regressor",
    "interval",
    "load_weights",
    "residual_quantiles",
    "round_weights",
    "save_weights",
    "weights_folder",
    "write_model_card",
]
