"""Rows of pixels from a FITS file: which HDU holds the frame, and its rows without holding the frame where possible.

A plain file is read straight into a reused buffer; everything else (scaled, blanked, gzipped or
tile-compressed data) is decoded once by astropy and served from memory.
"""

from __future__ import annotations

import errno
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from threading import RLock
from typing import Self

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from csst_dask.errors import ChipRejected

_PACKED = (b"\x1f\x8b", b"BZh")  # gzip, bzip2
_WARNINGS = RLock()
_TOP_BIT = np.array([0x8000], dtype=">u2").view(np.uint16)
"""Of big-endian integers read as native ones."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings in, one thread at a time: the filters belong to the whole process."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """Turn what damaged FITS files raise into `ChipRejected`, and keep astropy's warnings in.

    Errors of the file system, such as EIO, pass, and so does a file that is not there or may not be read: a
    file system that is mounted again mends them.
    """
    try:
        with quiet():
            yield
    except IsADirectoryError as error:
        raise ChipRejected(f"{path} cannot be read: {error.strerror}; check the path") from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # EINVAL: damaged sizes sent a seek before the start
            raise
        raise ChipRejected(f"{path} is not a readable FITS file: {error}; copy or write it again") from None
    except (ChipRejected, MemoryError):
        raise
    except Exception as error:  # the decoders raise many types, some of them without a common base
        text = str(error) or type(error).__name__
        raise ChipRejected(f"{path} is a damaged FITS file: {text}; copy or write it again") from None


class _ImageHdu:
    """What the headers tell about the first 2-D image of a file."""

    def __init__(self, path: str, hdus: fits.HDUList, index: int, packed: bool) -> None:
        hdu = hdus[index]
        self.index = index
        self.header = hdu.header.copy()
        self.primary = self.header if index == 0 else hdus[0].header.copy()
        self.shape: tuple[int, int] = (int(hdu.header["NAXIS2"]), int(hdu.header["NAXIS1"]))
        self.bitpix = int(hdu.header["BITPIX"])
        self.compressed = isinstance(hdu, fits.CompImageHDU)
        self.offset = int(hdu.fileinfo()["datLoc"]) if not (packed or self.compressed) else -1
        self.others: tuple[str, ...] = ()
        if self.offset >= 0 and os.stat(path).st_size > self.offset + hdu.fileinfo()["datSpan"]:
            later = _each_hdu(path, hdus, index + 1)
            self.others = tuple(_extname(hdu) for _, hdu in later if _is_frame(hdu))


class PixelSource(ABC):
    """A 2-D image of a FITS file, read by rows; a context manager.

    Use `open_pixels` to get one.
    """

    def __init__(self, path: str, hdu: _ImageHdu | PixelSource, dtype: np.dtype) -> None:
        self.path = path
        self.header: fits.Header = hdu.header
        """Header of the image HDU."""
        self.primary: fits.Header = hdu.primary
        """Primary header; the same object as `header` where the image is the primary HDU."""
        self.index: int = hdu.index
        """Number of the image HDU."""
        self.shape: tuple[int, int] = hdu.shape
        """(ny, nx), pixel."""
        self.dtype = dtype
        """Type of the rows; may be big-endian."""
        self.others: tuple[str, ...] = hdu.others
        """EXTNAME, in capitals, of the further 2-D images of an unpacked file."""

    def read_rows(self, y0: int, y1: int) -> NDArray:
        """Rows from `y0` up to, and without, `y1`.

        Parameters
        ----------
        y0, y1 : int
            0-based rows, 0 <= y0 < y1 <= ny.

        Returns
        -------
        (y1 - y0, nx) array of `dtype`
            Physical values; a blank is NaN. Valid until the call after the next, which may reuse its memory.

        Raises
        ------
        ChipRejected
            If the file turns out to be damaged.
        OSError
            If the file system fails; trying again may help.
        """
        if not 0 <= y0 < y1 <= self.shape[0]:
            raise ValueError(f"rows {y0} to {y1} asked for, expected 0 <= y0 < y1 <= {self.shape[0]}")
        return self._rows(y0, y1)

    def read_part(self, y0: int, y1: int, x0: int, x1: int) -> NDArray:
        """Columns from `x0` up to, and without, `x1` of some rows; otherwise like `read_rows`."""
        if not 0 <= x0 < x1 <= self.shape[1]:
            raise ValueError(f"columns {x0} to {x1} asked for, expected 0 <= x0 < x1 <= {self.shape[1]}")
        return self.read_rows(y0, y1)[:, x0:x1]

    @abstractmethod
    def _rows(self, y0: int, y1: int) -> NDArray:
        """Rows that are known to lie on the frame."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file and of the memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _PlainPixels(PixelSource):
    """Unscaled data of an uncompressed file, and unsigned 16-bit integers stored with an offset."""

    def __init__(self, path: str, hdu: _ImageHdu, unsigned: bool) -> None:
        raw = _BIG_ENDIAN[hdu.bitpix]
        super().__init__(path, hdu, np.dtype(">u2") if unsigned else raw)
        self._unsigned = unsigned
        self._offset = hdu.offset
        self._row_bytes = self.shape[1] * raw.itemsize
        self._buffer = self._other = np.empty(0, dtype=np.uint8)
        _check_size(path, hdu.offset, self.shape[0] * self._row_bytes)
        self._file = FileIO(path, "rb")

    def _rows(self, y0: int, y1: int) -> NDArray:
        buffer = self._next_buffer((y1 - y0) * self._row_bytes)
        self._fill(buffer.data, self._offset + y0 * self._row_bytes)
        return self._numbers(buffer, y1 - y0)

    def read_part(self, y0: int, y1: int, x0: int, x1: int) -> NDArray:
        if not (0 <= y0 < y1 <= self.shape[0] and 0 <= x0 < x1 <= self.shape[1]):
            return super().read_part(y0, y1, x0, x1)  # which raises
        width = (x1 - x0) * self.dtype.itemsize
        buffer = self._next_buffer((y1 - y0) * width)
        start = self._offset + y0 * self._row_bytes + x0 * self.dtype.itemsize
        for row in range(y1 - y0):
            self._fill(buffer.data[row * width : (row + 1) * width], start + row * self._row_bytes)
        return self._numbers(buffer, y1 - y0)

    def _next_buffer(self, size: int) -> NDArray[np.uint8]:
        self._buffer, self._other = self._other, self._buffer
        if self._buffer.size < size:
            self._buffer = np.empty(size, dtype=np.uint8)
        return self._buffer[:size]

    def _numbers(self, buffer: NDArray[np.uint8], rows: int) -> NDArray:
        numbers = buffer.view(self.dtype).reshape(rows, -1)
        if self._unsigned:
            bits = numbers.view(np.uint16)
            bits ^= _TOP_BIT  # to add 32768 modulo 65536
        return numbers

    def _fill(self, view: memoryview, position: int) -> None:
        self._file.seek(position)
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise ChipRejected(
                    f"{self.path} ends at byte {position + done}, expected {position + len(view)}; copy it again"
                )
            done += count

    def close(self) -> None:
        self._file.close()
        self._buffer = self._other = np.empty(0, dtype=np.uint8)


