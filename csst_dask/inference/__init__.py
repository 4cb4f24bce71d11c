"""From reduced maps to predictions and routes."""

from csst_dask.inference.routing import route
from csst_dask.inference.two_stage import INTERVAL_LEVEL, TwoStage, load_two_stage, predict_batch

__all__ = ["INTERVAL_LEVEL", "TwoStage", "load_two_stage", "predict_batch", "route"]
