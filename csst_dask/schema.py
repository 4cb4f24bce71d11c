"""The words that every stage shares: names, classes, bits, and the small records that pass between stages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FRAME_SHAPE = (9232, 9216)
"""Shape (y, x) of an assembled CSST imaging frame, pixel."""

BLOCK_SHAPE = (224, 224)
"""Shape (iy, ix) of the block statistics."""

BLOCK_STATS = ("mean", "valid", "std", "max", "point", "point_valid")
"""Block statistics, in the order of the ``stat`` dimension."""

BANDS = ("NUV", "u", "g", "r", "i", "z", "y")
"""Imaging bands from blue to red."""

CLASS_EDGES = (1, 100, 1_000, 10_000, 100_000)
"""Least ``n_star`` of density classes 1 to 5; fewer than the first is class 0."""

CLASS_BORDERS = tuple(float(border) for border in np.log10(np.array(CLASS_EDGES) + 0.5))
"""log10(1 + n_star) where a class ends and the next begins: halfway between two counts, dex."""

N_CLASSES = len(CLASS_EDGES) + 1

CROWDED = N_CLASSES - 1
"""Density class for which the regression is bypassed (paper, section 4.5)."""

CLASS_LABELS = ("0", "1-99", "100-999", "1e3-9999", "1e4-99999", ">=1e5")

BRIGHT_LIMIT = 23.5
"""A bright star is brighter than this magnitude (AB) in the chip's own band."""

STAR_LIMIT = 26.5
"""``n_star`` of a simulated chip counts stars brighter than this g magnitude (AB), in every band."""

MAGNITUDES = (18.0, 19.0, 20.0, 21.0, 22.0, 23.0, 23.5, 24.0, 25.0, 26.0)
"""Limits of the star counts N(< m), AB mag in the chip's own band."""

TILES = 14
"""Tiles along each side of a frame, each of 16 x 16 blocks."""

FLUX = -1.0 + 0.1 * np.arange(55)
"""Lower edges of the steps of a peak's 3 x 3 light over the local sky, log10(e-/s)."""
CONCENTRATION = 0.30 + 0.02 * np.arange(38)
"""Lower edges of the steps of 3 x 3 over 5 x 5 light."""
SHARPNESS = 0.08 * np.arange(12)
"""Lower edges of the steps of peak over 3 x 3 light."""
SIZES = 2.0 ** np.arange(2, 14)
"""Lower edges of the steps of the area of saturated stars, pixel."""

SHAPE_CONCENTRATION = (0.30, *np.arange(0.62, 0.95, 0.04).round(2).tolist(), 0.30, 0.78, 0.86, 0.94, 1.02, 0.30)
SHAPE_SHARPNESS = (*10 * (0.00,), *5 * (0.40,), 0.56)
"""Lower edges of the coarse shapes of peaks in tiles: ten of what may be a star, five of what is sharper, and the rest,
which is single pixels."""
SHAPES = np.arange(len(SHAPE_SHARPNESS))


def _shape_of() -> NDArray[np.uint8]:
    """Coarse shape of each step of concentration and sharpness: (concentration, sharpness) uint8."""
    shape = np.zeros((CONCENTRATION.size, SHARPNESS.size), np.uint8)
    for number, (concentration, sharpness) in enumerate(zip(SHAPE_CONCENTRATION, SHAPE_SHARPNESS, strict=True)):
        inside = (CONCENTRATION[:, None] > concentration - 0.01) & (sharpness - 0.01 < SHARPNESS)
        shape[inside] = number
    return shape


SHAPE_OF = _shape_of()

STATUSES = ("pending", "done", "rejected", "failed", "superseded")
"""What became of a chip: ``rejected`` is the fault of its files, ``failed`` the machine's. Codes are the places."""

PENDING, DONE, REJECTED, FAILED, SUPERSEDED = range(len(STATUSES))

ROUTES = ("invalid", "crowded", "review", "sparse", "standard")
"""What the pipeline should do next, by falling precedence; but a chip out of distribution is reviewed first."""

ROUTE_CODES = ("none", *ROUTES)
"""Values of ``route``: a route's code is its place; ``none`` is a chip without prediction."""

ROUTE_FLAGS = {name: 1 << bit for bit, name in enumerate((*ROUTES, "unexpected"))}
"""CF flag bit of each route in ``route_flags``; ``unexpected`` is a remark, and no route."""

REVIEW_REASONS = {
    name: 1 << bit
    for bit, name in enumerate(
        (
            "out_of_distribution", "low_confidence", "gate", "disagreement", "noise", "amplifiers", "cosmic_rays",
            "direct_counts_only",
        )
    )
}  # fmt: skip
"""CF flag bit of each reason in ``review_reason``."""


class Mask(IntFlag):
    """Bits of the stored ``mask``, one byte a pixel."""

    NONFINITE = 1
    BAD = 2
    HOT = 4
    SATURATED = 8
    COSMIC_RAY = 16
    TRAIL = 32
    GHOST = 64
    NOT_OBSERVED = 128


