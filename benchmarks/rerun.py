"""How long a rerun takes that finds nothing to do: ``python benchmarks/rerun.py [--chips 100000] [--folder DIR]``.

Files with the names of a survey, an image, weights, flags and a truth catalogue for each chip, and a store in which all
of them are done. What is timed is what `csst-dask ingest` does beyond imports and the cluster: find the files, compare
them with the store, and leave. The names are real, the files are empty: nothing opens them.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from csst_dask.config import Config, with_settings
from csst_dask.pipeline.plan import find_candidates, plan_reading
from csst_dask.pipeline.record import Recorder
from csst_dask.pipeline.summary import Summary
from csst_dask.runners.ingest import take_stock
from csst_dask.schema import DONE
from csst_dask.store import SurveyStore, location

DETECTORS = tuple(range(6, 26))
KINDS = ("img.fits", "wht.fits", "flg.fits")


def write_files(folder: Path, chips: int) -> int:
    """Empty files of so many chips; returns their number."""
    for exposure in range(-(-chips // len(DETECTORS))):
        obs_id = 10_000_000_000_000 + exposure
        below = folder / f"{obs_id}"
        below.mkdir(parents=True)
        for detector in DETECTORS[: chips - exposure * len(DETECTORS)]:
            name = f"CSST_MSC_MS_WIDE_20270810080000_20270810080230_{obs_id}_{detector:02d}"
            for kind in KINDS:
                (below / f"{name}_L1_V01_{kind}").touch()
            (below / f"{name}_L0_V01.cat").touch()
    return chips * (len(KINDS) + 1)


def fill(path: Path, folder: Path, config: Config) -> None:
    """A store in which all of these chips are done."""
    with SurveyStore.write(path, config.ingest, config.mask) as store:
        chips, _ = find_candidates([folder], truth=True)
        rows = list(plan_reading(store, chips, config, Summary()))
        store.arrays["status"][:] = np.full(len(rows), DONE, np.uint8)


def rerun(path: Path, folder: Path, config: Config) -> dict[str, float]:
    """Seconds of each step of a run that finds nothing to do, and how often it opened the store."""
    opened, open_zarr_store = [], location.open_zarr_store

    def counted(*args, **options):
        opened.append(args)
        return open_zarr_store(*args, **options)

    location.open_zarr_store = counted
    try:
        times = [time.perf_counter()]
        with SurveyStore.write(path, config.ingest, config.mask) as store:
            times.append(time.perf_counter())
            summary = Summary()
            todo = take_stock(store, [folder], config, summary)
            times.append(time.perf_counter())
            Recorder(store, summary, Summary(), Summary()).finish()
            times.append(time.perf_counter())
        times.append(time.perf_counter())
    finally:
        location.open_zarr_store = open_zarr_store
    assert not todo
    assert summary.skipped > 0
    steps = dict(zip(("open", "find and compare", "settle", "close"), np.diff(times).tolist(), strict=True))
    return {**steps, "all": times[-1] - times[0], "openings": float(len(opened))}


def time_rerun(chips: int, folder: Path | None = None) -> dict[str, float]:
    """The fastest of three reruns, and its ``files``."""
    base = Path(tempfile.mkdtemp(prefix="rerun-", dir=folder))
    config = with_settings(Config(), {"ingest.pixels": "none"})
    try:
        files = write_files(base / "in", chips)
        fill(base / "s.zarr", base / "in", config)
        found = min((rerun(base / "s.zarr", base / "in", config) for _ in range(3)), key=lambda one: one["all"])
    finally:
        shutil.rmtree(base)
    return {**found, "files": float(files)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    found = time_rerun(options.chips, options.folder)
    for name, value in found.items():
        print(f"{name:17s} {value:8.3f}" + ("" if name in ("openings", "files") else " s"))
    print(f"{1e6 * found['all'] / found['files']:.1f} us a file")


if __name__ == "__main__":
    main()
