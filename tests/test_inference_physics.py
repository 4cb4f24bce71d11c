"""What speaks against a chip without any learning, and nothing that is only another sky."""

from dataclasses import replace

import numpy as np
import pytest
from test_preprocess_counted import field

import csst_dask as cd
from csst_dask.config import RoutingConfig
from csst_dask.inference.physics import PHYSICS, STEP, amplifier_step, expected_noise, physics_reasons
from csst_dask.inference.routing import AGAINST, route_chips
from csst_dask.instrument.cells import AMPLIFIERS
from csst_dask.preprocess.direct import direct_counts
from csst_dask.schema import CROWDED, REVIEW_REASONS, ROUTE_CODES, ROUTE_FLAGS

EXPTIME = 150.0
SKY = 0.2
NOISE = expected_noise(SKY, EXPTIME)


@pytest.fixture(scope="module")
def measured():
    return cd.measure_image(field(400))


def reasons(measured, exptime=EXPTIME, log_bright=None):
    direct = direct_counts(measured, "g")
    if log_bright is None:
        log_bright = np.log10(1 + direct.counts[6])
    return {
        name
        for name, holds in zip(PHYSICS, physics_reasons(measured, "g", exptime, direct, log_bright), strict=True)
        if holds
    }


def as_seen(measured, sky=SKY, noise=NOISE, **more):
    """The same chip under another sky."""
    cells = np.ones_like(measured.sky)
    return replace(measured, sky=(sky * cells).astype("f4"), noise=(noise * cells).astype("f4"), **more)


@pytest.mark.parametrize("sky", [0.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("exptime", [30.0, 150.0, 300.0])
@pytest.mark.parametrize("correlated", [0.5, 1.0, 1.4])
def test_any_sky_and_exposure_is_as_good_as_another(measured, sky, exptime, correlated):
    chip = as_seen(measured, sky, correlated * expected_noise(sky, exptime))
    assert "noise" not in reasons(chip, exptime)


@pytest.mark.parametrize("unit", [150.0, 20.0, 1 / 20, 1 / 150])
def test_a_wrong_unit_shows_in_the_noise(measured, unit):
    """An image in electrons that says e-/s, or the other way round."""
    assert reasons(as_seen(measured, unit * SKY, unit * NOISE)) >= {"noise"}


@pytest.mark.parametrize("exptime", [1.0, 15_000.0])
def test_a_wrong_exposure_time_does_so_too(measured, exptime):
    assert reasons(as_seen(measured), exptime) >= {"noise"}


@pytest.mark.parametrize("exptime", [0.0, -1.0, np.nan, np.inf])
def test_an_unknown_exposure_time_tells_nothing(measured, exptime):
    assert "noise" not in reasons(as_seen(measured), exptime)


def test_a_step_between_amplifiers_is_told_and_a_slope_is_not():
    sky = np.full((112, 64), SKY)
    y, x = np.mgrid[:112, :64]
    assert amplifier_step(sky) == 0
    assert amplifier_step(sky + 0.01 * y + 0.003 * x) == pytest.approx(0, abs=1e-9)
    for rows, columns in (
        (slice(0, 56), slice(8, 16)),
        (slice(56, None), slice(None)),
        (slice(56, None), slice(56, None)),
    ):
        other = sky.copy()
        other[rows, columns] += 0.07
        assert amplifier_step(other) == pytest.approx(0.07)
    other[10:20] = np.nan
    assert amplifier_step(other) == pytest.approx(0.07)
    assert amplifier_step(np.full((112, 64), np.nan)) == 0
    assert amplifier_step(np.ones(AMPLIFIERS)) == 0


@pytest.mark.parametrize(("height", "told"), [(0.5 * STEP, False), (1.5 * STEP, True)])
def test_steps_count_in_units_of_the_noise(measured, height, told):
    chip = as_seen(measured)
    across = chip.sky.shape[1] // AMPLIFIERS[1]
    sky = np.tile(np.full(chip.sky.shape[1], SKY), (112, 1))[:, : chip.sky.shape[1]].astype("f4")
    if across < 2:
        sky = np.full((112, 64), SKY, "f4")
        across = 8
    sky[:56, :across] += height * NOISE
    assert ("amplifiers" in reasons(replace(chip, sky=sky))) == told


def test_cosmic_rays_without_flags_are_told_where_they_may_be_more_than_the_stars(measured):
    direct = direct_counts(measured, "g")
    few, many = (replace(direct, sharp=n) for n in (50.0, 5000.0))
    chip = as_seen(measured)
    log = np.log10(1 + direct.counts[6])
    at = PHYSICS.index("cosmic_rays")
    assert not physics_reasons(chip, "g", EXPTIME, few, log)[at]
    assert physics_reasons(chip, "g", EXPTIME, many, log)[at]
    assert not physics_reasons(chip, "g", EXPTIME, many, 5.0)[at]  # among 1e5 stars they are nothing


def test_learned_counts_that_are_not_what_is_seen_are_told(measured):
    direct = direct_counts(measured, "g")
    log = np.log10(1 + direct.counts[6])
    for off in (-1.5, 0.0, 1.5):
        assert ("disagreement" in reasons(as_seen(measured), log_bright=log + off)) == (off != 0)
    assert "disagreement" not in reasons(as_seen(measured), log_bright=np.nan)


def found(n, **some):
    chance = np.zeros((n, CROWDED + 1))
    chance[:, 2] = 1
    whole = {
        "class_probability": chance, "bright_count": np.full(n, 500.0), "confidence": np.ones(n),
        "out_of_distribution": np.zeros(n, bool), "review_reason": np.zeros(n, np.uint8),
    }  # fmt: skip
    return whole | some


@pytest.mark.parametrize("name", PHYSICS)
def test_each_reason_asks_for_review_and_stays_when_thresholds_change(name):
    bit = REVIEW_REASONS[name]
    first = route_chips(found(1, review_reason=np.array([bit], np.uint8)), RoutingConfig())
    assert ROUTE_CODES[first["route"][0]] == "review"
    assert first["review_reason"][0] == bit
    assert first["confidence"][0] == 1
    doubtful = found(1, review_reason=first["review_reason"], confidence=np.array([0.3]))
    again = route_chips(doubtful, RoutingConfig(min_confidence=0.6))
    assert again["review_reason"][0] == bit | REVIEW_REASONS["low_confidence"]
    back = route_chips(found(1, review_reason=again["review_reason"]), RoutingConfig())
    assert back["review_reason"][0] == bit  # what follows from thresholds does not stay


def test_a_crowded_chip_stays_crowded():
    chance = np.zeros((1, CROWDED + 1))
    chance[0, CROWDED] = 1
    reason = np.array([AGAINST], np.uint8)
    routed = route_chips(found(1, class_probability=chance, review_reason=reason), RoutingConfig())
    assert ROUTE_CODES[routed["route"][0]] == "crowded"
    assert routed["route_flags"][0] & ROUTE_FLAGS["review"]
