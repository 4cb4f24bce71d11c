"""Several ranks train as one does, whatever starts them and whatever becomes of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock

import psutil
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.cli.training import MEASURES
from csst_dask.config import TrainingConfig
from csst_dask.config.load import build_config
from csst_dask.errors import ConfigError
from csst_dask.runners import cluster
from csst_dask.runners.gang import GangBroken, environments, train_gang
from csst_dask.runners.train import run_torchrun, train_network
from csst_dask.training import FitResult, fit, load_samples
from csst_dask.training.cache import InputCache
from csst_dask.training.checkpoint import load_checkpoint
from csst_dask.training.fit import _prepare
from csst_dask.training.loop import Loop
from csst_dask.training.rank import _known_end, end_of, write_spec
from csst_dask.training.ranks import joined
from csst_dask.training.recipes import task_named
from csst_dask.training.run import plan_run

CONFIG = TrainingConfig(
    arch="resnet18", context_epochs=1, epochs=2, batch=8, seed=3, parts=2, timeout=10, checkpoint_minutes=0.02
)


def confine(pids: list[int], cores: set[int]) -> None:
    """Let processes, and what they start from now on, run on some cores only."""
    for pid in pids:
        for thread in psutil.Process(pid).threads():
            os.sched_setaffinity(thread.id, cores)


@pytest.fixture(scope="module", autouse=True)
def two_cores(client):
    """Each of two ranks has one thread then, on any machine, and results are equal bit for bit."""
    cores, pids = os.sched_getaffinity(0), [os.getpid(), *client.run(os.getpid).values()]
    confine(pids, set(sorted(cores)[:2]))
    yield
    confine(pids, cores)


@pytest.fixture(scope="module")
def together(client, training_store, tmp_path_factory) -> Path:
    """A training of two ranks on Dask workers that nobody disturbs."""
    out, told = tmp_path_factory.mktemp("together"), []
    train_gang(client, spec_of(training_store, out), 2, CONFIG.timeout, 0, lambda *step: told.append(step))
    assert [step[0] for step in told] == sorted(step[0] for step in told)
    assert told[-1][:2] == (3, 3)
    assert told[-1][2] == told[-1][3]
    return out


def spec_of(store: str, out: Path, config: TrainingConfig = CONFIG) -> Path:
    return write_spec(
        out / "rank.json", task="regressor", store=store, out=str(out), config=config.model_dump(mode="json"),
        data="", command="", parts=2,
    )  # fmt: skip


def ranks_of(out: Path) -> list[psutil.Process]:
    """Processes of the ranks that work in a folder, in their order."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(out / "rank.json") in line and "torch.distributed.run" not in line:
            found.append((int(process.environ()["RANK"]), process))
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def same_weights(one: Path, other: Path) -> bool:
    name = "regressor.safetensors"
    return (one / name).read_bytes() == (other / name).read_bytes()


def take_steps(task: str, store: str, out: str, config: TrainingConfig) -> None:
    """A loop without dropout, in however many ranks the environment names; its end is kept in ``end.pt``."""
    torch.set_num_threads(1)
    samples, folder = load_samples(store), Path(out)
    run = plan_run(task_named(task), samples, samples.split(0), config)
    with joined("cpu", 60) as ranks:
        if ranks.first:
            InputCache.fill(folder / "inputs", samples, run.visited, run.recipe.inputs)
        cache = InputCache.open(folder / "inputs", samples, run.visited, 60)
        loop = Loop(run, ranks, cache, run.build(cache, ranks.device), folder, config.parts, run.fingerprint)
        losses: list[float] = []
        loop.progress = lambda *step: losses.append(step[-1])
        for layer in loop.module.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        with torch.random.fork_rng(devices=[]):
            loop.train(None)
        if ranks.first:
            history = [row["validation_loss"] for row in loop.history]
            state = {"module": loop.module.state_dict(), "losses": losses, "validation": history}
            torch.save(state, folder / "end.pt")
        del loop


