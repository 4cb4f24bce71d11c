"""Point spread functions and galaxies of the foreign benchmark, drawn by GalSim as stamps on which light is placed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import galsim
import numpy as np
from foreign_plan import SETS, Plan
from foreign_sky import PHASES
from numpy.typing import NDArray

from csst_dask.instrument.focal_plane import BAND_TABLE, PIXEL_SCALE

CELLS = 3
"""The PSF changes in steps: cells along each side of the frame."""
CORE = 49
"""Side of a star's core, pixel."""
WING = 519
"""Side of halo and spikes, pixel."""
_TAPER = (14.0, 24.0)
_APERTURE = 2.0  # m
_RADII = np.geomspace(0.05, 4.2, 28)
_VARIETY = 6
_MOST_SIDE = 601
_ACCURACY = galsim.GSParams(folding_threshold=0.02)  # stamps end before the faintest wings do


@dataclass(frozen=True)
class PointSpread:
    """How the light of a star is spread over the pixels of a chip."""

    cores: NDArray[np.float32]
    """(cell, py, px, CORE, CORE) light in each pixel, by the sub-pixel place of the star; sums to 1 less the wing."""
    wing: NDArray[np.float32]
    """(WING, WING) halo and spikes about the star's pixel."""
    fwhm: float
    """Of the middle cell, the pixel included; pixel."""
    sharpness: float
    """Sum of the squares of a core in the middle cell, mean over sub-pixel places: 1 over the noise-equivalent area."""
    middle: galsim.GSObject
    """Of the middle cell, without the pixel; for galaxies."""
    laws: dict[str, Any]


def make_psf(plan: Plan) -> PointSpread:
    """Draw the PSF of a chip.

    Parameters
    ----------
    plan : Plan

    Returns
    -------
    PointSpread
    """
    ranges, rng = SETS[plan.set], plan.rng(2)
    make, laws = _optics(plan, rng)
    halo = rng.uniform(*ranges.halo)
    places = np.linspace(-1, 1, CELLS)
    profiles = [make(y, x) for y in places for x in places]
    cores = np.stack([_cores(profile) for profile in profiles])
    middle = len(profiles) // 2
    fine = cores[middle].transpose(2, 0, 3, 1)[:, ::-1, :, ::-1].reshape(CORE * PHASES, CORE * PHASES)
    fwhm = 2 * np.sqrt((fine > fine.max() / 2).sum() / np.pi) / PHASES
    sharpness = float((cores[middle].astype(float) ** 2).sum(axis=(-2, -1)).mean()) * (1 - halo) ** 2
    wing = (halo * _wing(rng)).astype(np.float32)
    laws |= {"halo": halo, "fwhm": float(fwhm), "sharpness": sharpness}
    return PointSpread((cores * (1 - halo)).astype(np.float32), wing, float(fwhm), sharpness, profiles[middle], laws)


def _optics(plan: Plan, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """A function that gives the profile at a place (y, x) of the frame, each from -1 to 1."""
    ranges = SETS[plan.set]
    kind, fwhm, e = str(rng.choice(ranges.psf)), rng.uniform(*ranges.fwhm), rng.uniform(*ranges.ellipticity)
    turn, slopes = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.03, (3, 2))
    shape, aberrations = rng.random(3), rng.normal(0, 0.04, (5, 3))
    struts, obscuration = int(rng.choice([0, 3, 4])), rng.uniform(0, 0.35)
    wavelength = BAND_TABLE[plan.band].wavelength / 10

    def profile(y: float, x: float) -> galsim.GSObject:
        width = fwhm * (1 + slopes[0] @ (y, x))
        if kind == "optical":
            terms = np.clip(aberrations @ (1, y, x), -0.12, 0.12)
            names = ("defocus", "astig1", "astig2", "coma1", "coma2")
            optics = galsim.OpticalPSF(
                lam=wavelength, diam=_APERTURE, obscuration=obscuration, nstruts=struts, strut_thick=0.02,
                strut_angle=turn * galsim.radians, **dict(zip(names, terms.tolist(), strict=True)), gsparams=_ACCURACY,
            )  # fmt: skip
            diffraction = np.degrees(1.03 * wavelength * 1e-9 / _APERTURE) * 3600
            jitter = galsim.Gaussian(fwhm=np.sqrt(max(width**2 - diffraction**2, 0.05**2)), gsparams=_ACCURACY)
            found = galsim.Convolve(optics, jitter)
        elif kind == "moffat":
            found = galsim.Moffat(beta=2.4 + 2.6 * shape[0], fwhm=width, gsparams=_ACCURACY)
        else:
            second, third = 0.1 + 0.25 * shape[1], 0.02 + 0.04 * shape[2]
            found = galsim.Sum(
                galsim.Gaussian(fwhm=0.93 * width, flux=1 - second - third, gsparams=_ACCURACY),
                galsim.Gaussian(fwhm=(1.6 + shape[0]) * width, flux=second, gsparams=_ACCURACY),
                galsim.Gaussian(fwhm=5 * width, flux=third, gsparams=_ACCURACY),
            )
        e1, e2 = e * np.cos(turn) + slopes[1] @ (y, x), e * np.sin(turn) + slopes[2] @ (y, x)
        scale = min(1.0, 0.3 / max(float(np.hypot(e1, e2)), 1e-9))
        return found.shear(e1=e1 * scale, e2=e2 * scale)

    return profile, {"psf": kind, "optics_fwhm": fwhm, "ellipticity": e}


