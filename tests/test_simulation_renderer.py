"""From a scene to pixels: the same whoever renders, with every object and artefact where the truth and flags say."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

import in_process
import numpy as np
import pytest

from csst_dask.config import Config, SimulationConfig, with_settings
from csst_dask.instrument import IMAGING_DETECTORS, frame_center
from csst_dask.instrument.distortion import DISTORTION
from csst_dask.instrument.flags import FLAG_GHOST, FLAG_TRAIL
from csst_dask.instrument.focal_plane import BAND_TABLE, DETECTORS
from csst_dask.io import discover, read_detector
from csst_dask.io.truth import read_truth
from csst_dask.runners.simulate import simulate_to_files
from csst_dask.schema import BANDS, FRAME_SHAPE, STAR_LIMIT
from csst_dask.simulation import exposure as exposure_module
from csst_dask.simulation.artefacts import Trail
from csst_dask.simulation.catalogue import Galaxies, Stars
from csst_dask.simulation.detector import (
    FLAG_BAD,
    FLAG_COSMIC_RAY,
    FLAG_HOT,
    FLAG_SATURATED,
    FLAG_WARM,
    DetectorModel,
)
from csst_dask.simulation.exposure import Exposure, Scene
from csst_dask.simulation.physics import Optics, SkyPhysics
from csst_dask.simulation.renderer import Renderer
from csst_dask.simulation.sersic import add_galaxies
from csst_dask.simulation.shot import make_exposure_psf, take_shot
from csst_dask.simulation.survey import plan_survey
from csst_dask.store import SurveyStore
from csst_dask.store.dataset import open_dataset

SHAPE = (322, 301)
SKY = SkyPhysics(density=300.0, systems=())
ONE = Exposure(
    index=3, obs_id="10000005000003", start=datetime(2027, 8, 10, 8, 15), exptime=150.0, ra=120.0, dec=35.0, theta=30.0,
    field="f", detectors=IMAGING_DETECTORS, seed=5, sky=SKY, defects=False,
)  # fmt: skip
TRAIL = Trail(y=float(DETECTORS[8].yc - 4450), x=float(DETECTORS[8].xc - 4450), angle=0.7, brightness=900.0, width=2.0)
FULL = replace(ONE, trails=(TRAIL,), ghosts=True, cosmic_rays=True, defects=True, distortion=DISTORTION)
OF_BAND = {band: next(d for d in IMAGING_DETECTORS if DETECTORS[d].band == band) for band in BANDS}


def render(exposure, detector=8, shape=SHAPE):
    return Renderer(shape).render(exposure, detector)


def copy(chip):
    return chip.image.copy(), chip.flags.copy(), chip.star_y.copy(), chip.stars.mag.copy()


def assert_same(a, b):
    for first, second in zip(a, b, strict=True):
        np.testing.assert_array_equal(first, second)


def scene_of(y=(), x=(), mag=(), galaxies=()):
    """A scene of stars of given places and magnitudes; galaxies as rows of y, x, mag, radius."""
    y, x, mag = (np.array(v, float) for v in (y, x, mag))
    n = len(y)
    stars = Stars(
        np.arange(n, dtype=np.uint64), np.zeros(n), np.zeros(n), mag, mag, np.full(n, 14.0), np.zeros(n), mag - 14,
        np.zeros(n, np.uint8),
    )  # fmt: skip
    rows = np.array(galaxies, float).reshape(-1, 4)
    m, one = len(rows), np.ones(len(rows))
    found = Galaxies(
        np.arange(m, dtype=np.uint64), 0 * one, 0 * one, rows[:, 2].copy(), rows[:, 3].copy(), 0.5 * one, 0 * one,
        0.8 * one, 20 * one, 0.5 * one,
    )  # fmt: skip
    return Scene(stars, y, x, found, rows[:, 0].copy(), rows[:, 1].copy())


@pytest.fixture
def given(monkeypatch):
    """Render a given scene instead of the sky's."""

    def show(exposure, detector=8, shape=SHAPE, **scene):
        with monkeypatch.context() as patch:
            patch.setattr(exposure_module, "draw_scene", lambda *_: scene_of(**scene))
            return render(exposure, detector, shape)

    return show


