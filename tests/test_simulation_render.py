"""Stars on a frame: linear, additive, where they should be, without steps, and with all of their light."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.simulation.noise import GLOW_CELL
from csst_dask.simulation.psf import PHASES, STAMP_RADII, WING_RADIUS, make_psf
from csst_dask.simulation.render import (
    FAINTEST,
    add_stars,
    expand_glow,
    flux_limits,
    new_glow,
    padded_stamps,
    paint_stars,
)

G = make_psf(4754.5, 0.12)
LIMITS = flux_limits(G)


def columns(*values):
    return (np.array(v, float) for v in np.broadcast_arrays(*map(np.atleast_1d, values)))


def paint(y, x, flux, shape=(128, 160), psf=G):
    """Stamps and wings, without the glow."""
    frame = np.zeros(shape, np.float32)
    paint_stars(frame, *columns(y, x, flux), psf)
    return frame


def render(y, x, flux, shape=(128, 160), psf=G):
    frame = np.zeros(shape, np.float32)
    add_stars(frame, *columns(y, x, flux), psf)
    return frame


def centroid(frame):
    total = frame.sum(dtype=np.float64)
    y, x = (np.arange(n) + 0.5 for n in frame.shape)
    return (frame.sum(1, dtype=np.float64) * y).sum() / total, (frame.sum(0, dtype=np.float64) * x).sum() / total


def crowd(n, seed, low=0.0, high=7.0, shape=(128, 160), margin=20):
    rng = np.random.default_rng(seed)
    y, x = (rng.uniform(-margin, side + margin, n) for side in shape)
    return y, x, 10 ** rng.uniform(low, high, n)


def test_light_is_proportional_to_flux():
    one, few = paint(60.3, 70.8, 1e3), paint(60.3, 70.8, 700.0)
    both = (one > 0) & (few > 0)
    np.testing.assert_allclose(few[both], 0.7 * one[both], rtol=1e-5)
    # a brighter star has a larger stamp: the same where both have one
    much = paint(60.3, 70.8, 1e5)
    np.testing.assert_allclose(much[one > 0], 100 * one[one > 0], rtol=1e-5)
    assert (much > 0).sum() > (one > 0).sum()


def test_brighter_stars_have_larger_stamps_until_they_have_wings():
    assert (np.diff(LIMITS) > 0).all()
    for radius, limit in zip(STAMP_RADII, LIMITS, strict=True):
        lit = paint(64.5, 80.5, 0.99 * limit) > 0
        assert lit.any(1).sum() == lit.any(0).sum() == 2 * radius + 1
        # what is cut off was too faint to draw
        beyond = paint(64.5, 80.5, 1e9)[64 + radius + 1, 80] / 1e9 * 0.99 * limit
        assert 0.5 * FAINTEST < beyond < 1.15 * FAINTEST
    assert (paint(64.5, 80.5, 1.01 * LIMITS[-1]) > 0).sum() > (2 * STAMP_RADII[-1] + 1) ** 2


@pytest.mark.parametrize("flux", [10.0, 1e3, 6e3, 2e4, 1.5e5])
@pytest.mark.parametrize("place", [(256.0, 256.0), (250.3, 260.9)])
def test_no_light_is_lost(flux, place):
    frame = render(*place, flux, (512, 512))
    assert frame.sum(dtype=np.float64) == pytest.approx(flux, rel=2e-3)
    assert frame.min() >= 0


@pytest.mark.parametrize("flux", [1e6, 1e8])
def test_wings_lose_no_more_than_what_is_too_faint_to_draw(flux):
    total = render(450.5, 450.5, flux, (901, 901)).sum(dtype=np.float64)
    assert 0.97 * flux < total < flux


def test_glow_is_the_light_outside_of_the_stamps():
    for size, limit in enumerate(LIMITS):
        flux = np.array([0.9 * limit])
        frame = np.zeros((256, 256), np.float32)
        glow = paint_stars(frame, np.array([120.2]), np.array([130.7]), flux, G)
        outside = flux[0] - padded_stamps(G)[size].sum((2, 3), dtype=np.float64).mean() * flux[0]
        spread = expand_glow(glow, frame.shape)
        assert spread.sum(dtype=np.float64) == pytest.approx(outside, rel=1e-4)
        assert centroid(spread) == pytest.approx((120.2, 130.7), abs=0.05)
        assert spread.max() < 0.01 * frame.max()
        # it lies about the star
        y, x = np.nonzero(spread)
        assert np.abs(y - 120).max() <= 2 * GLOW_CELL
        assert np.abs(x - 130).max() <= 2 * GLOW_CELL


def test_the_glow_is_linear_between_its_nodes():
    glow = new_glow((128, 160))
    assert glow.shape == (10, 12)
    j, i = np.mgrid[0:10, 0:12]
    glow[:] = 3 + 16 * 0.5 * j - 16 * 0.25 * i
    y, x = np.mgrid[0:128, 0:160] + 0.5
    np.testing.assert_allclose(expand_glow(glow, (128, 160)), 3 + 0.5 * y - 0.25 * x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(128, 160), (144, 128)])
def test_an_even_crowd_is_even_up_to_the_edges(shape):
    # stars as if the sky went on beyond the frame, one in every 2 x 2 pixels
    y, x = (axis.ravel() for axis in np.meshgrid(*(np.arange(-47.25, n + 48, 2.0) for n in shape), indexing="ij"))
    glow = paint_stars(np.zeros(shape, np.float32), *columns(y, x, 50.0), G)
    spread = expand_glow(glow, shape)
    np.testing.assert_allclose(spread, spread[64, 64], rtol=0.15)
    whole = render(y, x, 50.0, shape)
    mean = whole[48:80, 48:80].mean()
    assert mean == pytest.approx(50 / 4, rel=2e-3)
    for edge in (whole[:8], whole[-8:], whole[:, :8], whole[:, -8:]):
        assert edge.mean() == pytest.approx(mean, rel=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.floats(40, 88), st.floats(40, 88), st.floats(3.0, 6.5))
def test_a_stars_centroid_is_its_position(y, x, exponent):
    box = paint(y, x, 10**exponent, (128, 128))
    row, column = int(y), int(x)
    # light falls off symmetrically about the star, so weight it symmetrically about it
    centres_y, centres_x = np.arange(128) + 0.5, np.arange(128) + 0.5
    weight = np.exp(-0.5 * ((centres_y - y)[:, None] ** 2 + (centres_x - x)[None, :] ** 2) / 2.0**2)
    found = centroid((box * weight).astype(np.float32))
    assert abs(found[0] - y) < 0.05
    assert abs(found[1] - x) < 0.05
    assert np.unravel_index(box.argmax(), box.shape) == pytest.approx((row, column), abs=1)


def test_positions_are_kept_to_half_a_phase():
    positions = 64 + np.linspace(0, 1, 65, endpoint=False)
    found = [centroid(paint(y, 64.5, 1e5, (129, 129))[64 - 6 : 65 + 6, 64 - 6 : 65 + 6])[0] + 58 for y in positions]
    # the window cuts a little more on the far side
    assert np.abs(np.array(found) - positions).max() < 0.5 / PHASES + 0.015


@pytest.mark.parametrize("flux", [500.0, 5e3, 5e4, 5e6])
def test_moving_a_star_by_whole_pixels_moves_its_light(flux):
    here, there = paint(60.375, 70.8125, flux, (200, 200)), paint(63.375, 65.8125, flux, (200, 200))
    np.testing.assert_array_equal(here[20:180, 20:180], there[23:183, 15:175])


def test_moving_a_crowd_moves_its_light():
    rng = np.random.default_rng(3)
    y, x = np.floor(rng.uniform(40, 90, (2, 300)) * 64) / 64
    flux = 10 ** rng.uniform(1, 5, 300)
    here, there = paint(y, x, flux, (150, 150)), paint(y + 7, x - 4, flux, (150, 150))
    np.testing.assert_array_equal(here[10:130, 10:140], there[17:137, 6:136])
    # the glow moves by whole cells
    here, there = render(y, x, flux, (160, 160)), render(y + GLOW_CELL, x - GLOW_CELL, flux, (160, 160))
    np.testing.assert_allclose(here[16:130, 16:140], there[32:146, 0:124], rtol=1e-4, atol=1e-3)


def test_stars_add_up():
    y, x, flux = crowd(400, 1)
    together = render(y, x, flux)
    parts = render(y[::2], x[::2], flux[::2]) + render(y[1::2], x[1::2], flux[1::2])
    np.testing.assert_allclose(together, parts, rtol=1e-4, atol=1e-3)


def test_what_is_on_the_frame_stays_on_it():
    y, x, flux = crowd(100, 6)
    frame = np.full((128, 160), 7, np.float32)
    add_stars(frame, y, x, flux, G)
    np.testing.assert_allclose(frame - 7, render(y, x, flux), rtol=1e-4, atol=1e-2)


def test_the_order_of_stars_does_not_matter():
    y, x, flux = crowd(300, 2, 0, 6, margin=0)
    order = np.random.default_rng(2).permutation(300)
    np.testing.assert_array_equal(render(y, x, flux), render(y[order], x[order], flux[order]))


@pytest.mark.parametrize("flux", [400.0, 2e4, 1e6])
def test_stars_beyond_the_edge_light_what_they_reach(flux):
    whole = paint(30.25, 40.75, flux, (140, 160))
    for top, left in ((33, 0), (0, 44), (50, 60), (29, 39)):
        part = paint(30.25 - top, 40.75 - left, flux, (140 - top, 160 - left))
        np.testing.assert_array_equal(part, whole[top:, left:])
        part = paint(30.25, 40.75, flux, (max(top, 1), max(left, 1)))
        np.testing.assert_array_equal(part, whole[: max(top, 1), : max(left, 1)])


def test_stars_too_far_beyond_the_edge_leave_the_frame_alone():
    assert not render([-17.0, 145.0, 60, 60], [50, 50, -17.0, 177.0], 100.0).any()
    assert not paint([-5.0, 135.0, 60, 60], [50, 50, -6.0, 170.0], 100.0).any()
    assert not render([], [], []).any()


@pytest.mark.parametrize("phase", [(0.5, 0.5), (0.05, 0.95)])
def test_wings_continue_the_stamp_without_a_step(phase):
    frame = paint(100 + phase[0], 100 + phase[1], 1e7, (201, 201)).astype(np.float64)
    y, x = np.arange(201) + 0.5 - 100 - phase[0], np.arange(201) + 0.5 - 100 - phase[1]
    radius = np.hypot(y[:, None], x[None, :])
    nodes = (np.arange(8) + 0.5) / 8 - 0.5
    edge = STAMP_RADII[-1]
    for side in (-1, 1):
        for k in (edge, edge + 1):
            for along in (-10, 0, 13):
                yy, xx = 100 + side * k, 100 + along
                # the integral over the pixel, from the finely sampled table
                fine = np.hypot(y[yy] + nodes[:, None], x[xx] + nodes[None, :])
                expected = 1e7 * np.interp(2 * fine, np.arange(G.wings.size), G.wings).mean()
                assert frame[yy, xx] == pytest.approx(expected, rel=0.02)
    ring = (radius > edge - 4) & (radius < edge + 14)
    order = np.argsort(radius[ring])
    light, at = frame[ring][order], radius[ring][order]
    slope = np.interp(2 * at, np.arange(G.wings.size), G.wings) * 1e7
    assert np.abs(light / slope - 1).max() < 0.03


@pytest.mark.parametrize("flux", [1e7, 1e9, 1e13])
def test_wings_end_where_they_fade_or_at_their_radius(flux):
    shape = (900, 900)
    frame = paint(450.5, 450.5, flux, shape).astype(np.float64)
    centres = np.arange(900) + 0.5 - 450.5
    radius = np.hypot(centres[:, None], centres[None, :])
    assert np.isfinite(frame).all()
    assert not frame[radius > WING_RADIUS].any()
    expected = flux * np.interp(2 * radius, np.arange(G.wings.size), G.wings)
    lit = frame > 0
    far = lit & (radius > 30)
    np.testing.assert_allclose(frame[far], expected[far], rtol=1e-3)
    assert (expected[~lit & (radius < WING_RADIUS)] < FAINTEST * 1.01).all()
