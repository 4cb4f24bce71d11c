"""What the top level does without a survey at hand: simulate one, demonstrate one, train on one."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csst_dask.config import Config, load_config, with_settings
from csst_dask.errors import ConfigError
from csst_dask.outputs import local_path
from csst_dask.pipeline.progress import print_summary
from csst_dask.store import SurveyStore, locate
from csst_dask.survey import Survey

if TYPE_CHECKING:
    from csst_dask.pipeline.summary import Summary
    from csst_dask.runners.cluster import Client


def simulate(
    out: str | PathLike[str] | None = None,
    *,
    store: str | PathLike[str] | None = None,
    config: str | PathLike[str] | Config | None = None,
    client: Client | None = None,
    **settings: Any,
) -> Path | Survey:
    """Simulate a survey with truth.

    Parameters
    ----------
    out : path, optional
        Folder for FITS files and truth catalogues.
    store : path, optional
        Instead of ``out``: measure the rendered chips in memory into a survey store.
    config : path or Config, optional
    client : distributed.Client, optional
    **settings
        Fields of the ``simulation`` section, such as ``exposures=3``.

    Returns
    -------
    Path or Survey
        ``out``, or the survey of ``store``.

    Raises
    ------
    ConfigError
        If a setting is wrong, or the place holds another survey; nothing has been started then.
    """
    if (out is None) == (store is None):
        raise ConfigError("simulate: give out (a folder for FITS files) or store (a survey store), one of them")
    chosen = config if isinstance(config, Config) else load_config(None if config is None else Path(config))
    chosen = with_settings(chosen, {f"simulation.{name}": value for name, value in settings.items()}, "arguments")
    if store is not None:
        return simulate_survey(store, chosen, client)
    folder = local_path(str(out), "out").absolute()
    simulate_folder(folder, chosen, client)
    return folder


def simulate_folder(folder: Path, config: Config, client: Client | None = None) -> Summary:
    """Simulate FITS files and truth catalogues into a folder; those that it has are left alone.

    Parameters
    ----------
    folder : Path
    config : Config
        Section ``simulation``.
    client : distributed.Client, optional

    Returns
    -------
    Summary
    """
    from csst_dask.runners.session import session
    from csst_dask.runners.simulate import check_same_survey, simulate_files
    from csst_dask.simulation.survey import plan_survey

    plan_survey(config.simulation)
    check_same_survey(folder, config.simulation)
    with session(config, client) as (here, stages):
        summary = simulate_files(here, folder, config, *stages("simulate"))
    print_summary({"simulate": summary})
    return summary


def simulate_survey(store: str | PathLike[str], config: Config, client: Client | None = None) -> Survey:
    """Simulate chips and measure them in memory into a survey store; those that it has are left alone.

    Parameters
    ----------
    store : path
        Folder or URL.
    config : Config
        Sections ``simulation``, ``ingest`` and ``mask``.
    client : distributed.Client, optional

    Returns
    -------
    Survey
    """
    from csst_dask.runners.session import session
    from csst_dask.runners.simulate import check_same_survey, simulate_store
    from csst_dask.simulation.survey import plan_survey

    survey, layout = Survey(store, config=config), (config.ingest, config.mask)
    plan_survey(config.simulation)
    check_same_survey(survey.location, config.simulation)
    keep_mask = config.ingest.pixels != "none"
    with (
        SurveyStore.reserve(survey.location, *layout) as lease,
        session(config, client) as (here, stages),
        SurveyStore.write(survey.location, *layout, keep_mask=keep_mask, lease=lease) as opened,
    ):
        survey.summaries = {"simulate": simulate_store(here, opened, config, *stages("simulate"))}
    print_summary(survey.summaries)
    return survey


def demonstrate(out: Path, config: Config, *, keep: bool = False, client: Client | None = None) -> Survey:
    """Simulate a strip of sky, and turn its full-size images into a map with a report.

    Parameters
    ----------
    out : Path
        Folder for ``survey.zarr``, ``map.zarr``, ``map.png`` and ``report.md``.
    config : Config
    keep : bool
        Keep the FITS files.
    client : distributed.Client, optional

    Returns
    -------
    Survey
    """
    from csst_dask.pipeline.skymap import check_map
    from csst_dask.runners.demo import demo_config, run_demo
    from csst_dask.runners.session import session

    chosen = demo_config(out, config)
    check_map(chosen.map)
    survey, layout = Survey(locate(str(chosen.store)), config=chosen), (chosen.ingest, chosen.mask)
    with (
        SurveyStore.reserve(survey.location, *layout) as lease,
        session(chosen, client) as (here, stages),
        SurveyStore.write(survey.location, *layout, lease=lease) as store,
    ):
        survey.summaries = run_demo(here, store, out, chosen, stages, keep)
    print_summary(survey.summaries)
    return survey


def train(task: str, survey: Survey | str | PathLike[str], out: str | PathLike[str], **settings: Any) -> Any:
    """Train a network from a survey with truth: in this process, or with a rank for each of several GPUs.

    Parameters
    ----------
    task : str
        ``classifier`` or ``regressor``.
    survey : Survey or path
        All its chips with truth are used.
    out : path
        Folder for checkpoints, weights and model card.
    **settings
        Fields of the ``training`` section.

    Returns
    -------
    csst_dask.training.FitResult
    """
    from csst_dask.runners.train import train_network

    whole = survey if isinstance(survey, Survey) else Survey(survey)
    chosen = with_settings(whole.config, {f"training.{name}": value for name, value in settings.items()}, "arguments")
    return train_network(task, whole.location, Path(out), chosen)
