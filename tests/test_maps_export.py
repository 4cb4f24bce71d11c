import builtins

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from astropy.units import rad
from mocpy import MOC

from csst_dask.errors import ConfigError
from csst_dask.maps.dataset import footprint_area, to_dataset
from csst_dask.maps.density import ChipForMap, accumulate, chip_sums
from csst_dask.maps.export import UNSEEN, open_map, write_fits, write_moc, write_zarr
from csst_dask.maps.grid import HealpixGrid

GRID = HealpixGrid(256)


def a_map(count=50.0):
    chips = [
        ChipForMap(
            band=band,
            corner_ra=np.array([0.1, 359.7, 359.7, 0.1]),
            corner_dec=dec + np.array([0, 0, 0.4, 0.4]),
            valid=np.ones((4, 4), np.float32),
            bright_count=n,
            bright_lower=0.9 * n,
            bright_upper=1.1 * n,
            density_class=2,
            crowded=not np.isfinite(n),
        )
        for band, dec, n in (("u", 10.0, count), ("r", 10.2, np.nan), ("r", 10.5, 2 * count))
    ]
    return to_dataset(accumulate([chip_sums(chip, GRID) for chip in chips]), GRID, {"weights": "sha256:0"})


def test_zarr_round_trip(tmp_path):
    ds = a_map()
    write_zarr(ds, tmp_path / "deep" / "map.zarr")
    xr.testing.assert_identical(open_map(tmp_path / "deep" / "map.zarr"), ds)
    with xr.open_zarr(tmp_path / "deep" / "map.zarr", consolidated=False) as plain:
        assert plain.attrs["dggs"]["name"] == "healpix"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["map.zarr"]


def test_a_map_is_replaced_whole(tmp_path):
    path = tmp_path / "map.zarr"
    write_zarr(a_map(), path)
    smaller = a_map(9.0).isel(cells=slice(3))
    write_zarr(smaller, path)
    xr.testing.assert_identical(open_map(path), smaller)
    write_zarr(open_map(path), path)  # onto itself, while its values are still on disk
    xr.testing.assert_identical(open_map(path), smaller)


def test_a_failed_write_leaves_the_old_map(tmp_path, monkeypatch):
    path = tmp_path / "map.zarr"
    ds = a_map()
    write_zarr(ds, path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_zarr", fail)
    with pytest.raises(OSError, match="disk full"):
        write_zarr(a_map(9.0), path)
    xr.testing.assert_identical(open_map(path), ds)
    assert [p.name for p in tmp_path.iterdir()] == ["map.zarr"]


def test_other_things_are_not_replaced(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").write_text("keep")
    with pytest.raises(ConfigError, match="not replaced"):
        write_zarr(a_map(), tmp_path / "precious")
    assert (tmp_path / "precious" / "data").read_text() == "keep"


def test_opening_nothing_says_so(tmp_path):
    with pytest.raises(ConfigError, match="check the path"):
        open_map(tmp_path / "absent.zarr")
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(tmp_path / "other.zarr", consolidated=False)
    with pytest.raises(ConfigError, match="not a density map"):
        open_map(tmp_path / "other.zarr")


def read_partial(path, hdu, field=0):
    """What a HEALPix reader does with a partial-sky table: a full sky filled with UNSEEN."""
    with fits.open(path) as hdus:
        table = hdus[hdu]
        header = table.header
        assert (header["PIXTYPE"], header["ORDERING"], header["COORDSYS"]) == ("HEALPIX", "NESTED", "C")
        assert (header["INDXSCHM"], header["OBJECT"]) == ("EXPLICIT", "PARTIAL")
        full = np.full(12 * header["NSIDE"] ** 2, UNSEEN)
        full[table.data.field(0)] = table.data.field(field + 1)
        return full, header


def test_fits_holds_the_density_of_each_band(tmp_path):
    ds = a_map()
    path = write_fits(ds, write_fits(ds, tmp_path / "map.fits"))
    assert [p.name for p in tmp_path.iterdir()] == ["map.fits"]
    for k, band in enumerate(ds["band"].values):
        full, header = read_partial(path, k + 1)
        one = ds.sel(band=band)
        seen = one["n_chips"].values > 0
        assert (header["BAND"], header["OBS_NPIX"], header["NSIDE"]) == (band, seen.sum(), GRID.nside)
        assert header["EXTNAME"] == band.upper()
        density = one["bright_star_density"].values
        expected = np.full(GRID.n_cells, UNSEEN)
        expected[one["cell_ids"].values] = np.where(np.isfinite(density), density, UNSEEN)
        assert np.array_equal(full, expected)
        classes, _ = read_partial(path, k + 1, field=2)
        assert np.array_equal(classes[one["cell_ids"].values[seen]], one["density_class"].values[seen])


def test_fits_units_and_table_are_valid(tmp_path):
    with fits.open(write_fits(a_map(), tmp_path / "map.fits")) as hdus:
        hdus.verify("exception")
        assert hdus[1].columns["BRIGHT_STAR_DENSITY"].unit == "deg-2"


def test_moc_area_is_the_unique_area(tmp_path):
    ds = a_map()
    path = write_moc(ds, write_moc(ds, tmp_path / "map.moc.fits"))
    moc = MOC.from_fits(path)
    assert moc.sky_fraction * 12 * GRID.nside**2 * GRID.cell_area == pytest.approx(footprint_area(ds), rel=1e-6)
    ra, dec = GRID.centres(ds["cell_ids"].values)
    assert moc.contains_lonlat(np.radians(ra) * rad, np.radians(dec) * rad).all()


def test_without_mocpy_the_extra_is_named(tmp_path, monkeypatch):
    load = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "mocpy":
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"csst_dask\[maps\]"):
        write_moc(a_map(), tmp_path / "map.moc.fits")
