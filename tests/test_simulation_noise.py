"""Detector noise: a standard normal deviate for every pixel, and the variance that light and electronics give."""

import numpy as np
import pytest

from csst_dask.simulation.noise import GLOW_CELL, normal_row, observe
from csst_dask.simulation.render import expand_glow, new_glow

ROWS, HALF = 1200, 4608


def normal_image(key, rows=ROWS, half=HALF):
    """What observing nothing with a read noise of 1 electron in 1 s gives."""
    out = np.zeros((rows, 2 * half), np.float32)
    observe(out, sky=0, gradient=(0, 0), dark=0, read_noise=1, exptime=1, full_well=1e9, key=key)
    return out


@pytest.fixture(scope="module")
def image():
    return normal_image((0xDEADBEEF, 12345))


def test_moments_are_those_of_a_standard_normal(image):
    z, n = image.astype(np.float64), image.size
    assert n > 1e7
    assert np.isfinite(z).all()
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)


def test_tails_and_quartiles_are_as_frequent_as_they_should_be(image):
    for limit, share in ((0.6744898, 0.5), (3.0, 2.699796e-3), (4.0, 6.334248e-5), (5.0, 5.733031e-7)):
        expected = share * image.size
        assert abs(np.count_nonzero(np.abs(image) > limit) - expected) < 4 * np.sqrt(expected) + 1


def test_the_distribution_agrees_with_the_normal_integral_everywhere(image):
    from math import erf, sqrt

    ordered = np.sort(image[:200].ravel())
    points = np.linspace(0, ordered.size - 1, 2000).astype(int)
    integral = np.array([0.5 * (1 + erf(z / sqrt(2))) for z in ordered[points]])
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) at a chance of 1e-3
    assert np.abs(integral - points / ordered.size).max() < 1.95 / np.sqrt(ordered.size)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param(np.s_[:, :-1], np.s_[:, 1:], id="neighbours"),
        pytest.param(np.s_[:, :-2], np.s_[:, 2:], id="next but one"),
        pytest.param(np.s_[:-1], np.s_[1:], id="rows"),
        pytest.param(np.s_[:-1, :-1], np.s_[1:, 1:], id="diagonal"),
        pytest.param(np.s_[:, :HALF], np.s_[:, HALF:], id="halves"),
    ],
)
def test_pixels_are_uncorrelated(image, a, b):
    first, second = image[a], image[b]
    bound = 4 / np.sqrt(first.size)
    assert abs(np.mean(first * second, dtype=np.float64)) < bound
    # both deviates of a pair share a radius: their squares must be independent all the same
    assert abs(np.mean((first**2 - 1) * (second**2 - 1), dtype=np.float64)) < 2 * bound


@pytest.mark.parametrize(
    "other",
    [
        (0xDEADBEF0, 12345),
        (0xDEADBEEF, 12346),
        (0xDEADBEF1, 12344),
        (0xDEADBEEF + HALF, 12345),
        (12345, 0xDEADBEEF),
        (0, 0),
    ],
)
def test_keys_give_independent_images(image, other):
    # keys next to each other too, and those whose counters would overlap if they were taken as they are
    found = normal_image(other, 200)
    for down, right in ((0, 0), (1, 0), (0, 1), (0, -1)):
        pair = (
            image[down : 200 + down, max(right, 0) :][:, : 2 * HALF - 1] * found[:, max(-right, 0) :][:, : 2 * HALF - 1]
        )
        assert abs(pair.mean(dtype=np.float64)) < 4.5 / np.sqrt(pair.size)
    assert np.count_nonzero(image[:200] == found) < 1e-5 * found.size


def test_one_key_is_one_image(image):
    np.testing.assert_array_equal(normal_image((0xDEADBEEF, 12345), 20), image[:20])


def test_a_row_is_two_halves_of_independent_numbers():
    first, second = np.empty(5000, np.float32), np.empty(5000, np.float32)
    normal_row(np.uint32(1), np.uint32(2), 3, first, second)
    for half in (first, second):
        assert half.std() == pytest.approx(1, abs=4 / np.sqrt(10_000))
    assert abs(np.mean(first * second)) < 4 / np.sqrt(5000)


def expose(sky, shape=(200, 1001), gradient=(0.0, 0.0), stars=0.0, dark=3.0, read_noise=5.0, key=(1, 2), well=9e4):
    frame = np.full(shape, stars, np.float32)
    observe(frame, sky=sky, gradient=gradient, dark=dark, read_noise=read_noise, exptime=150.0, full_well=well, key=key)
    return frame


