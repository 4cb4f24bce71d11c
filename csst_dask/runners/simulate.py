"""Simulated surveys: to FITS files with truth, or straight into a store."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client
from numpy.typing import NDArray

from csst_dask.config import Config, IngestConfig, SimulationConfig, load_config
from csst_dask.errors import ConfigError
from csst_dask.io.headers import card_bytes
from csst_dask.pipeline.block import Work
from csst_dask.pipeline.plan import Candidate, plan_reading
from csst_dask.pipeline.record import Progress, Recorder
from csst_dask.pipeline.source import OpenChip
from csst_dask.pipeline.summary import Summary
from csst_dask.runners.blocks import Expect, announce, divide, recording, run_blocks
from csst_dask.runners.faults import Failure
from csst_dask.runners.window import Task, run_tasks
from csst_dask.schema import STAR_LIMIT, ChipFiles
from csst_dask.simulation.exposure import Exposure
from csst_dask.simulation.product import chip_info, chip_key, expected_files, make_headers, write_chip
from csst_dask.simulation.renderer import Renderer
from csst_dask.simulation.survey import plan_survey
from csst_dask.store import SurveyStore
from csst_dask.store.location import root_document

FILE = "simulation.json"
"""Says in a folder of simulated files which survey they belong to."""


def check_same_survey(where: Path | str, config: SimulationConfig) -> None:
    """Refuse to mix two simulated surveys in one folder or store, since their chips share names.

    Parameters
    ----------
    where : Path or str
        Folder of files, or survey store.
    config : SimulationConfig
        More exposures of the same survey are welcome.

    Raises
    ------
    ConfigError
        Names the first setting that differs.
    """
    found: dict = {}
    if isinstance(where, Path):
        if (where / FILE).exists():
            found = json.loads((where / FILE).read_text())
    elif (root := root_document(where)) is not None:
        found = root.get("attributes", {}).get("simulation", {})
    wanted = survey_identity(config)
    for name, value in found.items():
        if wanted.get(name) != value:
            raise ConfigError(
                f"simulation.{name}: {where} holds a survey simulated with {value!r}, not {wanted.get(name)!r}; "
                "use another place or that setting"
            )


def survey_identity(config: SimulationConfig) -> dict:
    """What a survey is, apart from its length; other surveys are named by their content, not by their paths."""
    own = json.loads(config.model_dump_json(exclude={"exposures", "avoid", "psf"}))
    others = [load_config(path).simulation for path in config.avoid]
    return own | {
        "avoid": [survey_identity(other) | {"exposures": other.exposures} for other in others],
        "psf": None if config.psf is None else config.psf.name,
    }


def simulate_files(
    client: Client,
    folder: Path,
    config: Config,
    progress: Progress | None = None,
    expect: Expect | None = None,
    exposures: list[Exposure] | None = None,
) -> Summary:
    """Write level-1 files and truth catalogues; chips whose files exist are left alone.

    Parameters
    ----------
    client : distributed.Client
    folder : Path
        Receives a sub-folder for each exposure.
    config : Config
    progress, expect : callable, optional
    exposures : list of Exposure, optional
        By default all of the survey that the configuration describes.

    Returns
    -------
    Summary
    """
    start, summary = time.monotonic(), Summary()
    check_same_survey(folder, config.simulation)
    plan = plan_survey(config.simulation) if exposures is None else exposures
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(survey_identity(config.simulation), indent=1))
    wanted = [(exposure, detector) for exposure in plan for detector in exposure.detectors]
    todo = [
        chip for chip in wanted if not Path(expected_files(folder, *chip, config.simulation.product).image).exists()
    ]
    summary.skipped = len(wanted) - len(todo)
    if expect is not None:
        expect(len(todo))
    tasks = (
        Task(str(chip_key(exposure, detector)), (exposure, detector, str(folder), config))
        for exposure, detector in todo
    )
    for task, result in run_tasks(client, "simulate", simulate_to_files, tasks, config.execution, summary.tasks):
        failed = isinstance(result, Failure)
        summary.failed += failed
        summary.done += not failed
        if failed:
            summary.reasons[result.reason] += 1
        if progress is not None:
            progress(task.name, "failed" if failed else "done", result.reason if failed else "")
    summary.seconds = time.monotonic() - start
    return summary


def simulate_store(
    client: Client,
    store: SurveyStore,
    config: Config,
    progress: Progress | None = None,
    expect: Expect | None = None,
    *,
    retry_failed: bool = False,
) -> Summary:
    """Render chips, measure them in memory and store them; chips that are in the store are left alone.

    Parameters
    ----------
    client : distributed.Client
    store : SurveyStore
        Opened to write; one without pixels needs no mask.
    config : Config
    progress, expect : callable, optional
    retry_failed : bool
        Try chips again that failed in too many runs.

    Returns
    -------
    Summary
    """
    start, summary = time.monotonic(), Summary()
    check_same_survey(store.location, config.simulation)
    plan = plan_survey(config.simulation)
    store.set_attrs({"simulation": survey_identity(config.simulation), "star_limit": STAR_LIMIT})
    chips = [
        Candidate(chip_key(exposure, detector), (exposure, detector), f"simulated {exposure.field}")
        for exposure in plan
        for detector in exposure.detectors
    ]
    todo = plan_reading(store, chips, config, summary, retry_failed=retry_failed)
    announce(expect, todo)
    recorder = Recorder(store, summary, Summary(), Summary(), progress, **recording(config.execution))
    if todo:
        work = Work(store.location, store.rows, config, simulated_chip)
        run_blocks(client, "simulate", divide(1, todo), work, recorder, summary.tasks)
    else:
        recorder.finish()
    summary.seconds = time.monotonic() - start
    return summary


@contextmanager
def simulated_chip(item: tuple[Exposure, int], config: IngestConfig) -> Iterator[OpenChip]:
    """Render a chip and serve its rows; a source of `csst_dask.pipeline`.

    Parameters
    ----------
    item : (Exposure, int)
        Exposure and detector.
    config : IngestConfig

    Yields
    ------
    OpenChip
    """
    chip, ready = _renderer(config.frame).expose(*item)
    if config.pixels != "none":
        ready(0, chip.image.shape[0])

    def rows(y0: int, y1: int) -> tuple[NDArray, NDArray, None]:
        if config.pixels == "none":  # sky and noise come as the rows are read, while they are in the cache
            ready(y0, y1)
        return chip.image[y0:y1], chip.flags[y0:y1], None

    primary, image = make_headers(chip)
    yield OpenChip(chip_info(chip), rows, card_bytes(image, primary))


def simulate_to_files(exposure: Exposure, detector: int, folder: str, config: Config) -> tuple[ChipFiles, int, int]:
    """Render one chip and write its files.

    Returns
    -------
    files : ChipFiles
    n_star, n_bright : int
        Truth.
    """
    chip = _renderer(config.ingest.frame).render(exposure, detector)
    return write_chip(chip, Path(folder), config.simulation.product), chip.n_star, chip.n_bright


_renderers = threading.local()


def _renderer(shape: tuple[int, int]) -> Renderer:
    """One for a thread, whose buffers it holds."""
    found: Renderer | None = getattr(_renderers, "found", None)
    if found is None or found.image.shape != shape:
        found = _renderers.found = Renderer(shape)
    return found
