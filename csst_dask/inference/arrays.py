"""Predictions of chips that are in memory, without a store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.config import RoutingConfig
from csst_dask.errors import ConfigError
from csst_dask.inference.routing import route_chips
from csst_dask.preprocess.measure import Measured
from csst_dask.schema import BANDS, ROUTE_CODES

if TYPE_CHECKING:
    from csst_dask.inference.predictor import Predictor


def predict_chips(
    measured: Measured | Sequence[Measured],
    band: str | Sequence[str],
    exptime: ArrayLike,
    *,
    weights: str | Path | None = None,
) -> dict[str, NDArray]:
    """Predict the star density of chips from what a pass over their pixels has measured.

    Parameters
    ----------
    measured : Measured, or sequence of n
        As `csst_dask.measure_image` gives it, of frames in e-/s.
    band : str, or sequence of n
        Of `schema.BANDS`; one for all, or one for each.
    exptime : float, or (n,) array_like
        Exposure time, s.
    weights : path, optional
        Folder of the two networks; by default those that ship.

    Returns
    -------
    dict of arrays
        By the names of a store's ``predictions``, ``route`` as text; the first dimension is the chip, of length 1 for
        one chip.

    Raises
    ------
    ConfigError
        If a band is unknown, numbers differ, or the weights cannot be read.

    Examples
    --------
    >>> measured = cd.measure_image(image, flags)  # doctest: +SKIP
    >>> cd.predict_chips(measured, "g", 150.0)["bright_count"]  # doctest: +SKIP
    """
    chips = [measured] if isinstance(measured, Measured) else list(measured)
    bands = [band] * len(chips) if isinstance(band, str) else [str(name) for name in band]
    unknown = sorted(set(bands) - set(BANDS))
    if unknown:
        raise ConfigError(f"unknown band {', '.join(map(repr, unknown))}; expected {', '.join(BANDS)}")
    times = np.asarray(exptime, np.float64)
    if len(bands) != len(chips) or times.shape not in ((), (len(chips),)):
        raise ConfigError(
            f"{len(chips)} chips with {len(bands)} bands and exposure times of shape {times.shape}; give one of each "
            "for every chip, or one for all"
        )
    if not chips:
        raise ConfigError("no chip to predict; give what measure_image returns")
    found = _predictor(None if weights is None else str(weights)).predict_chips(
        chips, bands, np.broadcast_to(times, len(chips)).tolist()
    )
    found |= route_chips(found, RoutingConfig())
    return found | {"route": np.array(ROUTE_CODES)[found["route"]]}


@lru_cache(maxsize=2)
def _predictor(weights: str | None) -> Predictor:
    from csst_dask.inference.device import choose_device
    from csst_dask.inference.predictor import Predictor, load_two_stage

    return Predictor(load_two_stage(weights, choose_device("auto")))
