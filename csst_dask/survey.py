"""A survey of sky: a store of chips, what networks say of them, and maps of them. The command line calls it too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from csst_dask.config import Config, load_config, with_settings
from csst_dask.errors import ConfigError
from csst_dask.schema import STATUSES
from csst_dask.store import SurveyStore, locate
from csst_dask.store.dataset import open_dataset

if TYPE_CHECKING:
    from csst_dask.pipeline.summary import Summary
    from csst_dask.runners.cluster import Client

Inputs = str | PathLike[str] | Sequence[str | PathLike[str]]


class Survey:
    """A survey store: images go in, predictions and maps come out.

    Parameters
    ----------
    path : path or str
        Folder or URL of a store; the first `ingest` makes it where there is none.
    config : path or Config, optional
        Settings of all that is done with it.
    quiet : bool
        Show neither progress nor summaries.

    Examples
    --------
    >>> survey = Survey("survey.zarr")
    >>> survey.ingest("exposures/")
    >>> survey.predict()
    >>> sky = survey.select(band="g").map(nside=1024)
    """

    def __init__(
        self, path: str | PathLike[str], *, config: str | PathLike[str] | Config | None = None, quiet: bool = False
    ):
        self.location = locate(path)
        self.config = config if isinstance(config, Config) else load_config(None if config is None else Path(config))
        self.quiet = quiet
        self._wanted: dict[str, Any] = {}

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}={value!r}" for name, value in self._wanted.items())
        return f"Survey({self.location!r}{', ' + chosen if chosen else ''})"

    # what it holds

    @property
    def chips(self) -> xr.Dataset:
        """All that the store holds of its chips, lazily opened; ``status`` is text, ``chip`` the row."""
        store = SurveyStore.read(self.location)
        return open_dataset(store).isel(chip=self._rows(store))

    @property
    def predictions(self) -> xr.Dataset:
        """What is predicted of the chips, lazily opened; ``route`` is text, ``predicted`` tells which have any."""
        store = SurveyStore.read(self.location)
        return open_dataset(store, predictions=True).isel(chip=self._rows(store))

    def select(self, **wanted: Any) -> Survey:
        """A survey of some of its chips.

        Parameters
        ----------
        **wanted
            Per-chip variables of the store, such as ``band`` or ``obs_id``, and the value or values that they have.

        Returns
        -------
        Survey
        """
        found = Survey(self.location, config=self.config, quiet=self.quiet)
        found._wanted = {**self._wanted, **wanted}
        return found

    def status(self) -> dict[str, Any]:
        """How far the survey is.

        Returns
        -------
        dict
            ``chips`` (count by status), ``predicted``, ``routes``, and lists of ``rejected``, ``failed``,
            ``unpredicted`` and ``given_up`` chips, ``notes`` on accepted ones, and ``files`` that gave no
            chip, each with its reason.
        """
        store = SurveyStore.read(self.location)
        rows, predictions = self._rows(store), store.predictions
        status, attempts = store.ledger["status"][rows], store.ledger["predict_attempts"][rows]
        reason, source = store.column("reason", rows), store.column("source", rows)
        text, most = np.array(STATUSES)[status], self.config.execution.attempts
        given_up = (attempts >= most) | (store.ledger["attempts"][rows] >= most)

        def listed(wanted: NDArray[np.bool_]) -> list[dict[str, Any]]:
            places = np.flatnonzero(wanted).tolist()
            columns = {"chip": [store.name(row) for row in rows[places].tolist()], "row": rows[places].tolist()}
            columns |= {"source": source[places].tolist(), "reason": reason[places].tolist()}
            return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

        predicted = predictions.state[rows] == 1
        counts, routes = Counter(text.tolist()), Counter(predictions.route_names(rows).tolist())
        return {
            "store": self.location,
            "chips": {name: counts.get(name, 0) for name in STATUSES},
            "predicted": int(predicted.sum()),
            "routes": {name: count for name, count in routes.items() if name != "none"},
            "rejected": listed(text == "rejected"),
            "failed": listed((text == "failed") & ~given_up),
            "given_up": listed(((text == "failed") | (text == "done")) & given_up),
            "unpredicted": listed((text == "done") & (attempts > 0) & ~given_up),
            "notes": listed(np.isin(text, ("done", "superseded")) & (reason != "") & (attempts == 0)),
            "files": [{"path": path, "reason": why} for path, why in store.files.read().items()],
        }

    # what is done with it

    def ingest(
        self,
        inputs: Inputs,
        *,
        update: bool = False,
        retry_failed: bool = False,
        client: Client | None = None,
        **settings: Any,
    ) -> Summary:
        """Bring detector images into the store; chips that are in it already are left alone.

        Parameters
        ----------
        inputs : path or sequence of path
            FITS files, or folders that are searched recursively.
        update : bool
            Read chips again whose files have changed.
        retry_failed : bool
            Try chips again that failed in too many runs.
        client : distributed.Client, optional
            By default the one in use, else a local cluster for the length of the call.
        **settings
            Fields of the ``ingest`` section, such as ``pixels="none"``.

        Returns
        -------
        Summary

        Raises
        ------
        ConfigError
            If an input or setting is wrong; nothing has been started then.
        """
        from csst_dask.runners.ingest import ingest_survey

        self._refuse_selection("ingest")
        paths = check_inputs([inputs] if isinstance(inputs, str | PathLike) else list(inputs))
        config = self._with("ingest", settings)
        with (
            SurveyStore.reserve(self.location, config.ingest, config.mask) as lease,
            self._session(client) as (here, stages),
            SurveyStore.write(self.location, config.ingest, config.mask, lease=lease) as store,
        ):
            summary = ingest_survey(
                here, store, paths, config, *stages("ingest"), update=update, retry_failed=retry_failed
            )
        return self._report("ingest", summary)

    def predict(self, *, retry_failed: bool = False, client: Client | None = None, **settings: Any) -> Summary:
        """Classify chips, count their bright stars and route them.

        Parameters
        ----------
        retry_failed : bool
            Try chips again that failed in too many runs.
        client : distributed.Client, optional
        **settings
            Fields of the ``inference`` section, such as ``weights="my-weights/"``.

        Returns
        -------
        Summary
        """
        from csst_dask.runners.predict import predict_survey

        config = self._with("inference", settings)
        with (
            SurveyStore.reserve(self.location) as lease,
            self._session(client) as (here, stages),
            SurveyStore.write(self.location, lease=lease) as store,
        ):
            rows = self._rows(store).tolist() if self._wanted else None
            summary = predict_survey(here, store, config, *stages("predict"), chips=rows, retry_failed=retry_failed)
        return self._report("predict", summary)

    def map(
        self,
        nside: int = 1024,
        *,
        add: str | PathLike[str] | None = None,
        client: Client | None = None,
        **settings: Any,
    ) -> xr.Dataset:
        """Star-density map of the predicted chips.

        Parameters
        ----------
        nside : int
            HEALPix resolution, a power of two.
        add : path, optional
            An older map of other chips, to which these are added.
        client : distributed.Client, optional
        **settings
            Fields of the ``map`` section, such as ``out="map.zarr"``.

        Returns
        -------
        xarray.Dataset
            Dimensions (band, cells) with NESTED ICRS ``cell_ids``.
        """
        from csst_dask.pipeline.skymap import check_map
        from csst_dask.runners.map import map_survey

        config, older = self._with("map", {"nside": nside, **settings}), None if add is None else Path(add)
        check_map(config.map, older)
        store = SurveyStore.read(self.location)
        rows = self._rows(store).tolist() if self._wanted else None
        with self._session(client) as (here, stages):
            sky, summary = map_survey(here, store, config, older, *stages("map"), chips=rows)
        self._report("map", summary)
        return sky

    def verify(self, *, repair: bool = False, client: Client | None = None) -> list[dict[str, Any]]:
        """Read every chunk again, compute again what follows from the stored pixels, and name what differs.

        Parameters
        ----------
        repair : bool
            Make damaged chips pending, so that the next `ingest` reads them again.
        client : distributed.Client, optional

        Returns
        -------
        list of dict
            ``chip``, ``variable`` and ``difference`` of each damage.
        """
        from csst_dask.runners.verify import verify_survey

        opened = SurveyStore.write(self.location, damaged=True) if repair else SurveyStore.read(self.location)
        with opened as store, self._session(client) as (here, stages):
            found, summary = verify_survey(here, store, self.config, *stages("verify"), repair=repair)
        self._report("verify", summary)
        return found

    # inside

    def _rows(self, store: SurveyStore) -> NDArray[np.int64]:
        good = np.ones(store.rows, bool)
        for name, value in self._wanted.items():
            if name != "chip" and (name not in store.arrays or store.arrays[name].ndim != 1):
                raise ConfigError(f"select: chips have no variable {name!r}; expected one such as band or obs_id")
            column = np.arange(store.rows) if name == "chip" else store.column(name)
            column = np.array(STATUSES)[column] if name == "status" else column
            values = np.atleast_1d(np.asarray(value))
            good &= np.isin(column, values.astype(str) if column.dtype.kind == "U" else values)
        return np.flatnonzero(good)

    def _refuse_selection(self, what: str) -> None:
        if self._wanted:
            raise ConfigError(
                f"{self!r} is a selection, to which nothing can be added; {what} into Survey({self.location!r})"
            )

    def _with(self, section: str, settings: Mapping[str, Any]) -> Config:
        return with_settings(self.config, {f"{section}.{name}": value for name, value in settings.items()}, "arguments")

    @contextmanager
    def _session(self, client: Client | None) -> Iterator[tuple[Client, Callable[[str], tuple[Any, Any]]]]:
        from csst_dask.pipeline.progress import Stages
        from csst_dask.runners.cluster import current_client

        with current_client(client) as here:
            if self.quiet:
                yield here, lambda name: (None, None)
                return
            with Stages() as stages:
                yield here, stages

    def _report(self, stage: str, summary: Summary) -> Summary:
        from csst_dask.pipeline.progress import print_summary

        if not self.quiet:
            print_summary({stage: summary}, {})
        return summary


def check_inputs(inputs: Sequence[str | PathLike[str]]) -> list[Path]:
    """Inputs as absolute paths.

    Raises
    ------
    ConfigError
        If one is a URL, or does not exist.
    """
    from csst_dask.outputs import local_path

    paths = [local_path(path, "inputs") for path in inputs]
    missing = [str(path) for path in paths if not path.exists() and not path.is_symlink()]
    if missing:
        raise ConfigError(f"inputs: {', '.join(missing)} does not exist; check the path")
    return [path.absolute() for path in paths]


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
    """
    from csst_dask.outputs import local_path
    from csst_dask.runners.simulate import simulate_files, simulate_store

    if (out is None) == (store is None):
        raise ConfigError("simulate: give out (a folder for FITS files) or store (a survey store), one of them")
    survey = Survey(store if store is not None else ".", config=config)
    chosen = survey._with("simulation", settings)
    if out is not None:
        folder = local_path(out, "out").absolute()
        with survey._session(client) as (here, stages):
            summary = simulate_files(here, folder, chosen, *stages("simulate"))
        survey._report("simulate", summary)
        return folder
    keep_mask = chosen.ingest.pixels != "none"
    with (
        SurveyStore.reserve(survey.location, chosen.ingest, chosen.mask) as lease,
        survey._session(client) as (here, stages),
        SurveyStore.write(survey.location, chosen.ingest, chosen.mask, keep_mask=keep_mask, lease=lease) as opened,
    ):
        summary = simulate_store(here, opened, chosen, *stages("simulate"))
    survey._report("simulate", summary)
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
    return train_network(task, whole.location, Path(out), whole._with("training", settings))
