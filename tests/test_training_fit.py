import csv
from functools import partial

import numpy as np
import pytest
import torch

from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.models import load_weights
from csst_dask.training import Samples, Split
from csst_dask.training import fit as fit_anywhere

CONFIG = TrainingConfig(arch="resnet18", context_epochs=1, epochs=1, batch=8, learning_rate=1e-3, seed=3)
SPLIT = Split(np.arange(0, 24), np.arange(24, 32), np.arange(32, 40))


fit = partial(fit_anywhere, device="cpu")


@pytest.fixture(scope="module")
def samples():
    """Blocks that are the brighter the more stars there are."""
    rng = np.random.default_rng(0)
    n, size = 40, 16
    n_star = np.tile([0, 30, 300, 3000, 30_000, 300_000, 300, 3000], 5)
    mean = 0.2 + 1e-3 * np.sqrt(n_star)[:, None, None] * rng.exponential(size=(n, size, size))
    std, valid = 0.05 + mean - 0.2, np.ones_like(mean)
    reduced = np.stack([mean, valid, std, mean + 5 * std, mean, valid], axis=1).astype(np.float32)
    total = mean.reshape(n, -1)
    return Samples(
        reduced=reduced,
        scalars={
            "pixel_mean": total.mean(1), "pixel_std": total.std(1),
            "sky_level": np.full(n, 0.2), "sky_sigma": np.full(n, 0.05),
        },
        band=np.tile(["g", "i"], n // 2), n_star=n_star, n_bright=n_star // 2,
        field=np.repeat([f"f{i}" for i in range(10)], 4),
        ra=np.repeat(np.arange(10) * 9.0, 4), dec=np.zeros(n),
    )  # fmt: skip


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


def test_a_finished_training_returns_at_once(samples, whole):
    out, result, _ = whole
    before = result.weights.stat().st_mtime_ns

    def never(*_):
        raise AssertionError("trained again")

    assert fit("regressor", samples, SPLIT, CONFIG, out, never) == result
    assert result.weights.stat().st_mtime_ns == before


def test_another_configuration_does_not_go_on_from_this_checkpoint(samples, whole):
    with pytest.raises(ConfigError, match="another folder"):
        fit("regressor", samples, SPLIT, CONFIG.model_copy(update={"seed": 4}), whole[0])
    (whole[0] / "broken").mkdir()
    (whole[0] / "broken" / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="delete it"):
        fit("regressor", samples, SPLIT, CONFIG, whole[0] / "broken")


def test_progress_log_and_card_tell_the_same_story(whole):
    out, result, calls = whole
    assert len(calls) == 2 * 2  # 21 chips below class 5 make 2 full batches
    assert calls[-1][:4] == (2, 2, 2, 2)
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    best = min(rows, key=lambda row: float(row["validation_loss"]))
    assert int(best["epoch"]) == result.best_epoch
    text = result.card.read_text()
    assert "No field is shared" in text
    assert "21 chips of 6 fields to learn from" in text
    for name, (value, _) in result.metrics.items():
        assert f"| {name} | {value:.4g} |" in text


def test_the_weights_know_what_they_are(whole, samples):
    model = load_weights(whole[1].weights, "regressor")
    assert (model.inputs, model.metadata["outputs"]) == ("maps", ["class", "star", "bright"])
    assert model.bands == ("g", "i")
    assert model.metadata["split"]["kind"] == "field"
    assert model.metadata["residual_quantiles"]["n"] == 7  # validation chips below class 5
    assert model.metadata["training"]["chips"] == {"train": 21, "validation": 7, "test": 7}


def test_the_classifier_learns(samples, tmp_path):
    config = CONFIG.model_copy(update={"arch": None, "context_epochs": 60})
    result = fit("classifier", samples, SPLIT, config, tmp_path, threads=1)
    assert load_weights(result.weights).metadata["arch"] == "perceptron"
    assert result.metrics["accuracy"][0] >= 0.7  # the commonest class would give 0.25


def test_global_state_is_left_alone(samples, tmp_path):
    torch.manual_seed(0)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(0)
    fit("classifier", samples, SPLIT, CONFIG.model_copy(update={"epochs": 1}), tmp_path, threads=threads + 1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_the_paper_recipe_trains_on_its_own_inputs_with_class_five_if_asked(samples, tmp_path):
    config = CONFIG.model_copy(update={"recipe": "paper", "epochs": 1})
    result = fit("regressor", samples, SPLIT, config, tmp_path, threads=1, crowded=True)
    model = load_weights(result.weights)
    assert (model.inputs, model.metadata["channels"]) == ("paper-point", 2)
    assert model.metadata["training"]["chips"]["train"] == 24


def test_training_stops_when_validation_rests(samples, tmp_path):
    few = {"recipe": "paper", "epochs": 30, "learning_rate": 1e-12, "patience": 1, "bands": ("g",)}
    config = CONFIG.model_copy(update=few)
    assert fit("classifier", samples, SPLIT, config, tmp_path, threads=1).epochs < 30


def test_what_cannot_be_trained_is_refused(samples, tmp_path):
    few = Split(SPLIT.train, SPLIT.validation, SPLIT.test[:0])
    with pytest.raises(ConfigError, match="'test': 0"):
        fit("classifier", samples, few, CONFIG, tmp_path)
    with pytest.raises(ConfigError, match="classifier, regressor"):
        fit("segmenter", samples, SPLIT, CONFIG, tmp_path)
