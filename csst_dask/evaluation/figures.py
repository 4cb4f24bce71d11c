"""Pictures of a classifier: Figures 7, 8, 10 and 11 of Lai et al. (2026)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from csst_dask.evaluation.dataset_figures import ACCENT, INK, LABEL, QUIET, SECOND, log_stretch
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.tables import edge_distance
from csst_dask.metrics import confusion_matrix
from csst_dask.schema import CLASS_BORDERS, CLASS_EDGES, CLASS_LABELS, N_CLASSES

SERIES = ((SECOND, "o"), (ACCENT, "s"), (INK, "^"), ("#d9a441", "D"), ("#5aa89a", "v"), (QUIET, "P"))
"""Colour and marker of each of several series: told apart without colour too."""
RIGHT = np.eye(N_CLASSES, dtype=bool)
"""Cells of the confusion matrix of chips whose class is right."""
NEAR = 0.1
"""Chips this close to a class edge are near it, dex."""
CLEAR = 0.13
"""Distance from the edge of the chip that shows a clear case (1343 stars at the edge of 1000), dex."""
TITLE = 50
"""Letters that fit above a panel."""
BIN = 0.1
"""Width of the bins of star counts, dex."""

Maps = Mapping[int, NDArray] | NDArray
"""Block statistics (iy, ix) by place in `Judged`; an array has the chips first."""


def tidy(axis: Axes, title: str = "") -> None:
    """The look of every panel."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.xaxis.label.set_fontsize(9)
    axis.yaxis.label.set_fontsize(9)
    if title:
        axis.set_title(title, fontsize=9, loc="left")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without marks of the machine."""
    figure.savefig(path, dpi=110, metadata={"Software": None})


def plot_losses(logs: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Draw training and validation losses against epochs (Figure 7).

    Parameters
    ----------
    logs : mapping of str to pandas.DataFrame
        Name of a network to its log: ``epoch``, ``train_loss``, ``validation_loss``, ``learning_rate``.
    path : Path
        PNG.
    """
    figure = Figure(figsize=(4.8 * max(len(logs), 1), 3.4), layout="constrained")
    for axis, (name, log) in zip(np.atleast_1d(figure.subplots(1, max(len(logs), 1))), logs.items(), strict=False):
        epochs, few = log["epoch"].to_numpy(), len(log) < 30
        for column, (colour, marker), text in (
            ("train_loss", (SECOND, "o"), "training"),
            ("validation_loss", (ACCENT, "s"), "validation"),
        ):
            axis.plot(
                epochs, log[column], color=colour, lw=1.4, marker=marker if few else "", ms=3, label=text,
                ls="-" if column == "train_loss" else "--",
            )  # fmt: skip
        best = int(np.argmin(log["validation_loss"].to_numpy()))
        axis.plot(
            epochs[best], log["validation_loss"].iloc[best], "*", color=INK, ms=10, label="least validation loss", ls=""
        )
        losses = log[["train_loss", "validation_loss"]].to_numpy()
        if losses.min() > 0 and losses.max() > 8 * losses.min():
            axis.set_yscale("log")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="epoch", ylabel="loss per chip")
        rate = axis.twinx()
        rate.plot(epochs, log["learning_rate"], color=QUIET, lw=0.9, ls=":")
        rate.set_yscale("log")
        rate.set_ylabel("learning rate (dotted)", fontsize=8, color=QUIET)
        rate.tick_params(labelsize=7, colors=QUIET, which="both")
        rate.spines[["top", "left", "right"]].set_visible(False)
        short = name if len(name) <= TITLE else f"...{name[3 - TITLE :]}"
        tidy(axis, f"{short}\nleast validation loss {losses[best, 1]:.4g} after epoch {epochs[best]}")
        axis.legend(frameon=False, fontsize=8)
    save(figure, path)


