"""Wide physics: every law and fault does what it says, and a chip depends on seed, exposure and detector alone."""

from dataclasses import replace

import in_process
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import j1

from csst_dask.config import Config, SimulationConfig, with_settings
from csst_dask.instrument.flags import FLAG_BAD, FLAG_COSMIC_RAY, FLAG_HOT
from csst_dask.instrument.focal_plane import BAND_TABLE, DETECTORS, PIXEL_SCALE
from csst_dask.schema import BRIGHT_LIMIT, FRAME_SHAPE, MAGNITUDES, STAR_LIMIT
from csst_dask.simulation import defects, star_law, wide
from csst_dask.simulation.exposure import Chip, draw_scene
from csst_dask.simulation.psf import encircled_energy, gaussian_fwhm
from csst_dask.simulation.psf_families import FAMILIES, Shape, brightness, family_psf
from csst_dask.simulation.psf_pupil import DIFFRACTION, airy_scale, airy_wing, pupil_image
from csst_dask.simulation.render import new_glow
from csst_dask.simulation.renderer import Renderer
from csst_dask.simulation.shot import save_shots, take_shot
from csst_dask.simulation.survey import plan_survey
from csst_dask.store import SurveyStore
from csst_dask.store.dataset import open_dataset

SHAPE = (640, 768)
NO_ROWS = np.zeros(SHAPE[0], np.float32)
EVEN = {"gain": [1.0] * 16, "offset": [0.0] * 16, "rows": NO_ROWS, "flat": new_glow(SHAPE)}


def plan(**settings):
    return plan_survey(SimulationConfig(physics="wide", region="mixed", seed=2, **settings))


@pytest.fixture(scope="module")
def exposures():
    return plan(exposures=24)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def noise(rng, level=100.0, sigma=5.0):
    return rng.normal(level, sigma, SHAPE).astype(np.float32)


# one seed, one survey


def test_a_chip_is_the_same_in_any_order_and_another_seed_gives_another(exposures):
    renderer = Renderer(SHAPE)
    first = renderer.render(exposures[2], 8)
    image, flags = first.image.copy(), first.flags.copy()
    other = renderer.render(exposures[3], 8).image.copy()
    again = Renderer(SHAPE).render(exposures[2], 8)
    np.testing.assert_array_equal(again.image, image)
    np.testing.assert_array_equal(again.flags, flags)
    assert (image != other).mean() > 0.5
    assert np.isfinite(image).all()


def test_the_store_holds_the_same_measurements_whatever_rows_are_read(exposures, tmp_path):
    frame = {"ingest.frame": (368, 384), "ingest.chunks": (92, 96)}
    chips, stores = [(exposures[k], d) for k, d in ((2, 8), (3, 25))], {}
    for pixels in ("none", "lossless"):
        config = with_settings(Config(), frame | {"ingest.pixels": pixels})
        path = str(tmp_path / f"{pixels}.zarr")
        in_process.simulate(path, config, chips, keep_mask=pixels != "none")
        stores[pixels] = open_dataset(SurveyStore.read(path)).load()
    none, kept = stores["none"], stores["lossless"]
    assert (kept["status"].values == "done").all()
    np.testing.assert_allclose(none["block_stats"].values, kept["block_stats"].values, rtol=2e-4)
    for row, chip in enumerate(chips):
        expected = Renderer((368, 384)).render(*chip)
        np.testing.assert_array_equal(kept["image"].values[row], expected.image)
        for name in ("n_star", "n_bright", "n_brighter", "n_star_tile"):
            np.testing.assert_array_equal(none[name].values[row], getattr(expected, name), err_msg=name)
        assert kept["exptime"].values[row] == chip[0].exptime


def test_a_longer_survey_begins_with_the_shorter_one(exposures):
    assert plan(exposures=5) == exposures[:5]
    assert len({e.wide for e in exposures}) == len(exposures)


def test_nominal_surveys_have_nothing_of_it():
    exposure = plan_survey(SimulationConfig(region="mixed", seed=2))[0]
    assert exposure.wide is None
    assert take_shot(exposure, 8, SHAPE).wide is None


