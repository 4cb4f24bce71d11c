import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csst_dask.metrics import (
    accuracy,
    bootstrap_error,
    bootstrap_sums,
    class_report,
    confusion_matrix,
    dex_errors,
    macro_f1,
    matrix_scores,
    scatter,
)

TRUTH = np.array([0, 0, 1, 1, 1, 2])
CALLED = np.array([0, 1, 1, 1, 2, 2])


def test_scores_of_a_case_done_by_hand():
    report = class_report(TRUTH, CALLED, 4)
    assert accuracy(TRUTH, CALLED) == pytest.approx(4 / 6)
    np.testing.assert_array_equal(
        confusion_matrix(TRUTH, CALLED, 4), [[1, 1, 0, 0], [0, 2, 1, 0], [0, 0, 1, 0], [0] * 4]
    )
    np.testing.assert_allclose(report.precision, [1, 2 / 3, 1 / 2, np.nan])
    np.testing.assert_allclose(report.recall, [1 / 2, 2 / 3, 1, np.nan])
    np.testing.assert_allclose(report.f1, [2 / 3, 2 / 3, 2 / 3, np.nan])
    np.testing.assert_array_equal(report.support, [2, 3, 1, 0])
    assert macro_f1(TRUTH, CALLED, 4) == pytest.approx(2 / 3)


def test_a_class_that_is_never_found_counts_as_zero():
    assert macro_f1([0, 1], [0, 0], 2) == pytest.approx((2 / 3 + 0) / 2)


def test_dex_errors_done_by_hand():
    errors = dex_errors([0.0, 1.0, 2.0], [0.5, 1.0, 1.0])
    assert errors.mae == pytest.approx(0.5)
    assert errors.mse == pytest.approx(1.25 / 3)
    assert errors.rmse == pytest.approx(math.sqrt(1.25 / 3))
    assert errors.r2 == pytest.approx(1 - 1.25 / 2)


def test_predicting_the_mean_explains_nothing_and_no_chips_give_nan():
    assert dex_errors([1.0, 3.0], [2.0, 2.0]).r2 == pytest.approx(0)
    assert math.isnan(dex_errors([2.0, 2.0], [1.0, 2.0]).r2)
    assert math.isnan(dex_errors([], []).mae)
    assert math.isnan(accuracy([], []))
    assert math.isnan(macro_f1([], []))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60))
def test_the_confusion_matrix_holds_every_chip_once(pairs):
    truth, called = np.array(pairs).T
    matrix = confusion_matrix(truth, called)
    assert matrix.sum() == len(pairs)
    assert np.trace(matrix) == pytest.approx(accuracy(truth, called) * len(pairs))
    np.testing.assert_array_equal(matrix.T, confusion_matrix(called, truth))


def test_bootstrap_error_is_the_binomial_one_for_single_chips():
    truth = np.zeros(400, int)
    called = np.repeat([0, 1], [300, 100])
    found = bootstrap_error(accuracy, truth, called, draws=2000, seed=1)
    assert found == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.1)
    assert found == bootstrap_error(accuracy, truth, called, draws=2000, seed=1)


def test_chips_that_err_together_give_a_larger_error():
    truth = np.zeros(400, int)
    called = np.repeat([0, 1], [300, 100])
    field = np.repeat(np.arange(20), 20)
    grouped = bootstrap_error(accuracy, truth, called, groups=field, draws=2000)
    assert grouped == pytest.approx(math.sqrt(0.75 * 0.25 / 20), rel=0.15)


def test_one_group_has_no_error_and_bad_input_is_refused():
    assert math.isnan(bootstrap_error(accuracy, [0, 1], [0, 1], groups=["a", "a"]))
    with pytest.raises(ValueError, match="expected 0 to 5"):
        confusion_matrix([-1, 2], [0, 2])
    with pytest.raises(ValueError, match="alike"):
        accuracy([0, 1], [0])


def test_scores_of_many_matrices_are_those_of_each_and_know_no_scale():
    first, second = confusion_matrix(TRUTH, CALLED, 4), np.arange(16).reshape(4, 4)
    together = matrix_scores(np.stack([first, 0.01 * second]))
    for one, matrix in enumerate((first, second)):
        for found, alone in zip(together, matrix_scores(matrix), strict=True):
            np.testing.assert_allclose(found[one], alone)
    np.testing.assert_allclose(together[2][0], class_report(TRUTH, CALLED, 4).f1)


def test_sums_over_resamples_draw_whole_groups():
    terms = np.array([[1.0, 10], [2, 20], [4, 40]])
    sums = bootstrap_sums(terms, ["a", "b", "a"], draws=300)
    assert sums.shape == (301, 2)
    np.testing.assert_array_equal(sums[0], [7, 70])
    np.testing.assert_array_equal(sums[:, 1], 10 * sums[:, 0])
    assert set(sums[1:, 0].tolist()) == {4.0, 7.0, 10.0}  # b twice, one of each, a twice
    order = [2, 0, 1]
    np.testing.assert_allclose(bootstrap_sums(terms[order], ["a", "a", "b"], draws=300), sums)
    assert np.isnan(bootstrap_sums(terms, [0, 0, 0], draws=3)[1:]).all()
    with pytest.raises(ValueError, match="2 group labels for 3 chips"):
        bootstrap_sums(terms, [0, 1])


def test_both_ways_to_an_error_agree():
    rng = np.random.default_rng(5)
    truth, called, field = np.zeros(300, int), rng.integers(0, 2, 300), np.arange(300) // 3
    sums = bootstrap_sums(np.stack([np.ones(300), truth == called], axis=1), field, draws=2000)
    error = scatter(sums[:, 1] / sums[:, 0])
    assert error == pytest.approx(bootstrap_error(accuracy, truth, called, groups=field, draws=2000), rel=0.08)


def test_scatter_leaves_out_the_plain_score_and_what_is_unknown():
    assert scatter([100.0, 1, 2, 3]) == pytest.approx(1)
    np.testing.assert_allclose(scatter([[9, 9], [1, np.nan], [3, 5], [np.nan, np.nan]]), [math.sqrt(2), np.nan])
