"""The same steps as the command line, for notebooks: xarray objects in and out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from distributed import Client

from csst_dask.config import Config, load_config, with_settings
from csst_dask.errors import ConfigError
from csst_dask.runners import ingest as ingesting
from csst_dask.runners import map as mapping
from csst_dask.runners import predict as predicting
from csst_dask.runners import simulate as simulating
from csst_dask.runners.cluster import connect, current_client
from csst_dask.runners.ledger import Summary
from csst_dask.store import predictions as stored
from csst_dask.store.survey import open_survey

if TYPE_CHECKING:
    from csst_dask.training import FitResult

__all__ = ["connect", "density_map", "ingest", "open_survey", "predict", "simulate", "train"]


def ingest(
    inputs: str | Path | Sequence[str | Path],
    store: str | Path,
    *,
    config: str | Path | Config | None = None,
    client: Client | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Bring detector images into a survey store.

    Parameters
    ----------
    inputs : path or sequence of path
        FITS files, or folders that are searched recursively.
    store : path
        Created where there is none; chips that are in it already are left alone.
    config : path or Config, optional
    client : distributed.Client, optional
        By default the one in use, else a local cluster for the length of the call.
    **settings
        Fields of the ``ingest`` section, such as ``pixels="none"``.

    Returns
    -------
    xarray.Dataset
        The whole survey, lazily opened. ``status`` and ``reason`` tell what became of each chip.

    Raises
    ------
    ConfigError
        If an input or setting is wrong; nothing has been started then.
    """
    paths = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    chosen = _with(config, "ingest", settings)
    with current_client(client) as here:
        summary = ingesting.ingest_survey(here, paths, str(store), chosen)
    _warn(summary)
    return open_survey(store)


def predict(
    survey: xr.Dataset | str | Path,
    *,
    config: str | Path | Config | None = None,
    client: Client | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Classify chips, count their bright stars and route them.

    Parameters
    ----------
    survey : xarray.Dataset or path
        As `ingest` or `open_survey` gives it, or any selection of its chips; or a store.
    config : path or Config, optional
    client : distributed.Client, optional
    **settings
        Fields of the ``inference`` section, such as ``weights="my-weights/"``.

    Returns
    -------
    xarray.Dataset
        Predictions of those chips, over ``chip``; also kept in the store.
    """
    path, chips = _store_of(survey)
    chosen = _with(config, "inference", settings)
    with current_client(client) as here:
        _warn(predicting.predict_survey(here, path, chosen, chips=chips))
    found = stored.read(path).load()
    return found if chips is None else found.sel(chip=chips)


def density_map(
    predictions: xr.Dataset,
    nside: int = 1024,
    *,
    config: str | Path | Config | None = None,
    client: Client | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Star-density map of predicted chips.

    Parameters
    ----------
    predictions : xarray.Dataset
        As `predict` gives it, or any selection of its chips.
    nside : int
        HEALPix resolution, a power of two.
    config : path or Config, optional
    client : distributed.Client, optional
    **settings
        Fields of the ``map`` section, such as ``out="map.zarr"``.

    Returns
    -------
    xarray.Dataset
        Dimensions (band, cells) with NESTED ICRS ``cell_ids``.
    """
    chosen = _with(config, "map", {"nside": nside, **settings})
    with current_client(client) as here:
        sky, summary = mapping.map_survey(here, predictions, chosen.map, execution=chosen.execution)
    _warn(summary)
    return sky


def simulate(
    out: str | Path | None = None,
    *,
    store: str | Path | None = None,
    config: str | Path | Config | None = None,
    client: Client | None = None,
    **settings: Any,
) -> Path | xr.Dataset:
    """Simulate a survey with truth.

    Parameters
    ----------
    out : path, optional
        Folder for FITS files and truth catalogues.
    store : path, optional
        Instead of ``out``: reduce the rendered chips in memory into a survey store.
    config : path or Config, optional
    client : distributed.Client, optional
    **settings
        Fields of the ``simulation`` section, such as ``exposures=3``.

    Returns
    -------
    Path or xarray.Dataset
        ``out``, or the survey of ``store``.
    """
    if (out is None) == (store is None):
        raise ConfigError("simulate: give out (a folder for FITS files) or store (a survey store), one of them")
    chosen = _with(config, "simulation", settings)
    with current_client(client) as here:
        if store is None:
            _warn(simulating.simulate_files(here, Path(out).resolve(), chosen))  # type: ignore[arg-type]
            return Path(out)  # type: ignore[arg-type]
        _warn(simulating.simulate_store(here, str(store), chosen))
    return open_survey(store)


def train(task: str, survey: xr.Dataset | str | Path, out: str | Path, **settings: Any) -> FitResult:
    """Train a network from a survey store with truth: in this process, or with a rank for each of several GPUs.

    Parameters
    ----------
    task : str
        ``classifier`` or ``regressor``.
    survey : xarray.Dataset or path
        Store, or a dataset of it; all its chips with truth are used.
    out : path
        Folder for checkpoints, weights and model card.
    **settings
        Fields of the ``training`` section.

    Returns
    -------
    FitResult
    """
    from csst_dask.runners.train import train_network

    chosen = _with(None, "training", settings)
    return train_network(task, _store_of(survey)[0], Path(out), chosen)


def _with(config: str | Path | Config | None, section: str, settings: dict[str, Any]) -> Config:
    base = config if isinstance(config, Config) else load_config(config)
    return with_settings(base, {f"{section}.{name}": value for name, value in settings.items()}, "arguments")


def _store_of(survey: xr.Dataset | str | Path) -> tuple[str, list[int] | None]:
    if not isinstance(survey, xr.Dataset):
        return str(survey), None
    path = survey.attrs.get("store")
    if not path:
        raise ConfigError("the survey has no attribute 'store'; open it with csst_dask.open_survey(path)")
    return path, np.atleast_1d(survey["chip"].values).tolist()


def _warn(summary: Summary) -> None:
    """Say in one line what did not come through; the store has the details."""
    troubled = summary.rejected + summary.failed + summary.files
    if troubled:
        import warnings

        worst = "; ".join(f"{count} x {reason}" for reason, count in summary.reasons.most_common(3))
        warnings.warn(
            f"{summary.rejected} chips rejected, {summary.failed} failed, {summary.files} inputs gave no chip: {worst}",
            stacklevel=3,
        )
