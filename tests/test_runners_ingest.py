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
from csst_dask.cli.look import survey_status
from csst_dask.config import Config, with_settings
from csst_dask.errors import ConfigError
from csst_dask.io import discover
from csst_dask.runners.chips import ingest_chip
from csst_dask.runners.ingest import ingest_survey
from csst_dask.runners.ledger import Ledger, Summary
from csst_dask.runners.window import Task, run_tasks
from csst_dask.schema import ChipResult
from csst_dask.store.survey import open_survey


def rewrite(path: str, change) -> None:
    """Let a function change the data and header of a file's image HDU."""
    with fits.open(path) as hdus:
        data, header = hdus[1].data.copy(), hdus[1].header.copy()
        primary = hdus[0].copy()
    data, header = change(data, header)
    fits.HDUList([primary, fits.ImageHDU(data, header)]).writeto(path, overwrite=True)


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
    summary = ingest_survey(client, [tmp_path / "in"], store, config)
    assert summary.failed == 0
    assert summary.rejected == 9
    assert summary.done == len(chips) - 9
    assert summary.exit_status == 3
    found = survey_status(store)
    reasons = {row["chip"]: row["reason"] for row in found["rejected"]}
    for chip, words in bad.items():
        assert words in reasons.pop(chip)
    assert all("31" in reason for reason in reasons.values())
    assert len(reasons) == 1

    # nothing new to do, and a mended file is taken up
    again = ingest_survey(client, [tmp_path / "in"], store, config)
    assert (again.done, again.rejected, again.skipped) == (0, 9, len(chips) - 9)
    assert again.exit_status == 3
    shutil.copy(chips[9].flag, chips[6].flag)
    mended = ingest_survey(client, [tmp_path / "in"], store, config)
    assert (mended.done, mended.rejected) == (1, 8)


def test_mended_chip_survives_a_client_that_dies(chips, tmp_path, config):
    store = str(tmp_path / "s.zarr")
    key = chips[0].key
    ledger = Ledger(store, config)
    ledger.to_do([(key, "a", "1")], Summary())
    ledger.record(ChipResult(key, "rejected", "truncated"))
    ledger.flush()
    assert Ledger(store, config).to_do([(key, "a", "1")], Summary()) == []
    assert len(Ledger(store, config).to_do([(key, "a", "2")], Summary())) == 1  # and dies before it works on it
    assert len(Ledger(store, config).to_do([(key, "a", "2")], Summary())) == 1


def test_file_that_is_out_of_reach_is_tried_again(client, chips, tmp_path, config):
    files, _ = discover([str(tmp_path / "in")])
    ledger = Ledger(str(tmp_path / "s.zarr"), config)
    row = dict(ledger.to_do([(chip.key, chip.image, "") for chip in files], Summary()))[files[0].key]
    Path(files[0].image).rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        ingest_chip(files[0], row, ledger.path, config)
    summary = Summary()
    task = Task(str(files[0].key), (files[0], row, ledger.path, config), files[0].key)
    ledger.consume(run_tasks(client, "ingest", ingest_chip, [task]), summary)
    assert (summary.failed, summary.exit_status) == (1, 1)
    found = survey_status(ledger.path)
    assert "FileNotFoundError" in found["failed"][0]["reason"]
    assert found["chips"]["rejected"] == 0


def test_inputs_that_gave_no_chip_are_forgotten_once_they_do(client, tmp_path, write_exposures, config):
    chips = write_exposures(tmp_path / "in", exposures=1)
    store, image = str(tmp_path / "s.zarr"), Path(chips[0].image)
    image.rename(tmp_path / "away.fits")
    first = ingest_survey(client, [tmp_path / "in"], store, config)
    assert first.files == 3
    assert len(survey_status(store)["files"]) == 3
    (tmp_path / "away.fits").rename(image)
    second = ingest_survey(client, [tmp_path / "in"], store, config)
    assert (second.done, second.files, second.exit_status) == (1, 0, 0)
    assert survey_status(store)["files"] == []


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
    summary = ingest_survey(client, [tmp_path / "in"], store, config)
    assert (summary.done, summary.rejected, summary.failed) == (len(chips), 0, 0)
    found = survey_status(store)
    assert any("duplicate" in row["reason"] for row in found["files"])
    assert any("no flags" in row["reason"] for row in found["notes"])
    survey = open_survey(store).load()
    for row in range(survey.sizes["chip"]):
        name = f"{survey.obs_id.values[row]}-{survey.detector.values[row]:02d}-V01"
        np.testing.assert_array_equal(survey["image"].values[row], expected[name])
    names = [f"{o}-{d:02d}-V01" for o, d in zip(survey.obs_id.values, survey.detector.values, strict=True)]
    without = survey.isel(chip=names.index(str(chips[0].key)))
    assert (without["mask"].values == 0).all()


