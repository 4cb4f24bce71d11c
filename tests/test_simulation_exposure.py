"""What an exposure sees: the same sky for every detector, band and epoch, all of it, and where its WCS says."""

from dataclasses import fields, replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from astropy.time import Time
from healpix_geo import nested

from csst_dask.instrument import IMAGING_DETECTORS, frame_center
from csst_dask.instrument.distortion import DISTORTION, sky_to_pixel
from csst_dask.instrument.focal_plane import BAND_TABLE, DETECTORS
from csst_dask.schema import BRIGHT_LIMIT, FRAME_SHAPE, MAGNITUDES, STAR_LIMIT, TILES
from csst_dask.simulation.catalogue import CELL_ORDER
from csst_dask.simulation.depth import drawn_depth
from csst_dask.simulation.exposure import MARGIN, Chip, Exposure, draw_scene, sky_cells
from csst_dask.simulation.galaxies import draw_galaxies
from csst_dask.simulation.physics import SkyPhysics
from csst_dask.simulation.population import EXTINCTION
from csst_dask.simulation.stars import draw_stars, extinction_beyond

SHAPE = (500, 600)
SKY = SkyPhysics(density=250.0, clustering=0.5, limit=27.0, systems=())
ONE = Exposure(
    index=3, obs_id="10000005000003", start=datetime(2027, 8, 10, 8, 15), exptime=150.0, ra=120.0, dec=35.0, theta=30.0,
    field="f", detectors=IMAGING_DETECTORS, seed=5, sky=SKY,
)  # fmt: skip


def pointed(exposure, detector, ra, dec, shape=SHAPE):
    """The exposure moved so that a detector's small frame is centred on a place."""
    for _ in range(8):
        found_ra, found_dec = frame_center(exposure.wcs(detector), shape)
        exposure = replace(
            exposure, ra=exposure.ra + (ra - found_ra + 180) % 360 - 180, dec=exposure.dec + dec - found_dec
        )
    return exposure


def make_chip(exposure, detector, shape=SHAPE):
    return Chip(
        exposure, detector, np.zeros(shape, np.float32), np.zeros(shape, np.uint16),
        draw_scene(exposure, detector, shape), 0.2, 2.0,
    )  # fmt: skip


def on_frame(y, x, shape=SHAPE):
    return (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])


def assert_same(one, other, but=()):
    assert one.id.size > 10
    a, b = (objects.pick(np.lexsort((objects.dec, objects.ra))) for objects in (one, other))
    for field in fields(a):
        if field.name not in but:
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


@pytest.mark.parametrize(("first", "second"), [(8, 9), (6, 25), (13, 23), (24, 24)])
@pytest.mark.parametrize("distortion", [0.0, DISTORTION])
def test_overlapping_detectors_of_two_exposures_see_the_same_objects(first, second, distortion):
    one = replace(ONE, distortion=distortion)
    ra, dec = frame_center(one.wcs(first), SHAPE)
    # another place on the frame, another rotation and epoch
    other = replace(one, index=9, theta=-75.0, start=one.start + timedelta(days=400))
    other = pointed(other, second, ra + 0.002, dec - 0.001)
    mine, theirs = make_chip(one, first), make_chip(other, second)
    for kind in ("stars", "galaxies"):
        common = []
        for chip, where, exposure, detector in ((mine, theirs, other, second), (theirs, mine, one, first)):
            objects = getattr(chip, kind)
            y, x = sky_to_pixel(
                detector, exposure.ra, exposure.dec, exposure.theta, objects.ra, objects.dec, exposure.distortion
            )
            seen = on_frame(y, x)
            if kind == "stars" and DETECTORS[first].band != DETECTORS[second].band:
                seen &= objects.g < STAR_LIMIT  # fainter ones are drawn where their band sees them
            common.append(objects.pick(seen))
            assert np.isin(common[-1].id, getattr(where, kind).id).all()
        assert_same(*common, but=("mag",) if DETECTORS[first].band != DETECTORS[second].band else ())


def test_another_epoch_and_another_instrument_see_the_same_scene():
    scene = draw_scene(ONE, 8, SHAPE)
    later = replace(
        ONE, index=4, obs_id="10000005000004", start=datetime(2031, 1, 1), exptime=300.0, cosmic_rays=True, ghosts=True
    )
    again = draw_scene(later, 8, SHAPE)
    assert_same(scene.stars, again.stars)
    assert_same(scene.galaxies, again.galaxies)
    np.testing.assert_array_equal(scene.star_y, again.star_y)
    elsewhere = draw_scene(replace(ONE, seed=6), 8, SHAPE)
    assert not np.isin(elsewhere.stars.g, scene.stars.g).any()


