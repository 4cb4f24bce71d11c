"""A picture of a density map that fits on a page.

One row for each band of each connected patch, one column for each quantity, and a small whole sky that shows
where the patches lie. Colours and hatches are safe for colour-blind readers; a cell fades with the part of it
that was not observed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch as Swatch
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from csst_dask.errors import ConfigError
from csst_dask.maps.dataset import UNKNOWN_CLASS, degrade, footprint_area, grid_of, seen
from csst_dask.maps.grid import HealpixGrid
from csst_dask.maps.panel import (
    SEAMLESS,
    Patch,
    draw_cells,
    draw_hatched,
    frame_patch,
    frame_sky,
    patches,
    sky_position,
    whole_patch,
)
from csst_dask.outputs import local_path, remove_leftovers, write_atomically
from csst_dask.schema import BRIGHT_LIMIT, CLASS_EDGES, CLASS_LABELS, N_CLASSES

MAX_ROWS = 8
MAX_PATCHES = 6
"""More of them, or one wider than 60 deg, are drawn on a whole sky instead."""
SKY_NSIDE = 64
"""Resolution of a whole sky."""
MAX_CELLS = 40_000
"""A finer map is degraded before it is drawn."""
MAX_BYTES = 1_000_000
"""Largest PNG."""
OUTLINED = 100
"""Cells of a panel that are drawn one by one at most; of more, the outlines would be a pattern of their own."""
CROWDED: dict[str, Any] = {"facecolor": "0.8", "edgecolor": "0.6", "hatch": "////"}
"""Cells without a value."""
REVIEW: dict[str, Any] = {"facecolor": "white", "edgecolor": "#0072b2", "hatch": "xxxxx"}
"""Cells that only chips under review have seen."""
_PANEL = 2.75  # inch
_HEADER = 2.3  # inch
_DENSITY = ListedColormap(colormaps["magma"](np.linspace(0.08, 0.9, 256)))

MOST_ERROR = 100.0
"""Errors beyond this are drawn as this, per cent: nothing is known then, and the others need the colours."""
LEAST_DENSITY = 1.0
"""Densities below this are drawn as this, and their relative errors not at all, deg-2: one star in thirty frames."""


@dataclass(frozen=True)
class _Column:
    """One quantity: how it is coloured."""

    title: str
    values: NDArray[np.float64]
    """(band, cells); NaN where unknown."""
    norm: Normalize
    cmap: Colormap
    ticks: dict[float, str] | None = None

    @property
    def beyond(self) -> str:
        """At which ends of the scale values lie beyond it; ``neither``, ``min``, ``max`` or ``both``."""
        low, high = np.nanmin(self.values, initial=np.inf), np.nanmax(self.values, initial=-np.inf)
        below, above = low < (self.norm.vmin or 0.0), high > (self.norm.vmax or np.inf)
        return ("neither", "min", "max", "both")[below + 2 * above]


def plot_map(ds: xr.Dataset, path: str | Path | None = None, truth: xr.Dataset | None = None) -> Figure:
    """Draw a density map.

    Parameters
    ----------
    ds : xarray.Dataset
        Density map; a very fine one is degraded for the picture.
    path : path, optional
        Also write a PNG there, under 1 MB and without metadata.
    truth : xarray.Dataset, optional
        Density map made with true counts of the same chips; its density is drawn beside, on the same scale.

    Returns
    -------
    matplotlib.figure.Figure
        Made without pyplot, so nothing is left open.

    Raises
    ------
    ConfigError
        If `ds` is no density map, no cell of it was seen, or `path` is a URL.
    """
    if path is not None:
        path = local_path(path, "the picture to write")
    area = footprint_area(ds)
    while ds.sizes["cells"] > MAX_CELLS:
        ds = degrade(ds, grid_of(ds).nside // 2)
    visible = seen(ds)
    if not visible.any():
        raise ConfigError("the map has no observed cell, so nothing can be drawn; map some finished chips")
    grid, cells = grid_of(ds), ds["cell_ids"].values
    found = patches(cells[visible.any(axis=0)], grid)
    if len(found) > MAX_PATCHES or found[0].all_sky:
        if grid.nside > SKY_NSIDE:
            return plot_map(degrade(ds, SKY_NSIDE), path, truth)
        found = [whole_patch(cells[visible.any(axis=0)])]
    rows = [
        (k, patch, b)
        for k, patch in enumerate(found)
        for b in range(ds.sizes["band"])
        if (visible[b] & np.isin(cells, patch.cells)).any()
    ]
    figure = _draw(ds, grid, found, rows[:MAX_ROWS], _columns(ds, _aligned(truth, ds)), area)
    if len(rows) > MAX_ROWS:
        text = f"{len(rows) - MAX_ROWS} more rows are not drawn; choose bands with .sel(band=[...])"
        figure.text(0.5, 0.004, text, ha="center", va="bottom", fontsize=7, color="0.3")
    if path is not None:
        _save(figure, path)
    return figure


def _aligned(truth: xr.Dataset | None, ds: xr.Dataset) -> NDArray[np.float64] | None:
    """Density of `truth` on the bands and cells of `ds`."""
    if truth is None:
        return None
    truth = degrade(truth, grid_of(ds).nside)
    density = truth["bright_star_density"].assign_coords(cells=truth["cell_ids"].values)
    return density.reindex(band=ds["band"].values, cells=ds["cell_ids"].values).values


def _columns(ds: xr.Dataset, true_density: NDArray[np.float64] | None) -> list[_Column]:
    density, error = ds["bright_star_density"].values, ds["bright_star_density_error"].values
    both = density if true_density is None else np.concatenate([density, true_density])
    scale = _log_norm(both)
    unit = r"$\mathrm{deg}^{-2}$"
    columns = [_Column(f"stars with mag < {BRIGHT_LIMIT} [{unit}]", density, scale, _DENSITY)]
    if true_density is not None:
        columns.append(_Column(f"the same, true [{unit}]", true_density, scale, _DENSITY))
    colours = ListedColormap(colormaps["viridis"](np.linspace(0, 1, N_CLASSES)))
    names = (CLASS_LABELS[0], *(f"<{edge:.0e}".replace("e+0", "e") for edge in CLASS_EDGES[1:]), "≥1e5")
    level = ds["density_class"].values.astype(float)
    columns.append(
        _Column(
            "stars per frame (class)",
            np.where(level >= 0, level, np.nan),
            BoundaryNorm(np.arange(N_CLASSES + 1) - 0.5, N_CLASSES),
            colours,
            {float(k): name for k, name in enumerate(names)},
        )
    )
    known = np.isfinite(density) & (density >= LEAST_DENSITY)
    relative = 100 * np.divide(error, density, out=np.full(density.shape, np.nan), where=known)
    top = float(np.nanmax(relative)) if np.isfinite(relative).any() else 1.0
    errors = Normalize(0, float(np.clip(top, 1.0, MOST_ERROR)))
    columns.append(_Column("error of the density [%]", relative, errors, colormaps["cividis"]))
    return columns


def _log_norm(values: NDArray[np.float64]) -> LogNorm:
    good = values[np.isfinite(values) & (values > 0)]
    low, high = (good.min(), good.max()) if good.size else (1.0, 10.0)
    low = max(low, min(LEAST_DENSITY, high / 10))
    if high < 2 * low:
        middle = np.sqrt(low * high)
        low, high = middle / 2, middle * 2
    return LogNorm(low, high)


def _draw(
    ds: xr.Dataset,
    grid: HealpixGrid,
    found: list[Patch],
    rows: list[tuple[int, Patch, int]],
    columns: list[_Column],
    area: float,
) -> Figure:
    tall = _PANEL * (0.62 if found[0].all_sky else 1.0)
    width, height = 0.75 + _PANEL * len(columns), _HEADER + 0.35 + (tall + 0.12) * len(rows)
    figure = Figure(figsize=(width, height), layout=None, facecolor="white")
    _header(figure, ds, grid, found, area, width, height)
    for c, column in enumerate(columns):
        left = (0.65 + _PANEL * c) / width
        _colour_bar(figure, column, (left, 1 - _HEADER / height + 0.08 / height), (_PANEL - 0.35) / width, height)
        for r, (k, patch, b) in enumerate(rows):
            bottom = 1 - (_HEADER + (tall + 0.12) * (r + 1) - 0.02) / height
            box = (left, bottom, (_PANEL - 0.35) / width, (tall - 0.35) / height)
            ax = figure.add_axes(box, projection="mollweide" if patch.all_sky else None)
            _panel(ax, ds, grid, patch, b, column)
            frame_patch(ax, patch, grid, dec_labels=c == 0)
            if c == 0:
                name = str(ds["band"].values[b]) + (f"  ·  {_letter(k)}" if len(found) > 1 else "")
                ax.set_title(name, loc="left", fontsize=10, fontweight="bold", pad=3)
    return figure


def _panel(ax: Axes, ds: xr.Dataset, grid: HealpixGrid, patch: Patch, band: int, column: _Column) -> None:
    cells = ds["cell_ids"].values
    chips, visited = ds["n_visits"].values[band], ds["visit_area"].values[band]
    here = (visited > 0) & np.isin(cells, patch.cells)
    coverage = np.clip(visited[here] / (chips[here] * grid.cell_area), 0, 1)
    values = column.values[band, here]
    known, review = np.isfinite(values), _review(ds)[band, here]
    ax.set_facecolor("0.97")
    for unknown, style in ((~known & ~review, CROWDED), (review, REVIEW)):
        if unknown.any():
            draw_hatched(ax, patch, grid, cells[here][unknown], style)
    if known.any():
        colours = column.cmap(column.norm(np.maximum(values[known], column.norm.vmin or 0.0)))
        if not patch.all_sky:
            colours[:, 3] = 0.4 + 0.6 * coverage[known]
        line: dict[str, Any] = {"linewidths": 0.4, "edgecolors": (0, 0, 0, 0.2)}
        draw_cells(ax, patch, grid, cells[here][known], colours, **(SEAMLESS if known.sum() > OUTLINED else line))


def _colour_bar(figure: Figure, column: _Column, corner: tuple[float, float], width: float, height: float) -> None:
    ax = figure.add_axes((*corner, width, 0.11 / height))
    mappable = ScalarMappable(column.norm, column.cmap)
    bar = figure.colorbar(mappable, cax=ax, orientation="horizontal", extend=column.beyond)
    if column.ticks is not None:
        bar.set_ticks(list(column.ticks), labels=list(column.ticks.values()))
        ax.minorticks_off()
    elif isinstance(column.norm, LogNorm):
        ticks = _log_ticks(float(column.norm.vmin or 1), float(column.norm.vmax or 1))
        bar.set_ticks(list(ticks), labels=list(ticks.values()))
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_ticks_position("top")
    ax.tick_params(labelsize=7, length=2)
    ax.set_title(column.title, fontsize=9, pad=4)


def _header(
    figure: Figure,
    ds: xr.Dataset,
    grid: HealpixGrid,
    found: list[Patch],
    area: float,
    width: float,
    height: float,
) -> None:
    if not found[0].all_sky:
        _locator(figure, found, width, height)
    lines = [
        f"{area:.3g} deg² of cells touched in {', '.join(str(band) for band in ds['band'].values)}",
        f"HEALPix nside {grid.nside}, cells of {60 * np.sqrt(grid.cell_area):.2g} arcmin, ICRS",
    ]
    if not found[0].all_sky:
        lines.append("cells fade where they are partly covered")
    if (ds["bright_star_density"].values < LEAST_DENSITY).any():
        lines.append(f"grey among the errors: less than {LEAST_DENSITY:g} star in a deg²")
    figure.text(0.3 / width, 1 - 0.3 / height, "Star density", fontsize=15, fontweight="bold", va="top")
    figure.text(0.3 / width, 1 - 0.65 / height, "\n".join(lines), fontsize=8.5, va="top", linespacing=1.5, color="0.2")
    _legend(figure, ds, 0.3 / width, 1 - (0.65 + 0.18 * len(lines)) / height)


def _legend(figure: Figure, ds: xr.Dataset, left: float, top: float) -> None:
    """What hatched cells are, of those that there are."""
    review = _review(ds)
    crowded = seen(ds) & ~review & np.isnan(ds["bright_star_density"].values)
    swatches = [
        Swatch(**style, linewidth=0.4, label=label)
        for there, style, label in (
            (crowded.any(), CROWDED, "too crowded, not counted"),
            (review.any(), REVIEW, "only under review, not counted"),
        )
        if there
    ]
    if swatches:
        style: dict[str, Any] = {"fontsize": 8.5, "labelcolor": "0.2", "frameon": False, "borderpad": 0.2}
        figure.legend(handles=swatches, loc="upper left", bbox_to_anchor=(left, top), ncols=2, borderaxespad=0, **style)


def _review(ds: xr.Dataset) -> NDArray[np.bool_]:
    """Cells (band, cells) that chips have seen, all of them under review."""
    return seen(ds) & (ds["density_class"].transpose("band", "cells").values == UNKNOWN_CLASS)


def _locator(figure: Figure, found: list[Patch], width: float, height: float) -> None:
    """Small whole sky, RA 0 in the middle and east to the left, with a dot for each patch."""
    sky = figure.add_axes((1 - 2.75 / width, 1 - 1.42 / height, 2.5 / width, 1.25 / height), projection="mollweide")
    frame_sky(sky, labels=False)
    x, y = sky_position([patch.ra for patch in found], [patch.dec for patch in found])
    sky.scatter(x, y, s=14, color="#d55e00", zorder=4)
    if len(found) > 1:
        for k, point in enumerate(zip(x, y, strict=True)):
            sky.annotate(_letter(k), point, (3, 2), textcoords="offset points", fontsize=7, color="#d55e00")


def _log_ticks(low: float, high: float) -> dict[float, str]:
    """Decades, or also 2 and 5 times them where there are few."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    ticks = {}
    for power in range(first, last + 1):
        for n in (1, 2, 5) if high < 30 * low else (1,):
            if low <= n * 10.0**power <= high:
                factor = "" if n == 1 else rf"{n}\times"
                ticks[n * 10.0**power] = rf"${factor}10^{{{power}}}$"
    return ticks


def _letter(k: int) -> str:
    return chr(ord("A") + k) if k < 26 else str(k + 1)


def _save(figure: Figure, path: Path) -> None:
    remove_leftovers(path)
    for dpi in (130, 100, 75, 50):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        if buffer.tell() < MAX_BYTES:
            break
    write_atomically(path, buffer.getbuffer())
