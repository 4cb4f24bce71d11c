"""Several ranks train as one does, whatever starts them and whatever becomes of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import TrainingConfig
from csst_dask.config.load import build_config
from csst_dask.errors import ConfigError
from csst_dask.models import load_weights
from csst_dask.runners import cluster
from csst_dask.runners.gang import GangBroken, environments, train_gang
from csst_dask.runners.train import run_torchrun, train_network
from csst_dask.training import FitResult, load_samples
from csst_dask.training.cache import InputCache
from csst_dask.training.checkpoint import load_checkpoint
from csst_dask.training.loop import Loop
from csst_dask.training.rank import end_of, write_spec
from csst_dask.training.ranks import joined
from csst_dask.training.recipes import task_named
from csst_dask.training.run import plan_run

CONFIG = TrainingConfig(
    arch="resnet18", context_epochs=1, epochs=2, batch=8, seed=3, parts=2, timeout=10, checkpoint_minutes=0.02
)


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
        data="", command="",
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


def assert_close(one: dict, other: dict, names: set[str], rtol: float, atol: float) -> None:
    for name in sorted(names):
        torch.testing.assert_close(one[name].float(), other[name].float(), rtol=rtol, atol=atol, msg=name)


def take_steps(task: str, store: str, out: str, config: TrainingConfig) -> None:
    """A loop without dropout, in however many ranks the environment names; its end is kept in ``end.pt``."""
    torch.set_num_threads(1)
    samples, folder = load_samples(store), Path(out)
    run = plan_run(task_named(task), samples, samples.split(0), config)
    with joined("cpu", 60) as ranks:
        if ranks.first:
            InputCache.fill(folder / "inputs", samples, run.visited, run.recipe.inputs)
        cache = InputCache.open(folder / "inputs", samples, run.visited)
        loop = Loop(run, ranks, cache, run.build(cache, ranks.device), folder, config.parts)
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
    ("task", "world", "parts", "steps"), [("classifier", 2, 2, 20), ("regressor", 2, 2, 20), ("regressor", 3, 4, 5)]
)
def test_ranks_are_one_rank_with_more_micro_batches(task, world, parts, steps, training_store, tmp_path):
    config = CONFIG.model_copy(
        update={"parts": parts, "epochs": 2 if steps > 5 else 1, "batch": 8 if steps > 5 else 16}
    )
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
    statistics = {name for name in one["module"] if "running_" in name}
    learned = {name for name in one["module"] if "num_batches" not in name} - statistics
    assert statistics
    for part in ("losses", "validation"):
        print(part, max(abs(a - b) / abs(a) for a, b in zip(one[part], many[part], strict=True)))
    for names in (learned, statistics):
        print(max(float(((one["module"][n] - many["module"][n]).abs()).nan_to_num().max()) for n in names))
    torch.testing.assert_close(one["losses"], many["losses"], rtol=1e-4, atol=0)
    torch.testing.assert_close(one["validation"], many["validation"], rtol=1e-4, atol=0)
    assert_close(one["module"], many["module"], learned, rtol=1e-3, atol=2e-4)
    assert_close(one["module"], many["module"], statistics, rtol=1e-3, atol=2e-4)


def test_a_gang_on_dask_workers_learns_what_one_process_learns(client, together, training_store, tmp_path):
    settings = {"training": CONFIG.model_dump(mode="json"), "cluster": {"scheduler": client.scheduler.address}}
    config, steps = build_config(settings, "test"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("csst_dask.training.fit", None)  # one rank, but on the cluster that is named
        result = train_network("regressor", training_store, tmp_path, config, lambda *step: steps.append(step))
    assert steps
    assert result == FitResult.from_folder(tmp_path, "regressor")
    one, other = (load_weights(path / "regressor.safetensors").module.state_dict() for path in (together, tmp_path))
    assert_close(one, other, set(one), rtol=4e-3, atol=2e-3)  # stored in half precision
    before = (together / "regressor.safetensors").stat().st_mtime_ns
    train_gang(client, together / "rank.json", 2, CONFIG.timeout, 0)  # finished: returns at once
    assert (together / "regressor.safetensors").stat().st_mtime_ns == before


def test_a_rank_that_dies_or_hangs_fails_the_gang_which_starts_again(client, training_store, together, tmp_path):
    faults, struck, lines = [signal.SIGKILL, signal.SIGSTOP], [], []

    def strike(*_):
        if len(struck) == len(lines) and faults:
            ranks_of(tmp_path)[1].send_signal(faults.pop(0))
            struck.append(time.monotonic())

    def tell(line):
        lines.append((time.monotonic(), line))

    train_gang(client, spec_of(training_store, tmp_path), 2, CONFIG.timeout, 2, strike, tell)
    assert [seconds - since < CONFIG.timeout + 10 for (seconds, _), since in zip(lines, struck, strict=True)] == [
        True
    ] * 2
    assert "rank 1 was killed by SIGKILL; starting again" in lines[0][1]
    assert "rank 0 ended with exit status 1" in lines[1][1]
    assert same_weights(together, tmp_path)
    assert not ranks_of(tmp_path)


def test_a_lost_worker_leaves_a_smaller_gang(training_store, together, tmp_path, monkeypatch):
    monkeypatch.setattr("csst_dask.runners.gang.RETURN", 0.0)
    lines = []
    with cluster.connect(workers=2, quiet=True) as client:

        def strike(*_):
            if not lines and len(ranks := ranks_of(tmp_path)) == 2:
                for nanny in client.cluster.workers.values():
                    nanny.auto_restart = False
                ranks[1].parent().kill()

        train_gang(client, spec_of(training_store, tmp_path), 2, CONFIG.timeout, 2, strike, lines.append)
        assert len(cluster.known_workers(client)) == 1
        with pytest.raises(ConfigError, match="found 1 workers after 0.5 s, expected 2"):
            cluster.wait_for_workers(client, 2, 0.5)
    assert len(lines) == 1
    assert "lost the worker" in lines[0]
    one, other = (load_weights(path / "regressor.safetensors").module.state_dict() for path in (together, tmp_path))
    assert_close(one, other, set(one), rtol=4e-3, atol=2e-3)


def test_a_gang_that_breaks_again_or_falls_silent_is_given_up(client, training_store, tmp_path):
    faults, lines = [signal.SIGKILL, signal.SIGSTOP], []

    def strike(*_):
        if faults and len(faults) == 2 - len(lines):
            ranks_of(tmp_path)[0].send_signal(faults.pop(0))

    with pytest.raises(GangBroken, match="no rank has moved for 9 s; given up after 1 restarts"):
        train_gang(client, spec_of(training_store, tmp_path), 1, 3, 1, strike, lines.append)
    assert "rank 0 was killed by SIGKILL" in lines[0]
    assert not ranks_of(tmp_path)


def test_a_wrong_setting_is_told_at_once(client, training_store, tmp_path):
    config = CONFIG.model_copy(update={"parts": 1})
    with pytest.raises(ConfigError, match="2 ranks .* for 1 micro-batches"):
        train_gang(client, spec_of(training_store, tmp_path, config), 2, CONFIG.timeout, 3)
    result = CliRunner().invoke(
        app, ["train", "regressor", "--store", training_store, "--out", str(tmp_path), "--ranks", "0"]
    )
    assert result.exit_code == 2


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
    state = load_checkpoint(out / "checkpoint.pt", run.fingerprint)
    assert state["step"] > 0, "the step at hand was not saved"
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
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
    with pytest.raises(ConfigError, match="torchrun"):
        config = build_config({"training": {"launcher": "torchrun"}, "cluster": {"scheduler": "tcp://a:1"}}, "test")
        train_network("regressor", training_store, tmp_path, config)


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
