"""The galaxies of the sky: the same whatever else is drawn, as many as surveys count, all over their cells."""

from dataclasses import fields
from itertools import pairwise

import healpix_geo.nested
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.errors import ConfigError
from csst_dask.schema import BANDS
from csst_dask.simulation.catalogue import CELL_ORDER
from csst_dask.simulation.galaxies import CELL_AREA, cumulative_counts, draw_galaxies, structure_sigmas

COLUMNS = [field.name for field in fields(draw_galaxies(np.arange(1, dtype=np.uint64), 0, "i"))]


def neighbours(parent, n):
    """Consecutive cells: a compact patch of the sky."""
    return np.uint64(parent) * np.uint64(4**6) + np.arange(n, dtype=np.uint64)


def spread(n, seed=0):
    """Cells all over the sky."""
    return np.random.default_rng(seed).choice(12 * 4**CELL_ORDER, n, replace=False).astype(np.uint64)


def assert_same(one, two, columns=COLUMNS):
    for name in columns:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 12 * 4**6 - 1), st.integers(0, 10**6 - 1), st.randoms(use_true_random=False))
def test_other_cells_and_their_order_change_nothing(parent, seed, random):
    cells = neighbours(parent, 24)
    whole = draw_galaxies(cells, seed, "g", limit=25.0)
    shuffled = cells.tolist()
    random.shuffle(shuffled)
    some = np.array(shuffled[:7], np.uint64)
    parts = draw_galaxies(some, seed, "g", limit=25.0)
    rows = [np.flatnonzero(whole.id >> np.uint64(32) == cell) for cell in some]
    assert_same(parts, whole.pick(np.concatenate(rows)))


def test_ids_name_the_cell_and_increase_within_it():
    cells = neighbours(777, 50)[::-1]
    galaxies = draw_galaxies(cells, 3, "i")
    cell, number = galaxies.id >> np.uint64(32), galaxies.id & np.uint64(2**32 - 1)
    order = np.concatenate([np.flatnonzero(cell == c) for c in cells])
    np.testing.assert_array_equal(order, np.arange(len(galaxies)))
    assert (np.diff(number.astype(np.int64))[np.diff(cell.astype(np.int64)) == 0] > 0).all()
    assert len(np.unique(galaxies.id)) == len(galaxies)


def test_bands_share_the_galaxies_and_one_set_of_colours():
    cells = spread(300)
    drawn = {band: draw_galaxies(cells, 1, band) for band in BANDS}
    for band in BANDS:
        assert_same(drawn[band], drawn["i"], [name for name in COLUMNS if name != "mag"])
    mag = {band: galaxies.mag for band, galaxies in drawn.items()}
    g_i = mag["g"] - mag["i"]
    assert np.corrcoef(g_i, mag["r"] - mag["i"])[0, 1] > 0.9
    assert np.corrcoef(g_i, mag["u"] - mag["g"])[0, 1] > 0.7
    for blue, red in pairwise(BANDS):
        assert -0.1 < np.median(mag[blue] - mag[red]) < 1.5
    round_ = drawn["i"].bulge_fraction == 1
    assert np.median(g_i[round_]) > np.median(g_i[~round_]) + 0.5


def test_a_fainter_limit_keeps_the_brighter_galaxies():
    cells = spread(200)
    deep, shallow = draw_galaxies(cells, 5, "i", limit=27.5), draw_galaxies(cells, 5, "i", limit=24.5)
    assert shallow.mag.max() < 24.5 + 1e-3
    kept = deep.pick(np.isin(deep.id, shallow.id))
    assert_same(shallow, kept)
    assert deep.mag[~np.isin(deep.id, shallow.id)].min() > 24.5 - 1e-3


def test_seeds_are_different_skies():
    cells = spread(50)
    one, two = draw_galaxies(cells, 1, "i"), draw_galaxies(cells, 2, "i")
    for name in ("dec", "redshift", "radius"):
        assert np.isin(getattr(one, name), getattr(two, name)).mean() < 0.01, name


def test_the_law_is_what_surveys_count():
    # LSST Science Book eq. 3.7; VIRMOS, McCracken et al. 2003: 90 729 sources with 18 < I_AB < 24 on 1.2 deg2
    assert cumulative_counts(25.0) == pytest.approx(46.0)
    assert cumulative_counts(26.5) == pytest.approx(46 * 10 ** (0.31 * 1.5), rel=1e-3)
    assert cumulative_counts(24.0) * 3600 == pytest.approx(90_729 / 1.2, rel=0.1)
    # SDSS main sample, r < 17.77: 92 per deg2, for r - i = 0.4
    assert cumulative_counts(17.4) * 3600 == pytest.approx(92, rel=0.2)
    slope = np.log10(cumulative_counts(15.0) / cumulative_counts(14.0))
    assert slope == pytest.approx(0.6, abs=0.01)


def test_counts_follow_the_law_at_every_magnitude():
    # far apart, so that no structure is shared but within a cell: its scatter adds to Poisson's
    cells = spread(6000)
    mag = draw_galaxies(cells, 11, "i").mag
    variance = np.expm1((structure_sigmas() ** 2).sum())
    for low, high in ((18, 21), (21, 22.5), (22.5, 24), (24, 25), (25, 26)):
        expected = len(cells) * CELL_AREA * (cumulative_counts(high) - cumulative_counts(low))
        found = ((mag > low) & (mag < high)).sum()
        assert abs(found - expected) < 4 * np.sqrt(expected + variance * expected**2 / len(cells))
    assert mag.min() > 12


