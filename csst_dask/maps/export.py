"""Density maps on disk: Zarr, partial-sky HEALPix FITS, and a MOC of the footprint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr
from astropy.io import fits
from zarr.codecs import Crc32cCodec, ZstdCodec

from csst_dask.errors import ConfigError
from csst_dask.maps.chips import MapChips
from csst_dask.maps.dataset import from_dataset, grid_of, seen
from csst_dask.maps.grid import HealpixGrid
from csst_dask.outputs import local_path, remove_leftovers, replaced_file, replaced_folder, restore

UNSEEN = -1.6375e30
"""The HEALPix value of a cell without a value."""

CELLS_PER_CHUNK = 1 << 18

FITS_COLUMNS = {
    "bright_star_density": ("D", "deg-2"),
    "bright_star_density_error": ("D", "deg-2"),
    "density_class": ("I", None),
    "crowded_fraction": ("D", None),
    "visit_area": ("D", "deg2"),
    "n_visits": ("J", None),
    "review_area": ("D", "deg2"),
}
"""Columns after PIXEL, in order: the first is what healpy reads by default. Format and unit."""


def write_zarr(ds: xr.Dataset, path: str | Path) -> Path:
    """Write a density map; a reader sees the old map or the new one, never a part.

    Parameters
    ----------
    ds : xarray.Dataset
    path : path
        Local folder. An existing density map there is replaced; if this process dies, the old map or the new one
        is what `open_map` finds.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        If `ds` is no density map, something else is at `path`, or `path` is a URL.
    """
    _check_map(ds)
    path = local_path(path, "the map to write")
    restore(path)
    if path.exists():
        _require_map(path)
    remove_leftovers(path)
    with replaced_folder(path) as fresh, _quiet_zarr():
        _encoded(ds).to_zarr(fresh, mode="w", zarr_format=3, consolidated=True)
    return path


def open_map(path: str | Path) -> xr.Dataset:
    """Open a density map; its values are read when they are used.

    Parameters
    ----------
    path : path
        Folder that `write_zarr` made.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    ConfigError
        If there is no density map, it does not tell its chips, or `path` is a URL.
    """
    path = local_path(path, "the map to open")
    restore(path)
    try:
        ds = xr.open_zarr(path, chunks=None, consolidated=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"cannot open a map at {path}: {error}; check the path") from None
    _check_map(ds)
    return ds


def write_fits(ds: xr.Dataset, path: str | Path) -> Path:
    """Write a density map as partial-sky HEALPix tables, one extension for each band.

    Parameters
    ----------
    ds : xarray.Dataset
    path : path
        An existing file is replaced. ``healpy.read_map(path, nest=True, hdu=k)`` reads the density of the
        k-th band, and other columns by ``field``.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        If `ds` is no density map, or `path` is a URL.
    """
    path = local_path(path, "the FITS map to write")
    grid = grid_of(ds)
    tables = [_band_table(ds.sel(band=band), str(band), grid) for band in ds["band"].values]
    remove_leftovers(path)
    with replaced_file(path) as fresh, fresh.open("wb") as stream:
        fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(stream)
    return path


def write_moc(ds: xr.Dataset, path: str | Path) -> Path:
    """Write the cells that at least one band saw as a multi-order coverage map (IVOA MOC 2.0, FITS).

    Parameters
    ----------
    ds : xarray.Dataset
    path : path
        An existing file is replaced.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        If `ds` is no density map, mocpy is not installed, or `path` is a URL.
    """
    path = local_path(path, "the MOC to write")
    grid = grid_of(ds)
    try:
        from mocpy import MOC
    except ImportError:
        raise ConfigError(
            "a MOC needs mocpy, which is not installed; install csst_dask[maps] or leave the MOC out"
        ) from None
    cells = ds["cell_ids"].values[seen(ds).any(axis=0)].astype(np.uint64)
    depth = np.full(cells.size, grid.depth, np.uint8)
    moc = MOC.from_healpix_cells(cells, depth, max_depth=grid.depth)
    remove_leftovers(path)
    with replaced_file(path) as fresh:
        moc.save(str(fresh), format="fits")
    return path


@contextmanager
def _quiet_zarr() -> Iterator[None]:
    """Without the warnings that consolidated metadata and fixed-width text are not in the Zarr v3 specification yet."""
    with warnings.catch_warnings():
        for text in ("Consolidated metadata is currently not part", "The data type .* does not have a Zarr V3"):
            warnings.filterwarnings("ignore", text)
        yield


def _check_map(ds: xr.Dataset) -> None:
    grid_of(ds)
    MapChips.from_dataset(ds)
    from_dataset(ds.isel(cells=slice(0)))


def _require_map(path: Path) -> None:
    try:
        open_map(path)
    except ConfigError as error:
        raise ConfigError(
            f"{path} exists and is no density map of this version, so it is not replaced ({error}); choose another "
            "name, or remove it"
        ) from None


def _encoded(ds: xr.Dataset) -> xr.Dataset:
    ds = ds.drop_encoding()
    for variable in ds.variables.values():
        variable.encoding["compressors"] = (ZstdCodec(), Crc32cCodec())
        if "cells" in variable.dims:
            sizes = dict(zip(variable.dims, variable.shape, strict=True)) | {"band": 1}
            sizes["cells"] = max(1, min(sizes["cells"], CELLS_PER_CHUNK))
            variable.encoding["chunks"] = tuple(sizes[dim] for dim in variable.dims)
    return ds


def _band_table(ds: xr.Dataset, band: str, grid: HealpixGrid) -> fits.BinTableHDU:
    here = ds["visit_area"].values > 0
    columns = [fits.Column(name="PIXEL", format="K", array=ds["cell_ids"].values[here])]
    for name, (code, unit) in FITS_COLUMNS.items():
        values = ds[name].values[here]
        if code == "D":
            values = np.where(np.isfinite(values), values, UNSEEN)
        columns.append(fits.Column(name=name.upper(), format=code, unit=unit, array=values))
    table = fits.BinTableHDU.from_columns(columns, name=band)
    for key, value, comment in (
        ("PIXTYPE", "HEALPIX", "HEALPix pixelisation"),
        ("ORDERING", "NESTED", "order of the pixel indices"),
        ("COORDSYS", "C", "celestial (equatorial)"),
        ("RADESYS", "ICRS", "celestial frame"),
        ("NSIDE", grid.nside, "HEALPix resolution"),
        ("INDXSCHM", "EXPLICIT", "pixel indices are in the first column"),
        ("OBJECT", "PARTIAL", "part of the sky"),
        ("OBS_NPIX", int(here.sum()), "pixels in this table"),
        ("BAD_DATA", UNSEEN, "pixel without a value"),
        ("BAND", band, "imaging band"),
    ):
        table.header[key] = (value, comment)
    return table
