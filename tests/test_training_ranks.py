"""Several ranks train as one does, whatever starts them and whatever becomes of them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.models import load_weights
from csst_dask.runners.gang import GangBroken, train_gang
from csst_dask.training import FitResult, fit, load_samples
from csst_dask.training.rank import write_spec

CONFIG = TrainingConfig(arch="resnet18", epochs=2, batch=8, seed=3, parts=2, timeout=8, checkpoint_minutes=0.01)

LOOP = """
import sys
from pathlib import Path
import torch
from torch import nn
from csst_dask.config import TrainingConfig
from csst_dask.training import load_samples
from csst_dask.training.cache import InputCache
from csst_dask.training.loop import Loop
from csst_dask.training.ranks import joined
from csst_dask.training.recipes import task_named
from csst_dask.training.run import plan_run

task, store, out, config = sys.argv[1], sys.argv[2], Path(sys.argv[3]), TrainingConfig.model_validate_json(sys.argv[4])
torch.set_num_threads(1)
samples = load_samples(store)
run = plan_run(task_named(task), samples, samples.split(0), config)
with joined("cpu", 60) as ranks:
    if ranks.first:
        InputCache.fill(out / "inputs", samples, run.visited, run.recipe.inputs)
    cache = InputCache.open(out / "inputs", samples, run.visited)
    loop = Loop(run, ranks, cache, run.build(cache, ranks.device), out, config.parts)
    for layer in loop.module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    loop.train(None)
    if ranks.first:
        torch.save({"module": loop.module.state_dict(), "losses": [row["train_loss"] for row in loop.history],
                    "validation": [row["validation_loss"] for row in loop.history]}, out / "end.pt")
    del loop
