"""The survey camera: its seven bands, and its 30 detectors: what band each one sees, and what place of the sky.

Mosaic coordinates are pixels with the origin at the boresight; x grows with the column, y with the row. The
numbers are those of the public target-location tool of the cycle-9 simulations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ChipRejected
from csst_dask.schema import BANDS, FRAME_SHAPE

if TYPE_CHECKING:
    from astropy.wcs import WCS

PIXEL_SCALE = 0.074
"""Side of a pixel on the sky, arcsec."""
DETECTOR_AREA = FRAME_SHAPE[0] * FRAME_SHAPE[1] * (PIXEL_SCALE / 3600) ** 2
"""What a detector sees, deg2."""

_SPELLINGS = {name.upper(): name for name in BANDS} | {"N": "NUV"}
_LABEL = re.compile(r"([A-Z]+)(?:[-_ ]?\d+)?")

_HALF_PITCH_X = 4875
_PITCH_Y = 10130
_SLITLESS_SHIFT = 775
_SHIFTED_OUT = {*range(1, 6), 10}
_SHIFTED_IN = {*range(26, 31), 21}

# Down a column of the focal plane, ids run 1..5; the columns follow each other from number 6 to number 1.
_KINDS = (
    "GI GV GU GU GV",
    "y i g r GI",
    "z NUV NUV u y",
    "y u NUV NUV z",
    "GI r g i y",
    "GV GU GU GV GI",
)


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


@dataclass(frozen=True)
class DetectorSpec:
    """One detector and its place in the focal plane."""

    id: int
    """1 to 30."""
    band: str
    """Imaging band, or the grating GI, GV or GU."""
    imaging: bool
    """False for the slitless detectors."""
    row: int
    """1 to 5."""
    col: int
    """1 to 6."""
    xc: int
    """Centre of the detector in mosaic coordinates, pixel."""
    yc: int


def _spec(detector: int) -> DetectorSpec:
    row, col = (detector - 1) % 5 + 1, 6 - (detector - 1) // 5
    xc = _HALF_PITCH_X * (2 * (col - 1) - 5)
    xc += _SLITLESS_SHIFT * ((detector in _SHIFTED_OUT) - (detector in _SHIFTED_IN))
    band = _KINDS[6 - col].split()[row - 1]
    return DetectorSpec(detector, band, band in BANDS, row, col, xc, _PITCH_Y * (row - 3))


DETECTORS: dict[int, DetectorSpec] = {detector: _spec(detector) for detector in range(1, 31)}
"""All 30 detectors by id."""

IMAGING_DETECTORS: tuple[int, ...] = tuple(spec.id for spec in DETECTORS.values() if spec.imaging)
"""Ids of the 18 imaging detectors."""


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


def detector_spec(detector: int) -> DetectorSpec:
    """Look a detector up.

    Parameters
    ----------
    detector : int
        1 to 30.

    Returns
    -------
    DetectorSpec

    Raises
    ------
    ChipRejected
        If there is no such detector.
    """
    try:
        return DETECTORS[detector]
    except KeyError:
        raise ChipRejected(
            f"detector {detector} does not exist; expected 1 to 30: correct the file name or DETECTOR card"
        ) from None


def detector_band(detector: int) -> str:
    """Band of a detector: one of `csst_dask.schema.BANDS`, or the grating GI, GV or GU.

    Raises
    ------
    ChipRejected
        If there is no such detector.
    """
    return detector_spec(detector).band


def detector_wcs(detector: int, ra0: float, dec0: float, theta: float, distortion: float = 0.0) -> WCS:
    """World coordinates of a detector's assembled frame, for a pointing.

    A gnomonic projection about the boresight: with s the pixel scale in degrees,
    CD = s [[cos theta, -sin theta], [-sin theta, -cos theta]] and CRPIX = (4608 - xc, 4616 - yc).

    Parameters
    ----------
    detector : int
        1 to 30.
    ra0, dec0 : float
        Boresight, deg ICRS.
    theta : float
        Image rotation, deg.
    distortion : float
        Of `csst_dask.instrument.distortion`, deg^-2.

    Returns
    -------
    astropy.wcs.WCS
        TAN, or TPV where there is distortion, with ``array_shape`` set to `csst_dask.schema.FRAME_SHAPE`.

    Raises
    ------
    ChipRejected
        If there is no such detector.
    """
    # here, since simulated chips are also rendered where there is no astropy
    from astropy.wcs import WCS

    spec = detector_spec(detector)
    ny, nx = FRAME_SHAPE
    cos, sin = np.cos(np.deg2rad(theta)), np.sin(np.deg2rad(theta))
    wcs = WCS(naxis=2)
    projection = "TPV" if distortion else "TAN"
    wcs.wcs.ctype = [f"RA---{projection}", f"DEC--{projection}"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.crval = [ra0, dec0]
    wcs.wcs.lonpole = 180.0  # the default is another one at the pole itself
    wcs.wcs.crpix = [nx / 2 - spec.xc, ny / 2 - spec.yc]
    wcs.wcs.cd = PIXEL_SCALE / 3600 * np.array([[cos, -sin], [-sin, -cos]])
    if distortion:
        wcs.wcs.set_pv(tpv_terms(distortion))
    wcs.array_shape = FRAME_SHAPE
    wcs.wcs.set()
    return wcs


def tpv_terms(distortion: float) -> list[tuple[int, int, float]]:
    """Terms (axis, number, value) of the TPV polynomial of a radial cubic distortion; the others are 0.

    Along axis 1 the polynomial reads xi' = PV1_1 xi + PV1_7 xi^3 + PV1_9 xi eta^2, and with the axes exchanged along
    axis 2 (registry of FITS conventions, "TPV").
    """
    return [(axis, term, value) for axis in (1, 2) for term, value in ((1, 1.0), (7, distortion), (9, distortion))]


def frame_corners(wcs: WCS, shape: tuple[int, int] = FRAME_SHAPE) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sky positions of the four outer corners of a frame.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        Celestial, two axes; distortions are applied.
    shape : (int, int)
        Frame (ny, nx), pixel.

    Returns
    -------
    ra, dec : (4,) float64 arrays
        Outer pixel edges in the order (0,0), (nx,0), (nx,ny), (0,ny), deg; ra in [0, 360).
    """
    ny, nx = shape
    return _sky(wcs, np.array([0.0, nx, nx, 0.0]) + 0.5, np.array([0.0, 0.0, ny, ny]) + 0.5)


def frame_center(wcs: WCS, shape: tuple[int, int] = FRAME_SHAPE) -> tuple[float, float]:
    """Sky position of the middle of a frame.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        Celestial, two axes; distortions are applied.
    shape : (int, int)
        Frame (ny, nx), pixel.

    Returns
    -------
    ra, dec : float
        deg; ra in [0, 360).
    """
    ny, nx = shape
    ra, dec = _sky(wcs, np.array([(nx + 1) / 2]), np.array([(ny + 1) / 2]))
    return float(ra[0]), float(dec[0])


def _sky(wcs: WCS, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """FITS pixel coordinates (first pixel centre at 1) to ra in [0, 360) and dec, deg."""
    world = wcs.all_pix2world(np.column_stack([x, y]), 1)
    ra = np.mod(world[:, wcs.wcs.lng], 360.0)
    return np.where(ra >= 360.0, 0.0, ra), world[:, wcs.wcs.lat]


def unit_vectors(lon: ArrayLike, lat: ArrayLike) -> NDArray[np.float64]:
    """Unit vectors (..., 3) of places on the sky in deg."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
