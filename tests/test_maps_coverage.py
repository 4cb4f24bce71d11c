import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.errors import ChipRejected
from csst_dask.instrument.focal_plane import unit_vectors
from csst_dask.maps.coverage import detector_area, overlap, valid_fraction, visit
from csst_dask.maps.grid import HealpixGrid

SIDE = 0.19  # deg


def square(ra, dec, angle=0.0, side=SIDE, shift=(0.0, 0.0)):
    """Corners of a square in the tangent plane about (ra, dec), turned by `angle`, moved by `shift`; deg."""
    a, d, t = np.radians([ra, dec, angle])
    half = np.radians(side) / 2
    x = half * np.array([-1, 1, 1, -1]) + np.radians(shift[0])
    y = half * np.array([-1, -1, 1, 1]) + np.radians(shift[1])
    east = np.array([-np.sin(a), np.cos(a), 0])
    north = np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)])
    v = unit_vectors(ra, dec) + np.outer(x * np.cos(t) - y * np.sin(t), east)
    v = v + np.outer(x * np.sin(t) + y * np.cos(t), north)
    return np.degrees(np.arctan2(v[:, 1], v[:, 0])) % 360, np.degrees(np.arctan2(v[:, 2], np.hypot(*v[:, :2].T)))


PLACES = {
    "anywhere": (211.3, -33.7),
    "north pole": (12.0, 89.99),
    "south pole": (12.0, -89.95),
    "RA 0": (0.0, 17.0),
    "base cells meet, equator": (45.0, 0.0),
    "base cells meet, north": (90.0, 41.8103149),
    "base cells meet, south": (180.0, -41.8103149),
    "along an edge": (90.0, 60.0),
}


@pytest.mark.parametrize("nside", [64, 512, 1024, 4096])
@pytest.mark.parametrize("place", PLACES)
def test_cells_add_up_to_the_detector(place, nside):
    ra, dec = square(*PLACES[place], angle=0.0 if place == "along an edge" else 27.0)
    cells, area = overlap(ra, dec, HealpixGrid(nside))
    assert area.sum() == pytest.approx(detector_area(ra, dec), rel=1e-11)
    assert np.all(np.diff(cells) > 0)
    assert area.min() > 0
    slack = 1e-6 if "pole" in place else 1e-9
    assert area.max() <= HealpixGrid(nside).cell_area * (1 + slack)


@settings(max_examples=60, deadline=None)
@given(
    ra=st.floats(0, 360),
    z=st.floats(-1, 1),
    angle=st.floats(0, 360),
    side=st.floats(0.02, 2.0),
    depth=st.integers(5, 9),
)
def test_cells_add_up_anywhere(ra, z, angle, side, depth):
    corners = square(ra, np.degrees(np.arcsin(z)), angle, side)
    _, area = overlap(*corners, HealpixGrid(1 << depth))
    assert area.sum() == pytest.approx(detector_area(*corners), rel=1e-10)


@pytest.mark.parametrize("nside", [1, 4, 64, 2048])
def test_orientation_and_first_corner_do_not_matter(nside):
    ra, dec = square(100.0, 52.0, 40.0)
    cells, area = overlap(ra, dec, HealpixGrid(nside))
    for order in ([3, 2, 1, 0], [1, 2, 3, 0]):
        same_cells, same_area = overlap(ra[order], dec[order], HealpixGrid(nside))
        assert np.array_equal(cells, same_cells)
        assert np.allclose(area, same_area, rtol=1e-9, atol=1e-16)


def test_area_of_a_square_is_the_analytic_one():
    for side in (0.19, 3.0):
        half = np.tan(np.radians(side) / 2)
        plane = 2 * half / np.radians(side) * side / 2  # tangent-plane half side of a square of great circles, deg
        corners = square(77.0, 12.0, 5.0, side=2 * plane)
        exact = 4 * np.arcsin(half**2 / (1 + half**2))  # sr, pyramid with a square base
        assert detector_area(*corners) == pytest.approx(exact * (180 / np.pi) ** 2, rel=1e-12)


def test_a_cell_inside_the_detector_is_covered_whole():
    grid = HealpixGrid(4096)
    for place, error in (((211.3, -33.7), 1e-9), ((0.0, 89.9), 1e-6)):
        cells, area = overlap(*square(*place, side=0.5), grid)
        inside = area / grid.cell_area
        assert inside.max() == pytest.approx(1, abs=error)
        assert (inside > 1 - error).sum() > 0.8 * cells.size


