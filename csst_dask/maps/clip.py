"""Compiled kernels of `coverage`: clip spherical polygons, measure them, and sum block values over them."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def clip_cells(edges, normals, to_blocks, blocks, before, area, inside):
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
            area[cell] = polygon_area(polygon, n)
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
def polygon_area(points, n):
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