def test_draws_fill_their_ranges():
    laws = [wide.draw_laws(1, k) for k in range(300)]
    drawn = [wide.draw_exposure(1, k) for k in range(300)]
    faults = [wide.draw_faults(1, k, 8) for k in range(300)]
    for values, (low, high) in (
        ([x.width for x in laws], wide.WIDTH), ([x.halo for x in laws], wide.HALO),
        ([x[0] for x in drawn], wide.EXPTIME), ([x[1].sky_factor for x in drawn], wide.SKY),
        ([x[1].read_noise for x in drawn], wide.READ_NOISE), ([x[2].galaxies for x in drawn], wide.GALAXIES),
        ([x[2].galaxy_size for x in drawn], wide.SIZES), ([x.missed for x in laws], (0, 0.1)),
        ([x.masked for x in faults], (0, 0.4)), ([np.ptp(x.offset) for x in faults], (0, 3)),
        ([max(np.abs(np.array(x.gain) - 1)) for x in faults], (0, 0.02)),
        ([s for x in laws for s in x.stars.slopes], star_law.SLOPES), ([x.stars.knee for x in laws], star_law.KNEE),
        ([x.rays.rate for x in laws], wide.RAYS), ([x.rays.diffusion for x in laws], (0, 0.6)),
        ([x.rays.curled for x in laws], (0, 0.5)),
    ):  # fmt: skip
        assert low - 1e-6 <= min(values) < low + 0.15 * (high - low)
        assert high - 0.2 * (high - low) < max(values) <= high + 1e-6
    assert {x.family for x in laws} == set(range(len(FAMILIES)))
    assert 0.05 < np.mean([not x.flagged for x in laws]) < 0.3


# stars


@pytest.mark.parametrize("count", [30.0, 3000.0, 50_000.0])
def test_star_laws_give_the_number_that_is_wanted(count, rng):
    for _ in range(20):
        law = star_law.draw_star_law(rng, count > 1e4)
        mag, number = star_law.star_numbers(law, count)
        assert (number >= 0).all()
        for limit, most in star_law.MOST:
            assert number[mag < limit].sum() <= most * 1.0001
        _, g = star_law.draw_magnitudes(law, number, 20_000, "i", rng)
        seen = (g < STAR_LIMIT).sum()
        found = seen / 20_000 * number.sum()
        if all(number[mag < limit].sum() < 0.99 * most for limit, most in star_law.MOST):
            assert found == pytest.approx(count, rel=0.01 + 5 / np.sqrt(seen))


def test_star_counts_follow_the_slopes_on_either_side_of_the_knee():
    law = star_law.StarLaw((0.1, 0.5), 22.0, (), (13.0, star_law.FAINT_END), (1.0, 0.2))
    mag, number = star_law.star_numbers(law, 1000.0)
    for slope, low, high in ((0.1, 18.0, 21.5), (0.5, 22.5, 27.0)):
        part = (mag > low) & (mag < high)
        assert np.polyfit(mag[part], np.log10(number[part]), 1)[0] == pytest.approx(slope, abs=0.01)
    cut = replace(law, ends=(18.0, 24.0))
    mag, number = star_law.star_numbers(cut, 1000.0)
    assert (number[(mag < 18) | (mag > 24)] == 0).all()
    burst = replace(law, bursts=(star_law.Burst(20.0, 0.2, 0.5),))
    mag, number = star_law.star_numbers(burst, 1000.0)
    assert number[np.abs(mag - 20) < 0.8].sum() / number.sum() == pytest.approx(0.5, abs=0.02)


def test_counts_in_the_truth_are_the_stars_that_were_drawn(exposures):
    for exposure in exposures[2:8]:
        for detector in (8, 25):
            scene = draw_scene(exposure, detector, SHAPE)
            chip = Chip(exposure, detector, np.zeros(SHAPE), np.zeros(SHAPE, np.uint16), scene, 0.0, 0.0)
            y, x, stars = scene.star_y, scene.star_x, scene.stars
            on = (y >= 0) & (y < SHAPE[0]) & (x >= 0) & (x < SHAPE[1])
            assert chip.n_star == (on & (stars.g < STAR_LIMIT)).sum()
            assert chip.n_bright == (on & (stars.mag < BRIGHT_LIMIT)).sum()
            assert len(chip.stars) == on.sum() == len(np.unique(chip.stars.id))
            assert ((stars.g < STAR_LIMIT) | (stars.mag < scene.depth)).all()
            known = [n for m, n in zip(MAGNITUDES, chip.n_brighter, strict=True) if m <= scene.depth]
            assert known == [(chip.stars.mag < m).sum() for m in MAGNITUDES[: len(known)]]
            wcs = exposure.wcs(detector)
            there = wcs.all_world2pix(stars.ra, stars.dec, 1) if len(y) else (x + 0.5, y + 0.5)
            np.testing.assert_allclose(there, (x + 0.5, y + 0.5), atol=1e-4)


