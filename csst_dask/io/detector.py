"""One detector image with its companions, opened: checked scalars, and pixels that are read on demand."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from csst_dask.errors import ChipRejected
from csst_dask.instrument import detector_spec, frame_center, frame_corners
from csst_dask.io import headers
from csst_dask.io.counts import flag_counts, open_counts
from csst_dask.io.pixels import PixelSource, open_pixels
from csst_dask.io.readout import HALF, readout_shape
from csst_dask.schema import FRAME_SHAPE, ChipFiles, ChipInfo, ChipKey

EXTENSIONS = {"flag": ("FLG", "DQ"), "weight": ("WHT",)}
"""EXTNAME of flags and weights that stand in the image file itself."""

COUNT_UNITS = ("ADU", "DN", "COUNT", "COUNTS")
"""BUNIT, in capitals, of raw counts."""


@dataclass
class Detector:
    """One chip, open; a context manager. Use `read_detector` to get one."""

    key: ChipKey
    band: str
    exptime: float
    """Exposure time, s; NaN where unknown."""
    zero_point: float
    """AB magnitude of 1 e-/s; NaN where the band's nominal one holds."""
    mjd: float
    """Start of the exposure, MJD; NaN where unknown."""
    ra: float
    """Centre of the frame, deg ICRS."""
    dec: float
    corner_ra: NDArray[np.float64]
    """(4,) outer pixel edges in the order (0,0), (nx,0), (nx,ny), (0,ny), deg ICRS."""
    corner_dec: NDArray[np.float64]
    field: str
    """Sky field that the exposure belongs to."""
    wcs: WCS
    cards: NDArray[np.uint8]
    """(80 n,) FITS cards of the primary and the image header."""
    shape: tuple[int, int]
    """(ny, nx), pixel."""
    image: PixelSource
    flag: PixelSource | None
    weight: PixelSource | None
    notes: list[str] = dataclasses.field(default_factory=list)
    """What was odd about the files, though not odd enough to reject them."""

    def info(self) -> ChipInfo:
        """The scalars that the headers give; counts and pixel statistics are still unknown."""
        return ChipInfo(
            band=self.band,
            exptime=self.exptime,
            zero_point=self.zero_point,
            mjd=self.mjd,
            ra=self.ra,
            dec=self.dec,
            corner_ra=_four(self.corner_ra),
            corner_dec=_four(self.corner_dec),
            field=self.field,
        )

    def close(self) -> None:
        """Close the files."""
        for source in (self.image, self.flag, self.weight):
            if source is not None:
                source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def read_detector(files: ChipFiles, frame: tuple[int, int] = FRAME_SHAPE) -> Detector:
    """Open the files of one chip and read its headers.

    Raw frames, assembled or as 16 read-out strips, are served as e-/s with saturated pixels flagged. A frame of
    `csst_dask.io.readout.readout_shape` is a read-out. A frame of the detector's own shape is raw at level 0, or where
    the level is unknown and it holds whole numbers with a BUNIT of counts. Everything else is taken as calibrated.

    Parameters
    ----------
    files : ChipFiles
        The image, and what belongs to it; file names are not looked at.
    frame : (int, int)
        Shape (ny, nx) that the frame must have, pixel.

    Returns
    -------
    Detector
        A context manager; pixels are read when asked for.

    Raises
    ------
    ChipRejected
        If the detector does not exist or is slitless, a file is damaged, a frame has another shape than
        `frame`, flags are not integers, there is no usable WCS, or raw counts come without gain or exposure time
        or cannot be told from calibrated pixels.
    OSError
        If the file system fails; trying again may help.
    """
    spec = detector_spec(files.key.detector)
    if not spec.imaging:
        raise ChipRejected(f"detector {spec.id} is not an imaging detector (grating {spec.band}); leave its files out")
    with ExitStack() as stack:
        image = stack.enter_context(open_pixels(files.image))
        kind = _raw_kind(image, files.level, frame)
        if kind != "readout":
            _check_shape(image, frame, "image")
        flag = _companion(stack, files.flag, image, frame, "flag")
        weight = _companion(stack, files.weight, image, frame, "weight")
        if flag is not None and flag.dtype.kind not in "ui":
            raise ChipRejected(f"{flag.path} holds {flag.dtype.name} flags, expected unscaled integers; write it again")
        notes = [] if flag is not None else ["no flags: only non-finite pixels are masked"]
        if kind:
            exptime = headers.read_exptime(image.header, image.primary)
            counts, image, notes = open_counts(image, kind, image.primary, exptime)
            if flag is None:
                notes.append("no flags: only saturated pixels are masked")
            flag = flag_counts(counts, flag)
        detector = _describe(files, image, flag, weight, notes)
        stack.pop_all()
    return detector


