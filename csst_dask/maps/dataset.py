"""The density map as an xarray Dataset over (band, cells): sums, what follows from them, its chips, and attributes.

Every sum stays in the map, so a map can be added to, degraded and read back without loss; and so do the keys of its
chips, so that none is added twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from csst_dask.errors import ConfigError
from csst_dask.maps.chips import MapChips
from csst_dask.maps.density import AREAS, DensitySums, degrade_sums, merge
from csst_dask.maps.grid import HealpixGrid
from csst_dask.schema import BANDS, BRIGHT_LIMIT, CLASS_LABELS, N_CLASSES, ChipKey

UNKNOWN_CLASS = -1

_BRIGHT = f"stars brighter than magnitude {BRIGHT_LIMIT} in the band"

_DESCRIPTIONS = {
    "visit_area": ("deg2", "valid area of the cell, summed over chips"),
    "n_visits": ("1", "chips with valid pixels in the cell; in a degraded map the largest of the children"),
    "review_area": ("deg2", "valid area of the cell, summed over chips under review, which enter visits alone"),
    "bright_area": ("deg2", "valid area of the cell, summed over chips with a bright-star count"),
    "bright_sum": ("1", f"{_BRIGHT}, summed over chips: density times valid area"),
    "bright_err_sum": ("1", "error of bright_sum, summed over chips as if all erred together"),
    "crowded_area": ("deg2", "valid area of the cell, summed over crowded chips"),
    "class_area": ("deg2", "valid area of the cell, summed over the chips of each density class"),
    "bright_star_density": ("deg-2", f"surface density of {_BRIGHT}"),
    "bright_star_density_error": (
        "deg-2",
        "standard deviation of bright_star_density if chips err together",
    ),
    "density_class": ("1", "density class with the largest area, the lower one of two equals"),
    "crowded_fraction": ("1", "fraction of the valid area, without that under review, that lies on crowded chips"),
}
"""Units and long name of every variable."""


def to_dataset(sums: DensitySums, grid: HealpixGrid, attrs: Mapping[str, Any], chips: MapChips) -> xr.Dataset:
    """Density map of sums.

    Parameters
    ----------
    sums : DensitySums
    grid : HealpixGrid
        Of the nside of `sums`.
    attrs : mapping
        More attributes of the map, such as where it comes from.
    chips : MapChips
        Chips of which these are the sums.

    Returns
    -------
    xarray.Dataset
        Dimensions (band, cells), the bands that occur in canonical order, ``cell_ids`` sorted. Sums are 0 and
        ratios NaN (class -1) where a band did not see a cell, or only chips under review did. The chips are in
        the coordinate ``chip_version`` (exposure, detector).

    Raises
    ------
    ConfigError
        If `grid` is not the grid of `sums`.
    """
    if sums.nside != grid.nside:
        raise ConfigError(f"sums of nside {sums.nside} do not fit a grid of nside {grid.nside}; degrade them first")
    bands, row = np.unique(sums.band, return_inverse=True)
    cells, column = np.unique(sums.cell, return_inverse=True)

    def dense(values: NDArray) -> NDArray:
        out = np.zeros((bands.size, cells.size, *values.shape[1:]), values.dtype)
        out[row, column] = values
        return out

    data: dict[str, NDArray] = {name: dense(getattr(sums, name)) for name in (*AREAS, "class_area")}
    data["n_visits"] = dense(sums.n_visits).astype(np.int32)
    data |= _ratios(data)
    ds = xr.Dataset(
        {name: (_dims(name), data[name], _variable_attrs(name)) for name in _DESCRIPTIONS},
        coords={
            "band": (
                "band",
                np.array(BANDS)[bands],
                {"long_name": "imaging band"},
            ),
            "cell_ids": ("cells", cells.astype(np.int64), grid.attrs()),
            "density_level": (
                "density_level",
                np.arange(N_CLASSES, dtype=np.int8),
                {"long_name": "density class", "units": "1", "flag_meanings": _flag_meanings()},
            ),
            "crs": ((), np.int8(0), grid.crs_attrs()),
            **chips.variables(),
        },
        attrs={"title": "Star density from survey images", **attrs, **grid.group_attrs()},
    )
    return ds


def from_dataset(ds: xr.Dataset) -> DensitySums:
    """Sums of a density map.

    Parameters
    ----------
    ds : xarray.Dataset
        As `to_dataset` or `open_map` give it, or a selection of its bands and cells. A selection lists the chips
        of all bands and cells; its sums are those of its own.

    Returns
    -------
    DensitySums

    Raises
    ------
    ConfigError
        If it is not a density map on a NESTED ICRS grid.
    """
    grid = grid_of(ds)
    missing = [name for name in (*AREAS, "class_area", "n_visits", "band") if name not in ds.variables]
    if missing:
        raise ConfigError(
            f"not a density map of this version of csst_dask: it lacks {', '.join(missing)}; make it again from its "
            "survey stores"
        )
    if "band" not in ds.dims:
        ds = ds.expand_dims("band")
    names = [str(name) for name in ds["band"].values]
    unknown = [name for name in names if name not in BANDS]
    if unknown:
        raise ConfigError(f"unknown bands {unknown} in the map, expected some of {', '.join(BANDS)}")
    index = np.array([BANDS.index(name) for name in names], np.int64)
    cells = ds["cell_ids"].values.astype(np.int64)
    row, column = np.nonzero(ds["visit_area"].transpose("band", "cells").values > 0)
    order = np.lexsort((cells[column], index[row]))
    row, column = row[order], column[order]
    return DensitySums(
        nside=grid.nside,
        band=index[row],
        cell=cells[column],
        n_visits=ds["n_visits"].transpose("band", "cells").values[row, column].astype(np.int64),
        class_area=ds["class_area"].transpose("band", "cells", "density_level").values[row, column],
        **{name: ds[name].transpose("band", "cells").values[row, column] for name in AREAS},
    )


def grid_of(ds: xr.Dataset) -> HealpixGrid:
    """Grid of a density map.

    Raises
    ------
    ConfigError
        If it has no NESTED HEALPix ``cell_ids`` or another celestial frame than ICRS.
    """
    if "cell_ids" not in ds.variables:
        raise ConfigError("not a density map: it has no cell_ids; give a map that csst_dask wrote")
    frame = ds.attrs.get("coordinate_frame")
    if frame != "icrs":
        raise ConfigError(f"the map's coordinate_frame is {frame!r}, expected 'icrs'; reproject it first")
    return HealpixGrid.from_attrs(ds["cell_ids"].attrs)


def add_maps(a: xr.Dataset, b: xr.Dataset) -> xr.Dataset:
    """Map of the chips of `a` and of `b`: a new night is one addition.

    Parameters
    ----------
    a, b : xarray.Dataset
        Density maps of one nside and of different chips.

    Returns
    -------
    xarray.Dataset
        Attributes on which the maps differ become lists of the distinct values.

    Raises
    ------
    ConfigError
        If one is no density map, their nside differ, or an exposure and detector is in both, in whatever version.
    """
    chips, more = MapChips.from_dataset(a), MapChips.from_dataset(b)
    refuse_common(chips, more)
    sums = merge(from_dataset(a), from_dataset(b))
    return to_dataset(sums, HealpixGrid(sums.nside), _joined_attrs(a.attrs, b.attrs), chips.union(more))


def refuse_common(chips: MapChips, more: MapChips) -> None:
    """Refuse to add chips to a map that holds them already.

    Parameters
    ----------
    chips : MapChips
        Of the map.
    more : MapChips
        To be added.

    Raises
    ------
    ConfigError
        If an exposure and detector is in both, in whatever version.
    """
    twice = more.common(chips)
    if len(twice):
        raise ConfigError(
            f"{len(twice)} of the {len(more)} chips to add are in the map already ({_listed(twice)}), and would count "
            "twice; nothing was added: map the new chips alone, or make the whole map again"
        )


def degrade(ds: xr.Dataset, nside: int) -> xr.Dataset:
    """Density map on a coarser grid.

    Parameters
    ----------
    ds : xarray.Dataset
    nside : int
        At most that of the map.

    Returns
    -------
    xarray.Dataset
        As if built at that nside, to rounding, except ``n_visits``: see `density.degrade_sums`. Its chips are
        those of `ds`.

    Raises
    ------
    ConfigError
        If it is no density map, or ``nside`` is finer or no power of two.
    """
    return to_dataset(degrade_sums(from_dataset(ds), nside), HealpixGrid(nside), ds.attrs, MapChips.from_dataset(ds))


def footprint_area(ds: xr.Dataset) -> float:
    """Area of the cells that at least one band saw, each counted once and whole, deg2."""
    return int(seen(ds).any(axis=0).sum()) * grid_of(ds).cell_area


def seen(ds: xr.Dataset) -> NDArray[np.bool_]:
    """Which bands saw which cells, (band, cells): where a chip, under review or not, has valid pixels."""
    return ds["visit_area"].transpose("band", "cells").values > 0


def _ratios(data: Mapping[str, NDArray]) -> dict[str, NDArray]:
    trusted = data["class_area"].sum(axis=-1)  # visit_area less review_area, without what a difference loses

    def ratio(above: str, below: NDArray) -> NDArray[np.float64]:
        return np.divide(data[above], below, out=np.full(below.shape, np.nan), where=below > 0)

    return {
        "bright_star_density": ratio("bright_sum", data["bright_area"]),
        "bright_star_density_error": ratio("bright_err_sum", data["bright_area"]),
        "density_class": np.where(trusted > 0, data["class_area"].argmax(axis=-1), UNKNOWN_CLASS).astype(np.int8),
        "crowded_fraction": ratio("crowded_area", trusted),
    }


def _listed(chips: MapChips) -> str:
    keys = zip(chips.obs_id[:3], chips.detector, chips.version, strict=False)
    names = [str(ChipKey(str(obs_id), int(detector), int(version))) for obs_id, detector, version in keys]
    return ", ".join(names) + (", ..." if len(chips) > 3 else "")


def _dims(name: str) -> tuple[str, ...]:
    return ("band", "cells", "density_level") if name == "class_area" else ("band", "cells")


def _variable_attrs(name: str) -> dict[str, Any]:
    units, long_name = _DESCRIPTIONS[name]
    attrs: dict[str, Any] = {"long_name": long_name, "units": units, "grid_mapping": "crs"}
    if name == "density_class":
        attrs["flag_values"] = [UNKNOWN_CLASS, *range(N_CLASSES)]
        attrs["flag_meanings"] = f"none {_flag_meanings()}"
    return attrs


def _flag_meanings() -> str:
    return " ".join(f"{label}_stars".replace(">=", "from_") for label in CLASS_LABELS)


def _joined_attrs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(a)
    for name, value in b.items():
        if name not in joined or joined[name] == value:
            joined[name] = value
            continue
        values = [item for side in (joined[name], value) for item in (side if isinstance(side, list) else [side])]
        joined[name] = [item for i, item in enumerate(values) if item not in values[:i]]
    return joined
