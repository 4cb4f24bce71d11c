"""Galaxies to electrons: Sersic profiles and the PSF as sums of Gaussians, whose convolutions are Gaussians again.

The expansions of the disc (n = 1) and of the bulge (n = 4) were fitted to the enclosed light and the surface
brightness of the profiles, after the idea of Hogg & Lang (2013, PASP 125, 719). A Gaussian ends where it is fainter
than ``faintest``, but never inside the ellipse that holds 99.75 % of its light, and what lies outside of its ellipse
is put back inside: a faint galaxy keeps all of its light.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

FAINTEST = 0.05
"""Electrons per pixel at which a Gaussian may end."""
_PIXEL_VARIANCE = 1.0 / 12.0
"""Of a pixel's square response along one axis: convolves with the pixel but for its fourth cumulant, -1/120, which
changes the peak of a point source of FWHM 1.7 pixel by 0.3 %."""
_LEAST_CUT, _MOST_CUT = 6.0, 30.0
"""Half the squared Mahalanobis radius at which a Gaussian ends: exp(-cut) of its light lies outside."""
_MERGE = 0.1
"""A Gaussian of a galaxy and one of the PSF that hold the share p of the light together are merged with their
neighbours, at the same mean variance, if one variance is below _MERGE / sqrt(p) of the other: the error of the profile
is then about p (_MERGE / sqrt(p))^2."""
_ALIKE, _RATIO = 0.015, 2.6
"""Neighbours of a PSF are drawn as one if that changes its second moment of variance by less, and their variances'
ratio is below the second number."""
_STAGE = 60
"""Half size of the scratch image on which a galaxy is summed, pixel."""
_BLOCK = 16
"""Rows on the stage are drawn in multiples of this many pixels, which whole vectors fill."""
_ROUND = 1.5 * 2.0**40
"""Adding and subtracting it rounds to 1/4096: whole steps from there are exact in float32, wherever they begin."""
_DROP = 0.004
"""Largest share of the light in PSF wings that are left out, and put into the core, where they are too faint."""


def _table(*rows: tuple[float, float]) -> NDArray[np.float64]:
    table = np.array(rows)
    table[:, 0] /= table[:, 0].sum()
    return table


DISC = _table(
    (0.00494, 0.10682), (0.03647, 0.24843), (0.14465, 0.45566), (0.33660, 0.75185), (0.37092, 1.16867),
    (0.10642, 1.77081),
)  # fmt: skip
"""Sersic n = 1 as Gaussians: share of the light, sigma in half-light radii. Enclosed light is right to 0.0002."""
BULGE = _table(
    (0.00971, 0.01545), (0.03206, 0.05018), (0.07486, 0.12193), (0.13331, 0.26495), (0.18959, 0.54378),
    (0.21568, 1.09039), (0.18956, 2.20094), (0.11690, 4.66390), (0.03833, 11.53983),
)  # fmt: skip
"""Sersic n = 4; enclosed light is right to 0.002. The last 0.3 %, beyond 30 half-light radii, ends too soon."""


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _add_row(target, count, start, curvature, height):
    """Add height * exp(-curvature u^2), with u = start, start + 1, ..., to the first ``count`` pixels.

    exp(-t) is the 64th power of a cubic in t / 64: without a branch or a call, so that the loop becomes vectors. The
    others get zero: a target of whole vectors leaves no rest that is done pixel by pixel.
    """
    scale, least = curvature * np.float32(-1.0 / 64.0), np.float32(-0.5)
    one, half, sixth, none = np.float32(1.0), np.float32(0.5), np.float32(1.0 / 6.0), np.float32(0.0)
    stop = start + (np.float32(np.int32(count)) - half)
    for k in range(target.shape[0]):
        u = start + np.float32(np.int32(k))
        s = max(scale * u * u, least)
        e = one + s * (one + s * (half + s * sixth))
        e *= e
        e *= e
        e *= e
        e *= e
        e *= e
        e *= e
        target[k] += height * e if u < stop else none


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _add_gaussian(frame, y, x, peak, cxx, cxy, cyy, cut, padding):
    """Add one elliptical Gaussian of a covariance (pixel^2) within the ellipse that ``cut`` names.

    The frame's last columns, ``padding`` of them, are there to be added zeros to.
    """
    ny, nx = frame.shape[0], frame.shape[1] - padding
    det = cxx * cyy - cxy * cxy
    reach = np.sqrt(2.0 * cut * cyy)
    if y + reach < 0.0 or y - reach > ny:
        return
    slope, fall = cxy / cyy, 0.5 / cyy
    curvature, wide = np.float32(0.5 * cyy / det), 2.0 * det / cyy
    first, last = int(np.ceil(y - reach - 0.5)), min(int(np.floor(y + reach - 0.5)), ny - 1)
    dy = first + 0.5 - y
    height, ratio, change = peak * np.exp(-fall * dy * dy), np.exp(-fall * (2.0 * dy + 1.0)), np.exp(-2.0 * fall)
    for row in range(first, last + 1):
        dy = row + 0.5 - y
        rest = cut - dy * dy * fall
        if row >= 0 and rest > 0.0:
            half = np.sqrt(rest * wide)
            centre = (x + slope * dy + _ROUND) - _ROUND
            x0 = int(max(centre - half + 0.5, 0.0))
            x1 = int(min(max(centre + half + 0.5, 0.0), np.float64(nx)))
            if x1 > x0:
                end = min(x0 + (x1 - x0 + _BLOCK - 1) // _BLOCK * _BLOCK, x1 + padding)
                _add_row(frame[row, x0:end], x1 - x0, np.float32(x0 + 0.5 - centre), curvature, np.float32(height))
        height *= ratio
        ratio *= change


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _list_gaussian(rows, n, flux, s2, v, shape, faintest):
    """Append a Gaussian of the galaxy's shape and a circular one convolved: peak, covariance, cut."""
    cxx, cxy, cyy = s2 * shape[0] + v, s2 * shape[1], s2 * shape[2] + v
    peak = flux / (2.0 * np.pi * np.sqrt(cxx * cyy - cxy * cxy))
    cut = min(max(np.log(peak / faintest), _LEAST_CUT), _MOST_CUT)
    rows[n, 0] = peak / (1.0 - np.exp(-cut))
    rows[n, 1], rows[n, 2], rows[n, 3], rows[n, 4] = cxx, cxy, cyy, cut
    return n + 1


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _list_profile(rows, n, flux, radius, table, shape, mixture, used, wide, faintest):
    """Append one profile: each Gaussian of ``table`` with each of the first ``used`` of the PSF, merged where they can.

    ``shape`` holds the covariance (xx, xy, yy) of a Gaussian of unit sigma along the major axis, and the squared
    axis ratio; ``wide`` is scratch for (light, light x variance) of what is narrow against each part of the PSF.
    """
    wide[:used] = 0.0
    for k in range(table.shape[0]):
        s2 = (table[k, 1] * radius) ** 2
        light, spread = 0.0, 0.0
        for j in range(used):
            share, v = table[k, 0] * mixture[j, 0], mixture[j, 1]
            tolerance = min(_MERGE / np.sqrt(share), 1.0)
            if s2 < tolerance * v:
                wide[j, 0] += share
                wide[j, 1] += share * s2
            elif v < tolerance * shape[3] * s2 or tolerance == 1.0:
                light += share
                spread += share * v
            else:
                n = _list_gaussian(rows, n, flux * share, s2, v, shape, faintest)
        if light > 0.0:
            n = _list_gaussian(rows, n, flux * light, s2, spread / light, shape, faintest)
    for j in range(used):
        if wide[j, 0] > 0.0:
            s2 = wide[j, 1] / wide[j, 0]
            n = _list_gaussian(rows, n, flux * wide[j, 0], s2, mixture[j, 1], shape, faintest)
    return n


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _list_galaxy(rows, galaxy, disc, bulge, mixture, total, wide, faintest):
    """The Gaussians of one galaxy; returns their number."""
    flux, radius, bulge_radius, fraction, q, angle = galaxy
    used, kept = mixture.shape[0], total
    while used > 1:
        weight, v = mixture[used - 1, 0], mixture[used - 1, 1]
        if total - kept + weight > _DROP * total or flux * weight > 2.0 * np.pi * v * faintest:
            break
        used -= 1
        kept -= weight
    light = flux * total / kept
    c, s, q2 = np.cos(angle), np.sin(angle), q * q
    shape = (c * c + q2 * s * s, (1.0 - q2) * s * c, s * s + q2 * c * c, q2)
    n = 0
    if fraction < 1.0:
        n = _list_profile(rows, n, light * (1.0 - fraction), radius, disc, shape, mixture, used, wide, faintest)
    if fraction > 0.0:
        n = _list_profile(rows, n, light * fraction, bulge_radius, bulge, shape, mixture, used, wide, faintest)
    return n


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _unload(frame, stage, top, left, reach_y, reach_x):
    """Add the middle of the stage to the frame and clear it."""
    ny, nx = frame.shape
    for row in range(_STAGE - reach_y, _STAGE + reach_y + 1):
        y = top + row
        x0, x1 = max(left + _STAGE - reach_x, 0), min(left + _STAGE + reach_x + 1, nx)
        if 0 <= y < ny and x1 > x0:
            target, source = frame[y, x0:x1], stage[row, x0 - left : x1 - left]
            for k in range(target.shape[0]):
                target[k] += source[k]
        stage[row, _STAGE - reach_x : _STAGE + reach_x + 1] = np.float32(0.0)


@numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy", fastmath={"contract"})
def _add_galaxies(frame, y, x, shapes, disc, bulge, mixture, faintest):
    """``shapes``: (n, 6) flux, radius, bulge radius, bulge fraction, axis ratio, angle; ``mixture``: weight and
    variance, pixel included, from narrow to wide.

    A galaxy is summed on a small stage, which stays in the fastest cache, and added to the frame once; only Gaussians
    that reach beyond the stage go to the frame directly.
    """
    total, wide = mixture[:, 0].sum(), np.empty_like(mixture)
    rows = np.empty(((disc.shape[0] + bulge.shape[0] + 2) * (mixture.shape[0] + 1), 5))
    stage = np.zeros((2 * _STAGE + 1, 2 * _STAGE + 1 + _BLOCK), np.float32)
    for g in range(y.shape[0]):
        if not shapes[g, 0] > 0.0:
            continue
        top, left = int(np.floor(y[g])) - _STAGE, int(np.floor(x[g])) - _STAGE
        reach_y, reach_x = -1, -1
        for n in range(_list_galaxy(rows, shapes[g], disc, bulge, mixture, total, wide, faintest)):
            peak, cxx, cxy, cyy, cut = rows[n]
            ry, rx = int(np.sqrt(2.0 * cut * cyy)) + 1, int(np.sqrt(2.0 * cut * cxx)) + 1
            if ry <= _STAGE and rx <= _STAGE:
                _add_gaussian(stage, y[g] - top, x[g] - left, peak, cxx, cxy, cyy, cut, _BLOCK)
                reach_y, reach_x = max(reach_y, ry), max(reach_x, rx)
            else:
                _add_gaussian(frame, y[g], x[g], peak, cxx, cxy, cyy, cut, 0)
        if reach_y >= 0:
            _unload(frame, stage, top, left, reach_y, reach_x)


