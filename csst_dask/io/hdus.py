"""Which HDU of a FITS file holds the frame, and what damaged files raise."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

from astropy.io import fits

from csst_dask.errors import ChipRejected

_PACKED = (b"\x1f\x8b", b"BZh")  # gzip, bzip2
_WARNINGS = RLock()


class ImageHdu:
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


def packed_whole(path: str) -> bool:
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


def first_image(path: str, hdus: fits.HDUList, packed: bool, extnames: tuple[str, ...]) -> ImageHdu:
    """The first 2-D image, or the first with one of some EXTNAMEs in capitals; `ChipRejected` if there is none."""
    for index, hdu in _each_hdu(path, hdus):
        if _is_frame(hdu) and (not extnames or _extname(hdu) in extnames):
            return ImageHdu(path, hdus, index, packed)
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