def electrons(exposure, detector=8, shape=SHAPE):
    """Light of the objects before sky and noise."""
    chip, _ = Renderer(shape).expose(exposure, detector)
    return chip


def test_a_chip_is_the_same_whatever_was_rendered_before_and_in_whichever_buffer():
    chips = [(FULL, 8), (FULL, 9), (replace(FULL, index=4), 8), (replace(FULL, ra=10.0), 6)]
    alone = [copy(render(*chip)) for chip in chips]
    one = Renderer(SHAPE)
    for k in (2, 0, 3, 1, 0, 0, 2):
        assert_same(copy(one.render(*chips[k])), alone[k])
    one.image[:] = np.nan
    one.flags[:] = 65535
    assert_same(copy(one.render(*chips[1])), alone[1])


def test_threads_do_not_disturb_each_other():
    chips = [(replace(FULL, index=k), d) for k in range(3) for d in (8, 24)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda chip: copy(render(*chip)), chips))
    for chip, at_once in zip(chips, found, strict=True):
        assert_same(copy(render(*chip)), at_once)


@pytest.mark.parametrize("step", [1, 13, 83, 1000])
def test_rows_may_come_in_blocks(step):
    whole = copy(render(FULL))
    chip, ready = Renderer(SHAPE).expose(FULL, 8)
    starts = list(range(0, SHAPE[0], step))
    for y in (*starts[1::2], *starts[::2]):
        ready(y, min(y + step, SHAPE[0]))
    assert_same(copy(chip), whole)


def test_chips_differ_between_detectors_exposures_and_seeds():
    chips = [(FULL, 8), (FULL, 23), (replace(FULL, index=4), 8), (replace(FULL, seed=6), 8)]
    images = [render(*chip).image for chip in chips]
    for i, image in enumerate(images):
        for other in images[:i]:
            assert (image == other).mean() < 0.01
    empty = replace(ONE, sky=replace(SKY, footprint=0.0, galaxies=0.0))
    noise = [
        render(replace(empty, **changes), detector).image.copy().ravel()
        for changes, detector in (({}, 8), ({}, 23), ({"index": 4}, 8), ({"seed": 6}, 8), ({"index": 4, "seed": 4}, 8))
    ]
    between = np.corrcoef(noise)[np.triu_indices(len(noise), 1)]
    assert np.abs(between).max() < 4 / np.sqrt(noise[0].size)


def pointed(exposure, detector, ra, dec, shape=SHAPE):
    """The exposure moved so that a detector's small frame is centred on a place."""
    for _ in range(8):
        found_ra, found_dec = frame_center(exposure.wcs(detector), shape)
        exposure = replace(
            exposure, ra=exposure.ra + (ra - found_ra + 180) % 360 - 180, dec=exposure.dec + dec - found_dec
        )
    return exposure


def peak(image, y, x):
    """Centre (y, x) of the brightest pixel near a place, from the frame's outer corner."""
    row, column = int(y), int(x)
    box = image[row - 3 : row + 4, column - 3 : column + 4]
    j, i = np.unravel_index(box.argmax(), box.shape)
    return row - 3 + j + 0.5, column - 3 + i + 0.5


def centroid(image, y, x, sky):
    """Position of a star by a Gaussian weight that follows it."""
    row, column = int(y), int(x)
    box = image[row - 6 : row + 7, column - 6 : column + 7].astype(float) - sky
    yy, xx = (np.mgrid[-6:7, -6:7] + 0.5) + np.array([row, column])[:, None, None]
    for _ in range(20):
        weight = box * np.exp(-0.5 * ((yy - y) ** 2 + (xx - x) ** 2) / 1.2**2)
        # the weighted mean goes half the way
        y, x = y + 2 * ((weight * yy).sum() / weight.sum() - y), x + 2 * ((weight * xx).sum() / weight.sum() - x)
    return y, x


