"""Trails, ghosts and spikes: how much light they bring, where, and what is flagged."""

import numpy as np
import pytest

from csst_dask.instrument.focal_plane import DETECTORS, IMAGING_DETECTORS
from csst_dask.schema import FRAME_SHAPE
from csst_dask.simulation.artefacts import (
    FLAG_GHOST,
    FLAG_TRAIL,
    GHOST_DRIFT,
    TRAIL_BRIGHTNESS,
    Trail,
    add_ghosts,
    add_spikes,
    add_trail,
    draw_trails,
)
from csst_dask.simulation.psf import STAMP_RADII, make_psf, spike_profile

PSF = make_psf(6199.8, 0.12)


def blank(shape=(400, 300)):
    return np.zeros(shape, np.float32), np.zeros(shape, np.uint16)


@pytest.mark.parametrize("angle", [np.pi / 2, 1.2, 0.5, 0.0, 2.4])
@pytest.mark.parametrize("width", [1.0, 3.0])
def test_a_trail_brings_its_light_for_every_pixel_of_its_length(angle, width):
    frame, flags = blank((600, 600))
    add_trail(frame, flags, Trail(300.3, 299.6, angle, 1000.0, width), PSF, noise=7.0)
    # a disc about a point of the line holds a chord of twice its radius
    yy, xx = np.ogrid[:600, :600]
    along = (yy + 0.5 - 300.3) * np.sin(angle) + (xx + 0.5 - 299.6) * np.cos(angle)
    light = frame[np.abs(along) < 100].sum(dtype=np.float64)
    # the halo's faintest wings are left out
    assert light == pytest.approx(200 * 1000, rel=0.015)


@pytest.mark.parametrize("angle", [np.pi / 2, 0.7])
def test_a_trail_is_blurred_by_the_psf_and_the_pixels(angle):
    n, parts, width = 40, 10, 1.2
    frame, flags = blank((n, n))
    add_trail(frame, flags, Trail(20.2, 20.4, angle, 1000.0, width), PSF, noise=7.0)
    fine = (np.arange(n * parts) + 0.5) / parts
    distance = (fine[None, :] - 20.4) * np.sin(angle) - (fine[:, None] - 20.2) * np.cos(angle)
    light = np.zeros_like(distance)
    for shift in (np.arange(24) + 0.5) / 24 * width - width / 2:
        for weight, sigma in PSF.mixture:
            light += weight / 24 / np.sqrt(2 * np.pi) / sigma * np.exp(-0.5 * ((distance - shift) / sigma) ** 2)
    expected = 1000 * light.reshape(n, parts, n, parts).mean((1, 3))
    assert np.abs(frame - expected).max() < 0.01 * expected.max()


def test_a_trail_is_flagged_where_it_outshines_the_noise():
    frame, flags = blank()
    trail = Trail(100.0, 150.0, 0.9, 300.0, 2.0)
    flagged = add_trail(frame, flags, trail, PSF, noise=7.0)
    np.testing.assert_array_equal(flags == FLAG_TRAIL, frame > 7.0)
    assert flagged == (flags > 0).sum() > 1000
    yy, xx = np.ogrid[:400, :300]
    distance = np.abs((xx + 0.5 - 150) * np.sin(0.9) - (yy + 0.5 - 100) * np.cos(0.9))
    assert (flags[distance < 1] > 0).all()
    assert not flags[distance > 8].any()
    faint, faint_flags = blank()
    assert add_trail(faint, faint_flags, Trail(100.0, 150.0, 0.9, 20.0, 3.0), PSF, noise=30.0) == 0
    assert faint.max() > 1
    assert not faint_flags.any()


