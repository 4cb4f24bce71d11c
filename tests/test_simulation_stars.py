"""Stars of sky cells: the same whoever asks, as many as the model says, and without seams."""

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from healpix_geo import nested

from csst_dask.schema import BANDS, STAR_LIMIT
from csst_dask.simulation.catalogue import CELL_ORDER
from csst_dask.simulation.galaxies import draw_galaxies
from csst_dask.simulation.physics import SkyPhysics
from csst_dask.simulation.population import COLUMNS, EXTINCTION, SCATTER, luminosity_table
from csst_dask.simulation.stars import (
    BRIGHTEST,
    CELL_AREA,
    CELL_REACH,
    SQUARE_DEGREE,
    cloudiness,
    covered,
    draw_stars,
    extinction_beyond,
    star_counts,
    unit_vectors,
)
from csst_dask.simulation.systems import CLUSTERS, DWARFS, System, elliptical_radius, surface_density

SMOOTH = SkyPhysics(patchiness=0.0, systems=())
ROUGH = SkyPhysics(patchiness=0.4, clustering=0.8, systems=())
FIELD_CELL = CELL_AREA / SQUARE_DEGREE


def cells_about(ra, dec, radius):
    """Cells of a cone (deg), sorted."""
    return np.sort(nested.cone_coverage((ra, dec), radius, CELL_ORDER)[0].astype(np.uint64))


def galactic_cells(l, b, radius):
    place = SkyCoord(l=l, b=b, unit="deg", frame="galactic").icrs
    return cells_about(place.ra.deg, place.dec.deg, radius)


def galactic_places(cells):
    lon, lat = nested.healpix_to_lonlat(cells, np.uint8(CELL_ORDER))
    place = SkyCoord(lon, lat, unit="deg").galactic
    return zip(place.l.deg, place.b.deg, strict=True)


def assert_same_stars(one, other, but=()):
    a, b = (stars.pick(np.lexsort((stars.dec, stars.ra))) for stars in (one, other))
    for field in fields(a):
        if field.name not in but:
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


ALL = SkyPhysics(patchiness=0.4, clustering=0.8, limit=27.5, systems=(*DWARFS, *CLUSTERS))


@pytest.mark.parametrize(("ra", "dec"), [(39.997, -34.449), (6.024, -72.2), (265.1, -28.35), (0.0, 89.99)])
def test_a_star_is_the_same_whichever_cells_are_asked_for_with_it(ra, dec):
    cells = cells_about(ra, dec, 0.06)
    together = draw_stars(cells, 7, "r", ALL)
    order = np.random.default_rng(0).permutation(len(cells))
    assert_same_stars(draw_stars(cells[order], 7, "r", ALL), together)
    parts = [draw_stars(cells[k::2], 7, "r", ALL) for k in (0, 1)]
    assert sum(map(len, parts)) == len(together) > 10
    assert_same_stars(parts[0], together.pick(np.isin(home(together), cells[::2])))
    for k in order[:8]:
        alone = draw_stars(cells[k : k + 1], 7, "r", ALL)
        assert_same_stars(alone, together.pick(home(together) == cells[k]))
    assert not np.isin(draw_stars(cells, 8, "r", ALL).g, together.g).any()


def home(stars):
    """The cell that a star's id names, which is the one it lies in."""
    found = stars.id >> np.uint64(32)
    lies_in = nested.lonlat_to_healpix(stars.ra, stars.dec, np.uint8(CELL_ORDER))
    # a place within 1e-9 deg of a border may fall on either side
    assert (found != lies_in).mean() < 1e-3
    return found


