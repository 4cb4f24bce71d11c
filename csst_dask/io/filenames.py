"""File names of the survey camera, in both families: read them, and build those that the simulator writes."""

from __future__ import annotations

import os
import re
from typing import Literal, NamedTuple, get_args

from csst_dask.errors import ChipRejected, ConfigError
from csst_dask.instrument import normalise_band

Kind = Literal["image", "weight", "flag", "truth", "catalog", "psf", "log", "other"]
Product = Literal["img", "wht", "flg", "raw", "truth"]

C51_OFFSET = 90_000_000
"""Truth catalogues of the C5.1 simulation carry the exposure's number less this."""

FITS_ENDINGS = (".fits", ".fit", ".fits.gz", ".fits.fz", ".fit.gz", ".fit.fz")
"""Endings, in lower case, of names that promise a FITS file."""

_SURVEY_NAME = re.compile(
    r"CSST_(?P<instrument>[A-Z]+)_(?P<survey>[A-Z0-9]+)_(?P<type>[A-Z]+)_(?P<t0>\d{14})_(?P<t1>\d{14})"
    r"_(?P<obs_id>\d{9,14})_(?P<detector>\d{2})"
    r"(?:_(?P<before>img|wht|flg|cat|psf))?(?:_L(?P<level>\d+))?(?:_V?(?P<version>\d+))?"
    r"(?:_(?P<after>img|wht|flg|cat|psf|ast|top\d+))?"
    r"\.(?P<ending>fits?|fits?\.gz|fits?\.fz|cat|log|head)",
    re.IGNORECASE,
)
_CHIP_NAME = re.compile(
    r"(?P<instrument>MSC)_(?P<obs_id>\d{7,14})_chip_(?P<detector>\d{2})_filt_(?P<filter>[A-Za-z]+)"
    r"\.(?P<ending>cat|log)",
    re.IGNORECASE,
)
_KINDS: dict[str, Kind] = {
    "": "image",
    "img": "image",
    "wht": "weight",
    "flg": "flag",
    "cat": "catalog",
    "psf": "psf",
}


class FileName(NamedTuple):
    """What a file name tells."""

    obs_id: str
    """Exposure, 7 to 14 digits."""
    detector: int
    kind: Kind
    version: int = 0
    """0 where the name carries none."""
    level: int | None = None
    """Level of the data reduction; None where the name carries none."""
    instrument: str = "MSC"
    survey: str = ""
    """Such as ``MS``."""
    exposure_type: str = ""
    """Such as ``SCI`` or ``WIDE``."""
    t0: str = ""
    """Start and end of the exposure, YYYYMMDDhhmmss."""
    t1: str = ""
    excerpt: bool = False
    """True for catalogues that list only the brightest objects (``top1000``)."""
    filter: str = ""
    """Band, normalised where it is an imaging one; empty where the name carries none."""
    short_id: bool = False
    """True for the ``MSC_`` family, whose exposure number may lack `C51_OFFSET`."""

    def exposures(self) -> tuple[tuple[str, int], ...]:
        """(obs_id, detector) that this file may belong to: by its own number, then by C5.1 numbering."""
        own = ((self.obs_id, self.detector),)
        return (*own, (str(int(self.obs_id) + C51_OFFSET), self.detector)) if self.short_id else own


def parse_name(name: str) -> FileName | None:
    """Read a file name of the survey camera.

    Parameters
    ----------
    name : str
        File name, or a path of which the last part counts.

    Returns
    -------
    FileName or None
        None if the name belongs to neither family.
    """
    base = os.path.basename(name)
    match = _SURVEY_NAME.fullmatch(base)
    if match:
        return _survey_file(match.groupdict())
    match = _CHIP_NAME.fullmatch(base)
    if match:
        return FileName(
            obs_id=match["obs_id"],
            detector=int(match["detector"]),
            kind="truth" if match["ending"].lower() == "cat" else "log",
            filter=_band_or_text(match["filter"]),
            short_id=True,
        )
    return None


def _survey_file(part: dict[str, str | None]) -> FileName:
    product = (part["after"] or part["before"] or "").lower()
    ending = (part["ending"] or "").lower()
    return FileName(
        obs_id=part["obs_id"] or "",
        detector=int(part["detector"] or 0),
        kind=_kind(product, ending),
        version=int(part["version"] or 0),
        level=None if part["level"] is None else int(part["level"]),
        instrument=(part["instrument"] or "").upper(),
        survey=(part["survey"] or "").upper(),
        exposure_type=(part["type"] or "").upper(),
        t0=part["t0"] or "",
        t1=part["t1"] or "",
        excerpt=product.startswith("top"),
    )


def _kind(product: str, ending: str) -> Kind:
    if ending == "cat":
        return "truth"
    if ending == "log":
        return "log"
    if ending == "head":
        return "other"
    return _KINDS.get(product, "other")


def _band_or_text(text: str) -> str:
    try:
        return normalise_band(text)
    except ChipRejected:
        return text


def survey_name(
    obs_id: str, detector: int, t0: str, t1: str, product: Product, version: int = 1, level: int = 1
) -> str:
    """Name of one product of a wide-survey exposure.

    Parameters
    ----------
    obs_id : str
        Exposure, 9 to 14 digits.
    detector : int
        1 to 30.
    t0, t1 : str
        Start and end of the exposure, YYYYMMDDhhmmss.
    product : {"img", "wht", "flg", "raw", "truth"}
        Image, weight, flag, raw image, or truth catalogue; the last two belong to level 0, whatever `level` says.
    version : int
        Version of the data reduction, 1 to 99.
    level : int
        Level of the data reduction.

    Returns
    -------
    str
        Such as ``CSST_MSC_MS_WIDE_20270101000000_20270101000230_10100000001_08_L1_V01_img.fits``;
        `parse_name` reads it back.

    Raises
    ------
    ConfigError
        If the parts do not make a name that can be read back.
    """
    if product not in get_args(Product):
        raise ConfigError(f"product {product!r} found, expected one of {', '.join(get_args(Product))}")
    stem = f"CSST_MSC_MS_WIDE_{t0}_{t1}_{obs_id}_{detector:02d}"
    if product in ("raw", "truth"):
        name = f"{stem}_L0_V{version:02d}.{'fits' if product == 'raw' else 'cat'}"
    else:
        name = f"{stem}_L{level}_V{version:02d}_{product}.fits"
    parsed = parse_name(name)
    if parsed is None or (parsed.obs_id, parsed.t0, parsed.t1) != (obs_id, t0, t1) or detector not in range(1, 31):
        raise ConfigError(
            f"{name} is not a survey file name; expected an exposure of 9 to 14 digits, a detector from "
            "1 to 30, and times as YYYYMMDDhhmmss: correct these"
        )
    return name