def test_classes_are_sought_as_by_other_physics(exposures):
    wanted = [e.sky.density * e.sky.footprint for e in exposures]
    assert min(wanted) == 0
    assert max(wanted) > 1e5
    even = [e for e in exposures if not e.wide.clumped and e.sky.footprint == 1 and e.sky.density > 1e3]
    found = [draw_scene(e, 8, FRAME_SHAPE).stars.g for e in even[:3]]
    for e, g in zip(even, found, strict=False):
        assert (g < STAR_LIMIT).sum() <= 1.15 * e.sky.density


# point spread functions


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fwhm", [1.3, 2.0, 3.4])
def test_the_psf_is_as_wide_as_it_says_and_holds_all_light(family, fwhm):
    shape = Shape(family, fwhm, halo=0.03)
    psf = family_psf(shape)
    core = replace(shape, halo=0.0, wide=(0.0, 2.0))
    if family not in ("telescope", "pupil"):  # whose wider Gaussian lifts the wings a little
        half = brightness(core, np.array([0.0, (fwhm / 2) ** 2]))
        assert half[1] / half[0] == pytest.approx(0.5, rel=1e-3)
    # pixels at all phases interleave to the profile, blurred by the pixel
    middle = psf.stamps.shape[2] // 2
    profile = psf.stamps[:, 8, :, middle].T[:, ::-1].ravel()
    above = np.count_nonzero(profile > profile.max() / 2) / 16
    assert np.hypot(0.85 * fwhm, 0.5) < above < np.hypot(1.35 * fwhm, 0.95)
    assert psf.core == fwhm
    radius = np.arange(len(psf.wings)) / 2
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) <= 20
    beyond = (np.diff(np.pi * radius**2) * psf.wings[:-1])[radius[:-1] >= 20].sum()
    assert psf.stamps[8, 8][disc].sum() + beyond == pytest.approx(1.0, abs=0.01)
    assert encircled_energy(psf, 100.0) == pytest.approx(1.0, abs=0.01)
    assert encircled_energy(psf, 6.0) == pytest.approx(1 - 0.03 * 0.6, abs=0.07 if family != "pupil" else 0.15)