def test_every_band_shows_the_same_stars():
    cells = cells_about(265.1, -28.35, 0.05)
    seen = {band: draw_stars(cells, 3, band, ROUGH) for band in BANDS}
    for band in BANDS:
        assert_same_stars(seen[band], seen["g"], but=("mag",))
    np.testing.assert_array_equal(seen["g"].mag, seen["g"].g)
    for blue, red in pairwise(BANDS):
        dust = (EXTINCTION[blue] - EXTINCTION[red]) * seen[blue].extinction
        colour = seen[blue].mag - seen[red].mag - dust
        table = [luminosity_table(k).magnitudes for k in range(4)]
        b, r = COLUMNS.index(blue), COLUMNS.index(red)
        for k in range(4):
            own = np.sort(table[k][:, b] - table[k][:, r])
            some = colour[seen[blue].population == k]
            scatter = 6 * abs(SCATTER[b] - SCATTER[r]) + 1e-6
            assert (some > own[0] - scatter).all()
            assert (some < own[-1] + scatter).all()
        assert np.median(colour + dust) > 0


def test_colours_of_a_clear_field_are_those_of_stars():
    stars = {band: draw_stars(cells_about(190.0, 35.0, 0.1), 1, band, replace(SMOOTH, density=40.0)) for band in BANDS}
    assert np.median(stars["g"].extinction) < 0.1
    bright = stars["g"].g < 21
    colour = {a + b: (stars[a].mag - stars[b].mag)[bright] for a, b in ("ug", "gr", "ri", "iz", "zy")}
    assert 0.9 < np.median(colour["ug"]) < 2.4
    # the turn-off of the halo and the M dwarfs of the disc: the two humps of every survey
    turn_off, dwarfs = ((colour["gr"] > low) & (colour["gr"] < high) for low, high in ((0.15, 0.5), (1.2, 1.6)))
    between = (colour["gr"] > 0.75) & (colour["gr"] < 1.1)
    assert turn_off.sum() > between.sum()
    assert (stars["g"].g < 21).sum() > 100
    assert dwarfs.sum() > between.sum()
    for name, low, high in (("ri", 0.0, 2.0), ("iz", -0.1, 1.2), ("zy", -0.1, 0.7)):
        assert low < np.percentile(colour[name], 5) < np.percentile(colour[name], 95) < high
    # V - g of a star follows from its colour (Jester et al. 2005, AJ 130, 873): V = g - 0.58 (g-r) - 0.01
    absolute_g = stars["g"].g - stars["g"].distance_modulus - EXTINCTION["g"] * stars["g"].extinction
    expected = absolute_g - 0.58 * (stars["g"].mag - stars["r"].mag) - 0.01
    assert np.median(np.abs(stars["g"].absolute - expected)) < 0.05


@pytest.mark.parametrize("limit", [26.7, 28.0])
def test_a_deep_sky_has_the_same_bright_stars(limit):
    cells = np.concatenate([cells_about(265.1, -28.35, 0.03), cells_about(150.0, 2.0, 0.2)])
    paper = draw_stars(cells, 5, "i", ROUGH)
    deep = draw_stars(cells, 5, "i", replace(ROUGH, limit=limit))
    assert_same_stars(deep.pick(deep.g < STAR_LIMIT), paper)
    assert STAR_LIMIT < deep.g.max() < limit
    assert len(deep) > 1.02 * len(paper)


def test_a_deep_sky_has_the_same_bright_members():
    # of systems that the catalogue has in full: the rim of the Large Magellanic Cloud
    cells, cloud = cells_about(78.0, -66.5, 0.03), replace(ROUGH, systems=DWARFS[2:3])
    paper = draw_stars(cells, 5, "g", cloud)
    deep = draw_stars(cells, 5, "g", replace(cloud, limit=28.0, members=True))
    assert_same_stars(deep.pick(deep.g < STAR_LIMIT), paper)


def test_limits_are_kept():
    cells = galactic_cells(30.0, 0.5, 0.1)
    for limit in (24.0, 26.5, 27.3):
        for physics in (replace(ROUGH, limit=limit), replace(ROUGH, limit=limit, systems=CLUSTERS[:1])):
            stars = draw_stars(cells, 2, "y", physics)
            assert (stars.g >= BRIGHTEST).all()
            assert (stars.g < max(limit, STAR_LIMIT)).all()


