"""The stars of a piece of sky: each cell draws its own from the survey's seed and the cell's number."""

from __future__ import annotations

import zlib
from dataclasses import fields
from functools import lru_cache

import numpy as np
from healpix_geo import nested
from numpy.typing import ArrayLike, NDArray

from csst_dask.instrument.focal_plane import unit_vectors
from csst_dask.schema import BANDS, STAR_LIMIT
from csst_dask.simulation import cells as draws
from csst_dask.simulation.catalogue import CELL_ORDER, Stars
from csst_dask.simulation.counter import make_key
from csst_dask.simulation.members import draw_members
from csst_dask.simulation.milky_way import MODULUS, MODULUS_STEP, bar_density, galactic_rotation
from csst_dask.simulation.physics import SkyPhysics
from csst_dask.simulation.population import COLUMNS, EXTINCTION, SCATTER, luminosity_table
from csst_dask.simulation.structure import structure
from csst_dask.simulation.systems import System, elliptical_radius, surface_density

BRIGHTEST = 7.0
"""Nothing brighter than this in g is drawn, AB mag: surveys avoid such stars."""
DEEP_LIMIT = 28.0
"""Faintest g of a deep rendering, AB mag."""
CELL_AREA = 4 * np.pi / (12 * 4**CELL_ORDER)
"""Steradian."""
CELL_REACH = 0.0152
"""From the centre of a cell to its farthest corner, at most, deg."""
SQUARE_DEGREE = float(np.deg2rad(1.0) ** 2)
"""Steradian."""

LAYERS = (STAR_LIMIT, 28.0, 30.0, 32.0, 34.0, 37.0, 40.0, 45.0, 50.0)
"""Stars beyond the catalogue's count are drawn in layers of g, each a draw of its own: the same for every band,
which keeps those that are bright enough in it. Bands and deeper skies thus share their stars."""

_EVERY = slice(None)
_FEWEST = 1e-4
_STARS, _FAINT, _SYSTEM, _DUST, _CLUMPS, _FOOTPRINT = 11, 12, 13, 14, 15, 16
_G = BANDS.index("g")