@pytest.mark.parametrize(
    ("ra", "dec"), [(120.0, 35.0), (0.0, 0.0), (359.9, -5.0), (123.0, 89.9), (40.0, -90.0), (0.0, 90.0), (45.0, 41.81)]
)
@pytest.mark.parametrize("detector", [8, 25])
@pytest.mark.parametrize("distortion", [0.0, DISTORTION])
def test_no_object_on_the_frame_is_missed(ra, dec, detector, distortion):
    exposure = replace(ONE, ra=ra, dec=dec, distortion=distortion)
    scene = draw_scene(exposure, detector, SHAPE)
    cells = sky_cells(exposure, detector, SHAPE)
    assert (np.diff(cells.astype(np.int64)) > 0).all()
    around = np.unique(nested.kth_neighbourhood(cells, CELL_ORDER, 1))
    around = around[around < 12 * 4**CELL_ORDER].astype(np.uint64)
    assert len(around) > len(cells)
    band = DETECTORS[detector].band
    for drawn, seen in (
        (draw_stars(around, exposure.seed, band, exposure.sky), scene.stars),
        (draw_galaxies(around, exposure.seed, band), scene.galaxies),
    ):
        y, x = sky_to_pixel(detector, ra, dec, exposure.theta, drawn.ra, drawn.dec, distortion)
        on = on_frame(y, x)
        assert on.sum() > 10
        assert np.isin(drawn.ra[on] + 1j * drawn.dec[on], seen.ra + 1j * seen.dec).all()


@pytest.mark.parametrize("distortion", [0.0, DISTORTION])
def test_objects_lie_where_the_wcs_has_them(distortion):
    exposure = replace(ONE, distortion=distortion)
    for detector in (7, 20):
        scene, wcs = draw_scene(exposure, detector, SHAPE), exposure.wcs(detector)
        for objects, y, x in (
            (scene.stars, scene.star_y, scene.star_x),
            (scene.galaxies, scene.galaxy_y, scene.galaxy_x),
        ):
            expected = wcs.all_world2pix(objects.ra, objects.dec, 1)
            np.testing.assert_allclose((x + 0.5, y + 0.5), expected, atol=1e-5)
            # nothing beyond the margin, and something on all of it
            for place, side in ((y, SHAPE[0]), (x, SHAPE[1])):
                assert place.min() >= -MARGIN
                assert place.max() < side + MARGIN
                assert place.min() < -0.5 * MARGIN
                assert place.max() > side + 0.5 * MARGIN


def test_a_smaller_frame_is_the_lower_corner_of_the_detector():
    exposure = replace(ONE, sky=SkyPhysics())
    whole, part = make_chip(exposure, 9, FRAME_SHAPE), make_chip(exposure, 9, (3000, 2000))
    for kind in ("star", "galaxy"):
        names = {"star": "stars", "galaxy": "galaxies"}[kind]
        y, x = getattr(whole, f"{kind}_y"), getattr(whole, f"{kind}_x")
        corner = on_frame(y, x, (3000, 2000))
        assert_same(getattr(whole, names).pick(corner), getattr(part, names))
        np.testing.assert_array_equal(np.sort(y[corner]), np.sort(getattr(part, f"{kind}_y")))
    # 12 000 galaxies to i = 26 on a detector: 46 x 10^0.31 in each of 129 square arcminutes
    assert len(whole.galaxies) == pytest.approx(46 * 10**0.31 * 129.4, rel=0.2)


@pytest.mark.parametrize("detector", [8, 25])
def test_the_catalogue_lists_every_star_on_the_frame_and_says_which_count(detector):
    chip = make_chip(ONE, detector)
    scene = chip.scene
    on = on_frame(scene.star_y, scene.star_x)
    counted = on & (scene.stars.g < STAR_LIMIT)
    assert 0 < counted.sum() < on.sum() < len(scene.stars)
    assert len(chip.stars) == len(chip.star_y) == len(chip.star_x) == len(chip.counted) == on.sum()
    assert chip.n_star == chip.counted.sum() == counted.sum()
    np.testing.assert_array_equal(chip.stars.id, scene.stars.id[on])
    np.testing.assert_array_equal(chip.stars.id[chip.counted], scene.stars.id[counted])
    assert on_frame(chip.star_y, chip.star_x).all()
    assert len(chip.galaxies) == len(chip.galaxy_y) == on_frame(scene.galaxy_y, scene.galaxy_x).sum() > 0
    assert on_frame(chip.galaxy_y, chip.galaxy_x).all()


