"""The chips of a store that are done and have truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from csst_dask.errors import ConfigError
from csst_dask.evaluation.judged import FLOATS, Judged
from csst_dask.instrument.focal_plane import unit_vectors
from csst_dask.store import SurveyStore


@dataclass(frozen=True, eq=False)
class Truth:
    """Some chips of a store that are done and have truth."""

    store: SurveyStore
    scalars: xr.Dataset
    """Per-chip variables of the whole store."""
    rows: NDArray[np.int64]
    """Rows of the store, sorted."""

    @classmethod
    def open(cls, store: str) -> Truth:
        """All such chips.

        Parameters
        ----------
        store : str
            Survey store.

        Returns
        -------
        Truth

        Raises
        ------
        ConfigError
            If there is none.
        """
        opened = SurveyStore.read(store)
        scalars = opened.scalars()
        good = (scalars["status"].values == "done") & (scalars["n_star"].values >= 0)
        if not good.any():
            raise ConfigError(f"{store} has no chip that is done and has truth; give one that was made with truth")
        return cls(opened, scalars, np.flatnonzero(good))

    @property
    def path(self) -> str:
        """Where the store is."""
        return self.store.location

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> NDArray:
        """One variable of these chips."""
        return self.scalars[name].values[self.rows]

    def take(self, places: ArrayLike) -> Truth:
        """Some of these chips, by place or as a bool array."""
        return Truth(self.store, self.scalars, self.rows[np.asarray(places)])

    @property
    def keeps_pixels(self) -> bool:
        """Whether the store holds the frames that the maps were made from."""
        return "image" in self.store.arrays

    def near(self, ra: ArrayLike, dec: ArrayLike, separation: float) -> NDArray[np.bool_]:
        """Chips within some angle of any of some positions.

        Parameters
        ----------
        ra, dec : (m,) array_like
            deg ICRS.
        separation : float
            deg.

        Returns
        -------
        (n,) bool array
        """
        if not np.size(ra):
            return np.zeros(len(self), bool)
        places = unit_vectors(np.asarray(ra, np.float64), np.asarray(dec, np.float64))
        own = unit_vectors(self.column("ra"), self.column("dec"))
        chord = 2 * np.sin(np.radians(min(separation, 180.0)) / 2)
        return cKDTree(places).query(own)[0] <= chord

    def judge(self, found: Mapping[str, NDArray], routes: NDArray | None = None) -> Judged:
        """These chips beside the predictions of a method, as far as it gives what `Judged` holds."""
        wanted = [name for name in ("density_class", "class_probability", *FLOATS) if name in found]
        return Judged.build(
            band=self.column("band"), field=self.column("field"), n_star=self.column("n_star"),
            n_bright=self.column("n_bright"), route=routes, **{name: found[name] for name in wanted},
        )  # fmt: skip

    def apart_from(self, others: Truth, separation: float) -> Truth:
        """Those that lie farther than some angle (deg) from all others."""
        return self.take(~self.near(others.column("ra"), others.column("dec"), separation))
