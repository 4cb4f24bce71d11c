"""Defects that a delivered frame may have and no flag tells: pure functions from one frame to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from csst_dask.instrument.cells import AMPLIFIERS
from csst_dask.instrument.flags import (
    FLAG_BAD,
    FLAG_COSMIC_RAY,
    FLAG_HOT,
    FLAG_SATURATED,
    FLAG_WARM,
)

GAIN = 1.1
"""e-/ADU"""


@dataclass(frozen=True)
class Frame:
    """A chip as it is delivered."""

    image: NDArray[np.float32]
    """e-/s."""
    flags: NDArray[np.uint16] | None
    exptime: float
    """As its header says, s."""
    sky: float
    """Level of the sky, e-/s, for what goes with it."""

    @property
    def adu(self) -> float:
        """e-/s."""
        return GAIN / self.exptime


Case = Callable[[Frame, np.random.Generator], Frame]


def ramp(shape: tuple[int, int]) -> NDArray[np.float32]:
    """A plane that rises by 2 from one corner to the opposite one, with the mean 0."""
    y, x = (np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in shape)
    return y[:, None] + x


def smooth_field(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random field of mean 0 and standard deviation 1 that changes over about ``scale`` pixels."""
    coarse = [max(4, round(n / scale)) for n in shape]
    field = ndimage.gaussian_filter(rng.standard_normal(coarse), 1.0)
    field = (field - field.mean()) / field.std()
    return ndimage.zoom(field, [n / c for n, c in zip(shape, coarse, strict=True)], order=1).astype(np.float32)