DIRECTIONS = (
    (0, 90, 2400), (90, 20, 700), (180, -5, 120), (20, -60, 1200), (0, 1.3, 10), (30, 0.5, 50), (0, -4, 1), (5, 0, 70),
)  # fmt: skip
LIMITS = np.array([20.0, 22.0, 24.0, 25.0, 26.0, 26.5, 26.9])


@pytest.fixture(scope="module")
def counted():
    """Expected and drawn stars down to `LIMITS` in places of Galactic l, b and a density that makes them many."""
    found = {}
    for l, b, density in DIRECTIONS:
        cells, physics = galactic_cells(l, b, 0.06), replace(SMOOTH, density=density, limit=27.0)
        expected = sum(star_counts(*place, "g", LIMITS, physics) for place in galactic_places(cells)) * FIELD_CELL
        stars = draw_stars(cells, 6, "g", physics)
        found[l, b] = expected, np.array([(stars.g < limit).sum() for limit in LIMITS])
    return found


@pytest.mark.parametrize(("l", "b"), [direction[:2] for direction in DIRECTIONS])
def test_counts_are_those_of_the_model(counted, l, b):
    expected, found = counted[l, b]
    assert expected[-2] > 1.5e5
    np.testing.assert_array_less(np.abs(found - expected), 4.5 * np.sqrt(expected) + 3)
    steps = np.diff(expected)
    np.testing.assert_array_less(np.abs(np.diff(found) - steps), 4.5 * np.sqrt(steps) + 3)


def test_counts_of_all_directions_together_are_those_of_the_model(counted):
    expected, found = (np.sum([one[k] for one in counted.values()], 0) for k in (0, 1))
    assert expected[-2] > 1.5e6
    np.testing.assert_array_less(np.abs(found - expected), 4.5 * np.sqrt(expected))


def test_counts_in_other_bands_are_those_of_the_model():
    cells, physics = galactic_cells(70, 15, 0.06), replace(SMOOTH, density=60.0)
    place = SkyCoord(*nested.healpix_to_lonlat(cells, np.uint8(CELL_ORDER)), unit="deg").galactic
    for band in ("u", "r", "y"):
        # bright enough for the limit in g to take none of them away
        limits = np.array([20.0, 21.5])
        expected = star_counts(place.l.deg.mean(), place.b.deg.mean(), band, limits, physics) * FIELD_CELL * len(cells)
        stars = draw_stars(cells, 1, band, physics)
        found = np.array([(stars.mag < limit).sum() for limit in limits])
        # the scatter of colours moves some stars across the limit
        np.testing.assert_array_less(np.abs(found - expected), 4 * np.sqrt(expected) + 0.02 * expected)


def test_density_is_a_factor_on_everything():
    cells = cells_about(39.997, -34.449, 0.12)
    sparse, dense = SkyPhysics(patchiness=0.0, density=0.5), SkyPhysics(patchiness=0.0, density=4.0)
    one, eight = draw_stars(cells, 4, "g", sparse), draw_stars(cells, 4, "g", dense)
    for some in (lambda s: s.population < 4, lambda s: s.population >= 4):
        n = np.array([some(stars).sum() for stars in (one, eight)])
        assert n.min() > 30
        assert abs(n[1] - 8 * n[0]) < 4 * np.sqrt(n[1] + 64 * n[0])
    assert star_counts(10, 20, "g", [25], dense) == pytest.approx(8 * star_counts(10, 20, "g", [25], sparse))


def test_ids_are_unique():
    for ra, dec in ((6.024, -72.2), (39.997, -34.449), (150.0, 2.0)):
        cells = cells_about(ra, dec, 0.1)
        stars = draw_stars(cells, 1, "g", replace(ALL, patchiness=0.1))
        assert len(np.unique(stars.id)) == len(stars)


def test_stars_and_galaxies_do_not_share_ids():
    cells = cells_about(150.0, 2.0, 0.1)
    assert not np.intersect1d(draw_stars(cells, 1, "g", SMOOTH).id, draw_galaxies(cells, 1, "g").id).size


def squeeze(bits):
    """Even bits side by side: one coordinate of a nested cell within its base cell."""
    return sum(((bits >> np.uint64(2 * k)) & np.uint64(1)) << np.uint64(k) for k in range(20)).astype(np.int64)