def _raw_kind(image: PixelSource, level: int | None, frame: tuple[int, int]) -> Literal["", "plain", "readout"]:
    """Whether an image holds raw counts, and in which shape; empty where it is calibrated or `frame` does not fit.

    Refuses it if level, unit and type of the numbers contradict each other, or do not tell counts from calibrated
    pixels.
    """
    unit = str(image.header.get("BUNIT", "")).strip().upper()
    whole = image.dtype.kind in "ui"
    is_readout = image.shape != frame
    if is_readout and (frame[0] % 2 or frame[1] % HALF or image.shape != readout_shape(frame)):
        return ""
    found = f"{image.path} holds {image.dtype.name} in {unit or 'no unit'}"
    if is_readout or level == 0 or (whole and unit in COUNT_UNITS):
        if level not in (None, 0):
            raise ChipRejected(f"{found}, but its name says level {level}; write the reduced image, or name it L0")
        if image.dtype != np.dtype("u2").newbyteorder(image.dtype.byteorder) or (unit and unit not in COUNT_UNITS):
            what = "a read-out frame" if is_readout else "level 0"
            raise ChipRejected(f"{found}, expected uint16 in ADU for {what}; correct BUNIT or the name")
        return "readout" if is_readout else "plain"
    if whole and not unit and level is None and frame == FRAME_SHAPE:
        raise ChipRejected(f"{found}, so that raw counts cannot be told from calibrated pixels; add BUNIT")
    return ""


def _companion(
    stack: ExitStack, path: str | None, image: PixelSource, frame: tuple[int, int], what: str
) -> PixelSource | None:
    """Flag or weight from its own file, else from the extension of the image file that is named so."""
    names: tuple[str, ...] = ()
    if path is None:
        path, names = image.path, EXTENSIONS[what]
        if not set(names) & set(image.others):
            return None
    source = stack.enter_context(open_pixels(path, names))
    _check_shape(source, frame, what)
    return source


def _check_shape(source: PixelSource, frame: tuple[int, int], what: str) -> None:
    if source.shape != frame:
        raise ChipRejected(
            f"{source.path} is a {what} of {source.shape[0]} x {source.shape[1]} pixels (y, x), "
            f"expected {frame[0]} x {frame[1]}; leave it out"
        )


def _describe(
    files: ChipFiles, image: PixelSource, flag: PixelSource | None, weight: PixelSource | None, odd: list[str]
) -> Detector:
    header, primary, key = image.header, image.primary, files.key
    wcs = headers.clean_wcs(header, image.shape, primary=primary, detector=key.detector)
    band, note = headers.read_band(header, primary, key.detector)
    ra, dec = frame_center(wcs, image.shape)
    corner_ra, corner_dec = frame_corners(wcs, image.shape)
    exptime = headers.read_exptime(header, primary)
    zero_point, zero_point_note = headers.read_zero_point(header, primary, band)
    notes = [*filter(None, (note, zero_point_note)), *odd]
    unused = [name for name in image.others if not any(name in names for names in EXTENSIONS.values())]
    if unused:
        notes.append(f"further images of the file are not used: {', '.join(unused)}")
    if not np.isfinite(exptime):
        notes.append("no exposure time in the header")
    return Detector(
        key=key,
        band=band,
        exptime=exptime,
        zero_point=zero_point,
        mjd=headers.read_mjd(header, primary),
        ra=ra,
        dec=dec,
        corner_ra=corner_ra,
        corner_dec=corner_dec,
        field=headers.read_field(header, primary, ra, dec),
        wcs=wcs,
        cards=headers.card_bytes(header, primary),
        shape=image.shape,
        image=image,
        flag=flag,
        weight=weight,
        notes=notes,
    )


def _four(values: NDArray[np.float64]) -> tuple[float, float, float, float]:
    a, b, c, d = (float(value) for value in values)
    return a, b, c, d
