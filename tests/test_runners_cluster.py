"""Where the work goes: a scheduler that was named, GPUs, or processes here; and why."""

import copy
import gc
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import types
import weakref

import dask
import psutil
import pytest
from distributed import Client, LocalCluster, wait
from distributed.utils import LoopRunner

from csst_dask.cli import doctor
from csst_dask.config import ClusterConfig, SlurmConfig
from csst_dask.errors import ConfigError, RunEnded
from csst_dask.runners import cluster, slurm
from csst_dask.runners.cluster import GUARD, connect, known_workers
from csst_dask.runners.cuda import NoGpuCluster, check_gpu_cluster, count_gpus, start_cuda_cluster
from csst_dask.runners.session import reporting
from csst_dask.runners.settings import ENVIRONMENT, HOST, SETTINGS, exports
from csst_dask.runners.slurm import job_options
from csst_dask.runners.window import Task, run_tasks


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """A machine whose driver tells of two GPUs, as far as the tool that lists them goes."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA Fake (UUID: GPU-1)'\necho 'GPU 1: NVIDIA Fake (UUID: GPU-2)'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return monkeypatch


@pytest.fixture
def dask_cuda(gpus):
    """A dask-cuda that starts ordinary workers."""
    module = types.ModuleType("dask_cuda")
    module.__spec__ = types.SimpleNamespace()
    module.LocalCUDACluster = LocalCluster
    gpus.setitem(sys.modules, "dask_cuda", module)
    return module


@pytest.mark.parametrize(
    ("visible", "number"), [(None, 2), ("0", 1), ("1,0", 2), ("", 0), ("-1", 0), ("0,7,1", 1), ("GPU-2", 1)]
)
def test_gpus_are_counted_as_cuda_sees_them(gpus, visible, number):
    if visible is not None:
        gpus.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == number


def test_a_worker_for_each_gpu(dask_cuda, capsys):
    client = connect()
    try:
        client.wait_for_workers(2, timeout=60)
        assert len(known_workers(client)) == 2
        assert "2 worker processes, each with one of 2 GPUs" in capsys.readouterr().out
    finally:
        client.close()


def test_why_there_is_no_worker_for_each_gpu(gpus):
    gpus.setitem(sys.modules, "dask_cuda", None)
    with pytest.raises(NoGpuCluster, match="2 GPUs but dask-cuda is not installed"):
        check_gpu_cluster(2, None)
    with pytest.raises(NoGpuCluster, match="3 workers were asked for, more than 2 GPUs"):
        check_gpu_cluster(2, 3)
    with pytest.raises(NoGpuCluster, match="no GPU here"):
        check_gpu_cluster(0, None)


def test_a_broken_driver_is_no_end(dask_cuda):
    def broken(**_):
        raise RuntimeError("NVMLError_LibraryNotFound")

    dask_cuda.LocalCUDACluster = broken
    with pytest.raises(NoGpuCluster, match=r"cannot use the GPUs .*LibraryNotFound"):
        start_cuda_cluster(2)


def test_workers_without_a_gpu_of_their_own_see_none(gpus, capsys):
    client = connect(workers=3)
    try:
        client.wait_for_workers(3, timeout=60)
        assert "3 workers were asked for, more than 2 GPUs" in capsys.readouterr().out
        assert set(client.run(lambda: os.environ.get("CUDA_VISIBLE_DEVICES")).values()) == {""}
    finally:
        client.close()


def test_a_cluster_grows_with_its_work_and_shrinks_again():
    client = connect(minimum=1, maximum=2, quiet=True)
    try:
        client.wait_for_workers(1, timeout=60)
        assert len(known_workers(client)) == 1
        deadline = time.monotonic() + 60

        def source():
            k = 0
            while len(known_workers(client)) < 2:
                assert time.monotonic() < deadline, "the cluster never grew"
                yield Task(f"{k}", (0.1,))
                k += 1

        assert all(result is None for _, result in run_tasks(client, "test", time.sleep, source()))
        while len(known_workers(client)) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        client.close()


def listening() -> dict[tuple[int, int], str]:
    """Addresses on which this process and those under it listen, by process and port."""
    found = {}
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN:
                found[process.pid, one.laddr.port] = one.laddr.ip
    return found


@pytest.mark.parametrize("kind", ["cores", "GPUs"])
def test_a_cluster_here_listens_to_this_machine_alone(kind, request):
    if kind == "GPUs":
        request.getfixturevalue("dask_cuda")
    before = listening()
    client = connect(quiet=True, **({} if kind == "GPUs" else {"minimum": 1, "maximum": 2}))
    try:
        client.wait_for_workers(1, timeout=60)
        busy = [client.submit(time.sleep, 1, pure=False) for _ in range(8)]
        client.wait_for_workers(2, timeout=60)  # of which one may have come later
        found = {place: address for place, address in listening().items() if place not in before}
        del busy
    finally:
        client.close()
    # the scheduler, its dashboard and two nannies; each of two workers, and its health and metrics
    assert sum(pid == os.getpid() for pid, _ in found) == 4
    assert len(found) == 8
    assert set(found.values()) == {HOST}


def test_a_dashboard_listens_where_it_was_told_to():
    before = listening()
    client = connect(workers=1, dashboard=":0", quiet=True)
    try:
        client.wait_for_workers(1, timeout=60)
        found = [address for place, address in listening().items() if place not in before]
    finally:
        client.close()
    assert len(found) == 5
    assert found.count(HOST) == 4


def test_dasks_configuration_and_the_environment_stay_as_they_are():
    def settings(config):
        return {name: value for name, value in config.items() if name not in ("scheduler", "shuffle")}

    with dask.config.set({"distributed.scheduler.allowed-failures": 7, "distributed.scheduler.worker-ttl": "70s"}):
        before, environment = copy.deepcopy(settings(dask.config.config)), dict(os.environ)
        client = connect(workers=1, quiet=True)
        try:
            client.wait_for_workers(1, timeout=60)
            assert settings(dask.config.config) == before
            assert {name: os.environ.get(name) for name in ENVIRONMENT} == {
                name: environment.get(name) for name in ENVIRONMENT
            }
            with LocalCluster(
                n_workers=1, threads_per_worker=1, host=HOST, dashboard_address=f"{HOST}:0", silence_logs=50
            ) as other, Client(other, set_as_default=False) as own:  # fmt: skip
                assert own.run_on_scheduler(failures_and_ttl) == (7, 70)
                assert next(iter(own.run(memory_fractions).values()))[0] == dask.config.get(
                    "distributed.worker.memory.target"
                )
        finally:
            client.close()
        assert settings(dask.config.config) == before


def failures_and_ttl(dask_scheduler):
    return dask_scheduler.allowed_failures, dask_scheduler.worker_ttl


def memory_fractions(dask_worker):
    manager = dask_worker.memory_manager
    return manager.memory_target_fraction, manager.memory_spill_fraction, manager.memory_pause_fraction


def test_a_cluster_keeps_its_settings_as_it_grows_and_loses_workers():
    """Whatever the configuration around it says by then."""
    client = connect(minimum=1, maximum=2, quiet=True)
    others = {name: "20%" for name in SETTINGS if ".memory." in name}
    environment = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    try:
        with dask.config.set(others | {"distributed.scheduler.allowed-failures": 7}):
            client.wait_for_workers(1, timeout=60)
            [first] = client.run(os.getpid).values()
            os.kill(first, signal.SIGKILL)
            busy = [client.submit(time.sleep, 3, pure=False) for _ in range(8)]
            client.wait_for_workers(2, timeout=60)
            fractions = client.run(memory_fractions)
            seen = client.run(lambda names: {name: os.environ[name] for name in names}, list(ENVIRONMENT))
            pids = client.run(os.getpid)
            assert failures_and_ttl(client.cluster.scheduler) == (0, 120)
            del busy
    finally:
        client.close()
    assert first not in pids.values()
    assert [*fractions.values()] == [(False, False, False)] * 2
    assert [*seen.values()] == [environment] * 2


def test_the_cluster_ends_with_its_client_however_that_ends():
    for end in ("close", "with", "collected after"):
        client = connect(workers=1, quiet=True)
        cluster, known = client.cluster, weakref.ref(client)
        client.wait_for_workers(1, timeout=60)
        pids = [*client.run(os.getpid).values()]
        if end == "with":
            with client:
                pass
        else:
            client.close()
        assert cluster.status.name == "closed"
        assert not any(psutil.pid_exists(pid) for pid in pids)
        client.close()
        del client
        gc.collect()
        assert known() is None, "something keeps the client"


def test_a_running_cluster_is_joined(client, tmp_path, capsys):
    address = client.scheduler.address
    other = connect(scheduler=address)
    try:
        assert "joined the scheduler that was named" in capsys.readouterr().out
        done, _ = wait(other.submit(sum, [1, 2]))
        assert done.pop().result() == 3
    finally:
        other.close()
    assert client.submit(sum, [1, 2]).result() == 3, "the cluster of others was closed"
    with pytest.raises(ConfigError, match=r"scheduler_file: .* does not exist"):
        connect(scheduler_file=tmp_path / "nowhere.json")


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    with pytest.raises(ConfigError, match=r"no scheduler answers at tcp://127.0.0.1:9"):
        connect(scheduler="tcp://127.0.0.1:9")


@pytest.fixture
def short():
    """A client that is the one in use, and may be closed."""
    client = connect(workers=1, quiet=True)
    yield client
    client.close()


def test_a_report_of_the_work_is_written(short, tmp_path, capsys):
    with reporting(tmp_path / "new" / "report.html"):
        assert short.submit(sum, [1, 2]).result() == 3
    assert "<html" in (tmp_path / "new" / "report.html").read_text()[:1000].lower()
    assert not capsys.readouterr().err


def test_a_report_that_cannot_be_written_hides_no_error(short, tmp_path, capsys):
    with pytest.raises(RunEnded, match="of the block"), reporting(tmp_path / "report.html"):  # noqa: PT012
        short.close()
        raise RunEnded("of the block")
    assert capsys.readouterr().err.count("no performance report in") == 1


def test_a_report_that_cannot_be_written_ends_no_run(short, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    done = []
    for path in (tmp_path / "file" / "report.html", tmp_path / "folder"):
        with reporting(path):
            done.append(short.submit(sum, [1, 2]).result())
        assert capsys.readouterr().err.count("\n") == 1
    assert done == [3, 3]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scheduler": "tcp://a:1", "scheduler_file": "b"}, "not both"),
        ({"workers": 2, "maximum": 3}, "not both"),
        ({"minimum": 3, "maximum": 2}, "above maximum"),
        ({"slurm": {"walltime": 14400}}, "quotation marks"),
        ({"slurm": {"walltime": "soon"}}, "expected a walltime"),
        ({"slurm": {"directives": ["qos=long"]}}, "no option of sbatch"),
    ],
)
def test_settings_that_contradict_each_other(settings, words):
    with pytest.raises(ConfigError, match=words):
        connect(**settings)


def test_slurm_without_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="sbatch is not on PATH"):
        connect(slurm={}, workers=1)
    with pytest.raises(ConfigError, match="no number of workers"):
        connect(slurm={})


@pytest.fixture
def deaf(tmp_path, monkeypatch):
    """A SLURM whose controller is too busy to answer."""
    for name in ("squeue", "sinfo", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sleep 60\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "ANSWER", 0.3)


@pytest.mark.usefixtures("deaf")
def test_a_slurm_that_does_not_answer_is_not_waited_for_for_ever():
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"sbatch gave no answer in 0.3 s"):
        slurm.check_job("#!/bin/sh\n")
    assert slurm.job_states(["1"]) is None
    found = doctor._slurm()
    assert (found.verdict, found.advice) == ("optional", "sinfo gave no answer in 0.3 s")
    assert time.monotonic() - start < 20


def test_a_queue_that_is_not_told_is_not_an_empty_one(tmp_path, monkeypatch):
    """Else jobs would be given up that wait in it."""
    squeue = tmp_path / "squeue"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for line, expected in (
        ("echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1", None),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", []),
        ("exit 0", []),
        ("echo 'PENDING Resources'; echo 'RUNNING None'", ["1 PENDING (Resources)", "1 RUNNING"]),
    ):
        squeue.write_text(f"#!/bin/sh\n{line}\n")
        squeue.chmod(0o755)
        assert slurm.job_states(["1", "2"]) == expected


def test_workers_are_known_whatever_the_client_remembers(client, monkeypatch):
    async def forget(n_workers=0):
        client._scheduler_identity = {"workers": {}}

    monkeypatch.setattr(client, "_update_scheduler_info", forget)
    assert len(known_workers(client)) == 2


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_is_ctrl_c_with_workers_as_jobs():
    found = (
        "import signal; from csst_dask.runners.slurm import slurm_cluster; slurm_cluster(); "
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    assert subprocess.run([sys.executable, "-c", found], capture_output=True, text=True).stdout.strip() == "True"


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("30", 1800), ("30:10", 1810), ("04:00:00", 14400), ("1-06", 108000), ("2-00:30:05", 174605)],
)
def test_walltimes_are_read_as_slurm_reads_them(walltime, seconds):
    assert SlurmConfig(walltime=walltime).walltime_seconds == seconds
    assert f"{max(seconds - 60, seconds // 2)}s" in " ".join(
        job_options(SlurmConfig(walltime=walltime))["job_script_prologue"]
    )


def test_settings_reach_processes_that_are_started_otherwise():
    """What the batch scripts export is what Dask then reads."""
    code = "import dask, distributed; print(dask.config.get('distributed.scheduler.allowed-failures'), end='')"
    script = "\n".join([*exports(), f'"{sys.executable}" -c "{code}"'])
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == str(SETTINGS["distributed.scheduler.allowed-failures"])
    assert ClusterConfig(slurm=SlurmConfig()).elsewhere
    assert not ClusterConfig(workers=2).elsewhere


def test_the_doctor_says_what_connect_would_do(gpus, tmp_path):
    gpus.setitem(sys.modules, "dask_cuda", None)
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/bin/sh\necho 'debug* 4 nodes'\n")
    sinfo.chmod(0o755)
    (tmp_path / "sbatch").symlink_to(sinfo)
    found = {finding.what: finding for finding in doctor.examine()}
    assert "2 GPUs but dask-cuda is not installed" in found["a worker for each GPU"].advice
    assert (found["SLURM"].verdict, found["SLURM"].found) == ("ok", "debug* 4 nodes")
    sinfo.write_text("#!/bin/sh\necho 'no controller' >&2; exit 1\n")
    assert doctor._slurm().verdict == "optional"
    assert all(finding.verdict in ("ok", "optional", "missing") for finding in found.values())
    assert not [finding.what for finding in found.values() if finding.verdict == "missing"]


@pytest.mark.processes
def test_a_script_without_the_guard_is_told_in_one_line(tmp_path):
    """Every worker process imports it, and would start a cluster of its own."""
    (tmp_path / "script.py").write_text("import csst_dask\ncsst_dask.connect(workers=1)\n")
    found = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert found.stderr.rstrip().endswith(GUARD)
    assert "bootstrapping" not in found.stderr


def test_a_closed_client_can_be_collected_whatever_dask_is_about():
    """Collecting it closes it again; its thread may hold the lock of Dask's loops then."""
    client = connect(workers=1, quiet=True)
    client.close()
    with LoopRunner._lock:
        again = threading.Thread(target=client.close, daemon=True)
        again.start()
        again.join(10)
        assert not again.is_alive()
