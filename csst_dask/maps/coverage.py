"""How much of each sky cell one detector covers, exactly, and how much of that is valid.

The edges of a detector are great circles between its corners. Each cell, its edges cut into short chords, is
clipped on the sphere by the four half-spaces of the detector (Sutherland & Hodgman 1974, Comm. ACM 17, 32; on
the sphere the clip planes pass through the centre), so nothing is projected and poles, RA 0 and base cells
need no care. Areas are sums of signed spherical triangles. All grids share their edge points
(`HealpixGrid.edge_step`), hence the four children of a cell add up to it.

Valid pixels: a plane image of the sky and the pixel grid differ by a homography, which takes great circles to
straight lines. The clipped cell is drawn into the grid of blocks with it, each block weighted by its sky
area, and Green's theorem turns the integral over that polygon into a walk along its edges: no sampling, and
again children add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ChipRejected
from csst_dask.instrument.focal_plane import unit_vectors
from csst_dask.maps.grid import HealpixGrid

MAX_SPAN = 5.0
"""Largest distance between two corners of a detector, deg."""

SQUARE_DEGREES = (180.0 / np.pi) ** 2
"""deg2 per sr."""

_POINTS_AT_ONCE = 1 << 19
_NOISE = 1e-9  # a fraction below this is the rounding of the walk around a cell without valid pixels


def detector_area(corner_ra: ArrayLike, corner_dec: ArrayLike) -> float:
    """Area of a detector on the sky.

    Parameters
    ----------
    corner_ra, corner_dec : (4,) array_like of float
        Corners in order around the frame, deg ICRS; either orientation.

    Returns
    -------
    float
        deg2.

    Raises
    ------
    ChipRejected
        If the corners are not finite, span more than 5 deg, or do not bound a convex area.
    """
    return _frame(corner_ra, corner_dec).area


def overlap(
    corner_ra: ArrayLike, corner_dec: ArrayLike, grid: HealpixGrid, step: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Area that a detector shares with each cell.

    Parameters
    ----------
    corner_ra, corner_dec : (4,) array_like of float
        Corners in order around the frame, deg ICRS; either orientation.
    grid : HealpixGrid
    step : int, optional
        Chords per cell edge. By default so many that the chords stray less than 10 microarcsec from the true
        edge (a few milliarcsec in the last arcmin around a pole) and that grids of different nside agree.

    Returns
    -------
    cells : (n,) int64 array
        NESTED indices of the cells that share area with the detector, sorted.
    area : (n,) float64 array
        Shared area, deg2; the sum is `detector_area` to rounding.

    Raises
    ------
    ChipRejected
        As `detector_area`.
    """
    cells, area, _ = _cover(_frame(corner_ra, corner_dec), np.zeros((0, 0)), grid, step)
    return cells, area


def valid_fraction(
    valid: ArrayLike, corner_ra: ArrayLike, corner_dec: ArrayLike, cells: ArrayLike, grid: HealpixGrid
) -> NDArray[np.float64]:
    """Fraction of valid pixels in the part of each cell that the detector covers.

    Parameters
    ----------
    valid : (ny, nx) array_like of float
        Fraction of valid pixels in each block of the frame, 0 to 1; NaN counts as 0.
        ``ix`` grows from corner 0 to corner 1 and ``iy`` from corner 0 to corner 3.
    corner_ra, corner_dec : (4,) array_like of float
        Corners in order around the frame, deg ICRS.
    cells : (n,) array_like of int
        Cells to report, NESTED, as `overlap` gives them.
    grid : HealpixGrid

    Returns
    -------
    (n,) float64 array
        Scaled such that the sum of area times fraction over the cells of the detector is its area times the
        mean of ``valid``. That scale differs from 1 by the change of pixel area over the frame, so a value
        can exceed 1 by some 1e-6. Exactly 0 for a cell without valid pixels or outside the detector.

    Raises
    ------
    ChipRejected
        As `detector_area`, or if ``valid`` has no two-dimensional extent.
    """
    covered, _, fraction = visit(valid, corner_ra, corner_dec, grid)
    wanted = np.atleast_1d(np.asarray(cells, np.int64))
    place = np.minimum(np.searchsorted(covered, wanted), covered.size - 1)
    return np.where(covered[place] == wanted, fraction[place], 0.0)


