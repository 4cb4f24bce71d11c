"""What the pipeline should do next with each chip."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.config import RoutingConfig
from csst_dask.schema import N_CLASSES, ROUTE_FLAGS, ROUTES


def route(
    density_class: ArrayLike,
    bright_count: ArrayLike,
    confidence: ArrayLike,
    valid: ArrayLike,
    unlike: ArrayLike,
    config: RoutingConfig,
) -> tuple[NDArray[np.str_], NDArray[np.uint8]]:
    """Route every chip.

    Parameters
    ----------
    density_class : (n,) array_like of int
        0 to 5.
    bright_count : (n,) array_like of float
        Predicted bright stars on the chip; NaN where bypassed, which is not sparse.
    confidence : (n,) array_like of float
        Largest class probability. NaN on a valid chip asks for review.
    valid : (n,) array_like of bool
        False: the chip has no usable prediction.
    unlike : (n,) array_like of bool
        True: unlike the training data.
    config : RoutingConfig
        Thresholds; a value equal to one is good enough.

    Returns
    -------
    route : (n,) str array
        The first that applies of `schema.ROUTES`: invalid, crowded, review, sparse, standard.
    route_flags : (n,) uint8 array
        All that apply, as bits of `schema.ROUTE_FLAGS`; the bit of ``standard`` stands alone.
    """
    density_class, bright_count, confidence = (
        np.asarray(values) for values in (density_class, bright_count, confidence)
    )
    valid = np.asarray(valid, bool)
    applies = {
        "invalid": ~valid,
        "crowded": density_class == N_CLASSES - 1,
        "review": np.asarray(unlike, bool) | (confidence < config.min_confidence) | (valid & np.isnan(confidence)),
        "sparse": bright_count < config.min_bright,
    }
    applies["standard"] = ~np.any(list(applies.values()), axis=0)
    flags = sum(ROUTE_FLAGS[name] * applies[name].astype(np.uint8) for name in ROUTES)
    first = np.argmax([applies[name] for name in ROUTES], axis=0)
    return np.asarray(ROUTES)[first], np.asarray(flags, np.uint8)