def alone(chip, faintest, brightest=19.0, apart=14.0):
    """Bright stars well on the frame without a neighbour that matters."""
    y, x, mag = chip.scene.star_y, chip.scene.star_x, chip.scene.stars.mag
    found = []
    for k in np.flatnonzero((mag > brightest) & (mag < faintest)):
        distance = np.hypot(y - y[k], x - x[k])
        near = (distance < apart) & (mag < mag[k] + 4)
        inside = 8 < y[k] < SHAPE[0] - 8 and 8 < x[k] < SHAPE[1] - 8
        row, column = int(y[k]), int(x[k])
        # saturated stars spill along their columns
        if near.sum() == 1 and inside and not chip.flags[row - 7 : row + 8, column - 7 : column + 8].any():
            found.append(k)
    return np.array(found)


@pytest.mark.parametrize(("first", "second"), [(8, 9), (24, 8), (11, 9)])
def test_two_detectors_show_a_star_at_the_same_place_of_the_sky(first, second):
    one = replace(ONE, distortion=DISTORTION, sky=replace(SKY, density=150.0, galaxies=0.0))
    ra, dec = frame_center(one.wcs(first), SHAPE)
    other = pointed(replace(one, index=5, theta=200.0), second, ra + 5e-4, dec)
    mine, theirs = render(one, first), render(other, second)
    compared = 0
    for k in alone(mine, 22.0):
        star = mine.scene.stars.pick(np.array([k]))
        match = np.flatnonzero(theirs.scene.stars.id == star.id)
        if not match.size or match[0] not in alone(theirs, 22.5, 15.0):
            continue
        where = []
        for chip, index, detector, exposure in ((mine, k, first, one), (theirs, match[0], second, other)):
            y, x = peak(chip.image, chip.scene.star_y[index], chip.scene.star_x[index])
            where.append(exposure.wcs(detector).all_pix2world(x + 0.5, y + 0.5, 1))
        (ra1, dec1), (ra2, dec2) = where
        pixel = 0.074 / 3600
        assert np.hypot((ra1 - ra2) * np.cos(np.deg2rad(dec1)), dec1 - dec2) < 1.5 * pixel
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("distortion", [0.0, DISTORTION])
def test_truth_and_pixels_agree_on_the_places_of_stars(distortion):
    exposure = replace(ONE, distortion=distortion, sky=replace(SKY, density=150.0, galaxies=0.0))
    offsets = []
    for detector in (8, 24, 11):
        chip = render(exposure, detector)
        for k in alone(chip, 21.0, 18.0):
            y, x = chip.scene.star_y[k], chip.scene.star_x[k]
            found = centroid(chip.image, y, x, chip.sky)
            by_wcs = exposure.wcs(detector).all_world2pix(chip.scene.stars.ra[k], chip.scene.stars.dec[k], 1)
            np.testing.assert_allclose((x, y), np.array(by_wcs) - 0.5, atol=1e-4)
            offsets.append((found[0] - y, found[1] - x))
    offsets = np.array(offsets)
    assert len(offsets) >= 5
    assert np.abs(offsets).max() < 0.15
    np.testing.assert_allclose(offsets.mean(0), 0, atol=0.05)


def test_distortion_moves_the_stars_of_a_corner_detector():
    # the same sky at some 0.5 deg from the boresight
    plain, bent = (render(replace(ONE, sky=replace(SKY, galaxies=0.0), distortion=k), 6) for k in (0.0, DISTORTION))
    both, mine, theirs = np.intersect1d(plain.stars.id, bent.stars.id, return_indices=True)
    assert both.size > 20
    moved = np.hypot(plain.star_y[mine] - bent.star_y[theirs], plain.star_x[mine] - bent.star_x[theirs])
    assert 1 < np.median(moved) < 15


@pytest.mark.parametrize("band", BANDS)
def test_a_star_gives_the_light_of_its_magnitude_in_every_band(given, band):
    detector, bright = OF_BAND[band], BAND_TABLE[band].saturation_mag + 1.0
    chip = given(ONE, detector, y=[150.3], x=[140.8], mag=[bright])
    rate = 10 ** (-0.4 * (bright - BAND_TABLE[band].zero_point))
    box = chip.image[150 - 60 : 151 + 60, 140 - 60 : 141 + 60].astype(float)
    found = (box - np.median(chip.image)).sum()
    assert found == pytest.approx(rate, rel=0.04)
    assert peak(chip.image, 150.3, 140.8) == (150.5, 140.5)
    assert chip.fwhm == pytest.approx(make_exposure_psf(ONE, detector).core)


