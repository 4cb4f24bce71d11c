"""Limits in magnitude: laws of counts that rise, and of chips that are larger, fuller or less well seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csst_dask.inference.limits import CROWDING, choose_counts, confusion_limit, magnitude_reached, reference_limit
from csst_dask.preprocess.stellar_locus import star_width
from csst_dask.schema import MAGNITUDES

NONE = np.full((1, len(MAGNITUDES)), np.nan)
PIXELS = 9232 * 9216
EXACT = {"rtol": 1e-6}
risings = st.lists(st.floats(0, 1e6), min_size=len(MAGNITUDES), max_size=len(MAGNITUDES)).map(
    lambda steps: np.cumsum(np.sort(steps))[None]
)


def law(slope=0.3, bright=10.0):
    """(1, magnitude) counts that rise by a power law: 10^(slope) a magnitude."""
    return bright * 10 ** (slope * (np.array(MAGNITUDES)[None] - MAGNITUDES[0]))


@given(risings, st.floats(1, 1e7), st.floats(1, 1e7))
def test_more_stars_are_reached_at_fainter_magnitudes(counts, one, other):
    few, many = (magnitude_reached(counts, wanted)[0] for wanted in sorted((one, other)))
    assert not many < few
    assert np.isnan(many) or not np.isnan(few)
    assert np.isnan(few) == (counts[0, -1] < min(one, other))
    assert np.isnan(few) or MAGNITUDES[0] <= few <= MAGNITUDES[-1]


@given(risings, st.floats(1, 1e6))
def test_a_fuller_chip_has_brighter_limits(counts, wanted):
    sparse, full = magnitude_reached(counts, wanted)[0], magnitude_reached(1.5 * counts, wanted)[0]
    assert np.isnan(sparse) or full <= sparse + 1e-9


@pytest.mark.parametrize("k", range(len(MAGNITUDES)))
def test_at_a_magnitude_of_the_table_the_limit_is_that_magnitude(k):
    counts = law()
    np.testing.assert_allclose(magnitude_reached(counts, counts[0, k]), MAGNITUDES[k], **EXACT)


def test_between_magnitudes_the_logarithm_of_the_counts_is_straight():
    """Counts that follow a power law are met where the law says, but for the 1 in log10(1 + N)."""
    counts, wanted = law(0.3, 1000), np.array([1500.0])
    expected = MAGNITUDES[0] + np.log10(wanted / 1000) / 0.3
    np.testing.assert_allclose(magnitude_reached(counts, wanted), expected, atol=1e-3)


def test_the_first_magnitude_bounds_what_is_brighter_and_nothing_reaches_what_is_not_there():
    np.testing.assert_array_equal(magnitude_reached(law(0.3, 1e5), 200), [MAGNITUDES[0]])
    np.testing.assert_array_equal(magnitude_reached(np.zeros((2, len(MAGNITUDES))), 200), [np.nan, np.nan])
    np.testing.assert_array_equal(magnitude_reached(NONE, 200), [np.nan])
    np.testing.assert_array_equal(magnitude_reached(law(), np.nan), [np.nan])
    assert magnitude_reached(np.empty((0, len(MAGNITUDES))), 200).shape == (0,)


def test_counts_beyond_what_is_seen_change_no_limit_that_is_brighter():
    counts = law()
    seen = np.where(np.array(MAGNITUDES) > 24, np.nan, counts)
    wanted = counts[0, 5] * 0.9
    np.testing.assert_array_equal(magnitude_reached(seen, wanted), magnitude_reached(counts, wanted))
    np.testing.assert_array_equal(magnitude_reached(seen, counts[0, -1]), [np.nan])


def test_chips_without_learned_counts_have_limits_by_direct_ones():
    learned, direct = np.concatenate([law(), NONE, NONE]), np.concatenate([2 * law(), 2 * law(), NONE])
    np.testing.assert_array_equal(choose_counts(learned, direct), np.concatenate([law(), 2 * law(), NONE]))
    found = reference_limit(learned, direct, 200)
    assert found.dtype == np.float32
    assert found[1] < found[0]
    assert np.isnan(found[2])


@pytest.mark.parametrize("factor", [2.0, 0.3])
def test_confusion_is_of_density_whatever_the_size_of_a_chip(factor):
    counts = law(0.3, 1e4)
    whole = confusion_limit(counts, NONE, [0.8], [PIXELS])
    np.testing.assert_allclose(confusion_limit(factor * counts, NONE, [0.8], [factor * PIXELS]), whole, atol=1e-4)
    # twice the stars on the same area meet it brighter, by the slope of their numbers
    nearer = confusion_limit(2 * counts, NONE, [0.8], [PIXELS])
    np.testing.assert_allclose(whole - nearer, np.log10(2) / 0.3, atol=1e-3)


def test_at_the_confusion_limit_thirty_areas_hold_one_star():
    counts, locus = law(0.35, 1e4), 0.8
    [limit] = confusion_limit(counts, NONE, [locus], [PIXELS]).astype(float)
    stars = 10 ** np.interp(limit, MAGNITUDES, np.log10(counts[0]))
    assert PIXELS / stars == pytest.approx(CROWDING * np.pi / 4 * float(star_width(locus)) ** 2, rel=1e-3)


def test_wider_stars_are_confused_sooner_and_none_where_their_width_is_unknown():
    counts = np.repeat(law(0.35, 1e4), 3, axis=0)
    narrow, wide, unknown = confusion_limit(counts, np.repeat(NONE, 3, axis=0), [0.85, 0.7, np.nan], [PIXELS] * 3)
    assert wide < narrow
    assert np.isnan(unknown)


def test_chips_do_not_depend_on_each_other():
    rng = np.random.default_rng(0)
    counts = np.cumsum(rng.exponential(200, (50, len(MAGNITUDES))), axis=1)
    counts[::7] = np.nan
    together = magnitude_reached(counts, 700.0)
    alone = [magnitude_reached(counts[k : k + 1], 700.0)[0] for k in range(50)]
    np.testing.assert_array_equal(together, alone)
