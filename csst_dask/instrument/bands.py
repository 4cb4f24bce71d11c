"""The seven imaging bands: what light they pass, and how bright the sky and the limits are in them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from csst_dask.errors import ChipRejected
from csst_dask.schema import BANDS


@dataclass(frozen=True)
class Band:
    """One imaging band of the survey camera.

    The figures are those of the filter table that the public cycle-9 simulations use; the zero points follow
    from them for a collecting area of pi m2 (a 2 m aperture).
    """

    name: str
    """Name as in `csst_dask.schema.BANDS`."""
    wavelength: float
    """Effective wavelength, Angstrom."""
    width: float
    """Effective width, Angstrom."""
    efficiency: float
    """Total efficiency of telescope, filter and detector, 0 to 1."""
    zero_point: float
    """AB magnitude of a source that gives 1 e-/s."""
    sky: float
    """Sky background, e-/s/pixel."""
    saturation_mag: float
    """Point sources brighter than this AB magnitude saturate in a wide-survey exposure."""
    limit_mag: float
    """Limiting AB magnitude of the wide survey, 5 sigma, point source."""


_ROWS = (
    Band("NUV", 2867.7, 705.4, 0.1404, 24.45, 0.004, 15.7, 25.4),
    Band("u", 3601.1, 852.1, 0.2176, 24.88, 0.021, 16.1, 25.4),
    Band("g", 4754.5, 1569.8, 0.4640, 26.08, 0.164, 17.2, 26.3),
    Band("r", 6199.8, 1481.2, 0.5040, 25.81, 0.207, 17.0, 26.0),
    Band("i", 7653.2, 1588.1, 0.4960, 25.63, 0.212, 16.7, 25.9),
    Band("z", 9600.6, 2490.5, 0.2000, 24.90, 0.123, 15.7, 25.2),
    Band("y", 10051.0, 1590.6, 0.0960, 23.55, 0.037, 14.4, 24.4),
)

BAND_TABLE: dict[str, Band] = {band.name: band for band in _ROWS}
"""Every imaging band by its name, from blue to red."""

_SPELLINGS = {name.upper(): name for name in BANDS} | {"N": "NUV"}
_LABEL = re.compile(r"([A-Z]+)(?:[-_ ]?\d+)?")


def normalise_band(text: str) -> str:
    """Name of a band, from any of the spellings found in headers and file names.

    Parameters
    ----------
    text : str
        For example ``"nuv"``, ``"N"``, ``"G "`` or a detector label such as ``"y-1"``.

    Returns
    -------
    str
        One of `csst_dask.schema.BANDS`.

    Raises
    ------
    ChipRejected
        If no imaging band is spelt like this; the gratings GI, GV and GU are not imaging bands.
    """
    match = _LABEL.fullmatch(str(text).strip().upper())
    name = _SPELLINGS.get(match.group(1)) if match else None
    if name is None:
        raise ChipRejected(
            f"filter {text!r} is not an imaging band; expected one of {', '.join(BANDS)} "
            "(N for NUV, and labels such as 'y-1', are understood): correct the FILTER card or the file name"
        )
    return name