def spread(coordinate):
    found = np.zeros(len(coordinate), np.uint64)
    for k in range(20):
        found |= ((coordinate.astype(np.uint64) >> np.uint64(k)) & np.uint64(1)) << np.uint64(2 * k)
    return found


def block(ra, dec, n):
    """n x n cells, and the base cell and coordinates of the first."""
    cell = nested.lonlat_to_healpix(np.array([ra]), np.array([dec]), np.uint8(CELL_ORDER))
    base, inside = cell >> np.uint64(2 * CELL_ORDER), cell & np.uint64(4**CELL_ORDER - 1)
    x0, y0 = int(squeeze(inside)[0]), int(squeeze(inside >> np.uint64(1))[0])
    x, y = (axis.ravel() for axis in np.meshgrid(x0 + np.arange(n), y0 + np.arange(n), indexing="ij"))
    return (base << np.uint64(2 * CELL_ORDER)) | spread(x) | (spread(y) << np.uint64(1)), x0, y0


def changes(grid, parts):
    """Mean square change of counts between neighbours, in Poisson variances: across the cells' borders, and within."""
    across, within = [], []
    for axis in (grid, grid.T):
        for k in range(len(axis) - 1):
            total = axis[k] + axis[k + 1]
            change = (axis[k] - axis[k + 1])[total > 0] ** 2 / total[total > 0]
            (across if k % parts == parts - 1 else within).append(change)
    return np.concatenate(across), np.concatenate(within)


def test_nothing_jumps_at_the_borders_of_cells():
    n, parts = 16, 4
    cells, x0, y0 = block(200.0, 60.0, n)
    physics = SkyPhysics(patchiness=0.6, clustering=2.5, density=4000.0, systems=())
    stars = draw_stars(cells, 3, "g", physics)
    place = nested.lonlat_to_healpix(stars.ra, stars.dec, np.uint8(CELL_ORDER + 2)) & np.uint64(16 * 4**CELL_ORDER - 1)
    x, y = squeeze(place) - x0 * parts, squeeze(place >> np.uint64(1)) - y0 * parts
    grid = np.histogram2d(x, y, [np.arange(n * parts + 1)] * 2)[0]
    assert grid.sum() == len(stars)
    assert grid.mean() > 50
    across, within = changes(grid, parts)
    error = np.sqrt(2 / across.size)
    assert 0.9 < within.mean() < 1.3
    assert across.mean() == pytest.approx(within.mean(), abs=4.5 * error)
    # all of it is structured, and no less so than the cells are wide
    whole = grid.reshape(n, parts, n, parts).sum((1, 3))
    assert whole.std() > 5 * np.sqrt(whole.mean())


def test_clouds_are_where_the_field_has_them():
    physics = SkyPhysics(patchiness=0.7)
    rng = np.random.default_rng(5)
    for ra, dec in ((265.0, -28.0), (100.0, 0.001), (359.99, 45.0), (10.0, -89.9)):
        lon = ra + rng.uniform(-0.3, 0.3, 400) / np.cos(np.deg2rad(dec))
        lat = dec + rng.uniform(-0.08, 0.08, 400)
        cloudy, clear = (extinction_beyond(lon % 360, lat, 3, replace(physics, patchiness=p)) for p in (0.7, 0.0))
        expected = np.array([cloudiness(*place, 3, physics) for place in zip(lon, lat, strict=True)])
        assert np.log(expected).std() > 0.05
        # linear within a cell, as against the field itself
        np.testing.assert_allclose(cloudy / clear, expected, rtol=0.05)


def test_clouds_spread_as_asked_and_keep_the_mean():
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 4000), np.rad2deg(np.arcsin(rng.uniform(-1, 1, 4000)))
    for sigma in (0.16, 0.5):
        factor = np.array([cloudiness(*p, 2, SkyPhysics(patchiness=sigma)) for p in zip(ra, dec, strict=True)])
        assert np.log(factor).std() == pytest.approx(sigma, rel=0.08)
        assert factor.mean() == pytest.approx(1, abs=0.08 * sigma)
    assert cloudiness(10.0, 10.0, 2, SMOOTH) == 1
    one, two = ([cloudiness(*p, seed, ROUGH) for p in zip(ra, dec, strict=True)] for seed in (2, 3))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.1


