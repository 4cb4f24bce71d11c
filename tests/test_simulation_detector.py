"""What a detector does to the light: charge is conserved, and every flag means what it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.simulation.detector import (
    FLAG_BAD,
    FLAG_COSMIC_RAY,
    FLAG_HOT,
    FLAG_SATURATED,
    DetectorModel,
    add_cosmic_rays,
    add_defects,
    bleed,
    inverse_variance,
)
from csst_dask.simulation.psf import make_psf
from csst_dask.simulation.render import add_stars

FULL = 90_000.0
PSF = make_psf(6199.8, 0.12)


def crowd(seed, n=40, shape=(160, 120), brightest=8.0):
    """A frame of bright stars and their positions."""
    rng = np.random.default_rng(seed)
    y, x, flux = rng.uniform(0, shape[0], n), rng.uniform(0, shape[1], n), 10 ** rng.uniform(5, brightest, n)
    frame = np.zeros(shape, np.float32)
    add_stars(frame, y, x, flux, PSF)
    return frame, np.zeros(shape, np.uint16), y, x


def blank(shape=(64, 32), level=0.0):
    return np.full(shape, level, np.float32), np.zeros(shape, np.uint16)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(5.5, 8.0))
def test_bleeding_conserves_charge_and_leaves_nothing_above_the_full_well(seed, brightest):
    frame, flags, y, x = crowd(seed, brightest=brightest)
    before = frame.sum(dtype=np.float64)
    columns = frame.sum(0, dtype=np.float64)
    lost = bleed(frame, flags, y, x, FULL)
    assert lost >= 0
    assert frame.sum(dtype=np.float64) + lost == pytest.approx(before, rel=1e-6)
    assert (columns - frame.sum(0, dtype=np.float64) > -1e-6 * before).all()
    assert frame.max() <= FULL
    np.testing.assert_array_equal(flags == FLAG_SATURATED, frame == np.float32(FULL))
    assert set(np.unique(flags)) <= {0, FLAG_SATURATED}


def test_each_column_keeps_its_charge():
    frame, flags = blank((400, 20))
    frame[200, 3], frame[150, 11] = 1e6, 5e5
    before = frame.sum(0, dtype=np.float64)
    assert bleed(frame, flags, np.array([200.0, 150.0]), np.array([3.0, 11.0]), FULL) == 0
    np.testing.assert_allclose(frame.sum(0, dtype=np.float64), before, rtol=1e-6)


def test_charge_runs_half_up_and_half_down():
    frame, flags = blank((101, 5))
    frame[50, 2] = FULL + 2 * 3.5 * FULL
    bleed(frame, flags, np.array([50.5]), np.array([2.5]), FULL)
    expected = np.zeros(101, np.float32)
    expected[47:54] = FULL
    expected[[46, 54]] = FULL / 2
    np.testing.assert_allclose(frame[:, 2], expected)
    np.testing.assert_array_equal(flags[:, 2] > 0, expected == FULL)
    assert not frame[:, [0, 1, 3, 4]].any()


def test_charge_that_runs_off_the_edge_is_returned():
    frame, flags = blank((20, 3))
    frame[4, 1] = FULL * 101
    lost = bleed(frame, flags, np.array([4.0]), np.array([1.0]), FULL)
    # 50 wells each way: 4 pixels below, 15 above
    assert lost == pytest.approx((50 - 4 + 50 - 15) * FULL, rel=1e-6)
    assert (frame[:, 1] == FULL).all()
    assert (flags[:, 1] == FLAG_SATURATED).all()


def test_the_order_of_stars_does_not_matter():
    frame, flags, y, x = crowd(5, 60)
    other, other_flags = frame.copy(), flags.copy()
    order = np.random.default_rng(0).permutation(60)
    lost = bleed(frame, flags, y, x, FULL)
    assert lost == bleed(other, other_flags, y[order], x[order], FULL)
    np.testing.assert_array_equal(frame, other)
    np.testing.assert_array_equal(flags, other_flags)


def test_bleeding_twice_changes_nothing():
    frame, flags, y, x = crowd(6)
    bleed(frame, flags, y, x, FULL)
    once = frame.copy()
    assert bleed(frame, flags, y, x, FULL) == 0
    np.testing.assert_array_equal(frame, once)


def test_stars_below_the_full_well_are_left_alone():
    frame, flags, y, x = crowd(7, brightest=5.2)
    before = frame.copy()
    assert frame.max() < FULL
    assert bleed(frame, flags, y, x, FULL) == 0
    np.testing.assert_array_equal(frame, before)
    assert not flags.any()


@given(st.lists(st.floats(0, 89_999.0, width=32), min_size=8, max_size=40), st.floats(1, 1e7))
@settings(max_examples=100, deadline=None)
def test_filled_pixels_hold_the_full_well_exactly(column, excess):
    frame, flags = blank((len(column), 1))
    frame[:, 0] = column
    frame[len(column) // 2] = FULL + excess
    before = frame.sum(dtype=np.float64)
    lost = bleed(frame, flags, np.array([len(column) // 2]), np.array([0]), FULL)
    assert frame.sum(dtype=np.float64) + lost == pytest.approx(before, abs=0.01 * (len(column) + 1))
    np.testing.assert_array_equal(flags == FLAG_SATURATED, frame == np.float32(FULL))
    # full pixels form one run about the star
    full = np.flatnonzero(frame[:, 0] == np.float32(FULL))
    np.testing.assert_array_equal(full, np.arange(full[0], full[-1] + 1))


def test_defects_are_flagged_wherever_they_change_pixels():
    frame, flags = blank((2000, 1500), 100.0)
    add_defects(frame, flags, DetectorModel(), np.random.default_rng(0), background=25.0)
    assert (flags[frame != 100.0] != 0).all()
    hot, edge = (flags & FLAG_HOT) > 0, np.zeros(frame.shape, bool)
    edge[:4] = edge[-4:] = True
    assert (frame[hot & ((flags & FLAG_BAD) == 0)] > 130).all()
    assert ((flags & FLAG_BAD) > 0)[edge].all()
    # the density of hot pixels is the model's: 2800 on a full frame
    assert hot.sum() == pytest.approx(0.7 * 4000 * frame.size / 85_082_112, rel=0.3)


def test_dead_pixels_and_bad_columns_lose_sky_as_well_as_stars():
    frame, flags = blank((2000, 1500), 100.0)
    model = DetectorModel(edge=0, bad_columns=3)
    add_defects(frame, flags, model, np.random.default_rng(1), background=50.0)
    total = frame + 50.0
    columns = np.flatnonzero((flags[-1] & FLAG_BAD) > 0)
    assert 1 <= columns.size <= 3
    inside = np.isclose(total[:, columns], 0.3 * 150, rtol=1e-5)
    assert inside.sum() > 0.95 * ((flags[:, columns] & FLAG_BAD) > 0).sum()
    dead = (flags == FLAG_BAD) & ~np.isin(np.arange(1500), columns)[None, :]
    assert dead.sum() > 10
    np.testing.assert_array_equal(total[dead], 0)


def test_cosmic_rays_flag_every_pixel_they_touch_and_carry_their_charge():
    frame, flags = blank((1024, 1024))
    model = DetectorModel()
    add_cosmic_rays(frame, flags, model, 150.0, np.random.default_rng(0))
    np.testing.assert_array_equal(flags == FLAG_COSMIC_RAY, frame > 0)
    hits = 1.1 * 85 * 150 * frame.size / 85_082_112
    length = np.random.default_rng(1).lognormal(1.2, 0.7, 100_000)
    # about 80 electrons per micron along a path through 10 um pixels
    assert frame.sum() == pytest.approx(hits * 800 * np.hypot(length, 1.5).mean(), rel=0.25)


def test_weights_are_inverse_variances_and_zero_under_flags():
    rng = np.random.default_rng(0)
    image = rng.normal(0.2, 0.5, (64, 50)).astype(np.float32)
    flags = np.where(rng.random(image.shape) < 0.3, 2 ** rng.integers(0, 8, image.shape), 0).astype(np.uint16)
    model, exptime = DetectorModel(), 150.0
    weight = inverse_variance(image, flags, model, exptime)
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight == 0, flags != 0)
    variance = np.maximum(image * exptime, 0) + 0.02 * exptime + 25
    np.testing.assert_allclose(weight[flags == 0], (exptime**2 / variance)[flags == 0], rtol=1e-5)


def test_weights_match_the_scatter_of_observed_pixels():
    from csst_dask.simulation.noise import observe

    frame, flags = blank((1000, 1000), 40.0)
    observe(frame, sky=30.0, gradient=(0, 0), dark=3.0, read_noise=5.0, exptime=150.0, full_well=FULL, key=(3, 4))
    weight = inverse_variance(np.full_like(frame, frame.mean()), flags, DetectorModel(), 150.0)
    assert frame.var(dtype=np.float64) * weight[0, 0] == pytest.approx(1, rel=0.01)
