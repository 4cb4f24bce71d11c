"""Estimates from whole exposures: of the chips alone, whatever came first, who died, and what else is in the store."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from dying import Writes, dies, writing

from csst_dask.config import IngestConfig, MaskConfig
from csst_dask.inference.joint import TYPICAL
from csst_dask.pipeline import exposures
from csst_dask.pipeline.exposures import HALF_WIDTH, joint_estimate, settle_exposures
from csst_dask.schema import REVIEW_REASONS, ChipInfo, ChipKey, ChipResult
from csst_dask.store import SurveyStore, layout
from csst_dask.store.predictions import EXPOSURE

BANDS = ("NUV", "u", "g", "i")
INFO = ChipInfo(
    "g", 150.0, 61000.5, 10.0, -20.0, (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0), "north", 25.5,
    120, 17, 0.3, 0.1, 8800, 0.2, 0.01,
)  # fmt: skip
KEYS = [ChipKey(f"1010000000{obs}", 6 + det, 1) for obs in range(4) for det in range(len(BANDS))]


def opened(path):
    return SurveyStore.write(path, IngestConfig(frame=(92, 96), chunks=(46, 48)), MaskConfig())


def make(path, keys=KEYS):
    """A store whose chips are done and not predicted."""
    with opened(path) as store:
        rows = store.allocate(keys)
        store.record(rows, [ChipResult("done", "", replace(INFO, band=BANDS[key.detector - 6])) for key in keys])
        store.predictions.prepare({"classifier_sha256": "a", "regressor_sha256": "b"})
    return path


def prediction(keys, shift=0.0):
    """Predictions of chips, which follow from their keys alone."""
    seed = [int(key.obs_id) + 1000 * key.detector for key in keys]
    y = np.array([np.random.default_rng(one).normal(3 + one % 3, 0.2) for one in seed]) + shift
    scale = np.array([0.4, 0.1, 0.03, 0.05])[[key.detector - 6 for key in keys]]
    found = {v.name: np.full((len(keys), *v.shape), v.fill, v.dtype) for v in layout.PREDICTED if v.name != EXPOSURE}
    return found | {
        "log_star": y.astype(np.float32),
        "star_upper": (10 ** (y + HALF_WIDTH * scale) - 1).astype(np.float32),
        "density_class": np.full(len(keys), 3, np.int8),
    }


def predict(path, rows, **options):
    with opened(path) as store:
        keys = [ChipKey(*(store.ledger[name][row].item() for name in layout.IDENTITY)) for row in rows]
        store.predictions.write(rows, prediction(keys, **options))
        return settle_exposures(store)


def estimates(path):
    """Estimate of every chip, by key; and the same of the predictions alone."""
    store = SurveyStore.read(path)
    values = {name: store.predictions.column(name) for name in (EXPOSURE, "log_star")}
    return {key: tuple(values[name][row] for name in values) for key, row in store.row_of.items()}


def bits(path):
    return {key: np.float32(value).tobytes() for key, (value, _) in estimates(path).items()}


@pytest.fixture
def whole(tmp_path):
    path = make(tmp_path / "whole.zarr")
    assert predict(path, range(len(KEYS))) == 4
    return path


def test_every_chip_borrows_and_the_uncertain_most(whole):
    found = np.array(list(estimates(whole).values())).reshape(4, len(BANDS), 2)
    moved = np.abs(found[..., 0] - found[..., 1]).mean(0)
    assert np.isfinite(found).all()
    assert moved.argmax() == BANDS.index("NUV")
    assert moved.argmin() == BANDS.index("g")


def test_the_same_bits_in_whatever_order_chips_are_predicted_and_stored(whole, tmp_path):
    rng = np.random.default_rng(1)
    for k in range(3):
        order = rng.permutation(len(KEYS))
        path = make(tmp_path / f"{k}.zarr", [KEYS[place] for place in order])
        rows = rng.permutation(len(KEYS))
        for part in np.split(rows, [1, 7, 9]):
            predict(path, part.tolist())
        assert bits(path) == bits(whole)


def test_only_the_exposure_of_a_chip_that_changed_is_computed_again(whole, monkeypatch):
    before, seen = bits(whole), []
    real = exposures.joint_estimate
    monkeypatch.setattr(exposures, "joint_estimate", lambda *args: seen.append(len(args[2])) or real(*args))
    with opened(whole) as store:
        assert settle_exposures(store) == 0
    assert seen == []
    assert predict(whole, [5], shift=1.0) == 1
    assert seen == [len(BANDS)]
    changed = {key for key, value in bits(whole).items() if value != before[key]}
    assert changed == {key for key in KEYS if key.obs_id == KEYS[5].obs_id}
    assert predict(whole, [5]) == 1
    assert bits(whole) == before


def test_the_others_of_an_exposure_that_loses_a_chip_go_on_without_it(whole, tmp_path):
    with opened(whole) as store:
        store.predictions.blank([6])
        assert settle_exposures(store) == 1
    fewer = make(tmp_path / "fewer.zarr")
    predict(fewer, np.delete(np.arange(len(KEYS)), 6).tolist())
    assert bits(whole) == bits(fewer)
    assert np.isnan(estimates(whole)[KEYS[6]][0])


def test_a_newer_version_takes_the_place_of_the_older_one(whole, tmp_path):
    with opened(whole) as store:
        rows = store.allocate([replace_version(KEYS[2])])
        store.record(rows, [ChipResult("done", "", replace(INFO, band=BANDS[2]))])
        store.supersede()
        assert settle_exposures(store) == 1
    assert predict(whole, rows) == 1
    assert np.isnan(estimates(whole)[KEYS[2]][0])
    found = bits(whole)
    found[KEYS[2]] = found.pop(replace_version(KEYS[2]))
    expected = make(tmp_path / "expected.zarr")
    predict(expected, range(len(KEYS)))
    assert found == bits(expected)


def replace_version(key):
    return ChipKey(key.obs_id, key.detector, 2)


@pytest.mark.parametrize("change", ["predict", "blank", "law"])
def test_a_process_that_died_at_any_write_ends_in_the_same_estimates(whole, tmp_path, change):
    def act(path):
        with opened(path) as store:
            if change == "blank":
                store.predictions.blank([1, 9])
            elif change == "predict":
                store.predictions.write([1, 9], prediction([KEYS[1], KEYS[9]], shift=0.5))
            settle_exposures(store, replace(TYPICAL, other_bands=0.3) if change == "law" else TYPICAL)

    def fresh(name):
        return shutil.copytree(whole, tmp_path / name)

    path = fresh("undisturbed")
    with writing(Writes()) as writes:
        act(path)
    assert writes.made > 3
    expected = bits(path)
    assert expected != bits(whole)
    for last in range(writes.made):
        path = fresh(f"{last}")
        assert dies(last, act, path), last
        act(path)
        assert bits(path) == expected, last


@pytest.mark.parametrize("why", ["out_of_distribution", "review_reason"])
def test_a_chip_out_of_distribution_or_against_physics_neither_lends_nor_borrows(whole, why):
    with opened(whole) as store:
        unlike = prediction(KEYS[:1], shift=2.0) | {why: np.array([REVIEW_REASONS["noise"]])}
        store.predictions.write([0], unlike)
        assert settle_exposures(store) == 1
        with_it = bits(whole)
        store.predictions.blank([0])
        settle_exposures(store)
        assert settle_exposures(store) == 0
    assert bits(whole) == with_it
    assert np.isnan(estimates(whole)[KEYS[0]][0])


def test_crowded_chips_lend_and_borrow_like_others(whole):
    before = bits(whole)
    with opened(whole) as store:
        store.predictions.write([0], prediction(KEYS[:1]) | {"density_class": np.array([5])})
        settle_exposures(store)
    assert bits(whole) == before


def test_a_chip_alone_keeps_its_count_and_one_without_an_interval_has_none():
    found = {
        "log_star": np.array([3.0, 4.0, 2.0], np.float32),
        "star_upper": np.array([2000.0, 2e4, np.inf], np.float32),
        "out_of_distribution": np.zeros(3, bool),
        "review_reason": np.full(3, REVIEW_REASONS["low_confidence"], np.uint8),
    }
    estimate = joint_estimate(TYPICAL, found, np.array(["g", "y", "g"]), np.arange(3))
    np.testing.assert_allclose(estimate, [3.0, 4.0, np.nan], rtol=1e-6)


def test_a_store_without_predictions_is_left_alone(tmp_path):
    path = make(tmp_path / "s.zarr")
    with opened(path) as store, writing(Writes(0)):
        assert settle_exposures(store) == 0
    assert exposures.LAW not in SurveyStore.read(path).predictions.attrs
