import numpy as np
import pytest
from healpix_geo import nested

from csst_dask.errors import ConfigError
from csst_dask.instrument.focal_plane import unit_vectors
from csst_dask.maps.grid import HealpixGrid


@pytest.mark.parametrize("nside", [1, 64, 1024, 65536])
def test_attributes_round_trip(nside):
    grid = HealpixGrid(nside)
    assert HealpixGrid.from_attrs(grid.attrs()) == grid
    assert 1 << grid.depth == nside
    assert grid.group_attrs()["dggs"]["refinement_level"] == grid.crs_attrs()["refinement_level"] == grid.depth


def test_cells_tile_the_sphere():
    grid = HealpixGrid(4)
    assert grid.cell_area * grid.n_cells == pytest.approx(4 * np.pi * (180 / np.pi) ** 2, rel=1e-14)


@pytest.mark.parametrize("nside", [0, 3, 131072, 2.0, "64"])
def test_other_nside_is_refused(nside):
    with pytest.raises(ConfigError, match="power of two"):
        HealpixGrid(nside)


@pytest.mark.parametrize("change", [{"indexing_scheme": "ring"}, {"grid_name": "h3"}, {"level": None}])
def test_other_grids_are_refused(change):
    with pytest.raises(ConfigError, match="cell_ids"):
        HealpixGrid.from_attrs(HealpixGrid(8).attrs() | change)


def test_a_centre_lies_in_its_cell_and_in_the_parent_of_it():
    grid, coarse = HealpixGrid(256), HealpixGrid(16)
    cells = np.random.default_rng(0).integers(0, grid.n_cells, 500)
    ra, dec = grid.centres(cells)
    assert np.array_equal(grid.cells_at(ra, dec), cells)
    assert np.array_equal(grid.cells_at(ra - 360, dec), cells)
    assert np.array_equal(coarse.cells_at(ra, dec), grid.parents(cells, 16))


def test_parents_are_never_finer():
    with pytest.raises(ConfigError, match="cannot be refined"):
        HealpixGrid(16).parents([0], 32)


@pytest.mark.parametrize("nside", [2, 64, 4096])
def test_neighbours_share_the_points_of_their_edge(nside):
    grid, step = HealpixGrid(nside), 8
    last = 4**grid.depth
    special = (np.arange(12)[:, None] * last + [0, last - 1]).ravel()  # at the corners of base cells, and the poles
    cells = np.concatenate([special, np.random.default_rng(1).integers(0, grid.n_cells, 50)])
    around = nested.neighbours(cells.astype(np.uint64), grid.depth, connectivity="edge")
    for side in range(4):
        gaps = np.linalg.norm(
            grid.boundary(cells, step)[:, :, None] - grid.boundary(around[:, side], step)[:, None], axis=-1
        )
        shared = (gaps.min(axis=2) < 1e-15).sum(axis=1)
        assert np.all(shared >= step + 1)


def test_boundary_contains_the_corners_of_the_children():
    coarse, fine = HealpixGrid(32), HealpixGrid(64)
    parent = coarse.boundary([777], 8)[0]
    children = fine.boundary(4 * 777 + np.arange(4), 4).reshape(-1, 3)
    nearest = np.linalg.norm(parent[:, None] - children[None], axis=-1).min(axis=1)
    assert nearest.max() < 1e-15


def test_boundary_is_densified_along_the_true_edge():
    grid = HealpixGrid(1)
    points = grid.boundary([4], 64)[0]  # an equatorial base cell: sin(dec) is linear in RA along its edges
    z, ra = points[:65, 2], np.unwrap(np.arctan2(points[:65, 1], points[:65, 0]))
    assert np.allclose(np.diff(z) / np.diff(ra), 8 / (3 * np.pi), rtol=1e-12)


def test_candidates_miss_no_cell_of_the_cone():
    rng = np.random.default_rng(2)
    for nside in (8, 256, 2048):
        grid = HealpixGrid(nside)
        ra, dec, radius = rng.uniform(0, 360), rng.uniform(-90, 90), 0.5
        lon, lat = ra + rng.uniform(-180, 180, 200_000), dec + rng.uniform(-radius, radius, 200_000)
        lat = np.clip(lat, -90, 90)
        near = unit_vectors(lon, lat) @ unit_vectors(ra, dec) > np.cos(np.radians(radius))
        assert np.isin(grid.cells_at(lon[near], lat[near]), grid.candidates(ra, dec, radius)).all()
