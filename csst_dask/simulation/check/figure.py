"""Pictures without a display and without global state, so that they can be drawn from any thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK, ACCENT, SECOND, QUIET = "#1b2a41", "#c8553d", "#2f6f9f", "#9aa5b1"


def new_figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, NDArray]:
    """A figure and its axes.

    Parameters
    ----------
    rows, columns : int
    size : (float, float)
        Width and height, inch.
    **options
        Of `matplotlib.figure.Figure.subplots`.

    Returns
    -------
    figure : matplotlib.figure.Figure
    axes : (rows, columns) object array
    """
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.asarray(figure.subplots(rows, columns, squeeze=False, **options))
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=110)


def stretch(image: NDArray, low: float = 1.0, high: float = 99.7) -> NDArray[np.float64]:
    """Pixels on an asinh scale from 0 to 1 between two percentiles; NaN stays NaN."""
    values = np.asarray(image, np.float64)
    floor, ceiling = np.nanpercentile(values, [low, high])
    width = max(float(ceiling - floor), 1e-12)
    return np.clip(np.arcsinh(10 * (values - floor) / width) / np.arcsinh(10.0), 0, 1)
