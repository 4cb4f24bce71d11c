"""From a seed to a survey: reproducible, with the counts that were asked for, and files that read back."""

import dataclasses

import numpy as np
import pytest
from astropy.io import fits

from csst_dask.config import SimulationConfig
from csst_dask.errors import ConfigError
from csst_dask.instrument import IMAGING_DETECTORS, detector_wcs, frame_center, frame_corners
from csst_dask.io import read_detector
from csst_dask.io.truth import read_truth
from csst_dask.schema import BRIGHT_LIMIT, CLASS_EDGES, FRAME_SHAPE, STAR_LIMIT, density_class
from csst_dask.simulation import exposure as exposure_module
from csst_dask.simulation.detector import FLAG_BAD, FLAG_SATURATED
from csst_dask.simulation.exposure import DEMO, DEMO_COUNTS, Renderer, _draw_stars, plan_survey
from csst_dask.simulation.galaxy import REGIONS, draw_count
from csst_dask.simulation.product import chip_info, chip_key, expected_files, write_chip

SHAPE = (577, 576)
AREA = SHAPE[0] * SHAPE[1] / (FRAME_SHAPE[0] * FRAME_SHAPE[1])


def plan(**settings):
    return plan_survey(SimulationConfig(**settings))


@pytest.fixture(scope="module")
def crowded():
    """A small chip with about 400 stars, as pixels and truth."""
    exposure = plan(seed=5, star_counts=(100_000,))[0]
    return Renderer(SHAPE).render(exposure, 8)


def copy(chip):
    return chip.image.copy(), chip.flags.copy(), chip.mag.copy()


def assert_same(a, b):
    for first, second in zip(a, b, strict=True):
        np.testing.assert_array_equal(first, second)


def test_one_seed_is_one_survey():
    assert plan(seed=4, exposures=8) == plan(seed=4, exposures=8)
    assert all(a.law != b.law for a, b in zip(plan(seed=4, exposures=8), plan(seed=5, exposures=8), strict=True))


@pytest.mark.parametrize("settings", [{}, {"detectors_per_exposure": 3}, {"region": "fornax"}, {"region": DEMO}])
def test_a_longer_survey_begins_with_the_shorter(settings):
    assert plan(seed=4, exposures=12, **settings)[:5] == plan(seed=4, exposures=5, **settings)


def test_exposures_are_distinct():
    exposures = plan(exposures=30)
    for name in ("obs_id", "field", "times", "mjd", "ra"):
        assert len({getattr(exposure, name) for exposure in exposures}) == 30
    keys = {chip_key(e, d) for e in exposures for d in e.detectors}
    assert len(keys) == 30 * len(IMAGING_DETECTORS)


def test_a_chip_is_the_same_whatever_was_rendered_before_and_in_whichever_buffer():
    first, second = plan(seed=1, star_counts=(50_000, 1000), cosmic_rays=True, exposures=2)
    renderer = Renderer(SHAPE)
    alone = copy(renderer.render(second, 9))
    copy(renderer.render(first, 9))
    copy(renderer.render(second, 8))
    assert_same(copy(renderer.render(second, 9)), alone)
    assert_same(copy(Renderer(SHAPE).render(second, 9)), alone)


def test_chips_differ_between_detectors_exposures_and_seeds():
    first, second = plan(seed=1, exposures=2, star_counts=(100, 100))
    other = plan(seed=2, star_counts=(100,))[0]
    images = [Renderer(SHAPE).render(*chip).image for chip in ((first, 8), (first, 9), (second, 8), (other, 8))]
    for i, image in enumerate(images):
        for another in images[:i]:
            assert (image == another).mean() < 0.01


def test_the_list_of_detectors_does_not_change_a_chip():
    all_of_them, one = plan(seed=7)[0], plan(seed=7, detectors=(9,))[0]
    assert one.detectors == (9,)
    assert dataclasses.replace(one, detectors=all_of_them.detectors) == all_of_them
    assert plan(detectors=(9, 8, 9))[0].detectors == (9, 8)


