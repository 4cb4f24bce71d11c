"""Pixels of the foreign benchmark: light, detector and noise of a chip, and what its flags say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from foreign_detector import add_cosmic_rays, add_dead_columns, add_hot_pixels, bleed, hit_cores
from foreign_plan import SETS, Plan, Ranges
from foreign_psf import CELLS, WING, GalaxyStamps, PointSpread, make_psf
from foreign_sky import PHASES, Scene, draw_scene
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from csst_dask.instrument.focal_plane import BAND_TABLE
from csst_dask.schema import FRAME_SHAPE

BIN = 8
"""Side of the bins on which smooth light is kept, pixel; a frame is a multiple of it."""
DARK = 0.02
"""e-/s per pixel"""
GAIN = 1.1
"""e-/ADU"""
MOST_WINGS = 3000
"""Stars whose halo is drawn pixel by pixel; that of the others is smoothed over bins."""


@dataclass
class ForeignChip:
    """A rendered chip and its truth."""

    plan: Plan
    scene: Scene
    image: NDArray[np.float32]
    """(ny, nx), e-/s."""
    flags: NDArray[np.uint16] | None
    """(ny, nx), CSST flag bits; None where the chip comes without."""
    sky: float
    """In the middle of the frame, e-/s per pixel."""
    noise: float
    """Scatter of a pixel without sources in the middle of the frame, e-/s."""
    read_noise: float
    """e-"""
    fwhm: float
    """Of the PSF with the pixel, pixel."""
    sharpness: float
    """Sum of the squares of the PSF's core: 1 over the noise-equivalent area, 1/pixel."""
    laws: dict[str, Any]
    """Everything else that was drawn."""


