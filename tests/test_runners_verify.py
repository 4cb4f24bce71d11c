"""Verify: every damage of a store is named, with its chip, and repaired by reading the chip again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_same_result
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import Config, with_settings
from csst_dask.errors import DamagedStore
from csst_dask.runners.ingest import ingest_survey
from csst_dask.runners.predict import predict_survey
from csst_dask.runners.simulate import simulate_store
from csst_dask.runners.verify import verify_survey
from csst_dask.store import SurveyStore
from csst_dask.survey import Survey
from csst_dask.training import load_samples

BAD = 2
"""Row of the chip that is damaged."""


def ingest(client, path, config, inputs):
    with SurveyStore.write(path, config.ingest, config.mask) as store:
        return ingest_survey(client, store, [inputs], config)


def verify(client, path, config, repair=False):
    opened = SurveyStore.write(path, damaged=True) if repair else SurveyStore.read(path)
    with opened as store:
        return verify_survey(client, store, config, repair=repair)


def chunk_of(path, name, row=BAD):
    """A file that holds pixels or maps of a chip."""
    folder = Path(path) / name / "c" / str(row)
    return sorted(file for file in folder.rglob("*") if file.is_file())[0]


def tear(file):
    """As a copy that was cut off leaves it."""
    file.write_bytes(file.read_bytes()[: max(1, file.stat().st_size // 2)])


def flip(file):
    """One bit, as a disk changes it."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.fixture(scope="module")
def files(tmp_path_factory, write_exposures):
    folder = tmp_path_factory.mktemp("verify") / "in"
    write_exposures(folder, exposures=3)
    return folder


@pytest.fixture(scope="module")
def config(small, weights):
    return with_settings(Config(), {**small, "inference.weights": weights, "inference.batch": 4})


@pytest.fixture(scope="module")
def whole(client, tmp_path_factory, files, config):
    """A store of six chips with predictions, which tests copy."""
    path = tmp_path_factory.mktemp("verify") / "s.zarr"
    assert ingest(client, path, config, files).done == 6
    with SurveyStore.write(path) as store:
        predict_survey(client, store, config)
    return path


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "s.zarr")


@pytest.mark.parametrize("pixels", ["lossless", "quantised", "none"])
def test_a_store_that_nothing_happened_to_passes(client, tmp_path, files, config, pixels):
    config = with_settings(config, {"ingest.pixels": pixels})
    ingest(client, tmp_path / "s.zarr", config, files)
    findings, summary = verify(client, tmp_path / "s.zarr", config)
    assert findings == []
    assert (summary.done, summary.rejected, summary.exit_status) == (6, 0, 0)


@pytest.mark.parametrize("name", ["image", "mask", "block_stats", "header"])
@pytest.mark.parametrize("harm", [tear, flip, Path.unlink])
def test_a_damaged_chunk_is_named_with_its_chip_and_mended_by_reading_it_again(
    client, store, whole, files, config, name, harm
):
    chip = SurveyStore.read(store).name(BAD)
    harm(chunk_of(store, name))
    findings, summary = verify(client, store, config)
    assert {found["chip"] for found in findings} == {chip}
    assert any(found["variable"].startswith(name) for found in findings) or name in ("image", "mask")
    assert (summary.done, summary.rejected, summary.exit_status) == (5, 1, 3)
    verify(client, store, config, repair=True)
    assert Survey(store).status()["chips"]["pending"] == 1
    assert Survey(store).predictions["predicted"].values.sum() == 5
    assert ingest(client, store, config, files).done == 1
    with SurveyStore.write(store) as opened:
        predict_survey(client, opened, config)
    assert verify(client, store, config)[0] == []
    assert_same_result(store, whole)
    assert_same_result(store, whole, "predictions")


@pytest.mark.parametrize(
    ("name", "where", "value"),
    [("image", (BAD, 17, 33), 1e-3), ("mask", (BAD, 0, 0), 8), ("block_stats", (BAD, 3, 100, 100), 1e-6),
     ("pixel_mean", BAD, 1e-12), ("n_valid", BAD, 1), ("sky_sigma", BAD, 1e-12)],
)  # fmt: skip
def test_values_that_disagree_are_found_though_their_checksums_are_right(client, store, config, name, where, value):
    with SurveyStore.write(store) as opened:
        array = opened.arrays[name]
        if name == "mask":  # a pixel that is valid
            y, x = np.argwhere(array[BAD] == 0)[0]
            where = (BAD, int(y), int(x))
        before = np.asarray(array[where])
        array[where] = (before ^ int(value)) if name == "mask" else before + np.asarray(value, before.dtype)
        assert np.asarray(array[where]) != before
    findings, _ = verify(client, store, config)
    assert {found["chip"] for found in findings} == {SurveyStore.read(store).name(BAD)}
    assert all(found["difference"] for found in findings)


