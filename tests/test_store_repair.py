"""Damage of any chunk is named and repaired, also by a repair that dies; and of two versions one is on the map."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_same_result
from dying import Writes, dies, writing
from serial import CLIENT, run_serially

from csst_dask.config import Config, with_settings
from csst_dask.errors import DamagedStore
from csst_dask.pipeline.skymap import on_map
from csst_dask.runners.ingest import ingest_survey
from csst_dask.runners.predict import predict_survey
from csst_dask.runners.verify import verify_survey
from csst_dask.schema import DONE, STATUSES
from csst_dask.store import SurveyStore, layout

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def config(small, weights):
    settings = {**small, "ingest.pixels": "none", "inference.weights": weights, "inference.batch": 1}
    with pytest.MonkeyPatch.context() as patch:
        run_serially(patch)
        yield with_settings(Config(), {**settings, "inference.device": "cpu"})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, write_exposures) -> Path:
    """Three chips, one of which has a newer version, and a file that gives none."""
    folder = tmp_path_factory.mktemp("repair") / "in"
    chips = write_exposures(folder, exposures=1, detectors=(8, 9, 11))
    for path in chips[0].paths():
        shutil.copy(path, path.replace("_V01", "_V02"))
    (folder / "odd.fits").write_bytes(b"no image at all" * 500)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config, inputs) -> Path:
    path = tmp_path_factory.mktemp("repair") / "s.zarr"
    finish(path, config, inputs)
    assert sorted(SurveyStore.read(path).scalars()["status"].values) == ["done", "done", "done", "superseded"]
    return path


def finish(path: Path, config: Config, inputs: Path) -> None:
    with SurveyStore.write(path, config.ingest, config.mask) as store:
        assert ingest_survey(CLIENT, store, [inputs], config).failed == 0
    with SurveyStore.write(path) as store:
        assert predict_survey(CLIENT, store, config).failed == 0


def verify(path: Path, config: Config, repair: bool = False) -> list[str]:
    """Variables that are named."""
    opened = SurveyStore.write(path, damaged=True) if repair else SurveyStore.read(path)
    with opened as store:
        return [found["variable"] for found in verify_survey(CLIENT, store, config, repair=repair)[0]]


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def chunks(path: Path) -> list[Path]:
    return sorted(found for found in path.rglob("c/**/*") if found.is_file() and found.name != "zarr.json")


def assert_same_end(path: Path, whole: Path, config: Config, inputs: Path) -> None:
    finish(path, config, inputs)
    for group in ("", "predictions"):
        assert_same_result(str(path), str(whole), group)
    assert SurveyStore.read(path).files.read() == SurveyStore.read(whole).files.read()
    assert verify(path, config) == []


def test_damage_of_any_chunk_is_named_and_repaired(whole, tmp_path, config, inputs):
    path, seen = tmp_path / "s.zarr", set()
    shutil.copytree(whole, path)
    for k, chunk in enumerate(chunks(path)):
        name = str(chunk.relative_to(path)).split("/c/")[0]
        tear(chunk)
        seen.add(name)
        assert verify(path, config, repair=True) == [name]
        assert verify(path, config) == []
        if k % 10 == 0:
            assert_same_end(path, whole, config, inputs)
        else:
            shutil.rmtree(path)
            shutil.copytree(whole, path)
    axes = {v.name for v in layout.ROOT_AXES} | {f"predictions/{v.name}" for v in layout.PREDICTION_AXES}
    assert axes | {"files/path", "files/reason", "status", "predictions/predicted", "predictions/chip"} <= seen
    assert len(seen) > 40


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("status", "predictions/route")]


@pytest.mark.parametrize("name", ["n_star", "predictions/ra", "files/path", "block_stats", *LONG])
def test_a_repair_that_dies_at_any_write_is_finished_by_the_next(whole, tmp_path, config, inputs, name):
    path = tmp_path / "s.zarr"

    def fresh() -> None:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        tear(chunks(path / name)[0])

    fresh()
    with writing(Writes()) as writes:
        assert verify(path, config, repair=True) == [name]
    assert writes.made > 3
    for last in range(writes.made):
        fresh()
        assert dies(last, verify, path, config, True), last
        verify(path, config, repair=True)
        if last % 5 == 0:
            assert_same_end(path, whole, config, inputs)


def test_what_identifies_a_chip_is_lost_only_with_both_copies(whole, tmp_path, config):
    path = tmp_path / "s.zarr"
    shutil.copytree(whole, path)
    for name in ("obs_id", "predictions/obs_id", "ra"):
        tear(chunks(path / name)[0])
    before = {chunk: chunk.read_bytes() for chunk in chunks(path)}
    with pytest.raises(DamagedStore, match="'obs_id' of rows 0 to 3 is damaged here and in the predictions"):
        verify(path, config, repair=True)
    assert {chunk: chunk.read_bytes() for chunk in chunks(path)} == before


def test_a_torn_variable_is_told_by_whoever_writes_to_it(whole, tmp_path, config, inputs):
    path = tmp_path / "s.zarr"
    shutil.copytree(whole, path)
    tear(chunks(path / "files" / "reason")[0])
    with pytest.raises(DamagedStore, match=r"reason.* is damaged .*verify --repair"):
        finish(path, config, inputs)


def test_of_two_versions_that_are_done_one_enters_a_map(whole, tmp_path):
    """A run may die after both were predicted, and before the older one is marked."""
    path = tmp_path / "s.zarr"
    shutil.copytree(whole, path)
    with SurveyStore.write(path) as store:
        old = int(np.flatnonzero(store.ledger["status"] == STATUSES.index("superseded"))[0])
        values = {v.name: store.predictions.column(v.name, [0]) for v in layout.PREDICTED}
        store.set_status([old], DONE, [""])
        store.predictions.write([old], values)
    store = SurveyStore.read(path)
    assert (store.predictions.state == layout.WHOLE).all()
    assert np.flatnonzero(~on_map(store)).tolist() == [old]
