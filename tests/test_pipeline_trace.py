"""The path of one chip through the package, traced: few modules, each entered for a reason, and stores opened once."""

import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from distributed import Client, LocalCluster
from typer.testing import CliRunner
from whole_run import configuration

import csst_dask
from csst_dask.cli import app
from csst_dask.pipeline.block import process_block
from csst_dask.runners.guard import guarded
from csst_dask.schema import DONE
from csst_dask.store import SurveyStore
from csst_dask.store.location import open_group, open_zarr_store

PACKAGE = Path(csst_dask.__file__).parent
WORKER, READER = "Dask-Default-Threads", "read-ahead"
"""Parts of the names of the threads that work on a chip: one calls the task, the other reads pixels for it."""


@dataclass
class Trace:
    """Calls of the package's Python functions; compiled ones are no calls of Python, and do not show."""

    blocks: list[list[str]] = field(default_factory=list)
    """For each block of chips: modules in the order in which the threads that work on it entered them first."""
    around: list[list[str]] = field(default_factory=list)
    """The same, of calls before and after the work on a block."""
    opened: Counter = field(default_factory=Counter)
    """Calls that open a store, by function and side."""
    main: set[str] = field(default_factory=set)
    """Modules that the client has entered."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _within: bool = False

    def _leave(self, frame, event, arg):
        if event == "return":
            self._within = False

    def __call__(self, frame, event, arg):
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(str(PACKAGE)):
            return None
        module = Path(name).relative_to(PACKAGE).as_posix()
        thread = threading.current_thread().name
        with self._lock:
            there = WORKER in thread or READER in thread
            if frame.f_code in (open_group.__code__, open_zarr_store.__code__):
                self.opened[frame.f_code.co_name, "worker" if there else "client"] += 1
            if not there:
                self.main.add(module)
                return None
            if frame.f_code is guarded.__code__:
                self.around.append([])
            if frame.f_code is process_block.__code__:
                self.blocks.append([])
                self._within, frame.f_trace_lines = True, False
            entered = self.blocks if self._within else self.around
            if entered and module not in entered[-1]:
                entered[-1].append(module)
        return self._leave if frame.f_code is process_block.__code__ else None


@pytest.fixture(scope="module")
def trace(tmp_path_factory, write_exposures, weights):
    """A run of the command line over three chips without truth catalogues, with one worker in this process."""
    folder = tmp_path_factory.mktemp("trace")
    write_exposures(folder / "in", detectors=(8,), exposures=3)
    for catalogue in (folder / "in").rglob("*.cat"):
        catalogue.unlink()
    # without a limit of time, for which a worker without a nanny would call tasks in threads of their own
    config = configuration(folder / "run", folder / "in", weights, execution={"time_limit": None})
    found = Trace()
    threading.settrace(found)
    sys.settrace(found)
    try:
        with LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", host="127.0.0.1",
            dashboard_address=None, silence_logs=50,
        ) as cluster, Client(cluster):  # fmt: skip
            result = CliRunner().invoke(app, ["run", str(config), "--scheduler", cluster.scheduler_address])
    finally:
        threading.settrace(None)
        sys.settrace(None)
    assert result.exit_code == 0, result.output
    assert not list((folder / "in").rglob("*.cat"))
    return found


def test_the_path_of_a_chip_is_short(trace):
    assert len(trace.blocks) == 3
    path, around = trace.blocks[-1], trace.around[-1]  # by then the networks are loaded, and the buffers are there
    print("\n".join(["", *path, "around it:", *around]))
    on_sky = [module for module in path if module.startswith("maps/")]
    others = [module for module in path if module not in (*on_sky, *around)]
    for needed in ("io/pixels.py", "preprocess/measure.py", "store/writer.py", "inference/predictor.py"):
        assert needed in others  # each stage has been traced
    assert "maps/density.py" in on_sky
    assert len(others) <= 15, others
    assert len(on_sky) <= 3, on_sky
    assert around == ["runners/guard.py", "memory.py"]


def test_a_run_opens_the_store_once_on_each_side(trace):
    assert "store/survey.py" in trace.main
    assert trace.opened["open_group", "worker"] == trace.opened["open_zarr_store", "worker"] == 1
    assert trace.opened["open_zarr_store", "client"] == 1
    assert trace.opened["open_group", "client"] <= 1


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