@lru_cache(maxsize=16)
def _laws(tilt: float) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Cumulative shares, edges, band magnitudes (padded to one length) and local densities of all populations."""
    tables = [luminosity_table(k, tilt) for k in range(6)]
    longest = max(len(t.edges) for t in tables)
    cumulative, edges = np.ones((6, longest)), np.full((6, longest), 99.0)
    magnitudes = np.zeros((6, longest, len(COLUMNS)))
    for k, t in enumerate(tables):
        n = len(t.edges)
        cumulative[k, :n], edges[k, :n], magnitudes[k, : n - 1] = t.cumulative, t.edges, t.magnitudes
        magnitudes[k, n - 1 :] = t.magnitudes[-1]
    return cumulative, edges, magnitudes, np.array([t.density for t in tables])


def _corners(cells: NDArray[np.uint64]) -> NDArray[np.float64]:
    """(n, 4, 3) unit vectors of the corners of cells: south, east, north, west."""
    if not len(cells):
        return np.empty((0, 4, 3))
    return unit_vectors(*nested.vertices(cells, np.uint8(CELL_ORDER), num_threads=1))


def _sight_lines(lon: NDArray, lat: NDArray, physics: SkyPhysics) -> tuple[NDArray, NDArray]:
    return draws.sight_lines(unit_vectors(lon, lat), galactic_rotation(), physics.halo, bar_density())


def _log_normal(field: NDArray, sigma: float) -> NDArray[np.float64]:
    """A log-normal field of mean 1 from one of mean 0 and variance 1."""
    return np.exp(sigma * field - 0.5 * sigma**2) if sigma > 0 else np.ones(len(field))


def covered(cells: NDArray[np.uint64], seed: int, physics: SkyPhysics) -> NDArray[np.bool_]:
    """Which cells the star catalogue covers: (n,) bool."""
    if physics.footprint >= 1:
        return np.ones(len(cells), bool)
    parents = cells >> np.uint64(2 * (CELL_ORDER - physics.footprint_order))
    return draws.chosen(parents, make_key(seed, _FOOTPRINT), physics.footprint)


def draw_stars(cells: NDArray[np.uint64], seed: int, band: str, physics: SkyPhysics, depth: float = -np.inf) -> Stars:
    """All stars in some sky cells.

    Parameters
    ----------
    cells : (n,) uint64 array
        HEALPix cells, NESTED, order `CELL_ORDER`.
    seed : int
        Of the sky. A star depends on it, the physics and its own cell alone.
    band : str
        That of ``mag``.
    physics : SkyPhysics
    depth : float, optional
        Stars brighter than this in the band are drawn whatever their g, AB mag.

    Returns
    -------
    Stars
        Those brighter than ``physics.limit`` in g, or than ``depth`` in the band; none brighter than `BRIGHTEST` in g.
    """
    cells = cells[covered(cells, seed, physics)]
    sky = _Sky(cells, seed, band, physics, depth)
    listed = min(physics.limit, STAR_LIMIT)
    parts = [sky.field_stars(BRIGHTEST - 2, listed)]
    parts += [sky.system_stars(number, BRIGHTEST - 2, listed) for number in sky.systems]
    for layer in range(len(LAYERS) - 1):
        limits = LAYERS[layer], LAYERS[layer + 1]
        near = sky.reached(*limits)
        if len(near):
            parts.append(sky.field_stars(*limits, layer, near))
        parts += [sky.system_stars(number, *limits, layer) for number in sky.systems]
        if not len(near) and not sky.systems:
            break
    return join(parts)


def join(parts: list[Stars]) -> Stars:
    """Catalogues one after the other."""
    parts = [part for part in parts if len(part)] or parts[:1]
    return Stars(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Stars)})


class _Sky:
    """Some cells of one sky, with what all their stars need."""

    def __init__(self, cells: NDArray[np.uint64], seed: int, band: str, physics: SkyPhysics, depth: float):
        self.cells, self.seed, self.band, self.physics, self.depth = cells, seed, band, physics, depth
        self.lon, self.lat = nested.healpix_to_lonlat(cells, np.uint8(CELL_ORDER), num_threads=1)
        self.lines, self.dust = _sight_lines(self.lon, self.lat, physics)
        self.laws = _laws(physics.tilt)
        corners = _corners(cells)
        self.clouds = draws.corner_fields(corners, make_key(seed, _DUST))
        self.clumps = draws.corner_fields(corners, make_key(seed, _CLUMPS))
        # a bilinear field is nowhere below or above all four corners
        self.least = physics.dust * _log_normal(self.clouds.min(1, initial=np.inf), physics.patchiness)
        self.most = physics.dust * _log_normal(self.clouds.max(1, initial=-np.inf), physics.patchiness)
        self.greatest = _log_normal(self.clumps.max(1, initial=-np.inf), physics.clustering)
        self.majorants = {number: self._majorant(system) for number, system in enumerate(physics.systems)}
        self.systems = [number for number, density in self.majorants.items() if density.max(initial=0.0) > _FEWEST]

    def _majorant(self, system: System) -> NDArray[np.float64]:
        """Most members that a cell may hold, of any luminosity."""
        total = 10 ** (-0.4 * (system.absolute - luminosity_table(system.population, self.physics.tilt).light))
        radius = elliptical_radius(system, self.lon, self.lat) - CELL_REACH / system.axis_ratio
        density = total * surface_density(system, np.maximum(radius, 0.0))
        return density * (CELL_AREA / SQUARE_DEGREE) * self.physics.density

    def reached(self, bright: float, faint: float) -> NDArray[np.intp]:
        """Cells in which a star of the Milky Way between two limits in g, beyond the catalogue, may be seen."""
        limits = self.dust, self.least, self.most, bright, faint
        return np.flatnonzero(draws.reachable(self.lines, *limits, self.laws[1], self._sight(0)))

    def field_stars(
        self, bright: float, faint: float, layer: int | None = None, near: NDArray[np.intp] | slice = _EVERY
    ) -> Stars:
        """Stars of the Milky Way between two limits in g; of a layer those that are bright enough."""
        cumulative, edges, _, density = self.laws
        sight = self._sight(layer)
        limits = (self.dust[near], self.least[near], self.most[near], bright, faint, cumulative, edges)
        cells, clumps = self.cells[near], self.clumps[near]
        running = draws.expected(self.lines[near], *limits, density)
        means = running[:, -1] * CELL_AREA * self.physics.density * self.greatest[near]
        purpose = (_STARS,) if layer is None else (_FAINT, layer)
        key, kind = make_key(self.seed, *purpose), 0 if layer is None else 16 + layer
        count = draws.numbers(cells, key, means)
        position, ident, cell, *rest = draws.draw(cells, count, key, np.uint64(kind), running, sight, *limits)
        stars = self._finish(position, ident, np.arange(len(self.cells))[near][cell], *rest)
        keep = self._wanted(stars, bright, faint, layer)
        if self.physics.clustering > 0:
            key = make_key(self.seed, _CLUMPS, *purpose)
            keep &= draws.stays(position, ident, cell, clumps, key, self.physics.clustering)
        return stars.pick(keep)

    def _sight(self, layer: int | None) -> tuple[NDArray, NDArray, float, float, float, float]:
        """What is bright enough, see `cells.draw`."""
        k, magnitudes = COLUMNS.index(self.band), self.laws[2]
        offset = np.ascontiguousarray(magnitudes[:, :, k] - magnitudes[:, :, _G])
        brightest = np.ascontiguousarray(np.minimum.accumulate(magnitudes[:, ::-1, k], axis=1)[:, ::-1])
        limit = np.inf if layer is None else self.physics.limit
        return offset, brightest, EXTINCTION[self.band], float(SCATTER[k]), float(self.depth), float(limit)

    def _wanted(self, stars: Stars, bright: float, faint: float, layer: int | None) -> NDArray[np.bool_]:
        keep = (stars.g < faint) & (stars.g >= max(bright, BRIGHTEST))
        return keep if layer is None else keep & ((stars.g < self.physics.limit) | (stars.mag < self.depth))

    def system_stars(self, number: int, bright: float, faint: float, layer: int | None = None) -> Stars:
        """Members of one of the systems; drawn where a cell is densest, and kept by the density at their place."""
        cumulative, edges, magnitudes, _ = self.laws
        system = self.physics.systems[number]
        p, physics = system.population, self.physics
        majorant = self.majorants[number]
        limits = self._member_limits(
            system, bright, faint if physics.members else min(faint, system.bright_limit + 1.2)
        )
        lowest, highest = (np.interp(limit, edges[p], cumulative[p]) for limit in limits)
        among = np.maximum(highest - lowest, 0.0)
        means = majorant * among
        sight, shaded = self._sight(layer), self.least * self.dust[:, self._step(system.modulus - 4 * system.depth)]
        seen = means > _FEWEST
        if layer is not None and bright >= physics.limit:
            rows = np.clip(np.searchsorted(edges[p], limits[0]) - 1, 0, sight[1].shape[1] - 1)
            faded = system.modulus - 9 * system.depth + sight[2] * shaded - 9 * abs(sight[3])
            seen &= sight[1][p, rows] + faded < self.depth
        near = np.flatnonzero(seen)
        key = make_key(self.seed, _SYSTEM, zlib.crc32(system.name.encode()), 0 if layer is None else 1 + layer)
        chosen = self.cells[near]
        count = draws.numbers(chosen, key, means[near])
        kind = np.uint64(16 * (2 + number) if layer is None else 16 * (34 + number) + layer)
        low, high = (limit[near] for limit in limits)
        members = draw_members(
            chosen, count, key, kind, low, high, cumulative[p], edges[p], sight[0][p], sight, system.modulus,
            system.depth, shaded[near],
        )  # fmt: skip
        position, ident, cell, row, m_g, depth, colour, chance = members
        modulus = system.modulus + system.depth * depth
        population = np.full(len(row), p, np.int64)
        cell = near[cell]
        stars = self._finish(position, ident, cell, population, row, modulus, m_g, colour)
        total = 10 ** (-0.4 * (system.absolute - luminosity_table(p, physics.tilt).light))
        density = total * surface_density(system, elliptical_radius(system, stars.ra, stars.dec))
        density *= (CELL_AREA / SQUARE_DEGREE) * physics.density
        keep = (chance * majorant[cell] < density) & self._wanted(stars, bright, faint, layer)
        if not physics.members:
            visual = magnitudes[p, row, -1] - magnitudes[p, row, _G] + m_g + modulus + stars.extinction
            keep &= visual < system.bright_limit
        return stars.pick(keep)

    def _member_limits(self, system: System, bright: float, faint: float) -> tuple[NDArray, NDArray]:
        """Limits in M_g of each cell that hold all members between two limits in g, wherever they are in it."""

        def shade(modulus: float, up: int) -> NDArray:
            return EXTINCTION["g"] * self.dust[:, self._step(modulus, up)]

        near, far = system.modulus - 4 * system.depth, system.modulus + 4 * system.depth
        return bright - far - self.most * shade(far, 1), faint - near - self.least * shade(near, 0)

    @staticmethod
    def _step(modulus: float, up: int = 0) -> int:
        return int(np.clip((modulus - MODULUS[0]) / MODULUS_STEP + up, 0, len(MODULUS) - 1))

    def _finish(self, position, ident, cell, population, row, modulus, m_g, colour):
        """Stars with places, dust and magnitudes."""
        magnitudes, physics = self.laws[2], self.physics
        ra, dec = nested.healpix_to_lonlat(position, np.uint8(29), num_threads=1)
        a_v = draws.extinction(position, cell, modulus, self.dust, self.clouds, physics.patchiness, physics.dust)
        g = m_g + modulus + EXTINCTION["g"] * a_v
        k = COLUMNS.index(self.band)
        mag = (
            g
            + (magnitudes[population, row, k] - magnitudes[population, row, _G])
            + (EXTINCTION[self.band] - EXTINCTION["g"]) * a_v
            + SCATTER[k] * colour
        )
        absolute = magnitudes[population, row, -1]
        return Stars(ident, ra, dec, mag, g, modulus, a_v, absolute, population.astype(np.uint8))


def cloudiness(ra: float, dec: float, seed: int, physics: SkyPhysics) -> float:
    """Dust in front of a place, against the smooth law."""
    x, y, z = unit_vectors(ra, dec)
    field = np.array([structure(make_key(seed, _DUST), float(x), float(y), float(z))])
    return float(_log_normal(field, physics.patchiness)[0])


def extinction_beyond(
    ra: NDArray[np.float64], dec: NDArray[np.float64], seed: int, physics: SkyPhysics
) -> NDArray[np.float64]:
    """A_V of all the dust of the Milky Way in front of places, mag.

    Parameters
    ----------
    ra, dec : (n,) float64 array
        deg ICRS
    seed : int
    physics : SkyPhysics

    Returns
    -------
    (n,) float64 array
    """
    position = nested.lonlat_to_healpix(ra, dec, np.uint8(29), num_threads=1)
    cells, cell = np.unique(position >> np.uint64(draws.POSITION_BITS), return_inverse=True)
    lon, lat = nested.healpix_to_lonlat(cells, np.uint8(CELL_ORDER), num_threads=1)
    _, dust = _sight_lines(lon, lat, physics)
    clouds = draws.corner_fields(_corners(cells), make_key(seed, _DUST))
    far = np.full(len(position), MODULUS[-1])
    return draws.extinction(position, cell, far, dust, clouds, physics.patchiness, physics.dust)


def star_counts(
    l: float,
    b: float,
    band: str,
    limits: ArrayLike,
    physics: SkyPhysics | None = None,
) -> NDArray[np.float64]:
    """Expected stars of the smooth model brighter than some limits, dust included, systems left out.

    Parameters
    ----------
    l, b : float
        Galactic, deg.
    band : str
        One of `csst_dask.simulation.population.COLUMNS`.
    limits : (n,) array
        mag
    physics : SkyPhysics, optional

    Returns
    -------
    (n,) float64 array
        Per square degree.
    """
    physics, limits = physics or SkyPhysics(), np.asarray(limits, np.float64)
    galactic = unit_vectors(np.array([l]), np.array([b]))
    lines, dust = draws.sight_lines(galactic, np.eye(3), physics.halo, bar_density())
    tables = [luminosity_table(c, physics.tilt) for c in range(4)]
    k = COLUMNS.index(band)
    out = np.zeros(len(limits))
    for c, table in enumerate(tables):
        order = np.argsort(table.magnitudes[:, k])
        among_all = np.diff(table.cumulative)[order]
        cumulative = np.cumsum(among_all) - 0.5 * among_all
        for n, limit in enumerate(limits):
            faint = limit - MODULUS - EXTINCTION[band] * physics.dust * dust[0]
            among = np.interp(faint, table.magnitudes[order, k], cumulative, left=0.0)
            out[n] += (lines[0, c] * among).sum() * (table.density if c < 3 else 1.0)
    return out * physics.density * SQUARE_DEGREE
