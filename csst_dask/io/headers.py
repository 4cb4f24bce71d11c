"""What FITS headers tell about a chip: its pointing, when, for how long, in which band, and its world coordinates.

World coordinates come from the header where it can be trusted, else from the focal plane.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from healpix_geo import nested
from numpy.typing import NDArray

from csst_dask.errors import ChipRejected
from csst_dask.instrument import BAND_TABLE, PIXEL_SCALE, detector_band, detector_wcs, normalise_band
from csst_dask.io.pixels import quiet
from csst_dask.schema import FRAME_SHAPE

FILL = -9999
"""What a failed module of the pipeline leaves in the header."""

FIELD_DEPTH = 3
"""HEALPix depth (nside 8) of the sky fields that data are split by."""

SCALE_TOLERANCE = 0.05
"""Largest relative departure of the pixel scale from `csst_dask.instrument.PIXEL_SCALE`."""

ZERO_POINT_TOLERANCE = 1.0
"""Largest departure of a zero point from the band's, mag."""

_POINTING = (("RA_PNT0", "DEC_PNT0"), ("RA_OBJ", "DEC_OBJ"), ("OBJ_RA", "OBJ_DEC"))
_ANGLE = ("POS_ANG0", "POS_ANG1")
_WCS_CARD = re.compile(
    r"CTYPE[12]|CUNIT[12]|CRVAL[12]|CRPIX[12]|CDELT[12]|CROTA[12]|CD[12]_[12]|PC[12]_[12]|PV[12]_\d+"
    r"|LONPOLE|LATPOLE|RADESYS|EQUINOX|(?:A|B|AP|BP)_(?:ORDER|\d_\d)"
)
_NUMBERS = re.compile(r"CRVAL|CRPIX|CDELT|CROTA|CD|PC|PV")
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


def read_zero_point(header: fits.Header, primary: fits.Header | None, band: str) -> tuple[float, str]:
    """AB magnitude of 1 e-/s from ZP or CCDZP.

    Parameters
    ----------
    header, primary : astropy.io.fits.Header
        Of the image HDU, and the primary one.
    band : str
        One of `csst_dask.schema.BANDS`.

    Returns
    -------
    zero_point : float
        NaN where there is none within `ZERO_POINT_TOLERANCE` of the band's.
    note : str
        Says where one is given that cannot be.
    """
    usual = BAND_TABLE[band].zero_point
    for key in ("ZP", "CCDZP"):
        value = read_number(key, header, primary)
        if value is None or value in (-99, -1, 99):
            continue
        if abs(value - usual) <= ZERO_POINT_TOLERANCE:
            return value, ""
        return math.nan, f"{key} {value:g} is not used: the zero point of {band} is near {usual:.2f}"
    return math.nan, ""


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


