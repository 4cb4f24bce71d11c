"""Predictions and maps of a store: resumed, partial, of chips that cannot be mapped, and of none at all."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import xarray as xr
from conftest import assert_same_result
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import Config, with_settings
from csst_dask.errors import ConfigError
from csst_dask.maps import MapChips, open_map
from csst_dask.pipeline import skymap
from csst_dask.pipeline.block import process_block
from csst_dask.runners import blocks
from csst_dask.runners import map as mapping
from csst_dask.runners.ingest import ingest_survey
from csst_dask.runners.map import map_survey
from csst_dask.runners.predict import predict_survey
from csst_dask.runners.simulate import simulate_store
from csst_dask.schema import DONE, REJECTED, REVIEW_REASONS, ChipKey
from csst_dask.store import SurveyStore
from csst_dask.survey import Survey


def simulate(client, path, config):
    with SurveyStore.write(path, config.ingest, config.mask, keep_mask=config.ingest.pixels != "none") as store:
        return simulate_store(client, store, config)


def predict(client, path, config, **options):
    with SurveyStore.write(path) as store:
        return predict_survey(client, store, config, **options)


def make_map(client, path, config, add=None, **options):
    return map_survey(client, SurveyStore.read(path), config, add, **options)


@pytest.fixture
def config(small, weights):
    simulation = {"simulation.seed": 5, "simulation.exposures": 6, "simulation.detectors": (6, 8)}
    return with_settings(Config(), {**small, **simulation, "inference.weights": weights, "inference.batch": 4})


@pytest.fixture(scope="module")
def simulated(client, tmp_path_factory, small, weights):
    """A store of twelve simulated chips, which tests copy."""
    path = str(tmp_path_factory.mktemp("simulated") / "s.zarr")
    settings = {"simulation.seed": 5, "simulation.exposures": 6, "simulation.detectors": (6, 8)}
    assert simulate(client, path, with_settings(Config(), {**small, **settings})).done == 12
    return path


@pytest.fixture
def store(simulated, tmp_path):
    return shutil.copytree(simulated, tmp_path / "s.zarr")


def test_simulating_again_does_nothing_and_more_exposures_go_on(client, store, config, tmp_path):
    assert simulate(client, store, config).skipped == 12
    longer = with_settings(config, {"simulation.exposures": 8})
    assert simulate(client, store, longer).done == 4
    fresh = str(tmp_path / "fresh.zarr")
    simulate(client, fresh, longer)
    assert_same_result(store, fresh)
    with pytest.raises(ConfigError, match=r"simulation\.exptime"):
        simulate(client, store, with_settings(config, {"simulation.exptime": 200.0}))


def test_interrupted_prediction_can_be_read_mapped_and_resumed(client, store, config, monkeypatch, tmp_path):
    def stops(*args):
        for k, outcome in enumerate(run_tasks(*args)):
            if k == 2:
                raise KeyboardInterrupt
            yield outcome

    run_tasks = blocks.run_tasks
    monkeypatch.setattr(blocks, "run_tasks", stops)
    with pytest.raises(KeyboardInterrupt):
        predict(client, store, config)
    monkeypatch.undo()
    assert Survey(store).predictions["predicted"].values.sum() == 8
    sky, _ = make_map(client, store, with_settings(config, {"map.nside": 512}))
    assert len(MapChips.from_dataset(sky)) == 8
    summary = predict(client, store, config)
    assert (summary.done, summary.skipped) == (4, 8)
    fresh = str(tmp_path / "fresh.zarr")
    simulate(client, fresh, config)
    predict(client, fresh, config)
    assert_same_result(store, fresh, "predictions")


def test_chips_of_an_exposure_are_estimated_together(client, store, config):
    predict(client, store, config)
    assert "exposure_law" in Survey(store).predictions.attrs
    with SurveyStore.write(store) as opened:  # small frames are unlike what the networks know
        nothing = {"out_of_distribution": [False] * 12, "review_reason": [0] * 12}
        opened.predictions.set_route(np.arange(12), nothing)
    assert predict(client, store, config).done == 0
    found = Survey(store).predictions.load()
    np.testing.assert_array_equal(np.isfinite(found["log_star_exposure"]), np.isfinite(found["log_star"]))
    together, exposure = found["log_star_exposure"].values, found["obs_id"].values
    apart = [
        abs(np.diff(values[exposure == name])) for name in set(exposure) for values in (together, found["log_star"])
    ]
    assert (np.concatenate(apart[::2]) <= np.concatenate(apart[1::2]) + 1e-6).all()
    assert np.isfinite(together).all()


def test_rejected_chips_enter_no_prediction(client, store, config):
    predict(client, store, config)
    before = Survey(store).predictions.load()
    with SurveyStore.write(store) as opened:
        opened.predictions.blank([1])
        opened.set_status([1], REJECTED, ["no good"])
    predict(client, store, config)
    after = Survey(store).predictions.load()
    assert after["density_class"].values[1] == -1
    assert np.isnan(after["bright_count"].values[1])
    assert after["route"].values[1] == "invalid"
    keep, together = np.delete(np.arange(12), 1), "log_star_exposure"
    xr.testing.assert_identical(after.isel(chip=keep).drop_vars(together), before.isel(chip=keep).drop_vars(together))
    assert not np.isfinite(after[together].values[1])
    other = after["obs_id"].values != after["obs_id"].values[1]
    np.testing.assert_array_equal(after[together].values[other], before[together].values[other])


def test_thresholds_change_routes_without_predicting_again(client, store, config):
    predict(client, store, config)
    before = Survey(store).predictions.load()
    stricter = with_settings(config, {"routing.min_confidence": 1.0, "routing.references": 2.0})
    summary = predict(client, store, stricter)
    assert summary.done == 0
    found = Survey(store).predictions.load()
    assert set(found["route"].values.tolist()) <= {"review", "crowded"}
    assert found.attrs["routing_min_confidence"] == 1.0
    assert np.isfinite(found["reference_limit"]).sum() > np.isfinite(before["reference_limit"]).sum()
    assert not (found["reference_limit"] > before["reference_limit"]).any()
    assert ((found["review_reason"].values & 3) > 0).sum() >= ((before["review_reason"].values & 3) > 0).sum()
    predict(client, store, config)
    xr.testing.assert_identical(Survey(store).predictions.load(), before)


def test_other_weights_drop_what_the_former_ones_predicted(client, store, config, tmp_path, weights):
    predict(client, store, config)
    other = shutil.copytree(weights, tmp_path / "other")
    # the same numbers under another name are other weights
    content = (other / "regressor.safetensors").read_bytes()
    (other / "regressor.safetensors").write_bytes(content.replace(b'"mae_dex\\"', b'"mae_DEX\\"', 1))
    assert (other / "regressor.safetensors").read_bytes() != content
    summary = predict(client, store, with_settings(config, {"inference.weights": other}))
    assert (summary.done, summary.skipped) == (12, 0)


def test_a_prediction_that_fails_is_tried_again_and_leaves_no_trace(client, store, config, monkeypatch, tmp_path):
    hurried = with_settings(config, {"execution.retries": 0})
    monkeypatch.setattr(blocks, "process_block", fail_to_predict)
    for attempt in (1, 2, 3):
        summary = predict(client, store, hurried)
        assert summary.done == (11 if attempt == 1 else 0)
        assert (summary.failed, summary.given_up, summary.exit_status) == ((1, 0, 1) if attempt < 3 else (0, 1, 3))
        [found] = Survey(store).status()["unpredicted" if attempt < 3 else "given_up"]
        assert found["reason"] == "prediction failed: ValueError: no luck"
        assert Survey(store).status()["chips"]["done"] == 12
    given_up = predict(client, store, hurried)
    assert (given_up.failed, given_up.given_up, given_up.exit_status) == (0, 1, 3)
    monkeypatch.undo()
    assert predict(client, store, config).exit_status == 3
    assert predict(client, store, config, retry_failed=True).exit_status == 0
    fresh = str(tmp_path / "fresh.zarr")
    simulate(client, fresh, config)
    predict(client, fresh, config)
    assert_same_result(store, fresh)
    assert_same_result(store, fresh, "predictions")


def fail_to_predict(block, work, limit):
    """Process a block, but for a chip whose prediction fails."""
    result = process_block(block, work, limit)
    if 5 in result.predictions:
        del result.predictions[5]
        result.errors[5] = ValueError("no luck")
    return result


def test_parts_of_a_survey_add_up_to_the_whole(client, store, config, tmp_path):
    predict(client, store, config)
    survey = Survey(store, quiet=True)
    whole = survey.map(nside=1024, client=client)
    assert int(survey.select(chip=3).map(nside=1024, client=client)["n_visits"].max()) == 1
    parts = [survey.select(chip=list(part)).map(nside=1024, client=client) for part in (range(7), range(7, 12))]
    total = sum(float(part["visit_area"].sum()) for part in parts)
    assert total == pytest.approx(float(whole["visit_area"].sum()), rel=1e-12)
    first, both = tmp_path / "first.zarr", tmp_path / "both.zarr"
    survey.select(chip=list(range(7))).map(nside=1024, out=first, client=client)
    added = survey.select(chip=list(range(7, 12))).map(nside=1024, add=first, out=both, client=client)
    for name in ("visit_area", "review_area", "bright_sum", "class_area"):
        np.testing.assert_allclose(added[name], whole[name], rtol=1e-12, atol=1e-18)
    assert len(MapChips.from_dataset(added)) == 12
    assert survey.chips.where(survey.chips["band"] == "g", drop=True).sizes["chip"] == 6


def test_a_chip_is_never_added_twice_and_the_same_command_changes_nothing(client, store, config, tmp_path):
    predict(client, store, config)
    survey, out, more = Survey(store, quiet=True), tmp_path / "m.zarr", tmp_path / "more.zarr"
    survey.select(chip=list(range(7))).map(nside=1024, out=out, client=client)
    before = open_map(out).load()
    words = ["--scheduler", client.scheduler.address, "--nside", "1024"]
    # chips 0 to 6 are in both
    refused = CliRunner().invoke(app, ["map", "--store", str(store), "--add", str(out), "--out", str(more), *words])
    assert refused.exit_code == 2, refused.output
    assert survey_name(store, 0) in refused.output.replace("\n", "")
    assert not more.exists()
    rest = survey.select(chip=list(range(7, 12)))
    for _ in range(2):  # into the map itself; the second time it holds them
        rest.map(nside=1024, out=out, add=out, client=client)
        assert len(MapChips.from_dataset(open_map(out))) == 12
    stamp = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    sky, summary = make_map(client, store, with_settings(config, {"map.out": tmp_path / "whole.zarr"}))
    assert summary.done == 12
    again, summary = make_map(client, store, with_settings(config, {"map.out": tmp_path / "whole.zarr"}))
    assert (summary.done, summary.skipped, summary.exit_status) == (0, 12, 0)
    assert "nothing was changed" in summary.remarks[0]
    xr.testing.assert_identical(again.load(), open_map(tmp_path / "whole.zarr").load())
    xr.testing.assert_identical(sky.drop_encoding(), again.load().drop_encoding())
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamp
    assert len(MapChips.from_dataset(before)) == 7


def survey_name(store, row):
    return SurveyStore.read(store).name(row)


def test_chips_out_of_distribution_enter_a_map_as_review_area_alone(client, store, config):
    """However many stars networks see on them."""
    predict(client, store, config)
    with SurveyStore.write(store) as opened:
        state = {
            "bright_count": [1e6] * 3, "bright_lower": [9e5] * 3, "bright_upper": [2e6] * 3, "density_class": [5] * 3,
            "out_of_distribution": [True] * 3,
        }  # fmt: skip
        opened.predictions.set_route([2, 5, 7], state)
        others = np.delete(np.arange(12), [2, 5, 7])
        opened.predictions.set_route(others, {"out_of_distribution": [False] * 9, "review_reason": [0] * 9})
    survey = Survey(store, quiet=True)
    sky = survey.map(nside=1024, client=client)
    without = survey.select(chip=[0, 1, 3, 4, 6, 8, 9, 10, 11]).map(nside=1024, client=client)
    for name in ("bright_sum", "bright_area", "class_area", "crowded_area"):
        assert float(sky[name].sum()) == pytest.approx(float(without[name].sum()), rel=1e-12), name
    assert float(sky["review_area"].sum()) > 0
    area = float(sky["visit_area"].sum() - sky["review_area"].sum())
    assert area == pytest.approx(float(without["visit_area"].sum()), rel=1e-9)


@pytest.mark.parametrize("reason", ["disagreement", "noise", "amplifiers", "cosmic_rays"])
def test_chips_that_physics_speaks_against_do_so_too(client, store, config, reason):
    predict(client, store, config)
    with SurveyStore.write(store) as opened:
        why = np.zeros(12, int)
        why[[1, 4]] = REVIEW_REASONS[reason]
        why[6] = REVIEW_REASONS["low_confidence"]  # mere doubt, which enters like others
        plain = {"out_of_distribution": [False] * 12, "review_reason": why}
        opened.predictions.set_route(np.arange(12), plain)
    survey = Survey(store, quiet=True)
    sky = survey.map(nside=1024, client=client)
    without = survey.select(chip=np.delete(np.arange(12), [1, 4]).tolist()).map(nside=1024, client=client)
    for name in ("bright_sum", "bright_area", "class_area"):
        assert float(sky[name].sum()) == pytest.approx(float(without[name].sum()), rel=1e-12), name
    assert float(without["review_area"].sum()) == 0
    assert float(sky["review_area"].sum()) > 0


def test_chip_that_cannot_be_mapped_is_left_out_with_its_reason(client, store, config):
    predict(client, store, config)
    with SurveyStore.write(store) as opened:
        opened.arrays["corner_ra"][2] = [0, 90, 180, 270]
    sky, summary = make_map(client, store, config)
    assert (summary.done, summary.rejected, summary.exit_status) == (11, 1, 3)
    expected, _ = make_map(client, store, config, chips=np.delete(np.arange(12), 2).tolist())
    for name in ("visit_area", "bright_sum"):
        np.testing.assert_array_equal(sky[name], expected[name])


def misbehave(block, work, limit):
    """Map chips, but for one that ends its process and one that fails always."""
    if 7 in block.rows and work.nside == 512:
        os.kill(os.getpid(), signal.SIGKILL)
    if 3 in block.rows and work.nside == 256:
        raise ValueError("always")
    return process_block(block, work, limit)


def test_a_chip_that_ends_its_process_is_left_out_and_the_others_are_mapped(client, store, config, monkeypatch):
    predict(client, store, config)
    execution = {"execution.worker_losses": 1, "execution.process_deaths": 1, "execution.retries": 0}
    smaller = with_settings(config, {"map.nside": 512, **execution})
    expected, _ = make_map(client, store, smaller, chips=np.delete(np.arange(12), 7).tolist())
    monkeypatch.setattr(mapping, "LARGE", 3)
    monkeypatch.setattr(mapping, "process_block", misbehave)
    told = []
    sky, summary = make_map(client, store, smaller, progress=lambda *chip: told.append(chip))
    for name in ("visit_area", "bright_sum"):
        np.testing.assert_array_equal(sky[name], expected[name])
    assert (summary.done, summary.rejected, summary.failed, summary.exit_status) == (11, 1, 0, 3)
    [(reason, count)] = summary.reasons.items()
    assert count == 1
    assert "SIGKILL" in reason
    assert (survey_name(store, 7), "rejected", reason) in told
    assert len(told) == 12
    assert summary.tasks.peak_memory > 0
    assert summary.tasks.lost_workers == 1


def test_a_map_that_would_lack_a_chip_is_not_made(client, store, config, monkeypatch, tmp_path):
    predict(client, store, config)
    monkeypatch.setattr(mapping, "process_block", misbehave)
    (tmp_path / "c.yaml").write_text(json.dumps({"execution": {"retries": 0}}))
    words = ["map", "--store", str(store), "--nside", "256", "--out", str(tmp_path / "m.zarr")]
    words += ["--scheduler", client.scheduler.address, "--config", str(tmp_path / "c.yaml")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert f"error: mapping {survey_name(store, 3)} failed: ValueError: always" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "m.zarr").exists()


def test_map_sums_do_not_depend_on_blocks(client, store, config, monkeypatch):
    predict(client, store, config)
    finer = with_settings(config, {"map.nside": 2048})
    one, _ = make_map(client, store, finer)
    monkeypatch.setattr(mapping, "LARGE", 5)
    monkeypatch.setattr(skymap, "ADD_ROWS", 0)
    other, _ = make_map(client, store, finer)
    xr.testing.assert_identical(one, other)


def test_map_of_no_chip_is_empty_and_status_says_why(client, tmp_path, write_exposures, config):
    chips = write_exposures(tmp_path / "in", exposures=1)
    for chip in chips:
        with open(chip.image, "r+b") as file:
            file.truncate(30_000)
    path = str(tmp_path / "bad.zarr")
    with SurveyStore.write(path, config.ingest, config.mask) as opened:
        assert ingest_survey(client, opened, [tmp_path / "in"], config).rejected == 2
    predict(client, path, config)
    outputs = {"map.out": tmp_path / "m.zarr", "map.png": tmp_path / "m.png"}
    sky, summary = make_map(client, path, with_settings(config, outputs))
    assert sky.sizes["cells"] == 0
    assert summary.exit_status == 0
    assert not (tmp_path / "m.png").exists()


def test_outputs_that_cannot_be_written_are_found_before_the_work(client, store, config, tmp_path):
    predict(client, store, config)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    words = ["map", "--store", str(store), "--nside", "512"]
    for extra in (["--out", str(tmp_path / "folder")], ["--out", "m.zarr", "--add", str(tmp_path / "none.zarr")]):
        result = CliRunner().invoke(app, [*words, *extra])
        assert result.exit_code == 2, result.output
        assert "dashboard" not in result.output
    assert (tmp_path / "folder" / "precious").exists()


def test_a_newer_version_takes_the_place_of_the_older_one_on_the_map(client, store, config):
    predict(client, store, config)
    expected, _ = make_map(client, store, with_settings(config, {"map.nside": 512}))
    with SurveyStore.write(store) as opened:
        assert (opened.ledger["status"] == DONE).all()
        key = ChipKey(str(opened.ledger["obs_id"][4]), int(opened.ledger["detector"][4]), 2)
        [row] = opened.allocate([key])
        for name in ("image", "mask", "block_stats", "header"):
            opened.arrays[name][row] = opened.arrays[name][4]
        columns = {v: opened.arrays[v].oindex[[4]] for v in opened.scalars().data_vars if v not in ("version", "chip")}
        status = columns.pop("status")
        opened.arrays["band"][row] = columns["band"][0]
        for name, values in columns.items():
            opened.arrays[name].oindex[[row]] = values
        opened.arrays["status"][row] = status[0]
    without, _ = make_map(client, store, with_settings(config, {"map.nside": 512}))
    assert without["visit_area"].sum() < 0.95 * expected["visit_area"].sum()  # neither is a version that counts
    predict(client, store, config)
    assert Survey(store).status()["chips"]["superseded"] == 1
    sky, _ = make_map(client, store, with_settings(config, {"map.nside": 512}))
    for name in ("visit_area", "bright_sum", "class_area"):
        np.testing.assert_allclose(sky[name], expected[name], rtol=1e-12)
    assert 2 in sky["chip_version"].values
