"""Ingest: what is accepted, what is rejected and why, and that one bad chip never stops the others."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from conftest import assert_same_result
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import Config, with_settings
from csst_dask.errors import ConfigError
from csst_dask.io import discover
from csst_dask.pipeline.block import Block, Work, process_block
from csst_dask.pipeline.frame import read_ahead
from csst_dask.pipeline.plan import find_candidates, plan_reading
from csst_dask.pipeline.record import Recorder
from csst_dask.pipeline.source import open_files
from csst_dask.pipeline.summary import Summary
from csst_dask.runners import ingest as ingesting
from csst_dask.runners.ingest import ingest_survey
from csst_dask.schema import ChipResult
from csst_dask.store import SurveyStore
from csst_dask.survey import Survey


def rewrite(path: str, change) -> None:
    """Let a function change the data and header of a file's image HDU."""
    with fits.open(path) as hdus:
        data, header = hdus[1].data.copy(), hdus[1].header.copy()
        primary = hdus[0].copy()
    data, header = change(data, header)
    fits.HDUList([primary, fits.ImageHDU(data, header)]).writeto(path, overwrite=True)


def ingest(client, inputs, path, config, **again):
    """Bring files into a store."""
    with SurveyStore.write(path, config.ingest, config.mask) as store:
        return ingest_survey(client, store, inputs, config, **again)


def status_of(path):
    return Survey(path).status()


@pytest.fixture
def config(small):
    return with_settings(Config(), small)


@pytest.fixture
def chips(tmp_path, write_exposures):
    return write_exposures(tmp_path / "in", detectors=(6, 7, 8, 9, 11, 12, 13, 14), exposures=3)


def test_bad_inputs_are_rejected_with_reasons_and_the_others_done(client, chips, tmp_path, config):
    bad = {}

    def spoil(chip, words):
        bad[str(chip.key)] = words
        return chip.image

    with open(spoil(chips[0], "bytes"), "r+b") as file:
        file.truncate(30_000)
    rewrite(spoil(chips[1], "expected 184 x 192"), lambda data, header: (data[:-5], header))
    rewrite(spoil(chips[2], "no valid pixel"), lambda data, header: (np.full_like(data, np.nan), header))
    shutil.copy(chips[2].image, spoil(chips[3], "no valid pixel"))
    rewrite(spoil(chips[4], "constant image"), lambda data, header: (np.full_like(data, 0.25), header))
    Path(spoil(chips[5], "FITS")).write_bytes(b"this is no image at all" * 500)
    spoil(chips[6], "flag of 184 x 190")
    rewrite(chips[6].flag, lambda data, header: (data[:, 2:], header))
    spoil(chips[7], "WCS")
    with fits.open(chips[7].image, mode="update") as hdus:
        for word in ("CTYPE1", "CTYPE2", "CD1_1", "CD1_2", "CD2_1", "CD2_2"):
            del hdus[1].header[word]
        for word in ("POS_ANG0", "POS_ANG1"):
            del hdus[0].header[word]
    for name in (chips[8].image, chips[8].weight, chips[8].flag, chips[8].truth):
        Path(name).rename(Path(name).with_name(Path(name).name.replace("_06_", "_31_")))

    store = str(tmp_path / "s.zarr")
    summary = ingest(client, [tmp_path / "in"], store, config)
    assert summary.failed == 0
    assert summary.rejected == 9
    assert summary.done == len(chips) - 9
    assert summary.exit_status == 3
    found = status_of(store)
    reasons = {row["chip"]: row["reason"] for row in found["rejected"]}
    for chip, words in bad.items():
        assert words in reasons.pop(chip)
    assert all("31" in reason for reason in reasons.values())
    assert len(reasons) == 1

    # nothing new to do, and a mended file is taken up
    again = ingest(client, [tmp_path / "in"], store, config)
    assert (again.done, again.rejected, again.skipped) == (0, 9, len(chips) - 9)
    assert again.exit_status == 3
    shutil.copy(chips[9].flag, chips[6].flag)
    mended = ingest(client, [tmp_path / "in"], store, config)
    assert (mended.done, mended.rejected) == (1, 8)


def test_a_rejected_chip_whose_files_changed_is_not_forgotten_by_a_client_that_dies(chips, tmp_path, config):
    path = str(tmp_path / "s.zarr")

    def to_do():
        """What a client takes up, which then dies before it works on it."""
        with SurveyStore.write(path, config.ingest, config.mask) as store:
            candidates, _ = find_candidates([chips[0].image], truth=False)
            return plan_reading(store, candidates, config, Summary())

    assert list(to_do()) == [0]
    with SurveyStore.write(path) as store:
        store.record([0], [ChipResult("rejected", "truncated")])
    assert to_do() == {}
    Path(chips[0].image).touch()
    assert list(to_do()) == [0]
    assert list(to_do()) == [0]