def test_seven_bands_see_seven_images_of_one_sky():
    ra, dec = frame_center(ONE.wcs(8), SHAPE)
    one = replace(ONE, sky=replace(SKY, density=60.0))
    chips = {band: render(pointed(one, d, ra, dec), d) for band, d in OF_BAND.items()}
    seen = {band: chip.stars for band, chip in chips.items()}
    common = seen["g"].id[chips["g"].counted]
    for band, chip in chips.items():
        assert chip.band == band
        assert np.median(chip.image) == pytest.approx(BAND_TABLE[band].sky, rel=0.25, abs=0.01)
        assert np.isin(common, seen[band].id).mean() > 0.95  # but for the edges
    bright = {band: (chip.stars.mag < 23.5).sum() for band, chip in chips.items()}
    assert bright["NUV"] < bright["u"] < bright["g"] < bright["r"] < bright["i"]
    for a in BANDS:
        for b in BANDS[: BANDS.index(a)]:
            assert (chips[a].image == chips[b].image).mean() < 0.01


def test_an_empty_sky_is_sky_and_noise():
    empty = replace(ONE, sky=replace(SKY, footprint=0.0, galaxies=0.0), optics=Optics(sky_factor=1.4, read_noise=6.0))
    chip = render(empty)
    assert (chip.n_star, chip.n_bright, len(chip.galaxies), chip.flags.any()) == (0, 0, 0, False)
    assert chip.sky == pytest.approx(1.4 * BAND_TABLE["g"].sky)
    sigma = np.sqrt((chip.sky + 0.02) * 150 + 36) / 150
    n = chip.image.size
    assert chip.image.mean(dtype=np.float64) == pytest.approx(chip.sky, abs=4 * sigma / np.sqrt(n))
    assert chip.image.std(dtype=np.float64) == pytest.approx(sigma, rel=4 / np.sqrt(2 * n))


def test_optics_reach_the_pixels(given):
    star = {"y": [150.5], "x": [140.5], "mag": [20.0]}
    sharp, blunt = (given(replace(ONE, optics=Optics(jitter=j)), **star) for j in (0.10, 0.18))
    assert sharp.image[150, 140] > 1.3 * blunt.image[150, 140]
    assert sharp.fwhm < blunt.fwhm
    light = [given(replace(ONE, optics=Optics(halo=h)), **star).image[149:152, 139:142].sum() for h in (0.3, 2.0)]
    assert light[0] > 1.2 * light[1]  # more of it lies beyond
    slanted = given(replace(ONE, optics=Optics(gradient=(0.4, 0.0), sky_factor=5.0)))
    rows, lever = slanted.image.mean(1), 0.4 * 0.5 * (1 - 40 / SHAPE[0])
    assert rows[-40:].mean() / rows[:40].mean() == pytest.approx((1 + lever) / (1 - lever), rel=0.01)
    longer = given(replace(ONE, exptime=600.0))
    assert longer.image.mean() == pytest.approx(slanted.image.mean() / 5, rel=0.01)
    assert longer.image.std() < 0.6 * given(ONE).image.std()


def test_galaxies_add_their_light():
    with_, without = (electrons(replace(ONE, sky=replace(SKY, galaxies=g))) for g in (1.0, 0.0))
    light = (with_.image.astype(float) - without.image).sum()
    on = with_.galaxies
    assert len(on) > 5
    expected = (10 ** (-0.4 * (on.mag - BAND_TABLE["g"].zero_point)) * 150).sum()
    assert light == pytest.approx(expected, rel=0.15)  # some lie across the edge
    assert with_.n_star == without.n_star


def test_a_galaxy_lies_where_the_truth_has_it(given):
    chip = given(ONE, galaxies=[(100.5, 200.5, 19.0, 0.8)])
    image = chip.image - np.median(chip.image)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]] + 0.5
    near = np.hypot(y - 100.5, x - 200.5) < 40
    flux = image[near].sum()
    assert flux == pytest.approx(10 ** (-0.4 * (19.0 - BAND_TABLE["g"].zero_point)), rel=0.1)
    assert ((image * y)[near].sum() / flux, (image * x)[near].sum() / flux) == pytest.approx((100.5, 200.5), abs=1.0)