def test_a_torn_chunk_names_its_chip_in_every_command(client, store, config, tmp_path):
    chip = SurveyStore.read(store).name(BAD)
    with SurveyStore.write(store) as opened:
        opened.predictions.blank(range(6))
    tear(chunk_of(store, "block_stats"))
    (tmp_path / "c.yaml").write_text(json.dumps({"execution": {"retries": 0}}))
    words = ["--store", str(store), "--config", str(tmp_path / "c.yaml"), "--scheduler", client.scheduler.address]
    predicted = CliRunner().invoke(app, ["predict", *words, "--batch", "4"])
    assert predicted.exit_code == 1, predicted.output
    assert f"{chip} failed" in predicted.output.replace("\n", " ")
    assert "block_stats is damaged" in predicted.output.replace("\n", " ")
    assert Survey(store).predictions["predicted"].values.sum() == 5
    with pytest.raises(DamagedStore, match=chip):
        load_samples(store).block_stats[np.arange(6)]
    for command in (["verify", *words], ["verify", *words, "--repair"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 3, result.output
        assert f"{chip}: block_stats" in result.output.replace("\n", " ")


def test_a_map_is_not_made_without_a_torn_chip(client, store, config, tmp_path):
    tear(chunk_of(store, "block_stats"))
    (tmp_path / "c.yaml").write_text(json.dumps({"execution": {"retries": 0}}))
    words = ["--store", str(store), "--config", str(tmp_path / "c.yaml"), "--scheduler", client.scheduler.address]
    result = CliRunner().invoke(app, ["map", *words, "--out", str(tmp_path / "m.zarr")])
    assert result.exit_code == 1, result.output
    assert SurveyStore.read(store).name(BAD) in result.output.replace("\n", "")
    assert not (tmp_path / "m.zarr").exists()


def test_a_chip_whose_files_are_gone_has_failed(client, tmp_path, files, config):
    inputs, path = shutil.copytree(files, tmp_path / "in"), tmp_path / "s.zarr"
    ingest(client, path, config, inputs)
    shutil.rmtree(inputs)
    tear(chunk_of(path, "image"))
    findings, summary = verify(client, path, config, repair=True)
    assert len(findings) == 1
    assert "files are gone" in " ".join(summary.remarks)
    [failed] = Survey(path).status()["failed"]
    assert failed["row"] == BAD
    assert "image" in failed["reason"]


def test_a_simulated_chip_is_made_again_from_its_seed(client, tmp_path, small, weights):
    settings = {"simulation.seed": 5, "simulation.exposures": 2, "simulation.detectors": (6, 8)}
    config = with_settings(Config(), {**small, **settings, "ingest.pixels": "none"})

    def simulate(path):
        with SurveyStore.write(path, config.ingest, config.mask, keep_mask=False) as store:
            return simulate_store(client, store, config).done

    one, other = tmp_path / "one.zarr", tmp_path / "other.zarr"
    assert simulate(one) == simulate(other) == 4
    chunk_of(one, "block_stats").unlink()
    assert verify(client, one, config, repair=True)[1].rejected == 1
    assert simulate(one) == 1
    assert_same_result(one, other)


@pytest.mark.parametrize(
    "name", ["pixel_mean", "source", "status", "obs_id", "predictions/density_class", "predictions/ra"]
)
def test_a_torn_variable_of_all_chips_is_named_and_filled_again(client, store, whole, files, config, name):
    """Text and numbers of many chips share a chunk."""
    tear(next(file for file in (Path(store) / name / "c").rglob("*") if file.is_file()))
    with pytest.raises(DamagedStore, match=name.rpartition("/")[2]):
        _ = SurveyStore.read(store).scalars(), SurveyStore.read(store).predictions.scalars()
    findings, _ = verify(client, store, config)
    assert [found["variable"] for found in findings] == [name]
    assert findings[0]["chip"] == "rows 0 to 5"
    verify(client, store, config, repair=True)
    ingest(client, store, config, files)
    with SurveyStore.write(store) as opened:
        predict_survey(client, opened, config)
    assert_same_result(store, whole)
    assert_same_result(store, whole, "predictions")
