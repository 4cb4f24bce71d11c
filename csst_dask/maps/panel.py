"""One picture of cells on the sky: its patches, cells, lines of RA and Dec, or the whole sky."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from healpix_geo import nested
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from numpy.typing import ArrayLike, NDArray

from csst_dask.instrument.focal_plane import unit_vectors
from csst_dask.maps.grid import HealpixGrid

ALL_SKY_RADIUS = 30.0
"""A patch that reaches further than this from its centre is drawn as a whole sky, deg."""

PATCH_NSIDE = 32
"""Cells whose parents at this nside (1.8 deg) touch belong to one patch."""

SEAMLESS: dict[str, Any] = {"linewidths": 0, "antialiaseds": False}
"""Cells without outlines, and without gaps between them."""

_NICE = (1, 2, 5)


@dataclass(frozen=True)
class Patch:
    """A connected part of a footprint."""

    cells: NDArray[np.int64]
    """Sorted NESTED indices."""
    ra: float
    """Centre, deg ICRS."""
    dec: float
    radius: float
    """Distance of the furthest cell edge, deg."""

    @property
    def all_sky(self) -> bool:
        """Too wide for a plane picture."""
        return self.radius > ALL_SKY_RADIUS


def patches(cells: NDArray[np.int64], grid: HealpixGrid) -> list[Patch]:
    """Connected parts of a footprint, by rising RA.

    Parameters
    ----------
    cells : (n,) int64 array
        NESTED indices.
    grid : HealpixGrid

    Returns
    -------
    list of Patch
    """
    coarse = HealpixGrid(min(grid.nside, PATCH_NSIDE))
    parents = grid.parents(cells, coarse.nside)
    todo, found = set(parents.tolist()), []
    while todo:
        group, front = set(), {min(todo)}
        while front:
            group |= front
            todo -= front
            around = nested.neighbours(np.array(sorted(front), np.uint64), coarse.depth, num_threads=1)
            front = set(around.ravel().tolist()) & todo
        found.append(_patch(np.sort(cells[np.isin(parents, sorted(group))]), grid))
    return sorted(found, key=lambda patch: (patch.ra, patch.dec))


def whole_patch(cells: NDArray[np.int64]) -> Patch:
    """All of a footprint, to be drawn on a whole sky."""
    return Patch(np.sort(cells), 0.0, 0.0, 180.0)


def _patch(cells: NDArray[np.int64], grid: HealpixGrid) -> Patch:
    corners = grid.boundary(cells, 1)
    centre = corners.mean(axis=(0, 1))
    centre /= max(float(np.linalg.norm(centre)), 1e-12)
    radius = np.degrees(np.arccos(np.clip((corners @ centre).min(), -1, 1)))
    ra, dec = np.degrees([np.arctan2(centre[1], centre[0]), np.arcsin(np.clip(centre[2], -1, 1))])
    return Patch(cells, float(ra % 360), float(dec), float(radius))


def tangent_plane(vectors: NDArray[np.float64], ra: float, dec: float) -> NDArray[np.float64]:
    """Gnomonic (TAN) coordinates (..., 2) of unit vectors about a point, deg: x to the east, y to the north.

    NaN beyond 80 deg from it (Calabretta & Greisen 2002, A&A 395, 1077, sec. 5.1.3).
    """
    lon, lat = np.radians([ra, dec])
    east = np.array([-np.sin(lon), np.cos(lon), 0.0])
    north = np.array([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    depth = vectors @ unit_vectors(ra, dec)
    depth = np.where(depth > np.cos(np.radians(80)), depth, np.nan)
    return np.degrees(np.stack([vectors @ east, vectors @ north], axis=-1) / depth[..., None])


def draw_cells(ax: Axes, patch: Patch, grid: HealpixGrid, cells: NDArray[np.int64], colours: Any, **style: Any) -> None:
    """Draw `cells` with one RGBA colour each: as polygons about the patch centre, or as pixels of a whole sky."""
    if patch.all_sky:
        _draw_sky(ax, grid, cells, colours)
        return
    outline = tangent_plane(grid.boundary(cells, 4), patch.ra, patch.dec)
    ax.add_collection(PolyCollection(list(outline), facecolors=colours, **style))


def draw_hatched(ax: Axes, patch: Patch, grid: HealpixGrid, cells: NDArray[np.int64], style: Mapping[str, Any]) -> None:
    """Draw `cells` in one colour and hatch, without outlines; `style` has facecolor, edgecolor and hatch."""
    colours = np.tile(to_rgba(style["facecolor"]), (cells.size, 1))
    draw_cells(ax, patch, grid, cells, colours, **SEAMLESS)
    if not patch.all_sky:
        draw_cells(ax, patch, grid, cells, "none", linewidths=0, edgecolors=style["edgecolor"], hatch=style["hatch"])
        return
    lon, lat, pixel = _sky_pixels(grid)
    inside = np.isin(pixel, cells).astype(float)
    middle = np.radians((lon[1:] + lon[:-1]) / 2), np.radians((lat[1:] + lat[:-1]) / 2)
    drawn = ax.contourf(*middle, inside, levels=[0.5, 1.5], colors="none", hatches=[style["hatch"]])
    drawn.set(edgecolor=style["edgecolor"], linewidth=0)


def _draw_sky(ax: Axes, grid: HealpixGrid, cells: NDArray[np.int64], colours: NDArray) -> None:
    lon, lat, pixel = _sky_pixels(grid)
    order = np.argsort(cells)
    place = np.minimum(np.searchsorted(cells[order], pixel), cells.size - 1)
    image = np.where((cells[order][place] == pixel)[..., None], colours[order][place], 0.0)
    ax.pcolormesh(np.radians(lon), np.radians(lat), image, rasterized=True)


def _sky_pixels(grid: HealpixGrid) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Edges in longitude and latitude (deg) of the pixels of a whole sky, and the cell of each (lat, lon)."""
    lon, lat = np.linspace(-180, 180, 721), np.linspace(-90, 90, 361)
    centre_lon, centre_lat = (lon[1:] + lon[:-1]) / 2, (lat[1:] + lat[:-1]) / 2
    return lon, lat, grid.cells_at(-centre_lon[None, :], centre_lat[:, None])


