"""From block statistics to predictions and routes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csst_dask.inference.predictor import Predictor, TwoStage, load_two_stage, predict_batch
    from csst_dask.inference.routing import route

__all__ = ["Predictor", "TwoStage", "load_two_stage", "predict_batch", "route"]

_PLACES = {
    "Predictor": "predictor",
    "TwoStage": "predictor",
    "load_two_stage": "predictor",
    "predict_batch": "predictor",
    "route": "routing",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and much of the package does without."""
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
