"""Predictions of chips to a HEALPix map of the sky: exact coverage, sums that add, files and a picture."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csst_dask.maps.chips import MapChips
    from csst_dask.maps.coverage import detector_area, overlap, valid_fraction, visit
    from csst_dask.maps.dataset import add_maps, degrade, footprint_area, from_dataset, grid_of, to_dataset
    from csst_dask.maps.density import (
        ChipForMap,
        DensitySums,
        accumulate,
        chip_sums,
        degrade_sums,
        empty_sums,
        merge,
    )
    from csst_dask.maps.export import open_map, write_fits, write_moc, write_zarr
    from csst_dask.maps.grid import HealpixGrid
    from csst_dask.maps.plot import plot_map

__all__ = [
    "ChipForMap",
    "DensitySums",
    "HealpixGrid",
    "MapChips",
    "accumulate",
    "add_maps",
    "chip_sums",
    "degrade",
    "degrade_sums",
    "detector_area",
    "empty_sums",
    "footprint_area",
    "from_dataset",
    "grid_of",
    "merge",
    "open_map",
    "overlap",
    "plot_map",
    "to_dataset",
    "valid_fraction",
    "visit",
    "write_fits",
    "write_moc",
    "write_zarr",
]

_PLACES = {
    "ChipForMap": "density",
    "DensitySums": "density",
    "HealpixGrid": "grid",
    "MapChips": "chips",
    "accumulate": "density",
    "add_maps": "dataset",
    "chip_sums": "density",
    "degrade": "dataset",
    "degrade_sums": "density",
    "detector_area": "coverage",
    "empty_sums": "density",
    "footprint_area": "dataset",
    "from_dataset": "dataset",
    "grid_of": "dataset",
    "merge": "density",
    "open_map": "export",
    "overlap": "coverage",
    "plot_map": "plot",
    "to_dataset": "dataset",
    "valid_fraction": "coverage",
    "visit": "coverage",
    "write_fits": "export",
    "write_moc": "export",
    "write_zarr": "export",
}


def __getattr__(name: str) -> Any:
    """Import on first use: matplotlib takes a second, and workers draw nothing."""
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
