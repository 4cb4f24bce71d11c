"""The path of one chip through the package, traced: few modules, each entered for a reason, and stores opened once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from distributed import LocalCluster
from whole_run import configuration

from csst_dask.schema import DONE
from csst_dask.store import SurveyStore

PEAKS = {"preprocess/peaks.py", "preprocess/saturated.py", "instrument/cells.py"}
"""Modules that find what stands out of the sky."""
COUNTS = {"preprocess/direct.py", "preprocess/stellar_locus.py", "preprocess/counted.py", "inference/physics.py"}
"""Modules that count stars among it, and tell whether they may be believed."""
LIMITS = {"inference/limits.py"}
"""Modules that tell limits from counts."""
TRACED = Path(__file__).with_name("traced_run.py")


@pytest.fixture(scope="module")
def trace(tmp_path_factory, write_exposures, weights):
    """A run of the command line over three chips without truth catalogues, with one worker, traced.

    In a process of its own: CPython 3.11 hangs when it traces while a thread has an exception that waits for it.
    """
    folder = tmp_path_factory.mktemp("trace")
    write_exposures(folder / "in", detectors=(8,), exposures=3)
    for catalogue in (folder / "in").rglob("*.cat"):
        catalogue.unlink()
    # without a limit of time, for which a worker without a nanny would call tasks in threads of their own
    config = configuration(folder / "run", folder / "in", weights, execution={"time_limit": None})
    found = subprocess.run([sys.executable, str(TRACED), str(config)], capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stdout + found.stderr
    assert not list((folder / "in").rglob("*.cat"))
    return json.loads(found.stdout.splitlines()[-1])


def test_the_path_of_a_chip_is_short(trace):
    assert len(trace["blocks"]) == 3
    path, around = (
        trace["blocks"][-1],
        trace["around"][-1],
    )  # by then the networks are loaded, and the buffers are there
    print("\n".join(["", *path, "around it:", *around]))
    on_sky = [module for module in path if module.startswith("maps/")]
    others = [module for module in path if module not in (*on_sky, *around)]
    for needed in ("io/pixels.py", "preprocess/measure.py", "store/writer.py", "inference/predictor.py"):
        assert needed in others  # each stage has been traced
    assert "maps/density.py" in on_sky
    needed = PEAKS | COUNTS | LIMITS
    assert set(others) >= needed
    assert len(others) <= 15 + len(needed), others
    assert len(on_sky) <= 3, on_sky
    assert around == ["runners/guard.py", "memory.py"]


def test_a_run_opens_the_store_once_on_each_side(trace):
    opened = trace["opened"]
    assert "store/survey.py" in trace["main"]
    assert opened["open_group worker"] == opened["open_zarr_store worker"] == 1
    assert opened["open_zarr_store client"] == 1
    assert opened.get("open_group client", 0) <= 1


INGEST = """
import sys
from distributed import Client
from csst_dask.cli import app

address, *words = sys.argv[1:]
try:
    app([*words, "--scheduler", address])
except SystemExit as end:
    assert not end.code, end.code
with Client(address) as client:
    (modules,) = client.run(lambda: sorted(sys.modules)).values()
print("modules:", *modules)
"""


@pytest.mark.processes
def test_a_worker_that_reads_images_loads_neither_simulator_nor_torch_nor_pictures(tmp_path, write_exposures, small):
    write_exposures(tmp_path / "in", detectors=(8,), exposures=1)
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"ingest": {"frame": list(small["ingest.frame"]), "chunks": list(small["ingest.chunks"])}})
    )
    words = [
        "ingest",
        str(tmp_path / "in"),
        "--store",
        str(tmp_path / "s.zarr"),
        "--config",
        str(tmp_path / "run.yaml"),
    ]
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        command = [sys.executable, "-c", INGEST, cluster.scheduler_address, *words]
        found = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert found.returncode == 0, found.stdout + found.stderr
    [line] = [line for line in found.stdout.splitlines() if line.startswith("modules:")]
    loaded = line.split()[1:]
    assert "csst_dask.pipeline.frame" in loaded  # it is the worker that did the work
    assert SurveyStore.read(str(tmp_path / "s.zarr")).column("status").tolist() == [DONE]
    for name in ("csst_dask.simulation", "torch", "matplotlib"):
        assert not [module for module in loaded if module == name or module.startswith(f"{name}.")], name