def test_a_trail_runs_on_over_touching_frames():
    trail = Trail(35.0, 20.0, 0.4, 500.0, 1.5)
    whole, whole_flags = blank((120, 160))
    add_trail(whole, whole_flags, trail, PSF, 5.0)
    parts = []
    for x0 in (0, 80):
        frame, flags = blank((120, 80))
        add_trail(frame, flags, trail, PSF, 5.0, origin=(0, x0))
        parts.append((frame, flags))
    np.testing.assert_allclose(np.hstack([p[0] for p in parts]), whole, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(np.hstack([p[1] for p in parts]), whole_flags)


def test_a_trail_that_misses_the_frame_changes_nothing():
    frame, flags = blank()
    assert add_trail(frame, flags, Trail(1000.0, 0.0, 0.0, 1000.0, 2.0), PSF, 7.0) == 0
    assert not frame.any()


def crosses(trail, spec):
    """Whether the line meets the detector: its corners lie on both sides."""
    ny, nx = FRAME_SHAPE
    y = spec.yc + np.array([-1, -1, 1, 1]) * ny / 2 - trail.y
    x = spec.xc + np.array([-1, 1, -1, 1]) * nx / 2 - trail.x
    side = x * np.sin(trail.angle) - y * np.cos(trail.angle)
    return side.min() < 0 < side.max()


def test_as_many_trails_cross_each_detector_as_asked_for():
    rng, exposures = np.random.default_rng(0), 4000
    drawn = [trail for _ in range(exposures) for trail in draw_trails(rng, per_chip=0.1)]
    mean = [sum(crosses(t, DETECTORS[d]) for t in drawn) / exposures for d in IMAGING_DETECTORS]
    assert np.mean(mean) == pytest.approx(0.1, rel=0.1)
    assert max(mean) < 1.4 * min(mean)
    brightness = np.array([t.brightness for t in drawn])
    assert TRAIL_BRIGHTNESS[0] < brightness.min() < brightness.max() < TRAIL_BRIGHTNESS[1]
    # even in the logarithm
    assert np.median(brightness) == pytest.approx(np.sqrt(np.prod(TRAIL_BRIGHTNESS)), rel=0.15)
    assert draw_trails(np.random.default_rng(5), 1.0) == draw_trails(np.random.default_rng(5), 1.0)


def test_a_ghost_holds_its_share_of_the_star():
    frame, flags = blank((1000, 1000))
    star = np.array([500.0]), np.array([450.0]), np.array([1e9])
    assert add_ghosts(frame, flags, *star, axis=(500.0, 450.0), noise=1.0, share=2e-4) == 1
    assert frame.sum(dtype=np.float64) == pytest.approx(2e-4 * 1e9, rel=1e-3)
    np.testing.assert_array_equal(flags == FLAG_GHOST, frame > 0)
    yy, xx = np.ogrid[:1000, :1000]
    radius = np.hypot(yy + 0.5 - 500, xx + 0.5 - 450)
    assert not frame[radius < 68].any()
    assert not frame[radius > 257].any()
    ring = frame[(radius > 85) & (radius < 240)]
    assert np.ptp(ring) < 1e-3
    assert ring[0] == pytest.approx(2e5 / (np.pi * (250**2 - 75**2)), rel=1e-4)


def test_ghosts_lie_beyond_their_stars_as_seen_from_the_axis():
    frame, flags = blank((1000, 1000))
    axis = (500.0 - 10_000.0, 500.0 + 5_000.0)
    add_ghosts(frame, flags, np.array([500.0]), np.array([500.0]), np.array([1e9]), axis=axis, noise=1.0)
    light, y, x = frame.sum(dtype=np.float64), *np.ogrid[:1000, :1000]
    assert (frame * (y + 0.5)).sum(dtype=np.float64) / light == pytest.approx(500 + GHOST_DRIFT * 10_000, abs=0.5)
    assert (frame * (x + 0.5)).sum(dtype=np.float64) / light == pytest.approx(500 - GHOST_DRIFT * 5_000, abs=0.5)


def test_faint_ghosts_are_not_flagged_and_fainter_ones_not_drawn():
    star = np.array([200.0]), np.array([150.0])
    frame, flags = blank()
    assert add_ghosts(frame, flags, *star, np.array([3e8]), axis=(0, 0), noise=7.0) == 1
    assert 0 < frame.max() < 1.4
    assert not flags.any()
    frame, flags = blank()
    assert add_ghosts(frame, flags, *star, np.array([1e7]), axis=(0, 0), noise=7.0) == 0
    assert not frame.any()


def test_spikes_go_on_where_the_stamp_ends():
    psf = make_psf(6199.8, 0.12, spikes=0.01)
    frame, _ = blank((301, 301))
    add_spikes(frame, np.array([150.53]), np.array([150.53]), np.array([1e8]), psf)
    r = STAMP_RADII[-1]
    assert not frame[150 - r : 151 + r, 150 - r : 151 + r].any()
    columns = frame.sum(0, dtype=np.float64)
    np.testing.assert_allclose(
        columns[180:290], 0.5 * 0.01 * 1e8 * spike_profile(np.arange(180, 290) + 0.5 - 150.53), rtol=1e-4
    )
    np.testing.assert_allclose(frame, frame.T, atol=1e-3)
    # seamless: the last column of the stamp against the first beyond it, without the halo
    plain = make_psf(6199.8, 0.12)
    last = (psf.stamps[8, 8].astype(np.float64) - 0.99 * plain.stamps[8, 8])[:, -1].sum() * 1e8
    assert last / columns[150 + r + 1] == pytest.approx(spike_profile(r - 0.03) / spike_profile(r + 0.97), rel=0.02)
    nothing, _ = blank()
    add_spikes(nothing, np.array([150.5]), np.array([150.5]), np.array([1e9]), plain)
    assert not nothing.any()
