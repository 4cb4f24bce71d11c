"""From reduced maps to predictions and routes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csst_dask.inference.batching import Predictor
    from csst_dask.inference.routing import route
    from csst_dask.inference.two_stage import TwoStage, load_two_stage, predict_batch

__all__ = ["Predictor", "TwoStage", "load_two_stage", "predict_batch", "route"]

_PLACES = {
    "Predictor": "batching",
    "TwoStage": "two_stage",
    "load_two_stage": "two_stage",
    "predict_batch": "two_stage",
    "route": "routing",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and much of the package does without."""
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
