"""What is on the sky: the stars and galaxies of a place, as columns."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

CELL_ORDER = 12
"""HEALPix order (NESTED, ICRS) of the sky cells that objects are drawn in: 0.86 arcmin on a side."""


@dataclass(frozen=True)
class Objects:
    """Objects on the sky; all columns have one length."""

    id: NDArray[np.uint64]
    """Sky cell times 2**32, plus the kind of object times 2**26, plus its number in the cell: the same in every
    exposure. Kinds are 0 for field stars, from 2 for members of each stellar system, 32 for galaxies; beyond g = 26.5
    1 and from 34, and there the layer of g times 2**22 is added."""
    ra: NDArray[np.float64]
    """deg ICRS"""
    dec: NDArray[np.float64]
    mag: NDArray[np.float64]
    """AB mag in the band that was asked for."""

    def __len__(self) -> int:
        return len(self.ra)

    def pick(self, chosen: NDArray) -> Self:
        """The objects that an index or a boolean mask names."""
        return replace(self, **{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


@dataclass(frozen=True)
class Stars(Objects):
    """Stars."""

    g: NDArray[np.float64]
    """AB mag in g, dust included: `csst_dask.schema.STAR_LIMIT` applies to it."""
    distance_modulus: NDArray[np.float64]
    extinction: NDArray[np.float64]
    """A_V, mag."""
    absolute: NDArray[np.float64]
    """Absolute magnitude in V."""
    population: NDArray[np.uint8]
    """Number in `csst_dask.simulation.population.POPULATIONS`."""


@dataclass(frozen=True)
class Galaxies(Objects):
    """Galaxies: an exponential disc (Sersic n = 1) and a bulge (n = 4) with one centre, shape and orientation."""

    radius: NDArray[np.float64]
    """Half-light radius of the disc along the major axis, arcsec."""
    bulge_radius: NDArray[np.float64]
    """Half-light radius of the bulge along the major axis, arcsec."""
    bulge_fraction: NDArray[np.float64]
    """Share of the light in the bulge, 0 to 1; 1 is an elliptical."""
    axis_ratio: NDArray[np.float64]
    """Minor over major axis."""
    position_angle: NDArray[np.float64]
    """Of the major axis, deg from north through east."""
    redshift: NDArray[np.float64]