MASK_MEANINGS = tuple(bit.name.lower() for bit in Mask if bit.name)
"""CF ``flag_meanings`` of ``mask``, in the order of its bits."""


def density_class(n_star: ArrayLike) -> NDArray[np.int8]:
    """Density class of a star count.

    Parameters
    ----------
    n_star : array_like of int
        Stars on a frame; a negative count is an unknown one.

    Returns
    -------
    int8 array
        0 to 5 by `CLASS_EDGES`, -1 where the count is unknown.
    """
    counts = np.asarray(n_star)
    classes = np.searchsorted(np.asarray(CLASS_EDGES), counts, side="right")
    return np.where(counts < 0, -1, classes).astype(np.int8)


Tiles = tuple[tuple[int, ...], ...]
"""Counts in `TILES` x `TILES` tiles, by (ty, tx)."""

UNKNOWN_BRIGHTER = (-1,) * len(MAGNITUDES)
UNKNOWN_TILES: Tiles = ((-1,) * TILES,) * TILES


def count_brighter(mag: NDArray[np.floating], depth: float) -> tuple[int, ...]:
    """Stars brighter than each of `MAGNITUDES`.

    Parameters
    ----------
    mag : (n,) float array
        AB mag in the chip's band.
    depth : float
        All stars brighter than this are among them, AB mag.

    Returns
    -------
    tuple of int
        -1 for the magnitudes beyond the depth.
    """
    counts = np.searchsorted(np.sort(mag), MAGNITUDES, side="left")
    return tuple(int(n) if m <= depth else -1 for m, n in zip(MAGNITUDES, counts, strict=True))


def count_tiles(y: NDArray[np.floating], x: NDArray[np.floating], shape: tuple[int, ...]) -> Tiles:
    """Stars in each of the 14 x 14 tiles of a frame.

    Parameters
    ----------
    y, x : (n,) float array
        Pixel from the frame's outer corner; all on the frame.
    shape : (int, int)
        Of the frame (ny, nx), pixel.

    Returns
    -------
    tuple of tuples of int
        By (ty, tx), where ty is the whole part of 14 y / ny.
    """
    ty, tx = (
        np.clip(np.floor(place * TILES / side), 0, TILES - 1).astype(np.int64)
        for place, side in zip((y, x), shape, strict=True)
    )
    counts = np.bincount(ty * TILES + tx, minlength=TILES * TILES).reshape(TILES, TILES)
    return tuple(tuple(row) for row in counts.tolist())


class ChipKey(NamedTuple):
    """Identity of one detector image: exposure, detector and version of the data reduction; sorted in this order."""

    obs_id: str
    """Exposure, 9 to 14 digits."""
    detector: int
    """1 to 30."""
    version: int = 0
    """``V01`` is 1; 0 where the name carries none."""

    def __str__(self) -> str:
        return f"{self.obs_id}-{self.detector:02d}" + (f"-V{self.version:02d}" if self.version else "")


@dataclass(frozen=True)
class ChipFiles:
    """The files that belong to one chip."""

    key: ChipKey
    image: str
    weight: str | None = None
    flag: str | None = None
    truth: str | None = None
    level: int | None = None
    """Level of the data reduction that the name of the image gives; None where the header decides."""
    truth_filter: str = ""
    """Filter that the name of the truth catalogue gives; empty where it gives none."""
    truth_excerpt: bool = False
    """Whether that name says that it lists only the brightest objects."""

    def paths(self) -> tuple[str, ...]:
        """All files that exist for this chip, the image first."""
        return tuple(path for path in (self.image, self.weight, self.flag, self.truth) if path)


@dataclass(frozen=True)
class ChipInfo:
    """What a task reports about one chip: the store's scalars of it and nothing larger."""

    band: str
    exptime: float
    """Exposure time, s."""
    mjd: float
    """Start of the exposure, MJD; NaN where unknown."""
    ra: float
    """Centre of the frame, deg ICRS."""
    dec: float
    corner_ra: tuple[float, float, float, float]
    """Outer pixel edges in the order (0,0), (nx,0), (nx,ny), (0,ny), deg ICRS."""
    corner_dec: tuple[float, float, float, float]
    field: str
    """Sky field that the exposure belongs to."""
    zero_point: float = float("nan")
    """AB magnitude of 1 e-/s; NaN where the band's nominal one holds."""
    n_star: int = -1
    n_bright: int = -1
    pixel_mean: float = float("nan")
    pixel_std: float = float("nan")
    n_valid: int = 0
    sky_level: float = float("nan")
    sky_sigma: float = float("nan")
    n_brighter: tuple[int, ...] = UNKNOWN_BRIGHTER
    """By `MAGNITUDES`; -1 where unknown, as the tiles."""
    n_star_tile: Tiles = UNKNOWN_TILES
    n_bright_tile: Tiles = UNKNOWN_TILES


@dataclass(frozen=True)
class ChipResult:
    """What became of a chip: a row of the ledger."""

    status: str
    """``done``, ``rejected`` or ``failed``."""
    reason: str = ""
    """Why it was rejected or failed, or what was noted about one that is done."""
    info: ChipInfo | None = None