def test_stars_lie_in_front_of_all_the_dust_there_is():
    cells = galactic_cells(3.0, 2.0, 0.05)
    stars = draw_stars(cells, 8, "g", ROUGH)
    beyond = extinction_beyond(stars.ra, stars.dec, 8, ROUGH)
    assert (stars.extinction <= beyond * (1 + 1e-6)).all()
    far = stars.distance_modulus > 15
    assert far.sum() > 100
    assert np.median(stars.extinction[far] / beyond[far]) > 0.9
    near = stars.distance_modulus < 10
    assert np.median(stars.extinction[near] / beyond[near]) < 0.3


@pytest.mark.parametrize(("order", "share"), [(7, 0.5), (9, 0.5), (5, 0.2)])
def test_the_footprint_keeps_whole_cells_and_the_share_asked(order, share):
    physics = SkyPhysics(footprint=share, footprint_order=order)
    parents = np.random.default_rng(0).choice(12 * 4**order, 3000, replace=False).astype(np.uint64)
    shift = np.uint64(2 * (CELL_ORDER - order))
    first = covered(parents << shift, 1, physics)
    last = covered((parents << shift) | np.uint64(4 ** (CELL_ORDER - order) - 1), 1, physics)
    np.testing.assert_array_equal(first, last)
    assert first.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 3000))
    assert (first != covered(parents << shift, 2, physics)).any()


def test_the_footprint_takes_stars_away_and_changes_none():
    cells = cells_about(120.0, 40.0, 0.5)
    every = draw_stars(cells, 1, "g", ROUGH)
    half = replace(ROUGH, footprint=0.5)
    some = draw_stars(cells, 1, "g", half)
    assert 0 < len(some) < len(every)
    assert_same_stars(some, every.pick(covered(home(every), 1, half)))
    assert len(draw_stars(cells, 1, "g", replace(ROUGH, footprint=0.0))) == 0
    assert len(draw_stars(cells[:0], 1, "g", ROUGH)) == 0


DWARF = System("dwarf", 150.0, 30.0, 18.0, -9.0, 5.0, 4, axis_ratio=0.6, position_angle=40.0)
BARE = SkyPhysics(patchiness=0.0, dust=0.0, density=1e-6, members=True, limit=26.5)


@pytest.mark.parametrize("profile", ["plummer", "exponential"])
def test_members_follow_the_surface_density(profile):
    system = replace(DWARF, profile=profile, absolute=DWARF.absolute)
    cells = cells_about(system.ra, system.dec, 0.5)
    # density applies to members as well
    stars = draw_stars(cells, 2, "g", replace(BARE, density=1.0, halo=1e-9, systems=(system,)))
    members = stars.pick(stars.population == system.population)
    table = luminosity_table(system.population)
    total = 10 ** (-0.4 * (system.absolute - table.light))
    visible = np.interp(26.5 - system.modulus, table.edges, table.cumulative)
    edges = np.array([0, 1, 2, 3, 4, 5, 7, 10, 15, 20]) / 60
    fine = np.linspace(0, edges[-1], 200_001)
    rings = surface_density(system, fine) * 2 * np.pi * system.axis_ratio * fine * fine[1]
    share = np.diff(np.interp(edges, fine, np.cumsum(rings)))
    expected = total * visible * share
    radius = elliptical_radius(system, members.ra, members.dec)
    found = np.histogram(radius, edges)[0]
    assert expected.min() > 20
    assert ((found - expected) ** 2 / expected).sum() < len(found) + 4 * np.sqrt(2 * len(found))
    assert found.sum() == pytest.approx(expected.sum(), abs=4 * np.sqrt(expected.sum()))
    # the long axis points to the position angle
    inner = radius < 12 / 60
    east = (members.ra - system.ra)[inner] * np.cos(np.deg2rad(system.dec))
    north = (members.dec - system.dec)[inner]
    angle = np.rad2deg(0.5 * np.arctan2(2 * np.mean(east * north), np.mean(north**2) - np.mean(east**2)))
    assert angle == pytest.approx(system.position_angle, abs=4)
    assert members.distance_modulus.std() == 0


