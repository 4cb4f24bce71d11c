"""The simulate command's choices, and the configurations that come with the project."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import load_config
from csst_dask.instrument import detector_band
from csst_dask.schema import BANDS
from csst_dask.simulation.check import report
from csst_dask.simulation.check.finding import Finding
from csst_dask.simulation.regions import REGIONS
from csst_dask.simulation.survey import plan_survey

CONFIGS = Path(__file__).parents[1] / "configs"


def simulate(*options):
    return CliRunner().invoke(app, ["simulate", *map(str, options)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--check"),
        (("--out", "a", "--store", "b"), "one of them"),
        (("--out", "a", "--check", "b"), "one of them"),
        (("--out", "a", "--region", "atlantis"), "atlantis"),
        (("--out", "a", "--region", "10:5,0:1"), "10:5,0:1"),
        (("--out", "a", "--region", "1,2,3"), "1,2,3"),
        (("--out", "a", "--physics", "magic"), "off-nominal"),
        (("--out", "a", "--product", "level9"), "readout"),
        (("--out", "a", "--detectors", "1"), "not imaging"),
    ],
)
def test_wrong_choices_start_nothing(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    result = simulate(*options)
    assert result.exit_code == 2
    assert words in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("passed", "status"), [(True, 0), (False, 1)])
def test_the_check_tells_by_its_status(tmp_path, monkeypatch, passed, status):
    finding = Finding("flux within 4 px", 1.03, 1.0, 0.01, passed, "of every stamp")
    section = report.Section("Stars", lambda folder: [finding], (), "text")
    found = {"sections": (section,)}
    whole = report.run_checks
    monkeypatch.setattr(report, "draw_gallery", lambda path: None)
    monkeypatch.setattr(report, "run_checks", lambda folder, progress: whole(folder, progress, **found))
    result = simulate("--check", tmp_path / "report")
    assert result.exit_code == status
    assert f"{int(passed)} of 1 comparisons pass" in result.output
    assert ("1.03" in result.output) is not passed
    assert "flux within 4 px" in (tmp_path / "report" / "fidelity.md").read_text()


@pytest.mark.parametrize("name", sorted(REGIONS))
def test_every_published_region_has_a_configuration(name):
    config = load_config(CONFIGS / "regions" / f"{name}.yaml").simulation
    [exposure] = plan_survey(config)
    box = REGIONS[name]
    assert config.region == name
    assert box.ra[0] <= exposure.ra <= box.ra[1]
    assert box.dec[0] <= exposure.dec <= box.dec[1]


def chips(name):
    config = load_config(CONFIGS / "datasets" / f"{name}.yaml")
    assert config.ingest.pixels == "none"
    return config.simulation, plan_survey(config.simulation)


def test_the_frozen_test_sets_are_large_and_alike():
    config, nominal = chips("benchmark")
    other, off = chips("benchmark-off-nominal")
    assert sum(len(e.detectors) for e in nominal) >= 3000
    assert (config.physics, other.physics) == ("nominal", "off-nominal")
    assert [(e.detectors, e.field) for e in nominal] == [(e.detectors, e.field) for e in off[: len(nominal)]]
    assert {e.optics.jitter for e in nominal}.isdisjoint(e.optics.jitter for e in off)


def test_training_keeps_away_from_the_test_sets_and_sees_all_bands():
    config, training = chips("training")
    tests = [*chips("benchmark")[1], *chips("benchmark-off-nominal")[1]]
    assert sum(len(e.detectors) for e in training) >= 6000
    assert config.physics == "randomised"
    further = load_config(CONFIGS / "datasets" / "training-more.yaml").simulation
    assert (further.physics, further.seed != config.seed) == (config.physics, True)
    more = plan_survey(further.model_copy(update={"exposures": 100}))
    judged, *learned = (np.array([middle(e, d) for e in p for d in e.detectors]) for p in (tests, training[::4], more))
    for places in learned:
        assert np.rad2deg(np.arccos((places @ judged.T).max())) > 1.5
    assert {e.field for e in training}.isdisjoint(e.field for e in more)
    share = [sum(detector_band(d) == band for e in training for d in e.detectors) for band in BANDS]
    assert min(share) > 0.9 * np.mean(share)


def test_training_without_galaxies_keeps_away_from_all_that_it_is_judged_on():
    def plan(name, exposures):
        config = load_config(CONFIGS / "datasets" / f"{name}.yaml").simulation
        return plan_survey(config.model_copy(update={"exposures": exposures}))

    stars = plan("training-stars", 60)
    assert all(e.sky.galaxies == 0 for e in stars)
    assert len({e.optics for e in stars}) == len(stars)  # laws drawn anew for each field
    learned = np.array([middle(e, d) for e in stars for d in e.detectors])
    for name in ("benchmark", "benchmark-off-nominal", "paper-classification", "paper-regression"):
        judged = np.array([middle(e, d) for e in plan(name, 200) for d in e.detectors])
        assert np.rad2deg(np.arccos((learned @ judged.T).max())) > 1.5, name


def middle(exposure, detector):
    ra, dec = np.deg2rad(exposure.wcs(detector).all_pix2world(4608.5, 4616.5, 1))
    return np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)


def test_the_paper_sets_leave_out_what_the_paper_left_out():
    config = load_config(CONFIGS / "datasets" / "paper-classification.yaml").simulation
    few = plan_survey(config.model_copy(update={"exposures": 60}))
    assert {detector_band(d) for e in few for d in e.detectors} == set(BANDS) - {"NUV"}
    assert all(e.sky.galaxies == 0 and not e.cosmic_rays and not e.trails and not e.ghosts for e in few)
    assert set(config.mix) == set(REGIONS)
    edges = np.mean([e.sky.footprint < 1 for e in plan_survey(config.model_copy(update={"exposures": 400}))])
    assert edges == pytest.approx(config.partial + config.empty, abs=0.08)
    regression = load_config(CONFIGS / "datasets" / "paper-regression.yaml").simulation
    box = [float(v) for part in regression.region.split(",") for v in part.split(":")]
    area = (box[1] - box[0]) * np.rad2deg(np.diff(np.sin(np.deg2rad(box[2:])))[0])
    assert area == pytest.approx(25, rel=0.1)
