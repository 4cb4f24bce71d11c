import builtins
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from astropy.units import rad
from mocpy import MOC

from csst_dask.errors import ConfigError
from csst_dask.maps.chips import MapChips
from csst_dask.maps.dataset import footprint_area, to_dataset
from csst_dask.maps.density import ChipForMap, accumulate, chip_sums, empty_sums
from csst_dask.maps.export import UNSEEN, open_map, write_fits, write_moc, write_zarr
from csst_dask.maps.grid import HealpixGrid
from csst_dask.maps.plot import plot_map

GRID = HealpixGrid(256)


def a_map(count=50.0, review=False):
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
            review=review and dec == 10.5,
        )
        for band, dec, n in (("u", 10.0, count), ("r", 10.2, np.nan), ("r", 10.5, 2 * count))
    ]
    keys = MapChips(["10100000001", "10100000002", "10100000002"], [7, 8, 9], [0, 1, 0])
    return to_dataset(accumulate([chip_sums(chip, GRID) for chip in chips]), GRID, {"weights": "sha256:0"}, keys)


def test_zarr_round_trip(tmp_path):
    ds = a_map()
    write_zarr(ds, tmp_path / "deep" / "map.zarr")
    xr.testing.assert_identical(open_map(tmp_path / "deep" / "map.zarr"), ds)
    with xr.open_zarr(tmp_path / "deep" / "map.zarr", consolidated=False) as plain:
        assert plain.attrs["dggs"]["name"] == "healpix"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["map.zarr"]


def test_xarray_alone_opens_a_map_without_a_warning_and_works_with_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xr.open_zarr(write_zarr(a_map(), tmp_path / "map.zarr"))
        assert all(variable.dtype.kind in "iufUb" for variable in ds.variables.values())
        assert ds.chunks, "read when it is used"
        loaded = ds.load()
        xr.testing.assert_identical(loaded, a_map())
        seen = loaded.where(loaded["visit_area"] > 0, drop=True)
        assert float(seen["visit_area"].sum()) == float(loaded["visit_area"].sum())
        assert seen["chip_version"].dims == ("exposure", "detector")
        assert loaded.sel(band="r").sizes["cells"] == loaded.sizes["cells"]
        assert loaded.sel(exposure="10100000002", detector=[7, 8])["chip_version"].values.tolist() == [-1, 1]
        visits = {str(band): float(part["visit_area"].sum()) for band, part in loaded.groupby("band")}
        assert visits == {band: float(loaded["visit_area"].sel(band=band).sum()) for band in ("u", "r")}
        areas = loaded["visit_area"].groupby(loaded["density_class"]).sum()
        assert float(areas.sum()) == pytest.approx(float(loaded["visit_area"].sum()))


def test_damage_to_any_chunk_is_seen(tmp_path):
    path = write_zarr(a_map(), tmp_path / "map.zarr")
    chunks = [chunk for chunk in path.rglob("*") if "c" in chunk.relative_to(path).parts and chunk.is_file()]
    assert {chunk.relative_to(path).parts[0] for chunk in chunks} >= set(a_map().data_vars) | {"chip_version"}
    for chunk in chunks:
        whole = chunk.read_bytes()
        chunk.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
        with pytest.raises(ValueError, match="checksum"):
            open_map(path).load()
        chunk.write_bytes(whole)
    xr.testing.assert_identical(open_map(path), a_map())


def test_a_map_of_no_chips_round_trips(tmp_path):
    ds = to_dataset(empty_sums(64), HealpixGrid(64), {}, MapChips([], [], []))
    xr.testing.assert_identical(open_map(write_zarr(ds, tmp_path / "map.zarr")), ds)


@pytest.mark.filterwarnings("ignore:The data type")
def test_a_map_of_an_older_version_is_refused_and_kept(tmp_path):
    path = tmp_path / "map.zarr"
    a_map().drop_vars(["chip_version", "exposure", "detector"]).to_zarr(path, consolidated=False)
    with pytest.raises(ConfigError, match="make it again"):
        open_map(path)
    with pytest.raises(ConfigError, match=r"not replaced .*make it again.*remove it"):
        write_zarr(a_map(), path)
    assert (path / "visit_area").is_dir()


WRITERS = {"zarr": write_zarr, "fits": write_fits, "moc": write_moc, "png": plot_map}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_url_is_refused_and_makes_no_folder(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in (f"s3://bucket/map.{kind}", Path(f"s3://bucket/map.{kind}")):
        with pytest.raises(ConfigError, match="expected a local path"):
            WRITERS[kind](a_map(), url)
    with pytest.raises(ConfigError, match="expected a local path"):
        open_map("s3://bucket/map.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", WRITERS)
def test_a_write_removes_what_a_dead_process_left(kind, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = tmp_path / f"map.{kind}"
    left = path.with_name(f".{path.name}.new-{socket.gethostname()}-{ended.pid}-0123abcd")
    left.mkdir()
    (left / "part").write_text("half")
    for _ in range(2):  # a new one, then in place of another
        WRITERS[kind](a_map(), path)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_map_is_replaced_whole(tmp_path):
    path = tmp_path / "map.zarr"
    write_zarr(a_map(), path)
    smaller = a_map(9.0).isel(cells=slice(3))
    write_zarr(smaller, path)
    xr.testing.assert_identical(open_map(path), smaller)
    write_zarr(open_map(path), path)  # onto itself, while its values are still on disk
    xr.testing.assert_identical(open_map(path), smaller)


@pytest.mark.parametrize("how", ["die", "raise"])
def test_stopped_at_any_change_the_old_map_or_the_new_one_is_there(tmp_path, how):
    script = Path(__file__).with_name("dying_writer.py")
    ran = subprocess.run([sys.executable, script, how, tmp_path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 20


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
        seen = one["n_visits"].values > 0
        assert (header["BAND"], header["OBS_NPIX"], header["NSIDE"]) == (band, seen.sum(), GRID.nside)
        assert header["EXTNAME"] == band.upper()
        density = one["bright_star_density"].values
        expected = np.full(GRID.n_cells, UNSEEN)
        expected[one["cell_ids"].values] = np.where(np.isfinite(density), density, UNSEEN)
        assert np.array_equal(full, expected)
        classes, _ = read_partial(path, k + 1, field=2)
        assert np.array_equal(classes[one["cell_ids"].values[seen]], one["density_class"].values[seen])


def test_cells_under_review_are_in_every_file(tmp_path):
    ds = a_map(review=True)
    only = (ds["review_area"] > 0) & (ds["class_area"].sum("density_level") == 0)
    assert only.any()
    xr.testing.assert_identical(open_map(write_zarr(ds, tmp_path / "map.zarr")), ds)
    with fits.open(write_fits(ds, tmp_path / "map.fits")) as hdus:
        for k, band in enumerate(ds["band"].values):
            table, one = hdus[k + 1].data, ds.sel(band=band)
            seen = one["visit_area"].values > 0
            assert np.array_equal(table["REVIEW_AREA"], one["review_area"].values[seen])
            unknown = only.sel(band=band).values[seen]
            assert (table["BRIGHT_STAR_DENSITY"][unknown] == UNSEEN).all()
            assert (table["DENSITY_CLASS"][unknown] == -1).all()
    moc = MOC.from_fits(write_moc(ds, tmp_path / "map.moc.fits"))
    assert moc.sky_fraction * 12 * GRID.nside**2 == pytest.approx(ds.sizes["cells"], rel=1e-9)


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