@pytest.mark.parametrize(
    ("task", "world", "parts", "batch", "steps"),
    [("classifier", 2, 2, 8, 20), ("regressor", 2, 2, 8, 20), ("regressor", 3, 4, 64, 3)],
)
def test_ranks_are_one_rank_with_more_micro_batches(task, world, parts, batch, steps, training_store, tmp_path):
    """Two ranks bit for bit; more add up in another order."""
    config = CONFIG.model_copy(update={"parts": parts, "batch": batch})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    code = (
        "import sys; from csst_dask.config import TrainingConfig; from test_training_ranks import take_steps;"
        "take_steps(*sys.argv[1:4], TrainingConfig.model_validate_json(sys.argv[4]))"
    )
    words = [sys.executable, "-c", code, task, training_store, str(tmp_path / "many"), config.model_dump_json()]
    processes = [
        subprocess.Popen(words, cwd=Path(__file__).parent, env=os.environ | meeting | {"RANK": str(rank)})
        for rank in range(world)
    ]
    take_steps(task, training_store, str(tmp_path / "one"), config)
    assert [process.wait(timeout=240) for process in processes] == [0] * world
    one, many = (torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("one", "many"))
    assert len(one["losses"]) == len(many["losses"]) >= steps
    of_one, of_many = one.pop("module"), many.pop("module")
    rounding = 0 if world == 2 else 1e-5
    torch.testing.assert_close(one, many, rtol=rounding, atol=0)
    statistics = {name for name in of_one if "running_" in name}
    learned = set(of_one) - statistics
    assert statistics
    for name in statistics | (learned if world == 2 else set()):
        # what the valid fraction, 1 everywhere here, adds to the first convolution is taken off again at once
        free = CONFIG.learning_rate if name == "stem.1.running_mean" and rounding else rounding
        torch.testing.assert_close(of_one[name], of_many[name], rtol=100 * rounding, atol=free, msg=name)
    # a parameter whose gradient is nothing but rounding still moves by a whole learning rate
    moved = [(of_one[name].double() - of_many[name].double()).nan_to_num().abs().flatten() for name in learned]
    assert torch.cat(moved).mean() <= rounding * CONFIG.learning_rate


def test_a_gang_on_dask_workers_learns_what_one_process_learns(client, together, training_store, tmp_path):
    samples = load_samples(training_store)
    fit("regressor", samples, samples.split(CONFIG.seed), CONFIG, tmp_path, threads=1, device="cpu")
    assert same_weights(together, tmp_path)
    before = (together / "regressor.safetensors").stat().st_mtime_ns
    train_gang(client, together / "rank.json", 2, CONFIG.timeout, 0)  # finished: returns at once
    assert (together / "regressor.safetensors").stat().st_mtime_ns == before


def test_one_rank_trains_on_the_cluster_that_is_named(client, training_store, tmp_path, monkeypatch):
    short = CONFIG.model_copy(update={"context_epochs": 0, "epochs": 1})
    settings = {"training": short.model_dump(mode="json"), "cluster": {"scheduler": client.scheduler.address}}
    steps = []
    monkeypatch.setattr("csst_dask.training.fit", None)  # not here
    config = build_config(settings, "test")
    result = train_network("regressor", training_store, tmp_path, config, lambda *step: steps.append(step))
    assert steps[-1][:2] == (1, 1)
    assert result == FitResult.from_folder(tmp_path, "regressor")
    config = build_config({"training": {"launcher": "torchrun"}, "cluster": settings["cluster"]}, "test")
    with pytest.raises(ConfigError, match="torchrun"):
        train_network("regressor", training_store, tmp_path, config)


def test_a_network_without_maps_is_not_spread_over_the_gpus(training_store, tmp_path, monkeypatch):
    """Its steps are too small to share; one with maps gets a rank for each GPU, and at least two chips for each."""
    monkeypatch.setattr("csst_dask.runners.train.gpus_here", lambda: 8)
    monkeypatch.setattr("csst_dask.training.fit", lambda *_, **__: "here")
    assert train_network("classifier", training_store, tmp_path, build_config({}, "test")) == "here"
    maps = {"training": {"arch": "resnet18", "batch": 10, "launcher": "torchrun"}}
    asked = []
    monkeypatch.setattr("csst_dask.runners.train.run_torchrun", lambda spec, ranks, *_: asked.append(ranks))
    monkeypatch.setattr(FitResult, "from_folder", lambda *_: "there")
    assert train_network("classifier", training_store, tmp_path, build_config(maps, "test")) == "there"
    assert asked == [5]


def test_a_training_goes_on_with_no_more_ranks_than_it_has_micro_batches(training_store, tmp_path):
    samples = load_samples(training_store)
    run = plan_run(task_named("regressor"), samples, samples.split(0), CONFIG)
    with pytest.raises(ConfigError, match=r"found 4 ranks .* began with 1 micro-batches .* give --ranks 1"):
        _prepare(run, SimpleNamespace(world=4), tmp_path, tmp_path / "inputs", 1, True, lambda: None)
    assert not (tmp_path / "inputs").exists()


