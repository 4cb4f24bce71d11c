"""Optical distortion of the focal plane, and the way from the sky to a detector's pixels.

The distortion is radial and cubic about the boresight: a place (xi, eta) of the ideal focal plane, in degrees, sees the
place (xi, eta) (1 + k (xi^2 + eta^2)) of the tangent plane. A TPV projection with PVi_1 = 1 and PVi_7 = PVi_9 = k says
the same (Calabretta et al. 2004; registry of FITS conventions, "TPV").
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from csst_dask.instrument.focal_plane import PIXEL_SCALE, detector_spec
from csst_dask.schema import FRAME_SHAPE

DISTORTION = 5e-4
"""k, deg^-2. The real size is not public; this moves the corners of the focal plane by some 10 pixels."""

_ITERATIONS = 50


def distort(xi: ArrayLike, eta: ArrayLike, k: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From the ideal focal plane to the tangent plane.

    Parameters
    ----------
    xi, eta : array_like
        deg
    k : float
        deg^-2

    Returns
    -------
    xi, eta : float64 arrays
        deg
    """
    xi, eta = np.asarray(xi, np.float64), np.asarray(eta, np.float64)
    factor = 1 + k * (xi**2 + eta**2)
    return xi * factor, eta * factor


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _shrink(c):
    """Root u of u + c u^3 = 1 that goes to 1 with c to 0, by Newton's method; NaN where there is none."""
    if c < -4.0 / 27.0:
        return np.nan
    u = 1.0
    for _ in range(_ITERATIONS):
        step = (u + c * u * u * u - 1.0) / (1.0 + 3.0 * c * u * u)
        u -= step
        if abs(step) < 1e-9:  # the error is of its square's order
            break
    return u


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _project(ra, dec, ra0, dec0, cos_theta, sin_theta, scale, x0, y0, k, y, x):
    degree = np.pi / 180.0
    sin0, cos0 = np.sin(dec0 * degree), np.cos(dec0 * degree)
    for i in range(ra.shape[0]):
        turn = (ra[i] - ra0) * degree
        sin_dec, cos_dec, cos_turn = np.sin(dec[i] * degree), np.cos(dec[i] * degree), np.cos(turn)
        depth = sin0 * sin_dec + cos0 * cos_dec * cos_turn
        if not depth > 0.0:
            y[i] = x[i] = np.nan
            continue
        xi = cos_dec * np.sin(turn) / (depth * degree)
        eta = (cos0 * sin_dec - sin0 * cos_dec * cos_turn) / (depth * degree)
        u = _shrink(k * (xi * xi + eta * eta)) / scale
        # the matrix of the focal plane is its own inverse, but for the scale
        x[i] = x0 + u * (cos_theta * xi - sin_theta * eta)
        y[i] = y0 - u * (sin_theta * xi + cos_theta * eta)


def sky_to_pixel(
    detector: int, ra0: float, dec0: float, theta: float, ra: ArrayLike, dec: ArrayLike, distortion: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where places on the sky fall on a detector's assembled frame: the inverse of `detector_wcs`.

    Parameters
    ----------
    detector : int
        1 to 30.
    ra0, dec0 : float
        Boresight, deg ICRS.
    theta : float
        Image rotation, deg.
    ra, dec : (n,) array_like
        deg ICRS
    distortion : float
        k, deg^-2.

    Returns
    -------
    y, x : (n,) float64 arrays
        Pixel, continuous from the frame's outer corner; also off the frame. NaN for the far side of the sky, and
        where a distortion of negative k reaches no place of the focal plane.

    Raises
    ------
    ChipRejected
        If there is no such detector.

    Notes
    -----
    Gnomonic projection (Calabretta & Greisen 2002, A&A 395, 1077, section 5.1.3); the cubic is inverted by Newton's
    method on the radius.
    """
    spec = detector_spec(detector)
    ra, dec = (np.array(values, np.float64, order="C") for values in np.broadcast_arrays(ra, dec))
    y, x = np.empty(ra.shape), np.empty(ra.shape)
    cos, sin = np.cos(np.deg2rad(theta)), np.sin(np.deg2rad(theta))
    x0, y0 = FRAME_SHAPE[1] / 2 - spec.xc - 0.5, FRAME_SHAPE[0] / 2 - spec.yc - 0.5
    _project(
        ra.ravel(), dec.ravel(), float(ra0), float(dec0), float(cos), float(sin), PIXEL_SCALE / 3600, x0, y0,
        float(distortion), y.reshape(-1), x.reshape(-1),
    )  # fmt: skip
    return y, x
