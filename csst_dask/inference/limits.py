"""Where a chip's stars become enough for astrometry, and where they run into each other: limits in magnitude."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.preprocess.stellar_locus import star_width
from csst_dask.schema import MAGNITUDES

CROWDING = 30.0
"""Areas of the point spread function that hold one star where a chip is confused."""


def choose_counts(star_counts: ArrayLike, direct_counts: ArrayLike) -> NDArray[np.float64]:
    """Counts that limits are read from: those of the networks, or of a chip that has none the direct ones.

    Parameters
    ----------
    star_counts, direct_counts : (n, magnitude) array_like
        Stars brighter than each of `schema.MAGNITUDES`; NaN where there is none.

    Returns
    -------
    (n, magnitude) float64 array
        A chip's are all of one kind, so that they rise with magnitude.
    """
    learned = np.asarray(star_counts, np.float64)
    return np.where(np.isfinite(learned).any(axis=1, keepdims=True), learned, np.asarray(direct_counts, np.float64))


def magnitude_reached(counts: ArrayLike, wanted: ArrayLike) -> NDArray[np.float64]:
    """The brightest magnitude down to which a chip has at least so many stars.

    Parameters
    ----------
    counts : (n, magnitude) array_like
        N(< m), stars brighter than each of `schema.MAGNITUDES`; NaN where unknown.
    wanted : float, or (n,) array_like
        Stars, above 0.

    Returns
    -------
    (n,) float64 array
        AB magnitude. log10(1 + N) is straight between two magnitudes. A chip that has so many at the first magnitude
        already is given that one: what is brighter is not counted. NaN where no magnitude has so many, or ``wanted``
        is not finite.
    """
    n, limits = np.asarray(counts, np.float64), np.array(MAGNITUDES)
    stars = np.broadcast_to(np.asarray(wanted, np.float64), n.shape[:1])
    reached = n >= stars[:, None]
    log, aim, rows = np.log10(1 + np.maximum(n, 0)), np.log10(1 + stars), np.arange(len(n))
    fainter = reached.argmax(axis=1)
    brighter = np.maximum(fainter - 1, 0)
    step = log[rows, fainter] - log[rows, brighter]
    # at the first magnitude, and next to an unknown count, there is nothing to go back to
    back = np.divide(log[rows, fainter] - aim, step, out=np.zeros(len(n)), where=step > 0)
    found = limits[fainter] - back * (limits[fainter] - limits[brighter])
    return np.where(reached.any(axis=1), found, np.nan)


def reference_limit(star_counts: ArrayLike, direct_counts: ArrayLike, references: float) -> NDArray[np.float32]:
    """The brightest magnitude with enough stars for astrometry.

    Parameters
    ----------
    star_counts, direct_counts : (n, magnitude) array_like
        As for `choose_counts`.
    references : float
        Stars on the frame that are enough.

    Returns
    -------
    (n,) float32 array
        AB magnitude in the chip's band, by `magnitude_reached`; NaN where there are too few at any.
    """
    return magnitude_reached(choose_counts(star_counts, direct_counts), references).astype(np.float32)


def confusion_limit(
    star_counts: ArrayLike, direct_counts: ArrayLike, locus: ArrayLike, pixels: ArrayLike
) -> NDArray[np.float32]:
    """The magnitude at which `CROWDING` areas of the point spread function hold one star.

    Parameters
    ----------
    star_counts, direct_counts : (n, magnitude) array_like
        As for `choose_counts`; stars on the whole frame, whatever is masked.
    locus : (n,) array_like
        Concentration of the chip's stars, which tells their width by `star_width`; NaN where unknown.
    pixels : (n,) array_like
        Pixels of the frame. Stars on its valid pixels are as many fewer as there are fewer of those, so that the limit
        is that on the valid pixels.

    Returns
    -------
    (n,) float32 array
        AB magnitude in the chip's band, by `magnitude_reached`; NaN where stars stand apart at all magnitudes, and
        where no star width is known. With the full width at half maximum w, pixel, an area is pi w^2 / 4.
    """
    area = np.pi / 4 * star_width(np.asarray(locus, np.float64)) ** 2
    stars = np.asarray(pixels, np.float64) / (CROWDING * area)
    return magnitude_reached(choose_counts(star_counts, direct_counts), stars).astype(np.float32)
