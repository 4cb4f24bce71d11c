"""The Galaxy model against published star counts, and against the star counts of the paper's regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from numpy.typing import ArrayLike, NDArray

from csst_dask.instrument.focal_plane import DETECTOR_AREA
from csst_dask.schema import STAR_LIMIT
from csst_dask.simulation.check.figure import ACCENT, INK, QUIET, SECOND, new_figure, save_figure
from csst_dask.simulation.check.finding import Finding
from csst_dask.simulation.check.published import PUBLISHED, PublishedCount, positions
from csst_dask.simulation.physics import SkyPhysics
from csst_dask.simulation.regions import REGIONS, Region
from csst_dask.simulation.stars import star_counts

CROWDED = ("fornax", "sculptor")
"""Regions around a dwarf galaxy: the field alone gives the lower end of their range."""

Counts = Callable[..., NDArray[np.float64]]
"""From l and b (deg), a band and n limits (mag) to (n,) stars per square degree."""


def mean_counts(count: PublishedCount, limits: ArrayLike, counts: Counts = star_counts) -> NDArray[np.float64]:
    """Stars per square degree brighter than limits, over the area that a published count is for."""
    where = zip(*positions(count), strict=True)
    return np.mean([counts(float(l), float(b), count.band, limits) for l, b in where], 0)


def published_findings(counts: Counts = star_counts, published: Sequence[PublishedCount] = PUBLISHED) -> list[Finding]:
    """The model at every direction and limit of a table.

    Returns
    -------
    list of Finding
        Numbers per square degree; the tolerance bounds the ratio, either way.
    """
    found = []
    for row in published:
        n = float(mean_counts(row, np.array([row.limit]), counts)[0])
        ratio = n / row.n_per_deg2
        passed = bool(1 / (1 + row.tolerance) <= ratio <= 1 + row.tolerance)
        text = f"ratio {ratio:.2f}; {row.as_published} ({row.certainty}); {row.source}"
        name = f"stars/deg2, {row.place}, {row.band} < {row.limit:g}"
        found.append(Finding(name, n, row.n_per_deg2, row.tolerance, passed, text))
    return found


def region_counts(region: Region, counts: Counts = star_counts, steps: int = 5) -> NDArray[np.float64]:
    """Expected stars with g < `STAR_LIMIT` on a detector, on a grid of places in a region."""
    ra, dec = np.meshgrid(np.linspace(*region.ra, steps), np.linspace(*region.dec, steps))
    sky = SkyCoord(ra.ravel() * units.deg, dec.ravel() * units.deg).galactic
    limit = np.array([STAR_LIMIT])
    where = zip(sky.l.deg, sky.b.deg, strict=True)
    clouds = () if region.dust is None else (SkyPhysics(dust=region.dust),)
    return np.array([counts(float(l), float(b), "g", limit, *clouds)[0] for l, b in where]) * DETECTOR_AREA


def region_findings(table: dict[str, NDArray[np.float64]]) -> list[Finding]:
    """Counts per detector against the ranges of the paper.

    Parameters
    ----------
    table : dict
        `region_counts` of each region.

    Returns
    -------
    list of Finding
        Median of a region; it passes inside the published range, and at 0.9 to 1.1 of its ends. The tolerance is half
        the range.
    """
    found = []
    for name, n in table.items():
        low, high = REGIONS[name].n_star
        middle = float(np.median(n))
        passed = bool(0.9 * low <= middle <= 1.1 * high)
        inside = float(((n >= low) & (n <= high)).mean())
        text = (
            f"model {n.min():.0f} to {n.max():.0f}, {100 * inside:.0f} % of places in the paper's {low:g} to {high:g}"
        )
        if name in CROWDED:
            text += "; the field without the dwarf galaxy"
        found.append(Finding(f"stars per detector, {name}", middle, (low + high) / 2, (high - low) / 2, passed, text))
    return found


def _draw_curves(path: Path, counts: Counts) -> None:
    directions = [row for row in PUBLISHED if np.isfinite(row.l) and row.band == "V"]
    places = list(dict.fromkeys(row.place for row in directions))
    figure, axes = new_figure(1, 2, (9.4, 4.0))
    limits = np.arange(12, 27.1, 0.5)
    palette = (INK, SECOND, "#3f8f6b", "#d9a441", ACCENT)
    for place, colour in zip(places, palette, strict=True):
        rows = [row for row in directions if row.place == place]
        axes[0, 0].semilogy(limits, mean_counts(rows[0], limits, counts), color=colour, lw=1.2, label=place)
        axes[0, 0].plot([r.limit for r in rows], [r.n_per_deg2 for r in rows], "o", color=colour, ms=5)
    axes[0, 0].set(xlabel="V", ylabel="stars per deg² brighter than V", ylim=(1, 2e5))
    axes[0, 0].legend(fontsize=8, frameon=False)
    axes[0, 0].set_title("Cumulative counts; dots: Bahcall & Soneira (1980)", fontsize=9, loc="left")
    others = [row for row in PUBLISHED if row not in directions]
    labels = [f"{row.place}, {row.band} < {row.limit:g}" for row in others]
    ratio = [mean_counts(row, np.array([row.limit]), counts)[0] / row.n_per_deg2 for row in others]
    for k, row in enumerate(others):
        axes[0, 1].plot([1 / (1 + row.tolerance), 1 + row.tolerance], [k, k], color=QUIET, lw=5, alpha=0.5)
    axes[0, 1].plot(ratio, range(len(others)), "o", color=ACCENT, ms=5)
    axes[0, 1].axvline(1, color=INK, lw=0.6)
    axes[0, 1].set_xscale("log")
    axes[0, 1].set(xlabel="model over published; bar: tolerance", yticks=range(len(others)), yticklabels=labels)
    axes[0, 1].set_title("Surveys and other models", fontsize=9, loc="left")
    save_figure(figure, path)


def _draw_regions(path: Path, table: dict[str, NDArray[np.float64]]) -> None:
    figure, axes = new_figure(1, 1, (7.2, 3.2))
    bins = np.geomspace(50, 5e5, 60)
    for k, (name, n) in enumerate(table.items()):
        low, high = REGIONS[name].n_star
        axes[0, 0].plot([max(low, 50), high], [k, k], color=QUIET, lw=9, alpha=0.5, solid_capstyle="butt")
        height = np.histogram(np.clip(n, 51, 4.9e5), bins)[0]
        axes[0, 0].bar(bins[:-1], 0.8 * height / height.max(), np.diff(bins), bottom=k, align="edge", color=ACCENT)
    axes[0, 0].set_xscale("log")
    axes[0, 0].set(
        xlabel=f"stars with g < {STAR_LIMIT} on a detector", yticks=range(len(table)), ylim=(-0.6, len(table))
    )
    axes[0, 0].set_yticklabels([name.replace("_", " ") for name in table], fontsize=8)
    axes[0, 0].set_title("Model over each region; grey: range of the paper's Table 1", fontsize=9, loc="left")
    save_figure(figure, path)


def check_counts(folder: Path | None = None, counts: Counts = star_counts) -> list[Finding]:
    """Counts against the literature and the paper; with a folder, also ``counts.png`` and ``regions.png`` in it.

    Parameters
    ----------
    folder : Path, optional
    counts : callable, optional
        The model.
    """
    table = {name: region_counts(region, counts) for name, region in REGIONS.items()}
    if folder is not None:
        _draw_curves(folder / "counts.png", counts)
        _draw_regions(folder / "regions.png", table)
    return published_findings(counts) + region_findings(table)
