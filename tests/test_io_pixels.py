import errno
import gzip
import io
import os
import warnings

import numpy as np
import pytest
from astropy.io import fits

from csst_dask.errors import ChipRejected
from csst_dask.io import open_pixels
from csst_dask.io import pixels as module
from csst_dask.schema import FRAME_SHAPE

SHAPE = (92, 96)


def write(path, data, compress=None, **cards):
    """An empty primary HDU and one image; the cards are set as they stand, without scaling the data."""
    image = fits.CompImageHDU(data, compression_type=compress) if compress else fits.ImageHDU(data)
    image.header.update(cards)
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(path, overwrite=True)
    return path


def read(source, step):
    return np.vstack([source.read_rows(y, min(y + step, SHAPE[0])).copy() for y in range(0, SHAPE[0], step)])


def numbers(dtype, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        data = rng.normal(size=SHAPE).astype(dtype)
        data[3, 4], data[5, 6] = np.nan, np.inf
        return data
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, SHAPE, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", "i1", "i2", "u2", "i4", "u4", "i8"])
@pytest.mark.parametrize("ending", [".fits", ".fits.gz"])
def test_rows_hold_what_was_written(tmp_path, dtype, ending):
    data = numbers(dtype)
    with open_pixels(write(tmp_path / f"x{ending}", data)) as source:
        assert source.shape == SHAPE
        for step in (92, 30, 1):
            rows = read(source, step)
            np.testing.assert_array_equal(rows, data)
        assert source.read_rows(7, 9).dtype == source.dtype
        if dtype != "i1":
            assert source.dtype.newbyteorder("=") == np.dtype(dtype)


@pytest.mark.parametrize(("dtype", "method"), [("f4", "GZIP_2"), ("i2", "RICE_1"), ("u2", "RICE_1"), ("i4", "RICE_1")])
def test_tile_compressed_files(tmp_path, dtype, method):
    data = numbers(dtype) if dtype != "i4" else numbers("i2").astype("i4")
    image = fits.CompImageHDU(data, compression_type=method, quantize_level=0)
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / "x.fits.fz")
    with open_pixels(tmp_path / "x.fits.fz") as source:
        np.testing.assert_array_equal(read(source, 30), data)
        assert source.dtype == np.dtype(dtype)


def test_scaled_integers_have_physical_values(tmp_path):
    stored = numbers("i2")
    path = write(tmp_path / "x.fits", stored)
    with fits.open(path, mode="update", do_not_scale_image_data=True) as hdus:
        hdus[1].header["BSCALE"], hdus[1].header["BZERO"] = 0.5, 100.0
    with open_pixels(path) as source:
        assert source.dtype == np.float32
        np.testing.assert_array_equal(read(source, 30), stored * np.float32(0.5) + np.float32(100))


@pytest.mark.parametrize(
    ("dtype", "raw_blank", "value"), [("i2", -32768, -32768), ("i4", 7, 7), ("u2", 7, 32775), ("u1", 9, 9)]
)
def test_blanks_are_nan(tmp_path, dtype, raw_blank, value):
    data = numbers(dtype)
    data[10:12, 20:30] = value
    blank = data == value
    with open_pixels(write(tmp_path / "x.fits", data, BLANK=raw_blank)) as source:
        rows = read(source, 30)
    assert source.dtype.kind == "f"
    np.testing.assert_array_equal(np.isnan(rows), blank)
    np.testing.assert_array_equal(rows[~blank], data[~blank].astype(rows.dtype))


def test_two_buffers_take_turns(tmp_path):
    with open_pixels(write(tmp_path / "x.fits", numbers("u2"))) as source:
        first = source.read_rows(0, 30)
        second = source.read_rows(30, 60)
        assert not np.shares_memory(first, second)
        np.testing.assert_array_equal(first, numbers("u2")[:30])  # still good while the next rows are read
        third = source.read_rows(60, 90)
        assert np.shares_memory(first, third)
        np.testing.assert_array_equal(second, numbers("u2")[30:60])
        np.testing.assert_array_equal(third, numbers("u2")[60:90])


@pytest.mark.parametrize("rows", [(-1, 4), (5, 5), (6, 5), (90, 93)])
def test_rows_outside_the_frame_are_an_error(tmp_path, rows):
    with (
        open_pixels(write(tmp_path / "x.fits", numbers("f4"))) as source,
        pytest.raises(ValueError, match="expected 0"),
    ):
        source.read_rows(*rows)


