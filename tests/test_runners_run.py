"""A whole run: resumed, killed or spread out, it gives the same result."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from conftest import CHUNKS, EXPOSURES, FRAME
from typer.testing import CliRunner
from whole_run import COMMAND, assert_same_run, configuration, run

import csst_dask as cd
from csst_dask.cli import app
from csst_dask.config import with_settings
from csst_dask.errors import ConfigError
from csst_dask.store import SurveyStore

ROOT = Path(__file__).parents[1]


def test_a_run_is_complete(undisturbed):
    survey = SurveyStore.read(undisturbed / "survey.zarr").scalars()
    assert (survey["status"].values == "done").all()
    assert survey.sizes["chip"] == 2 * EXPOSURES
    sky = xr.open_zarr(undisturbed / "map.zarr", consolidated=False).load()
    assert sky["band"].values.tolist() == ["g", "r"]
    assert (undisturbed / "map.png").stat().st_size > 10_000


def test_running_again_does_nothing_new(undisturbed):
    store = undisturbed / "survey.zarr"
    before = {path: path.stat().st_mtime_ns for path in (store / "block_stats").rglob("*") if path.is_file()}
    sky = xr.open_zarr(undisturbed / "map.zarr", consolidated=False).load()
    result = run(undisturbed / "run.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "map.zarr is the map of these chips already" in result.stdout
    after = {path: path.stat().st_mtime_ns for path in (store / "block_stats").rglob("*") if path.is_file()}
    assert after == before
    xr.testing.assert_identical(sky, xr.open_zarr(undisturbed / "map.zarr", consolidated=False).load())


def test_killed_and_run_again_equals_undisturbed(tmp_path, exposures, weights, undisturbed):
    config = configuration(tmp_path / "run", exposures, weights)
    store = tmp_path / "run" / "survey.zarr"
    process = subprocess.Popen(
        [*COMMAND, "run", str(config), "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while sum(1 for _ in (store / "block_stats" / "c").glob("*")) < EXPOSURES // 2:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (SurveyStore.read(store).scalars()["status"].values == "pending").any()
    result = run(config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_same_run(undisturbed, tmp_path / "run")


def test_batch_script_runs_the_same_pipeline(tmp_path, exposures, weights, undisturbed):
    config = configuration(tmp_path / "run", exposures, weights)
    environment = {**os.environ, "CSST_DASK_BIN": str(Path(sys.executable).parent), "CSST_DASK_WORKERS": "2"}
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / "run.sbatch"), str(config)],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
        env=environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "joined" in result.stdout
    assert_same_run(undisturbed, tmp_path / "run")
    assert not list(tmp_path.glob(".csst-dask-*"))


@pytest.mark.parametrize("line", ["name\n", "name", "name  \n", "\n", ""])
def test_an_array_job_whose_line_is_not_complete_starts_nothing(tmp_path, line):
    (tmp_path / "folders.txt").write_text(line)
    environment = {**os.environ, "CSST_DASK_BIN": str(Path(sys.executable).parent), "SLURM_ARRAY_TASK_ID": "1"}
    words = ["bash", str(ROOT / "scripts" / "array.sbatch"), str(tmp_path / "folders.txt"), str(tmp_path / "out")]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    assert result.returncode == 2, result.stderr
    assert f"found '{line.strip()}', expected a name and a folder" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"store": None}, "store"),
        ({"map": {"nside": 1000, "out": "m.zarr"}}, "map.nside"),
        ({"ingest": {"pixel": "none"}}, "ingest.pixel"),
        ({"inputs": ["nowhere"]}, "nowhere"),
        ({"inference": {"weights": "no-such-folder"}}, "no-such-folder"),
    ],
)
def test_wrong_configuration_starts_nothing(tmp_path, exposures, weights, change, words):
    config = configuration(tmp_path / "run", exposures, weights)
    settings = yaml.safe_load(config.read_text()) | change
    config.write_text(yaml.safe_dump(settings))
    result = CliRunner().invoke(app, ["run", str(config)])
    assert result.exit_code == 2, result.output
    assert words in result.stderr.replace("\n", "")
    assert "dashboard" not in result.output
    assert not (tmp_path / "run" / "survey.zarr").exists()


def test_python_api_goes_the_same_way(client, tmp_path, exposures, weights, undisturbed):
    settings = {"ingest.frame": FRAME, "ingest.chunks": CHUNKS, "inference.weights": weights}
    survey = cd.Survey(tmp_path / "survey.zarr", config=with_settings(cd.Config(), settings))
    assert survey.ingest(exposures, client=client).done == 2 * EXPOSURES
    assert survey.chips["image"].dtype == np.float32
    assert survey.predict(client=client).done == 2 * EXPOSURES
    predictions = survey.predictions
    assert predictions["predicted"].all()
    np.testing.assert_allclose(predictions["class_probability"].sum("density_level"), 1, rtol=1e-5)
    sky = survey.map(nside=4096, client=client)
    other = xr.open_zarr(undisturbed / "map.zarr").load()
    for name in ("visit_area", "bright_sum"):
        np.testing.assert_array_equal(sky[name], other[name])

    # a selection can be mapped on its own, and the parts add up to the whole
    bands = [survey.select(band=band) for band in "gr"]
    assert [night.chips.sizes["chip"] for night in bands] == [EXPOSURES, EXPOSURES]
    total = sum(float(night.map(nside=4096, client=client)["bright_sum"].sum()) for night in bands)
    assert total == pytest.approx(float(sky["bright_sum"].sum()), rel=1e-12)
    first = str(survey.chips["obs_id"].values[0])
    assert set(survey.select(obs_id=[first], band="g").predictions["obs_id"].values) == {first}
    with pytest.raises(ConfigError, match="selection"):
        bands[0].ingest(exposures, client=client)
    with pytest.raises(ConfigError, match="no variable 'colour'"):
        survey.select(colour="g").chips  # noqa: B018


def test_some_chips_are_predicted_and_the_others_left(client, tmp_path, exposures, weights):
    settings = {"ingest.frame": FRAME, "ingest.chunks": CHUNKS, "inference.weights": weights}
    survey = cd.Survey(tmp_path / "survey.zarr", config=with_settings(cd.Config(), settings), quiet=True)
    survey.ingest(exposures, client=client)
    assert survey.select(chip=[3, 5]).predict(client=client).done == 2
    assert np.flatnonzero(survey.predictions["predicted"]).tolist() == [3, 5]
    some = survey.select(chip=[3, 5]).predictions.load()
    assert survey.predict(client=client).done == 2 * EXPOSURES - 2
    xr.testing.assert_identical(survey.select(chip=[3, 5]).predictions.load(), some)
