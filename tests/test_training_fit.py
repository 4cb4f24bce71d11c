import csv
import errno
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from csst_dask.cli.training import without_folders
from csst_dask.config import TrainingConfig, load_config
from csst_dask.errors import ConfigError
from csst_dask.models import load_weights, weights_folder
from csst_dask.preprocess.statistics import HISTOGRAMS
from csst_dask.training import Samples, Split, cache
from csst_dask.training import fit as fit_anywhere
from csst_dask.training.cache import InputCache, make_block
from csst_dask.training.checkpoint import load_checkpoint
from csst_dask.training.recipes import task_named
from csst_dask.training.run import plan_run

CONFIG = TrainingConfig(arch="resnet18", context_epochs=1, epochs=1, batch=8, learning_rate=1e-3, seed=3)
SPLIT = Split(np.arange(0, 24), np.arange(24, 32), np.arange(32, 40))


fit = partial(fit_anywhere, device="cpu")


def make_samples(n):
    """Blocks that are the brighter the more stars there are."""
    rng = np.random.default_rng(0)
    size = 16
    n_star = np.tile([0, 30, 300, 3000, 30_000, 300_000, 300, 3000], n // 8)
    mean = 0.2 + 1e-3 * np.sqrt(n_star)[:, None, None] * rng.exponential(size=(n, size, size))
    std, valid = 0.05 + mean - 0.2, np.ones_like(mean)
    block_stats = np.stack([mean, valid, std, mean + 5 * std, mean, valid], axis=1).astype(np.float32)
    total = mean.reshape(n, -1)
    return Samples(
        block_stats=block_stats,
        scalars={
            "pixel_mean": total.mean(1), "pixel_std": total.std(1),
            "sky_level": np.full(n, 0.2), "sky_sigma": np.full(n, 0.05),
        },
        band=np.tile(["g", "i"], n // 2), n_star=n_star, n_bright=n_star // 2,
        field=np.repeat([f"f{i}" for i in range(n // 4)], 4),
        ra=np.repeat(np.arange(n // 4) * 360.0 / n, 4), dec=np.zeros(n),
    )  # fmt: skip


@pytest.fixture(scope="module")
def samples():
    return make_samples(40)


@pytest.fixture(scope="module")
def whole(samples, tmp_path_factory):
    """An uninterrupted training of the regressor, which also draws noise on the context."""
    out = tmp_path_factory.mktemp("whole")
    calls = []
    result = fit("regressor", samples, SPLIT, CONFIG, out, lambda *c: calls.append(c), threads=1)
    return out, result, calls


class Killed(Exception):
    pass


@pytest.mark.parametrize("moment", [(1, 1), (2, 1)])
def test_a_killed_training_goes_on_to_the_same_weights(samples, whole, tmp_path, moment):
    """Killed while it learns from the context alone, and with the maps."""

    def kill(epoch, epochs, step, steps, loss):
        if (epoch, step) == moment:
            raise Killed

    with pytest.raises(Killed):
        fit("regressor", samples, SPLIT, CONFIG, tmp_path, kill, threads=1)
    torch.rand(7)  # the state of the caller's generator does not matter
    calls = []
    result = fit("regressor", samples, SPLIT, CONFIG, tmp_path, lambda *c: calls.append(c), threads=1)
    assert {call[0] for call in calls} == set(range(moment[0], 3))
    assert result.metrics == whole[1].metrics
    assert result.weights.read_bytes() == whole[1].weights.read_bytes()


@pytest.mark.parametrize("moment", ["predict_rows", "write_model_card"])
def test_a_training_that_is_killed_after_its_last_epoch_still_writes_its_weights(samples, whole, tmp_path, moment):
    def kill(*_, **__):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"csst_dask.training.finish.{moment}", kill)
        with pytest.raises(Killed):
            fit("regressor", samples, SPLIT, CONFIG, tmp_path, threads=1)
    assert (tmp_path / "regressor.safetensors").exists() == (moment == "write_model_card")
    (tmp_path / ".checkpoint.pt.0123abcd").write_bytes(b"half of it")
    calls = []
    result = fit("regressor", samples, SPLIT, CONFIG, tmp_path, lambda *c: calls.append(c), threads=1)
    assert calls == []
    assert result.weights.read_bytes() == whole[1].weights.read_bytes()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint.pt", "log.csv", "regressor.md", "regressor.safetensors"}


def test_signals_end_it_after_the_step_at_hand_and_adding_one_does_no_harm(samples, whole, tmp_path):
    calls = []

    def ask(*call):
        calls.append(call)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="after step 2 of"):
        fit("regressor", samples, SPLIT, CONFIG, tmp_path, ask, threads=1)
    assert len(calls) == 2
    result = fit("regressor", samples, SPLIT, CONFIG, tmp_path, threads=1)
    assert result.weights.read_bytes() == whole[1].weights.read_bytes()


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_while_inputs_are_made_simply_ends_it(samples, tmp_path):
    blocks = []

    def interrupt():
        blocks.append(len(list((tmp_path / "inputs").glob(".*"))))
        if blocks[-1]:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit("classifier", samples, SPLIT, CONFIG, tmp_path, threads=1, alive=interrupt)
    assert blocks[-1] == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "inputs"]
    assert list((tmp_path / "inputs").iterdir()) == []


def test_trainings_that_share_inputs_do_not_disturb_each_other(samples, tmp_path):
    rows, folder = np.arange(36), tmp_path / "inputs" / "key"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    orphan = folder.with_name(f".key.{cache._OWNER.rpartition('-')[0]}-{process.pid}.0123abcd")
    orphan.mkdir(parents=True)
    inner = []

    def meanwhile():
        if not inner:
            inner.append(folder.exists())
            InputCache.fill(folder, samples, rows, "maps")

    InputCache.fill(folder, samples, rows, "maps", meanwhile)
    assert inner == [False]
    assert [path.name for path in folder.parent.iterdir()] == ["key"]
    maps, _ = InputCache.open(folder, samples, rows).batch(rows, torch.device("cpu"))
    expected, _ = make_block(samples, rows, "maps")
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_inputs_that_nobody_goes_on_making_are_not_waited_for(samples, tmp_path):
    """Only as long as whoever makes them writes."""
    folder, rows, passed = tmp_path / "key", np.arange(40), []

    def fill():
        InputCache.fill(folder, samples, rows, "maps", lambda: passed.append(time.sleep(0.6)))

    with pytest.raises(TimeoutError, match=r"the inputs .*key has written nothing for 0\.5 s"):
        InputCache.open(folder, samples, rows, 0.5)
    other = threading.Thread(target=fill)
    other.start()
    cache = InputCache.open(folder, samples, rows, 1.0)
    other.join()
    assert len(passed) == 2
    assert len(cache.maps) == 40


def test_storage_that_does_not_answer_is_no_reason_to_delete_a_checkpoint(whole, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    path = whole[0] / "checkpoint.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        with pytest.raises(OSError, match="Input/output error"):
            load_checkpoint(path, lambda _: "")
    with pytest.raises(ConfigError, match=r"another training: its chips, their truth, or what its inputs"):
        load_checkpoint(path, lambda _: "")
    damaged = whole[0] / "damaged.pt"
    damaged.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"is damaged.*delete it to start anew"):
        load_checkpoint(damaged, lambda _: "")
    damaged.unlink()


def test_micro_batches_decide_what_comes_out_and_are_kept(samples, tmp_path):
    config = CONFIG.model_copy(update={"arch": "perceptron", "parts": None})
    result = {parts: fit("classifier", samples, SPLIT, config, tmp_path / f"{parts}", parts=parts) for parts in (1, 2)}
    assert load_weights(result[2].weights).metadata["training"]["config"]["parts"] == 2
    assert " in 2 parts" in result[2].card.read_text()
    assert result[1].weights.read_bytes() != result[2].weights.read_bytes()
    assert fit("classifier", samples, SPLIT, config, tmp_path / "2") == result[2]
    with pytest.raises(ConfigError, match=r"parts: found 1 .* took 2 micro-batches a step; expected 2"):
        fit("classifier", samples, SPLIT, config.model_copy(update={"parts": 1}), tmp_path / "2")


def test_the_command_in_a_card_repeats_what_was_not_started_by_one(samples, whole, tmp_path):
    echo, command = re.findall(r"^    (.+)$", whole[1].card.read_text().partition("## Train it again")[2], re.MULTILINE)
    subprocess.run(echo, shell=True, cwd=tmp_path, check=True)
    assert command == "csst-dask train regressor --config training.yaml --store STORE --out DIR"
    config = load_config(tmp_path / "training.yaml").training
    again = fit("regressor", samples, SPLIT, config, tmp_path / "again", threads=1)
    assert again.weights.read_bytes() == whole[1].weights.read_bytes()


def test_a_context_that_no_training_chip_has_does_not_make_everything_usual(samples, tmp_path):
    """The limit beyond which chips are unlike the training comes from those that are like it."""
    limits = []
    for changed in ([], SPLIT.validation[:1], SPLIT.validation):
        exptime = np.full(len(samples), 150.0)
        exptime[changed] = 300.0
        others = replace(samples, scalars=samples.scalars | {"exptime": exptime})
        config = CONFIG.model_copy(update={"arch": "perceptron"})
        with pytest.raises(ConfigError, match=r"all .* validation chips") if len(changed) > 1 else nullcontext():
            result = fit("classifier", others, SPLIT, config, tmp_path / str(len(changed)))
            limits.append(load_weights(result.weights).metadata["ood_limit"])
    assert np.isfinite(limits).all()
    assert len(limits) == 2


def test_intervals_without_an_end_are_told(whole):
    """Eight validation chips, one of them in class 5, cannot bound nine tenths."""
    _, result, _ = whole
    assert result.warnings == ("Intervals of 80, 90, 95 % have no end: 7 validation chips are too few, 39 are needed.",)
    assert result.warnings[0] in result.card.read_text()


def test_a_finished_training_returns_at_once(samples, whole):
    out, result, _ = whole
    before = result.weights.stat().st_mtime_ns

    def never(*_):
        raise AssertionError("trained again")

    assert fit("regressor", samples, SPLIT, CONFIG, out, never) == result
    assert result.weights.stat().st_mtime_ns == before


def test_a_disk_that_fills_while_inputs_are_made_is_named(samples, small_disk):
    disk, resize = small_disk
    resize("64k")
    with pytest.raises(OSError, match=r"No space left on device: '.*inputs'"):
        InputCache.fill(disk / "inputs", samples, np.arange(40), "maps")
    assert not list(disk.iterdir())
    resize("2m")
    InputCache.fill(disk / "inputs", samples, np.arange(40), "maps")
    maps, context = InputCache.open(disk / "inputs", samples, np.arange(40)).batch(np.arange(40), torch.device("cpu"))
    expected, of = make_block(samples, np.arange(40), "maps")
    np.testing.assert_array_equal(maps.numpy(), expected.astype(np.float16))
    np.testing.assert_array_equal(context.numpy(), of)


def test_a_training_is_of_the_scalars_and_of_the_definition_of_the_context(samples, monkeypatch):
    def fingerprint(samples):
        return plan_run(task_named("regressor"), samples, SPLIT, CONFIG).fingerprint

    before = fingerprint(samples)
    for name, values in samples.scalars.items():
        other = replace(samples, scalars=samples.scalars | {name: 1.01 * values})
        assert fingerprint(other) != before, name
    monkeypatch.setattr("csst_dask.training.run.context_definition", lambda kind: f"another {kind}")
    assert fingerprint(samples) != before


def test_the_command_of_a_card_keeps_what_another_machine_understands():
    words = ["--store=/data/a.zarr", "--store", "/data/b.zarr", "--store", "s3://b/x.zarr", "configs/c.yaml"]
    kept = ["--store=a.zarr", "--store", "b.zarr", "--store", "s3://b/x.zarr", "configs/c.yaml"]
    assert [without_folders(word) for word in words] == kept


def test_an_unknown_architecture_is_told_before_inputs_are_made(samples, tmp_path):
    config = CONFIG.model_copy(update={"arch": "resnet43"})
    with pytest.raises(ConfigError, match="resnet43"):
        fit("regressor", samples, SPLIT, config, tmp_path, threads=1)
    assert not list(tmp_path.glob("**/maps.npy"))


def test_another_configuration_does_not_go_on_from_this_checkpoint(samples, whole):
    with pytest.raises(ConfigError, match="another folder"):
        fit("regressor", samples, SPLIT, CONFIG.model_copy(update={"seed": 4}), whole[0])
    (whole[0] / "broken").mkdir()
    (whole[0] / "broken" / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="delete it"):
        fit("regressor", samples, SPLIT, CONFIG, whole[0] / "broken")


def test_progress_log_and_card_tell_the_same_story(whole):
    out, result, calls = whole
    assert len(calls) == 2 * 3  # 24 chips, class 5 among them, make 3 batches
    assert calls[-1][:4] == (2, 2, 3, 3)
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert result.best_epoch == 2  # the end of the cosine
    text = result.card.read_text()
    assert "No field is shared" in text
    assert "24 chips of 6 fields to learn from" in text
    assert "Trained from scratch" in text
    assert "| 1 | 1 | 0.003 | frozen | frozen | context |" in text
    assert "| 2 | 1 | 0.0003 | 0.001 | 0.001 | maps |" in text
    seconds = sum(float(row["seconds"]) for row in rows)
    hardware = f"1 thread of {platform.machine()} cores"
    assert f"24 chips, 24 visits an epoch; 2 epochs of 3 steps in {seconds:,.0f} s on {hardware}" in text
    for name, (value, _) in result.metrics.items():
        assert f"| {name} | {value:.4g} |" in text


def test_the_weights_know_what_they_are(whole, samples):
    model = load_weights(whole[1].weights, "regressor")
    assert (model.inputs, model.metadata["histograms"]) == ("maps", len(HISTOGRAMS))
    assert model.bands == ("g", "i")
    assert model.metadata["split"]["kind"] == "field"
    assert model.metadata["residual_quantiles"]["n"] == 7  # validation chips below class 5
    assert model.metadata["training"]["chips"] == {"train": 24, "validation": 7, "test": 7}  # judged below class 5


def test_the_classifier_learns(tmp_path):
    n = 240
    split = Split(np.arange(0, n - 80), np.arange(n - 80, n - 40), np.arange(n - 40, n))
    config = CONFIG.model_copy(update={"arch": None, "epochs": 60, "batch": 32})
    result = fit("classifier", make_samples(n), split, config, tmp_path, threads=1)
    assert load_weights(result.weights).metadata["arch"] == "perceptron"
    assert result.metrics["accuracy"][0] >= 0.8  # the commonest class would give 0.25


def test_global_state_is_left_alone(samples, tmp_path):
    torch.manual_seed(0)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(0)
    fit("classifier", samples, SPLIT, CONFIG.model_copy(update={"epochs": 1}), tmp_path, threads=threads + 1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("arch", "expected"), [("perceptron", 1), ("resnet18", 3)])
def test_small_steps_are_not_shared_among_threads(samples, tmp_path, arch, expected):
    seen, config = set(), CONFIG.model_copy(update={"arch": arch})
    fit("classifier", samples, SPLIT, config, tmp_path, lambda *_: seen.add(torch.get_num_threads()), threads=3)
    assert seen == {expected}


def test_the_paper_recipe_trains_on_its_own_inputs_below_class_five(samples, tmp_path):
    config = CONFIG.model_copy(update={"recipe": "paper", "epochs": 1})
    result = fit("regressor", samples, SPLIT, config, tmp_path, threads=1)
    model = load_weights(result.weights)
    assert (model.inputs, model.metadata["channels"]) == ("paper-point", 2)
    assert model.metadata["training"]["chips"]["train"] == np.count_nonzero(samples.density_class[:24] < 5)


def test_training_stops_when_validation_rests(samples, tmp_path):
    few = {"recipe": "paper", "epochs": 30, "learning_rate": 1e-12, "early_stopping_epochs": 1, "bands": ("g",)}
    config = CONFIG.model_copy(update=few)
    assert fit("classifier", samples, SPLIT, config, tmp_path, threads=1).epochs < 30


def test_the_paper_recipe_can_be_given_more_or_fewer_epochs_on_the_way(samples, tmp_path):
    """Its rates follow from the losses alone, so that how many epochs it may take does not matter before the last."""

    def train(out, epochs, moment=None):
        def kill(epoch, epochs, step, steps, loss):
            calls.append(epoch)
            if (epoch, step) == moment:
                signal.raise_signal(signal.SIGTERM)

        calls, config = [], CONFIG.model_copy(update={"recipe": "paper", "epochs": epochs})
        with pytest.raises(KeyboardInterrupt) if moment else nullcontext():
            return fit("classifier", samples, SPLIT, config, out, kill, threads=1), calls

    whole = {epochs: train(tmp_path / f"whole{epochs}", epochs)[0] for epochs in (1, 2)}
    train(tmp_path / "longer", 1, (1, 3))
    longer, _ = train(tmp_path / "longer", 2)
    assert longer.weights.read_bytes() == whole[2].weights.read_bytes()
    train(tmp_path / "shorter", 30, (2, 3))
    shorter, calls = train(tmp_path / "shorter", 1)
    assert calls == []
    assert shorter.weights.read_bytes() == whole[1].weights.read_bytes() != whole[2].weights.read_bytes()
    with pytest.raises(ConfigError, match="holds another training: epochs was 1, is 2; choose another folder"):
        train(tmp_path / "shorter", 2)  # finished


def test_a_cosine_knows_its_end_from_the_start(samples, tmp_path):
    def stop(*_):
        raise Killed

    for epochs, error in ((1, Killed), (2, ConfigError)):
        config = CONFIG.model_copy(update={"epochs": epochs, "checkpoint_minutes": 0.0})
        with pytest.raises(error):
            fit("classifier", samples, SPLIT, config, tmp_path, lambda e, n, step, *_: step == 2 and stop(), threads=1)


def test_what_cannot_be_trained_is_refused(samples, tmp_path):
    few = Split(SPLIT.train, SPLIT.validation, SPLIT.test[:0])
    with pytest.raises(ConfigError, match="'test': 0"):
        fit("classifier", samples, few, CONFIG, tmp_path)
    with pytest.raises(ConfigError, match="classifier, regressor"):
        fit("segmenter", samples, SPLIT, CONFIG, tmp_path)


@pytest.mark.parametrize("task", ["classifier", "regressor"])
def test_shipped_cards_describe_the_shipped_weights(task):
    model = load_weights(weights_folder() / f"{task}.safetensors", task)
    text = (weights_folder() / f"{task}.md").read_text()
    training, chips = model.metadata["training"], model.metadata["training"]["chips"]
    assert f"`{model.checksum}`" in text
    assert f"{sum(tensor.numel() for tensor in model.module.parameters()):,} parameters" in text
    assert f"{chips['train']} chips of" in text
    assert f"{training['epochs']} epochs of" in text
    assert "from scratch" in text
    for name, (value, _) in model.metadata["metrics"].items():
        assert f"| {name} | {value:.4g} |" in text


def test_samples_in_memory_are_trained_on_without_zarr_astropy_and_dask():
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('zarr', 'astropy', 'distributed'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from csst_dask.training import Samples, Split, fit"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