def test_a_chip_whose_file_is_out_of_reach_has_failed_and_is_tried_again(client, chips, tmp_path, config, monkeypatch):
    """The storage's fault is not the image's: it is no rejection, and ends after three runs."""
    path, folder = str(tmp_path / "s.zarr"), Path(chips[0].image).parent
    hurried = with_settings(config, {"execution.retries": 0})

    def without_the_file(*args):
        """A file that is there when it is found, and not when it is read."""
        Path(chips[0].image).rename(tmp_path / "away")
        run_blocks(*args)
        (tmp_path / "away").rename(chips[0].image)

    run_blocks = ingesting.run_blocks
    for attempt in (1, 2, 3):
        monkeypatch.setattr(ingesting, "run_blocks", without_the_file)
        summary = ingest(client, [folder], path, hurried)
        monkeypatch.undo()
        # after the third run nothing remains that another run would try
        assert (summary.failed, summary.given_up, summary.exit_status) == ((1, 0, 1) if attempt < 3 else (0, 1, 3))
        assert summary.rejected == 0
        found = status_of(path)
        assert "FileNotFoundError" in found["failed" if attempt < 3 else "given_up"][0]["reason"]
        assert found["chips"]["rejected"] == 0
    given_up = ingest(client, [folder], path, config)
    assert (given_up.done, given_up.failed, given_up.given_up, given_up.exit_status) == (0, 0, 1, 3)
    retried = ingest(client, [folder], path, config, retry_failed=True)
    assert (retried.done, retried.given_up, retried.exit_status) == (1, 0, 0)
    assert SurveyStore.read(path).ledger["attempts"].tolist() == [0] * SurveyStore.read(path).rows


def test_a_chip_that_failed_succeeds_in_the_next_run_after_the_others(client, chips, tmp_path, config):
    path = str(tmp_path / "s.zarr")
    inputs = [tmp_path / "in"]
    with SurveyStore.write(path, config.ingest, config.mask) as store:
        candidates, _ = find_candidates(inputs, truth=True)
        first = list(plan_reading(store, candidates[:2], config, Summary()))
        store.record(first, [ChipResult("failed", "took too long"), ChipResult("failed", "took too long")])
        order = list(plan_reading(store, candidates, config, Summary()))
        assert order[-2:] == first
    summary = ingest(client, inputs, path, config)
    assert (summary.done, summary.failed, summary.exit_status) == (len(chips), 0, 0)
    fresh = str(tmp_path / "fresh.zarr")
    ingest(client, inputs, fresh, config)
    assert_same_result(path, fresh)


def test_a_changed_image_and_a_new_catalogue_are_named_and_taken_up_with_update(client, chips, tmp_path, config):
    path, inputs = str(tmp_path / "s.zarr"), [tmp_path / "in"]
    truth = Path(chips[1].truth).read_bytes()
    Path(chips[1].truth).unlink()
    ingest(client, inputs, path, config)
    before = SurveyStore.read(path).scalars().load()
    rewrite(chips[0].image, lambda data, header: (data * 10, header))
    Path(chips[1].truth).write_bytes(truth)
    same = ingest(client, inputs, path, config)
    assert sorted(same.changed) == sorted(str(chip.key) for chip in chips[:2])
    assert (same.done, same.skipped, same.exit_status) == (0, len(chips), 0)
    xr.testing.assert_identical(SurveyStore.read(path).scalars().load(), before)
    updated = ingest(client, inputs, path, config, update=True)
    assert (updated.done, updated.skipped, updated.changed) == (2, len(chips) - 2, [])
    after = SurveyStore.read(path)
    row = after.row_of[chips[0].key.obs_id, chips[0].key.detector, chips[0].key.version]
    assert after.column("pixel_mean")[row] == pytest.approx(10 * before["pixel_mean"].values[row], rel=1e-5)
    assert (after.column("n_star") >= 0).all()
    fresh = str(tmp_path / "fresh.zarr")
    ingest(client, inputs, fresh, config)
    assert_same_result(path, fresh)