def _cores(profile: galsim.GSObject) -> NDArray[np.float64]:
    """(py, px, CORE, CORE): what falls into the pixels for a star at each sub-pixel place of the middle one; sum 1."""
    seen = galsim.Convolve(profile, galsim.Pixel(PIXEL_SCALE, gsparams=_ACCURACY))
    side = CORE * PHASES
    fine = seen.drawImage(nx=side, ny=side, scale=PIXEL_SCALE / PHASES, method="no_pixel", dtype=float).array
    offset = (np.arange(side) - (side - 1) / 2) / PHASES
    radius = np.hypot(offset[:, None], offset[None])
    inner, outer = _TAPER
    fine = np.maximum(fine, 0) * (0.5 + 0.5 * np.cos(np.pi * np.clip((radius - inner) / (outer - inner), 0, 1)))
    # a star at (p + 1/2) / PHASES of its pixel: pixel j samples the profile at 10 j + 9 - p
    cores = fine.reshape(CORE, PHASES, CORE, PHASES)[:, ::-1, :, ::-1].transpose(1, 3, 0, 2)
    return cores / cores.sum(axis=(-2, -1), keepdims=True)


def _wing(rng: np.random.Generator) -> NDArray[np.float64]:
    """(WING, WING) halo that falls by a power of the radius, and spikes; sum 1."""
    offset = np.arange(WING) - WING // 2
    y, x = offset[:, None], offset[None]
    radius = np.hypot(y, x)
    edge = np.clip((WING // 2 - radius) / 40, 0, 1)
    halo = (1 + (radius / rng.uniform(3, 10)) ** 2) ** -rng.uniform(1.0, 1.6) * edge
    halo /= halo.sum()
    n, share, turn = int(rng.choice([0, 2, 3])), rng.uniform(0.1, 0.5), rng.uniform(0, np.pi)
    spikes = np.zeros_like(halo)
    for k in range(n):
        angle = turn + k * np.pi / n
        across = x * np.sin(angle) - y * np.cos(angle)
        spikes += np.exp(-0.5 * (across / rng.uniform(0.6, 1.2)) ** 2) * (1 + radius / 8) ** -1.6 * edge
    return halo if n == 0 else (1 - share) * halo + share * spikes / spikes.sum()


class GalaxyStamps:
    """Galaxies seen through the PSF; stamps are drawn when first asked for, and serve many galaxies of a size.

    Parameters
    ----------
    psf : galsim.GSObject
        Without the pixel.
    seed : numpy.random.SeedSequence
        Of shapes and angles.
    """

    def __init__(self, psf: galsim.GSObject, seed: np.random.SeedSequence) -> None:
        self._psf, self._children = psf, seed.spawn(_RADII.size * _VARIETY)
        self._stamps: dict[int, NDArray[np.float32]] = {}

    def pick(self, radius: float, variety: int) -> NDArray[np.float32]:
        """A stamp of odd sides, its sum 1.

        Parameters
        ----------
        radius : float
            Half-light radius, arcsec; that of the stamp differs by up to 8 %.
        variety : int
            Any number; one of a few galaxies of that size.
        """
        size = int(np.argmin(np.abs(np.log(_RADII / radius))))
        key = size * _VARIETY + variety % _VARIETY
        if key not in self._stamps:
            self._stamps[key] = self._draw(_RADII[size], np.random.default_rng(self._children[key]))
        return self._stamps[key]

    def _draw(self, radius: float, rng: np.random.Generator) -> NDArray[np.float32]:
        kind, ratio, angle = int(rng.integers(4)), rng.uniform(0.15, 1.0), rng.uniform(0, 180)
        profile = (
            galsim.Exponential(half_light_radius=radius),
            galsim.DeVaucouleurs(half_light_radius=radius, trunc=5 * radius),
            galsim.Sersic(n=1.5, half_light_radius=radius),
            galsim.Sersic(n=2.5, half_light_radius=radius, trunc=6 * radius),
        )[kind]
        if kind == 0 and rng.random() < 0.6:
            bulge = galsim.DeVaucouleurs(half_light_radius=0.35 * radius, trunc=3 * radius)
            profile = (0.25 * bulge + 0.75 * profile).shear(q=max(ratio, 0.25), beta=angle * galsim.degrees)
        else:
            profile = profile.shear(q=max(ratio, 0.35 if kind == 1 else 0.2), beta=angle * galsim.degrees)
        side = min(2 * int(np.ceil(4 * radius / PIXEL_SCALE)) + 25, _MOST_SIDE)
        shift = tuple(rng.uniform(-0.5, 0.5, 2).tolist())
        seen = galsim.Convolve(profile.withGSParams(_ACCURACY), self._psf).drawImage(
            nx=side, ny=side, scale=PIXEL_SCALE, offset=shift, dtype=float
        )
        light = np.maximum(seen.array, 0)
        return (light / light.sum()).astype(np.float32)