def test_the_first_two_dimensional_image_counts(tmp_path):
    path, data = tmp_path / "x.fits", numbers("f4")
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.arange(3))])
    cube = fits.ImageHDU(np.zeros((2, 3, 4), "f4"), name="SCI")
    line = fits.ImageHDU(np.zeros((1, 9), "f4"), name="SCI")
    tail = fits.ImageHDU(data + 1, name="SCI")
    fits.HDUList([fits.PrimaryHDU(), table, cube, line, fits.ImageHDU(data, name="??"), tail]).writeto(path)
    with open_pixels(path) as source:
        np.testing.assert_array_equal(read(source, 92), data)
        assert source.others == ("SCI",)
        assert source.index == 4
    with open_pixels(path, ("WHT", "SCI")) as source:
        np.testing.assert_array_equal(read(source, 92), data + 1)
    with pytest.raises(ChipRejected, match="no 2-D image named FLG or DQ in its 6 HDUs"):
        open_pixels(path, ("FLG", "DQ"))
    fits.PrimaryHDU(data).writeto(path, overwrite=True)
    with open_pixels(path) as source:
        np.testing.assert_array_equal(read(source, 92), data)
        assert source.others == ()
        assert source.primary is source.header


def test_a_truncated_file_is_refused_before_reading(tmp_path):
    path = write(tmp_path / "x.fits", numbers("f4"))
    expected = 2 * 2880 + SHAPE[0] * SHAPE[1] * 4
    for size in (expected - 1, expected - 10000):
        os.truncate(path, size)
        with pytest.raises(ChipRejected, match=f"found {size} bytes, expected at least {expected}"):
            open_pixels(path)


def test_missing_padding_is_no_damage(tmp_path):
    path = write(tmp_path / "x.fits", numbers("f4"))
    os.truncate(path, 2 * 2880 + SHAPE[0] * SHAPE[1] * 4)
    with open_pixels(path) as source:
        np.testing.assert_array_equal(read(source, 92), numbers("f4"))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.8])
def test_truncated_packed_files_are_refused(tmp_path, keep):
    plain = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(numbers("f4"))]).writeto(plain)
    packed = gzip.compress(plain.getvalue())
    tiled = write(tmp_path / "x.fits.fz", numbers("i2"), compress="RICE_1")
    for path, data in ((tmp_path / "x.fits.gz", packed), (tiled, tiled.read_bytes())):
        path.write_bytes(data[: int(keep * len(data))])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ChipRejected, match=r"x\.fits"):
                open_pixels(path).read_rows(0, 92)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"hello, this is no FITS file" * 200, "not a FITS file"),
        (b"SIMPLE  =                    T" + b" " * 50, "FITS file"),
        (b"\x1f\x8b broken", "FITS file"),
    ],
)
def test_what_is_not_fits_is_refused(tmp_path, data, reason):
    path = tmp_path / "x.fits"
    path.write_bytes(data)
    with pytest.raises(ChipRejected, match=reason):
        open_pixels(path)


def test_files_without_an_image_are_refused(tmp_path):
    fits.PrimaryHDU().writeto(tmp_path / "x.fits")
    with pytest.raises(ChipRejected, match="no 2-D image in its 1 HDUs"):
        open_pixels(tmp_path / "x.fits")
    with pytest.raises(ChipRejected, match="cannot be read"):
        open_pixels(tmp_path)


def test_file_that_is_not_there_is_no_rejection(tmp_path):
    with pytest.raises(FileNotFoundError):  # it may be there again on a retry
        open_pixels(tmp_path / "missing.fits")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("ending", [".fits", ".fits.gz"])
def test_damaged_sizes_do_not_lead_in_a_circle(tmp_path, ending):
    header = fits.ImageHDU(np.zeros((1, 960), "f4")).header.tostring()
    bad = header.replace("NAXIS1  =                  960", "NAXIS1  =                -1440")
    data = fits.PrimaryHDU().header.tostring().encode() + bad.encode() + bytes(2 * 2880)
    (tmp_path / f"x{ending}").write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    with pytest.raises(ChipRejected, match="damaged"):
        open_pixels(tmp_path / f"x{ending}")


def test_errors_of_the_file_system_may_be_retried(tmp_path, monkeypatch):
    path = write(tmp_path / "x.fits", numbers("f4"))

    def broken(*_args, **_kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module.fits, "open", broken)
    with pytest.raises(OSError, match="Input/output error"):
        open_pixels(path)


@pytest.mark.full_size
def test_a_full_frame_by_rows(tmp_path):
    path = tmp_path / "x.fits"
    ny, nx = FRAME_SHAPE
    header = fits.Header([("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 2), ("NAXIS1", nx), ("NAXIS2", ny)])
    row = np.arange(nx, dtype=">f4")
    with open(path, "wb") as file:
        file.write(header.tostring().encode())
        offset = file.tell()
        for y in (0, 4711, ny - 1):  # the rest is a hole, which reads as zeros
            file.seek(offset + 4 * nx * y)
            file.write((row + y).astype(">f4").tobytes())
    total = 0.0
    with open_pixels(path) as source:
        for y in range(0, ny, 1154):
            total += source.read_rows(y, y + 1154).sum(dtype=np.float64)
        np.testing.assert_array_equal(source.read_rows(4711, 4712)[0], row + 4711)
    assert total == 3 * row.sum(dtype=np.float64) + nx * (4711 + ny - 1)
