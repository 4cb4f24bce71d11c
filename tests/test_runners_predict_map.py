"""Predictions and maps of a store: resumed, partial, of chips that cannot be mapped, and of none at all."""

import json
import os
import signal

import numpy as np
import pytest
import xarray as xr
from conftest import assert_same_result
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import Config, ExecutionConfig, with_settings
from csst_dask.errors import ConfigError
from csst_dask.runners import map as mapping
from csst_dask.runners import predict as predicting
from csst_dask.runners.api import density_map
from csst_dask.runners.ingest import ingest_survey
from csst_dask.runners.ledger import Summary
from csst_dask.runners.map import density_sums, map_block, map_survey
from csst_dask.runners.predict import predict_survey
from csst_dask.runners.simulate import simulate_store
from csst_dask.store import predictions as stored
from csst_dask.store import rows as table
from csst_dask.store.survey import open_group, open_survey


@pytest.fixture
def config(small, weights):
    simulation = {"simulation.seed": 5, "simulation.exposures": 6, "simulation.detectors": (6, 8)}
    return with_settings(Config(), {**small, **simulation, "inference.weights": weights, "inference.batch": 4})


@pytest.fixture
def store(client, tmp_path, config):
    path = str(tmp_path / "s.zarr")
    assert simulate_store(client, path, config).done == 12
    return path


def test_simulating_again_does_nothing_and_more_exposures_go_on(client, store, config, tmp_path):
    assert simulate_store(client, store, config).skipped == 12
    longer = with_settings(config, {"simulation.exposures": 8})
    assert simulate_store(client, store, longer).done == 4
    fresh = str(tmp_path / "fresh.zarr")
    simulate_store(client, fresh, longer)
    assert_same_result(store, fresh)
    with pytest.raises(ConfigError, match=r"simulation\.exptime"):
        simulate_store(client, store, with_settings(config, {"simulation.exptime": 200.0}))


def test_interrupted_prediction_can_be_read_mapped_and_resumed(client, store, config, monkeypatch, tmp_path):
    def stops(*args):
        for k, outcome in enumerate(run_tasks(*args)):
            if k == 2:
                raise KeyboardInterrupt
            yield outcome

    run_tasks = predicting.run_tasks
    monkeypatch.setattr(predicting, "run_tasks", stops)
    with pytest.raises(KeyboardInterrupt):
        predict_survey(client, store, config)
    monkeypatch.undo()
    found = stored.read(store).load()
    assert (found["density_class"].values >= 0).sum() == 8
    assert float(density_map(found, nside=512, client=client)["visit_area"].sum()) > 0
    summary = predict_survey(client, store, config)
    assert (summary.done, summary.skipped) == (4, 8)
    fresh = str(tmp_path / "fresh.zarr")
    simulate_store(client, fresh, config)
    predict_survey(client, fresh, config)
    assert_same_result(store, fresh, "predictions")


def test_rejected_and_superseded_chips_enter_no_prediction(client, store, config):
    predict_survey(client, store, config)
    before = stored.read(store).load()
    status = np.array(["done"] * 12, dtype=object)
    status[[1, 4]] = "rejected", "superseded"
    table.write_columns(open_group(store, "r+"), range(12), {"status": status})
    predict_survey(client, store, config)
    after = stored.read(store).load()
    assert after["density_class"].values[[1, 4]].tolist() == [-1, -1]
    assert np.isnan(after["bright_count"].values[[1, 4]]).all()
    assert after["route"].values[[1, 4]].tolist() == ["invalid", ""]
    keep = np.delete(np.arange(12), [1, 4])
    xr.testing.assert_identical(after.isel(chip=keep), before.isel(chip=keep))


def test_thresholds_change_routes_without_predicting_again(client, store, config):
    predict_survey(client, store, config)
    stricter = with_settings(config, {"routing.min_confidence": 1.0})
    summary = predict_survey(client, store, stricter)
    assert summary.done == 0
    found = stored.read(store)
    assert set(found["route"].values.tolist()) <= {"review", "crowded"}
    assert found.attrs["routing_min_confidence"] == 1.0


def test_predictions_stand_on_their_own(client, store, config):
    predict_survey(client, store, config)
    plain = xr.open_zarr(store, group="predictions", consolidated=False)
    whole = density_map(plain, nside=1024, client=client)
    one = density_map(stored.read(store).isel(chip=3), nside=1024, client=client)
    assert int(one["n_chips"].max()) == 1
    parts = [
        density_map(stored.read(store).isel(chip=part), nside=1024, client=client) for part in (range(7), range(7, 12))
    ]
    total = sum(float(part["visit_area"].sum()) for part in parts)
    assert total == pytest.approx(float(whole["visit_area"].sum()), rel=1e-12)
    survey = open_survey(store)
    assert survey.where(survey["band"] == "g", drop=True).sizes["chip"] == 6
    some = stored.read(store).where(stored.read(store)["density_class"] >= 0, drop=True)
    assert some.sizes["chip"] == 12