@pytest.mark.parametrize("detector", [8, 25, 12])
def test_every_bright_star_of_the_band_is_a_bright_star_whatever_its_g(detector):
    chip = make_chip(replace(ONE, ra=96.0, dec=10.0), detector)
    mag = chip.scene.stars.mag[on_frame(chip.scene.star_y, chip.scene.star_x)]
    assert chip.n_bright == (mag < BRIGHT_LIMIT).sum() > 0
    red = (chip.stars.mag < BRIGHT_LIMIT) & ~chip.counted
    assert (red.sum() > 0.02 * chip.n_bright) == (chip.band == "y")
    # no star is missing that a sky drawn deeper in g by any amount would show
    deeper = draw_scene(replace(chip.exposure, sky=replace(SKY, limit=34.0)), detector, SHAPE)
    on = on_frame(deeper.star_y, deeper.star_x)
    seen = on & (deeper.stars.mag < chip.scene.depth)
    mine = chip.stars.mag < chip.scene.depth
    np.testing.assert_array_equal(np.sort(deeper.stars.id[seen]), np.sort(chip.stars.id[mine]))
    for m, n in zip(MAGNITUDES, chip.n_brighter, strict=True):
        assert n == ((on & (deeper.stars.mag < m)).sum() if m <= chip.scene.depth else -1)
    assert chip.n_brighter[MAGNITUDES.index(BRIGHT_LIMIT)] == chip.n_bright


def test_the_depth_of_every_band_is_a_magnitude_and_a_half_below_its_limit_but_where_stars_crowd():
    for band, spec in BAND_TABLE.items():
        assert drawn_depth(120.0, 60.0, 5, band, SkyPhysics()) == spec.limit_mag + 1.5
    crowded = drawn_depth(266.4, -28.0, 5, "y", SkyPhysics(dust=0.3, density=4.0))
    assert 24.0 <= crowded < BAND_TABLE["y"].limit_mag + 1.5


def test_tiles_add_up_and_hold_the_stars_that_lie_in_them():
    chip = make_chip(ONE, 8)
    n_star, n_bright = np.array(chip.n_star_tile), np.array(chip.n_bright_tile)
    assert n_star.shape == n_bright.shape == (TILES, TILES)
    assert (n_star.sum(), n_bright.sum()) == (chip.n_star, chip.n_bright)
    ty, tx = chip.star_y * TILES // SHAPE[0], chip.star_x * TILES // SHAPE[1]
    for y, x in ((0, 0), (3, 9), (13, 13)):
        here = (ty == y) & (tx == x)
        assert n_star[y, x] == (here & chip.counted).sum()
        assert n_bright[y, x] == (here & (chip.stars.mag < BRIGHT_LIMIT)).sum()


def test_a_deep_rendering_leaves_the_counts_unchanged():
    paper, deep = (make_chip(replace(ONE, sky=replace(SKY, limit=limit)), 8) for limit in (STAR_LIMIT, 28.0))
    assert_same(paper.stars, deep.stars.pick(np.isin(deep.stars.id, paper.stars.id)))
    assert (deep.n_star, deep.n_bright, deep.n_brighter) == (paper.n_star, paper.n_bright, paper.n_brighter)
    assert len(deep.scene.stars) > len(paper.scene.stars)


def test_dust_dims_galaxies_and_can_be_turned_off_with_them():
    dusty = replace(ONE, ra=80.0, dec=20.0)
    scene = draw_scene(dusty, 8, SHAPE)
    cells = sky_cells(dusty, 8, SHAPE)
    bare = draw_galaxies(cells, dusty.seed, "g")
    bare = bare.pick(np.isin(bare.id, scene.galaxies.id))
    a_v = extinction_beyond(bare.ra, bare.dec, dusty.seed, SKY)
    assert a_v.min() > 0.5
    order, other = np.argsort(bare.id), np.argsort(scene.galaxies.id)
    np.testing.assert_allclose(scene.galaxies.mag[other], (bare.mag + EXTINCTION["g"] * a_v)[order], rtol=1e-12)
    without = draw_scene(replace(dusty, sky=replace(SKY, galaxies=0.0)), 8, SHAPE)
    assert len(without.galaxies) == 0
    assert_same(without.stars, scene.stars)
    sizes = draw_scene(replace(dusty, sky=replace(SKY, galaxy_size=2.0)), 8, SHAPE).galaxies.radius
    np.testing.assert_allclose(np.sort(sizes), np.sort(2 * scene.galaxies.radius))


def test_an_empty_footprint_has_galaxies_and_no_stars():
    scene = draw_scene(replace(ONE, sky=replace(SKY, footprint=0.0)), 8, SHAPE)
    assert len(scene.stars) == 0
    assert len(scene.galaxies) > 10


def test_times_are_those_of_the_exposure():
    assert Time(ONE.start).mjd == pytest.approx(ONE.mjd, abs=1e-9)
    assert ONE.times == ("20270810081500", "20270810081730")