def changed(exposure, **settings):
    """What a setting adds to the light, and the flags with it."""
    before, after = electrons(exposure), electrons(replace(exposure, **settings))
    assert not before.flags.any()
    return after.image - before.image, after.flags


def test_cosmic_rays_fall_on_flagged_pixels_only():
    quiet = replace(ONE, sky=replace(SKY, density=1.0))
    light, flags = changed(quiet, cosmic_rays=True)
    np.testing.assert_array_equal(light > 0, flags == FLAG_COSMIC_RAY)
    # 14 000 hits on a detector in 150 s
    expected = 14_025 * light.size / (FRAME_SHAPE[0] * FRAME_SHAPE[1])
    assert np.count_nonzero(light > 100) > 0.5 * expected
    again, other = (changed(replace(quiet, index=k), cosmic_rays=True)[1] for k in (3, 4))
    np.testing.assert_array_equal(again, flags)
    assert (other != flags).any()


def test_a_trail_is_flagged_where_it_outshines_the_noise():
    light, flags = changed(replace(ONE, sky=replace(SKY, density=1.0)), trails=(TRAIL,))
    noise = np.sqrt((BAND_TABLE["g"].sky + 0.02) * 150 + 25)
    np.testing.assert_array_equal(flags == FLAG_TRAIL, light > noise)
    assert (flags == FLAG_TRAIL).sum() > 300
    # through the point of the mosaic that it was given: here 4450 pixels down and left of the detector's middle
    y, x = np.nonzero(flags)
    middle = np.hypot(y + 0.5 - 166, x + 0.5 - 158)
    assert middle.min() < 3
    distance = np.abs((x + 0.5 - 158) * np.sin(0.7) - (y + 0.5 - 166) * np.cos(0.7))
    assert distance.max() < 12


def test_a_very_bright_star_has_a_ghost_away_from_the_axis(monkeypatch):
    shape, place = (700, 800), (350.0, 300.0)
    scene = {"y": [place[0]], "x": [place[1]], "mag": [9.0]}
    monkeypatch.setattr(exposure_module, "draw_scene", lambda *_: scene_of(**scene))
    plain, ghost = (electrons(replace(ONE, ghosts=on), shape=shape) for on in (False, True))
    light, flags = ghost.image - plain.image, ghost.flags
    lit = (flags & FLAG_GHOST) > 0
    assert lit.any()
    assert not (light[~lit] > 0).any()
    # its middle lies further from the optical axis than the star by a hundredth
    axis = (FRAME_SHAPE[0] / 2 - DETECTORS[8].yc, FRAME_SHAPE[1] / 2 - DETECTORS[8].xc)
    y, x = np.nonzero(lit)
    rim = [(p.min() + p.max() + 1) / 2 for p in (y, x)]
    expected = [p + 0.01 * (p - a) for p, a in zip(place, axis, strict=True)]
    assert rim == pytest.approx(expected, abs=2.0)


def test_full_pixels_are_flagged_and_no_pixel_exceeds_the_full_well(given):
    rng = np.random.default_rng(1)
    crowd = {"y": rng.uniform(0, 322, 40), "x": rng.uniform(0, 301, 40), "mag": rng.uniform(13, 18, 40)}
    chip = given(ONE, 9, **crowd)
    top = np.float32((np.float32(9e4) - np.float32(3)) * np.float32(1 / 150))
    assert chip.image.max() <= top
    saturated = (chip.flags & FLAG_SATURATED) > 0
    assert saturated.sum() > 100
    # unflagged pixels were below the full well before noise: none beyond its scatter
    assert (chip.image[saturated] > (9e4 - 5.5 * 300 - 10) / 150).all()
    assert (chip.image[~saturated] == top).sum() <= 2


def test_blends_that_fill_a_pixel_together_are_flagged(given):
    # five stars on one spot, each at a third of what saturates
    band = BAND_TABLE[DETECTORS[9].band]
    share = make_exposure_psf(ONE, 9).peak
    mag = np.full(5, band.zero_point - 2.5 * np.log10(9e4 / 150 / share / 3))
    chip = given(ONE, 9, y=np.full(5, 100.5), x=np.full(5, 200.5), mag=mag)
    assert chip.flags[100, 200] == FLAG_SATURATED
    assert not given(ONE, 9, y=[100.5], x=[200.5], mag=mag[:1]).flags.any()