def test_cells_scatter_as_clustered_counts():
    cells = spread(4000)
    galaxies = draw_galaxies(cells, 2, "i")
    counts = np.unique(np.concatenate([galaxies.id >> np.uint64(32), cells]), return_counts=True)[1] - 1
    mean = counts.mean()
    excess = (counts.var() - mean) / mean**2
    assert excess == pytest.approx(np.expm1((structure_sigmas() ** 2).sum()), rel=0.25)


def test_neighbouring_cells_are_alike():
    first = spread(4000) // np.uint64(4) * np.uint64(4)
    cells = np.stack([first, first + np.uint64(1)], axis=1).ravel()
    galaxies = draw_galaxies(cells, 4, "i", limit=27.5)
    found = np.sort(galaxies.id >> np.uint64(32))
    number = (np.searchsorted(found, cells, "right") - np.searchsorted(found, cells)).reshape(-1, 2).astype(float)
    shared = np.mean(np.prod(number / number.mean() - 1, axis=1))
    assert shared == pytest.approx(np.expm1((structure_sigmas()[:-1] ** 2).sum()), rel=0.3)


def test_galaxies_lie_in_their_cells_and_all_over_them():
    cells = spread(400)
    galaxies = draw_galaxies(cells, 6, "i")
    depth = np.uint8(CELL_ORDER)
    inside = healpix_geo.nested.lonlat_to_healpix(galaxies.ra, galaxies.dec, depth, num_threads=1)
    np.testing.assert_array_equal(inside, galaxies.id >> np.uint64(32))
    # children are equal in area: each of 64 has its share
    child = healpix_geo.nested.lonlat_to_healpix(galaxies.ra, galaxies.dec, np.uint8(CELL_ORDER + 3), num_threads=1)
    counts = np.bincount((child & np.uint64(63)).astype(int), minlength=64)
    mean = len(galaxies) / 64
    assert ((counts - mean) ** 2 / mean).sum() == pytest.approx(63, abs=4 * np.sqrt(2 * 63))


def test_shapes_are_those_of_galaxies():
    galaxies = draw_galaxies(spread(1500), 8, "i")
    round_ = galaxies.bulge_fraction == 1
    assert round_.mean() == pytest.approx(0.15, abs=4 * np.sqrt(0.15 * 0.85 / len(galaxies)))
    assert ((galaxies.bulge_fraction[~round_] >= 0) & (galaxies.bulge_fraction[~round_] < 0.41)).all()
    assert ((galaxies.axis_ratio > 0.1) & (galaxies.axis_ratio <= 1)).all()
    quarters = np.histogram(galaxies.position_angle, 4, (0, 180))[0]
    assert np.abs(quarters - len(galaxies) / 4).max() < 4 * np.sqrt(len(galaxies) * 3 / 16)
    for mag in (22.0, 24.0, 25.5):
        near = np.abs(galaxies.mag - mag) < 0.1
        log_scale = np.log(galaxies.radius[near] / 1.678)
        error = 0.3 / np.sqrt(near.sum())
        assert log_scale.mean() == pytest.approx(-1.145 - 0.269 * (mag - 23), abs=4 * error + 0.01)
        assert log_scale.std() == pytest.approx(0.3, rel=0.2)
    faint, bright = galaxies.mag > 25, galaxies.mag < 22.5
    assert 0.85 < np.median(galaxies.redshift[faint]) < 1.15
    assert 0.4 < np.median(galaxies.redshift[bright]) < 0.8


def test_density_and_size_scale():
    cells = spread(1000)
    plain, dense = draw_galaxies(cells, 9, "r", limit=25), draw_galaxies(cells, 9, "r", limit=25, density=2.0)
    assert len(dense) / len(plain) == pytest.approx(2, abs=0.05)
    assert len(draw_galaxies(cells, 9, "r", density=0.0)) == 0
    large = draw_galaxies(cells, 9, "r", limit=25, size=1.5)
    np.testing.assert_allclose(large.radius, 1.5 * plain.radius)
    np.testing.assert_allclose(large.bulge_radius, 1.5 * plain.bulge_radius)
    assert_same(large, plain, ["id", "ra", "dec", "mag", "axis_ratio", "redshift"])


def test_no_cells_no_galaxies():
    assert len(draw_galaxies(np.array([], np.uint64), 0, "i")) == 0


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"band": "K"}, "'K'"),
        ({"limit": 28.0}, "28.0"),
        ({"limit": np.nan}, "nan"),
        ({"density": -1.0}, "-1.0"),
        ({"size": 0.0}, "0.0"),
        ({"cells": np.array([12 * 4**CELL_ORDER], np.uint64)}, str(12 * 4**CELL_ORDER)),
    ],
)
def test_what_cannot_be_is_named(change, names):
    arguments = {"cells": np.arange(3, dtype=np.uint64), "seed": 0, "band": "i"} | change
    with pytest.raises(ConfigError, match=names):
        draw_galaxies(**arguments)
