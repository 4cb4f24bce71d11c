"""Whether a store holds what it says: every chunk is read, and what follows from stored pixels is computed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csst_dask.errors import DamagedStore
from csst_dask.pipeline.frame import spans_of
from csst_dask.preprocess import FrameSums, Measured
from csst_dask.schema import BLOCK_STATS
from csst_dask.store.arrays import read_chip
from csst_dask.store.layout import MEASURED
from csst_dask.store.writer import task_arrays

STATISTICS = ("pixel_mean", "pixel_std", "n_valid", "sky_level", "sky_sigma")
"""Per-chip variables that follow from the pixels."""

ROUNDING = 1e-5
"""Relative difference between what two devices measure; and of sums over block statistics, which are float32."""

Finding = tuple[str, str]
"""A variable, and how it differs."""


def verify_chips(
    location: str,
    n_rows: int,
    rows: Sequence[int],
    scalars: Mapping[int, Mapping[str, Any]],
    invalid: int,
    *,
    exact: bool = True,
) -> dict[int, list[Finding]]:
    """Verify some chips that are done.

    Parameters
    ----------
    location : str
        Survey store.
    n_rows : int
        Chips that it has.
    rows : sequence of int
    scalars : mapping
        `STATISTICS` of each, by row.
    invalid : int
        Mask bits that make a pixel invalid.
    exact : bool
        Whether what is computed again must agree bit for bit: a processor measured the chips.

    Returns
    -------
    dict of int to list of (str, str)
        Damaged chips: variables, and how they differ.
    """
    arrays = task_arrays(location, n_rows)
    found = {row: list(_verify(arrays, row, scalars[row], invalid, exact)) for row in rows}
    return {row: findings for row, findings in found.items() if findings}


def _verify(
    arrays: Mapping[str, Any], row: int, scalars: Mapping[str, Any], invalid: int, exact: bool
) -> Iterator[Finding]:
    parts: dict[str, NDArray] = {}
    for name in ("image", "mask", "header", *MEASURED):
        if name in arrays:
            try:
                parts[name] = read_chip(arrays[name], row)
            except DamagedStore as error:
                yield name, str(error).partition("; run ")[0]
    if "header" in parts and not (parts["header"] != ord(" ")).any():
        yield "header", "is empty: its chunk is missing"
    stats = parts.get("block_stats")
    if stats is None:
        return
    if not np.isfinite(stats[0]).any():
        yield "block_stats", "holds no value: its chunk is missing"
        return
    band = (arrays["mask"].shards or arrays["mask"].chunks)[1] if "mask" in arrays else None
    if "image" in parts and "mask" in parts:
        yield from _compare(_measure(parts["image"], parts["mask"], invalid, band), parts, scalars, exact)
    elif "mask" in parts and "image" not in arrays:
        again = _measure(np.zeros(parts["mask"].shape, np.float32), parts["mask"], invalid, band)
        yield from _compare_valid(again, stats, scalars, exact)
    elif "image" not in arrays and "mask" not in arrays:
        yield from _compare_totals(stats, scalars)


def _measure(image: NDArray, mask: NDArray, invalid: int, band: int | None) -> Measured:
    """As the pass that measured the frame, in the same spans of rows."""
    sums = FrameSums(image.shape)
    for y0, y1 in spans_of(image.shape[0], band):
        sums.add(image[y0:y1], mask[y0:y1], invalid=invalid, y0=y0)
    return sums.finish()


def _compare(
    again: Measured, parts: Mapping[str, NDArray], scalars: Mapping[str, Any], exact: bool
) -> Iterator[Finding]:
    stats = parts["block_stats"]
    for name, one, other in zip(BLOCK_STATS, again.maps.astype(np.float32), stats, strict=True):
        yield from _differ(f"block_stats {name}", one, other, exact)
    for name in STATISTICS:
        yield from _differ(name, getattr(again, name), scalars[name], exact)
    for name, one in again.stored().items():
        if name != "block_stats" and name in parts:
            yield from _differ(name, one, parts[name], exact)


def _compare_valid(again: Measured, stats: NDArray, scalars: Mapping[str, Any], exact: bool) -> Iterator[Finding]:
    for name in ("valid", "point_valid"):
        place = BLOCK_STATS.index(name)
        yield from _differ(f"block_stats {name}", again.maps[place].astype(np.float32), stats[place], exact)
    yield from _differ("n_valid", again.n_valid, scalars["n_valid"], exact)


def _compare_totals(stats: NDArray, scalars: Mapping[str, Any]) -> Iterator[Finding]:
    """Without pixels: sums over the blocks against those over the frame."""
    mean, valid = (stats[BLOCK_STATS.index(name)].astype(np.float64) for name in ("mean", "valid"))
    total = float(np.nansum(mean * valid)) / float(valid.sum())
    scale = max(abs(float(scalars["pixel_mean"])), float(scalars["pixel_std"]))
    if not abs(total - float(scalars["pixel_mean"])) <= ROUNDING * scale:
        yield "pixel_mean", f"is {float(scalars['pixel_mean']):.9g}, the blocks give {total:.9g}"


def _differ(name: str, again: Any, stored: Any, exact: bool) -> Iterator[Finding]:
    one, other = np.asarray(again), np.asarray(stored)
    same = np.array_equal(one, other, equal_nan=True)
    if not same and not exact:
        same = np.allclose(one, other, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
    if not same:
        with np.errstate(invalid="ignore"):
            gap = np.abs(one.astype(np.float64) - other.astype(np.float64))
        places = int((~((one == other) | (np.isnan(one) & np.isnan(other)))).sum())
        where = f" in {places} of {one.size} values" if one.size > 1 else ""
        yield name, f"differs from what the stored pixels give by up to {np.nanmax(gap, initial=0):.3g}{where}"