class _DecodedPixels(PixelSource):
    """Data that astropy decodes, whole, when the first rows are asked for."""

    def __init__(self, path: str, hdu: _ImageHdu) -> None:
        super().__init__(path, hdu, _decoded_dtype(hdu))
        self._data: NDArray | None = None

    def _rows(self, y0: int, y1: int) -> NDArray:
        if self._data is None:
            self._data = self._decode()
        return self._data[y0:y1]

    def _decode(self) -> NDArray:
        unsigned = self.dtype.kind == "u"
        with (
            refusing(self.path),
            fits.open(self.path, mode="readonly", memmap=False, uint=unsigned) as hdus,
        ):
            data = hdus[self.index].data
            if data is None or data.shape != self.shape:
                found = None if data is None else data.shape
                raise ChipRejected(f"{self.path} decodes to shape {found}, expected {self.shape}; copy it again")
            return np.asarray(data).astype(self.dtype, copy=False)

    def close(self) -> None:
        self._data = None


_BIG_ENDIAN: dict[int, np.dtype] = {
    8: np.dtype("u1"),
    16: np.dtype(">i2"),
    32: np.dtype(">i4"),
    64: np.dtype(">i8"),
    -32: np.dtype(">f4"),
    -64: np.dtype(">f8"),
}


def open_pixels(path: str | os.PathLike[str], extnames: tuple[str, ...] = ()) -> PixelSource:
    """Open the first 2-D image of a FITS file.

    Only headers are read; EXTNAME is not trusted unless asked for.

    Parameters
    ----------
    path : path
        FITS file, plain, gzipped or tile-compressed.
    extnames : tuple of str
        If given, take the first 2-D image with one of these EXTNAMEs, in capitals.

    Returns
    -------
    PixelSource
        A context manager; close it.

    Raises
    ------
    ChipRejected
        If there is no such file, it is not FITS, is cut short or damaged, or has no 2-D image.
    OSError
        If the file system fails; trying again may help.
    """
    path = os.fspath(path)
    with refusing(path):
        packed = _packed_whole(path)
        with fits.open(path, mode="readonly", memmap=not packed, lazy_load_hdus=True) as hdus:
            hdu = _first_image(path, hdus, packed, extnames)
    bscale, bzero = _number(hdu.header, "BSCALE", 1.0), _number(hdu.header, "BZERO", 0.0)
    blank = "BLANK" in hdu.header and hdu.bitpix > 0
    if packed or hdu.compressed or blank or bscale != 1.0:
        return _DecodedPixels(path, hdu)
    if bzero == 0.0 or (hdu.bitpix == 16 and bzero == 32768.0):
        return _PlainPixels(path, hdu, unsigned=bzero != 0.0)
    return _DecodedPixels(path, hdu)