def visit(
    valid: ArrayLike, corner_ra: ArrayLike, corner_dec: ArrayLike, grid: HealpixGrid
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """`overlap` and `valid_fraction` in one pass.

    Parameters
    ----------
    valid : (ny, nx) array_like of float
        As in `valid_fraction`.
    corner_ra, corner_dec : (4,) array_like of float
        Corners in order around the frame, deg ICRS.
    grid : HealpixGrid

    Returns
    -------
    cells : (n,) int64 array
    area : (n,) float64 array, deg2
    fraction : (n,) float64 array

    Raises
    ------
    ChipRejected
        As `valid_fraction`.
    """
    blocks = np.asarray(valid, np.float64)
    if blocks.ndim != 2 or not blocks.size:
        raise ChipRejected(f"the valid map has shape {blocks.shape}, expected (ny, nx); ingest the chip again")
    blocks = np.clip(np.nan_to_num(blocks), 0.0, 1.0)
    frame = _frame(corner_ra, corner_dec)
    cells, area, weight = _cover(frame, blocks * _block_areas(frame, blocks.shape), grid, None)
    weight[weight < _NOISE * area] = 0.0
    found = float(weight.sum())
    if found > 0:
        weight *= frame.area * float(blocks.mean()) / found
    return cells, area, weight / area


@dataclass(frozen=True)
class _Frame:
    """A detector on the unit sphere."""

    corners: NDArray[np.float64]
    """(4, 3) unit vectors."""
    normals: NDArray[np.float64]
    """(4, 3) unit normals of the edges' great circles; a point inside has positive products with all."""
    to_unit: NDArray[np.float64]
    """(3, 3) homography from vectors to (x w, y w, w) with x and y from 0 to 1 over the frame."""
    area: float
    """deg2."""


def _frame(corner_ra: ArrayLike, corner_dec: ArrayLike) -> _Frame:
    ra, dec = np.asarray(corner_ra, np.float64), np.asarray(corner_dec, np.float64)
    if ra.shape != (4,) or dec.shape != (4,) or not np.all(np.isfinite([ra, dec])) or np.abs(dec).max() > 90:
        raise ChipRejected(f"corners RA {ra.tolist()} Dec {dec.tolist()} are not four finite positions; check the WCS")
    corners = unit_vectors(ra, dec)
    chords = np.linalg.norm(corners[:, None] - corners[None], axis=-1)
    span = float(np.degrees(2 * np.arcsin(np.minimum(chords.max() / 2, 1))))
    if span > MAX_SPAN:
        raise ChipRejected(
            f"corners lie up to {span:.3g} deg apart, at most {MAX_SPAN} expected; check the WCS of the chip"
        )
    edges = np.roll(corners, -1, axis=0) - corners
    normals = np.cross(corners, edges)
    turns = np.einsum("ij,ij->i", np.cross(edges, np.roll(edges, -1, axis=0)), corners)
    least = 1e-6 * chords.max() ** 2
    if not (np.all(turns > least) or np.all(turns < -least)):
        raise ChipRejected(
            f"corners RA {ra.tolist()} Dec {dec.tolist()} do not bound a convex area; expected the order "
            "(0,0), (nx,0), (nx,ny), (0,ny); check the WCS of the chip"
        )
    normals *= np.sign(turns[0]) / np.linalg.norm(normals, axis=1, keepdims=True)
    area = abs(_polygon_area(corners, 4)) * SQUARE_DEGREES
    return _Frame(corners, normals, _homography(corners, span), area)


def _homography(corners: NDArray[np.float64], span: float) -> NDArray[np.float64]:
    """Matrix that takes the corners to (0,0), (1,0), (1,1), (0,1) of the unit square (Heckbert 1989)."""
    centre = corners.mean(axis=0)
    centre /= np.linalg.norm(centre)
    east = np.cross(centre, np.eye(3)[np.argmin(np.abs(centre))])
    east /= np.linalg.norm(east)
    scale = np.radians(span)
    local = np.stack([east / scale, np.cross(centre, east) / scale, centre])
    return _from_basis(np.array([[0.0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]])) @ (
        np.linalg.inv(_from_basis(corners @ local.T)) @ local
    )


def _from_basis(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns: the first three homogeneous points, weighted to sum to the fourth."""
    return points[:3].T * np.linalg.solve(points[:3].T, points[3])


def _block_areas(frame: _Frame, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Sky area of each block (ny, nx), deg2: the Jacobian of the homography at its centre."""
    ny, nx = shape
    back = np.linalg.inv(frame.to_unit)
    x, y = (np.arange(nx) + 0.5) / nx, (np.arange(ny)[:, None] + 0.5) / ny
    norm2 = sum((row[0] * x + row[1] * y + row[2]) ** 2 for row in back)
    return abs(np.linalg.det(back)) * norm2**-1.5 * (SQUARE_DEGREES / (nx * ny))


def _chords(grid: HealpixGrid, lat: float) -> int:
    """Chords per edge: more near a pole, where edges bend on the scale of their distance from it."""
    return max(grid.edge_step, min(16 * grid.edge_step, 16384)) if abs(lat) > 89 else grid.edge_step


def _cover(
    frame: _Frame, blocks: NDArray[np.float64], grid: HealpixGrid, step: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Cells, area (deg2) and sum of the block values inside."""
    centre = frame.corners.mean(axis=0)
    centre /= np.linalg.norm(centre)
    radius = 2 * np.arcsin(np.linalg.norm(frame.corners - centre, axis=1).max() / 2)
    lon, lat = np.degrees([np.arctan2(centre[1], centre[0]), np.arctan2(centre[2], np.hypot(*centre[:2]))])
    cells = grid.candidates(float(lon), float(lat), float(np.degrees(radius)) * 1.001 + 1e-7)
    step = _chords(grid, float(lat)) if step is None else step
    to_blocks = np.diag([float(blocks.shape[1]), float(blocks.shape[0]), 1.0]) @ frame.to_unit
    before = np.cumsum(blocks, axis=1) - blocks
    area, inside = np.zeros(cells.size), np.zeros(cells.size)
    at_once = max(1, _POINTS_AT_ONCE // (4 * step))
    for start in range(0, cells.size, at_once):
        part = slice(start, start + at_once)
        edges = grid.boundary(cells[part], step)
        _clip_cells(edges, frame.normals, to_blocks, blocks, before, area[part], inside[part])
    kept = area > 0
    return cells[kept], area[kept] * SQUARE_DEGREES, inside[kept]


@njit(cache=True, nogil=True)
def _clip_cells(edges, normals, to_blocks, blocks, before, area, inside):
    """Clip cells by a convex detector and measure what is left.

    Parameters
    ----------
    edges : (n, m, 3) float64 array
        Unit vectors along the edge of each cell, counter-clockwise.
    normals : (4, 3) float64 array
        Unit normals of the detector's edges, inward.
    to_blocks : (3, 3) float64 array
        Homography from vectors to positions in blocks.
    blocks : (ny, nx) float64 array
        Value of each block, per block; of no size if `inside` is not wanted.
    before : (ny, nx) float64 array
        Sum of the blocks to the left in the same row.
    area : (n,) float64 array
        Filled with the clipped area, sr.
    inside : (n,) float64 array
        Filled with the sum of the block values over the clipped cell, a part of a block counting by its area.
    """
    m = edges.shape[1]
    polygon = np.empty((6 * m + 64, 3))  # each of the four clips adds a point for every two at most
    clipped = np.empty_like(polygon)
    for cell in range(edges.shape[0]):
        polygon[:m] = edges[cell]
        n = m
        for side in range(4):
            n = _clip(polygon, n, normals[side], clipped)
            polygon, clipped = clipped, polygon
            if n < 3:
                break
        if n >= 3:
            area[cell] = _polygon_area(polygon, n)
            if blocks.size:
                inside[cell] = abs(_sum_inside(polygon, n, to_blocks, blocks, before))


@njit(cache=True, nogil=True)
def _clip(polygon, n, normal, out):
    """Part of a spherical polygon on the positive side of a great circle; returns its number of points."""
    count = 0
    ax, ay, az = polygon[n - 1]
    da = ax * normal[0] + ay * normal[1] + az * normal[2]
    for i in range(n):
        bx, by, bz = polygon[i]
        db = bx * normal[0] + by * normal[1] + bz * normal[2]
        if (da >= 0) != (db >= 0):
            t = da / (da - db)
            x, y, z = ax + t * (bx - ax), ay + t * (by - ay), az + t * (bz - az)
            norm = np.sqrt(x * x + y * y + z * z)
            out[count, 0], out[count, 1], out[count, 2] = x / norm, y / norm, z / norm
            count += 1
        if db >= 0:
            out[count, 0], out[count, 1], out[count, 2] = bx, by, bz
            count += 1
        ax, ay, az, da = bx, by, bz, db
    return count


@njit(cache=True, nogil=True)
def _polygon_area(points, n):
    """Signed area (sr) of the first `n` of `points` (.., 3), positive if counter-clockwise from outside.

    Triangles from the first point (Van Oosterom & Strackee 1983, IEEE Trans. Biomed. Eng. 30, 125); the
    triple product is taken of differences, so small ones keep their digits.
    """
    total = 0.0
    ax, ay, az = points[0]
    for i in range(1, n - 1):
        bx, by, bz = points[i]
        cx, cy, cz = points[i + 1]
        ux, uy, uz = bx - ax, by - ay, bz - az
        vx, vy, vz = cx - bx, cy - by, cz - bz
        triple = ax * (uy * vz - uz * vy) + ay * (uz * vx - ux * vz) + az * (ux * vy - uy * vx)
        below = 1.0 + ax * bx + ay * by + az * bz + bx * cx + by * cy + bz * cz + cx * ax + cy * ay + cz * az
        total += 2.0 * np.arctan2(triple, below)
    return total


@njit(cache=True, nogil=True)
def _sum_inside(points, n, to_blocks, blocks, before):
    """Integral of the block values over a polygon; its sign is that of the polygon in the frame.

    Green's theorem: integral of f dA = loop integral of F dy, where F is the integral of f along x. F is
    linear within a block, so the midpoint rule is exact on each piece of an edge.
    """
    ny, nx = blocks.shape
    inside = 0.0
    x0, y0 = _to_block(points[n - 1], to_blocks, nx, ny)
    for i in range(n):
        x1, y1 = _to_block(points[i], to_blocks, nx, ny)
        dx, dy = x1 - x0, y1 - y0
        t = 0.0
        while t < 1.0 and dy != 0.0:
            t_next = min(_crossing(x0, dx, t), _crossing(y0, dy, t), 1.0)
            x, y = x0 + 0.5 * (t + t_next) * dx, y0 + 0.5 * (t + t_next) * dy
            ix, iy = min(int(x), nx - 1), min(int(y), ny - 1)
            inside += (before[iy, ix] + blocks[iy, ix] * (x - ix)) * (t_next - t) * dy
            t = t_next
        x0, y0 = x1, y1
    return inside


@njit(cache=True, nogil=True)
def _to_block(point, to_blocks, nx, ny):
    """Position in blocks, held within the frame against rounding."""
    w = to_blocks[2, 0] * point[0] + to_blocks[2, 1] * point[1] + to_blocks[2, 2] * point[2]
    x = (to_blocks[0, 0] * point[0] + to_blocks[0, 1] * point[1] + to_blocks[0, 2] * point[2]) / w
    y = (to_blocks[1, 0] * point[0] + to_blocks[1, 1] * point[1] + to_blocks[1, 2] * point[2]) / w
    return min(max(x, 0.0), float(nx)), min(max(y, 0.0), float(ny))


@njit(cache=True, nogil=True)
def _crossing(start, delta, t):
    """Next parameter beyond `t` (by a rounding step at least) where ``start + parameter * delta`` is whole."""
    if delta == 0.0:
        return 2.0
    here = start + t * delta
    line = np.floor(here + 1e-9) + 1.0 if delta > 0 else np.ceil(here - 1e-9) - 1.0
    return max((line - start) / delta, t + 1e-12)
