"""A store's data set is described from its truth; simulated scenes are drawn again and agree with the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import in_process
import numpy as np
import pandas as pd
import pytest
import yaml
import zarr
from conftest import CHUNKS, FRAME
from typer.testing import CliRunner

from csst_dask.cli import dataset as runner
from csst_dask.config import build_config, load_config
from csst_dask.errors import ConfigError
from csst_dask.evaluation import dataset as evaluation
from csst_dask.runners.simulate import survey_identity
from csst_dask.schema import BRIGHT_LIMIT, REJECTED, SUPERSEDED, ChipKey, density_class
from csst_dask.simulation.survey import plan_survey
from csst_dask.store import SurveyStore

STAR_COUNTS = (0, 60_000, 80_000, 900_000, 2_000_000, 6_000_000)
"""Per whole detector: classes 0 to 2 on a frame 2400 times smaller, and 3."""


def settings(**simulation):
    """A configuration of small frames without pixels."""
    return build_config(
        {"simulation": simulation, "ingest": {"frame": FRAME, "chunks": CHUNKS, "pixels": "none"}}, "test"
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """Six fields in a row, of two chips each; made without a cluster."""
    path = str(tmp_path_factory.mktemp("dataset") / "survey.zarr")
    config = settings(
        seed=4, region="demo", exposures=len(STAR_COUNTS), detectors=(8, 9), star_counts=STAR_COUNTS, trails=False
    )
    in_process.simulate(path, config, keep_mask=False)
    return path


@pytest.fixture
def copy(store, tmp_path) -> str:
    """The same, to be changed."""
    shutil.copytree(store, tmp_path / "copy.zarr")
    return str(tmp_path / "copy.zarr")


@pytest.fixture
def described(store, tmp_path):
    """Its description, and the folder."""
    report = runner.describe_dataset(store, tmp_path / "out", sample=2)
    return report.read_text(), tmp_path / "out"


def chips_of(path: str) -> evaluation.Chips:
    store = SurveyStore.read(path)
    return evaluation.Chips(*(store.column(name) for name in ("obs_id", "band", "field", "n_star", "n_bright")))


def detectors_of(path: str) -> np.ndarray:
    return SurveyStore.read(path).column("detector")


def test_a_simulated_store_is_described_with_all_its_pictures(store, described):
    text, out = described
    for name in ("classes", "magnitudes", "counts"):
        assert (out / f"{name}.png").read_bytes()[1:4] == b"PNG"
        assert f"({name}.png)" in text
    assert "12 chips with truth, of 6 exposures in 6 sky fields" in text
    assert "simulated: demo; seed 4" in text
    table = pd.read_csv(out / "composition.csv")
    count = np.bincount(density_class(SurveyStore.read(store).column("n_star")), minlength=6)
    assert (count[:4] > 0).all()
    for _, part in table.groupby("split"):
        assert part["total"].tolist() == [*count, 12]
    bands = pd.read_csv(out / "bands.csv", index_col="band")
    assert bands.loc["all"].tolist() == [*count, 12]


def test_touching_fields_have_no_split_by_field_and_the_report_says_so(described):
    text, out = described
    assert "Left out: the split by field, since 6 fields form 1 group(s)" in text
    assert set(pd.read_csv(out / "composition.csv")["split"]) == {"at random"}


def test_the_scenes_drawn_again_hold_the_stars_that_the_store_counted(store):
    chips = chips_of(store)
    calls = []
    attrs = SurveyStore.read(store).attrs
    scenes, notes = runner.redraw(attrs, chips, detectors_of(store), 3, 0, lambda *done: calls.append(done))
    assert notes == []
    assert scenes is not None
    assert calls[-1] == (len(scenes.chips), len(scenes.chips))
    assert (scenes.magnitudes.sum(axis=1) >= chips.n_star[scenes.chips]).all()
    bright = evaluation.MAGNITUDE_EDGES[:-1] < BRIGHT_LIMIT
    np.testing.assert_array_equal(scenes.magnitudes[:, bright].sum(axis=1), chips.n_bright[scenes.chips])
    # 55 to 100 galaxies with i < 26 on a square arcmin
    per_arcmin2 = scenes.n_galaxy.mean() / (FRAME[0] * FRAME[1] * (0.074 / 60) ** 2)
    assert 40 < per_arcmin2 < 140


def test_a_store_of_another_sky_is_found_out(copy, tmp_path):
    star = zarr.open_group(copy, mode="r+")["n_star"]
    star[:] = star[:] + 1
    text = runner.describe_dataset(copy, tmp_path / "out").read_text()
    assert "Left out: magnitudes" in text
    assert "12 of 12 chips that were drawn again have other star counts" in text
    assert not (tmp_path / "out" / "magnitudes.png").exists()


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_a_store_that_is_not_simulated_has_counts_but_no_magnitudes(copy, tmp_path):
    del zarr.open_group(copy, mode="r+").attrs["simulation"]
    text = runner.describe_dataset(copy, tmp_path / "out").read_text()
    assert "the store holds no simulated survey" in text
    assert text.count("Left out: magnitudes") == 1
    assert not (tmp_path / "out" / "magnitudes.png").exists()
    assert (tmp_path / "out" / "counts.png").exists()
    assert (tmp_path / "out" / "classes.png").exists()


def test_chips_without_truth_or_not_done_do_not_count(copy, tmp_path):
    group = zarr.open_group(copy, mode="r+")
    group["n_star"][:2] = -1
    group["status"][2:4] = np.array([REJECTED, SUPERSEDED])
    assert "8 chips with truth" in runner.describe_dataset(copy, tmp_path / "out", sample=1).read_text()


def test_a_store_without_truth_is_refused(tmp_path):
    config = settings()
    path = str(tmp_path / "empty.zarr")
    with SurveyStore.write(path, config.ingest, config.mask, keep_mask=False) as empty:
        empty.allocate([ChipKey("10000000000001", 8, 1)])
    with pytest.raises(ConfigError, match="no chip that is done and has a truth count"):
        runner.describe_dataset(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_splits_are_those_of_training_and_chance():
    from csst_dask.training.split import split_by_field

    rng = np.random.default_rng(2)
    field = np.repeat([f"f{k}" for k in range(30)], 4)
    ra, dec = np.repeat(12.0 * np.arange(30), 4), np.repeat(rng.uniform(-40, 40, 30), 4)
    n_star = np.repeat(10 ** rng.uniform(0, 5.5, 30), 4).astype(int)
    chips = evaluation.Chips(field, np.full(120, "g"), field, n_star, n_star)
    scalars = {"ra": pd.Series(ra), "dec": pd.Series(dec)}
    splits, notes = runner.split_chips(chips, scalars, 7)
    by_field, at_random = splits.values()
    expected = split_by_field(field, chips.density_class, ra, dec, seed=7)
    for found, wanted in zip(by_field, (expected.train, expected.validation, expected.test), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert notes == []
    assert evaluation.shared_fields(field, by_field) == 0
    assert evaluation.shared_fields(field, at_random) > 0.5


def test_a_plan_is_restored_from_the_record_that_a_store_keeps(tmp_path):
    for name, other in (
        ("first", {"seed": 8, "exposures": 3, "detectors_per_exposure": 2}),
        ("second", {"seed": 5, "exposures": 2, "detectors_per_exposure": 1, "avoid": ["first.yaml"]}),
        (
            "third",
            {"seed": 6, "exposures": 6, "detectors_per_exposure": 1, "separation": 60.0, "avoid": ["second.yaml"]},
        ),
    ):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"simulation": other}))
    config = load_config(tmp_path / "third.yaml").simulation
    plan = plan_survey(config)
    free = plan_survey(config.model_copy(update={"avoid": ()}))
    assert [e.ra for e in plan] != [e.ra for e in free]  # the survey to avoid does matter
    attrs = {"simulation": survey_identity(config)}
    names = np.array([plan[4].obs_id, plan[1].obs_id, "10000099000123", "123456789"])
    assert list(runner.planned_exposures(attrs, names).values()) == plan[:5]
    assert runner.planned_exposures({}, names) == {}
    assert runner.planned_exposures(attrs, names[2:]) == {}


def test_a_record_that_cannot_be_read_is_named(store):
    attrs = SurveyStore.read(store).attrs
    attrs["simulation"]["warp"] = 9
    scenes, (note,) = runner.redraw(attrs, chips_of(store), detectors_of(store))
    assert scenes is None
    assert "simulation.warp" in note


def test_sizes_are_those_on_disk(store):
    sizes = runner.stored_sizes(SurveyStore.read(store))
    files = [f for f in Path(store).rglob("*") if f.is_file() and f.name != "zarr.json" and "files" not in f.parts]
    assert sum(sizes.values()) == pytest.approx(sum(f.stat().st_size for f in files), rel=0.02)
    assert sizes["block statistics"] > sizes["headers"] > 0


def test_the_command_writes_the_description_and_needs_a_store(store, tmp_path):
    from csst_dask.cli import app

    out = tmp_path / "out"
    found = CliRunner().invoke(app, ["evaluate", "--store", store, "--out", str(out), "--dataset"])
    assert found.exit_code == 0, found.output
    assert str(out / "dataset.md") in found.output.replace("\n", "")
    missing = CliRunner().invoke(app, ["evaluate", "--store", str(tmp_path / "none.zarr"), "--out", str(out)])
    assert missing.exit_code == 2
    assert "no survey store" in missing.output.replace("\n", " ")
