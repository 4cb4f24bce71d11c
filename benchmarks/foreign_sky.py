"""Scenes of the foreign benchmark: which stars and galaxies stand where on a chip, under laws of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from foreign_plan import SETS, Plan, Ranges
from numpy.typing import NDArray

from csst_dask.instrument.focal_plane import BAND_TABLE
from csst_dask.schema import BRIGHT_LIMIT, FRAME_SHAPE, STAR_LIMIT

PHASES = 10
"""Sub-pixel places along each axis at which stars stand, so that no stamp need be interpolated."""
BEYOND_LIMIT = 1.5
"""Stars are drawn so much fainter than the band's limiting magnitude."""
GALAXY_DEPTH = 0.7
"""Galaxies are drawn so much fainter than it."""
_GRID = np.arange(1200, 3300) / 100


@dataclass
class Scene:
    """Stars and galaxies of a chip. Places are in pixels, the frame's outer corner at 0."""

    g: NDArray[np.float64]
    """(n,) AB mag of every star drawn, in g and in the chip's band."""
    mag: NDArray[np.float64]
    y: NDArray[np.float64]
    x: NDArray[np.float64]
    depth: float
    """Every star brighter than this in the chip's band is among them, AB mag."""
    galaxy_mag: NDArray[np.float64]
    galaxy_radius: NDArray[np.float64]
    """(m,) half-light radius, arcsec."""
    galaxy_y: NDArray[np.float64]
    galaxy_x: NDArray[np.float64]
    laws: dict[str, Any] = field(default_factory=dict)
    """What was drawn, for the record."""

    @property
    def n_star(self) -> int:
        """Stars brighter than `csst_dask.schema.STAR_LIMIT` in g."""
        return int((self.g < STAR_LIMIT).sum())

    @property
    def n_bright(self) -> int:
        """Stars brighter than `csst_dask.schema.BRIGHT_LIMIT` in the chip's band, whatever their g."""
        return int((self.mag < BRIGHT_LIMIT).sum())


def draw_scene(plan: Plan, shape: tuple[int, int] = FRAME_SHAPE) -> Scene:
    """Draw the stars and galaxies of a chip.

    Parameters
    ----------
    plan : Plan
    shape : (int, int)
        Frame (ny, nx), pixel; a smaller one holds as many objects by area.

    Returns
    -------
    Scene
    """
    ranges, rng = SETS[plan.set], plan.rng(1)
    share = shape[0] * shape[1] / (FRAME_SHAPE[0] * FRAME_SHAPE[1])
    n_star = round(plan.n_star * share)
    law, laws = _luminosity(ranges, rng)
    colours = _Colours(ranges, rng, plan.band)
    depth = BAND_TABLE[plan.band].limit_mag + BEYOND_LIMIT
    counted = _GRID < STAR_LIMIT
    g = _draw(law * counted, n_star, rng)
    beyond = max(n_star, 0.5 * share) * law[~counted].sum() / law[counted].sum()
    mag = colours.band_mag(g, rng)
    faint = _draw(law * ~counted, rng.poisson(beyond), rng)
    faint_mag = colours.band_mag(faint, rng)
    seen = faint_mag < depth
    # as many digits as a catalogue keeps, so that both count alike
    g = np.floor(np.concatenate([g, faint[seen]]) * 1e5) / 1e5
    mag = np.floor(np.concatenate([mag, faint_mag[seen]]) * 1e5) / 1e5
    y, x, clumps = _places(ranges, g.size, shape, rng)
    galaxies = _galaxies(ranges, plan.band, share, shape, rng)
    return Scene(g, mag, y, x, depth, *galaxies, laws=laws | clumps | {"red_share": colours.red_share})


def _luminosity(ranges: Ranges, rng: np.random.Generator) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Stars by g magnitude on a grid, in any unit."""
    kind, m = str(rng.choice(ranges.luminosity)), _GRID
    slope, faint, knee = (rng.uniform(*pair) for pair in (ranges.slope, ranges.faint_slope, ranges.break_mag))
    cut, width = rng.uniform(*ranges.cut_mag), rng.uniform(0.3, 1.0)
    law = 10 ** (np.where(m < knee, slope, faint) * (m - knee))
    if kind == "cut":
        law = 10 ** (slope * (m - knee)) / (1 + np.exp((m - cut) / (width / 2)))
    elif kind == "turnover":
        law = np.exp(-0.5 * ((m - cut + 1) / np.where(m < cut - 1, 2.5 * width + 0.8, 2 * width)) ** 2)
    elif kind == "burst":
        burst = np.exp(-0.5 * ((m - rng.uniform(*ranges.burst_mag)) / (0.15 + 0.5 * rng.random())) ** 2)
        share, counted = rng.uniform(*ranges.burst_share), m < STAR_LIMIT
        law = law / law[counted].sum() * (1 - share) + burst / burst[counted].sum() * share
    law = law / (1 + np.exp((rng.uniform(13.5, 17.5) - m) / 0.4))  # no nearby stars
    return law, {"luminosity": kind, "slope": slope, "faint_slope": faint, "break_mag": knee, "cut_mag": cut}


def _draw(law: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Magnitudes by a law on the grid; within a step they are spread evenly, and none crosses its edge."""
    if n == 0:
        return np.empty(0)
    below = np.concatenate([[0.0], np.cumsum(law)])
    step = np.searchsorted(below, rng.random(n) * below[-1], side="right") - 1
    return _GRID[np.minimum(step, _GRID.size - 1)] + rng.uniform(0, 0.0099, n)