def _packed_whole(path: str) -> bool:
    """Whether the file as a whole is compressed; refuses what cannot be FITS."""
    with open(path, "rb", buffering=0) as file:
        start = file.read(6)
    if not start:
        raise ChipRejected(f"{path} is empty, expected a FITS file; copy or write it again")
    if start.startswith(_PACKED):
        return True
    if start != b"SIMPLE":
        raise ChipRejected(f"{path} is not a FITS file: it starts with {start!r}, expected b'SIMPLE'; remove it")
    return False


def _first_image(path: str, hdus: fits.HDUList, packed: bool, extnames: tuple[str, ...]) -> _ImageHdu:
    """The first 2-D image, or the first with one of some EXTNAMEs in capitals; `ChipRejected` if there is none."""
    for index, hdu in _each_hdu(path, hdus):
        if _is_frame(hdu) and (not extnames or _extname(hdu) in extnames):
            return _ImageHdu(path, hdus, index, packed)
    named = f" named {' or '.join(extnames)}" if extnames else ""
    raise ChipRejected(f"{path} has no 2-D image{named} in its {len(hdus)} HDUs; give an image file")


def _each_hdu(path: str, hdus: fits.HDUList, start: int = 0) -> Iterator[tuple[int, fits.hdu.base._BaseHDU]]:
    """HDUs one after the other, as far as they are asked for; damaged sizes may not lead back."""
    index, last = start, -1
    while True:
        try:
            hdu = hdus[index]
        except IndexError:
            return
        place = hdu.fileinfo()["hdrLoc"]
        if place <= last:
            raise ChipRejected(f"{path} has a damaged header: HDU {index} would start at byte {place} again")
        yield index, hdu
        index, last = index + 1, place


def _is_frame(hdu: fits.hdu.base._BaseHDU) -> bool:
    header = hdu.header
    return hdu.is_image and header.get("NAXIS") == 2 and min(header["NAXIS1"], header["NAXIS2"]) > 1


def _extname(hdu: fits.hdu.base._BaseHDU) -> str:
    return str(hdu.header.get("EXTNAME", "")).strip().upper()


def _check_size(path: str, offset: int, data_bytes: int) -> None:
    found, expected = os.stat(path).st_size, offset + data_bytes
    if found < expected:
        raise ChipRejected(f"{path} is truncated: found {found} bytes, expected at least {expected}; copy it again")


def _number(header: fits.Header, keyword: str, default: float) -> float:
    value = header.get(keyword, default)
    return float(value) if isinstance(value, int | float) else default


def _decoded_dtype(hdu: _ImageHdu) -> np.dtype:
    """Type of the physical values: as stored, unsigned by offset, or float where scaled or blanked."""
    header, bitpix = hdu.header, hdu.bitpix
    bscale, bzero = _number(header, "BSCALE", 1.0), _number(header, "BZERO", 0.0)
    blank = "BLANK" in header and bitpix > 0
    if not blank and bscale == 1.0 and bzero == 0.0:
        stored = _BIG_ENDIAN[bitpix]
        return stored.newbyteorder("=") if hdu.compressed else stored
    if not blank and bscale == 1.0 and bitpix > 8 and bzero == float(1 << (bitpix - 1)):
        return np.dtype(f"u{bitpix // 8}")
    return np.dtype(np.float32 if bitpix in (8, 16, -32) else np.float64)
