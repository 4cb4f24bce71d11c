"""Stars counted without networks: right on simulated chips, and blind to what is no star."""

from dataclasses import replace

import numpy as np
import pytest

import csst_dask as cd
from csst_dask.config import MaskConfig, SimulationConfig
from csst_dask.instrument import mask_table
from csst_dask.schema import BRIGHT_LIMIT, MAGNITUDES, Mask
from csst_dask.simulation.renderer import Renderer
from csst_dask.simulation.survey import plan_survey

SHAPE = (1846, 1843)
BRIGHT = MAGNITUDES.index(BRIGHT_LIMIT)


@pytest.fixture(scope="module")
def chips():
    """Chips of a part of a detector, with their masks, by stars on a whole detector."""
    renderer, found = Renderer(SHAPE), {}
    counts = (100, 3_000, 30_000)
    plan = plan_survey(SimulationConfig(seed=5, exposures=3, region="demo", star_counts=counts, detectors=(8,)))
    for stars, exposure in zip(counts, plan, strict=True):
        chip = renderer.render(exposure, 8)
        found[stars] = replace(chip, image=chip.image.copy()), mask_table(MaskConfig().flag_bits)[chip.flags]
    return found


def measure(image, mask, **options):
    return cd.measure_image(image, mask, invalid=MaskConfig().invalid_bits, **options)


@pytest.mark.parametrize("stars", [100, 3_000, 30_000])
def test_counts_are_right(chips, stars):
    chip, mask = chips[stars]
    found = cd.direct_counts(measure(chip.image, mask), "g")
    assert abs(found.counts[BRIGHT] - chip.n_bright) < 3 * found.error[BRIGHT]
    assert found.error[BRIGHT] < 3 + 0.15 * chip.n_bright
    seen = np.isfinite(found.counts)
    within = np.abs(found.counts - chip.n_brighter)[seen] < 3 * found.error[seen]
    assert within.sum() >= seen.sum() - 1
    assert (np.diff(found.counts[seen]) >= 0).all()
    assert (np.isfinite(found.error) == seen).all()


def test_tiles_add_up(chips):
    chip, mask = chips[30_000]
    found = cd.direct_counts(measure(chip.image, mask), "g")
    assert found.tile.sum() == pytest.approx(found.counts[BRIGHT])
    assert (found.tile >= 0).all()


def test_units_do_not_matter(chips):
    chip, mask = chips[30_000]
    one = cd.direct_counts(measure(chip.image, mask), "g", zero_point=25.8)
    other = cd.direct_counts(measure(chip.image * np.float32(10**0.1), mask, zero_point=26.05), "g")
    np.testing.assert_allclose(other.counts, one.counts, rtol=2e-3)
    np.testing.assert_allclose(other.tile, one.tile, rtol=2e-3, atol=0.05)


def test_what_is_masked_is_made_up_for(chips):
    chip, mask = chips[30_000]
    whole = cd.direct_counts(measure(chip.image, mask), "g")
    mask = mask.copy()
    mask[300:1200, 100:1500] |= np.uint8(Mask.BAD)
    found = cd.direct_counts(measure(chip.image, mask), "g")
    assert found.error[BRIGHT] > whole.error[BRIGHT]
    assert abs(found.counts[BRIGHT] - whole.counts[BRIGHT]) < 3 * found.error[BRIGHT]


def test_hot_pixels_and_cosmic_rays_without_flags_are_no_stars(chips):
    chip, mask = chips[3_000]
    clean = cd.direct_counts(measure(chip.image, mask), "g")
    rng = np.random.default_rng(1)
    image = chip.image.copy()
    for _ in range(2000):
        y, x = rng.integers(2, SHAPE[0] - 2), rng.integers(2, SHAPE[1] - 6)
        image[y, x : x + rng.integers(1, 4)] += rng.uniform(1, 50)
    found = cd.direct_counts(measure(image, mask), "g")
    assert found.counts[BRIGHT] < clean.counts[BRIGHT] + 0.02 * 2000


def test_a_saturated_star_counts_once_at_every_magnitude(chips):
    chip, mask = chips[3_000]
    before = cd.direct_counts(measure(chip.image, mask), "g")
    mask = mask.copy()
    empty = np.argwhere(mask[20:-20, 20:-20] == 0)[5000] + 20
    mask[empty[0] : empty[0] + 4, empty[1] : empty[1] + 5] |= np.uint8(Mask.SATURATED)
    after = cd.direct_counts(measure(chip.image, mask), "g")
    seen = np.isfinite(before.counts)
    np.testing.assert_allclose((after.counts - before.counts)[seen], 1, atol=1.3)
    assert after.counts[0] > before.counts[0]


def test_a_header_may_know_better_than_the_band(chips):
    chip, mask = chips[30_000]
    measured = measure(chip.image, mask)
    fainter = cd.direct_counts(replace(measured, zero_point=27.0), "g").counts
    assert fainter[BRIGHT] < 0.85 * cd.direct_counts(measured, "g").counts[BRIGHT]


def test_a_frame_without_valid_pixels_has_no_counts():
    found = cd.direct_counts(cd.measure_image(np.full((200, 200), np.nan, np.float32)), "g")
    assert np.isnan(found.counts).all()
    assert np.isnan(found.tile).all()


def test_an_unknown_band_is_refused(chips):
    chip, mask = chips[100]
    with pytest.raises(cd.ConfigError, match=r"unknown band 'V'; expected one of NUV"):
        cd.direct_counts(measure(chip.image, mask), "V")