@pytest.mark.parametrize("sky", [0.0, 0.6, 25.0, 1000.0, 50_000.0])
def test_variance_is_that_of_photons_and_read_noise(sky):
    electrons = expose(sky, (1000, 1000), stars=7.0).astype(np.float64) * 150
    assert electrons.mean() == pytest.approx(sky + 7, abs=4 * np.sqrt((sky + 35) / 1e6))
    assert electrons.var() == pytest.approx(sky + 7 + 3 + 25, rel=0.01)


def test_a_frame_of_odd_width_has_noise_in_its_last_column_too():
    last = expose(100.0, (4000, 7))[:, -1].astype(np.float64) * 150
    assert last.var() == pytest.approx(128, rel=4 * np.sqrt(2 / 4000))
    assert last.mean() == pytest.approx(100, abs=4 * np.sqrt(128 / 4000))


def test_noise_depends_on_the_key_and_not_on_the_buffer():
    np.testing.assert_array_equal(expose(30.0), expose(30.0))
    assert (expose(30.0) != expose(30.0, key=(1, 3))).mean() > 0.99


@pytest.mark.parametrize("shape", [(101, 96), (64, 77)])
@pytest.mark.parametrize("step", [1, 7, 40, 200])
def test_rows_in_blocks_are_the_rows_of_the_whole(shape, step):
    rng = np.random.default_rng(0)
    stars, glow = rng.exponential(50, shape).astype(np.float32), rng.exponential(9, new_glow(shape).shape)
    settings = {
        "sky": 30.0, "gradient": (0.3, -0.2), "dark": 3.0, "read_noise": 5.0, "exptime": 150.0, "full_well": 250.0,
        "key": (5, 6), "glow": glow.astype(np.float32),
    }  # fmt: skip
    whole, blocks = stars.copy(), stars.copy()
    observe(whole, **settings)
    starts = np.random.default_rng(1).permutation(np.arange(0, shape[0], step))
    for y in starts:
        observe(blocks, rows=(int(y), min(int(y) + step, shape[0])), **settings)
    np.testing.assert_array_equal(blocks, whole)
    # rows that are not asked for stay as they are
    some = stars.copy()
    observe(some, rows=(10, 20), **settings)
    np.testing.assert_array_equal(some[10:20], whole[10:20])
    np.testing.assert_array_equal(np.delete(some, np.s_[10:20], 0), np.delete(stars, np.s_[10:20], 0))


@pytest.mark.parametrize("shape", [(64, 96), (70, 85)])
def test_the_glow_is_light_like_any_other(shape):
    glow = np.random.default_rng(2).exponential(40, new_glow(shape).shape).astype(np.float32)
    settings = {
        "sky": 20.0, "gradient": (0.0, 0.0), "dark": 3.0, "read_noise": 5.0, "exptime": 150.0, "full_well": 9e4,
        "key": (8, 9),
    }  # fmt: skip
    with_glow, painted = np.zeros(shape, np.float32), expand_glow(glow, shape).astype(np.float32)
    bare = np.zeros(shape, np.float32)
    observe(with_glow, glow=glow, **settings)
    observe(painted, **settings)
    observe(bare, **settings)
    np.testing.assert_allclose(with_glow, painted, rtol=1e-4, atol=1e-5)
    assert np.abs(with_glow - bare).max() > 10 / 150
    assert GLOW_CELL * (glow.shape[0] - 2) <= shape[0] < GLOW_CELL * (glow.shape[0] - 1)


def test_the_gradient_is_the_relative_change_from_edge_to_edge():
    frame = expose(20_000.0, (400, 600), gradient=(0.2, -0.1), dark=0.0).astype(np.float64) * 150
    y, x = (np.arange(400) + 0.5) / 400 - 0.5, (np.arange(600) + 0.5) / 600 - 0.5
    slope_y = (frame.mean(1) * y).sum() / (y**2).sum() / 20_000
    slope_x = (frame.mean(0) * x).sum() / (x**2).sum() / 20_000
    assert slope_y == pytest.approx(0.2, abs=4e-4)
    assert slope_x == pytest.approx(-0.1, abs=4e-4)
    assert frame.mean() == pytest.approx(20_000, rel=1e-4)


def test_no_pixel_holds_more_than_the_full_well():
    frame = expose(100.0, stars=1e6)
    np.testing.assert_array_equal(frame, np.float32((np.float32(9e4) - np.float32(3)) * np.float32(1 / 150)))


def test_a_pixel_without_light_has_read_noise_only():
    frame = expose(0.0, (1000, 1000), stars=-3.0, dark=3.0).astype(np.float64) * 150
    assert frame.mean() == pytest.approx(-3, abs=0.02)
    assert frame.std() == pytest.approx(5, rel=0.005)
