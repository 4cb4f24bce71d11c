"""What workers do for a judgement, chip by chip."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from csst_dask.evaluation.classical import count_sources
from csst_dask.preprocess.inputs import map_statistics
from csst_dask.store import SurveyStore


def statistics_block(path: str, rows: Sequence[int], scalars: dict[str, list[float]]) -> dict[str, NDArray]:
    """Statistics of the maps of some chips.

    Parameters
    ----------
    path : str
        Survey store.
    rows : sequence of n int
    scalars : dict of str to list of n float
        `preprocess.inputs.SCALARS` of these chips.

    Returns
    -------
    dict of str to array
        ``statistics`` (n, k) float32; ``seconds`` (n,) of wall time a chip, s.
    """
    store, started = SurveyStore.read(path), time.perf_counter()
    maps = store.read_chips("block_stats", rows)
    found = map_statistics(maps, {name: np.asarray(values) for name, values in scalars.items()})
    return {"statistics": found, "seconds": np.full(len(rows), (time.perf_counter() - started) / len(rows))}


def count_chip(path: str, row: int, exptime: float, band: str) -> dict[str, NDArray]:
    """Detections on one chip that keeps its pixels.

    Parameters
    ----------
    path : str
        Survey store.
    row : int
    exptime : float
        s
    band : str

    Returns
    -------
    dict of str to array
        ``counts`` (1,) of dict, as `classical.count_sources` gives them; ``seconds`` (1,) of CPU time, s.
    """
    store, started = SurveyStore.read(path), time.process_time()
    image, mask = (store.read_chips(name, [row])[0] for name in ("image", "mask"))
    counts = count_sources(image, mask, exptime, band)
    return {"counts": np.array([counts], object), "seconds": np.array([time.process_time() - started])}