def test_a_rank_that_dies_or_hangs_fails_the_gang_which_starts_again(client, training_store, together, tmp_path):
    faults, struck, lines = [signal.SIGKILL, signal.SIGSTOP], [], []

    def strike(*_):
        if len(struck) == len(lines) and faults:
            ranks_of(tmp_path)[1].send_signal(faults.pop(0))
            struck.append(time.monotonic())

    def tell(line):
        lines.append((time.monotonic(), line))

    train_gang(client, spec_of(training_store, tmp_path), 2, CONFIG.timeout, 2, strike, tell)
    told = [seconds for seconds, _ in lines]
    assert all(end - start < CONFIG.timeout + 10 for start, end in zip(struck, told, strict=True))
    assert "rank 1 was killed by SIGKILL; starting again" in lines[0][1]
    assert "rank 0 ended with exit status 1" in lines[1][1]
    assert same_weights(together, tmp_path)
    assert not ranks_of(tmp_path)


def test_a_lost_worker_leaves_a_smaller_gang(training_store, together, tmp_path, monkeypatch):
    monkeypatch.setattr("csst_dask.runners.gang.RETURN", 0.0)
    lines, left = [], set()
    with cluster.connect(workers=2, quiet=True) as client:
        confine(list(client.run(os.getpid).values()), {min(os.sched_getaffinity(0))})
        client.cluster._adaptive.stop()  # nobody brings another worker
        for nanny in client.cluster.workers.values():
            monkeypatch.setattr(nanny, "instantiate", AsyncMock())

        def strike(*_):
            ranks = ranks_of(tmp_path)
            if lines:
                left.add(len(ranks))
            elif len(ranks) == 2:
                ranks[1].parent().kill()

        train_gang(client, spec_of(training_store, tmp_path), 2, CONFIG.timeout, 2, strike, lines.append)
        with pytest.raises(ConfigError, match=r"found \d workers .*, expected 9"):
            cluster.wait_for_workers(client, 9, 0.5)
    assert left == {1}
    assert len(lines) == 1
    assert "lost the worker" in lines[0]
    assert same_weights(together, tmp_path)


def test_a_gang_that_breaks_again_or_falls_silent_is_given_up(client, training_store, tmp_path):
    faults, lines = [signal.SIGKILL, signal.SIGSTOP], []

    def strike(*_):
        if faults and len(faults) == 2 - len(lines):
            ranks_of(tmp_path)[0].send_signal(faults.pop(0))

    with pytest.raises(GangBroken, match="no rank has moved for 9 s; given up after 1 restarts"):
        train_gang(client, spec_of(training_store, tmp_path), 1, 3, 1, strike, lines.append)
    assert "rank 0 was killed by SIGKILL" in lines[0]
    assert not ranks_of(tmp_path)


def test_a_full_disk_is_told_at_once_and_more_space_lets_it_go_on(client, training_store, together, small_disk):
    disk, resize = small_disk
    resize("100m")
    lines = []
    with pytest.raises(ConfigError, match=r"No space left on device: '.*/checkpoint\.pt'; free some space"):
        train_gang(client, spec_of(training_store, disk), 2, CONFIG.timeout, 3, tell=lines.append)
    assert not lines
    assert not ranks_of(disk)
    resize("1g")
    train_gang(client, spec_of(training_store, disk), 2, CONFIG.timeout, 0, tell=lines.append)
    assert same_weights(disk, together)


