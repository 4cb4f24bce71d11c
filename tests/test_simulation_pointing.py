"""Where to point to find a number of stars: found, or scaled to, with companions and clusters as promised."""

from dataclasses import replace

import numpy as np
import pytest

from csst_dask.schema import CLASS_EDGES, density_class
from csst_dask.simulation import pointing
from csst_dask.simulation.physics import SkyPhysics
from csst_dask.simulation.pointing import CYCLE, DETECTOR_AREA, MOST, Target, count_map, expected_stars, seek
from csst_dask.simulation.stars import star_counts

SKY = SkyPhysics()


def sought(target, n, sky=SKY, seed=4):
    for k in range(n):
        yield seek(target, sky, seed, 0.0, (8, 9, 13), np.random.default_rng([seed, k]))


def test_a_detector_sees_some_130_square_arcminutes():
    assert 129.2 < DETECTOR_AREA * 3600 < 129.6


def test_targets_go_through_the_classes():
    assert sorted(set(CYCLE)) == list(range(6))
    for index in range(200):
        target = Target.draw(index, np.random.default_rng(index))
        assert target.density_class == CYCLE[index % len(CYCLE)]
        assert target.count <= MOST
        if not target.patches:
            assert density_class(round(target.count)) == target.density_class
    assert CYCLE.count(5) == max(CYCLE.count(k) for k in range(6))


@pytest.mark.parametrize(("index", "low", "high"), [(2, 1e2, 1e3), (3, 1e3, 1e4), (4, 1e4, 1e5), (5, 1e5, MOST)])
def test_counts_are_even_in_the_logarithm_within_a_class(index, low, high):
    counts = np.array([Target.draw(index, np.random.default_rng(k)).count for k in range(2000)])
    share = np.log(counts / low) / np.log(high / low)
    assert share.min() >= 0
    assert share.max() <= 1
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) at a chance of 1e-3
    assert np.abs(np.sort(share) - (np.arange(2000) + 0.5) / 2000).max() < 1.95 / np.sqrt(2000)


@pytest.mark.parametrize("count", [0, 1, 99, 100, 999, 1000, 99_999, 100_000])
def test_a_wanted_count_names_its_class(count):
    assert Target.of(count).density_class == density_class(count)
    assert not Target.of(count).varied


def test_the_map_of_counts_is_that_of_the_model():
    counts = count_map()
    assert counts.shape == (12 * 4**4,)
    assert 100 < counts.min() < 300
    assert counts.max() > CLASS_EDGES[-1]
    assert counts.min() < star_counts(0, 90, "g", [26.5])[0] * DETECTOR_AREA < 1.5 * counts.min()


@pytest.mark.parametrize("count", [20.0, 300.0, 3e3, 3e4, 1.5e5])
def test_the_field_has_the_stars_that_were_sought(count):
    for ra, dec, sky in sought(Target.of(count), 20):
        assert 0 <= ra < 360
        assert -90 <= dec <= 90
        assert expected_stars(ra, dec, 4, sky) == pytest.approx(count, rel=1e-6)
        assert sky.systems == ()
        assert replace(sky, density=1.0) == replace(SKY, systems=())


@pytest.mark.parametrize("count", [300.0, 3e3, 3e4, 1.5e5])
def test_the_models_density_is_scaled_by_no_more_than_it_must(count):
    factors = np.array([sky.density for _, _, sky in sought(Target.of(count), 60)])
    assert 0.3 < np.median(factors) < 3
    assert (np.abs(np.log(factors)) < np.log(6)).mean() > 0.9


def test_empty_fields_have_no_footprint_and_patchy_ones_a_part_of_it():
    for _, _, sky in sought(Target(0, 0.0), 5):
        assert sky.footprint == 0
    for ra, dec, sky in sought(Target(1, 40.0, patches=True), 5):
        assert 0 < sky.footprint < 1
        assert sky.footprint * expected_stars(ra, dec, 4, sky) == pytest.approx(40.0, rel=1e-6)


def name_of(sky):
    return sky.systems[-1].name if sky.systems else ""


def test_companions_and_clusters_supply_some_of_the_fields():
    target = Target(4, 3e4)
    found = list(sought(target, 300))
    companions = [(ra, dec, sky) for ra, dec, sky in found if name_of(sky) == "companion"]
    clusters = [(ra, dec, sky) for ra, dec, sky in found if name_of(sky) == "cluster"]
    error = 4 * np.sqrt(0.25 / 300)
    assert len(companions) / 300 == pytest.approx(0.3, abs=error)
    assert len(clusters) / (300 - len(companions)) == pytest.approx(0.15, abs=error)
    for ra, dec, sky in companions:
        assert expected_stars(ra, dec, 4, sky) < target.count
        assert (sky.systems[-1].ra, sky.systems[-1].dec) == (ra, dec)
        assert sky.density == 1
    for _, _, sky in (*companions, *clusters):
        assert np.isfinite(sky.systems[-1].absolute)
        assert -25 < sky.systems[-1].absolute < 2
    # the middles of detectors lie within 0.6 deg of the boresight
    for ra, dec, sky in clusters:
        away = np.hypot((sky.systems[-1].ra - ra) * np.cos(np.deg2rad(dec)), sky.systems[-1].dec - dec)
        assert away < 0.8 or abs(dec) > 80 or away > 300


def test_every_companion_has_stars(monkeypatch):
    # also where the coarse map promised fewer stars of the Milky Way than there are, or were wanted
    monkeypatch.setattr(pointing, "count_map", lambda: np.tile([400.0, 600.0], 6 * 4**4))
    for _, _, sky in sought(Target(3, 1.5e3), 60):
        assert all(np.isfinite(system.absolute) for system in sky.systems)
        assert np.isfinite(sky.density)
        assert sky.density > 0


def test_no_place_is_scaled_beyond_recognition():
    for count in (300.0, 3e3, 3e4, 1.5e5):
        for _, _, sky in sought(Target.of(count), 60):
            assert 1 / 6 <= sky.density <= 6