def plot_confusion(judged: Judged, path: Path) -> None:
    """Draw the confusion matrix as counts and as shares of the true class (Figure 8).

    Parameters
    ----------
    judged : Judged
    path : Path
        PNG.
    """
    count = confusion_matrix(judged.true_class, judged.density_class)
    support = count.sum(axis=1, keepdims=True)
    share = np.divide(count, support, out=np.zeros(count.shape), where=support > 0)
    figure = Figure(figsize=(9.2, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    wrong = int((~judged.right).sum())
    for axis, values, shade, name in (
        (left, count, np.log1p(count) / np.log1p(max(count.max(), 1)), f"{len(judged):,} chips, {wrong:,} wrong"),
        (right, 100 * share, np.sqrt(share), "shares of each true class, per cent"),
    ):
        axis.imshow(np.ma.masked_where(~RIGHT, shade), cmap="Blues", vmin=0, vmax=1.15)
        axis.imshow(np.ma.masked_where(RIGHT | (count == 0), shade), cmap="Reds", vmin=0, vmax=1.15)
        for (i, j), n in np.ndenumerate(values):
            if count[i, j]:
                text = f"{n:,}" if values is count else f"{n:.1f}"
                colour = "white" if shade[i, j] > 0.6 else INK
                weight = "normal" if i == j else "bold"
                axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=9, fontweight=weight)
        ticks = [f"{k}\n({CLASS_LABELS[k]})" for k in range(N_CLASSES)]
        axis.set_xticks(range(N_CLASSES), ticks)
        axis.set_yticks(range(N_CLASSES), ticks)
        axis.set(xlabel="predicted class (stars on a chip)", ylabel="true class")
        tidy(axis, name)
        axis.tick_params(labelsize=6.5, length=0)
        axis.spines[:].set_visible(False)
    save(figure, path)


def plot_star_counts(judged: Judged, path: Path) -> None:
    """Draw a histogram of the true star counts with the wrongly classified, and their share (Figure 10).

    Parameters
    ----------
    judged : Judged
    path : Path
        PNG.
    """
    size = np.log10(np.where(judged.n_star > 0, judged.n_star, 10**-0.25))
    top = float(np.ceil(max(size.max(initial=1), 1) / 0.5) * 0.5)
    bins = np.concatenate([[-0.3, -0.2], BIN * np.arange(round(top / BIN) + 2)])
    every, wrong = (np.histogram(part, bins)[0] for part in (size, size[~judged.right]))
    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    upper.stairs(every, bins, fill=True, color=SECOND, alpha=0.75)
    upper.stairs(wrong, bins, fill=True, facecolor="white", edgecolor=ACCENT, hatch="//////", lw=1)
    handles = [Patch(color=SECOND, alpha=0.75), Patch(facecolor="white", edgecolor=ACCENT, hatch="//////")]
    upper.legend(
        handles, [f"all {len(judged):,} chips", f"{wrong.sum():,} wrongly classified"], frameon=False, fontsize=8,
        loc="upper left", bbox_to_anchor=(0.06, 0.93),
    )  # fmt: skip
    upper.set_yscale("log")
    upper.set_ylim(0.7, max(float(every.max(initial=1)), 1) * 6)
    share = np.divide(wrong, every, out=np.full(len(every), np.nan), where=every > 0)
    down, up = binomial_bounds(wrong, every)
    middle = (bins[1:] + bins[:-1]) / 2
    lower.errorbar(middle, share, [share - down, up - share], fmt="s", ms=3, lw=1, color=ACCENT)
    for axis in (upper, lower):
        for edge in CLASS_EDGES:
            axis.axvline(np.log10(edge) - (0.1 if edge == 1 else 0), color=INK, lw=0.8, ls=":")
    _name_classes(upper, top)
    near = float((np.abs(edge_distance(judged.n_star)[0]) < NEAR).mean()) if len(judged) else float("nan")
    inner = float((np.abs(edge_distance(judged.n_star)[0]) < NEAR)[~judged.right].mean()) if wrong.sum() else 0.0
    upper.set_ylabel(f"chips per {BIN:g} dex")
    lower.set(xlabel="true stars on the chip", ylabel="share wrong", xlim=(-0.4, top + 0.05))
    reach = max(0.1, 1.1 * float(np.nanmax(up[every >= 10], initial=0)))
    lower.set_ylim(-0.03 * reach, reach)
    lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    decades = range(int(top) + 1)
    lower.set_xticks([-0.25, *decades], ["none", "1", "10", *(f"$10^{{{k}}}$" for k in decades if k > 1)])
    tidy(upper, f"{near:.1%} of the chips and {inner:.1%} of the wrong ones lie within {NEAR:g} dex of a class edge")
    tidy(lower)
    save(figure, path)


def binomial_bounds(hits: NDArray, trials: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of a proportion at one standard deviation, which are apart also where it is 0 or 1 [1]_.

    Parameters
    ----------
    hits, trials : (n,) arrays of int

    Returns
    -------
    lower, upper : (n,) float64 arrays
        NaN without a trial.

    References
    ----------
    .. [1] Wilson (1927), JASA 22, 209.
    """
    n = np.where(trials > 0, trials, np.nan)
    share = hits / n
    centre = (share + 0.5 / n) / (1 + 1 / n)
    half = np.sqrt(share * (1 - share) / n + 0.25 / n**2) / (1 + 1 / n)
    return np.clip(centre - half, 0, share), np.clip(centre + half, share, 1)


def _name_classes(axis: Axes, top: float) -> None:
    """The number of every class above its stretch of the logarithmic axis."""
    edges = np.minimum([-0.4, -0.1, *np.log10(CLASS_EDGES[1:]), np.inf], top + 0.05)
    for k, (low, high) in enumerate(pairwise(edges)):
        if high > low + 0.1:
            axis.text(
                (low + high) / 2, 0.97, str(k), transform=axis.get_xaxis_transform(), ha="center", va="top", fontsize=9,
                color=INK,
            )  # fmt: skip


def near_edge(judged: Judged) -> list[int]:
    """Three chips that show how classes blur at an edge.

    The wrongly classified chip that is nearest to the edge between its two classes; of the chips of the class it
    was taken for that are classified rightly, the one nearest to that edge; and of its own class one that is
    clear of the edge by about `CLEAR`. The latter two are of its band where there are such.

    Returns
    -------
    list of int
        Places in ``judged``: the right chip beyond the edge, the wrong chip, the clear one; fewer where there is
        no such chip.
    """
    called, places = judged.density_class, np.array(CLASS_BORDERS)
    wrong = np.flatnonzero(np.abs(called - judged.true_class) == 1)
    if not len(wrong):
        return []
    edge = np.maximum(judged.true_class, called)[wrong] - 1
    first = int(np.argmin(np.abs(judged.true_log_star[wrong] - places[edge])))
    chosen, away = int(wrong[first]), np.abs(judged.true_log_star - places[edge[first]])

    def best(of_class: int, wanted: float) -> list[int]:
        fits = judged.right & (judged.true_class == of_class)
        same = fits & (judged.band == judged.band[chosen])
        rows = np.flatnonzero(same if same.any() else fits)
        return [int(rows[np.argmin(np.abs(away[rows] - wanted))])] if len(rows) else []

    return [*best(int(called[chosen]), 0.0), chosen, *best(int(judged.true_class[chosen]), CLEAR)]


def plot_near_edge(judged: Judged, maps: Maps, path: Path) -> None:
    """Draw the chips of `near_edge` on one stretch each (Figure 11).

    Parameters
    ----------
    judged : Judged
    maps : mapping of int to (iy, ix) array, or (n, iy, ix) array
        Block statistics; a mapping holds at least those of `near_edge`.
    path : Path
        PNG.
    """
    chips = near_edge(judged)
    figure = Figure(figsize=(2.9 * max(len(chips), 1), 3.35), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, max(len(chips), 1)))
    if not chips:
        axes[0].text(0.5, 0.5, "no chip is one class off", ha="center", transform=axes[0].transAxes, color=QUIET)
        axes[0].set_axis_off()
    for axis, chip, letter in zip(axes, chips, "abc", strict=False):
        axis.imshow(log_stretch(maps[chip]), origin="lower", cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_anchor("S")  # the title needs the room above
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        true, called = int(judged.true_class[chip]), int(judged.density_class[chip])
        axis.text(
            0.96, 0.03, str(called), transform=axis.transAxes, ha="right", va="bottom", color=LABEL, fontsize=20,
            fontweight="bold",
        )  # fmt: skip
        verdict = f"rightly class {true}" if true == called else f"class {true}, taken for {called}"
        name = f"({letter}) {judged.band[chip]}, {judged.n_star[chip]:,} stars\n{verdict}"
        axis.set_title(name, fontsize=9, loc="left", color=INK if true == called else ACCENT)
    save(figure, path)
