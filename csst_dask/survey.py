"""A survey of sky: a store of chips, what networks say of them, and maps of them. The command line calls it too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
        self.summaries: dict[str, Summary] = {}
        """What the last call did, by stage."""
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
        from csst_dask.runners.session import session

        self._refuse_selection("ingest")
        paths = check_inputs([inputs] if isinstance(inputs, str | PathLike) else list(inputs))
        config = self._with("ingest", settings)
        with (
            SurveyStore.reserve(self.location, config.ingest, config.mask) as lease,
            session(self.config, client, quiet=self.quiet) as (here, stages),
            SurveyStore.write(self.location, config.ingest, config.mask, lease=lease) as store,
        ):
            summary = ingest_survey(
                here, store, paths, config, *stages("ingest"), update=update, retry_failed=retry_failed
            )
        self._report({"ingest": summary})
        return summary

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
        from csst_dask.models.files import identify_pair
        from csst_dask.runners.predict import predict_survey
        from csst_dask.runners.session import session

        config = self._with("inference", settings)
        identify_pair(config.inference.weights)
        with (
            SurveyStore.reserve(self.location) as lease,
            session(self.config, client, quiet=self.quiet) as (here, stages),
            SurveyStore.write(self.location, lease=lease) as store,
        ):
            rows = self._rows(store).tolist() if self._wanted else None
            summary = predict_survey(here, store, config, *stages("predict"), chips=rows, retry_failed=retry_failed)
        self._report({"predict": summary})
        return summary

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
        from csst_dask.pipeline.skymap import MapPlan, check_map
        from csst_dask.runners.map import map_survey
        from csst_dask.runners.session import session

        config, older = self._with("map", {"nside": nside, **settings}), None if add is None else Path(add)
        check_map(config.map, older)
        store = SurveyStore.read(self.location)
        rows = self._rows(store).tolist() if self._wanted else None
        MapPlan(store, config.map, older, rows)
        with session(self.config, client, quiet=self.quiet) as (here, stages):
            sky, summary = map_survey(here, store, config, older, *stages("map"), chips=rows)
        self._report({"map": summary})
        return sky

    def run(self, *, update: bool = False, retry_failed: bool = False, client: Client | None = None) -> xr.Dataset:
        """Ingest, predict and map as the configuration says, block by block; called again it resumes.

        Parameters
        ----------
        update : bool
            Read chips again whose files have changed.
        retry_failed : bool
            Try chips again that failed in too many runs.
        client : distributed.Client, optional

        Returns
        -------
        xarray.Dataset
            The map.

        Raises
        ------
        ConfigError
            If the configuration lacks ``inputs`` or ``map.out``, or is wrong; nothing has been started then.
        """
        from csst_dask.runners.run import check_run, run_survey
        from csst_dask.runners.session import session

        self._refuse_selection("run")
        config = self.config.model_copy(update={"store": self.location})
        check_run(config)
        with (
            SurveyStore.reserve(self.location, config.ingest, config.mask) as lease,
            session(config, client, quiet=self.quiet) as (here, stages),
            SurveyStore.write(self.location, config.ingest, config.mask, lease=lease) as store,
        ):
            summaries, sky = run_survey(here, store, config, stages, update=update, retry_failed=retry_failed)
        self._report(summaries)
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
        from csst_dask.runners.session import session
        from csst_dask.runners.verify import verify_survey

        opened = SurveyStore.write(self.location, damaged=True) if repair else SurveyStore.read(self.location)
        with opened as store, session(self.config, client, quiet=self.quiet) as (here, stages):
            found, summary = verify_survey(here, store, self.config, *stages("verify"), repair=repair)
        self._report({"verify": summary})
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

    def _report(self, summaries: dict[str, Summary]) -> None:
        from csst_dask.pipeline.progress import print_summary

        self.summaries = summaries
        if not self.quiet:
            print_summary(summaries)


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
