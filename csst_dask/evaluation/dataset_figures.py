"""Pictures of a data set: Figures 3, 4 and 5 of Lai et al. (2026) for any store with truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from csst_dask.evaluation.dataset import MAGNITUDE_EDGES, Chips, Scenes, class_weights
from csst_dask.schema import BANDS, BRIGHT_LIMIT, CLASS_LABELS, N_CLASSES

INK, ACCENT, SECOND, QUIET = "#1b2a41", "#c8553d", "#2f6f9f", "#9aa5b1"
LABEL = "#ff9f1c"
"""Of the class in the corner of a map."""
BAND_COLOURS = dict(
    zip(BANDS, ("#5b3a8c", "#3f5fb0", "#2f8f9f", "#4fae6b", "#d9a441", "#d2703c", "#9c2f3f"), strict=True)
)
WIDE = 30.0
"""Counts whose largest exceeds their median by this factor are shown on a logarithmic axis."""


def log_stretch(
    image: ArrayLike, low: float = 25.0, high: float = 99.9, contrast: float = 100.0
) -> NDArray[np.float64]:
    """A map on a logarithmic scale.

    Parameters
    ----------
    image : (ny, nx) array_like
        NaN marks pixels without a value.
    low, high : float
        Percentiles that become 0 and 1.
    contrast : float
        The scale is log(1 + contrast x) / log(1 + contrast), x linear.

    Returns
    -------
    (ny, nx) float64 array
        0 to 1; NaN stays NaN.
    """
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).any():
        return np.full(values.shape, np.nan)
    floor, ceiling = np.nanpercentile(np.where(np.isfinite(values), values, np.nan), [low, high])
    x = np.clip((values - floor) / max(float(ceiling - floor), 1e-12), 0.0, 1.0)
    return np.log1p(contrast * x) / np.log1p(contrast)


def plot_classes(chips: Chips, maps: Mapping[int, tuple[int, NDArray[np.float32]]], path: Path) -> None:
    """Draw one chip of every density class, with the class in the corner.

    Parameters
    ----------
    chips : Chips
    maps : mapping of int to (int, (iy, ix) float32 array)
        Density class to the chip's place in ``chips`` and its map of block means.
    path : Path
        PNG.
    """
    figure, axes = _panels((8.4, 6.1))
    for k, axis in enumerate(axes.flat):
        axis.set(xticks=[], yticks=[])
        if k not in maps:
            axis.text(
                0.5, 0.5, f"no chip of class {k}", ha="center", va="center", transform=axis.transAxes, color=QUIET
            )
            continue
        chip, image = maps[k]
        axis.spines[:].set_visible(False)
        axis.imshow(log_stretch(image), origin="lower", cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.text(
            0.96, 0.03, str(k), transform=axis.transAxes, ha="right", va="bottom", color=LABEL, fontsize=20,
            fontweight="bold",
        )  # fmt: skip
        axis.set_title(f"{chips.band[chip]}, {chips.n_star[chip]:,} stars", fontsize=9, loc="left")
    _save(figure, path)


def plot_magnitudes(chips: Chips, scenes: Scenes, path: Path) -> None:
    """Draw the magnitude distribution of the stars of every density class; dotted, the bright limit.

    Parameters
    ----------
    chips : Chips
    scenes : Scenes
    path : Path
        PNG.
    """
    figure, axes = _panels((9.0, 5.2), sharex=True)
    classes = chips.density_class[scenes.chips]
    seen = np.flatnonzero(scenes.magnitudes.sum(axis=0))
    width = np.diff(MAGNITUDE_EDGES)
    for k, axis in enumerate(axes.flat):
        some = scenes.magnitudes[classes == k]
        axis.set_title(
            f"class {k} ({CLASS_LABELS[k]} stars): {len(some)} of {int((chips.density_class == k).sum()):,} chips",
            fontsize=8.5, loc="left",
        )  # fmt: skip
        if not some.sum():
            text = "no stars" if len(some) else "no chips"
            axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color=QUIET)
            axis.set(yticks=[])
            continue
        bands, below = chips.band[scenes.chips][classes == k], np.zeros(len(width))
        for band, colour in BAND_COLOURS.items():
            height = some[bands == band].sum(axis=0) / len(some)
            if height.any():
                axis.bar(
                    MAGNITUDE_EDGES[:-1], height, width, below, align="edge", color=colour, label=band
                )  # fmt: skip
                below += height
        axis.axvline(BRIGHT_LIMIT, color=INK, lw=0.8, ls=":")
        bright = some[:, MAGNITUDE_EDGES[:-1] < BRIGHT_LIMIT].sum() / some.sum()
        axis.text(
            0.03, 0.96, f"{some.sum():,} stars\n{bright:.0%} bright", fontsize=8, va="top",
            transform=axis.transAxes, color=INK,
        )  # fmt: skip
    if len(seen):
        axes[0, 0].set_xlim(MAGNITUDE_EDGES[seen[0]] - 0.5, MAGNITUDE_EDGES[seen[-1] + 1] + 0.5)
    figure.supxlabel("magnitude in the chip's own band, AB", fontsize=9)
    figure.supylabel("stars per chip and half magnitude", fontsize=9)
    shown = [band for band in BAND_COLOURS if band in chips.band[scenes.chips]]
    handles = [Patch(color=BAND_COLOURS[band]) for band in shown]
    figure.legend(handles, shown, loc="outside upper right", ncols=len(BAND_COLOURS), fontsize=8, frameon=False)
    _save(figure, path)


def plot_counts(chips: Chips, scenes: Scenes | None, path: Path) -> None:
    """Draw histograms of stars, galaxies and bright stars per chip.

    Parameters
    ----------
    chips : Chips
    scenes : Scenes or None
        For the galaxies: each chip of the sample stands for all of its class. Without them the panel is left out.
    path : Path
        PNG.
    """
    figure = Figure(figsize=(9.6 if scenes else 6.4, 3.0), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, 3 if scenes else 2))
    known = chips.n_bright[chips.n_bright >= 0]
    panels: list[tuple[NDArray, NDArray | None, str, str, str]] = [
        (chips.n_star, None, "stars", f"{len(chips):,} chips", INK),
        (known, None, f"stars brighter than {BRIGHT_LIMIT}", f"{len(known):,} chips", ACCENT),
    ]
    if scenes is not None:
        weights = class_weights(chips.density_class, scenes.chips)
        text = f"from {len(scenes.chips)} chips" if scenes.galaxies else "the survey holds none"
        panels.insert(1, (scenes.n_galaxy, weights, "galaxies", text, SECOND))
    for axis, (values, weight, name, text, colour) in zip(axes, panels, strict=True):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        _histogram(axis, values, weight, colour)
        axis.set_xlabel(f"{name} on a chip", fontsize=9)
        axis.set_title(text, fontsize=9, loc="left")
    axes[0].set_ylabel("chips", fontsize=9)
    _save(figure, path)


def _histogram(axis: Axes, values: NDArray[np.int64], weights: NDArray | None, colour: str) -> None:
    """Counts on a linear axis; on a logarithmic one, with a bar of its own for zero, where they span decades."""
    if not len(values):
        axis.text(0.5, 0.5, "unknown", ha="center", va="center", transform=axis.transAxes, color=QUIET)
        return
    most = int(values.max())
    if most <= WIDE * max(float(np.median(values)), 1.0):
        least = int(values.min())
        bins = np.linspace(least, max(most + 1, least + 10), min(41, max(most + 1 - least, 10) + 1))
        axis.hist(values, bins.tolist(), weights=weights, color=colour)
        return
    top = int(np.ceil(np.log10(most + 1)))
    decades = np.log10(np.where(values > 0, values, 10**-0.5))
    axis.hist(decades, (np.arange(-3, 5 * top + 1) / 5).tolist(), weights=weights, color=colour)
    axis.set_xticks([-0.5, *range(top + 1)], ["0", "1", "10", *(f"$10^{{{k}}}$" for k in range(2, top + 1))])


def _panels(size: tuple[float, float], **options: Any) -> tuple[Figure, NDArray]:
    """A figure with one panel for every density class."""
    figure = Figure(figsize=size, layout="constrained")
    axes = np.asarray(figure.subplots(2, N_CLASSES // 2, **options))
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