"""


@pytest.fixture(scope="module")
def alone(training_store, tmp_path_factory) -> Path:
    """The same training in one process."""
    out, samples = tmp_path_factory.mktemp("alone"), load_samples(training_store)
    fit("regressor", samples, samples.split(CONFIG.seed), CONFIG, out, threads=1, device="cpu")
    return out


def spec_of(store: str, out: Path, config: TrainingConfig = CONFIG) -> Path:
    return write_spec(
        out / "rank.json", task="regressor", store=store, out=str(out), config=config.model_dump(mode="json"),
        data="", command="",
    )  # fmt: skip


def assert_alike(one: Path, other: Path) -> None:
    """Weights that are stored in half precision, to their rounding."""
    states = [load_weights(folder / "regressor.safetensors").module.state_dict() for folder in (one, other)]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor.float(), states[1][name].float(), rtol=4e-3, atol=2e-3, msg=name)


def ranks_of_this_machine() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "csst_dask.training.rank" in line and "torch.distributed.run" not in line:
            found.append(process)
    return sorted(found, key=lambda process: process.pid)


@pytest.mark.parametrize("task", ["classifier", "regressor"])
def test_two_ranks_are_one_rank_with_two_micro_batches(task, training_store, tmp_path):
    config = CONFIG.model_copy(update={"epochs": 2})
    ends = []
    for world in (1, 2):
        out = tmp_path / str(world)
        out.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", LOOP, task, training_store, str(out), config.model_dump_json()],
                env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
                                  "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            )
            for rank in range(world)
        ]  # fmt: skip
        assert [process.wait(timeout=240) for process in processes] == [0] * world
        ends.append(torch.load(out / "end.pt", weights_only=True))
    one, two = ends
    np.testing.assert_allclose(one["losses"], two["losses"], rtol=1e-4)
    statistics = [name for name in one["module"] if "running_" in name]
    assert statistics
    learned = {name for name in one["module"] if "running_" not in name and "num_batches" not in name}
    for name in sorted(learned):
        torch.testing.assert_close(one["module"][name], two["module"][name], rtol=1e-3, atol=2e-4, msg=name)
    for name in statistics:
        torch.testing.assert_close(one["module"][name], two["module"][name], rtol=1e-3, atol=2e-4, msg=name)


def test_a_gang_on_dask_workers_learns_what_one_process_learns(client, training_store, alone, tmp_path):
    told = []
    train_gang(client, spec_of(training_store, tmp_path), 2, CONFIG.timeout, 0, lambda *step: told.append(step))
    assert FitResult.from_folder(tmp_path, "regressor").epochs == 2
    assert told[-1][0] == told[-1][1] == 2
    assert_alike(alone, tmp_path)
    train_gang(client, spec_of(training_store, tmp_path), 2, CONFIG.timeout, 0)  # finished: returns at once


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_fails_the_gang_which_starts_again(client, training_store, alone, tmp_path, fault):
    done, lines = [], []

    def strike(*step):
        if not done and step[:3] >= (1, 2, 3):
            done.append(time.monotonic())
            ranks_of_this_machine()[-1].send_signal(fault)

    train_gang(client, spec_of(training_store, tmp_path), 2, CONFIG.timeout, 2, strike, lines.append)
    assert len(lines) == 1
    assert "starting again" in lines[0]
    assert_alike(alone, tmp_path)
    assert not ranks_of_this_machine()


def test_a_lost_worker_leaves_a_smaller_gang(training_store, alone, tmp_path):
    from csst_dask.runners.cluster import connect

    done, lines = [], []
    with connect(workers=2, quiet=True) as cluster:

        def strike(*step):
            if not done:
                done.append(step)
                worker = psutil.Process(ranks_of_this_machine()[-1].pid).parent()
                nanny = worker.parent()
                for process in (worker, nanny):
                    if process.pid != os.getpid() and process.is_running():
                        process.kill()

        train_gang(cluster, spec_of(training_store, tmp_path), 2, CONFIG.timeout, 2, strike, lines.append)
    assert len(lines) == 1
    assert_alike(alone, tmp_path)


def test_a_gang_that_breaks_again_and_again_is_given_up(client, training_store, tmp_path):
    def strike(*_):
        for process in ranks_of_this_machine():
            process.kill()

    with pytest.raises(GangBroken, match="given up after 1 restarts"):
        train_gang(client, spec_of(training_store, tmp_path), 2, CONFIG.timeout, 1, strike, lambda _: None)


def test_a_wrong_setting_is_told_at_once(client, training_store, tmp_path):
    wrong = CONFIG.model_copy(update={"arch": "transformer"})
    with pytest.raises(ConfigError, match="transformer"):
        train_gang(client, spec_of(training_store, tmp_path, wrong), 2, CONFIG.timeout, 3)


def test_torchrun_learns_the_same_and_goes_on_after_an_interruption(training_store, alone, tmp_path):
    words = [
        sys.executable, "-m", "csst_dask", "train", "regressor", "--store", training_store,
        "--out", str(tmp_path / "out"), "--ranks", "2", "--launcher", "torchrun",
        "--config", str(tmp_path / "train.yaml"),
    ]  # fmt: skip
    settings = CONFIG.model_dump(mode="json", exclude_none=True)
    (tmp_path / "train.yaml").write_text(f"training: {settings!r}".replace("'", '"').replace("True", "true"))
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (tmp_path / "out" / "checkpoint.pt").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    first.wait(timeout=60)
    assert not ranks_of_this_machine()
    again = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_alike(alone, tmp_path / "out")


def test_more_ranks_than_micro_batches_are_refused(client, training_store, tmp_path):
    result = CliRunner().invoke(
        app, ["train", "regressor", "--store", training_store, "--out", str(tmp_path), "--ranks", "0"]
    )
    assert result.exit_code == 2
    config = CONFIG.model_copy(update={"parts": 1})
    with pytest.raises(ConfigError, match="micro-batches"):
        train_gang(client, spec_of(training_store, tmp_path, config), 2, CONFIG.timeout, 0)
