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
    FLAG_WARM,
    DetectorModel,
    Rays,
    add_cosmic_rays,
    add_defects,
    bleed,
    defect_rng,
    inverse_variance,
)
from csst_dask.simulation.psf import PHASES, STAMP_RADII, make_psf

FULL = 90_000.0
PSF = make_psf(6199.8, 0.12)


def paint(frame, y, x, flux):
    """Add the largest stamp of each star."""
    r = STAMP_RADII[-1]
    padded = np.zeros((frame.shape[0] + 2 * r, frame.shape[1] + 2 * r))
    for one_y, one_x, light in zip(y, x, flux, strict=True):
        row, column = int(one_y), int(one_x)
        stamp = PSF.stamps[int((one_y - row) * PHASES), int((one_x - column) * PHASES)]
        padded[row : row + 2 * r + 1, column : column + 2 * r + 1] += light * stamp
    frame += padded[r:-r, r:-r].astype(np.float32)


def crowd(seed, n=40, shape=(160, 120), brightest=8.0):
    """A frame of bright stars and their positions."""
    rng = np.random.default_rng(seed)
    y, x, flux = rng.uniform(0, shape[0], n), rng.uniform(0, shape[1], n), 10 ** rng.uniform(5, brightest, n)
    frame = np.zeros(shape, np.float32)
    paint(frame, y, x, flux)
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


def test_a_full_pixel_far_from_its_star_is_found_through_the_full_pixels_between():
    frame, flags = blank((301, 201))
    yy, xx = np.ogrid[:301, :201]
    frame[np.hypot(yy - 150, xx - 100) < 45] = 1.01 * FULL
    before = frame.sum(dtype=np.float64)
    assert bleed(frame, flags, np.array([150.5]), np.array([100.5]), FULL) == 0
    assert frame.max() == np.float32(FULL)
    assert frame.sum(dtype=np.float64) == pytest.approx(before, rel=1e-7)


def test_a_star_that_another_has_half_flattened_is_still_found():
    frame, flags = blank((120, 60))
    yy, xx = np.ogrid[:120, :60]
    frame[np.hypot(yy - 60, xx - 30) < 7] = 2 * FULL
    # the first star reaches the middle of the second, but not its far side
    bleed(frame, flags, np.array([60.5, 60.5]), np.array([25.5, 30.5]), FULL, radius=8)
    assert frame.max() == np.float32(FULL)


def defects(shape=(2000, 1500), level=100.0, detector=8, seed=0, **others):
    frame, flags = blank(shape, level)
    model = others.pop("model", DetectorModel())
    add_defects(frame, flags, model, defect_rng(seed, detector), **others)
    return frame, flags


def test_every_exposure_finds_the_defects_of_its_detector():
    frame, flags = defects(level=100.0, background=25.0)
    other, other_flags = defects(level=7.0, background=60.0)
    np.testing.assert_array_equal(flags, other_flags)
    hot = (flags == FLAG_HOT) | (flags == FLAG_WARM)
    np.testing.assert_allclose(frame[hot] - 100, other[hot] - 7, rtol=1e-4, atol=0.01)
    for another in ({"detector": 9}, {"seed": 1}):
        changed = defects(**another)[1]
        shared = ((changed == FLAG_HOT) & (flags == FLAG_HOT)).sum()
        assert shared < 0.1 * (flags == FLAG_HOT).sum()


def test_hot_and_warm_follow_the_calibration_rule():
    model, exptime = DetectorModel(bad_columns=0, edge=0), 150.0
    frame, flags = defects((3000, 3000), model=model, exptime=exptime)
    clean = (flags & FLAG_BAD) == 0
    total = np.where(clean, frame - 100 + model.dark * exptime, 0)
    hot, warm = (flags & FLAG_HOT) > 0, (flags & FLAG_WARM) > 0
    # two defects may share a pixel: only then the flag and the sum disagree
    assert (total[hot & clean] >= 25 * 0.999).all()
    assert (total[warm & ~hot & clean] > 12.5 * 0.999).all()
    assert (total[clean & (flags == 0)] <= 12.5 * 1.001).mean() > 0.999999
    assert (total[warm & ~hot & clean] < 25 * 1.001).mean() > 0.99
    assert (hot | warm).sum() == pytest.approx(4000 * frame.size / 85_082_112, rel=0.2)


def test_longer_exposures_make_more_pixels_hot_and_none_cold():
    short, long = defects(exptime=150.0)[1], defects(exptime=300.0)[1]
    hot_short, hot_long = (short & FLAG_HOT) > 0, (long & FLAG_HOT) > 0
    assert (hot_long | ~hot_short).all()
    assert hot_long.sum() > 1.2 * hot_short.sum()
    # warm pixels of twice the time are those that are hot or half as warm before
    assert (((long & (FLAG_HOT | FLAG_WARM)) > 0) | ((short & FLAG_WARM) == 0)).all()


def test_edges_are_flagged_and_defects_scale_with_the_frame():
    flags = defects()[1]
    assert (flags[:4] & FLAG_BAD).all()
    assert (flags[-4:] & FLAG_BAD).all()
    inner = flags[4:-4]
    dead = ((inner & FLAG_BAD) > 0) & (((inner & FLAG_BAD) > 0).sum(0) < 60)[None, :]
    assert dead.sum() == pytest.approx(1200 * inner.size / 85_082_112, rel=0.5)


