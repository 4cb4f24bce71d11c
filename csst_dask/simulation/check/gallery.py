"""Pieces of simulated chips to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from csst_dask.simulation.check.bytes_check import sample_jobs
from csst_dask.simulation.check.figure import new_figure, save_figure, stretch
from csst_dask.simulation.renderer import Renderer

SIDE = 384
"""Pixel."""


def draw_gallery(path: Path) -> None:
    """A sparse and a crowded field in four bands, each on its own stretch."""
    renderer, jobs = Renderer((SIDE, SIDE)), sample_jobs()
    figure, axes = new_figure(2, len(jobs) // 2, (10.0, 5.3))
    for axis, (exposure, detector) in zip(axes.flat, jobs, strict=True):
        chip = renderer.render(exposure, detector)
        picture = np.where(np.isfinite(chip.image), chip.image, np.nan)
        axis.imshow(stretch(picture), origin="lower", cmap="gray_r", interpolation="nearest")
        axis.set_title(f"{chip.band}, {chip.n_star} catalogue stars", fontsize=8, loc="left")
        axis.set_axis_off()
    save_figure(figure, path)
