"""Choose the two networks, and ask a worker how many chips it can take at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distributed import Client

from csst_dask.config import Config
from csst_dask.errors import ConfigError
from csst_dask.inference.networks import ModelPair, fitting_batch
from csst_dask.models.files import identify_pair
from csst_dask.runners.faults import Failure
from csst_dask.runners.window import Task, run_tasks
from csst_dask.store import SurveyStore


def choose_pair(
    client: Client, config: Config, store: SurveyStore | None = None, folder: Path | None = None
) -> ModelPair:
    """The networks of a configuration, with the batch that workers can take.

    Parameters
    ----------
    client : distributed.Client
    config : Config
        Sections ``inference`` and ``execution``.
    store : SurveyStore, optional
        Whose predictions are continued: a batch that is chosen is theirs, whatever the workers could take.
    folder : path, optional
        Weights; by default those of the configuration.

    Returns
    -------
    ModelPair

    Raises
    ------
    ConfigError
        If the weights are missing or damaged, or no worker can load them.
    """
    settings = config.inference
    pair = ModelPair(*identify_pair(folder or settings.weights), settings)
    if settings.batch != "auto":
        return replace(pair, batch=settings.batch)
    attrs = store.predictions.attrs if store is not None else {}
    if all(attrs.get(name) == value for name, value in pair.identity.items()) and isinstance(attrs.get("batch"), int):
        return replace(pair, batch=attrs["batch"])
    return replace(pair, batch=_ask(client, pair, config))


def _ask(client: Client, pair: ModelPair, config: Config) -> int:
    """The batch that a worker can take; a task like any other, since workers may still have to come."""
    [(_, found)] = run_tasks(client, "batch", fitting_batch, [Task("auto", (pair,))], config.execution)
    if isinstance(found, Failure):
        raise ConfigError(
            f"no worker could load the networks ({found.reason}); solve that, or set inference.device to cpu"
        )
    return found
