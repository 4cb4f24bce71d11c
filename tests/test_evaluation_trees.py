import sys

import numpy as np
import pytest

from csst_dask.errors import ConfigError
from csst_dask.evaluation import boosting, tree_classes
from csst_dask.evaluation.trees import fit_trees, predict_trees
from csst_dask.schema import BANDS, density_class

TRAIN, VALIDATION, TEST = np.arange(240), np.arange(240, 320), np.arange(320, 420)


@pytest.fixture(autouse=True, scope="module")
def few_trees():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boosting, "MOST_TREES", 40)
        patch.setattr(boosting, "LEARNING_RATE", 0.2)
        yield


def chips(seed=0, n=420, noise=0.03):
    """Statistics that tell the counts by a smooth law, a threshold and the band, and two that tell nothing."""
    rng = np.random.default_rng(seed)
    band = np.array(BANDS)[rng.integers(0, len(BANDS), n)]
    density, other = rng.uniform(0, 5.5, n), rng.normal(size=(n, 2))
    number = np.array([BANDS.index(name) for name in band])
    visible = density - 0.1 * number + noise * rng.normal(size=n)
    statistics = np.column_stack([visible, np.tanh(visible - 2), np.log10(rng.uniform(0.5, 2, n)), other])
    n_star = np.rint(10**density - 1).astype(int)
    n_bright = np.rint(10 ** (0.7 * density) - 1).astype(int)
    return statistics.astype(np.float32), band, n_star, n_bright


@pytest.fixture(scope="module")
def data():
    return chips()


@pytest.fixture(scope="module")
def baseline(data, few_trees):
    return fit_trees(*data, TRAIN, VALIDATION, seed=1)


@pytest.fixture(scope="module")
def answers(data, baseline):
    return predict_trees(baseline, data[0], data[1])


def test_a_known_relation_is_recovered_on_chips_that_were_not_seen(data, answers):
    for name, count in (("log_star", data[2]), ("log_bright", data[3])):
        truth = np.log10(1 + count)
        error = np.abs(answers[name] - truth)[TEST].mean()
        constant = np.abs(np.median(truth[TRAIN]) - truth)[TEST].mean()
        assert error < 0.1 * constant
    assert np.mean(answers["density_class"] == density_class(data[2])) > 0.85


def test_the_band_is_used(data, baseline):
    blue = predict_trees(baseline, data[0][TEST], ["NUV"] * len(TEST))
    red = predict_trees(baseline, data[0][TEST], ["y"] * len(TEST))
    assert np.mean(red["log_star"] - blue["log_star"]) == pytest.approx(0.6, abs=0.15)


def test_probabilities_sum_to_one_and_the_class_is_the_likeliest(answers):
    probability = answers["class_probability"]
    assert probability.shape == (420, 6)
    assert (probability >= 0).all()
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(probability.argmax(axis=1), answers["density_class"])


def test_probabilities_are_as_right_as_they_say(answers, data):
    right = (answers["density_class"] == density_class(data[2]))[TEST]
    assert answers["class_probability"].max(axis=1)[TEST].mean() == pytest.approx(right.mean(), abs=0.08)


@pytest.mark.parametrize(("of", "column"), [("star", 2), ("bright", 3)])
def test_most_chips_lie_within_their_interval(answers, data, of, column):
    truth = np.log10(1 + data[column])
    lower, upper = (np.log10(1 + answers[f"{of}_{side}"]) for side in ("lower", "upper"))
    inside = (truth >= lower - 1e-6)[TEST] & (truth <= upper + 1e-6)[TEST]
    assert 0.78 <= inside.mean() <= 1
    assert (lower <= upper).all()
    assert (upper - lower).max() < 0.5


def test_a_wider_level_gives_wider_intervals(data, baseline):
    half, most = (predict_trees(baseline, data[0], data[1], level) for level in (0.5, 0.9))
    assert (most["bright_lower"] <= half["bright_lower"]).all()
    assert (most["bright_upper"] >= half["bright_upper"]).all()


def test_rows_are_answered_one_by_one(data, baseline, answers):
    order = np.random.default_rng(0).permutation(420)
    shuffled = predict_trees(baseline, data[0][order], data[1][order])
    for name, values in answers.items():
        np.testing.assert_allclose(shuffled[name], values[order], atol=1e-6)


def test_the_same_seed_gives_the_same_trees_and_another_one_others(data, monkeypatch):
    monkeypatch.setattr(boosting, "WEIGHTS", (0.0,))
    one, same, other = (
        predict_trees(fit_trees(*data, TRAIN, VALIDATION, seed=seed), data[0], data[1]) for seed in (1, 1, 2)
    )
    for name, values in one.items():
        np.testing.assert_array_equal(same[name], values)
    assert (other["log_star"] != one["log_star"]).any()


def test_test_chips_have_no_say(data, answers):
    other = [values.copy() for values in data]
    other[2][TEST], other[3][TEST] = 7, 3
    again = predict_trees(fit_trees(*other, TRAIN, VALIDATION, seed=1), data[0], data[1])
    np.testing.assert_array_equal(again["log_star"], answers["log_star"])


def test_chips_of_unknown_count_and_missing_classes_are_survived(data):
    statistics, band, n_star, n_bright = (values.copy() for values in data)
    n_bright[::5] = -1
    sparse = np.minimum(n_star, 5000)
    found = predict_trees(fit_trees(statistics, band, sparse, n_bright, TRAIN, VALIDATION), statistics, band)
    assert found["class_probability"].shape == (420, 6)
    assert found["density_class"].max() <= 3
    assert np.abs(found["log_bright"] - np.log10(1 + data[3]))[TEST].mean() < 0.1


@pytest.mark.parametrize("source", ["regression", "classifier"])
def test_both_sources_of_the_class_give_probabilities(data, source, monkeypatch):
    def worse(self, table, log_star, band, original=tree_classes.Classifier.logits):
        found = original(self, table, log_star, band)
        return found if (self.trees is None) == (source == "regression") else np.roll(found, 1, axis=1)

    with monkeypatch.context() as patch:
        patch.setattr(tree_classes.Classifier, "logits", worse)
        baseline = fit_trees(*data, TRAIN, VALIDATION)
    assert baseline.choices["class"]["source"] == source
    found = predict_trees(baseline, data[0], data[1])
    np.testing.assert_allclose(found["class_probability"].sum(axis=1), 1, atol=1e-5)
    assert np.mean(found["density_class"] == density_class(data[2])) > 0.85


def test_what_cannot_be_is_named(data):
    with pytest.raises(ConfigError, match="at least 20"):
        fit_trees(*data, TRAIN, VALIDATION[:5])
    with pytest.raises(ValueError, match="unknown bands w"):
        fit_trees(data[0], ["w"] * 420, data[2], data[3], TRAIN, VALIDATION)
    with pytest.raises(ValueError, match="rows of statistics"):
        fit_trees(data[0], data[1], data[2][:7], data[3], TRAIN, VALIDATION)


def test_without_scikit_learn_the_extra_is_named(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"csst_dask\[evaluate\]"):
        fit_trees(*data, TRAIN, VALIDATION)