def test_defects_stay_with_the_detector():
    quiet = replace(ONE, sky=replace(SKY, density=1.0), defects=True)
    one, later = render(quiet), render(replace(quiet, index=8, ra=200.0))
    np.testing.assert_array_equal(one.flags, later.flags)
    assert (one.flags != render(quiet, 9).flags).any()
    assert ((one.flags[:4] & FLAG_BAD) > 0).all()
    assert ((one.flags[-4:] & FLAG_BAD) > 0).all()
    for bit in (FLAG_BAD, FLAG_HOT, FLAG_WARM):
        assert (one.flags & bit).any()
    assert np.median(one.image[one.flags == FLAG_HOT]) > np.median(one.image[one.flags == 0]) + 0.1


def test_spikes_are_seen_when_asked_for(given):
    star = {"y": [150.5], "x": [140.5], "mag": [15.0]}
    plain, spiked = (given(replace(ONE, spikes=share), **star).image for share in (0.0, 0.05))
    arm, diagonal = np.s_[150, 200:260], np.s_[range(180, 220), range(170, 210)]
    assert spiked[arm].mean() > plain[arm].mean() + 0.05
    assert abs(spiked[diagonal].mean() - plain[diagonal].mean()) < 0.05


def test_a_deep_rendering_has_more_light_and_the_same_label():
    paper, deep = (render(replace(ONE, sky=replace(SKY, limit=limit, density=3000.0))) for limit in (STAR_LIMIT, 28.0))
    assert (deep.n_star, deep.n_bright) == (paper.n_star, paper.n_bright)
    assert np.isin(paper.stars.id, deep.stars.id).all()
    assert deep.n_star <= len(paper.stars) < len(deep.stars) < len(deep.scene.stars)
    assert deep.image.mean(dtype=float) > paper.image.mean(dtype=float)
    label = (deep.scene.stars.g < 26.5) & (deep.scene.star_y >= 0) & (deep.scene.star_y < SHAPE[0])
    label &= (deep.scene.star_x >= 0) & (deep.scene.star_x < SHAPE[1])
    assert deep.n_star == label.sum()


@pytest.mark.parametrize("star_count", [0, 300_000])
def test_written_chips_read_back(tmp_path, star_count):
    exposure = plan_survey(SimulationConfig(seed=8, star_counts=(star_count,), detectors=(25,), distortion=True))[0]
    config = with_settings(Config(), {"ingest.frame": (368, 384), "ingest.chunks": (92, 96)})
    files, n_star, n_bright = simulate_to_files(exposure, 25, str(tmp_path), config)
    chip = render(exposure, 25, (368, 384))
    assert (n_star, n_bright) == (chip.n_star, chip.n_bright)
    assert (n_star > 20) == (star_count > 0)
    assert discover([tmp_path]) == ([files], [])
    with read_detector(files, (368, 384)) as found:
        np.testing.assert_array_equal(found.image.read_rows(0, 368), chip.image)
        np.testing.assert_array_equal(found.flag.read_rows(0, 368), chip.flags)
        np.testing.assert_array_equal(found.weight.read_rows(0, 368) == 0, chip.flags != 0)
        x, y = found.wcs.all_world2pix(chip.stars.ra, chip.stars.dec, 1)
        np.testing.assert_allclose((x - 0.5, y - 0.5), (chip.star_x, chip.star_y), atol=1e-4)
    counts = read_truth(files, "y", (368, 384))
    assert (counts.n_star, counts.n_bright, counts.note) == (n_star, n_bright, "")


