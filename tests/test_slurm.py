"""Batch scripts and workers on a real SLURM: jobs that are cancelled or run out of time are submitted again."""

import asyncio
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import EXPOSURES, assert_same_result
from distributed import comm
from distributed.security import Security
from slurm_server import GPUS, Slurm, missing
from whole_run import COMMAND, assert_same_run, configuration, run

from csst_dask.errors import ConfigError
from csst_dask.runners.cluster import connect, known_workers
from csst_dask.runners.settings import HOST
from csst_dask.store import SurveyStore

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

SCRIPTS = Path(__file__).parents[1] / "scripts"
SMALL = ("--ntasks=2", "--mem-per-cpu=2G")
STEPS = {"CSST_DASK_BIN": str(Path(sys.executable).parent)}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if why := missing():
        pytest.skip(why)
    with Slurm(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def output(folder: Path) -> str:
    """What the jobs of a folder have printed."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))


def submit(slurm, folder: Path, script: str, *words: str, options=SMALL) -> str:
    return slurm.submit(folder, *options, str(SCRIPTS / script), *words, **STEPS)


def finish(slurm, folder: Path, script: str, *words: str, options=SMALL) -> str:
    job = submit(slurm, folder, script, *words, options=options)
    state, status = slurm.wait(job)
    said = output(folder)
    assert (state, status) == ("COMPLETED", 0), said
    return said


def until(slurm, job: str, condition) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert slurm.state(job)[0] in ("PENDING", "RUNNING"), "the job ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ingested(folder: Path) -> int:
    return sum(1 for _ in (folder / "survey.zarr" / "block_stats" / "c").glob("*"))


def test_steps_in_jobs_of_their_own(slurm, tmp_path, exposures, weights, undisturbed):
    config = configuration(tmp_path, exposures, weights)
    common = ("--store", "survey.zarr", "--config", str(config))
    said = finish(slurm, tmp_path, "ingest.sbatch", *common, str(exposures))
    assert "joined" in said
    finish(slurm, tmp_path, "predict.sbatch", *common)
    finish(slurm, tmp_path, "map.sbatch", *common, "--out", "map.zarr")
    assert_same_run(undisturbed, tmp_path)
    assert not list(tmp_path.glob(".csst-dask-*")), "a job left its scratch folder behind"


def test_jobs_of_workers_join_a_scheduler_that_runs_elsewhere(slurm, tmp_path, exposures, weights, undisturbed):
    file, config = tmp_path / "scheduler.json", configuration(tmp_path, exposures, weights)
    words = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file), "--no-dashboard"]
    job = submit(slurm, tmp_path, "workers.sbatch", str(file), options=("--array=1-2", "--mem-per-cpu=2G"))
    with subprocess.Popen([*words, "--host", "127.0.0.1", "--port", "0"], stderr=subprocess.DEVNULL) as scheduler:
        try:
            until(slurm, job, lambda: file.exists() and file.stat().st_size)
            done = run(config, "--scheduler-file", str(file))
        finally:
            scheduler.terminate()
    assert done.returncode == 0, done.stdout + done.stderr + output(tmp_path)
    assert_same_run(undisturbed, tmp_path)
    deadline = time.monotonic() + 60
    while slurm.call("squeue", "-h", "-j", job, check=False):
        assert time.monotonic() < deadline, "the workers outlive their scheduler"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def many(tmp_path_factory, write_exposures) -> Path:
    """Enough exposures to be in the middle of them."""
    folder = tmp_path_factory.mktemp("many")
    write_exposures(folder, exposures=5 * EXPOSURES)
    return folder


@pytest.fixture(scope="module")
def timed(tmp_path_factory, many, weights) -> tuple[Path, float]:
    folder, start = tmp_path_factory.mktemp("whole"), time.monotonic()
    result = run(configuration(folder, many, weights, **one_by_one(weights)))
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, time.monotonic() - start


@pytest.fixture(scope="module")
def whole(timed) -> Path:
    return timed[0]


def one_by_one(weights: Path) -> dict:
    """One chip a task."""
    return {"inference": {"weights": str(weights), "batch": 1}, "execution": {"walltime_margin": 20, "grace": 10}}


def test_a_cancelled_job_is_submitted_again(slurm, tmp_path, many, weights, whole):
    config = configuration(tmp_path, many, weights, **one_by_one(weights))
    job = submit(slurm, tmp_path, "run.sbatch", str(config))
    until(slurm, job, lambda: ingested(tmp_path) >= 5)
    slurm.call("scancel", "--batch", "--signal=TERM", job)
    state, status = slurm.wait(job)
    assert (state, status) == ("FAILED", 1), output(tmp_path)
    assert "run the same command again" in output(tmp_path)
    assert (SurveyStore.read(tmp_path / "survey.zarr").scalars()["status"].values == "pending").any()

    job = submit(slurm, tmp_path, "run.sbatch", str(config))
    before = ingested(tmp_path)
    until(slurm, job, lambda: ingested(tmp_path) > before)
    slurm.call("scancel", job)  # SLURM kills after KillWait
    assert slurm.wait(job)[0] == "CANCELLED"

    finish(slurm, tmp_path, "run.sbatch", str(config))
    assert_same_run(whole, tmp_path)


def test_a_walltime_in_the_middle(slurm, tmp_path, many, weights, timed):
    """Asked to stop long enough before the end of its minutes, the run keeps what it has and says how to go on."""
    whole, seconds = timed
    slow = one_by_one(weights)
    slow["execution"]["walltime_margin"] = max(20.0, 120 - seconds / 2)
    config = configuration(tmp_path, many, weights, **slow)
    # SLURM's own early signal, which the script asks for, would come at the start of so short a job
    options = ("--ntasks=1", "--mem-per-cpu=2G", "--time=2", "--signal=B:CONT@1")
    job = submit(slurm, tmp_path, "run.sbatch", str(config), options=options)
    state, status = slurm.wait(job)
    assert (state, status) == ("FAILED", 1), output(tmp_path)
    assert "walltime" in output(tmp_path)
    assert "run the same command again" in output(tmp_path)
    finish(slurm, tmp_path, "run.sbatch", str(config))
    assert_same_run(whole, tmp_path)


def test_an_array_of_folders(slurm, tmp_path, write_exposures, weights):
    lines = []
    for name, seed in (("a", 3), ("b", 4)):
        (tmp_path / name).mkdir()
        write_exposures(tmp_path / name, exposures=2, seed=seed)
        lines.append(f"{name} {tmp_path / name}\n")
    (tmp_path / "folders.txt").write_text("".join(lines))
    config = configuration(tmp_path / "c", tmp_path / "b", weights)
    options = ("--array=1-2", "--cpus-per-task=1", "--mem-per-cpu=2G")
    words = (str(tmp_path / "folders.txt"), str(tmp_path / "out"), str(config))
    finish(slurm, tmp_path, "array.sbatch", *words, options=options)
    result = run(config)
    assert result.returncode == 0, result.stderr
    deadline = time.monotonic() + 120
    while slurm.call("squeue", "-h"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert_same_result(str(tmp_path / "c" / "survey.zarr"), str(tmp_path / "out" / "b.zarr"))
    assert (tmp_path / "out" / "a-map.zarr").is_dir()
    assert (tmp_path / "out" / "b-map.zarr").is_dir()


def test_workers_as_jobs_that_are_replaced(slurm, tmp_path, many, weights, whole, monkeypatch):
    """`configs/slurm.yaml`, with what a cluster calls its own changed; one job is cancelled in the middle."""
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    shipped = yaml.safe_load((SCRIPTS.parent / "configs" / "slurm.yaml").read_text())["cluster"]
    shipped["slurm"] |= {"memory": "2GiB", "interface": "lo", "log_directory": str(tmp_path), "walltime": "00:20:00"}
    cluster = {"minimum": 2, "maximum": 2, "slurm": shipped["slurm"]}
    config = configuration(tmp_path, many, weights, **one_by_one(weights), cluster=cluster)
    process = subprocess.Popen([*COMMAND, "run", str(config)], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while ingested(tmp_path) < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first = slurm.call("squeue", "-h", "-o", "%i").split()
        assert len(first) in (1, 2)
        slurm.call("scancel", first[0])
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    assert "2 SLURM jobs" in said
    assert_same_run(whole, tmp_path)
    deadline = time.monotonic() + 60
    while slurm.call("squeue", "-h"):
        assert time.monotonic() < deadline, "the client left jobs behind"
        time.sleep(0.2)


def pages(node) -> set[str]:
    """Addresses on which a scheduler or worker serves pages: a dashboard, or health and metrics."""
    return {one.getsockname()[0] for one in node.http_server._sockets.values()}


def pages_of_worker(dask_worker):
    return pages(dask_worker)


def test_workers_as_jobs_and_their_scheduler_speak_to_each_other_alone(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    client = connect(
        workers=1, slurm={"memory": "2GiB", "interface": "lo", "log_directory": tmp_path / "logs"}, quiet=True
    )
    try:
        address = client.scheduler.address
        assert client.submit(sum, [1, 2]).result() == 3
        [worker] = known_workers(client)
        assert address.startswith("tls://")
        assert worker.startswith("tls://")
        with pytest.raises(ConfigError, match="no certificates are known here"):
            connect(scheduler=address)
        own = Security.temporary().get_connection_args("client")
        for strange, arguments in ((address, own), (worker, own), (address.replace("tls", "tcp"), {})):
            with pytest.raises(OSError):  # noqa: PT011
                asyncio.run(comm.connect(strange, timeout=3, **arguments))
        keys = [path for path in (tmp_path / "logs").iterdir() if path.name.startswith(".dask-jobqueue.worker")]
        assert keys
        assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
        assert pages(client.cluster.scheduler) == {HOST}
        assert [*client.run(pages_of_worker).values()] == [{HOST}]
    finally:
        client.close()
    del client
    gc.collect()
    assert not [path for path in keys if path.exists()], "keys are left behind"


def test_gpus_are_asked_for_and_given(slurm, tmp_path, monkeypatch):
    """As far as SLURM goes: the GPUs are device files without a device behind them."""
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    script = tmp_path / "seen.sh"
    script.write_text("#!/bin/bash\necho gpus=$SLURM_GPUS_ON_NODE visible=$CUDA_VISIBLE_DEVICES\n")
    job = slurm.submit(tmp_path, f"--gpus-per-node={GPUS}", "--output=seen.log", str(script))
    assert slurm.wait(job) == ("COMPLETED", 0)
    assert f"gpus={GPUS} visible=0,1" in output(tmp_path)

    from csst_dask.config import SlurmConfig
    from csst_dask.runners.slurm import check_job, job_options, slurm_cluster

    def jobs(**settings):
        words = job_options(SlurmConfig(interface="lo", **settings))
        with slurm_cluster()(**words, silence_logs="error") as cluster:
            return cluster.job_script()

    one_each = jobs(gpus=GPUS, memory="8GiB", cpus=2)
    assert f"--gres=gpu:{GPUS}" in one_each
    assert "dask_cuda.cli" in one_each
    check_job(one_each)
    with pytest.raises(ConfigError, match="SLURM refuses"):
        check_job(jobs(gpus=GPUS + 1))


DASK = """#!/bin/bash
if [ "$1 $2" = "cuda worker" ]; then
    echo "$CUDA_VISIBLE_DEVICES $*" > "$SEEN"
    shift 2
    exec {real}/dask worker --nworkers {gpus} "$@"
fi
exec {real}/dask "$@"
"""


def test_a_job_with_gpus_has_a_cuda_worker_for_each(slurm, tmp_path, exposures, weights, undisturbed):
    """The script starts what it should, and the run is complete; ordinary workers stand in for those of dask-cuda."""
    real, stand_in, seen = Path(sys.executable).parent, tmp_path / "bin", tmp_path / "seen"
    stand_in.mkdir()
    (stand_in / "dask").write_text(DASK.format(real=real, gpus=GPUS))
    for name in ("python", "csst-dask"):
        (stand_in / name).write_text(f'#!/bin/bash\nexec {real}/{name} "$@"\n')
    for path in stand_in.iterdir():
        path.chmod(0o755)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "dask_cuda.py").touch()
    path = os.pathsep.join([str(tmp_path / "modules"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {"CSST_DASK_BIN": str(stand_in), "PYTHONPATH": path, "SEEN": str(seen)}
    options = ("--nodes=1", "--ntasks=1", "--cpus-per-task=2", f"--gpus-per-node={GPUS}", "--mem-per-cpu=2G")
    config = configuration(tmp_path, exposures, weights)
    job = slurm.submit(tmp_path, *options, str(SCRIPTS / "run.sbatch"), str(config), **environment)
    assert slurm.wait(job) == ("COMPLETED", 0), output(tmp_path)
    visible, *words = seen.read_text().split()
    assert visible == "0,1"
    assert words[:2] == ["cuda", "worker"]
    assert words[words.index("--memory-limit") + 1] == f"{2 * 2048 // GPUS}MiB"
    assert "--nworkers" not in words, "dask-cuda starts one for each GPU by itself"
    assert_same_run(undisturbed, tmp_path)


@pytest.mark.parametrize("script", ["train.sbatch", "train_torchrun.sbatch"])
def test_training_in_a_job(slurm, tmp_path, training_store, script):
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump({"training": {"context_epochs": 3, "batch": 16, "seed": 1}}))
    words = ("classifier", "--store", training_store, "--out", str(tmp_path / "out"), "--config", str(config))
    torchrun = script == "train_torchrun.sbatch"
    options = ("--cpus-per-task=2", "--mem=4G") if torchrun else SMALL
    finish(slurm, tmp_path, script, *words, *(("--ranks", "2") if torchrun else ()), options=options)
    assert (tmp_path / "out" / "classifier.safetensors").stat().st_size > 10_000