def test_mixed_goes_through_the_density_classes_in_turn():
    for exposure in plan(seed=11, exposures=300):
        expected = exposure.index % 6
        count = exposure.law.n_star
        assert density_class(int(count)) == expected
        if expected == 0:
            continue
        rng = np.random.default_rng([exposure.index, 1])
        y, x, mag = _draw_stars(exposure.law, "r", SHAPE, rng)
        grown = count * (SHAPE[0] + 60) * (SHAPE[1] + 60) / (FRAME_SHAPE[0] * FRAME_SHAPE[1])
        assert abs(mag.size - grown) <= 5 * np.sqrt(grown) + 1
        on = ((y >= 0) & (y < SHAPE[0]) & (x >= 0) & (x < SHAPE[1])).sum()
        assert abs(on - count * AREA) <= 5 * np.sqrt(count * AREA) + 2


def test_mixed_fills_each_class_evenly_in_the_logarithm():
    counts = np.array([draw_count("mixed", 2, np.random.default_rng(k)) for k in range(2000)])
    share = np.log10(counts / CLASS_EDGES[1])
    assert share.min() >= 0
    assert share.max() <= 1
    assert share.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * 2000))


@pytest.mark.parametrize("name", REGIONS)
def test_regions_keep_to_their_box_and_their_counts(name):
    # Lai et al. (2026), Table 1
    table = {
        "galactic_l90_b20": (0, 3e3),
        "galactic_l90_b30": (0, 1e3),
        "galactic_l90_b50": (0, 6e2),
        "simulation_default": (1e2, 8e2),
        "fornax": (1e2, 4e3),
        "sculptor": (1e2, 1e3),
        "galactic_center": (1e4, 2e5),
    }
    exposures, box = plan(region=name, exposures=60), REGIONS[name]
    counts = np.array([exposure.law.n_star for exposure in exposures])
    assert table[name][0] <= counts.min() < np.sqrt(max(table[name][0], 1) * table[name][1])
    assert table[name][1] >= counts.max() > np.sqrt(max(table[name][0], 1) * table[name][1])
    assert all(box.ra[0] <= e.ra <= box.ra[1] and box.dec[0] <= e.dec <= box.dec[1] for e in exposures)


def test_the_demo_runs_from_empty_to_crowded_in_touching_fields():
    exposures = plan(region=DEMO, exposures=6)
    assert tuple(e.law.n_star for e in exposures) == DEMO_COUNTS
    assert sorted(density_class([int(n) for n in DEMO_COUNTS])) == list(range(6))
    steps = -np.diff([e.ra for e in exposures]) * np.cos(np.deg2rad(exposures[0].dec))
    # no wider than a detector
    assert (steps > 0).all()
    assert (steps <= 9216 * 0.074 / 3600).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region": "atlantis"}, "atlantis"),
        ({"detectors": (1,)}, r"\[1\]"),
        ({"detectors": (8, 31)}, r"\[31\]"),
        ({"exposures": 3, "star_counts": (1, 2)}, "2 counts for 3 exposures"),
    ],
)
def test_impossible_surveys_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        plan(**settings)


def test_truth_lies_on_the_frame_and_stars_where_truth_says(crowded):
    assert crowded.n_star == pytest.approx(1e5 * AREA, abs=5 * np.sqrt(1e5 * AREA))
    assert crowded.n_bright == (crowded.mag < BRIGHT_LIMIT).sum()
    assert (crowded.x >= 0).all()
    assert (crowded.x < SHAPE[1]).all()
    assert (crowded.y >= 0).all()
    assert (crowded.y < SHAPE[0]).all()
    centre = crowded.image[crowded.y.astype(int), crowded.x.astype(int)]
    good = crowded.flags[crowded.y.astype(int), crowded.x.astype(int)] == 0
    bright = good & (crowded.mag < 20)
    assert bright.sum() > 10
    peak = 0.08 * 10 ** (-0.4 * (crowded.mag[bright] - 26.08))
    assert (centre[bright] > peak).all()