def test_a_detector_inside_a_cell_lies_in_that_cell_alone():
    grid = HealpixGrid(16)
    ra, dec = grid.centres([1234])
    cells, area = overlap(*square(float(ra[0]), float(dec[0])), grid)
    assert cells.tolist() == [1234]
    assert area[0] == pytest.approx(detector_area(*square(float(ra[0]), float(dec[0]))), rel=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_children_add_up_to_their_parent(place):
    corners = square(*PLACES[place], angle=33.0)
    fine, fine_area = overlap(*corners, HealpixGrid(2048))
    coarse, area = overlap(*corners, HealpixGrid(256))
    summed = np.zeros(coarse.size)
    np.add.at(summed, np.searchsorted(coarse, HealpixGrid(2048).parents(fine, 256)), fine_area)
    assert np.allclose(summed, area, rtol=1e-12, atol=1e-16)


def test_agrees_with_points_drawn_at_random():
    grid, corners = HealpixGrid(512), square(300.0, 63.0, 20.0)
    cells, area = overlap(*corners, grid)
    rng = np.random.default_rng(3)
    n = 400_000
    z = rng.uniform(*np.sin(np.radians([62.8, 63.2])), n)
    lon, lat = rng.uniform(299.6, 300.4, n), np.degrees(np.arcsin(z))
    v, c = unit_vectors(lon, lat), unit_vectors(*corners)
    inside = np.all([v @ np.cross(c[k], c[(k + 1) % 4]) > 0 for k in range(4)], axis=0)
    box = 0.8 * np.diff(np.sin(np.radians([62.8, 63.2])))[0] * 180 / np.pi
    found = np.bincount(np.searchsorted(cells, grid.cells_at(lon[inside], lat[inside])), minlength=cells.size)
    sigma = np.sqrt(np.maximum(area / box * n, 1)) * box / n
    assert np.all(np.abs(found * box / n - area) < 5 * sigma)


@pytest.mark.parametrize(
    ("ra", "dec"),
    [
        ([0, 1, np.nan, 0], [0, 0, 1, 1]),
        ([0, 10, 10, 0], [0, 0, 1, 1]),
        ([0, 1, 1, 0], [0, 0, 1, 91]),
        ([0, 1, 0, 1], [0, 0, 1, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0, 1, 0, 1], [89, 89, 90, 90]),
        ([0, 1, 1], [0, 0, 1]),
    ],
    ids=["not finite", "too wide", "no declination", "crossed", "one point", "a pole twice", "three corners"],
)
def test_impossible_corners_are_rejected(ra, dec):
    with pytest.raises(ChipRejected, match="corners"):
        overlap(ra, dec, HealpixGrid(64))


@pytest.mark.parametrize("nside", [64, 1024, 8192])
def test_valid_pixels_add_up(nside):
    valid = np.random.default_rng(4).random((224, 224)).astype(np.float32)
    corners = square(45.0, 41.0, 12.0, shift=(0.5, 0.3))
    cells, area = overlap(*corners, HealpixGrid(nside))
    fraction = valid_fraction(valid, *corners, cells, HealpixGrid(nside))
    expected = detector_area(*corners) * valid.mean(dtype=np.float64)
    assert (area * fraction).sum() == pytest.approx(expected, rel=1e-13)
    assert fraction.min() >= 0
    assert fraction.max() < 1 + 1e-5


def test_a_uniform_map_has_that_fraction_everywhere():
    corners, grid = square(10.0, -80.0, 60.0, shift=(0.4, -0.4)), HealpixGrid(1024)
    for value in (1.0, 0.25):
        _, _, fraction = visit(np.full((224, 224), value), *corners, grid)
        assert np.allclose(fraction, value, rtol=1e-6)


@pytest.mark.parametrize("flip", [False, True], ids=["as given", "mirrored"])
def test_a_masked_half_lies_where_it_should(flip):
    """A mask along a great circle through the middle equals the overlap with the half detector."""
    grid = HealpixGrid(1024)
    ra, dec = square(150.0, 20.0, 35.0)
    if flip:
        ra, dec = ra[[1, 0, 3, 2]], dec[[1, 0, 3, 2]]
    valid = np.zeros((224, 224))
    valid[:, :112] = 1
    cells, area, fraction = visit(valid, ra, dec, grid)
    v = unit_vectors(ra, dec)
    middle = np.array([v[0] + v[1], v[2] + v[3]])
    corners = np.stack([v[0], middle[0], middle[1], v[3]])
    half_ra = np.degrees(np.arctan2(corners[:, 1], corners[:, 0]))
    half_dec = np.degrees(np.arctan2(corners[:, 2], np.hypot(*corners[:, :2].T)))
    half_cells, half_area = overlap(half_ra, half_dec, grid)
    expected = np.zeros(cells.size)
    expected[np.searchsorted(cells, half_cells)] = half_area
    assert np.allclose(area * fraction, expected, rtol=1e-5, atol=1e-10)
    assert np.all(fraction[expected == 0] == 0)


def test_axes_of_the_valid_map():
    corners, grid = square(150.0, 20.0), HealpixGrid(8192)
    valid = np.zeros((224, 224))
    valid[10, 200] = 1  # near corner 1: ix large, iy small
    cells, _, fraction = visit(valid, *corners, grid)
    ra, dec = grid.centres(cells[np.argmax(fraction)])
    at = unit_vectors(corners[0], corners[1]) @ unit_vectors(ra, dec)[0]
    assert np.argmax(at) == 1


def test_valid_children_add_up_to_their_parent():
    valid = np.random.default_rng(5).random((224, 224)) ** 8
    corners = square(200.0, -55.0, 33.0)
    fine, area, fraction = visit(valid, *corners, HealpixGrid(2048))
    coarse, coarse_area, coarse_fraction = visit(valid, *corners, HealpixGrid(512))
    summed = np.zeros(coarse.size)
    np.add.at(summed, np.searchsorted(coarse, HealpixGrid(2048).parents(fine, 512)), area * fraction)
    assert np.allclose(summed, coarse_area * coarse_fraction, rtol=1e-11, atol=1e-16)


def test_nothing_valid_and_nan_count_as_nothing():
    corners, grid = square(1.0, 1.0), HealpixGrid(1024)
    for value in (0.0, np.nan):
        assert np.all(visit(np.full((8, 8), value), *corners, grid)[2] == 0)


def test_cells_elsewhere_have_no_fraction():
    corners, grid = square(1.0, 1.0), HealpixGrid(1024)
    assert valid_fraction(np.ones((8, 8)), *corners, [0, grid.n_cells - 1], grid).tolist() == [0.0, 0.0]


def test_a_valid_map_needs_two_dimensions():
    with pytest.raises(ChipRejected, match="shape"):
        visit(np.ones(8), *square(1.0, 1.0), HealpixGrid(64))