def test_store_holds_pixels_mask_maps_and_truth(client, chips, tmp_path, config):
    store = str(tmp_path / "s.zarr")
    ingest_survey(client, [tmp_path / "in"], store, config)
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
    valid = survey["reduced"].sel(channel="valid").values[row]
    assert valid.mean(dtype=float) == pytest.approx(good.mean(), rel=1e-6)
    assert (survey["n_star"].values >= 0).all()
    header = fits.Header.fromstring(survey["header"].values[row].tobytes().decode("ascii"))
    assert header["TELESCOP"] == "CSST"
    assert header["FILTER"] == survey.band.values[row]


def test_same_result_for_any_number_of_workers_and_for_the_plain_function(client, chips, tmp_path, config):
    by_cluster, by_hand = str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr")
    ingest_survey(client, [tmp_path / "in"], by_cluster, config)
    files, _ = discover([str(tmp_path / "in")])
    ledger = Ledger(by_hand, config)
    rows = dict(ledger.to_do([(chip.key, chip.image, "") for chip in reversed(files)], Summary()))
    for chip in files:
        ledger.record(ingest_chip(chip, rows[chip.key], by_hand, config))
    ledger.flush()
    assert_same_result(by_cluster, by_hand)


def test_reading_ahead_keeps_order_and_passes_errors_on():
    from csst_dask.runners.chips import read_ahead

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
    ingest_survey(client, [tmp_path / "in"], store, config)
    shutil.copy(old.image, new)
    ingest_survey(client, [tmp_path / "in"], store, config)
    counts = survey_status(store)["chips"]
    assert counts == {"pending": 0, "done": 2, "rejected": 0, "superseded": 1}
    survey = open_survey(store)
    assert survey["version"].values[survey["status"].values == "superseded"].tolist() == [1]


@pytest.mark.parametrize("pixels", ["none", "quantised"])
def test_pixels_kept_or_not(client, tmp_path, write_exposures, config, pixels):
    write_exposures(tmp_path / "in")
    exact, other = str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr")
    ingest_survey(client, [tmp_path / "in"], exact, config)
    ingest_survey(client, [tmp_path / "in"], other, with_settings(config, {"ingest.pixels": pixels}))
    a, b = open_survey(exact).load(), open_survey(other).load()
    np.testing.assert_array_equal(a["mask"], b["mask"])
    if pixels == "none":
        assert "image" not in b
        np.testing.assert_array_equal(a["reduced"], b["reduced"])
        return
    sigma = a["sky_sigma"].values[:, None, None]
    difference = np.abs(a["image"].values - b["image"].values)
    assert (difference <= sigma / 16).all()
    assert (difference > 0).any()


def test_wrong_usage_starts_nothing(tmp_path, write_exposures, config):
    write_exposures(tmp_path / "in", exposures=1)
    runner, store = CliRunner(), tmp_path / "s.zarr"
    cases = [
        (["ingest", str(tmp_path / "nowhere"), "--store", str(store)], "nowhere"),
        (["ingest", str(tmp_path / "in"), "--store", str(store), "--pixels", "some"], "pixels"),
        (["ingest", str(tmp_path / "in"), "--store", str(store), "--scheduler-file", "none.json"], "scheduler_file"),
        (["map", "--store", str(store), "--out", "x.zarr", "--nside", "1000"], "nside"),
        (["predict", "--store", str(store), "--batch", "0"], "batch"),
        (["simulate", "--out", str(tmp_path / "o"), "--region", "atlantis"], "region"),
        (["simulate", "--out", str(tmp_path / "o"), "--detectors", "1"], "detectors"),
    ]
    for words, field in cases:
        result = runner.invoke(app, words)
        assert result.exit_code == 2, (words, result.output)
        assert field in result.output + (result.stderr or ""), words
    assert not store.exists()
    assert not (tmp_path / "o").exists()


def test_store_of_other_settings_is_refused(client, tmp_path, write_exposures, config):
    write_exposures(tmp_path / "in", exposures=1)
    store = str(tmp_path / "s.zarr")
    ingest_survey(client, [tmp_path / "in"], store, config)
    with pytest.raises(ConfigError, match=r"ingest\.pixels"):
        ingest_survey(client, [tmp_path / "in"], store, with_settings(config, {"ingest.pixels": "none"}))


def test_status_as_json(client, tmp_path, write_exposures, config):
    write_exposures(tmp_path / "in", exposures=1)
    store = str(tmp_path / "s.zarr")
    ingest_survey(client, [tmp_path / "in"], store, config)
    result = CliRunner().invoke(app, ["status", "--store", store, "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["chips"]["done"] == 2