def test_a_wrong_setting_is_told_at_once(client, training_store, tmp_path):
    config = CONFIG.model_copy(update={"parts": 1})
    with pytest.raises(ConfigError, match=r"2 ranks .* for 1 micro-batches"):
        train_gang(client, spec_of(training_store, tmp_path, config), 2, CONFIG.timeout, 3)
    result = CliRunner().invoke(
        app, ["train", "regressor", "--store", training_store, "--out", str(tmp_path), "--ranks", "0"]
    )
    assert result.exit_code == 2


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_in_a_terminal_leaves_a_checkpoint_from_which_the_same_command_ends(training_store, together, tmp_path):
    """Ctrl-C reaches every process of the terminal's foreground group."""
    settings = CONFIG.model_dump(mode="json", exclude_none=True)
    (tmp_path / "train.yaml").write_text(json.dumps({"training": settings}))
    out = tmp_path / "out"
    words = [
        "train", "regressor", "--store", training_store, "--out", str(out), "--ranks", "2",
        "--config", str(tmp_path / "train.yaml"),
    ]  # fmt: skip
    first = subprocess.Popen(
        [sys.executable, "-m", "csst_dask", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    while not (out / "checkpoint.pt").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)
    said, _ = first.communicate(timeout=90)
    assert first.returncode == 1, said
    assert "interrupted" in said
    assert not ranks_of(out)
    samples = load_samples(training_store)
    run = plan_run(task_named("regressor"), samples, samples.split(CONFIG.seed), CONFIG)
    state = load_checkpoint(out / "checkpoint.pt", run.fingerprint_beside)
    assert state["step"] > 0, "the step at hand was not saved"
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    for name, (value, error) in FitResult.from_folder(out, "regressor").metrics.items():
        assert f"{MEASURES[name]}: {value:.4f} ± {error:.4f}" in again.output
    assert str(out / "regressor.safetensors") in again.output
    assert same_weights(together, out)


def test_torchrun_learns_the_same_and_goes_on_after_an_interruption(training_store, together, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    spec = spec_of(training_store, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_torchrun(spec, 2, CONFIG, interrupt)
    assert not ranks_of(tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()
    steps = []
    run_torchrun(spec_of(training_store, tmp_path), 2, CONFIG, lambda *step: steps.append(step))
    assert steps[0][:3] > (1, 3, 1)
    assert same_weights(together, tmp_path)


def test_ranks_under_torchrun_that_all_hang_are_ended_and_started_again(
    training_store, together, tmp_path, monkeypatch
):
    """Nobody waits for another one in vain then, so that no time limit of torch tells."""
    monkeypatch.setattr("csst_dask.runners.train.SILENCE", 1)
    steps, lines = [], []

    def stop(*step):
        if len(steps) == 1:
            for rank in ranks_of(tmp_path):
                rank.suspend()
        steps.append(step)

    run_torchrun(spec_of(training_store, tmp_path), 2, CONFIG, stop, lines.append)
    assert lines == ["no rank has moved for 10 s; starting again from the last checkpoint (1 of 3)"]
    assert not ranks_of(tmp_path)
    assert same_weights(together, tmp_path)


def test_the_end_of_another_launch_of_the_same_name_is_not_taken_for_this_one(tmp_path):
    end = tmp_path / "rank.end.json"
    assert _known_end(end, "none") is None
    end.write_text(json.dumps({"launch": "none", "status": 130, "text": "interrupted"}))
    assert (_known_end(end, "none"), _known_end(end, "other")) == (130, None)
    before = psutil.Process(os.getppid()).create_time() - 1
    os.utime(end, (before, before))
    assert _known_end(end, "none") is None


def test_what_no_restart_can_mend_is_not_repeated_by_torchrun(training_store, tmp_path):
    (tmp_path / "train.yaml").write_text(json.dumps({"training": {"parts": 1, "restarts": 1, "batch": 8}}))
    words = ["train", "regressor", "--store", training_store, "--out", str(tmp_path), "--ranks", "2"]
    words += ["--launcher", "torchrun", "--config", str(tmp_path / "train.yaml")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    assert "2 ranks and 8 chips a step for 1 micro-batches" in result.output
    launch = json.loads(end_of(tmp_path / "rank.json").read_text())["launch"]
    started = time.monotonic()
    again = subprocess.run(
        [sys.executable, "-m", "csst_dask.training.rank", str(tmp_path / "rank.json")],
        env=os.environ | {"TORCHELASTIC_RUN_ID": launch, "TORCHELASTIC_RESTART_COUNT": "1", "WORLD_SIZE": "2"},
        timeout=60,
    )
    assert (again.returncode, time.monotonic() - started < 60) == (2, True)  # it would wait for the other rank


@pytest.mark.parametrize(
    ("visible", "local"),
    [
        (["0,1", "1,0", "0"], ["0", "0", "0"]),  # dask-cuda: each worker's own comes first
        (["0,1", "0,1", None], ["0", "1", "0"]),  # workers that see all
        ([None, None, None], ["0", "1", "0"]),
        (["GPU-aa", "GPU-bb", "GPU-aa"], ["0", "0", "0"]),
        (["", "", ""], ["0", "1", "0"]),
    ],
)
def test_every_rank_of_a_host_gets_a_gpu_of_its_own(visible, local):
    workers = ["tcp://10.0.0.1:4001", "tcp://10.0.0.1:4002", "tcp://10.0.0.2:4001"]
    met = {worker: {"port": 5000 + k, "visible": visible[k]} for k, worker in enumerate(workers)}
    found = environments(workers, met)
    assert [environment["LOCAL_RANK"] for environment in found] == local
    assert [environment["RANK"] for environment in found] == ["0", "1", "2"]
    assert [environment["LOCAL_WORLD_SIZE"] for environment in found] == ["2", "2", "1"]
    assert {(e["MASTER_ADDR"], e["MASTER_PORT"], e["WORLD_SIZE"]) for e in found} == {("10.0.0.1", "5000", "3")}
