"""Samples as files: what comes back is what went out."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.preprocess.inputs import make_inputs
from csst_dask.training import fit, load_samples
from csst_dask.training.exchange import COLUMNS, export_samples, import_samples


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
    back = import_samples(exported)
    np.testing.assert_array_equal(np.asarray(back.reduced[np.arange(len(back))]), np.asarray(samples.reduced))
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(back, name), getattr(samples, name))
    assert back.scalars.keys() == samples.scalars.keys()
    for name, values in samples.scalars.items():
        np.testing.assert_array_equal(back.scalars[name], values)


def test_a_file_is_what_other_tools_can_read(samples, exported):
    rows = np.array([3])
    sample = torch.load(exported / "000003.pt", weights_only=True)
    scalars = {name: values[rows] for name, values in samples.scalars.items()}
    expected = make_inputs("maps", samples.reduced[rows], scalars, samples.band[rows])[0]
    np.testing.assert_array_equal(sample["inputs"].numpy(), expected)
    assert sample["density_class"] == samples.density_class[3]


def test_training_from_the_files_is_training_from_the_store(samples, exported, tmp_path):
    config = TrainingConfig(arch="resnet18", epochs=1, batch=16)
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


def test_damaged_and_missing_files_are_told(exported, tmp_path):
    with pytest.raises(ConfigError, match=r"no \.pt files"):
        import_samples(tmp_path)
    (tmp_path / "000000.pt").write_bytes((exported / "000000.pt").read_bytes()[:1000])
    with pytest.raises(ConfigError, match="export it again"):
        import_samples(tmp_path)
    torch.save({"format": "other"}, tmp_path / "000000.pt")
    with pytest.raises(ConfigError, match="'other'"):
        import_samples(tmp_path)
