"""Samples as files: what comes back is what went out."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.preprocess.inputs import make_inputs
from csst_dask.training import fit, load_samples
from csst_dask.training.exchange import COLUMNS, INDEX, export_samples, fingerprint, import_samples


@pytest.fixture(scope="module")
def samples(training_store):
    return load_samples(training_store)


@pytest.fixture(scope="module")
def exported(training_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "samples"
    result = CliRunner().invoke(app, ["export", "--store", training_store, "--out", str(out), "--inputs", "maps"])
    assert result.exit_code == 0, result.output
    return out


def test_the_round_trip_changes_nothing(samples, exported):
    """Values bit for bit, and their types; but text as wide as it needs to be."""
    back = import_samples(exported)
    assert back.block_stats.shape == samples.block_stats.shape
    rows = np.random.default_rng(0).permutation(len(samples))
    maps = back.block_stats[rows]
    assert maps.dtype == samples.block_stats[rows].dtype
    np.testing.assert_array_equal(maps, samples.block_stats[rows])
    for name in COLUMNS:
        one, other = getattr(samples, name), getattr(back, name)
        assert other.dtype == one.dtype or other.dtype.kind == one.dtype.kind == "U", name
        np.testing.assert_array_equal(other, one)
    assert back.scalars.keys() == samples.scalars.keys()
    for name, values in samples.scalars.items():
        np.testing.assert_array_equal(back.scalars[name], values, strict=True)
    assert fingerprint(back, "maps") == fingerprint(samples, "maps")


def test_a_file_is_what_other_tools_can_read(samples, exported):
    rows = np.array([3])
    sample = torch.load(exported / "000003.pt", weights_only=True)
    scalars = {name: values[rows] for name, values in samples.scalars.items()}
    expected = make_inputs("maps", samples.block_stats[rows], scalars, samples.band[rows])[0]
    np.testing.assert_array_equal(sample["inputs"].numpy(), expected)
    assert sample["density_class"] == samples.density_class[3]


def test_training_from_the_files_is_training_from_the_store(samples, exported, tmp_path):
    config = TrainingConfig(arch="resnet18", context_epochs=1, epochs=1, batch=16)
    found = [
        fit("classifier", chips, chips.split(0), config, tmp_path / name, threads=1, device="cpu")
        for name, chips in (("store", samples), ("files", import_samples(exported)))
    ]
    assert found[0].weights.read_bytes() == found[1].weights.read_bytes()


def test_exporting_again_writes_what_is_missing_alone(samples, exported):
    times = {path.name: path.stat().st_mtime_ns for path in exported.iterdir()}
    (exported / "000002.pt").unlink()
    for _ in export_samples(samples, exported, "maps"):
        pass
    again = {path.name: path.stat().st_mtime_ns for path in exported.iterdir()}
    assert {name for name in times if again[name] != times[name]} == {"000002.pt"}


def test_a_folder_says_what_it_holds(samples, exported):
    index = json.loads((exported / INDEX).read_text())
    assert (index["kind"], index["samples"]) == ("maps", len(samples))
    sample = torch.load(exported / "000000.pt", weights_only=True)
    assert (sample["kind"], sample["fingerprint"]) == ("maps", index["fingerprint"])


def test_another_kind_or_other_chips_do_not_go_on_in_a_folder(samples, exported, training_store, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in exported.iterdir()}
    with pytest.raises(ConfigError, match="kind 'maps', expected 'paper-point'"):
        next(export_samples(samples, exported, "paper-point"))
    with pytest.raises(ConfigError, match="samples 120, expected 60"):
        next(export_samples(load_samples(training_store, ("g",)), exported, "maps"))
    counts = samples.n_star.copy()
    counts[7] += 1
    with pytest.raises(ConfigError, match="fingerprint"):
        next(export_samples(dataclasses.replace(samples, n_star=counts), exported, "maps"))
    assert {path.name: path.stat().st_mtime_ns for path in exported.iterdir()} == before
    with pytest.raises(ConfigError, match="unknown kind"):
        next(export_samples(samples, tmp_path / "new", "colours"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "model.pt").touch()
    with pytest.raises(ConfigError, match="another folder"):
        next(export_samples(samples, tmp_path, "maps"))


def test_damaged_and_missing_files_are_told(samples, exported, tmp_path):
    with pytest.raises(ConfigError, match="holds no export"):
        import_samples(tmp_path)
    begun = export_samples(samples, tmp_path, "maps")
    next(begun)
    begun.close()
    with pytest.raises(ConfigError, match=r"lacks 119 of 120 samples, such as 000001\.pt"):
        import_samples(tmp_path)
    for path in set(exported.glob("*.pt")) - {exported / "000000.pt"}:
        (tmp_path / path.name).hardlink_to(path)
    (tmp_path / "000000.pt").write_bytes((exported / "000000.pt").read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"000000\.pt cannot be read"):
        import_samples(tmp_path)
    torch.save({"format": "other"}, tmp_path / "000000.pt")
    with pytest.raises(ConfigError, match="'other'"):
        import_samples(tmp_path)
    torch.save(torch.load(exported / "000000.pt", weights_only=True) | {"fingerprint": "0"}, tmp_path / "000000.pt")
    with pytest.raises(ConfigError, match="another export"):
        import_samples(tmp_path)
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(ConfigError, match="index of an export"):
        import_samples(tmp_path)
