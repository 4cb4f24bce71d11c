"""Saturated stars: charge above the full well runs along the column, and none is made or lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csst_dask.instrument.flags import FLAG_SATURATED
from csst_dask.instrument.focal_plane import BAND_TABLE
from csst_dask.simulation.check.figure import new_figure, save_figure, stretch
from csst_dask.simulation.check.finding import Finding, below, near
from csst_dask.simulation.check.psf_check import JITTER
from csst_dask.simulation.detector import DetectorModel, bleed
from csst_dask.simulation.psf import make_psf
from csst_dask.simulation.render import add_stars

SHAPE = (1024, 512)
FIELD = ((12.5, 512.4, 90.2), (13.5, 300.7, 200.5), (15.0, 600.2, 290.8), (16.0, 800.5, 390.1), (13.0, 400.3, 450.6))
"""Magnitude, row and column of stars whose charge stays on the frame."""
EDGE = ((13.0, 6.5, 330.3),)
"""A star so near the edge that charge runs off."""


def saturated_field(stars: tuple[tuple[float, float, float], ...]) -> tuple[NDArray[np.float32], NDArray, NDArray]:
    """A frame of bright stars before bleeding (electron), and their rows and columns."""
    band, frame = BAND_TABLE["g"], np.zeros(SHAPE, np.float32)
    magnitude, y, x = np.array(stars).T
    flux = 10 ** (-0.4 * (magnitude - band.zero_point)) * 150.0
    add_stars(frame, y, x, flux, make_psf(band.wavelength, JITTER))
    return frame, y, x


def bleed_findings(
    before: NDArray[np.float32], after: NDArray[np.float32], flags: NDArray[np.uint16], lost: float, full_well: float
) -> list[Finding]:
    """Compare a frame with what bleeding made of it.

    Parameters
    ----------
    before, after : (ny, nx) float32 array
        Electrons.
    flags : (ny, nx) uint16 array
    lost : float
        Charge that is said to have run off the frame, electron.
    full_well : float
        Electrons.
    """
    charge = before.sum(dtype=np.float64)
    kept = float((after.sum(dtype=np.float64) + lost) / charge - 1)
    full = after >= np.float32(full_well)
    wrong = int((full != ((flags & FLAG_SATURATED) != 0)).sum())
    found = [
        below("charge after bleeding, relative", kept, 1e-6, f"{charge:.3g} e-, of which {lost:.3g} e- left the frame"),
        near("fullest pixel over the full well", float(after.max()) / full_well, 1.0, 1e-6),
        near("full pixels without their flag, and the reverse", wrong, 0, 0, f"{int(full.sum())} full pixels"),
    ]
    if lost == 0:
        moved = np.abs(after.sum(0, dtype=np.float64) - before.sum(0, dtype=np.float64)).max() / charge
        found.append(below("charge that changes its column, relative", float(moved), 1e-6, "largest of all columns"))
    return found


def check_bleed(folder: Path | None = None) -> list[Finding]:
    """Bleeding of bright stars, inside a frame and at its edge; with a folder, also ``bleed.png`` in it."""
    full_well, found = DetectorModel().full_well, []
    for stars in (EDGE, FIELD):
        before, y, x = saturated_field(stars)
        after, flags = before.copy(), np.zeros(SHAPE, np.uint16)
        lost = bleed(after, flags, y, x, full_well)
        found += bleed_findings(before, after, flags, lost, full_well)
    if folder is not None:
        _draw(folder / "bleed.png", before, after, flags)
    return found


def _draw(path: Path, before: NDArray, after: NDArray, flags: NDArray) -> None:
    figure, axes = new_figure(1, 3, (7.0, 5.0))
    pictures = (("light", np.log10(before + 1)), ("after bleeding", np.log10(after + 1)), ("saturated flag", flags))
    for axis, (title, picture) in zip(axes[0], pictures, strict=True):
        axis.imshow(stretch(picture, 0, 100), origin="lower", cmap="gray_r", interpolation="nearest")
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_axis_off()
    save_figure(figure, path)