def test_an_empty_sky_is_sky_and_noise():
    exposure = plan(seed=3, star_counts=(0,), defects=False)[0]
    chip = Renderer(SHAPE).render(exposure, 8)
    assert (chip.n_star, chip.n_bright, chip.flags.any()) == (0, 0, False)
    sigma = np.sqrt((chip.sky + 0.02) * 150 + 25) / 150
    n = chip.image.size
    assert chip.image.mean(dtype=np.float64) == pytest.approx(chip.sky, abs=4 * sigma / np.sqrt(n) + 1e-4 * chip.sky)
    flat = chip.image - chip.image.mean(1, keepdims=True)
    assert flat.std(dtype=np.float64) == pytest.approx(sigma, rel=0.01)


def test_full_pixels_are_flagged_and_no_pixel_exceeds_the_full_well():
    exposure = plan(seed=9, star_counts=(2_000_000,), defects=False)[0]
    chip = Renderer(SHAPE).render(exposure, 9)
    top = np.float32((np.float32(9e4) - np.float32(3)) * np.float32(1 / 150))
    assert chip.image.max() <= top
    saturated = (chip.flags & FLAG_SATURATED) > 0
    assert saturated.any()
    # unflagged pixels were below the full well before noise: none beyond its scatter
    assert (chip.image[saturated] > (9e4 - 5.5 * 300 - 10) / 150).all()
    assert (chip.image[~saturated] == top).sum() <= 2


def test_blends_that_fill_a_pixel_together_are_flagged(monkeypatch):
    # five stars on one spot, each at a third of what saturates
    mag = np.full(5, 25.81 - 2.5 * np.log10(9e4 / 150 / 0.17 / 3))
    monkeypatch.setattr(exposure_module, "_draw_stars", lambda *_: (np.full(5, 100.5), np.full(5, 200.5), mag))
    chip = Renderer(SHAPE).render(plan(defects=False)[0], 9)
    assert chip.flags[100, 200] == FLAG_SATURATED
    monkeypatch.setattr(exposure_module, "_draw_stars", lambda *_: (np.array([100.5]), np.array([200.5]), mag[:1]))
    assert not Renderer(SHAPE).render(plan(defects=False)[0], 9).flags.any()


def test_magnitudes_end_at_the_catalogue_limit_in_g():
    exposure = plan(seed=2, star_counts=(100_000,))[0]
    y, x, mag = _draw_stars(exposure.law, "g", (3000, 3000), np.random.default_rng(0))
    assert mag.max() <= STAR_LIMIT
    assert mag.min() >= 13
    assert np.median(mag) > 20
    for axis in (y, x):
        assert axis.mean() == pytest.approx(1500, abs=4 * 3060 / np.sqrt(12 * axis.size))


