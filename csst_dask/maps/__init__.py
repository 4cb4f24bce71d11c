"""Predictions of chips to a HEALPix map of the sky: exact coverage, sums that add, files and a picture."""

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
