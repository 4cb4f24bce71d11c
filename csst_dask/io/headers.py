"""What FITS headers tell about a chip: its pointing, when, for how long, in which band."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

import numpy as np
from astropy.io import fits
from healpix_geo import nested
from numpy.typing import NDArray

from csst_dask.errors import ChipRejected
from csst_dask.instrument import detector_band, normalise_band
from csst_dask.io.hdus import quiet

FILL = -9999
"""What a failed module of the pipeline leaves in the header."""

FIELD_DEPTH = 3
"""HEALPix depth (nside 8) of the sky fields that data are split by."""

_POINTING = (("RA_PNT0", "DEC_PNT0"), ("RA_OBJ", "DEC_OBJ"), ("OBJ_RA", "OBJ_DEC"))
_MJD_EPOCH = datetime(1858, 11, 17, tzinfo=UTC)


def read_pointing(header: fits.Header, primary: fits.Header | None = None) -> tuple[float, float] | None:
    """Pointing of the exposure from RA_PNT0, RA_OBJ or OBJ_RA cards and their declinations.

    Returns
    -------
    (ra, dec) or None
        deg ICRS; None where no pair of cards holds a position.
    """
    for ra_key, dec_key in _POINTING:
        ra, dec = read_number(ra_key, header, primary), read_number(dec_key, header, primary)
        if ra is not None and dec is not None and abs(ra) <= 360 and abs(dec) <= 90:
            return ra % 360, dec
    return None


def read_exptime(header: fits.Header, primary: fits.Header | None = None) -> float:
    """Exposure time from EXPTIME, s; NaN where it is missing or not positive."""
    value = read_number("EXPTIME", header, primary)
    return value if value is not None and value > 0 else math.nan


def read_mjd(header: fits.Header, primary: fits.Header | None = None) -> float:
    """Start of the exposure, MJD (UTC): EXPSTART, else DATE-OBS with TIME-OBS; NaN where unknown."""
    start = read_number("EXPSTART", header, primary)
    if start is not None and start > 0:
        return start
    for part in (primary, header):
        text = str(part.get("DATE-OBS", "")).strip() if part is not None else ""
        if not text or part is None:
            continue
        if "T" not in text and part.get("TIME-OBS"):
            text += f"T{str(part['TIME-OBS']).strip()}"
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            continue
        time = time if time.tzinfo else time.replace(tzinfo=UTC)
        return (time - _MJD_EPOCH).total_seconds() / 86400
    return math.nan


def read_band(header: fits.Header, primary: fits.Header | None, detector: int, named: str = "") -> tuple[str, str]:
    """Band of a chip: from its name, else FILTER, else CCDLABEL, else the detector.

    Parameters
    ----------
    header, primary : astropy.io.fits.Header
        Of the image HDU, and the primary one.
    detector : int
        1 to 30.
    named : str
        Filter that the file name gives, or an empty text.

    Returns
    -------
    band, note : str
        One of `csst_dask.schema.BANDS`; the note says where the header disagrees with the focal plane.

    Raises
    ------
    ChipRejected
        If nothing gives an imaging band.
    """
    usual = detector_band(detector)
    texts = [named] + [str(part.get(key, "")) for key in ("FILTER", "CCDLABEL") for part in (header, primary or {})]
    for text in texts:
        try:
            band = normalise_band(text)
        except ChipRejected:
            continue
        return band, "" if band == usual else f"band {band} given, detector {detector} usually sees {usual}"
    return normalise_band(usual), ""


def read_field(header: fits.Header, primary: fits.Header | None, ra: float, dec: float) -> str:
    """Sky field of an exposure: the FIELD card, else the HEALPix cell of its pointing.

    Parameters
    ----------
    header, primary : astropy.io.fits.Header
        Of the image HDU, and the primary one.
    ra, dec : float
        Centre of the frame, deg ICRS; serves where the header has no pointing.

    Returns
    -------
    str
        FIELD, or ``nside8-<cell>`` (NESTED).
    """
    for part in (primary, header):
        text = str(part.get("FIELD", "")).strip() if part is not None else ""
        if text:
            return text
    ra, dec = read_pointing(header, primary) or (ra, dec)
    cell = nested.lonlat_to_healpix(np.array([ra]), np.array([dec]), FIELD_DEPTH, ellipsoid="sphere")
    return f"nside{1 << FIELD_DEPTH}-{int(cell[0])}"


def card_bytes(header: fits.Header, primary: fits.Header | None = None) -> NDArray[np.uint8]:
    """All cards as bytes, 80 a card: the primary header, then that of the image unless it is the same.

    Returns
    -------
    (80 n,) uint8 array
        ASCII; one END card closes both, so that a FITS reader takes them as one header.
    """
    parts = [header] if primary is None or primary is header else [primary, header]
    with quiet():
        text = "".join(part.tostring(sep="", endcard=False, padding=False) for part in parts)
    text += "END".ljust(80)
    return np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)


def key_parts(header: fits.Header, primary: fits.Header | None = None) -> tuple[str, int] | None:
    """Exposure and detector from OBSID and DETECTOR (its last two digits), CHIPLAB or CCDCHIP.

    Returns
    -------
    (obs_id, detector) or None
        None where the cards are missing or hold something else.
    """
    parts = [part for part in (primary, header) if part is not None]
    obs_id = next((str(part["OBSID"]).strip() for part in parts if "OBSID" in part), "")
    if not re.fullmatch(r"\d{1,14}", obs_id):
        return None
    for key in ("DETECTOR", "CHIPLAB", "CCDCHIP"):
        for part in parts:
            digits = re.search(r"(\d{1,2})$", str(part.get(key, "")).strip())
            if digits:
                return obs_id, int(digits.group(1))
    return None


def read_number(key: str, header: fits.Header, primary: fits.Header | None) -> float | None:
    """A finite number that is not `FILL`, from the primary header first; None where there is none."""
    for part in (primary, header):
        value = finite(part.get(key)) if part is not None else None
        if value is not None and value != FILL:
            return value
    return None


def finite(value: object) -> float | None:
    """The value as a float if it is a finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
