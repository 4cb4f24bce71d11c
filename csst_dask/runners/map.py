"""Predictions to sky map: tasks cover blocks of chips, the client adds them up in chip order."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from distributed import Client

from csst_dask.config import ExecutionConfig, MapConfig
from csst_dask.errors import ChipRejected, ConfigError
from csst_dask.maps import (
    ChipForMap,
    DensitySums,
    HealpixGrid,
    accumulate,
    add_maps,
    chip_sums,
    empty_sums,
    grid_of,
    open_map,
    plot_map,
    to_dataset,
    write_fits,
    write_moc,
    write_zarr,
)
from csst_dask.runners.faults import Failure, TaskFailed
from csst_dask.runners.ledger import Summary
from csst_dask.runners.window import Task, run_tasks
from csst_dask.schema import CHANNELS, ROUTE_FLAGS
from csst_dask.store.survey import array_of

BLOCK = 64
"""Chips per task."""
ADD_ROWS = 50_000
"""Least rows of sums that are added at a time."""


def map_block(store: str, rows: Sequence[int], chips: Sequence[dict], nside: int) -> list[DensitySums | str]:
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
    list of DensitySums or str
        For a chip that cannot be mapped, why.
    """
    reduced, grid = array_of(zarr.open_group(store, mode="r"), "reduced"), HealpixGrid(nside)
    valid = CHANNELS.index("valid")
    found: list[DensitySums | str] = []
    for row, chip in zip(rows, chips, strict=True):
        try:
            found.append(chip_sums(ChipForMap(valid=np.asarray(reduced[row, valid]), **chip), grid))
        except ChipRejected as error:
            found.append(str(error))
    return found


def density_sums(
    client: Client,
    predictions: xr.Dataset,
    nside: int,
    summary: Summary,
    progress: Callable[[str, str, str], None] | None = None,
    expect: Callable[[int], None] | None = None,
    execution: ExecutionConfig | None = None,
) -> DensitySums:
    """Add up the chips of a set of predictions.

    Parameters
    ----------
    client : distributed.Client
    predictions : xarray.Dataset
        As `store.predictions.read` gives it, or any selection of its chips.
    nside : int
    summary : Summary
        Receives how many chips are on the map, which cannot be, and what the tasks took.
    progress, expect : callable, optional
    execution : ExecutionConfig, optional
        How faults are met; without it no task is limited in time.

    Returns
    -------
    DensitySums
        The same bits whatever the number of workers.

    Raises
    ------
    ConfigError
        If the predictions do not say where their store is.
    TaskFailed
        If a chip could not be mapped for a reason that nobody foresaw: the map would lack it. One that ends its process
        every time is left out, with that reason.
    """
    path = predictions.attrs.get("store")
    if not path:
        raise ConfigError("predictions have no attribute 'store', the path of their survey store; set it")
    wanted = (predictions["density_class"].values >= 0) & (predictions["route"].values != "invalid")
    chosen = predictions.isel(chip=np.flatnonzero(wanted))
    rows, records = chosen["chip"].values.tolist(), _records(chosen)
    if expect is not None:
        expect(len(rows))

    def task_of(places: range) -> Task:
        block = rows[places.start : places.stop]
        name = f"chip-{block[0]}" if len(block) == 1 else f"chips-{block[0]}-{block[-1]}"
        args = (path, block, records[places.start : places.stop], nside)
        return Task(name, args, places, len(block), lambda: [task_of(range(k, k + 1)) for k in places])

    tasks = (task_of(range(k, min(k + BLOCK, len(rows)))) for k in range(0, len(rows), BLOCK))
    early: dict[int, DensitySums | str] = {}
    ordered: list[DensitySums] = []
    total, following, waiting = empty_sums(nside), 0, 0
    for task, result in run_tasks(client, "map", map_block, tasks, execution, summary.effort):
        if isinstance(result, Failure):
            if not result.poison:
                raise TaskFailed(f"mapping {task.name} failed: {result.reason}")
            result = [result.reason] * len(task.key)
        for place, found in zip(task.key, result, strict=True):
            early[place], row = found, rows[place]
            reason = found if isinstance(found, str) else ""
            summary.done += not reason
            summary.rejected += bool(reason)
            summary.reasons.update([reason] if reason else [])
            if progress is not None:
                progress(f"chip {row}", "rejected" if reason else "done", reason)
        while following in early:
            part, following = early.pop(following), following + 1
            if not isinstance(part, str):
                ordered.append(part)
                waiting += part.cell.size
        if waiting > max(ADD_ROWS, total.cell.size // 2):  # so that each row is copied a few times in all
            total, ordered, waiting = accumulate(ordered, total), [], 0
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


def check_map(config: MapConfig, add: Path | None = None) -> None:
    """Refuse a map that could not be written, before any work is done.

    Raises
    ------
    ConfigError
        If ``out`` would replace something that is no map, the older map cannot be read or has another nside, or a
        package is missing.
    """
    if config.out is not None and config.out.exists():
        open_map(config.out)
    if config.moc is not None and importlib.util.find_spec("mocpy") is None:
        raise ConfigError("map.moc: the package mocpy is missing; pip install 'csst_dask[maps]'")
    if add is not None and grid_of(open_map(add)).nside != config.nside:
        raise ConfigError(
            f"--add {add} has nside {grid_of(open_map(add)).nside}, not {config.nside}; use --nside of it"
        )


def map_survey(
    client: Client,
    predictions: xr.Dataset,
    config: MapConfig,
    add: Path | None = None,
    progress: Callable[[str, str, str], None] | None = None,
    expect: Callable[[int], None] | None = None,
    execution: ExecutionConfig | None = None,
) -> tuple[xr.Dataset, Summary]:
    """Make a density map and write what the configuration names.

    Parameters
    ----------
    client : distributed.Client
    predictions : xarray.Dataset
    config : MapConfig
    add : Path, optional
        An older map of the same nside to add to.
    progress, expect : callable, optional
    execution : ExecutionConfig, optional
        How faults are met; without it no task is limited in time.

    Returns
    -------
    sky : xarray.Dataset
    summary : Summary

    Raises
    ------
    ConfigError
        As `check_map`.
    TaskFailed
        As `density_sums`.
    """
    check_map(config, add)
    start, summary = time.monotonic(), Summary()
    if "chip" not in predictions.dims:
        own = [name for name in predictions.coords if name not in ("chip", "density_level")]
        predictions = predictions.reset_coords(own).expand_dims("chip")
    sums = density_sums(client, predictions, config.nside, summary, progress, expect, execution)
    weights = ("classifier_sha256", "regressor_sha256")
    attrs = {name: predictions.attrs[name] for name in weights if name in predictions.attrs}
    sky = to_dataset(sums, HealpixGrid(config.nside), attrs)
    if add is not None:
        sky = add_maps(open_map(add).load(), sky)
    if config.out is not None:
        write_zarr(sky, config.out)
    if config.moc is not None:
        write_moc(sky, config.moc)
    if sky.sizes["cells"]:
        if config.fits is not None:
            write_fits(sky, config.fits)
        if config.png is not None:
            plot_map(sky, config.png)
    elif config.fits or config.png:
        summary.reasons["no chip on the map: no picture and no FITS file were written"] += 1
    summary.seconds = time.monotonic() - start
    return sky, summary
