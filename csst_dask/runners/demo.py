"""The demonstration: simulated full-size exposures, one after the other, become a map and a report."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

from distributed import Client

from csst_dask.config import Config, with_settings
from csst_dask.evaluation.report import compare, markdown, plot_counts
from csst_dask.pipeline.summary import Summary
from csst_dask.runners.ingest import ingest_survey
from csst_dask.runners.map import map_survey
from csst_dask.runners.predict import predict_survey
from csst_dask.runners.session import Stage
from csst_dask.runners.simulate import simulate_files
from csst_dask.schema import DONE
from csst_dask.simulation.regions import DEMO
from csst_dask.simulation.survey import DEMO_COUNTS, plan_survey
from csst_dask.store import SurveyStore

DETECTORS = (23, 24)
"""Two neighbours, g and i, so that each band's fields form a strip."""

NSIDE = 4096
"""Cells of 0.86 arcmin show the outlines of single detectors."""

REPORT = "report.md"
"""The report's name in the folder of the demonstration."""


def demo_config(out: Path, config: Config) -> Config:
    """The configuration of the demonstration, with its outputs under one folder."""
    return with_settings(
        config,
        {
            "store": str(out / "survey.zarr"),
            "simulation.region": DEMO,
            "simulation.exposures": len(DEMO_COUNTS),
            "simulation.detectors": DETECTORS,
            "map.out": out / "map.zarr",
            "map.png": out / "map.png",
            "map.nside": NSIDE,
        },
    )


def run_demo(
    client: Client, store: SurveyStore, out: Path, config: Config, stage: Stage, keep: bool = False
) -> dict[str, Summary]:
    """Simulate, ingest, predict, map and report.

    The files of an exposure are removed as soon as it is in the store, unless they are to be kept.

    Parameters
    ----------
    client : distributed.Client
    store : SurveyStore
        Opened to write.
    out : Path
        Receives everything.
    config : Config
        As `demo_config` makes it.
    stage : callable
        Makes the progress calls of each stage.
    keep : bool
        Keep the FITS files.

    Returns
    -------
    dict of str to Summary
        By stage.
    """
    start = time.monotonic()
    folder = out / "exposures"
    totals = {"simulate": Summary(), "ingest": Summary()}
    out.mkdir(parents=True, exist_ok=True)
    done = Counter[str]()
    done.update(store.ledger["obs_id"][store.ledger["status"] == DONE].tolist())
    for exposure in plan_survey(config.simulation):
        if done[exposure.obs_id] == len(exposure.detectors) and not keep:
            totals["ingest"].skipped += len(exposure.detectors)
            continue
        name = f"exposure {exposure.index + 1}/{config.simulation.exposures}"
        made = simulate_files(client, folder, config, *stage(f"simulate {name}"), exposures=[exposure])
        taken = ingest_survey(client, store, [folder / exposure.obs_id], config, *stage(f"ingest {name}"))
        totals["simulate"].add(made)
        totals["ingest"].add(taken)
        if not keep:
            shutil.rmtree(folder / exposure.obs_id)
    totals["predict"] = predict_survey(client, store, config, *stage("predict"))
    _, totals["map"] = map_survey(client, store, config, None, *stage("map"))
    table = compare(store.scalars(), store.predictions.scalars())
    plot_counts(table, out / "counts.png")
    pictures = {"Star density on the sky": "map.png", "Predicted against true counts": "counts.png"}
    notes = [
        f"{len(table)} detector images of {config.ingest.frame[1]} x {config.ingest.frame[0]} pixels, simulated",
        f"finished in {time.monotonic() - start:.0f} s on {len(client.nthreads())} workers",
    ]
    (out / REPORT).write_text(markdown(table, "Star density of a simulated strip of sky", pictures, notes))
    return totals
