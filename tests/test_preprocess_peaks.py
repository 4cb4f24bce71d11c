"""Peaks against their definition in float64, and what no peak depends on."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from csst_dask.instrument.cells import amplifier_cells, sky_edges, sky_shape
from csst_dask.preprocess.measure import sky_of_sample
from csst_dask.preprocess.peaks import CELL_SAMPLE, GOOD_CELL, PeakSearch, sample_steps
from csst_dask.preprocess.peaks_torch import search_frame
from csst_dask.schema import CONCENTRATION, FLUX, SHAPE_OF, SHAPES, SHARPNESS, SIZES, TILES

FRAME = (372, 390)
INVALID, SATURATED = np.uint8(63), 8


def search(image, mask=None, chunks=None, **options):
    found = PeakSearch(image.shape, **options)
    for y0, y1, x0, x1 in chunks or [(0, image.shape[0], 0, image.shape[1])]:
        found.add(image[y0:y1, x0:x1], None if mask is None else mask[y0:y1, x0:x1], INVALID, SATURATED, y0, x0)
    return found.finish()


def reference_sky(image, good):
    """Local sky and noise, cell by cell."""
    (ey, ex), (sy, sx) = sky_edges(image.shape), sky_shape(image.shape)
    levels = np.full((2, sy, sx), np.nan)
    for j, i in np.ndindex(sy, sx):
        height, width = ey[j + 1] - ey[j], int(np.diff(ex).max())
        step_y, step_x = sample_steps(height, width)
        part = np.s_[ey[j] : ey[j + 1] : step_y, ex[i] : ex[i + 1] : step_x]
        values = image[part][good[part]].astype(np.float64)
        if values.size >= GOOD_CELL:
            levels[:, j, i] = sky_of_sample(values)
    smooth, (ay, ax) = np.full_like(levels, np.nan), amplifier_cells((sy, sx))
    for j, i in np.ndindex(sy, sx):
        rows = slice(max(j - 1, j // ay * ay), min(j + 2, (j // ay + 1) * ay))
        columns = slice(max(i - 1, i // ax * ax), min(i + 2, (i // ax + 1) * ax))
        near = levels[:, rows, columns].reshape(2, -1)
        if np.isfinite(near).any():
            smooth[:, j, i] = np.nanmedian(near, axis=1)
    return smooth


def step(value, edges):
    return int(np.clip(np.searchsorted(edges, value, "right") - 1, 0, len(edges) - 1))


def reference(image, mask, least=3.0, threshold=5.0):
    """Peaks by their definition."""
    good = np.isfinite(image) & ((mask & INVALID) == 0)
    sky, noise = reference_sky(image, good)
    (ny, nx), (ey, ex) = image.shape, sky_edges(image.shape)
    peaks = np.zeros((FLUX.size, CONCENTRATION.size, SHARPNESS.size), np.uint32)
    tiles = np.zeros((TILES, TILES, FLUX.size, SHAPES.size), np.uint16)
    pixels = image.astype(np.float64)
    for y, x in np.ndindex(ny, nx):
        b, s = (a[np.searchsorted(ey, y, "right") - 1, np.searchsorted(ex, x, "right") - 1] for a in (sky, noise))
        if y in (0, ny - 1) or x in (0, nx - 1) or not good[y, x] or not pixels[y, x] - b > least * s:
            continue
        near = np.s_[y - 1 : y + 2, x - 1 : x + 2]
        before = np.arange(9) < 4
        v = pixels[near].ravel()
        if not good[near].all() or (v[before] >= v[4]).any() or (v[5:] > v[4]).any():
            continue
        inner = (pixels[near] - b).sum()
        wide = np.s_[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
        outer = np.where(good[wide], pixels[wide] - b, 0.0).sum()
        if not inner > 3 * threshold * s:
            continue
        f = step(np.log10(inner), FLUX)
        c = step(inner / outer, CONCENTRATION) if outer > 0 else len(CONCENTRATION) - 1
        p = step((v[4] - b) / inner, SHARPNESS)
        peaks[f, c, p] += 1
        tiles[y * TILES // ny, x * TILES // nx, f, SHAPE_OF[c, p]] += 1
    return peaks, tiles, sky.astype(np.float32), noise.astype(np.float32)


def scene(seed, stars=250, rounded=0.0, masked=0.02):
    """Sky with a slope, amplifier steps, noise, stars of one width, bright pixels, and flags."""
    rng = np.random.default_rng(seed)
    ny, nx = FRAME
    y, x = np.mgrid[:ny, :nx]
    image = 1.0 + 0.3 * x / nx + 0.1 * (y > ny // 2) + rng.normal(0, 0.05, FRAME)
    for _ in range(stars):
        cy, cx, flux = rng.uniform(0, ny), rng.uniform(0, nx), 10 ** rng.uniform(-0.3, 2.5)
        near = np.s_[max(int(cy) - 8, 0) : int(cy) + 9, max(int(cx) - 8, 0) : int(cx) + 9]
        image[near] += flux / 8 * np.exp(-((y[near] - cy) ** 2 + (x[near] - cx) ** 2) / 2.5)
    for _ in range(40):
        image[rng.integers(ny), rng.integers(nx)] += rng.uniform(0.5, 5)
    if rounded:
        image = np.round(image / rounded) * rounded
    image = image.astype(np.float32)
    mask = np.zeros(FRAME, np.uint8)
    mask[rng.random(FRAME) < masked] = 4
    mask[image > 20] |= SATURATED
    mask[100:160, 200:330] |= 2
    mask[rng.random(FRAME) < 0.01] |= 64  # a ghost is no reason to leave a pixel out
    image[rng.random(FRAME) < 0.001] = np.nan
    return image, mask


@pytest.mark.parametrize("rounded", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("seed", [1, 2])
def test_peaks_follow_their_definition(seed, rounded):
    image, mask = scene(seed, rounded=rounded)
    found, (peaks, tiles, sky, noise) = search(image, mask), reference(image, mask)
    np.testing.assert_array_equal(found.sky, sky)
    np.testing.assert_array_equal(found.noise, noise)
    assert peaks.sum() > 60
    np.testing.assert_array_equal(found.peaks, peaks)
    np.testing.assert_array_equal(found.tile_peaks, tiles)


def test_saturated_stars_are_connected_areas():
    image, mask = scene(3)
    labels, n = ndimage.label(mask & SATURATED, np.ones((3, 3)))
    expected = np.zeros((TILES, TILES, SIZES.size), int)
    for label in range(1, n + 1):
        y, x = np.nonzero(labels == label)
        if y.size >= 4:
            expected[y[0] * TILES // FRAME[0], x[0] * TILES // FRAME[1], step(y.size, SIZES)] += 1
    assert expected.sum() > 10
    np.testing.assert_array_equal(search(image, mask).saturated, expected)


def chunks_of(rng, ny=FRAME[0], nx=FRAME[1]):
    ys, xs = (np.unique([0, n, *rng.integers(1, n, 4)]) for n in (ny, nx))
    parts = [(y0, y1, x0, x1) for y0, y1 in pairwise(ys) for x0, x1 in pairwise(xs)]
    return [tuple(int(v) for v in parts[k]) for k in rng.permutation(len(parts))]


def same(one, other):
    for name in ("peaks", "tile_peaks", "saturated", "sky", "noise"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_depends_on_chunks_or_their_order(seed):
    image, mask = scene(seed)
    same(search(image, mask), search(image, mask, chunks_of(np.random.default_rng(seed))))


@pytest.mark.parametrize("seed", range(4))
def test_parts_of_a_frame_add_up(seed):
    image, mask = scene(seed)
    chunks = chunks_of(np.random.default_rng(seed))
    one, other = PeakSearch(FRAME), PeakSearch(FRAME)
    for k, (y0, y1, x0, x1) in enumerate(chunks):
        (one, other)[k % 2].add(image[y0:y1, x0:x1], mask[y0:y1, x0:x1], INVALID, SATURATED, y0, x0)
    one.merge(other)
    same(one.finish(), search(image, mask))


def test_byte_order_does_not_matter():
    image, mask = scene(4)
    swapped = PeakSearch(FRAME)
    swapped.add(image.astype(">f4").view(np.uint32), mask, INVALID, SATURATED)
    same(swapped.finish(), search(image, mask))


def test_tiles_add_up_to_the_frame():
    image, mask = scene(5)
    found = search(image, mask)
    coarse = np.zeros((FLUX.size, SHAPES.size), int)
    for f, c, p in zip(*np.nonzero(found.peaks), strict=True):
        coarse[f, SHAPE_OF[c, p]] += found.peaks[f, c, p]
    np.testing.assert_array_equal(found.tile_peaks.sum((0, 1)), coarse)


def star(flux, width, at=(186.3, 150.7)):
    y, x = np.mgrid[: FRAME[0], : FRAME[1]]
    r2 = (y - at[0]) ** 2 + (x - at[1]) ** 2
    return flux * (np.exp(-r2 / (2 * width**2)) / (2 * np.pi * width**2) + 2e-4 / (1 + (r2 / 25) ** 1.25))


@pytest.mark.parametrize("flagged", [True, False])
def test_a_bright_star_with_halo_and_spikes_is_one_star(flagged):
    rng = np.random.default_rng(0)
    bright = star(2e4, 1.3)
    bright[186, 60:240] += 20 * np.exp(-np.abs(np.arange(60, 240) - 150) / 30)
    bright[90:280, 150] += 20 * np.exp(-np.abs(np.arange(90, 280) - 186) / 30)
    image = (rng.normal(1, 0.05, FRAME) + rng.poisson(bright * 150) / 150).astype(np.float32)
    image = np.minimum(image, np.float32(600))
    mask = np.where(image >= 600, SATURATED, 0).astype(np.uint8)
    found = search(image, mask if flagged else None)
    far = FLUX >= 2  # brighter than what noise on halo and spikes makes of them
    assert found.peaks[far].sum() == 0
    assert found.saturated.sum() == 1


def test_a_plateau_is_one_peak():
    """Of equals the first counts, where it is not so bright that it may be saturated."""
    image = np.random.default_rng(0).normal(1, 0.01, FRAME).astype(np.float32)
    image[40:43, 50:53] = 2.5
    found = search(image)
    assert found.peaks[FLUX > 0.5].sum() == 1
    assert found.saturated.sum() == 0


def saturated_scene(seed, level=600.0, response=0.01):
    """Stars cut at a level, some with trails of charge, and cosmic rays as bright, under a response that varies."""
    rng = np.random.default_rng(seed)
    image = rng.normal(1, 0.05, FRAME)
    places = [(40 + 60 * k, 50 + 40 * j) for k in range(5) for j in range(8)]
    for k, at in enumerate(places):
        image += star(10 ** (4.15 + 0.03 * k), 1.3, (at[0] + rng.random(), at[1] + rng.random()))
        if k > 30:
            image[at[0] - 12 : at[0] + 13, at[1]] += 2 * level
    for k in range(30):
        image[np.arange(6) + 5 + 12 * k, np.arange(6) + 330 + k] += 2 * level
    image = np.minimum(image, level) * (1 + response * rng.normal(0, 0.3, FRAME))
    return image.astype(np.float32), len(places)


@pytest.mark.parametrize("response", [0.0, 0.01])
@pytest.mark.parametrize("seed", [1, 2])
def test_saturated_stars_without_flags_are_plateaus_at_the_top_of_the_range(seed, response):
    image, n = saturated_scene(seed, response=response)
    found = search(image)
    assert n - 9 <= found.saturated.sum() <= n  # stars with fewer than four pixels at the top stay peaks
    assert found.peaks[FLUX > 2.5].sum() + found.saturated.sum() >= n
    same(search(image, None, chunks_of(np.random.default_rng(seed))), found)


def test_a_frame_without_saturated_stars_has_no_plateau():
    image = np.random.default_rng(3).normal(1, 0.05, FRAME)
    for k in range(40):  # the brightest one lies where four pixels meet
        image += star(3000.0 if k == 7 else 1000.0, 1.3, (30 + 8 * k + 0.5, 20 + 8 * k + 0.5))
    found = search(image.astype(np.float32))
    assert found.saturated.sum() == 0
    assert found.peaks[FLUX > 2].sum() == 40


def test_peaks_lie_neither_on_the_border_nor_beside_an_invalid_pixel():
    image, mask = np.random.default_rng(0).normal(1, 0.01, FRAME).astype(np.float32), np.zeros(FRAME, np.uint8)
    for y, x in ((0, 40), (FRAME[0] - 1, 60), (90, 0), (95, FRAME[1] - 1), (200, 200), (300, 300)):
        image[y, x] = 5.5
    mask[201, 199] = 4
    image[300, 298] = np.nan  # within 5 x 5 only: it counts as sky
    found = search(image, mask)
    assert found.peaks.sum() == 1
    [[f], [_], [p]] = np.nonzero(found.peaks)
    assert f == step(np.log10(4.5), FLUX)
    assert SHARPNESS[p] > 0.8


def test_no_peak_is_sought_where_the_sky_is_unknown():
    image, mask = scene(6, masked=0)
    mask[:186, :195] = 2
    mask[60:64, 20:24] = 0
    found = search(image, mask)
    ay, ax = amplifier_cells(sky_shape(FRAME))
    unknown = np.isnan(found.sky)
    np.testing.assert_array_equal(unknown, np.isnan(found.noise))
    assert unknown[:ay, : 4 * ax].all()
    assert not unknown[ay:].any()
    assert found.tile_peaks[: TILES // 2, : TILES // 2].sum() == 0


@pytest.mark.parametrize("shape", [(9232, 9216), (184, 192), (92, 96), (37, 41), (8, 8)])
def test_cells_cover_the_frame_and_cross_no_amplifier(shape):
    (y, x), (sy, sx) = sky_edges(shape), sky_shape(shape)
    assert (y[0], x[0], y[-1], x[-1]) == (0, 0, *shape)
    assert (y.size, x.size) == (sy + 1, sx + 1)
    assert set(np.arange(3) * shape[0] // 2) <= set(y.tolist())
    assert set((np.arange(9) * shape[1] // 8).tolist()) <= set(x.tolist())
    height, width = int(np.diff(y).min()), int(np.diff(x).min())
    if height * width >= CELL_SAMPLE:
        step_y, step_x = sample_steps(height, width)
        assert -(-height // step_y) * -(-width // step_x) >= CELL_SAMPLE


def test_least_and_threshold_are_multiples_of_the_noise():
    image = np.random.default_rng(0).normal(1, 0.05, FRAME).astype(np.float32)
    image[100, 100] = 3.0
    for least, n in ((3, 1), (35, 1), (45, 0)):
        assert search(image, least=least, threshold=8).peaks.sum() == n, least
    assert search(image, threshold=16).peaks.sum() == 0


@pytest.mark.parametrize("rounded", [0.0, 0.02])
def test_a_device_finds_the_same(rounded):
    image, mask = scene(8, rounded=rounded)
    good = torch.from_numpy(np.isfinite(image) & ((mask & INVALID) == 0))
    found = search_frame(torch.from_numpy(image), good, torch.from_numpy((mask & SATURATED) != 0))
    same(found.finish(), search(image, mask))
    image, _ = saturated_scene(3)
    found = search_frame(torch.from_numpy(image), torch.ones(image.shape, dtype=torch.bool), None)
    same(found.finish(), search(image))
    assert found.finish().saturated.sum() > 30
