"""The command line: parse, load the configuration, call one runner."""

from csst_dask.cli import evaluate, look, pipeline, plan, simulate, training
from csst_dask.cli.app import app, main

__all__ = ["app", "evaluate", "look", "main", "pipeline", "plan", "simulate", "training"]