def test_the_dwarfs_brighter_members_alone_are_in_the_paper_catalogue():
    paper = replace(BARE, density=1.0, members=False)
    limited = replace(DWARF, bright_limit=21.0, absolute=-11.0)
    cells = cells_about(DWARF.ra, DWARF.dec, 0.1)
    stars = draw_stars(cells, 2, "g", replace(paper, systems=(limited,)))
    members = stars.pick(stars.population == DWARF.population)
    visual = members.absolute + members.distance_modulus + members.extinction
    # the luminosity of a member lies within a step of its row in the table
    assert visual.max() < 21.0 + 0.06
    table = luminosity_table(DWARF.population)
    bright = np.diff(table.cumulative)[table.magnitudes[:, -1] < 21.0 - DWARF.modulus].sum()
    total = 10 ** (-0.4 * (-11.0 - table.light))
    inside = 1 / (1 + (5.0 / 6.0) ** 2)  # of a round Plummer sphere, within the cone
    found = len(members)
    assert 0.75 < found / (bright * total * inside) < 1.35
    every = draw_stars(cells, 2, "g", replace(paper, members=True, systems=(limited,)))
    assert (every.population == DWARF.population).sum() > 20 * found


def test_a_deep_system_is_spread_along_the_line_of_sight():
    deep = replace(DWARF, depth=0.1)
    stars = draw_stars(cells_about(150.0, 30.0, 0.1), 2, "g", replace(BARE, density=1.0, systems=(deep,)))
    modulus = stars.distance_modulus[stars.population == DWARF.population]
    assert modulus.std() == pytest.approx(0.1, rel=0.1)
    assert modulus.mean() == pytest.approx(18.0, abs=0.02)


def test_a_cells_reach_is_no_less_than_that_of_any_cell():
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 12 * 4**CELL_ORDER, 20_000).astype(np.uint64)
    # the most stretched ones too: about the poles and along the borders of the base cells
    first = np.arange(12, dtype=np.uint64) << np.uint64(2 * CELL_ORDER)
    ends = np.concatenate([first, first + np.uint64(4**CELL_ORDER - 1)])
    edges = nested.lonlat_to_healpix(rng.uniform(0, 360, 20_000), np.repeat([41.8, -41.8, 89, -89], 5000), np.uint8(12))
    cells = np.concatenate([cells, ends, edges])
    centre = unit_vectors(*nested.healpix_to_lonlat(cells, np.uint8(CELL_ORDER)))
    corners = unit_vectors(*nested.vertices(cells, np.uint8(CELL_ORDER)))
    apart = np.rad2deg(np.linalg.norm(corners - centre[:, None], axis=-1))
    assert apart.max() <= CELL_REACH


def test_clumps_are_of_the_strength_asked_and_keep_the_mean():
    cells = np.unique(np.random.default_rng(3).integers(0, 12 * 4**CELL_ORDER, 1200).astype(np.uint64))
    lat = SkyCoord(*nested.healpix_to_lonlat(cells, np.uint8(CELL_ORDER)), unit="deg").galactic.b.deg
    cells = cells[np.abs(lat) > 60]
    smooth, rough = (
        np.bincount(np.searchsorted(cells, home(draw_stars(cells, 1, "g", physics))), minlength=len(cells))
        for physics in (replace(SMOOTH, density=600.0), replace(SMOOTH, density=600.0, clustering=0.6))
    )
    ratio = rough / smooth
    assert np.log(ratio).std() == pytest.approx(0.6, rel=0.3)
    assert ratio.mean() == pytest.approx(1, abs=4 * ratio.std() / np.sqrt(len(cells)))