class _Colours:
    """Colours by g - i: a blue turn-off, red dwarfs that are the more the fainter, and a few hot stars."""

    def __init__(self, ranges: Ranges, rng: np.random.Generator, band: str) -> None:
        self.band = band
        self.red_share = rng.uniform(*ranges.red_share)
        self.hot_share = 0.04 * rng.random() ** 2
        self.blue, self.blue_width = rng.uniform(*ranges.blue_colour), rng.uniform(0.08, 0.3)
        self.red, self.red_width = rng.uniform(1.6, 2.6), rng.uniform(0.25, 0.6)
        self.from_mag, self.scatter = rng.uniform(18, 24), rng.uniform(0.02, 0.12)
        self.offset = rng.normal(0, 0.08)

    def band_mag(self, g: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """(n,) AB mag in the band of stars of some g."""
        n = g.size
        red = rng.random(n) < self.red_share / (1 + np.exp((self.from_mag - g) / 1.2))
        colour = np.where(red, rng.normal(self.red, self.red_width, n), rng.normal(self.blue, self.blue_width, n))
        colour = np.where(rng.random(n) < self.hot_share, rng.normal(-0.3, 0.2, n), colour)
        scatter = rng.normal(self.offset, self.scatter, n)
        return g if self.band == "g" else g - _colour(self.band, np.clip(colour, -0.9, 4.0)) + scatter


def _colour(band: str, c: NDArray[np.float64]) -> NDArray[np.float64]:
    """g - band by g - i, mag; rough fits to main-sequence stars."""
    gr = 1.45 * np.tanh(0.52 * c)
    ri = c - gr
    iz = 0.05 + 0.5 * ri
    ug = 0.75 + np.clip(1.15 * c, -0.9, 2.0)
    far = ug + np.clip(0.5 + 1.6 * c, -0.3, 4.0)
    return {"NUV": -far, "u": -ug, "r": gr, "i": c, "z": c + iz, "y": c + iz + 0.03 + 0.2 * ri}[band]


def _places(
    ranges: Ranges, n: int, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
    """Centres of stars on the frame, on a lattice of `PHASES` places a pixel: a gradient, and clumps upon it."""
    size = np.array(shape, float)
    share = rng.uniform(*ranges.clump_share) * (rng.random() < 0.6)
    n_clumps, steep, turn = int(rng.integers(1, 9)), rng.uniform(*ranges.gradient), rng.uniform(0, 2 * np.pi)
    middle, radius = rng.random((n_clumps, 2)), 10 ** rng.uniform(-2.0, -0.6, n_clumps)
    weight = rng.dirichlet(np.ones(n_clumps))
    along = np.array([np.sin(turn), np.cos(turn)])
    found = np.empty((0, 2))
    while len(found) < n:
        more = 2 * (n - len(found)) + 16
        place = rng.random((more, 2))
        density = np.exp(steep * ((place - 0.5) @ along - 0.71))  # largest in the corner
        place = place[rng.random(more) < density]
        which = rng.choice(n_clumps, more, p=weight)
        reach = radius[which] * np.sqrt(1 / (1 - rng.random(more) * 0.98) - 1)  # Plummer's law, cut at seven radii
        angle = rng.uniform(0, 2 * np.pi, more)
        clump = middle[which] + reach[:, None] * np.column_stack([np.sin(angle), np.cos(angle)])
        clump = clump[np.all((clump >= 0) & (clump < 1), axis=1)]
        k = min(len(place), len(clump))
        found = np.concatenate([found, np.where(rng.random((k, 1)) < share, clump[:k], place[:k])])
    y, x = np.floor(found[:n] * size * PHASES).T / PHASES + 0.5 / PHASES
    laws = {"clump_share": share, "n_clumps": n_clumps if share else 0, "gradient": steep}
    return y, x, laws


def _galaxies(
    ranges: Ranges, band: str, share: float, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float64], ...]:
    """Magnitudes, half-light radii (arcsec) and places of galaxies; a quarter of the chips have none."""
    n = 10 ** rng.uniform(*np.log10(ranges.galaxies)) * (rng.random() < 0.75) * share
    n = rng.poisson(n)
    slope, faintest = rng.uniform(0.28, 0.42), BAND_TABLE[band].limit_mag + GALAXY_DEPTH
    mag = faintest + np.log10(np.maximum(rng.random(n), 1e-9)) / slope
    mag = np.where(mag < 16, faintest - 2 * rng.random(n), mag)
    median = rng.uniform(0.3, 0.55) * 10 ** (-rng.uniform(0.09, 0.16) * (mag - 22))
    radius = np.clip(median * 10 ** rng.normal(0, 0.2, n), 0.05, 4.0)
    return mag, radius, rng.random(n) * shape[0], rng.random(n) * shape[1]