@pytest.mark.parametrize("fwhm", [1.3, 2.4, 3.4])
def test_a_pupil_without_aberrations_gives_the_airy_pattern(fwhm):
    scale = airy_scale(fwhm)
    cells, per = 1281, 16
    image = pupil_image(fwhm, (0.0,) * 8, cells, per)
    y, x = (np.mgrid[:cells, :cells] - cells // 2) / per
    square = x * x + y * y
    airy = (
        np.pi
        / 4
        / scale**2
        * (2 * j1(np.pi * np.sqrt(square) / scale + 1e-9) / (np.pi * np.sqrt(square) / scale + 1e-9)) ** 2
    )
    sigma = fwhm * np.sqrt(1 - DIFFRACTION**2) / 2.354820045
    np.testing.assert_allclose(image, gaussian_filter(airy, sigma * per, truncate=5), atol=2e-3 * airy.max())
    half = image[cells // 2] > image.max() / 2
    assert half.sum() / per == pytest.approx(fwhm, rel=0.06)
    ring = (square > 20**2) & (square < 38**2)
    assert image[ring].mean() == pytest.approx(airy_wing(np.sqrt(square[ring]), fwhm).mean(), rel=0.1)


def test_aberrations_lower_the_peak_as_marechal_says():
    """The peak falls by exp(-(2 pi rms)^2) where aberrations are small (Strehl ratio)."""
    sharp, blurred = (pupil_image(2.0, a, 161, 16) for a in ((0.0,) * 8, (0.03, 0.0, 0.02, 0.02, 0.0, 0.0, 0.02, 0.03)))
    strehl = np.exp(-((2 * np.pi) ** 2) * (2 * 0.03**2 + 3 * 0.02**2))
    assert blurred.max() / sharp.max() == pytest.approx(strehl, abs=0.03)


def test_ellipticity_draws_the_psf_out_along_its_axis():
    stamps = family_psf(Shape("gaussians", 2.5, halo=0.005, ellipticity=(0.1, 0.0))).stamps[8, 8].astype(float)
    y, x = np.mgrid[-3:4, -3:4]
    core = stamps[17:24, 17:24]
    assert (core * x * x).sum() > 1.1 * (core * y * y).sum()


def test_a_psf_that_changes_is_wider_on_one_side_of_the_frame(exposures):
    laws = replace(exposures[0].wide, width=1.0, change=(0.15, 0.0, 0.0))
    shapes = wide.psf_shapes(laws, "r")
    nominal = gaussian_fwhm(BAND_TABLE["r"].wavelength, wide.JITTER) / PIXEL_SCALE
    np.testing.assert_allclose([s.fwhm / nominal for s in shapes], [0.85, 1.0, 1.0, 1.15])
    assert len(wide.psf_shapes(replace(laws, change=(0.0, 0.0, 0.0)), "r")) == 1
    from csst_dask.simulation.wide_render import paint_wide_stars

    shot = take_shot(replace(exposures[0], wide=laws), 8, SHAPE)
    for y, widest in ((3.5, False), (SHAPE[0] - 3.5, True)):
        places = np.tile(y, 400), np.repeat(3.5 if not widest else SHAPE[1] - 3.5, 400)
        frame = np.zeros(SHAPE, np.float32)
        paint_wide_stars(frame, replace(shot, y=places[0], x=places[1], flux=np.full(400, 1000.0)))
        expected = shot.wide.psfs[3 if widest else 0].stamps[8, 8].max() * 4e5
        assert frame.max() == pytest.approx(expected, rel=0.02)


# faults


def test_amplifiers_have_their_own_level_and_gain(rng):
    gain, offset = rng.uniform(0.98, 1.02, 16), rng.uniform(-1.5, 1.5, 16)
    image = noise(rng)
    defects.imprint(image, **(EVEN | {"gain": gain, "offset": offset}))
    blocks = image.reshape(2, SHAPE[0] // 2, 8, SHAPE[1] // 8)
    np.testing.assert_allclose(np.median(blocks, axis=(1, 3)).ravel(), 100 * gain + offset, atol=0.15)


def test_rows_flat_field_and_rounding_leave_what_they_say(rng):
    rows = rng.standard_normal(SHAPE[0]).astype(np.float32)
    image = noise(rng)
    defects.imprint(image, **(EVEN | {"rows": rows}))
    np.testing.assert_allclose(image.mean(1) - 100, rows, atol=1.0)
    assert np.corrcoef(image.mean(1), rows)[0, 1] > 0.97
    flat, image = np.full(SHAPE, 1000.0, np.float32), np.full(SHAPE, 1000.0, np.float32)
    defects.imprint(flat, **(EVEN | {"flat": EVEN["flat"] + np.float32(0.02)}))
    np.testing.assert_allclose(flat, 1020.0, rtol=1e-5)
    defects.imprint(image, **EVEN, pixel=0.01, seed=3)
    assert image.std() == pytest.approx(10.0, rel=0.02)
    assert image.mean() == pytest.approx(1000.0, abs=0.1)
    image = noise(rng)
    before = image.copy()
    defects.imprint(image, **EVEN, step=2.5)
    np.testing.assert_allclose(image / 2.5, np.rint(image / 2.5), atol=1e-4)
    assert np.abs(image - before).max() <= 1.2501


def test_the_sky_slopes_and_bowls_about_its_level(rng):
    sky = defects.uneven_sky(SHAPE, (0.2, -0.3), 0.0, 0.0, 0.0, rng)
    y, x = SHAPE[0] // 16, SHAPE[1] // 16
    assert sky[y, 0] - sky[0, 0] == pytest.approx(0.2, abs=1e-6)
    assert sky[0, x] - sky[0, 0] == pytest.approx(-0.3, abs=1e-6)
    assert abs(sky[: y + 1, : x + 1].mean()) < 1e-6
    bowl = defects.uneven_sky(SHAPE, (0.0, 0.0), 0.4, 0.0, 0.0, rng)[: y + 1, : x + 1]
    assert bowl[0, 0] - bowl[y // 2, x // 2] == pytest.approx(0.4, abs=1e-6)
    assert abs(bowl.mean()) < 0.02
    cirrus = defects.uneven_sky(SHAPE, (0.0, 0.0), 0.0, 0.1, 0.5, rng)
    assert cirrus.min() >= 0
    assert 0.02 < cirrus.std() < 0.4


def test_trails_keep_the_charge_and_point_away_from_the_read_out():
    frame = np.zeros(SHAPE, np.float32)
    frame[40, 100] = frame[SHAPE[0] - 41, 200] = 1e4
    defects.trail_charge(frame, 0.02, 5.0)
    assert frame.sum() == pytest.approx(2e4, rel=1e-5)
    for column, tail, other in ((100, np.s_[41:80], np.s_[:40]), (200, np.s_[-80:-41], np.s_[-40:])):
        assert frame[tail, column].sum() == pytest.approx(200, rel=0.01)
        assert (frame[other, column] == 0).all()
    assert frame[42, 100] / frame[41, 100] == pytest.approx(np.exp(-0.2), rel=0.02)


def test_resampling_correlates_the_noise_and_keeps_the_level(rng):
    image = noise(rng)
    defects.resample(image, (0.3, 0.5))
    inner = image[:-1, :-1] - 100
    assert inner.mean() == pytest.approx(0, abs=0.05)
    assert inner.std() == pytest.approx(5 * np.sqrt(0.5 * (0.7**2 + 0.3**2)), rel=0.02)
    assert np.corrcoef(inner[:, 1:].ravel(), inner[:, :-1].ravel())[0, 1] == pytest.approx(0.5, abs=0.02)
    assert np.corrcoef(inner[1:].ravel(), inner[:-1].ravel())[0, 1] == pytest.approx(0.21 / 0.58, abs=0.02)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.1])
def test_a_share_of_the_cosmic_rays_and_hot_pixels_is_missed(share, rng):
    flags = np.zeros((2000, 2000), np.uint16)
    flags[rng.integers(0, 2000, 20_000), rng.integers(0, 2000, 20_000)] = FLAG_COSMIC_RAY
    flags[rng.integers(0, 2000, 20_000), rng.integers(0, 2000, 20_000)] = FLAG_HOT | FLAG_BAD
    before = flags.copy()
    defects.miss_flags(flags, share, 7)
    bits = FLAG_COSMIC_RAY | FLAG_HOT
    assert 1 - (flags & bits > 0).sum() / (before & bits > 0).sum() == pytest.approx(share, abs=0.01)
    np.testing.assert_array_equal(flags & FLAG_BAD, before & FLAG_BAD)


def test_cores_of_stars_are_flagged_where_they_lie():
    flags = np.zeros(SHAPE, np.uint16)
    defects.flag_cores(flags, np.array([0.2, 50.7]), np.array([0.2, 60.3]))
    assert (flags == FLAG_COSMIC_RAY).sum() == 4 + 9
    assert flags[50, 60] == FLAG_COSMIC_RAY


@pytest.mark.parametrize("share", [0.0, 0.01, 0.15, 0.4])
def test_masked_shapes_cover_the_share_that_is_asked_for(share):
    for seed in range(5):
        flags = np.zeros(SHAPE, np.uint16)
        defects.mask_shapes(flags, share, np.random.default_rng(seed))
        assert (flags & FLAG_BAD > 0).mean() == pytest.approx(share, abs=0.02)


def test_frames_without_flags_have_none_and_the_others_do(exposures):
    renderer = Renderer(SHAPE)
    laws = exposures[2].wide
    bare = renderer.render(replace(exposures[2], wide=replace(laws, flagged=False)), 8)
    assert not bare.flags.any()
    full = renderer.render(replace(exposures[2], wide=replace(laws, flagged=True)), 8)
    assert full.flags.any()


def test_the_noise_of_a_wide_chip_is_that_of_its_sky_and_electronics(exposures):
    still = {"resampled": (0.0, 0.0), "step": 0.0, "row_noise": 0.0, "flagged": True, "transfer": (0.0, 5.0)}
    laws, sky = replace(exposures[0].wide, **still), replace(exposures[0].sky, footprint=0.0, galaxies=0.0)
    exposure = replace(
        exposures[0], wide=laws, sky=sky, cosmic_rays=False, defects=False, trails=(), ghosts=False
    )  # fmt: skip
    chip = Renderer(SHAPE).render(exposure, 8)
    band = BAND_TABLE[DETECTORS[8].band]
    assert chip.sky == pytest.approx(band.sky * exposure.optics.sky_factor)
    local = np.diff(chip.image, axis=1) * exposure.exptime / np.sqrt(2)
    variance = (chip.sky + 0.02) * exposure.exptime + exposure.optics.read_noise**2
    assert 1.4826 * np.median(np.abs(local)) == pytest.approx(np.sqrt(variance), rel=0.2)


def test_what_cannot_be_done_is_refused(exposures, tmp_path):
    shot = take_shot(exposures[1], 8, SHAPE)
    with pytest.raises(ValueError, match="not kept in a file"):
        save_shots(tmp_path / "shots.npz", [shot])
    from csst_dask.simulation.render_torch import TorchRenderer

    with pytest.raises(ValueError, match="physics: wide"):
        TorchRenderer(SHAPE).prepare(shot)