def amplifiers(shape: tuple[int, int], values: NDArray[np.floating]) -> NDArray[np.float32]:
    """One value for every amplifier, as a frame."""
    rows, columns = (np.arange(n) * a // n for n, a in zip(shape, AMPLIFIERS, strict=True))
    return np.asarray(values, np.float32)[rows[:, None], columns]


def add(what: Callable[[Frame, np.random.Generator], NDArray | float]) -> Case:
    """A case that adds something to the image, e-/s."""
    return lambda frame, rng: replace(frame, image=(frame.image + what(frame, rng)).astype(np.float32))


def times(what: Callable[[Frame, np.random.Generator], NDArray | float]) -> Case:
    """A case that multiplies the image."""
    return lambda frame, rng: replace(frame, image=(frame.image * what(frame, rng)).astype(np.float32))


def unflag(bits: int, share: float) -> Case:
    """Take the flags of a share of the pixels that carry one of some bits."""

    def case(frame: Frame, rng: np.random.Generator) -> Frame:
        assert frame.flags is not None
        flags = frame.flags.copy()
        marked = np.flatnonzero(flags & bits)
        flags.reshape(-1)[marked[rng.random(marked.size) < share]] &= np.uint16(0xFFFF & ~bits)
        return replace(frame, flags=flags)

    return case


def flagged(where: Callable[[Frame, np.random.Generator], NDArray[np.bool_]]) -> Case:
    """Flag some pixels as bad."""

    def case(frame: Frame, rng: np.random.Generator) -> Frame:
        assert frame.flags is not None
        return replace(frame, flags=frame.flags | np.where(where(frame, rng), np.uint16(FLAG_BAD), np.uint16(0)))

    return case


def squares(frame: Frame, rng: np.random.Generator) -> NDArray[np.bool_]:
    """120 squares that cover about a fifth of the frame."""
    out = np.zeros(frame.image.shape, bool)
    ny, nx = out.shape
    side = max(1, round(np.sqrt(0.25 * ny * nx / 120)))
    for y, x in zip(rng.integers(0, ny, 120), rng.integers(0, nx, 120), strict=True):
        out[y : y + side, x : x + side] = True
    return out


def bleeding(frame: Frame, rng: np.random.Generator) -> Frame:
    """Three columns of 12 pixels, half a frame long, full of charge and without a flag."""
    image = frame.image.copy()
    ny, nx = image.shape
    for x, y in zip(rng.integers(0, nx - 12, 3), rng.integers(0, ny // 2, 3), strict=True):
        image[y : y + ny // 2, x : x + 12] = 90_000 / frame.exptime
    return replace(frame, image=image)


def resampled(frame: Frame, rng: np.random.Generator) -> Frame:
    """A bilinear shift by half a pixel each way: noise that is correlated over 2 x 2 pixels."""
    image = frame.image
    mean = 0.25 * (image[:-1, :-1] + image[1:, :-1] + image[:-1, 1:] + image[1:, 1:])
    out = image.copy()
    out[:-1, :-1] = mean
    flags = frame.flags
    if flags is not None:
        flags = flags.copy()
        flags[:-1, :-1] |= frame.flags[1:, :-1] | frame.flags[:-1, 1:] | frame.flags[1:, 1:]  # type: ignore[index]
    return replace(frame, image=out, flags=flags)


def background_subtracted(frame: Frame, rng: np.random.Generator) -> Frame:
    """Less the median in boxes of about 256 pixels, smoothed and interpolated."""
    ny, nx = (max(2, n // 256) for n in frame.image.shape)
    boxes = [np.array_split(rows, nx, axis=1) for rows in np.array_split(frame.image[::3, ::3], ny, axis=0)]
    level = ndimage.median_filter(np.array([[np.median(box) for box in row] for row in boxes]), 3, mode="nearest")
    zoom = [n / m for n, m in zip(frame.image.shape, level.shape, strict=True)]
    return replace(frame, image=frame.image - ndimage.zoom(level, zoom, order=1).astype(np.float32))


def large_galaxy(frame: Frame, rng: np.random.Generator) -> NDArray[np.float32]:
    """An elliptical galaxy whose effective radius is a seventh of the frame, as bright there as the sky."""
    ny, nx = frame.image.shape
    y, x = np.ogrid[:ny, :nx]
    radius = np.hypot((y - 0.45 * ny) / 0.7, x - 0.55 * nx) / (ny / 7.5)
    return (frame.sky * np.exp(-7.67 * (np.maximum(radius, 1e-3) ** 0.25 - 1))).astype(np.float32)


CASES: dict[str, Case] = {
    "offset of 1 e-/s": add(lambda f, r: 1.0),
    "gain 10 % higher": times(lambda f, r: 1.1),
    "rounded to 1 e-": lambda f, r: replace(
        f, image=np.rint(f.image * f.exptime).astype(np.float32) / np.float32(f.exptime)
    ),
    "sky plane of 20 %": add(lambda f, r: 0.1 * f.sky * ramp(f.image.shape)),
    "sky plane of 100 %": add(lambda f, r: 0.5 * f.sky * ramp(f.image.shape)),
    "amplifier offsets of 0.3 ADU": add(
        lambda f, r: amplifiers(f.image.shape, 0.3 * f.adu * r.standard_normal(AMPLIFIERS))
    ),
    "amplifier offsets of 3 ADU": add(
        lambda f, r: amplifiers(f.image.shape, 3 * f.adu * r.standard_normal(AMPLIFIERS))
    ),
    "amplifier gains of 2 %": times(lambda f, r: amplifiers(f.image.shape, 1 + 0.02 * r.standard_normal(AMPLIFIERS))),
    "flat residual of 1 %": times(lambda f, r: 1 + 0.01 * smooth_field(f.image.shape, 600, r)),
    "flat residual of 3 %": times(lambda f, r: 1 + 0.03 * smooth_field(f.image.shape, 600, r)),
    "pixel flat of 1 %": times(lambda f, r: 1 + 0.01 * r.standard_normal(f.image.shape, dtype=np.float32)),
    "cirrus of 10 % of the sky": add(lambda f, r: 0.1 * f.sky * smooth_field(f.image.shape, 1500, r)),
    "row noise of 1 ADU": add(lambda f, r: f.adu * r.standard_normal((f.image.shape[0], 1))),
    "column noise of 0.3 ADU": add(lambda f, r: 0.3 * f.adu * r.standard_normal((1, f.image.shape[1]))),
    "resampled by half a pixel": resampled,
    "background subtracted": background_subtracted,
    "cosmic rays not flagged": unflag(FLAG_COSMIC_RAY, 1.0),
    "10 % of cosmic-ray pixels not flagged": unflag(FLAG_COSMIC_RAY, 0.1),
    "1 % of cosmic-ray pixels not flagged": unflag(FLAG_COSMIC_RAY, 0.01),
    "hot pixels not flagged": unflag(FLAG_HOT | FLAG_WARM, 1.0),
    "10 % of hot pixels not flagged": unflag(FLAG_HOT | FLAG_WARM, 0.1),
    "saturation not flagged": unflag(FLAG_SATURATED, 1.0),
    "no flags": lambda f, r: replace(f, flags=None),
    "a fifth masked, one corner": flagged(lambda f, r: ramp(f.image.shape) > 0.367),
    "a fifth masked, single pixels": flagged(lambda f, r: r.random(f.image.shape) < 0.2),
    "a fifth masked, squares": flagged(squares),
    "bleeding columns not flagged": bleeding,
    "a large galaxy": add(large_galaxy),
    "header says twice the exposure time": lambda f, r: replace(f, exptime=2 * f.exptime),
    "10 % of bright pixels flagged": flagged(lambda f, r: (f.image > 1) & (r.random(f.image.shape) < 0.1)),
}
"""What may have happened to a frame, by name."""
