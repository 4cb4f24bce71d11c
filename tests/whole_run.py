"""Whole runs of the command line in processes of their own, and what they must agree in."""

import subprocess
import sys
from pathlib import Path

import xarray as xr
import yaml
from conftest import CHUNKS, FRAME, assert_same_result

COMMAND = [sys.executable, "-m", "csst_dask"]


def configuration(folder: Path, exposures: Path, weights: Path, **changes) -> Path:
    """Write what a run of the small frame needs into a new folder."""
    folder.mkdir(exist_ok=True)
    path = folder / "run.yaml"
    settings = {
        "inputs": [str(exposures)],
        "store": "survey.zarr",
        "ingest": {"frame": list(FRAME), "chunks": list(CHUNKS)},
        "inference": {"weights": str(weights)},
        "map": {"out": "map.zarr", "png": "map.png", "nside": 4096},
    }
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def run(config: Path, *words: str, timeout: float = 280, **options) -> subprocess.CompletedProcess:
    """Run to the end; two workers unless words say otherwise."""
    command = [*COMMAND, "run", str(config), *(words or ("--workers", "2"))]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


def assert_same_run(one: Path, other: Path, store: str | None = None) -> None:
    """Stores, predictions and maps equal bit for bit; ``store`` where the other's is elsewhere."""
    paths = str(one / "survey.zarr"), store or str(other / "survey.zarr")
    assert_same_result(*paths)
    assert_same_result(*paths, "predictions")
    a, b = (xr.open_zarr(path / "map.zarr", consolidated=False).load() for path in (one, other))
    xr.testing.assert_identical(a, b)
