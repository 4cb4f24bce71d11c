"""Predictions to sky map: tasks cover blocks of chips, the client adds them up in chip order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from distributed import Client

from csst_dask.config import MapConfig
from csst_dask.errors import ChipRejected, ConfigError
from csst_dask.maps import (
    ChipForMap,
    DensitySums,
    HealpixGrid,
    accumulate,
    add_maps,
    chip_sums,
    empty_sums,
    open_map,
    plot_map,
    to_dataset,
    write_fits,
    write_moc,
    write_zarr,
)
from csst_dask.runners.window import Failure, Task, run_tasks
from csst_dask.schema import CHANNELS, ROUTE_FLAGS
from csst_dask.store.survey import array_of

BLOCK = 64
"""Chips per task."""
ADD_EVERY = 1024
"""Chips whose sums are added at a time."""


def map_block(store: str, rows: Sequence[int], chips: Sequence[dict], nside: int) -> list[DensitySums]:
    """Sums of some chips, one by one.

    Parameters
    ----------
    store : str
        Survey store, for the maps of valid pixels.
    rows : sequence of int
    chips : sequence of dict
        Fields of `maps.ChipForMap` but ``valid``.
    nside : int

    Returns
    -------
    list of DensitySums
    """
    reduced, grid = array_of(zarr.open_group(store, mode="r"), "reduced"), HealpixGrid(nside)
    valid = CHANNELS.index("valid")
    return [
        chip_sums(ChipForMap(valid=np.asarray(reduced[row, valid]), **chip), grid)
        for row, chip in zip(rows, chips, strict=True)
    ]


def density_sums(
    client: Client,
    predictions: xr.Dataset,
    nside: int,
    progress: Callable[[str, str, str], None] | None = None,
    expect: Callable[[int], None] | None = None,
) -> DensitySums:
    """Add up the chips of a set of predictions.

    Parameters
    ----------
    client : distributed.Client
    predictions : xarray.Dataset
        As `store.predictions.read` gives it, or any selection of its chips.
    nside : int
    progress, expect : callable, optional

    Returns
    -------
    DensitySums
        The same bits whatever the number of workers.

    Raises
    ------
    ConfigError
        If the predictions do not say where their store is.
    RuntimeError
        If a block of chips could not be mapped.
    """
    path = predictions.attrs.get("store")
    if not path:
        raise ConfigError("predictions have no attribute 'store', the path of their survey store; set it")
    wanted = (predictions["density_class"].values >= 0) & (predictions["route"].values != "invalid")
    chosen = predictions.isel(chip=np.flatnonzero(wanted))
    rows = chosen["chip"].values.tolist()
    records = _records(chosen)
    if expect is not None:
        expect(len(rows))
    tasks = []
    for k in range(0, len(rows), BLOCK):
        block = rows[k : k + BLOCK]
        tasks.append(Task(f"chips-{block[0]}-{block[-1]}", (path, block, records[k : k + BLOCK], nside), k // BLOCK))
    early: dict[int, list[DensitySums]] = {}
    ordered: list[DensitySums] = []
    total, following = empty_sums(nside), 0
    for task, result in run_tasks(client, "map", map_block, tasks):
        if isinstance(result, Failure):
            raise RuntimeError(f"mapping {task.name} failed: {result.reason}")
        early[task.key] = result
        if progress is not None:
            for row in task.args[1]:
                progress(f"chip {row}", "done", "")
        while following in early:
            ordered += early.pop(following)
            following += 1
        if len(ordered) >= ADD_EVERY:
            total, ordered = accumulate(ordered, total), []
    return accumulate(ordered, total)


def _records(chosen: xr.Dataset) -> list[dict]:
    counts = ("bright_count", "bright_lower", "bright_upper", "density_class", "route_flags")
    column = {name: chosen[name].values for name in ("band", "corner_ra", "corner_dec", *counts)}
    level = float(chosen.attrs.get("interval_level", 0.9))
    return [
        {
            "band": str(column["band"][k]),
            "corner_ra": column["corner_ra"][k],
            "corner_dec": column["corner_dec"][k],
            "bright_count": float(column["bright_count"][k]),
            "bright_lower": float(column["bright_lower"][k]),
            "bright_upper": float(column["bright_upper"][k]),
            "density_class": int(column["density_class"][k]),
            "crowded": bool(column["route_flags"][k] & ROUTE_FLAGS["crowded"]),
            "level": level,
        }
        for k in range(chosen.sizes["chip"])
    ]


def map_survey(
    client: Client,
    predictions: xr.Dataset,
    config: MapConfig,
    add: Path | None = None,
    progress: Callable[[str, str, str], None] | None = None,
    expect: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Make a density map and write what the configuration names.

    Parameters
    ----------
    client : distributed.Client
    predictions : xarray.Dataset
    config : MapConfig
    add : Path, optional
        An older map of the same nside to add to.
    progress, expect : callable, optional

    Returns
    -------
    xarray.Dataset
    """
    sums = density_sums(client, predictions, config.nside, progress, expect)
    attrs = {
        name: predictions.attrs[name] for name in ("classifier_sha256", "regressor_sha256") if name in predictions.attrs
    }
    sky = to_dataset(sums, HealpixGrid(config.nside), attrs)
    if add is not None:
        sky = add_maps(open_map(add).load(), sky)
    try:
        if config.out is not None:
            write_zarr(sky, config.out)
        if config.fits is not None:
            write_fits(sky, config.fits)
        if config.moc is not None:
            write_moc(sky, config.moc)
        if config.png is not None:
            plot_map(sky, config.png)
    except ChipRejected as error:
        raise ConfigError(str(error)) from error
    return sky
