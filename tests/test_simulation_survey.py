"""From a configuration to exposures: reproducible, where they should be, with the skies that were asked for."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import yaml
from healpix_geo import nested

from csst_dask.config import SimulationConfig, build_config
from csst_dask.errors import ConfigError
from csst_dask.instrument import IMAGING_DETECTORS, frame_center, frame_corners
from csst_dask.instrument.focal_plane import DETECTORS
from csst_dask.schema import BANDS, FRAME_SHAPE, STAR_LIMIT, density_class
from csst_dask.simulation.exposure import draw_scene
from csst_dask.simulation.physics import SkyPhysics
from csst_dask.simulation.pointing import CYCLE
from csst_dask.simulation.product import chip_key
from csst_dask.simulation.regions import DEMO, REGIONS, find_region
from csst_dask.simulation.stars import DEEP_LIMIT
from csst_dask.simulation.survey import DEMO_COUNTS, SURVEY_ANGLE, plan_survey
from csst_dask.simulation.systems import CLUSTERS, DWARFS


def plan(**settings):
    return plan_survey(SimulationConfig(**settings))


def stars_on(exposure, detector):
    """Catalogue stars on a full-size chip; galaxies and fainter stars are left out to save time."""
    sky = replace(exposure.sky, galaxies=0.0, limit=STAR_LIMIT)
    scene = draw_scene(replace(exposure, sky=sky), detector)
    y, x = scene.star_y, scene.star_x
    return int(((scene.stars.g < STAR_LIMIT) & (y >= 0) & (y < FRAME_SHAPE[0]) & (x >= 0) & (x < FRAME_SHAPE[1])).sum())


def unit(ra, dec):
    ra, dec = np.deg2rad(ra), np.deg2rad(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], -1)


def outlines(exposures):
    """(n, 3) unit vectors of the corners and middles of all chips."""
    found = []
    for exposure in exposures:
        for detector in exposure.detectors:
            wcs = exposure.wcs(detector)
            found += [unit(*frame_corners(wcs)), unit(*np.array(frame_center(wcs)))[None]]
    return np.concatenate(found)


def apart(one, other):
    """Least angle between two sets of places, deg."""
    return np.rad2deg(np.arccos(np.clip((one @ other.T).max(), -1, 1)))


KINDS = [
    {},
    {"detectors_per_exposure": 3},
    {"physics": "randomised", "partial": 0.3, "empty": 0.2},
    {"region": "fornax", "physics": "randomised", "depth": "deep"},
    {"region": DEMO},
    {"region": "10:20,-5:5", "clusters": True},
    {"mix": {"sculptor": 1, "mixed": 2}, "detectors_per_exposure": 5},
]


@pytest.mark.parametrize("settings", KINDS)
def test_a_longer_survey_begins_with_the_shorter(settings):
    longer = plan(seed=4, exposures=12, **settings)
    assert longer[:5] == plan(seed=4, exposures=5, **settings)
    assert longer == plan(seed=4, exposures=12, **settings)
    assert all(a != b for a, b in zip(longer, plan(seed=5, exposures=12, **settings), strict=True))


def test_star_counts_of_a_longer_survey_may_go_on():
    counts = (300, 40, 0, 20_000, 150_000, 3000)
    assert plan(star_counts=counts, exposures=6)[:3] == plan(star_counts=counts[:3], exposures=3)


def test_exposures_are_distinct():
    exposures = plan(exposures=30)
    for name in ("obs_id", "field", "times", "mjd", "ra"):
        assert len({getattr(exposure, name) for exposure in exposures}) == 30
    keys = {chip_key(e, d) for e in exposures for d in e.detectors}
    assert len(keys) == 30 * len(IMAGING_DETECTORS)
    assert all(len(e.obs_id) == 14 and e.obs_id.isdigit() for e in plan(seed=999_999, exposures=2))


def test_the_list_of_detectors_does_not_move_a_regions_exposures():
    all_of_them, one = plan(seed=7, region="fornax")[0], plan(seed=7, region="fornax", detectors=(9,))[0]
    assert one.detectors == (9,)
    assert replace(one, detectors=all_of_them.detectors) == all_of_them
    assert plan(detectors=(9, 8, 9))[0].detectors == (9, 8)


def test_pointings_fill_the_six_classes():
    exposures = plan(seed=8, exposures=2 * len(CYCLE), detectors_per_exposure=1)
    meant = np.array([CYCLE[e.index % len(CYCLE)] for e in exposures])
    found = density_class([stars_on(e, e.detectors[0]) for e in exposures])
    assert np.abs(found - meant).max() <= 1
    assert (found == meant).mean() > 0.75
    assert (np.bincount(found, minlength=6) >= 3).all()


@pytest.mark.parametrize("region", ["mixed", "galactic_l90_b20", DEMO, "120,-30"])
def test_star_counts_are_met(region):
    # the detector that is nearest to the boresight, for which the counts are meant
    wanted, middle = (0, 30, 400, 5000, 30_000), 13
    found = [stars_on(e, middle) for e in plan(seed=2, exposures=5, region=region, star_counts=wanted)]
    for n, count in zip(found, wanted, strict=True):
        # beyond Poisson: clouds, and the slope of the Milky Way across the focal plane
        assert abs(n - count) <= 5 * np.sqrt(count) + 0.3 * count


def test_star_counts_hold_near_a_dwarf_galaxy_too():
    exposure = plan(region="39.9,-34.5", seed=2, star_counts=(5000,))[0]
    assert stars_on(exposure, 13) == pytest.approx(5000, rel=0.3)


def test_detectors_are_spread_over_the_bands():
    for few, most in ((1, 1), (3, 1), (7, 1), (9, 2), (14, 2)):
        exposures = plan(exposures=40, detectors_per_exposure=few, region="fornax")
        for exposure in exposures:
            assert len(set(exposure.detectors)) == len(exposure.detectors) == few
            assert set(exposure.detectors) <= set(IMAGING_DETECTORS)
            of_band = Counter(DETECTORS[d].band for d in exposure.detectors)
            assert max(of_band.values()) <= (4 if few > 12 else most)
            assert len(of_band) == min(few, len(BANDS))
    every = Counter(
        DETECTORS[d].band for e in plan(exposures=140, detectors_per_exposure=1, region="0,0") for d in e.detectors
    )
    assert min(every.values()) > 20 - 4 * np.sqrt(20)
    assert set(every) == set(BANDS)
    some = plan(exposures=5, detectors=(8, 9, 24), detectors_per_exposure=2, region="0,0")
    assert all(len(e.detectors) == 2 and set(e.detectors) <= {8, 9, 24} for e in some)
    assert plan(detectors_per_exposure=30)[0].detectors == IMAGING_DETECTORS


@pytest.mark.parametrize("physics", ["nominal", "randomised", "off-nominal"])
@pytest.mark.parametrize("region", ["fornax", "galactic_center"])
def test_a_region_has_one_sky(region, physics):
    exposures = plan(region=region, exposures=8, physics=physics)
    assert len({e.sky for e in exposures}) == 1
    assert len({e.seed for e in exposures}) == 1
    assert len({(e.ra, e.dec) for e in exposures}) == 8
    assert {e.theta for e in exposures} == {SURVEY_ANGLE}
    assert (exposures[0].sky == plan(region=region, seed=1, physics=physics)[0].sky) == (
        physics == "nominal" and region == "fornax"
    )
    # what is taught from one part of the sky must not be tested on it
    cells = nested.lonlat_to_healpix(*np.array([(e.ra, e.dec) for e in exposures]).T, np.uint8(3))
    assert [e.field for e in exposures] == [f"hp8-{cell}" for cell in cells]


@pytest.mark.parametrize("name", REGIONS)
def test_regions_keep_to_their_box(name):
    exposures, box = plan(region=name, exposures=60), REGIONS[name]
    for axis, (low, high) in (("ra", box.ra), ("dec", box.dec)):
        places = np.array([getattr(e, axis) for e in exposures])
        assert low <= places.min() < low + 0.2 * (high - low)
        assert high >= places.max() > high - 0.2 * (high - low)


@pytest.mark.parametrize("name", REGIONS)
def test_regions_have_about_the_published_counts(name):
    low, high = REGIONS[name].n_star
    counts = [stars_on(e, 13) for e in plan(region=name, exposures=4, seed=3)]
    # the paper's lowest counts hang over the edge of a catalogue; its highest are the most of thousands of chips
    assert 0.7 * low < np.median(counts) < high
    assert max(counts) < 1.3 * high
    assert np.median(counts) > 0.05 * high


def test_the_demo_runs_from_empty_to_crowded_in_touching_fields():
    exposures = plan(region=DEMO, exposures=6, detectors=(24,))
    counts = [stars_on(e, 24) for e in exposures]
    assert density_class(counts).tolist() == density_class([int(n) for n in DEMO_COUNTS]).tolist() == list(range(6))
    steps = -np.diff([e.ra for e in exposures]) * np.cos(np.deg2rad(exposures[0].dec))
    # no wider than a detector
    assert (steps > 0).all()
    assert (steps <= 9216 * 0.074 / 3600).all()


@pytest.fixture
def other(tmp_path):
    """A survey on file, and its settings."""
    settings = {"seed": 11, "exposures": 4, "detectors": [8, 23]}
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump({"simulation": settings}))
    return path, settings


def test_avoided_surveys_keep_their_distance(other):
    path, settings = other
    theirs = outlines(plan(**settings))
    free = plan(seed=12, exposures=40, detectors=(6, 25))
    kept = plan(seed=12, exposures=40, detectors=(6, 25), avoid=(path,), separation=20)
    assert apart(outlines(free), theirs) < 20
    assert apart(outlines(kept), theirs) > 20
    same = [a == b for a, b in zip(free, kept, strict=True)]
    assert 20 < sum(same) < 40
    # whoever was far enough stays, and what moved finds as many stars
    for a, b in zip(free, kept, strict=True):
        assert (a == b) == (apart(outlines([b]), outlines([a])) < 1e-6)
    assert plan(seed=12, exposures=10, detectors=(6, 25), avoid=(path,), separation=20) == kept[:10]


def test_regions_are_avoided_as_well(tmp_path):
    near = tmp_path / "near.yaml"
    near.write_text(yaml.safe_dump({"simulation": {"region": "20,10", "exposures": 1}}))
    exposures = plan(region="15:25,5:15", exposures=12, avoid=(near,), separation=2)
    assert apart(outlines(exposures), outlines(plan(region="20,10"))) > 2
    with pytest.raises(ConfigError, match=r"exposure 0 found no place more than 20\.0 deg .*near\.yaml"):
        plan(region="15:25,5:15", exposures=12, avoid=(near,), separation=20)


def test_surveys_that_avoid_each_other_are_refused(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"simulation": {"avoid": [f"{other}.yaml"]}}))
    with pytest.raises(ConfigError, match=r"a\.yaml avoids itself"):
        plan(avoid=(tmp_path / "a.yaml",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region": "atlantis"}, "atlantis"),
        ({"mix": {"fornax": 1, "atlantis": 2}}, "atlantis"),
        ({"detectors": (1,)}, r"\[1\]"),
        ({"detectors": (8, 31)}, r"\[31\]"),
        ({"exposures": 3, "star_counts": (1, 2)}, "2 counts for 3 exposures"),
        ({"star_counts": (100_000_000,)}, "star_counts"),
        ({"region": "mixed", "star_counts": (6_000_000,)}, "ask for fewer"),
        ({"avoid": ("nowhere.yaml",)}, "nowhere.yaml"),
    ],
)
def test_impossible_surveys_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        plan(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"partial": 0.7, "empty": 0.4}, ["partial 0.7", "empty 0.4"]),
        ({"partial": -0.1}, ["simulation.partial", "-0.1"]),
        ({"physics": "normal"}, ["simulation.physics", "normal", "randomised"]),
        ({"depth": "shallow"}, ["simulation.depth", "shallow", "paper"]),
        ({"product": "level2"}, ["simulation.product", "level2", "readout"]),
        ({"mix": {"fornax": 0}}, ["simulation.mix.fornax", "0"]),
        ({"seed": 10**6}, ["simulation.seed", "1000000"]),
        ({"separation": -1}, ["simulation.separation", "-1"]),
        ({"detectors_per_exposure": 0}, ["simulation.detectors_per_exposure", "0"]),
        ({"exptime": 0}, ["simulation.exptime", "0"]),
        ({"galaxy": True}, ["simulation.galaxy"]),
    ],
)
def test_settings_that_cannot_be_are_named(settings, words):
    with pytest.raises(ConfigError) as error:
        build_config({"simulation": settings})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "ra", "dec"),
    [
        ("266.4,-28.9", (266.4, 266.4), (-28.9, -28.9)),
        (" 10 , 20", (10, 10), (20, 20)),
        ("264.9:265.3,-28.5:-28.2", (264.9, 265.3), (-28.5, -28.2)),
        ("0:359,45", (0, 359), (45, 45)),
        ("1e1,-9e1", (10, 10), (-90, -90)),
    ],
)
def test_places_and_boxes_are_read(text, ra, dec):
    box = find_region(text)
    assert (box.ra, box.dec) == (ra, dec)
    for exposure in plan(region=text, exposures=4):
        assert ra[0] <= exposure.ra <= ra[1]
        assert dec[0] <= exposure.dec <= dec[1]


@pytest.mark.parametrize("name", REGIONS)
def test_names_are_read(name):
    assert find_region(name) is REGIONS[name]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "10,20,30",
        "1:2:3,4",
        "a,b",
        "10,91",
        "10,-91",
        "20:10,0",
        "10,20:10",
        "nan,0",
        "0,nan",
        "inf,0",
        "10;20",
    ],
)
def test_texts_that_are_no_region_are_refused(text):
    with pytest.raises(ConfigError, match=r"simulation\.region"):
        find_region(text)


def test_a_mix_takes_its_regions_in_their_shares():
    shares = {"fornax": 3.0, "sculptor": 1.0, "100:110,50": 4.0}
    exposures = plan(mix=shares, exposures=400, region="atlantis")
    boxes = {name: find_region(name) for name in shares}
    found = Counter(
        next(n for n, box in boxes.items() if box.ra[0] <= e.ra <= box.ra[1] and box.dec[0] <= e.dec <= box.dec[1])
        for e in exposures
    )
    for name, share in shares.items():
        p = share / 8
        assert found[name] / 400 == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 400))


def test_options_reach_the_sky():
    assert plan(region="0,0")[0].sky == SkyPhysics()
    assert plan(region="0,0", clusters=True)[0].sky.systems == DWARFS + CLUSTERS
    assert plan(region="0,0", galaxies=False)[0].sky.galaxies == 0
    deep = plan(region="0,0", depth="deep")[0].sky
    assert (deep.limit, deep.members) == (DEEP_LIMIT, True)
    assert plan(region="0,0", depth="deep", physics="off-nominal")[0].sky.limit >= DEEP_LIMIT
    bare = plan(exposures=40, trails=False, ghosts=False, cosmic_rays=False, defects=False)
    assert not any(
        (e.trails, e.ghosts, e.cosmic_rays, e.defects, e.distortion) != ((), False, False, False, 0.0) for e in bare
    )
    full = plan(exposures=40, distortion=True)
    assert any(e.trails for e in full)
    assert all(e.ghosts and e.cosmic_rays and e.defects and e.distortion > 0 for e in full)


@pytest.mark.parametrize("physics", ["nominal", "randomised", "off-nominal"])
def test_to_the_depth_of_the_catalogue_nothing_but_the_limit_changes(physics):
    ends, goes_on = (
        plan(physics=physics, depth=depth, exposures=8, seed=3) for depth in ("catalogue", "paper")
    )  # fmt: skip
    assert {exposure.sky.limit for exposure in ends} == {STAR_LIMIT}
    for one, other in zip(ends, goes_on, strict=True):
        assert replace(one, sky=replace(one.sky, limit=other.sky.limit)) == other
    assert (physics == "nominal") == (ends == goes_on)


def test_options_do_not_move_the_pointings():
    places = [(e.ra, e.dec, e.theta, e.sky.density) for e in plan(seed=6, exposures=19)]
    for other in (
        {"galaxies": False}, {"trails": False}, {"cosmic_rays": False}, {"clusters": True}, {"distortion": True},
        {"exptime": 300}, {"partial": 0.5}, {"depth": "deep"}, {"depth": "catalogue"},
    ):  # fmt: skip
        assert [(e.ra, e.dec, e.theta, e.sky.density) for e in plan(seed=6, exposures=19, **other)] == places, other


def test_physics_spreads_as_it_says():
    skies = {
        p: [e.sky for e in plan(physics=p, exposures=60, star_counts=(500,) * 60)]
        for p in ("nominal", "randomised", "off-nominal")
    }
    optics = {p: [e.optics for e in plan(physics=p, exposures=60, region="0,0")] for p in skies}
    assert len({replace(sky, density=1.0) for sky in skies["nominal"]}) == 1
    for name in ("halo", "dust", "patchiness", "galaxies", "galaxy_size"):
        spread = np.array([getattr(sky, name) for sky in skies["randomised"]])
        beyond = np.array([getattr(sky, name) for sky in skies["off-nominal"]])
        assert spread.std() > 0
        assert spread.min() < getattr(SkyPhysics(), name) < spread.max()
        assert np.median(np.abs(np.log(beyond))) > np.median(np.abs(np.log(spread))) or name == "patchiness"
    for name in ("patchiness", "limit", "clustering"):
        assert (
            max(getattr(sky, name) for sky in skies["randomised"])
            <= min(getattr(sky, name) for sky in skies["off-nominal"]) + 1e-9
        )
    jitter = {p: [o.jitter for o in found] for p, found in optics.items()}
    assert min(jitter["randomised"]) < min(jitter["nominal"])
    assert max(jitter["nominal"]) < max(jitter["randomised"]) < min(jitter["off-nominal"])


def test_partial_and_empty_shares():
    exposures = plan(region="120,30", exposures=400, partial=0.3, empty=0.2)
    footprint = np.array([e.sky.footprint for e in exposures])
    for found, share in (((footprint == 0).mean(), 0.2), (((footprint > 0) & (footprint < 1)).mean(), 0.3)):
        assert found == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 400))
    counts = [stars_on(e, 13) for e in exposures[:40]]
    whole = np.median([n for n, f in zip(counts, footprint, strict=False) if f == 1])
    for n, f in zip(counts, footprint, strict=False):
        assert (n == 0) if f == 0 else (n < 1.3 * whole)
    assert any(0 < n < 0.7 * whole for n in counts)


def test_every_system_of_a_plan_can_be_drawn():
    for physics, seed in (("off-nominal", 1), ("randomised", 2)):
        for exposure in plan(physics=physics, seed=seed, exposures=220, detectors=(8,)):
            assert all(np.isfinite(system.absolute) for system in exposure.sky.systems), exposure.index
