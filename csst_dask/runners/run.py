"""The whole pipeline from one configuration; running it again resumes."""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr
from distributed import Client

from csst_dask.config import Config
from csst_dask.errors import ConfigError
from csst_dask.models.files import identify_pair
from csst_dask.runners.fused import process_survey
from csst_dask.runners.ledger import Summary
from csst_dask.runners.map import check_map, map_survey
from csst_dask.store import predictions as stored
from csst_dask.store.survey import check_usable

Stage = Callable[[str], tuple[Callable[[str, str, str], None], Callable[[int], None]]]
"""Given a stage's name, returns what to call for each chip and with the number of chips."""


def check(config: Config) -> None:
    """Refuse a run that could not finish, before it starts.

    Raises
    ------
    ConfigError
        Names the field that is missing or wrong.
    """
    for name, value in (("inputs", config.inputs), ("store", config.store), ("map.out", config.map.out)):
        if not value:
            raise ConfigError(f"{name} is missing; a run needs inputs, store and map.out")
    for path in config.inputs:
        if not path.exists():
            raise ConfigError(f"inputs: {path} does not exist; check the path")
    check_usable(str(config.store), config.ingest, config.mask)
    check_map(config.map)
    identify_pair(config.inference.weights)


def run_survey(client: Client, config: Config, stage: Stage) -> tuple[dict[str, Summary], xr.Dataset]:
    """Ingest and predict block by block, then map.

    Parameters
    ----------
    client : distributed.Client
    config : Config
        With ``inputs``, ``store`` and ``map.out``.
    stage : callable
        Makes the progress calls of each stage.

    Returns
    -------
    summaries : dict of str to Summary
        By stage.
    sky : xarray.Dataset
    """
    check(config)
    path = str(config.store)
    ingested, predicted = process_survey(client, config.inputs, path, config, *stage("ingest and predict"))
    summaries = {"ingest": ingested, "predict": predicted}
    predictions = stored.read(path).load()
    sky, summaries["map"] = map_survey(client, predictions, config.map, None, *stage("map"), config.execution)
    return summaries, sky
