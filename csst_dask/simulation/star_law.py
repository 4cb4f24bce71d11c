"""Star counts by magnitude that no model of the Galaxy gives: broken power laws, bursts, cut-offs, any colours.

A network that learns from such skies cannot lean on one family of luminosity functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, sqrt

import numpy as np
from numpy.typing import NDArray

from csst_dask.schema import STAR_LIMIT

SLOPES = (0.0, 0.6)
"""d log10 N / d mag on either side of the knee."""
KNEE = (16.0, 27.0)
"""AB mag"""
BRIGHT_END, FAINT_END = 13.0, 28.6
STEP = 0.05
MOST = ((16.0, 60.0), (18.0, 500.0), (20.0, 6000.0), (22.0, 60_000.0))
"""Stars on a detector brighter than a magnitude, at most: a frame of saturated stars alone tells nothing."""
MOST_STARS = 2e6
"""A law ends at the magnitude that so many stars on a detector reach."""
COLOUR = {"NUV": 2.6, "u": 1.6, "g": 1.0, "r": 0.35, "i": 0.0, "z": -0.25, "y": -0.35}
"""Magnitude in a band less that in i, per magnitude of g-i."""
REDDEST = 3.5
"""g-i lies between 0 and this, mag."""


@dataclass(frozen=True)
class Burst:
    """Stars of about one magnitude."""

    mag: float
    width: float
    """Standard deviation, mag."""
    share: float
    """Of all stars."""


@dataclass(frozen=True)
class StarLaw:
    """Numbers and colours of the stars of one exposure."""

    slopes: tuple[float, float]
    """d log10 N / d mag, brighter and fainter than the knee."""
    knee: float
    """i, AB mag."""
    bursts: tuple[Burst, ...]
    ends: tuple[float, float]
    """No stars are brighter or fainter than these, i, AB mag."""
    colour: tuple[float, float]
    """Mean and standard deviation of g-i, mag."""


def draw_star_law(rng: np.random.Generator, crowded: bool = False) -> StarLaw:
    """A law that may be anything.

    Parameters
    ----------
    rng : numpy.random.Generator
    crowded : bool
        Whether the law is for so many stars that it must have faint ones.

    Returns
    -------
    StarLaw
    """
    u = rng.random(20)
    bursts = tuple(
        Burst(15 + 11.5 * u[k], 0.1 + 0.7 * u[k + 1], 0.05 + 0.35 * u[k + 2]) for k in range(0, 3 * int(3 * u[9]), 3)
    )
    faint = (24.5 if crowded else 21.0) + (2.5 if crowded else 6.0) * u[11]
    low, high = SLOPES
    return StarLaw(
        slopes=(float(low + (high - low) * u[12]), float(low + (high - low) * u[13])),
        knee=float(KNEE[0] + (KNEE[1] - KNEE[0]) * u[14]),
        bursts=tuple(Burst(float(b.mag), float(b.width), float(b.share)) for b in bursts),
        ends=(
            float(BRIGHT_END + 8 * u[15]) if u[16] < 0.25 else BRIGHT_END,
            float(faint) if u[10] < 0.3 else FAINT_END,
        ),
        colour=(float(0.4 + 2.0 * u[17]), float(0.15 + 0.75 * u[18])),
    )


def star_numbers(law: StarLaw, count: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected stars on a detector by magnitude.

    Parameters
    ----------
    law : StarLaw
    count : float
        Wanted on a detector with g < `csst_dask.schema.STAR_LIMIT`.

    Returns
    -------
    mag : (n,) float64 array
        Middles of steps of `STEP`, i, AB mag.
    number : (n,) float64 array
        In each step; ``count`` of them in all have g < 26.5 unless `MOST` forbids.
    """
    mag = np.arange(BRIGHT_END, FAINT_END, STEP) + STEP / 2
    past = mag - law.knee
    number = 10 ** (np.where(past < 0, law.slopes[0], law.slopes[1]) * past)
    number[(mag < law.ends[0]) | (mag > law.ends[1])] = 0.0
    number *= (1 - sum(b.share for b in law.bursts)) / max(number.sum(), 1e-300)
    for burst in law.bursts:
        peak = np.exp(-0.5 * ((mag - burst.mag) / burst.width) ** 2)
        number += burst.share * peak / peak.sum()
    counted = _counted(law, mag)
    for _ in range(4):
        number *= count / max(float((number * counted).sum()), 1e-9)
        for limit, most in MOST:
            bright = mag < limit
            total = float(number[bright].sum())
            number[bright] *= min(1.0, most / total) if total > 0 else 1.0
    number[np.cumsum(number) > MOST_STARS] = 0.0
    return mag, number


def law_depth(number: NDArray[np.float64]) -> float:
    """Magnitude to which the numbers of `star_numbers` hold all stars that there are: i, AB mag."""
    total = np.cumsum(number)
    ends = len(number) and total[-1] > 0.9 * MOST_STARS
    return float(BRIGHT_END + STEP * (np.argmax(total >= total[-1]) + 1)) if ends else FAINT_END


def _counted(law: StarLaw, mag: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the stars of each magnitude with g < 26.5; colours beyond their bounds lie on them."""
    mean, sigma = law.colour
    room = STAR_LIMIT - mag
    below = np.array([0.5 * (1 + erf((c - mean) / (sigma * sqrt(2)))) for c in room])
    return np.where(room > REDDEST, 1.0, np.where(room > 0, below, 0.0))


def draw_magnitudes(
    law: StarLaw, number: NDArray[np.float64], n: int, band: str, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Magnitudes of stars.

    Parameters
    ----------
    law : StarLaw
    number : (k,) float64 array
        As from `star_numbers`.
    n : int
        Stars.
    band : str
    rng : numpy.random.Generator

    Returns
    -------
    mag, g : (n,) float64 array
        In the band and in g, AB mag.
    """
    edges = BRIGHT_END + STEP * np.arange(len(number) + 1)
    cumulative = np.concatenate([[0.0], np.cumsum(number)])
    i = np.interp(rng.random(n) * cumulative[-1], cumulative, edges)
    colour = np.clip(law.colour[0] + law.colour[1] * rng.standard_normal(n), 0.0, REDDEST)
    return i + COLOUR[band] * colour, i + colour