def test_dead_pixels_and_bad_columns_lose_sky_as_well_as_stars():
    model = DetectorModel(edge=0, bad_columns=4, hot_pixels=0)
    frame, flags = defects(model=model, background=50.0)
    total, bad = frame + 50.0, (flags & FLAG_BAD) > 0
    columns = np.flatnonzero(bad.sum(0) > 20)
    assert 1 <= columns.size <= 4
    inside = np.isclose(total[:, columns], 0.3 * 150, rtol=1e-5)
    assert inside.sum() > 0.95 * bad[:, columns].sum()
    # a fault spoils what is read out through it: up to the middle of the frame, where the two halves meet
    assert all(bad[999, c] != bad[1000, c] for c in columns)
    dead = bad & ~np.isin(np.arange(1500), columns)[None, :]
    assert dead.sum() > 20
    np.testing.assert_array_equal(total[dead], 0)
    assert (total[~bad] == 150).all()


def test_cosmic_rays_flag_every_pixel_they_touch_and_carry_their_charge():
    frame, flags = blank((1024, 1024))
    model = DetectorModel()
    add_cosmic_rays(frame, flags, model, 600.0, np.random.default_rng(0))
    np.testing.assert_array_equal(flags == FLAG_COSMIC_RAY, frame > 0)
    hits = 1.1 * 85 * 600 * frame.size / 85_082_112
    length = np.random.default_rng(1).lognormal(*Rays().length, 100_000)
    # about 80 electrons per micron along a path through 10 um pixels, 16 um thick
    assert frame.sum() == pytest.approx(hits * 800 * np.hypot(length, 1.6).mean(), rel=0.15)
    # a published exposure of 150 s has 66 791 such pixels
    assert (flags > 0).sum() / frame.size * 85_082_112 / 4 == pytest.approx(66_791, rel=0.15)


@pytest.mark.parametrize(
    "rays", [Rays(diffusion=0.1), Rays(diffusion=0.6), Rays(curled=1.0), Rays(diffusion=0.3, curled=0.5)]
)
def test_charge_that_spreads_or_winds_is_all_there_and_flagged(rays):
    straight, marks = np.zeros((2, 1500, 1500), np.float32), np.zeros((2, 1500, 1500), np.uint16)
    for frame, flags, laws in zip(straight, marks, (Rays(), rays), strict=True):
        add_cosmic_rays(frame, flags, DetectorModel(), 600.0, np.random.default_rng(0), laws)
    other = straight[1].sum(dtype=float)
    assert other == pytest.approx(straight[0].sum(dtype=float), rel=0.02)  # some tracks leave the frame elsewhere
    assert straight[1][marks[1] == 0].sum(dtype=float) < 2e-3 * other
    assert (marks[1] > 0).sum() > (marks[0] > 0).sum()
    assert (straight[1] >= 0).all()


def test_spread_charge_is_less_sharp():
    peaks = []
    for diffusion in (0.0, 0.2, 0.4, 0.6):
        frame, flags = np.zeros((1500, 1500), np.float32), np.zeros((1500, 1500), np.uint16)
        rays = Rays(diffusion=diffusion, length=(-0.5, 0.3))
        add_cosmic_rays(frame, flags, DetectorModel(), 600.0, np.random.default_rng(0), rays)
        peaks.append(frame.max())
    assert (np.diff(peaks) < 0).all()


def test_there_are_as_many_as_the_rate_says():
    numbers = []
    for rate in (0.2, 1.0, 3.0):
        frame, flags = np.zeros((1500, 1500), np.float32), np.zeros((1500, 1500), np.uint16)
        add_cosmic_rays(frame, flags, DetectorModel(), 600.0, np.random.default_rng(0), Rays(rate=rate))
        numbers.append(frame.sum(dtype=float) / rate)
    np.testing.assert_allclose(numbers, numbers[1], rtol=0.15)


def test_cosmic_rays_belong_to_their_generator():
    one, two, three = (blank((300, 300)) for _ in range(3))
    for (frame, flags), seed in ((one, 1), (two, 1), (three, 2)):
        add_cosmic_rays(frame, flags, DetectorModel(), 3000.0, np.random.default_rng(seed))
    np.testing.assert_array_equal(one[0], two[0])
    assert (one[0] != three[0]).any()


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


def test_weights_may_be_written_in_place():
    image, flags = np.full((8, 9), 0.3, np.float32), np.zeros((8, 9), np.uint16)
    out = np.empty_like(image)
    assert inverse_variance(image, flags, DetectorModel(), 150.0, out) is out
    np.testing.assert_array_equal(out, inverse_variance(image, flags, DetectorModel(), 150.0))


def test_weights_match_the_scatter_of_observed_pixels():
    rng, model, exptime = np.random.default_rng(0), DetectorModel(), 150.0
    electrons, dark = 70.0, 3.0
    seen = (rng.poisson(electrons + dark, 10**6) + rng.normal(0, 5, 10**6) - dark) / exptime
    image = np.full((1, 1), seen.mean(), np.float32)
    weight = inverse_variance(image, np.zeros((1, 1), np.uint16), model, exptime)
    assert seen.var() * weight[0, 0] == pytest.approx(1, rel=0.01)