def read_band(header: fits.Header, primary: fits.Header | None, detector: int) -> tuple[str, str]:
    """Band of a chip: from FILTER, else CCDLABEL, else the detector.

    Parameters
    ----------
    header, primary : astropy.io.fits.Header
        Of the image HDU, and the primary one.
    detector : int
        1 to 30.

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
    texts = [str(part.get(key, "")) for key in ("FILTER", "CCDLABEL") for part in (header, primary or {})]
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


def clean_wcs(
    header: fits.Header,
    shape: tuple[int, int] = FRAME_SHAPE,
    *,
    primary: fits.Header | None = None,
    detector: int | None = None,
) -> WCS:
    """World coordinates of a frame, after checks; from the focal-plane formula where the header has none.

    Distortion terms (PV) are dropped and TAN is forced where the astrometry module failed: any PV is -9999,
    STA_DIST or STA_POSI is not 0, or only one axis says TPV.

    Parameters
    ----------
    header : astropy.io.fits.Header
        Of the image HDU.
    shape : (int, int)
        Frame (ny, nx), pixel. For a CSST frame the pixel scale must be 0.074 arcsec within 5 %; for any other
        frame it must be under a degree.
    primary : astropy.io.fits.Header, optional
        Of the primary HDU, where pointing and position angle stand.
    detector : int, optional
        1 to 30, for the focal-plane formula.

    Returns
    -------
    astropy.wcs.WCS
        Celestial, two axes, equatorial.

    Raises
    ------
    ChipRejected
        If there is no usable WCS and no pointing to make one from, or if it cannot be right.
    """
    cards = _wcs_cards(header)
    if not _has_wcs(cards):
        wcs = _formula_wcs(header, primary, detector, shape)
    else:
        _check_numbers(cards)
        wcs = _build_wcs(_without_bad_distortion(cards, header), shape)
    _check_wcs(wcs, shape)
    return wcs


def _wcs_cards(header: fits.Header) -> dict[str, object]:
    cards = {key: header[key] for key in header if key and _WCS_CARD.fullmatch(key)}
    if "RADESYS" not in cards and "RADECSYS" in header:
        cards["RADESYS"] = header["RADECSYS"]
    return cards


def _has_wcs(cards: dict[str, object]) -> bool:
    scaled = any(key.startswith(("CD", "PC")) for key in cards)
    return scaled and {"CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2"} <= cards.keys()


def _check_numbers(cards: dict[str, object]) -> None:
    for key, value in cards.items():
        if _NUMBERS.match(key) and finite(value) is None:
            raise ChipRejected(f"no usable WCS: {key} is {value!r}, expected a finite number; solve it again")
    for axis in "12":
        value, limit = (
            finite(cards[f"CRVAL{axis}"]),
            90 if str(cards[f"CTYPE{axis}"]).startswith("DEC") else 360,
        )
        if value is None or abs(value) > limit:
            raise ChipRejected(f"no usable WCS: CRVAL{axis} is {value}, expected at most {limit} deg; solve it again")


def _without_bad_distortion(cards: dict[str, object], header: fits.Header) -> dict[str, object]:
    types = [str(cards[key]).strip() for key in ("CTYPE1", "CTYPE2")]
    failed = (
        any(value == FILL for key, value in cards.items() if key.startswith("PV"))
        or any(header.get(key, 0) != 0 for key in ("STA_DIST", "STA_POSI"))
        or sum(text.endswith("TPV") for text in types) == 1
    )
    if not failed:
        return cards
    kept = {key: value for key, value in cards.items() if not key.startswith("PV")}
    for key, text in zip(("CTYPE1", "CTYPE2"), types, strict=True):
        kept[key] = re.sub(r"TPV$", "TAN", text)
    return kept


def _build_wcs(cards: dict[str, object], shape: tuple[int, int]) -> WCS:
    header = fits.Header([("NAXIS", 2), ("NAXIS1", shape[1]), ("NAXIS2", shape[0]), ("WCSAXES", 2)])
    for key, value in cards.items():
        header[key] = value
    try:
        with quiet():
            wcs = WCS(header, naxis=2)
            wcs.wcs.set()
    except (ValueError, KeyError, TypeError) as error:  # WcsError is a ValueError
        reason = " ".join(str(error).split())
        raise ChipRejected(f"no usable WCS: {reason}; solve the astrometry again") from None
    return wcs


def _formula_wcs(header: fits.Header, primary: fits.Header | None, detector: int | None, shape: tuple[int, int]) -> WCS:
    pointing = read_pointing(header, primary)
    angle = next((value for key in _ANGLE if (value := read_number(key, header, primary)) is not None), None)
    if pointing is None or angle is None or detector is None or shape != FRAME_SHAPE:
        raise ChipRejected(
            "no usable WCS: CTYPE, CRVAL, CRPIX or CD cards are missing, and the focal-plane formula needs "
            f"RA_PNT0, DEC_PNT0 (or RA_OBJ, DEC_OBJ), POS_ANG0 and a frame of {FRAME_SHAPE} (found {shape}); "
            "add the cards"
        )
    return detector_wcs(detector, *pointing, angle)


def _check_wcs(wcs: WCS, shape: tuple[int, int]) -> None:
    if not wcs.has_celestial or wcs.wcs.lngtyp != "RA":
        raise ChipRejected(f"no usable WCS: axes {list(wcs.wcs.ctype)} found, expected RA and DEC")
    system, equinox = wcs.wcs.radesys.strip().upper(), wcs.wcs.equinox
    if system not in ("", "ICRS", "FK5") or (system == "FK5" and abs(equinox - 2000) > 1e-6):
        raise ChipRejected(f"no usable WCS: system {system} of {equinox} found, expected ICRS or FK5 of 2000")
    scales = np.append(proj_plane_pixel_scales(wcs), np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))
    arcsec = scales * 3600
    if shape == FRAME_SHAPE:
        good = np.all(np.abs(arcsec / PIXEL_SCALE - 1) <= SCALE_TOLERANCE)
        expected = f"{PIXEL_SCALE} within {SCALE_TOLERANCE:.0%}"
    else:
        good = np.all(np.isfinite(arcsec) & (arcsec > 0) & (scales < 1))
        expected = "more than 0 and less than 3600"
    if not good:
        found = ", ".join(f"{value:.4g}" for value in arcsec)
        raise ChipRejected(
            f"no usable WCS: pixel scales (x, y, root of area) are {found} arcsec, expected {expected}; "
            "check the CD cards"
        )