def test_inputs_that_gave_no_chip_are_forgotten_once_they_do(client, tmp_path, write_exposures, config):
    chips = write_exposures(tmp_path / "in", exposures=1)
    store, image = str(tmp_path / "s.zarr"), Path(chips[0].image)
    image.rename(tmp_path / "away.fits")
    first = ingest(client, [tmp_path / "in"], store, config)
    assert first.files == 3
    assert len(status_of(store)["files"]) == 3
    (tmp_path / "away.fits").rename(image)
    second = ingest(client, [tmp_path / "in"], store, config)
    assert (second.done, second.files, second.exit_status) == (1, 0, 0)
    assert status_of(store)["files"] == []


def test_odd_inputs_are_accepted_with_right_values(client, chips, tmp_path, config):
    expected = {str(chip.key): fits.getdata(chip.image, 1) for chip in chips}
    Path(chips[0].flag).unlink()
    Path(chips[0].weight).unlink()

    with fits.open(chips[1].image) as hdus:
        header, primary = hdus[1].header.copy(), hdus[0].copy()
    counts = np.clip(np.round(expected[str(chips[1].key)] * 100), 0, 60_000)
    scaled = fits.ImageHDU(counts.astype(np.uint16), header)
    scaled.header["BZERO"], scaled.header["BSCALE"] = 32768, 1
    fits.HDUList([primary, scaled]).writeto(chips[1].image, overwrite=True)
    expected[str(chips[1].key)] = counts.astype(np.float32)

    with open(chips[2].image, "rb") as source, gzip.open(chips[2].image + ".gz", "wb") as target:
        shutil.copyfileobj(source, target)
    Path(chips[2].image).unlink()

    (tmp_path / "in" / "zz").mkdir()
    shutil.copy(chips[3].image, tmp_path / "in" / "zz")

    store = str(tmp_path / "s.zarr")
    summary = ingest(client, [tmp_path / "in"], store, config)
    assert (summary.done, summary.rejected, summary.failed) == (len(chips), 0, 0)
    found = status_of(store)
    assert any("duplicate" in row["reason"] for row in found["files"])
    assert any("no flags" in row["reason"] for row in found["notes"])
    survey = Survey(store).chips.load()
    for row in range(survey.sizes["chip"]):
        name = f"{survey.obs_id.values[row]}-{survey.detector.values[row]:02d}-V01"
        np.testing.assert_array_equal(survey["image"].values[row], expected[name])
    names = [f"{o}-{d:02d}-V01" for o, d in zip(survey.obs_id.values, survey.detector.values, strict=True)]
    without = survey.isel(chip=names.index(str(chips[0].key)))
    assert (without["mask"].values == 0).all()


def test_store_holds_pixels_mask_maps_and_truth(client, chips, tmp_path, config):
    store = str(tmp_path / "s.zarr")
    ingest(client, [tmp_path / "in"], store, config)
    survey = xr.open_zarr(store, consolidated=False).load()
    files, _ = discover([str(tmp_path / "in")])
    row = int(np.flatnonzero((survey.obs_id == files[5].key.obs_id) & (survey.detector == files[5].key.detector))[0])
    image, flags = fits.getdata(files[5].image, 1), fits.getdata(files[5].flag, 1)
    np.testing.assert_array_equal(survey["image"].values[row], image)
    mask = survey["mask"].values[row]
    assert ((mask & 2) > 0)[(flags & 1) > 0].all()  # bad
    assert ((mask & 4) > 0)[(flags & 2) > 0].all()  # hot
    assert (mask == 0)[flags == 0].all()
    good = mask == 0
    assert survey["n_valid"].values[row] == good.sum()
    assert survey["pixel_mean"].values[row] == pytest.approx(image[good].mean(dtype=float), rel=1e-6)
    valid = survey["block_stats"].sel(stat="valid").values[row]
    assert valid.mean(dtype=float) == pytest.approx(good.mean(), rel=1e-6)
    assert (survey["n_star"].values >= 0).all()
    header = fits.Header.fromstring(survey["header"].values[row].tobytes().decode("ascii"))
    assert header["TELESCOP"] == "CSST"
    assert header["FILTER"] == survey.band.values[row]


def test_same_result_for_any_number_of_workers_and_for_the_plain_function(client, chips, tmp_path, config):
    by_cluster, by_hand = str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr")
    ingest(client, [tmp_path / "in"], by_cluster, config)
    with SurveyStore.write(by_hand, config.ingest, config.mask) as store:
        candidates, _ = find_candidates([tmp_path / "in"], truth=True)
        todo = plan_reading(store, candidates[::-1], config, Summary())
        recorder = Recorder(store, Summary(), Summary(), Summary())
        for row, files in todo.items():
            block = Block(read={row: files})
            recorder.take(block, process_block(block, Work(store.location, store.rows, config, open_files)))
        recorder.finish()
    assert_same_result(by_cluster, by_hand)