def frame_patch(ax: Axes, patch: Patch, grid: HealpixGrid, dec_labels: bool = True) -> None:
    """Limits, lines of RA and Dec with labels in degrees; east is to the left."""
    if patch.all_sky:
        frame_sky(ax)
        return
    outline = tangent_plane(grid.boundary(patch.cells, 1), patch.ra, patch.dec).reshape(-1, 2)
    low_xy, high_xy = outline.min(axis=0), outline.max(axis=0)
    half = 0.53 * float((high_xy - low_xy).max())
    x, y = (low_xy + high_xy) / 2
    ax.set(xlim=(x + half, x - half), ylim=(y - half, y + half), aspect="equal", xticks=[], yticks=[])
    dec_step = _nice_step(2 * half / 4)
    low, high = max(patch.dec - 1.5 * patch.radius, -90), min(patch.dec + 1.5 * patch.radius, 90)
    near_pole = abs(patch.dec) + 1.5 * patch.radius > 89
    stretch = max(np.cos(np.radians(min(abs(patch.dec), 89.0))), 1e-2)
    ra_step = 45.0 if near_pole else min(_nice_step(2 * half / 4 / stretch), 45.0)
    reach = 180.0 if near_pole else min(1.6 * half / stretch, 180.0)
    lines = np.linspace(0, 1, 181)
    ras = np.arange(np.ceil((patch.ra - reach) / ra_step), (patch.ra + reach) / ra_step) * ra_step
    for ra in ras:
        xy = tangent_plane(unit_vectors(ra + 0 * lines, low + (high - low) * lines), patch.ra, patch.dec)
        ax.plot(*xy.T, color="0.55", lw=0.5, ls=":", zorder=3)
        _label(ax, xy, 1, _degrees(ra % 360, ra_step))
    for dec in np.arange(np.ceil(low / dec_step), high / dec_step + 1e-9) * dec_step:
        xy = tangent_plane(unit_vectors(patch.ra + reach * (2 * lines - 1), dec + 0 * lines), patch.ra, patch.dec)
        ax.plot(*xy.T, color="0.55", lw=0.5, ls=":", zorder=3)
        if dec_labels:
            _label(ax, xy, 0, _degrees(dec, dec_step, "+"))


def frame_sky(ax: Axes, labels: bool = True) -> None:
    """Grid of a Mollweide picture with RA rising to the left and RA 0 in the middle."""
    ax.grid(color="0.6", lw=0.4, ls=":")
    text: dict[str, Any] = {"fontsize": 6, "color": "0.3"}
    lon, lat = np.radians([-120, -60, 0, 60, 120]), np.radians([-60, -30, 0, 30, 60])
    ax.set_xticks(lon, ["120°", "60°", "0°", "300°", "240°"] if labels else [""] * 5, **text)
    ax.set_yticks(lat, ["−60°", "−30°", "0°", "+30°", "+60°"] if labels else [""] * 5, **text)


def sky_position(ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mollweide axes coordinates (rad) of positions in deg, for `frame_sky`."""
    return -np.radians((np.asarray(ra) + 180.0) % 360.0 - 180.0), np.radians(np.asarray(dec))


def _label(ax: Axes, xy: NDArray[np.float64], axis: int, text: str) -> None:
    """Write `text` where a line first crosses the left (axis 0) or lower edge (axis 1), if it does."""
    edge, across = (ax.get_xlim()[0], ax.get_ylim()) if axis == 0 else (ax.get_ylim()[0], ax.get_xlim())
    offset, ha, va = ((-3, 0), "right", "center") if axis == 0 else ((0, -3), "center", "top")
    side = xy[:, axis] - edge
    for i in np.flatnonzero((side[:-1] * side[1:] <= 0) & (side[:-1] != side[1:]))[:1]:
        point = xy[i] + side[i] / (side[i] - side[i + 1]) * (xy[i + 1] - xy[i])
        if abs(point[1 - axis] - np.mean(across)) < 0.48 * abs(across[1] - across[0]):
            style: dict[str, Any] = {"ha": ha, "va": va, "fontsize": 6, "color": "0.25"}
            ax.annotate(text, point, offset, textcoords="offset points", **style)


def _nice_step(target: float) -> float:
    power = 10.0 ** np.floor(np.log10(target))
    return float(next((n * power for n in (*_NICE, 10) if n * power >= target), 10 * power))


def _degrees(value: float, step: float, sign: str = "") -> str:
    digits = max(0, int(np.ceil(-np.log10(step) - 1e-9)))
    sign = sign if abs(value) > 0.5 * 10.0**-digits else ""
    return f"{value:{sign}z.{digits}f}°".replace("-", "−")
