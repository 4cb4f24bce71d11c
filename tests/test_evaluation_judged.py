"""Chips with truth and prediction: how they are built and refused, and what each of them counts for."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.evaluation.dataset import PUBLISHED
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.weighting import WEIGHTINGS, class_factors, weigh
from csst_dask.schema import N_CLASSES

CLASSES = st.lists(st.integers(0, 5), min_size=1, max_size=60)


def small(**changes) -> Judged:
    """Three chips, the last of which is crowded and bypassed."""
    given = {
        "band": ["g", "NUV", "g"],
        "n_star": [0, 150, 200_000],
        "density_class": [0, 2, 5],
        "n_bright": [0, 9, -1],
        "log_bright": [0.0, 1.0, np.nan],
        "bright_lower": [0.0, 5.0, np.nan],
        "bright_upper": [1.0, np.inf, np.nan],
        "class_probability": np.eye(N_CLASSES)[[0, 2, 5]],
        "route": ["sparse", "sparse", "crowded"],
    }
    return Judged.build(**(given | changes))


def test_what_follows_from_truth_and_prediction():
    judged = small()
    np.testing.assert_array_equal(judged.true_class, [0, 2, 5])
    np.testing.assert_allclose(judged.true_log_bright, [0, 1, np.nan])
    np.testing.assert_allclose(judged.true_log_star, np.log10([1, 151, 200_001]))
    assert judged.counted.tolist() == [True, True, False]
    assert judged.right.all()
    np.testing.assert_array_equal(judged.confidence, [1, 1, 1])
    assert small(density_class=[1, 2, 5]).confidence[0] == 0


def test_what_a_method_does_not_give_is_nan_or_empty():
    judged = Judged.build(band=["g"], n_star=[5], density_class=[1])
    assert len(judged) == 1
    assert judged.n_bright[0] == -1
    assert (judged.field[0], judged.route[0]) == ("", "")
    for name in ("log_star", "log_bright", "bright_lower", "bright_upper", "true_log_bright", "confidence"):
        assert np.isnan(getattr(judged, name)[0])
    with pytest.raises(ValueError, match="unknown: log_stars; expected any of log_star"):
        Judged.build(band=["g"], n_star=[5], density_class=[1], log_stars=[0.7])


def test_some_chips_by_place_or_by_choice():
    judged = small()
    for rows in ([2, 0], np.array([2, 0])):
        assert judged.take(rows).n_star.tolist() == [200_000, 0]
        assert judged.take(rows).class_probability.shape == (2, N_CLASSES)
    assert judged.take(judged.band == "g").route.tolist() == ["sparse", "crowded"]
    assert len(judged.take([])) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"band": ["g", "g"]}, r"band has shape \(2,\), n_star 3 chips: expected \(3,\)"),
        ({"class_probability": np.ones((3, 5))}, r"class_probability has shape \(3, 5\), .* expected \(3, 6\)"),
        ({"n_star": [0, -1, 3]}, "1 of 3 chips have no true star count"),
        ({"density_class": [0, 2, 6]}, "predicted classes run from 0 to 6; expected 0 to 5"),
        ({"density_class": [-1, 2, 5]}, "leave out chips without a prediction"),
        ({"star_lower": [2.0, 5.0, np.nan], "star_upper": [1.0, 6.0, 7.0]}, "1 of 3 chips have star_lower above"),
        ({"bright_lower": [2.0, 5.0, np.nan]}, "1 of 3 chips have bright_lower above bright_upper"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_chips_of_a_store_without_truth_or_prediction_are_left_out():
    scalars = xr.Dataset(
        {name: ("chip", values) for name, values in {
            "band": np.array(["g", "u", "NUV", "z"], np.dtypes.StringDType()), "n_star": [10, -1, 500, 70],
            "n_bright": [3, -1, 40, 5], "field": np.array(["a", "a", "b", "b"], object),
        }.items()}
    )  # fmt: skip
    predictions = xr.Dataset({"density_class": ("chip", np.array([1, 2, 2, -1], np.int8))})
    judged = Judged.from_datasets(scalars, predictions)
    assert judged.band.tolist() == ["g", "NUV"]
    assert judged.field.tolist() == ["a", "b"]
    assert judged.n_bright.tolist() == [3, 40]
    assert np.isnan(judged.class_probability).all()
    assert judged.route.tolist() == ["", ""]
    full = predictions.assign(
        class_probability=(("chip", "density_level"), np.full((4, 6), 1 / 6, np.float32)),
        log_bright=("chip", np.arange(4, dtype=np.float32)),
        route=("chip", np.array(["sparse", "", "standard", ""], np.dtypes.StringDType())),
    )
    other = Judged.from_datasets(scalars, full)
    assert other.log_bright.tolist() == [0, 2]
    assert other.route.tolist() == ["sparse", "standard"]
    with pytest.raises(ValueError, match="4 chips but predictions of 3"):
        Judged.from_datasets(scalars, full.isel(chip=slice(3)))


@settings(deadline=None)
@given(classes=CLASSES)
def test_published_weights_give_the_published_shares(classes):
    classes = np.array(classes)
    weights = weigh(classes, "published")
    present = np.unique(classes)
    wanted = np.array(PUBLISHED)[present] / np.array(PUBLISHED)[present].sum()
    found = [weights.values[classes == k].sum() / weights.values.sum() for k in present]
    np.testing.assert_allclose(found, wanted)
    assert weights.values.mean() == pytest.approx(1)
    assert weights.absent == tuple(sorted(set(range(6)) - set(present.tolist())))
    assert weights.effective <= len(classes) * (1 + 1e-12)
    for k in weights.absent:
        assert str(k) in weights.note.split("without class")[1]


def test_weights_of_classes_that_already_have_the_shares_are_flat():
    classes = np.repeat(np.arange(6), PUBLISHED)
    weights = weigh(classes, "published")
    np.testing.assert_allclose(weights.values, 1)
    assert weights.effective == pytest.approx(len(classes))
    assert weights.absent == ()
    assert "without class" not in weights.note


def test_flat_weights_count_every_chip_once():
    weights = weigh([0, 0, 5], "flat")
    assert weights.values.tolist() == [1, 1, 1]
    assert weights.effective == 3
    assert "each of the 3 chips" in weights.note


def test_effective_chips_of_a_case_done_by_hand():
    # nine chips of class 0 and one of class 1, in shares 1421 : 4168
    weights = weigh([0] * 9 + [1], "published")
    share = 1421 / (1421 + 4168)
    assert weights.effective == pytest.approx(1 / (share**2 / 9 + (1 - share) ** 2))


def test_factors_of_resamples_are_those_of_each_and_other_names_are_refused():
    counts = np.array([[1, 2, 3, 4, 5, 6], [0, 0, 7, 0, 0, 0], [0] * 6])
    together = class_factors(counts, "published")
    for row, factors in zip(counts, together, strict=True):
        np.testing.assert_allclose(class_factors(row, "published"), factors)
    np.testing.assert_allclose(together[1], [0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(together[2], 0)
    assert WEIGHTINGS == ("flat", "published")
    with pytest.raises(ValueError, match="no weighting 'paper'; choose one of flat, published"):
        weigh([0], "paper")