def test_chip_that_cannot_be_mapped_is_left_out_with_its_reason(client, store, config):
    predict_survey(client, store, config)
    found = stored.read(store).load()
    corners = found["corner_ra"].values.copy()
    corners[2] = [0, 90, 180, 270]
    found["corner_ra"] = (found["corner_ra"].dims, corners)
    sky, summary = map_survey(client, found, config.map)
    assert (summary.done, summary.rejected, summary.exit_status) == (11, 1, 3)
    expected, _ = map_survey(client, found.isel(chip=np.delete(np.arange(12), 2)), config.map)
    xr.testing.assert_identical(sky, expected)


def misbehave(path, rows, chips, nside):
    """Map chips, but for one that ends its process and one that nobody foresaw."""
    if 7 in rows and nside == 512:
        os.kill(os.getpid(), signal.SIGKILL)
    if 3 in rows and nside == 256:
        raise ValueError("always")
    return map_block(path, rows, chips, nside)


def test_a_chip_that_ends_its_process_is_left_out_and_the_others_are_mapped(client, store, config, monkeypatch):
    predict_survey(client, store, config)
    found, execution = stored.read(store).load(), ExecutionConfig(losses=1, deaths=1, retries=0)
    smaller = with_settings(config, {"map.nside": 512}).map
    expected, _ = map_survey(client, found.isel(chip=np.delete(np.arange(12), 7)), smaller)
    monkeypatch.setattr(mapping, "BLOCK", 3)
    monkeypatch.setattr(mapping, "map_block", misbehave)
    told = []
    sky, summary = map_survey(client, found, smaller, progress=lambda *chip: told.append(chip), execution=execution)
    xr.testing.assert_identical(sky, expected)
    assert (summary.done, summary.rejected, summary.failed, summary.exit_status) == (11, 1, 0, 3)
    [(reason, count)] = summary.reasons.items()
    assert count == 1
    assert "SIGKILL" in reason
    assert ("chip 7", "rejected", reason) in told
    assert len(told) == 12
    assert summary.effort.peak_memory > 0
    assert summary.effort.lost_workers == 1


def test_a_map_that_would_lack_a_chip_is_not_made(client, store, config, monkeypatch, tmp_path):
    predict_survey(client, store, config)
    monkeypatch.setattr(mapping, "map_block", misbehave)
    (tmp_path / "c.yaml").write_text(json.dumps({"execution": {"retries": 0}}))
    words = ["map", "--store", store, "--nside", "256", "--out", str(tmp_path / "m.zarr")]
    words += ["--scheduler", client.scheduler.address, "--config", str(tmp_path / "c.yaml")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "error: mapping chip-3 failed: ValueError: always" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "m.zarr").exists()


def test_map_sums_do_not_depend_on_blocks(client, store, config, monkeypatch):
    predict_survey(client, store, config)
    found = stored.read(store).load()
    one = density_sums(client, found, 2048, Summary())
    monkeypatch.setattr(mapping, "BLOCK", 5)
    monkeypatch.setattr(mapping, "ADD_ROWS", 0)
    other = density_sums(client, found, 2048, Summary())
    for name in ("cell", "visit_area", "bright_sum", "bright_err_sum"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_map_of_no_chip_is_empty_and_status_says_why(client, tmp_path, write_exposures, config):
    chips = write_exposures(tmp_path / "in", exposures=1)
    for chip in chips:
        with open(chip.image, "r+b") as file:
            file.truncate(30_000)
    path = str(tmp_path / "bad.zarr")
    assert ingest_survey(client, [tmp_path / "in"], path, config).rejected == 2
    predict_survey(client, path, config)
    out = with_settings(config, {"map.out": tmp_path / "m.zarr", "map.png": tmp_path / "m.png"}).map
    sky, summary = map_survey(client, stored.read(path), out)
    assert sky.sizes["cells"] == 0
    assert summary.exit_status == 0
    assert not (tmp_path / "m.png").exists()


def test_outputs_that_cannot_be_written_are_found_before_the_work(client, store, config, tmp_path, weights):
    predict_survey(client, store, config)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    words = ["map", "--store", store, "--nside", "512"]
    for extra in (["--out", str(tmp_path / "folder")], ["--out", "m.zarr", "--add", str(tmp_path / "none.zarr")]):
        result = CliRunner().invoke(app, [*words, *extra])
        assert result.exit_code == 2, result.output
        assert "dashboard" not in result.output
    assert (tmp_path / "folder" / "precious").exists()
