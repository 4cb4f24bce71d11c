"""Pictures of counts and of trust: Figure 9 of Lai et al. (2026), reliability, learning curves, error budgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import rankdata

from csst_dask.evaluation.dataset_figures import ACCENT, INK, QUIET, SECOND
from csst_dask.evaluation.figures import SERIES, binomial_bounds, save, tidy
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.tables import logs
from csst_dask.evaluation.trust import reliability_table, selective_curve
from csst_dask.schema import BRIGHT_LIMIT, STAR_LIMIT

MARGIN = 0.2
"""Relative error of the dashed lines."""
RESIDUAL = 0.5
"""Larger residuals are drawn at the border of their panel, dex."""
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
"""Behind text that may lie over points."""
NAMES = {"bright": f"stars brighter than {BRIGHT_LIMIT}", "star": f"stars (g < {STAR_LIMIT})"}


def plot_predicted_counts(judged: Judged, path: Path, of: str = "bright") -> None:
    """Draw predicted against true counts, coloured by the density of points, and residuals below (Figure 9).

    Axes are linear in log10(1 + n), so that 0 has a place. Residuals outside their panel are drawn as triangles at its
    border, and their number is noted.

    Parameters
    ----------
    judged : Judged
        Chips without a count or without truth are left out and their number is noted.
    path : Path
        PNG.
    of : str
        ``bright`` or ``star``.
    """
    truth, predicted = logs(judged, of)
    known = np.isfinite(truth) & np.isfinite(predicted)
    truth, predicted = truth[known], predicted[known]
    top = float(max(truth.max(initial=1), predicted.max(initial=1))) * 1.03
    figure = Figure(figsize=(6.0, 7.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    _points(upper, truth, predicted)
    residual = predicted - truth
    far = np.abs(residual) > RESIDUAL
    _points(lower, truth[~far], residual[~far])
    for rows, border, marker in ((residual > RESIDUAL, RESIDUAL, "^"), (residual < -RESIDUAL, -RESIDUAL, "v")):
        where = truth[rows]
        lower.plot(where, np.full(len(where), border), marker, color=ACCENT, ms=5, mfc="none", ls="", clip_on=False)
    line = np.linspace(0, top, 300)
    stars = 10**line - 1
    for factor, style in ((1.0, "-"), (1 + MARGIN, "--"), (1 - MARGIN, "--")):
        other = np.log10(1 + factor * stars)
        upper.plot(line, other, color=ACCENT, ls=style, lw=1.3 if factor == 1 else 1.0)
        lower.plot(line, other - line, color=ACCENT, ls=style, lw=1.3 if factor == 1 else 1.0)
    inside = np.abs(10**predicted - 10**truth) <= MARGIN * (10**truth - 1) + 1e-9
    note = [f"{len(truth):,} chips, {inside.mean():.1%} within ±{MARGIN:.0%} (dashed)" if len(truth) else "no chips"]
    if missing := int((~known).sum()):
        note.append(f"{missing:,} without count or truth")
    upper.text(0.03, 0.97, "\n".join(note), transform=upper.transAxes, va="top", fontsize=8.5, color=INK, bbox=PAPER)
    upper.set(xlim=(-0.05, top * 1.02), ylim=(-0.05, top * 1.02), ylabel="predicted number on the chip")
    lower.set(ylim=(-1.08 * RESIDUAL, 1.08 * RESIDUAL), xlabel="true number on the chip", ylabel="residual, dex")
    _count_ticks(upper, top)
    bias = f"mean absolute residual {np.abs(residual).mean():.4f} dex, mean {residual.mean():+.4f} dex"
    tidy(upper, f"{NAMES[of]}: predicted against true; bright where chips crowd")
    if far.any():
        bias += f"; {int(far.sum()):,} beyond ±{RESIDUAL:g} dex, at the border"
    tidy(lower, bias if len(truth) else "")
    save(figure, path)


def _points(axis: Axes, x: NDArray, y: NDArray) -> None:
    """Points coloured by how crowded their place in the panel is."""
    if len(x):
        shade = _crowding(x, y)
        order = np.argsort(shade)
        axis.scatter(x[order], y[order], c=shade[order], cmap="viridis", s=9, lw=0, alpha=0.9, rasterized=True)


def _crowding(x: NDArray, y: NDArray, bins: int = 90) -> NDArray[np.float64]:
    """Rank of the smoothed number of points around each point, 0 to 1."""
    density, xs, ys = np.histogram2d(x, y, bins)
    place = [np.interp(v, (e[1:] + e[:-1]) / 2, np.arange(bins)) for v, e in ((x, xs), (y, ys))]
    return rankdata(map_coordinates(gaussian_filter(density, 1.5), place, order=1, mode="nearest")) / len(x)


def _count_ticks(axis: Axes, top: float) -> None:
    """Counts as labels of an axis that is linear in log10(1 + n)."""
    counts = [0, *(10**k for k in range(int(top) + 1))]
    where = [float(np.log10(1 + n)) for n in counts]
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(FixedLocator(where))
        side.set_minor_locator(NullLocator())
        side.set_major_formatter(FuncFormatter(lambda value, _: _count_label(value)))


def _count_label(value: float) -> str:
    count = round(10**value - 1)
    return f"{count}" if count < 100 else f"$10^{{{round(np.log10(count))}}}$"


def plot_reliability(judged: Judged, path: Path) -> None:
    """Draw accuracy against confidence, and the accuracy of the chips that are kept against their share.

    Parameters
    ----------
    judged : Judged
    path : Path
        PNG.
    """
    table = reliability_table(judged)
    table = table[table["chips"] > 0]
    figure = Figure(figsize=(9.2, 4.3), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(2.6, 1))
    left, below, right = (figure.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[:, 1]))
    below.sharex(left)
    if not len(table):
        left.text(0.5, 0.5, "no probabilities", ha="center", transform=left.transAxes, color=QUIET)
    low = max(0.0, float(np.floor(10 * table["from"].min()) / 10)) if len(table) else 0.0
    left.plot([low, 1], [low, 1], color=QUIET, lw=1, ls="--", label="perfectly calibrated")
    share = table["accuracy"]
    chips = table["chips"].to_numpy()
    bounds = np.stack(binomial_bounds(np.round(share * chips).to_numpy(), chips))
    error = np.abs(bounds - share.to_numpy())
    left.errorbar(table["confidence"], share, error, fmt="o-", color=SECOND, ms=5, lw=1.2, label="measured")
    left.set(ylabel="accuracy", xlim=(low, 1.01), ylim=(min([low, *share]) - 0.03, 1.03))
    left.legend(frameon=False, fontsize=8, loc="upper left")
    below.bar(table["from"], table["chips"], table["to"] - table["from"], align="edge", color=SECOND, ec="white")
    below.set(xlabel="confidence: probability of the predicted class", ylabel="chips", yscale="log")
    below.set_ylim(bottom=0.7)
    curve = selective_curve(judged)
    right.step(curve["kept"], curve["accuracy"], color=SECOND, where="post", lw=1.4)
    kept = (judged.route != "review") & np.isfinite(judged.confidence)
    if (judged.route != "").any() and kept.any():
        place = (kept.sum() / max(int(np.isfinite(judged.confidence).sum()), 1), judged.right[kept].mean())
        right.plot(
            *place, "s", color=ACCENT, ms=7, ls="", label=f"not sent to review: {place[1]:.2%} of {place[0]:.1%}"
        )
        right.legend(frameon=False, fontsize=8, loc="lower left")
    floor = curve["accuracy"][curve["kept"] > 0.1].min() if len(curve) else 0.0
    right.set(xlabel="share of chips kept, most confident first", ylabel="accuracy of the kept chips", xlim=(0, 1.01))
    right.set_ylim(floor - 0.15 * (1.001 - floor), 1 + 0.05 * (1.001 - floor))
    right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    tidy(left, "reliability")
    tidy(below)
    tidy(right, "selective accuracy")
    left.tick_params(labelbottom=False)
    save(figure, path)


def plot_error_budget(budget: pd.DataFrame, path: Path, total: pd.Series | None = None) -> None:
    """Draw what contributes to the error of a count, band by band.

    Parameters
    ----------
    budget : pandas.DataFrame
        A row for each band, a column for each contribution, dex; NaN draws no bar.
    path : Path
        PNG.
    total : pandas.Series, optional
        Measured error of each band, dex, drawn as a line across its bars.
    """
    figure = Figure(figsize=(1.6 + 1.1 * len(budget), 3.8), layout="constrained")
    axis = figure.subplots()
    place, width = np.arange(len(budget)), 0.8 / max(budget.shape[1], 1)
    for i, name in enumerate(budget.columns):
        left = place - 0.4 + i * width
        colour, hatch = SERIES[i % len(SERIES)][0], ("", "////", "....", "\\\\\\\\", "xxxx", "----")[i % 6]
        axis.bar(
            left,
            budget[name],
            0.92 * width,
            align="edge",
            color=colour,
            ec="white",
            hatch=hatch,
            lw=0,
            label=str(name).replace("_", " "),
        )
    if total is not None:
        values = total.reindex(budget.index)
        axis.hlines(values, place - 0.44, place + 0.44, color=INK, lw=1.6, label="measured")
    axis.set_xticks(place, [str(band) for band in budget.index])
    axis.set(xlabel="band", ylabel="contribution to the error, dex")
    axis.grid(axis="y", color=QUIET, alpha=0.25, lw=0.6)
    axis.set_axisbelow(True)
    figure.legend(loc="outside upper left", frameon=False, fontsize=8, ncols=3)
    tidy(axis)
    save(figure, path)
