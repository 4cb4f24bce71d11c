"""Simulated surveys: to FITS files with truth, or straight into a store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from distributed import Client

from csst_dask.config import Config, SimulationConfig, load_config
from csst_dask.errors import ConfigError
from csst_dask.runners.chips import simulate_to_files, simulate_to_store
from csst_dask.runners.faults import Failure
from csst_dask.runners.ingest import Progress
from csst_dask.runners.ledger import Ledger, Summary
from csst_dask.runners.window import Task, run_tasks
from csst_dask.simulation.exposure import Exposure
from csst_dask.simulation.product import chip_key, expected_files
from csst_dask.simulation.survey import plan_survey
from csst_dask.store.survey import exists, locate, open_group

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
    elif exists(where):
        found = open_group(where).attrs.asdict().get("simulation", {})  # type: ignore[assignment]
    wanted = _identity(config)
    for name, value in found.items():
        if wanted.get(name) != value:
            raise ConfigError(
                f"simulation.{name}: {where} holds a survey simulated with {value!r}, not {wanted.get(name)!r}; "
                "use another place or that setting"
            )


def _identity(config: SimulationConfig) -> dict:
    """What a survey is, apart from its length; other surveys are named by their content, not by their paths."""
    own = json.loads(config.model_dump_json(exclude={"exposures", "avoid", "psf"}))
    others = [load_config(path).simulation for path in config.avoid]
    return own | {
        "avoid": [_identity(other) | {"exposures": other.exposures} for other in others],
        "psf": None if config.psf is None else config.psf.name,
    }


def simulate_files(
    client: Client,
    folder: Path,
    config: Config,
    progress: Progress | None = None,
    expect: Callable[[int], None] | None = None,
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
    (folder / FILE).write_text(json.dumps(_identity(config.simulation), indent=1))
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
    for task, result in run_tasks(client, "simulate", simulate_to_files, tasks, config.execution, summary.effort):
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
    path: str,
    config: Config,
    progress: Progress | None = None,
    expect: Callable[[int], None] | None = None,
) -> Summary:
    """Render chips, reduce them in memory and store them; chips that are in the store are left alone.

    Parameters
    ----------
    client : distributed.Client
    path : str
        Store; created where there is none. With ``ingest.pixels: none`` it holds neither image nor mask.
    config : Config
    progress, expect : callable, optional

    Returns
    -------
    Summary
    """
    start, summary, path = time.monotonic(), Summary(), locate(path)
    plan = plan_survey(config.simulation)
    chips = {chip_key(e, detector): (e, detector) for e in plan for detector in e.detectors}
    check_same_survey(path, config.simulation)
    ledger = Ledger(path, config, keep_mask=config.ingest.pixels != "none")
    open_group(path, "r+").attrs["simulation"] = _identity(config.simulation)
    todo = ledger.to_do([(key, f"simulated {e.field}", "") for key, (e, _) in chips.items()], summary)
    if expect is not None:
        expect(len(todo))
    tasks = (Task(str(key), (*chips[key], row, path, config), key) for key, row in todo)
    outcomes = run_tasks(client, "simulate", simulate_to_store, tasks, config.execution, summary.effort)
    ledger.consume(outcomes, summary, progress)
    summary.seconds = time.monotonic() - start
    return summary