def render(plan: Plan, shape: tuple[int, int] = FRAME_SHAPE) -> ForeignChip:
    """Render a chip.

    Parameters
    ----------
    plan : Plan
    shape : (int, int)
        Frame (ny, nx), pixel, multiples of `BIN`.

    Returns
    -------
    ForeignChip
    """
    if shape[0] % BIN or shape[1] % BIN:
        raise ValueError(f"frame {shape} found; both sides must be multiples of {BIN}")
    ranges, rng = SETS[plan.set], plan.rng(3)
    scene, psf = draw_scene(plan, shape), make_psf(plan)
    read_noise, full_well = rng.uniform(*ranges.read_noise), rng.uniform(*ranges.full_well)
    step = GAIN if rng.random() < 0.3 else 0.0
    image, flags = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
    sky = _sky(plan, ranges, shape, rng)
    smooth = sky + DARK * plan.exptime + add_stars(image, scene, psf, plan)
    add_galaxies(image, scene, psf, plan)
    missed = rng.uniform(*ranges.missed) if plan.flags == "imperfect" else 0.0
    laws = add_hot_pixels(image, flags, ranges.hot_pixels, plan.exptime, read_noise, missed, rng)
    _expose(image, smooth.astype(np.float32), rng)
    laws |= add_dead_columns(image, flags, ranges.dead_columns, rng)
    noise = float(
        np.sqrt(sky[sky.shape[0] // 2, sky.shape[1] // 2] + DARK * plan.exptime + read_noise**2 + step**2 / 12)
    )
    laws |= add_cosmic_rays(image, flags, ranges.cosmic_rays, plan.exptime, noise, missed, rng)
    bleed(image, flags, np.float32(full_well))
    if plan.flags == "imperfect":
        seen = flux(scene.mag, plan) * psf.sharpness > 30 * noise
        laws |= hit_cores(flags, scene.y[seen], scene.x[seen], rng.uniform(*ranges.cores_hit), rng)
    _read(image, read_noise, step, DARK * plan.exptime, plan.exptime, rng)
    laws |= {"full_well": full_well, "adu_step": step, "missed": missed}
    return ForeignChip(
        plan=plan,
        scene=scene,
        image=image,
        flags=None if plan.flags == "none" else flags,
        sky=float(sky[sky.shape[0] // 2, sky.shape[1] // 2] / plan.exptime),
        noise=noise / plan.exptime,
        read_noise=read_noise,
        fwhm=psf.fwhm,
        sharpness=psf.sharpness,
        laws=scene.laws | psf.laws | laws,
    )


def flux(mag: NDArray[np.float64], plan: Plan) -> NDArray[np.float64]:
    """Electrons of an exposure by AB magnitude in the chip's band."""
    return plan.exptime * 10 ** (0.4 * (BAND_TABLE[plan.band].zero_point - mag))


def _sky(plan: Plan, ranges: Ranges, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """(ny / BIN, nx / BIN) sky, e- per pixel: a plane and a bowl."""
    level = BAND_TABLE[plan.band].sky * np.exp(rng.uniform(*np.log(ranges.sky))) * plan.exptime
    y, x = (np.linspace(-1, 1, side // BIN) for side in shape)
    tilt, turn, bowl = rng.uniform(*ranges.tilt) / 2, rng.uniform(0, 2 * np.pi), rng.uniform(*ranges.bowl)
    middle = rng.uniform(-0.4, 0.4, 2)
    plane = tilt * (y[:, None] * np.sin(turn) + x[None] * np.cos(turn))
    round_ = bowl * ((y[:, None] - middle[0]) ** 2 + (x[None] - middle[1]) ** 2) / 2
    return level * np.maximum(1 + plane + round_, 0.1)


def add_stars(image: NDArray[np.float32], scene: Scene, psf: PointSpread, plan: Plan) -> NDArray[np.float64]:
    """Add the light of stars to an image, in place.

    Parameters
    ----------
    image : (ny, nx) float32 array
        Electrons.
    scene : Scene
    psf : PointSpread
    plan : Plan

    Returns
    -------
    (ny / BIN, nx / BIN) float64 array
        What the halos of most stars add to every pixel of a bin, electrons; the brightest have theirs in the image.
    """
    ny, nx = image.shape
    light = flux(scene.mag, plan)
    row, col = scene.y.astype(np.int64), scene.x.astype(np.int64)
    py, px = (np.floor((p - np.floor(p)) * PHASES + 1e-6).astype(np.int64) for p in (scene.y, scene.x))
    cell = row * CELLS // ny * CELLS + col * CELLS // nx
    _place_cores(image, psf.cores, cell, row, col, py, px, light.astype(np.float32))
    bright = np.argsort(-light, kind="stable")[:MOST_WINGS]
    bright = bright[light[bright] * psf.wing[WING // 2, WING // 2] > 0.5]
    for k in bright.tolist():
        _place(image, psf.wing, row[k], col[k], np.float32(light[k]))
    rest = np.ones(light.size, bool)
    rest[bright] = False
    bins = np.zeros((ny // BIN, nx // BIN))
    np.add.at(bins, (row[rest] // BIN, col[rest] // BIN), light[rest])
    side = -(-WING // BIN)
    kernel = np.zeros((side * BIN, side * BIN))
    kernel[:WING, :WING] = psf.wing
    kernel = kernel.reshape(side, BIN, side, BIN).sum(axis=(1, 3))
    return np.maximum(fftconvolve(bins, kernel, mode="same"), 0) / BIN**2 if rest.any() else bins


def add_galaxies(image: NDArray[np.float32], scene: Scene, psf: PointSpread, plan: Plan) -> None:
    """Add the light of galaxies to an image of electrons, in place."""
    stamps = GalaxyStamps(psf.middle, np.random.SeedSequence([SETS[plan.set].seed, plan.index, 4]))
    light = flux(scene.galaxy_mag, plan).astype(np.float32)
    for k in range(light.size):
        stamp = stamps.pick(scene.galaxy_radius[k], k)
        _place(image, stamp, int(scene.galaxy_y[k]), int(scene.galaxy_x[k]), light[k])


@numba.njit(cache=True)
def _place_cores(image, cores, cell, row, col, py, px, light):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    half = cores.shape[-1] // 2
    for k in range(light.size):
        stamp = cores[cell[k], py[k], px[k]]
        x0 = col[k] - half
        left, right = max(0, -x0), min(2 * half + 1, nx - x0)
        for j in range(2 * half + 1):
            y = row[k] - half + j
            if 0 <= y < ny:
                for i in range(left, right):
                    image[y, x0 + i] += light[k] * stamp[j, i]


@numba.njit(cache=True)
def _place(image, stamp, row, col, light):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    half = stamp.shape[0] // 2
    x0 = col - half
    left, right = max(0, -x0), min(2 * half + 1, nx - x0)
    for j in range(2 * half + 1):
        y = row - half + j
        if 0 <= y < ny:
            for i in range(left, right):
                image[y, x0 + i] += light * stamp[j, i]


@numba.njit(cache=True)
def _expose(image, smooth, rng):  # type: ignore[no-untyped-def]
    """Add smooth light, bilinear between the middles of bins, and draw the electrons of every pixel."""
    ny, nx = image.shape
    my, mx = smooth.shape
    for y in range(ny):
        v = min(max((y + 0.5) / BIN - 0.5, 0.0), my - 1.0)
        j = min(int(v), my - 2)
        v -= j
        for x in range(nx):
            u = min(max((x + 0.5) / BIN - 0.5, 0.0), mx - 1.0)
            i = min(int(u), mx - 2)
            u -= i
            mean = (1 - v) * ((1 - u) * smooth[j, i] + u * smooth[j, i + 1])
            mean += v * ((1 - u) * smooth[j + 1, i] + u * smooth[j + 1, i + 1]) + image[y, x]
            if mean < 1e4:
                image[y, x] = rng.poisson(mean)
            else:
                image[y, x] = mean + np.sqrt(mean) * rng.standard_normal()


@numba.njit(cache=True)
def _read(image, read_noise, step, dark, exptime, rng):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    for y in range(ny):
        for x in range(nx):
            value = image[y, x] + read_noise * rng.standard_normal()
            if step > 0:
                value = np.round(value / step) * step
            image[y, x] = (value - dark) / exptime
