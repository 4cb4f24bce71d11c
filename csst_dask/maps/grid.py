"""The sky grid of every map: HEALPix cells in NESTED order on the ICRS sphere.

HEALPix: Gorski et al. 2005, ApJ 622, 759. Geometry comes from `healpix_geo`, always on the sphere. Attribute
names follow xdggs (on ``cell_ids``), CF 1.13 (``crs``) and version 1 of the Zarr ``dggs`` convention (on the
group); none of the three names a celestial frame, so ``coordinate_frame`` is added to the group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from healpix_geo import nested
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ConfigError
from csst_dask.instrument.focal_plane import unit_vectors

FULL_SKY = 360.0**2 / np.pi
"""Area of the sphere, deg2."""

FINEST_NSIDE = 65536
"""Cell edges are sampled at the corners of cells this fine; chords then stray less than 10 microarcsec."""

DGGS_CONVENTION = {
    "uuid": "7b255807-140c-42ca-97f6-7a1cfecdbc38",
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/dggs/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/dggs/blob/v1/README.md",
    "name": "dggs",
    "description": "Discrete Global Grid Systems convention for zarr",
}
"""How a Zarr group declares that it follows the ``dggs`` convention."""


@dataclass(frozen=True)
class HealpixGrid:
    """A HEALPix grid: NESTED order, ICRS, longitude is right ascension.

    Parameters
    ----------
    nside : int
        Cells along a side of a base cell: a power of two from 1 to 65536.

    Raises
    ------
    ConfigError
        If ``nside`` is something else.
    """

    nside: int

    def __post_init__(self) -> None:
        nside = self.nside
        if not isinstance(nside, int | np.integer) or not 1 <= nside <= FINEST_NSIDE or nside & (nside - 1):
            raise ConfigError(f"nside must be a power of two from 1 to {FINEST_NSIDE}, found {nside!r}")
        object.__setattr__(self, "nside", int(nside))

    @property
    def depth(self) -> int:
        """Refinement level: log2 of nside."""
        return self.nside.bit_length() - 1

    @property
    def n_cells(self) -> int:
        """Cells of the whole sphere."""
        return 12 * self.nside**2

    @property
    def cell_area(self) -> float:
        """Area of every cell, deg2."""
        return FULL_SKY / self.n_cells

    @property
    def edge_step(self) -> int:
        """Pieces into which `boundary` cuts an edge, such that all grids share one set of points."""
        return FINEST_NSIDE // self.nside

    def attrs(self) -> dict[str, Any]:
        """Attributes of the ``cell_ids`` coordinate, as xdggs reads them (it refuses others beside them)."""
        return {"grid_name": "healpix", "level": self.depth, "indexing_scheme": "nested"}

    def crs_attrs(self) -> dict[str, Any]:
        """Attributes of the CF grid mapping variable ``crs``."""
        return {
            "grid_mapping_name": "healpix",
            "refinement_level": self.depth,
            "indexing_scheme": "nested",
        }

    def group_attrs(self, dimension: str = "cells", coordinate: str = "cell_ids") -> dict[str, Any]:
        """Attributes of the group: the Zarr ``dggs`` convention, on a unit sphere, and the celestial frame."""
        return {
            "Conventions": "CF-1.13",
            "coordinate_frame": "icrs",
            "zarr_conventions": [dict(DGGS_CONVENTION)],
            "dggs": {
                "name": "healpix",
                "refinement_level": self.depth,
                "indexing_scheme": "nested",
                "ellipsoid": {"name": "sphere", "radius": 1.0},
                "spatial_dimension": dimension,
                "coordinate": coordinate,
                "compression": "none",
            },
        }

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> HealpixGrid:
        """Grid that `attrs` describes.

        Parameters
        ----------
        attrs : mapping
            Attributes of a ``cell_ids`` coordinate.

        Returns
        -------
        HealpixGrid

        Raises
        ------
        ConfigError
            If they do not describe a NESTED HEALPix grid of one level.
        """
        name, scheme, level = (attrs.get(key) for key in ("grid_name", "indexing_scheme", "level"))
        if name != "healpix" or scheme != "nested" or level is None:
            raise ConfigError(
                "expected grid_name 'healpix', indexing_scheme 'nested' and a level on cell_ids, "
                f"found {name!r}, {scheme!r} and {level!r}; reorder the map to NESTED"
            )
        return cls(1 << int(level))

    def cells_at(self, lon: ArrayLike, lat: ArrayLike) -> NDArray[np.int64]:
        """Cell of each position.

        Parameters
        ----------
        lon, lat : array_like of float
            Right ascension and declination, deg ICRS; broadcast against each other.

        Returns
        -------
        int64 array
            NESTED indices, in the broadcast shape.
        """
        lon, lat = np.broadcast_arrays(np.asarray(lon, np.float64), np.asarray(lat, np.float64))
        cells = nested.lonlat_to_healpix(lon.ravel() % 360.0, lat.ravel(), self.depth, num_threads=1)
        return cells.astype(np.int64).reshape(lon.shape)

    def centres(self, cells: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Right ascension and declination (deg) of the centres of NESTED ``cells``."""
        lon, lat = nested.healpix_to_lonlat(_unsigned(cells), self.depth, num_threads=1)
        return lon, lat

    def boundary(self, cells: ArrayLike, step: int) -> NDArray[np.float64]:
        """Points along the true edges of cells.

        Parameters
        ----------
        cells : (n,) array_like of int
            NESTED indices.
        step : int
            Points per edge; neighbouring cells share the points of their common edge to rounding.

        Returns
        -------
        (n, 4 * step, 3) float64 array
            Unit vectors, counter-clockwise as seen from outside, from the southern corner.
        """
        lon, lat = nested.vertices(_unsigned(cells), self.depth, step=int(step), num_threads=1)
        return unit_vectors(lon, lat)

    def candidates(self, lon: float, lat: float, radius: float) -> NDArray[np.int64]:
        """Sorted cells that may touch a cone about (``lon``, ``lat``), all in deg; none is missed."""
        cells, _, _ = nested.cone_coverage((lon % 360.0, lat), radius, self.depth)
        return np.sort(cells.astype(np.int64))

    def parents(self, cells: ArrayLike, nside: int) -> NDArray[np.int64]:
        """Cells of a coarser grid that hold ``cells``.

        Parameters
        ----------
        cells : array_like of int
            NESTED indices of this grid.
        nside : int
            The coarser (or same) resolution.

        Returns
        -------
        int64 array

        Raises
        ------
        ConfigError
            If ``nside`` is finer than this grid's.
        """
        coarse = HealpixGrid(nside)
        if coarse.depth > self.depth:
            raise ConfigError(f"nside {self.nside} cannot be refined to {nside}; choose a smaller one")
        return np.asarray(cells, np.int64) >> (2 * (self.depth - coarse.depth))


def _unsigned(cells: ArrayLike) -> NDArray[np.uint64]:
    return np.atleast_1d(np.asarray(cells)).astype(np.uint64)
