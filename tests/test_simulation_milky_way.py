"""The Milky Way along a line of sight: its symmetries, its dust, its bar, and its numbers near the Sun and in all."""

import healpix_geo.nested
import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from csst_dask.instrument.focal_plane import unit_vectors
from csst_dask.simulation.milky_way import MODULUS, bar_density, galactic_rotation, line_of_sight
from csst_dask.simulation.physics import SkyPhysics
from csst_dask.simulation.stars import star_counts

THIN, THICK, HALO, BULGE = range(4)


def look(l, b, modulus=MODULUS, halo=1.0):
    """Stars of each component and A_V by distance."""
    x, y, z = unit_vectors(np.array(float(l)), np.array(float(b)))
    stars, dust = np.empty((4, len(modulus))), np.empty(len(modulus))
    line_of_sight(x, y, z, modulus, 1.0, halo, bar_density(), stars, dust)
    return stars, dust


def test_axes_are_the_galactic_ones():
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 50), rng.uniform(-90, 90, 50)
    galactic = SkyCoord(ra, dec, unit="deg").galactic
    found = unit_vectors(ra, dec) @ galactic_rotation().T
    np.testing.assert_allclose(found, unit_vectors(galactic.l.deg, galactic.b.deg), atol=1e-12)


def test_near_the_sun_there_is_one_star_per_cubic_parsec():
    nearest, far = 10 ** (0.2 * (MODULUS[0] - 0.05) + 1), 10 ** (0.2 * 2.0 + 1)  # pc
    around = [look(l, b)[0][:3, MODULUS < 2.0].sum() for l, b in ((0, 0), (90, 0), (180, 0), (0, 90), (0, -90))]
    assert np.mean(around) == pytest.approx((far**3 - nearest**3) / 3, rel=0.01)


@pytest.mark.parametrize("b", [12.0, 35.0, 70.0])
def test_the_discs_are_the_same_on_both_sides_of_the_centre(b):
    for l in (20.0, 60.0, 140.0):
        (left, left_dust), (right, right_dust) = look(l, b), look(-l, b)
        np.testing.assert_allclose(left[:BULGE], right[:BULGE], rtol=1e-9)
        np.testing.assert_allclose(left_dust, right_dust, rtol=1e-9)


@pytest.mark.parametrize("l", [0.0, 90.0, 180.0])
@pytest.mark.parametrize("b", [10.0, 30.0, 60.0])
def test_north_equals_south_but_for_the_suns_height_above_the_plane(l, b):
    (north, north_dust), (south, south_dust) = look(l, b), look(l, -b)
    # 25 pc of a disc of 300 pc: the plane and more dust lie to the south
    ratio = south[THIN].sum() / north[THIN].sum()
    assert 1 < ratio < np.exp(2 * 25 / 300) * 1.02
    assert (south_dust >= north_dust).all()
    clear = SkyPhysics(dust=0.0)
    counts = [star_counts(l, sign * b, "g", [26.5], clear)[0] for sign in (1, -1)]
    assert 0.8 < counts[0] / counts[1] < 1


def test_counts_fall_away_from_the_plane_and_the_centre():
    plane = [star_counts(90, b, "i", [24])[0] for b in (10, 20, 40, 60, 90)]
    assert (np.diff(plane) < 0).all()
    centre = [star_counts(l, 15, "i", [24])[0] for l in (0, 30, 60, 90, 180)]
    assert (np.diff(centre) < 0).all()


@pytest.mark.parametrize(("l", "b"), [(0, 0), (3, 1), (90, 20), (200, -5), (0, 90)])
def test_dust_rises_with_distance(l, b):
    _, dust = look(l, b)
    assert dust[0] < 0.05  # 10 pc
    assert (np.diff(dust) >= 0).all()
    assert dust[-1] > 5 * dust[0]


def test_dust_is_thick_in_the_plane_and_thin_at_the_poles():
    assert 0.05 < look(0, 90)[1][-1] < look(0, -90)[1][-1] < 0.2
    assert look(0, 0)[1][-1] > 20
    through = [look(60, b)[1][-1] for b in (0, 2, 10, 30, 60)]
    assert (np.diff(through) < 0).all()


@pytest.mark.parametrize("l", [10, 15, 20])
@pytest.mark.parametrize("b", [-4, 2])
def test_the_bars_near_end_points_to_positive_longitude(l, b):
    near, far = look(l, b)[0][BULGE], look(-l, b)[0][BULGE]
    assert (near * MODULUS).sum() / near.sum() < (far * MODULUS).sum() / far.sum() - 0.3
    assert near.sum() > 1.1 * far.sum()
    # in front of the centre, where both can be seen, more so
    front = MODULUS < 14
    assert near[front].sum() > 3 * far[front].sum()


def test_the_bar_has_the_stars_that_its_density_stands_for():
    cells = np.arange(12 * 4**4, dtype=np.uint64)
    l, b = healpix_geo.nested.healpix_to_lonlat(cells, 4)
    seen = sum(look(*place)[0][BULGE].sum() for place in zip(l, b, strict=True) if abs(place[1]) < 40)
    # 0.8e10 solar masses in stars of 0.4 on average, less the taper
    assert 0.9 * 2e10 < seen * 4 * np.pi / len(cells) < 2e10


@pytest.mark.parametrize(("l", "b"), [(0, 0), (30, 0.5), (90, 30), (0, 90)])
def test_shorter_steps_change_nothing(l, b):
    fine = np.arange(0.0, 20.6, 0.05) + 0.025
    (stars, dust), (fine_stars, fine_dust) = look(l, b), look(l, b, fine)
    np.testing.assert_allclose(stars.sum(1), fine_stars.sum(1), rtol=0.01)
    for modulus in (8.0, 12.0, 14.5, 20.0):
        assert np.interp(modulus, MODULUS, dust) == pytest.approx(np.interp(modulus, fine, fine_dust), rel=0.01)


def test_the_halos_factor_is_on_the_halo_alone():
    one, three = look(70, 50)[0], look(70, 50, halo=3.0)[0]
    np.testing.assert_allclose(three[HALO], 3 * one[HALO])
    np.testing.assert_array_equal(three[[THIN, THICK, BULGE]], one[[THIN, THICK, BULGE]])
