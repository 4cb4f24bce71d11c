"""World coordinates of a frame: from its header where that can be trusted, else from the focal plane."""

from __future__ import annotations

import re

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from csst_dask.errors import ChipRejected
from csst_dask.instrument import PIXEL_SCALE, detector_wcs
from csst_dask.io.hdus import quiet
from csst_dask.io.headers import FILL, finite, read_number, read_pointing
from csst_dask.schema import FRAME_SHAPE

SCALE_TOLERANCE = 0.05
"""Largest relative departure of the pixel scale from `csst_dask.instrument.PIXEL_SCALE`."""

_ANGLE = ("POS_ANG0", "POS_ANG1")
_WCS_CARD = re.compile(
    r"CTYPE[12]|CUNIT[12]|CRVAL[12]|CRPIX[12]|CDELT[12]|CROTA[12]|CD[12]_[12]|PC[12]_[12]|PV[12]_\d+"
    r"|LONPOLE|LATPOLE|RADESYS|EQUINOX|(?:A|B|AP|BP)_(?:ORDER|\d_\d)"
)
_NUMBERS = re.compile(r"CRVAL|CRPIX|CDELT|CROTA|CD|PC|PV")


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