def test_the_store_holds_the_same_reduction_with_and_without_pixels(tmp_path):
    chips = [(FULL, 8), (replace(FULL, index=4, obs_id="10000005000004"), 24)]
    stores = {}
    for pixels in ("none", "lossless"):
        config = with_settings(
            Config(), {"ingest.frame": (368, 384), "ingest.chunks": (92, 96), "ingest.pixels": pixels}
        )
        path = str(tmp_path / f"{pixels}.zarr")
        in_process.simulate(path, config, chips, keep_mask=pixels != "none")
        stores[pixels] = open_dataset(SurveyStore.read(path)).load()
    none, kept = stores["none"], stores["lossless"]
    assert (kept["status"].values == "done").all()
    assert "image" not in none
    for name in none.variables:
        tolerance = {"pixel_mean": 1e-8, "pixel_std": 1e-8, "block_stats": 2e-4}.get(name)
        if tolerance:  # sums of blocks of other heights are rounded differently
            np.testing.assert_allclose(none[name].values, kept[name].values, rtol=tolerance)
        else:
            np.testing.assert_array_equal(none[name].values, kept[name].values, err_msg=name)
    for row, chip in enumerate(chips):
        image = kept["image"].values[list(kept["obs_id"].values).index(chip[0].obs_id)]
        expected = render(*chip, (368, 384))
        np.testing.assert_array_equal(image, expected.image)
        assert kept["n_star"].values[row] == expected.n_star > 50
        for name in ("n_bright", "n_brighter", "n_star_tile", "n_bright_tile"):
            np.testing.assert_array_equal(kept[name].values[row], getattr(expected, name), err_msg=name)


@pytest.mark.full_size
def test_a_crowded_chip_of_full_size_fits_into_memory():
    exposure = plan_survey(SimulationConfig(seed=6, star_counts=(120_000,), detectors=(13, 24)))[0]
    renderer = Renderer()
    tracemalloc.start()
    chip = renderer.render(exposure, 24)
    peak_memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chip.image.shape == chip.flags.shape == FRAME_SHAPE
    assert chip.n_star == pytest.approx(120_000, rel=0.5)
    assert len(chip.galaxies) > 5000
    # beside the frame and its flags, 0.5 GB
    assert peak_memory < 0.5e9
    for y, x in ((chip.star_y, chip.star_x), (chip.galaxy_y, chip.galaxy_x)):
        assert y.min() >= 0
        assert x.min() >= 0
        assert y.max() < FRAME_SHAPE[0]
        assert x.max() < FRAME_SHAPE[1]
    # they fill the frame
    assert np.histogram2d(chip.star_y, chip.star_x, 8)[0].min() > 100
    assert np.isfinite(chip.image).all()
    assert ((chip.flags[:4] & FLAG_BAD) > 0).all()
    # bright stars stand out from the sky where the truth has them
    rows, columns = chip.star_y.astype(int), chip.star_x.astype(int)
    bright = (chip.stars.mag < 21) & (chip.flags[rows, columns] == 0)
    assert bright.sum() > 100
    light = 10 ** (-0.4 * (chip.stars.mag[bright] - BAND_TABLE[chip.band].zero_point))
    assert (chip.image[rows[bright], columns[bright]] > 0.05 * light).all()
    flagged = np.count_nonzero(chip.flags & ~np.uint16(FLAG_SATURATED | FLAG_GHOST | FLAG_TRAIL))
    assert 8 * 9216 < flagged < 8 * 9216 + 400_000
    assert DetectorModel().full_well / 150 >= chip.image.max()


def test_full_pixels_of_galaxies_are_flagged_too():
    # one galaxy of mag 13 among the faint ones
    exposure = plan_survey(SimulationConfig(region="120,35", seed=4, cosmic_rays=False, defects=False))[0]
    drawn = take_shot(exposure, 8, (256, 256))
    image, flags = np.zeros((256, 256), np.float32), np.zeros((256, 256), np.uint16)
    drawn = replace(drawn, galaxies=np.array([[128.0], [128.0], [2.6e7], [4.0], [2.0], [0.0], [1.0], [0.0]]))
    renderer = Renderer((256, 256))
    renderer.image, renderer.flags = image, flags
    add_galaxies(image, *drawn.galaxies, drawn.psf.mixture)
    assert (image > drawn.room).sum() > 50
    renderer._add_artefacts(drawn)
    full = image >= np.float32(drawn.room)
    assert full.sum() > 50
    np.testing.assert_array_equal((flags & 8) > 0, full)