def add_galaxies(
    frame: NDArray[np.float32],
    y: ArrayLike,
    x: ArrayLike,
    flux: ArrayLike,
    radius: ArrayLike,
    bulge_radius: ArrayLike,
    bulge_fraction: ArrayLike,
    axis_ratio: ArrayLike,
    angle: ArrayLike,
    mixture: NDArray[np.float64],
    faintest: float = FAINTEST,
) -> None:
    """Add galaxies to a frame, in place.

    Parameters
    ----------
    frame : (ny, nx) float32 array
        Electrons.
    y, x : (n,) array_like
        Centres from the frame's outer corner, pixel: the first pixel spans 0 to 1. Galaxies outside the frame
        contribute what reaches it.
    flux : (n,) array_like
        Electrons.
    radius, bulge_radius : (n,) array_like
        Half-light radii of disc and bulge along the major axis, pixel.
    bulge_fraction : (n,) array_like
        Share of the light in the bulge, 0 to 1.
    axis_ratio : (n,) array_like
        Minor over major axis, above 0 and up to 1.
    angle : (n,) array_like
        Of the major axis, rad from +x towards +y.
    mixture : (k, 2) float64 array
        The PSF without the pixel, as circular Gaussians: weight, sigma in pixel.
    faintest : float, optional
        Electrons per pixel at which a Gaussian may end.

    Raises
    ------
    ValueError
        If ``mixture`` has another shape, or weights that are not positive.
    """
    psf = np.asarray(mixture, np.float64)
    if psf.ndim != 2 or psf.shape[1:] != (2,) or not (psf[:, 0] > 0).all():
        raise ValueError(
            f"mixture: an array of shape {psf.shape}; expected rows of a weight above 0 and a sigma in pixel"
        )
    values = (y, x, flux, radius, bulge_radius, bulge_fraction, axis_ratio, angle)
    columns = np.stack(np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, np.float64)) for v in values)))
    # neighbours in turn, by bands of rows: their pixels and pages stay in the caches
    columns = columns[:, np.lexsort((columns[1], np.floor(columns[0] / 64.0)))]
    psf = _compress(psf)
    _add_galaxies(frame, columns[0], columns[1], np.ascontiguousarray(columns[2:].T), DISC, BULGE, psf, faintest)


def _compress(mixture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights and variances with the pixel, from narrow to wide; neighbours that hardly differ become one."""
    rows = [(w, sigma**2 + _PIXEL_VARIANCE) for w, sigma in sorted(mixture.tolist(), key=lambda row: row[1])]
    limit = _ALIKE * sum(w for w, _ in rows)
    out = rows[:1]
    for w, v in rows[1:]:
        w0, v0 = out[-1]
        mean = (w * v + w0 * v0) / (w + w0)
        if v < _RATIO * v0 and w * w0 / (w + w0) * ((v - v0) / mean) ** 2 < limit:
            out[-1] = (w + w0, mean)
        else:
            out.append((w, v))
    return np.array(out)


def pixel_shape(position_angle: ArrayLike, cd: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orientation on the pixels of shapes on the sky.

    Parameters
    ----------
    position_angle : (n,) array_like
        Of the major axis, deg from north through east.
    cd : (2, 2) float64 array
        CD matrix, deg per pixel: rows xi (east) and eta (north), columns x and y; either parity.

    Returns
    -------
    (n,) float64 array
        rad from +x towards +y, within (-pi, pi]; an axis has no direction, so angles that differ by pi are the same.
    """
    angle = np.deg2rad(np.asarray(position_angle, np.float64))
    dx, dy = np.linalg.solve(np.asarray(cd, np.float64), np.stack([np.sin(angle).ravel(), np.cos(angle).ravel()]))
    return np.arctan2(dy, dx).reshape(angle.shape)