@pytest.mark.parametrize("count", [0, 100_000])
def test_written_chips_read_back(tmp_path, count):
    exposure = plan(seed=8, star_counts=(count,), cosmic_rays=True)[0]
    chip = Renderer(SHAPE).render(exposure, 25)
    files = write_chip(chip, tmp_path)
    assert files == expected_files(tmp_path, exposure, 25)
    assert sorted(tmp_path.rglob("*.part")) == []
    wcs = detector_wcs(25, exposure.ra, exposure.dec, exposure.theta)
    with read_detector(files, SHAPE) as found:
        np.testing.assert_array_equal(found.image.read_rows(0, SHAPE[0]), chip.image)
        np.testing.assert_array_equal(found.flag.read_rows(0, SHAPE[0]), chip.flags)
        weight = found.weight.read_rows(0, SHAPE[0])
        np.testing.assert_array_equal(weight == 0, chip.flags != 0)
        info, notes = found.info(), found.notes
        # the written astrometry puts pixels where the pointing does
        grid = np.array([[1.0, 1.0], [576, 1], [300.5, 577]])
        np.testing.assert_allclose(found.wcs.all_pix2world(grid, 1), wcs.all_pix2world(grid, 1), atol=1e-10)
    assert notes == []
    promised = chip_info(chip)
    for name in ("band", "field", "exptime"):
        assert getattr(info, name) == getattr(promised, name)
    assert info.mjd == pytest.approx(exposure.mjd, abs=1e-8)
    np.testing.assert_allclose((info.ra, info.dec), frame_center(wcs, SHAPE), atol=1e-9)
    np.testing.assert_allclose((info.corner_ra, info.corner_dec), frame_corners(wcs, SHAPE), atol=1e-9)
    np.testing.assert_allclose((promised.corner_ra, promised.corner_dec), (info.corner_ra, info.corner_dec), atol=1e-9)
    counts = read_truth(files.truth, files.key, chip.band, SHAPE)
    assert (counts.n_star, counts.n_bright, counts.note) == (chip.n_star, chip.n_bright, "")
    assert (promised.n_star, promised.n_bright) == (chip.n_star, chip.n_bright)


def test_stars_within_rounding_of_the_edge_and_the_limit_keep_their_side(crowded, tmp_path):
    edge = np.array([0.0, 1e-7, SHAPE[1] - 1e-7, SHAPE[1] - 3e-5])
    chip = dataclasses.replace(
        crowded,
        x=edge,
        y=edge,
        mag=np.array([BRIGHT_LIMIT - 1e-9, BRIGHT_LIMIT, BRIGHT_LIMIT + 1e-9, np.nextafter(BRIGHT_LIMIT, 0)]),
        exposure=dataclasses.replace(crowded.exposure, obs_id="10199900001"),
    )
    files = write_chip(chip, tmp_path)
    counts = read_truth(files.truth, files.key, chip.band, SHAPE)
    assert counts.n_star == chip.n_star == 4
    assert counts.n_bright == chip.n_bright == 2


def test_the_catalogue_gives_positions_on_the_sky(crowded, tmp_path):
    files = write_chip(crowded, tmp_path)
    with open(files.truth) as file:
        names = file.readline().lstrip("# ").split()
    table = np.genfromtxt(files.truth, names=names, dtype=None, encoding="ascii")
    header = fits.getheader(files.image, 1)
    assert (header["CCDCHIP"], header["FILTER"], header["BUNIT"]) == (8, crowded.band, "e-/s")
    exposure = crowded.exposure
    sky = detector_wcs(8, exposure.ra, exposure.dec, exposure.theta).all_pix2world(table["xImage"], table["yImage"], 1)
    pixel = 0.074 / 3600
    np.testing.assert_allclose(table["ra"], sky[0], atol=0.01 * pixel / np.cos(np.deg2rad(exposure.dec)))
    np.testing.assert_allclose(table["dec"], sky[1], atol=0.01 * pixel)
    np.testing.assert_allclose(table["xImage"], crowded.x + 0.5, atol=1.01e-4)
    np.testing.assert_allclose(table["mag"], crowded.mag, atol=1.01e-5)


@pytest.mark.full_size
def test_a_chip_of_full_size():
    chip = Renderer().render(plan(seed=6, star_counts=(30_000,), detectors=(9,))[0], 9)
    assert chip.image.shape == chip.flags.shape == FRAME_SHAPE
    assert chip.n_star == pytest.approx(30_000, abs=5 * np.sqrt(30_000))
    corner = chip.image[-200:, -200:]
    assert np.isfinite(corner).all()
    assert np.median(chip.image[::97, ::89]) == pytest.approx(chip.sky, rel=0.1)
    assert ((chip.flags[:4] & FLAG_BAD) > 0).all()
    # the defects of a whole detector: 4000 pixels, 6 partial columns, 8 rows
    assert 4000 + 8 * 9216 < np.count_nonzero(chip.flags) < 4000 + 8 * 9216 + 6 * 9232 + 20_000
