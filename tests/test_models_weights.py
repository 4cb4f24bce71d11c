import copy
import hashlib

import numpy as np
import pytest
import torch

from csst_dask.errors import ConfigError
from csst_dask.models import (
    build_classifier,
    build_regressor,
    load_weights,
    round_weights,
    save_weights,
    weights_folder,
    write_model_card,
)

METADATA = {
    "task": "classifier",
    "arch": "resnet18",
    "channels": 3,
    "inputs": "maps",
    "bands": ["g", "r"],
    "training": {"epochs": 3, "note": 'a "quoted" \n word'},
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    module = build_classifier("resnet18", 3)
    module.train()
    for _ in range(3):
        module(torch.randn(4, 3, 32, 32))  # gives the running statistics values
    return module.eval()


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sub" / "classifier.safetensors"
    return path, save_weights(network, path, METADATA)


@torch.inference_mode()
def output(module):
    return module(torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype("f4")))


def test_what_was_saved_is_loaded(network, saved):
    path, checksum = saved
    model = load_weights(path, "classifier")
    assert {name: model.metadata[name] for name in METADATA} == METADATA
    assert (model.task, model.inputs, model.bands) == ("classifier", "maps", ("g", "r"))
    assert model.checksum == checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not model.module.training
    assert all(p.dtype == torch.float32 for p in model.module.parameters())
    reference = output(network)
    assert (output(model.module) - reference).abs().max() < 5e-3 * reference.abs().max()


def test_a_rounded_network_is_loaded_exactly(network, saved):
    rounded = copy.deepcopy(network)
    round_weights(rounded)
    loaded = load_weights(saved[0]).module.state_dict()
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    assert not torch.equal(loaded["conv1.weight"], network.state_dict()["conv1.weight"])


def test_running_statistics_keep_full_precision_and_large_values_survive(network, saved, tmp_path):
    loaded = load_weights(saved[0]).module
    assert torch.equal(loaded.bn1.running_var, network.bn1.running_var)
    large = copy.deepcopy(network)
    with torch.no_grad():
        large.fc.weight[0, 0] = 1e6
    save_weights(large, tmp_path / "large.safetensors", METADATA)
    assert load_weights(tmp_path / "large.safetensors").module.fc.weight[0, 0] == 1e6


def test_the_file_is_about_two_bytes_a_weight(network, saved):
    assert saved[0].stat().st_size < 2.05 * sum(p.numel() for p in network.parameters())


def test_saving_twice_gives_the_same_bytes_and_no_other_file(network, saved):
    path, checksum = saved
    assert save_weights(network, path, METADATA) == checksum
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file(network, saved, monkeypatch):
    path, checksum = saved

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_weights(network, path, {**METADATA, "bands": ["u"]})
    assert hashlib.sha256(path.read_bytes()).hexdigest() == checksum
    assert len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "no readable header"),
        (lambda data: b"\x00" * 4000, "no readable header"),
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: data.replace(b"csst_dask.weights/2", b"csst_dask.weights/1"), "has the format"),
        (lambda data: data.replace(b"resnet18", b"resnet34"), "damaged"),
        (lambda data: data.replace(b"resnet18", b"alexnet1"), "cannot build: unknown classifier"),
    ],
)
def test_a_damaged_file_is_refused(saved, tmp_path, damage, message):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(damage(saved[0].read_bytes()))
    with pytest.raises(ConfigError, match=message):
        load_weights(bad)


def test_missing_and_wrong_files_are_named(saved, network, tmp_path):
    with pytest.raises(ConfigError, match=r"none\.safetensors"):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="holds a classifier; expected a regressor"):
        load_weights(saved[0], "regressor")
    with pytest.raises(ConfigError, match="lack bands"):
        save_weights(network, tmp_path / "w", {k: v for k, v in METADATA.items() if k != "bands"})
    with pytest.raises(ConfigError, match="no weights folder"):
        weights_folder(tmp_path / "nowhere")
    assert weights_folder(tmp_path) == tmp_path


def test_regressors_round_trip_too(tmp_path):
    torch.manual_seed(1)
    module = build_regressor("resnet18", 3).eval()
    round_weights(module)
    save_weights(module, tmp_path / "r.safetensors", {**METADATA, "task": "regressor"})
    loaded = load_weights(tmp_path / "r.safetensors", "regressor").module
    assert (output(loaded) - output(module)).abs().max() < 1e-6  # another memory format, another rounding


def test_the_card_states_what_it_was_given(tmp_path):
    write_model_card(
        tmp_path / "card.md", METADATA, network="11 million parameters.", data="12 chips.", split="By field.",
        training="Three stages.", budget="9 s on a potato.", command="csst-dask train x",
        metrics={"accuracy": (0.875, 0.031)}, limits="Not for spectra.", checksum="ab" * 32,
    )  # fmt: skip
    text = (tmp_path / "card.md").read_text()
    for part in (
        "resnet18",
        "g, r",
        "11 million",
        "Three stages.",
        "9 s on a potato.",
        "12 chips.",
        "By field.",
        "csst-dask train x",
        "0.875",
        "0.031",
        "spectra",
    ):
        assert part in text