def test_reading_ahead_keeps_order_and_passes_errors_on():
    asked = []

    def rows(y0, y1):
        asked.append(y0)
        if y0 == 30:
            raise OSError("disk on fire")
        return y0, y1

    spans = [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50)]
    seen = []

    def read():
        for span, raw in read_ahead(rows, spans):
            assert raw == span
            seen.append(span)

    with pytest.raises(OSError, match="on fire"):
        read()
    assert seen == spans[:3]
    assert asked == [0, 10, 20, 30]


def test_newer_version_supersedes(client, tmp_path, write_exposures, config):
    chips = write_exposures(tmp_path / "in", exposures=1)
    old, new = chips[0], chips[0].image.replace("_V01_", "_V02_")
    store = str(tmp_path / "s.zarr")
    ingest(client, [tmp_path / "in"], store, config)
    shutil.copy(old.image, new)
    ingest(client, [tmp_path / "in"], store, config)
    counts = status_of(store)["chips"]
    assert counts == {"pending": 0, "done": 2, "rejected": 0, "failed": 0, "superseded": 1}
    survey = Survey(store).chips
    assert survey["version"].values[survey["status"].values == "superseded"].tolist() == [1]


@pytest.mark.parametrize("pixels", ["none", "quantised"])
def test_pixels_kept_or_not(client, tmp_path, write_exposures, config, pixels):
    write_exposures(tmp_path / "in")
    exact, other = str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr")
    ingest(client, [tmp_path / "in"], exact, config)
    ingest(client, [tmp_path / "in"], other, with_settings(config, {"ingest.pixels": pixels}))
    a, b = Survey(exact).chips.load(), Survey(other).chips.load()
    np.testing.assert_array_equal(a["mask"], b["mask"])
    if pixels == "none":
        assert "image" not in b
        np.testing.assert_array_equal(a["block_stats"], b["block_stats"])
        return
    sigma = a["sky_sigma"].values[:, None, None]
    difference = np.abs(a["image"].values - b["image"].values)
    assert (difference <= sigma / 16).all()
    assert (difference > 0).any()


def test_wrong_usage_starts_nothing(tmp_path, write_exposures, config, monkeypatch):
    write_exposures(tmp_path / "in", exposures=1)
    runner, store = CliRunner(), tmp_path / "s.zarr"
    monkeypatch.chdir(tmp_path)
    cases = [
        (["ingest", str(tmp_path / "nowhere"), "--store", str(store)], "nowhere"),
        (["ingest", str(tmp_path / "in"), "--store", str(store), "--pixels", "some"], "pixels"),
        (["ingest", str(tmp_path / "in"), "--store", str(store), "--scheduler-file", "none.json"], "scheduler_file"),
        (["map", "--store", str(store), "--out", "x.zarr", "--nside", "1000"], "nside"),
        (["predict", "--store", str(store), "--batch", "0"], "batch"),
        (["predict", "--store", str(store), "--weights", "s3://bucket/weights"], "expected a local path"),
        (["ingest", "s3://bucket/in", "--store", str(store)], "expected a local path"),
        (["ingest", str(tmp_path / "in"), "--store", "nothing://bucket/s.zarr"], "nothing"),
        (["map", "--store", str(store), "--out", "s3://bucket/m.zarr"], "expected a local path"),
        (["map", "--store", str(store), "--out", "m.zarr", "--png", "s3://bucket/m.png"], "expected a local path"),
        (["simulate", "--out", str(tmp_path / "o"), "--region", "atlantis"], "region"),
        (["simulate", "--out", str(tmp_path / "o"), "--detectors", "1"], "detectors"),
    ]
    for words, field in cases:
        result = runner.invoke(app, words)
        assert result.exit_code == 2, (words, result.output)
        assert field in (result.output + (result.stderr or "")).replace("\n", " "), words
        assert "dashboard" not in result.output
    assert not store.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_store_of_other_settings_is_refused(client, tmp_path, write_exposures, config):
    write_exposures(tmp_path / "in", exposures=1)
    store = str(tmp_path / "s.zarr")
    ingest(client, [tmp_path / "in"], store, config)
    with pytest.raises(ConfigError, match=r"ingest\.pixels"):
        ingest(client, [tmp_path / "in"], store, with_settings(config, {"ingest.pixels": "none"}))


def test_status_as_json(client, tmp_path, write_exposures, config):
    write_exposures(tmp_path / "in", exposures=1)
    store = str(tmp_path / "s.zarr")
    ingest(client, [tmp_path / "in"], store, config)
    result = CliRunner().invoke(app, ["status", "--store", store, "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["chips"]["done"] == 2
