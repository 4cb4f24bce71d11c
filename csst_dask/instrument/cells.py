"""Cells in which the local sky of a frame is measured: small rectangles that no amplifier's border crosses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AMPLIFIERS = (2, 8)
"""Amplifiers of a frame along y and x."""
CELL = (83, 144)
"""Size (y, x) that cells are close to, pixel."""


def sky_shape(frame: tuple[int, int]) -> tuple[int, int]:
    """Number of cells along y and x.

    Parameters
    ----------
    frame : (int, int)
        Frame shape (y, x), pixel.
    """
    sy, sx = (n * max(1, round(size / n / cell)) for size, n, cell in zip(frame, AMPLIFIERS, CELL, strict=True))
    return sy, sx


def sky_edges(frame: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First rows and first columns of the cells, and the ends of the last: (sy + 1,) and (sx + 1,) int64 arrays.

    Parameters
    ----------
    frame : (int, int)
        Frame shape (y, x), pixel.
    """
    y, x = (np.arange(n + 1) * size // n for size, n in zip(frame, sky_shape(frame), strict=True))
    return y, x


def amplifier_cells(cells: tuple[int, int]) -> tuple[int, int]:
    """Cells of one amplifier along y and x.

    Parameters
    ----------
    cells : (int, int)
        Cells of the frame, as `sky_shape` gives them.
    """
    return cells[0] // AMPLIFIERS[0], cells[1] // AMPLIFIERS[1]
