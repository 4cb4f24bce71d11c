"""Stars on a frame: linear, additive, where they should be, and without steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.simulation.psf import STAMP_RADII, WING_RADIUS, make_psf
from csst_dask.simulation.render import FAINTEST, add_stars, centroid_error

G = make_psf(4754.5, 0.12)


def render(y, x, flux, shape=(128, 160), psf=G):
    frame = np.zeros(shape, np.float32)
    y, x, flux = (np.array(values, float) for values in np.broadcast_arrays(*map(np.atleast_1d, (y, x, flux))))
    add_stars(frame, y, x, flux, psf)
    return frame


def centroid(frame):
    total = frame.sum(dtype=np.float64)
    y, x = (np.arange(n) + 0.5 for n in frame.shape)
    return (frame.sum(1, dtype=np.float64) * y).sum() / total, (frame.sum(0, dtype=np.float64) * x).sum() / total


def test_light_is_proportional_to_flux():
    one = render(60.3, 70.8, 1e3)
    few = render(60.3, 70.8, 700.0)
    both = (one > 0) & (few > 0)
    np.testing.assert_allclose(few[both], 0.7 * one[both], rtol=1e-5)
    # a brighter star has a larger stamp: the same where both have one
    much = render(60.3, 70.8, 1e5)
    np.testing.assert_allclose(much[one > 0], 100 * one[one > 0], rtol=1e-5)
    assert (much > 0).sum() > (one > 0).sum()


@pytest.mark.parametrize("flux", [10.0, 1e3, 2e4, 1e6])
def test_flux_is_kept_but_for_what_is_too_faint_to_draw(flux):
    frame = render(150.5, 150.5, flux, (301, 301))
    lost = flux - frame.sum(dtype=np.float64)
    assert lost > 0
    assert lost < 0.05 * flux
    assert frame.sum(dtype=np.float64) <= flux


@settings(max_examples=40, deadline=None)
@given(st.floats(40, 88), st.floats(40, 88), st.floats(3.0, 6.5))
def test_a_stars_centroid_is_its_position(y, x, exponent):
    box = render(y, x, 10**exponent, (128, 128))
    row, column = int(y), int(x)
    # light falls off symmetrically about the star, so cut symmetrically about it: iterate to a centred window
    centres_y, centres_x = np.arange(128) + 0.5, np.arange(128) + 0.5
    weight = np.exp(-0.5 * ((centres_y - y)[:, None] ** 2 + (centres_x - x)[None, :] ** 2) / 2.0**2)
    found = centroid((box * weight).astype(np.float32))
    assert abs(found[0] - y) < 0.05
    assert abs(found[1] - x) < 0.05
    assert np.unravel_index(box.argmax(), box.shape) == pytest.approx((row, column), abs=1)


def test_the_promised_centroid_error_is_kept():
    assert centroid_error() == pytest.approx(1 / 32)
    positions = 64 + np.linspace(0, 1, 65, endpoint=False)
    found = [centroid(render(y, 64.5, 1e5, (129, 129))[64 - 6 : 65 + 6, 64 - 6 : 65 + 6])[0] + 58 for y in positions]
    # the window cuts a little more on the far side
    assert np.abs(np.array(found) - positions).max() < centroid_error() + 0.015


@pytest.mark.parametrize("flux", [500.0, 5e3, 5e4, 5e6])
def test_moving_a_star_by_whole_pixels_moves_its_light(flux):
    here, there = render(60.375, 70.8125, flux, (200, 200)), render(63.375, 65.8125, flux, (200, 200))
    np.testing.assert_array_equal(here[20:180, 20:180], there[23:183, 15:175])


def test_moving_a_crowd_by_whole_pixels_moves_its_light():
    rng = np.random.default_rng(3)
    y, x = np.floor(rng.uniform(40, 90, (2, 300)) * 64) / 64
    flux = 10 ** rng.uniform(1, 5, 300)
    here, there = render(y, x, flux, (150, 150)), render(y + 7, x - 4, flux, (150, 150))
    np.testing.assert_array_equal(here[10:130, 10:140], there[17:137, 6:136])


def test_stars_add_up():
    rng = np.random.default_rng(1)
    y, x, flux = rng.uniform(-20, 150, 400), rng.uniform(-20, 180, 400), 10 ** rng.uniform(0, 7, 400)
    together = render(y, x, flux)
    parts = render(y[::2], x[::2], flux[::2]) + render(y[1::2], x[1::2], flux[1::2])
    np.testing.assert_allclose(together, parts, rtol=1e-4, atol=1e-3)


def test_the_order_of_stars_does_not_matter():
    rng = np.random.default_rng(2)
    y, x, flux = rng.uniform(0, 128, 300), rng.uniform(0, 160, 300), 10 ** rng.uniform(0, 6, 300)
    order = rng.permutation(300)
    np.testing.assert_array_equal(render(y, x, flux), render(y[order], x[order], flux[order]))


def test_stars_beyond_the_edge_light_what_they_reach():
    whole = render(30.25, 40.75, 1e6, (140, 160))
    for top, left in ((33, 0), (0, 44), (50, 60), (29, 39)):
        part = render(30.25 - top, 40.75 - left, 1e6, (140 - top, 160 - left))
        np.testing.assert_array_equal(part, whole[top:, left:])
        part = render(30.25, 40.75, 1e6, (max(top, 1), max(left, 1)))
        np.testing.assert_array_equal(part, whole[: max(top, 1), : max(left, 1)])


def test_faint_stars_beyond_the_edge_leave_the_frame_alone():
    assert not render([-5.0, 135.0, 60, 60], [50, 50, -6.0, 170.0], 100.0).any()
    assert not render([], [], []).any()


@pytest.mark.parametrize("phase", [(0.5, 0.5), (0.05, 0.95)])
def test_wings_continue_the_stamp_without_a_step(phase):
    frame = render(100 + phase[0], 100 + phase[1], 1e7, (201, 201)).astype(np.float64)
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
    frame = render(450.5, 450.5, flux, shape).astype(np.float64)
    centres = np.arange(900) + 0.5 - 450.5
    radius = np.hypot(centres[:, None], centres[None, :])
    assert np.isfinite(frame).all()
    assert not frame[radius > WING_RADIUS].any()
    expected = flux * np.interp(2 * radius, np.arange(G.wings.size), G.wings)
    lit = frame > 0
    far = lit & (radius > 30)
    np.testing.assert_allclose(frame[far], expected[far], rtol=1e-3)
    assert (expected[~lit & (radius < WING_RADIUS)] < FAINTEST * 1.01).all()
