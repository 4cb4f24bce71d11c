"""Which chips are in a map: one exposure and detector is one look at the sky, and enters a map once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from csst_dask.errors import ConfigError

ID_LENGTH = 32
"""Characters of an observation's identifier at most."""

NO_CHIP = -1
"""Version where a map has no chip of an exposure and detector."""

_NAMES = ("chip_version", "exposure", "detector")
_SPAN = 1 << 16  # values of an int16


@dataclass(frozen=True, eq=False)
class MapChips:
    """Chips of a map, sorted by exposure and detector.

    Parameters
    ----------
    obs_id : (n,) array_like of str
        At most 32 characters each.
    detector : (n,) array_like of int
    version : (n,) array_like of int
        From 0. Of two versions of one exposure and detector the newer counts.

    Raises
    ------
    ConfigError
        If the lengths differ, or a value does not fit.
    """

    obs_id: NDArray[np.str_]
    """(n,) <U32."""
    detector: NDArray[np.int16]
    """(n,)"""
    version: NDArray[np.int16]
    """(n,)"""

    def __post_init__(self) -> None:
        obs_id = _texts(self.obs_id)
        detector, version = _small("detector", self.detector), _small("version", self.version)
        if not obs_id.shape == detector.shape == version.shape:
            raise ConfigError(
                f"chips of a map: found {obs_id.size} obs_id, {detector.size} detectors and {version.size} versions; "
                "expected one of each for every chip"
            )
        if not _rising(obs_id, detector):
            order = np.lexsort((version, detector, obs_id))
            obs_id, detector, version = obs_id[order], detector[order], version[order]
            newest = np.append((obs_id[1:] != obs_id[:-1]) | (detector[1:] != detector[:-1]), True)[: obs_id.size]
            obs_id, detector, version = obs_id[newest], detector[newest], version[newest]
        for name, values in (("obs_id", obs_id), ("detector", detector), ("version", version)):
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return self.obs_id.size

    def __getitem__(self, chosen: slice | NDArray) -> MapChips:
        """Some of the chips."""
        return MapChips(self.obs_id[chosen], self.detector[chosen], self.version[chosen])

    def union(self, other: MapChips) -> MapChips:
        """Chips of this map or the other."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("obs_id", "detector", "version"))
        return MapChips(*(np.concatenate(pair) for pair in pairs))

    def common(self, other: MapChips) -> MapChips:
        """Chips of this map whose exposure and detector are in the other as well, in whatever version."""
        (mine, row), (others, other_row) = self._exposures(), other._exposures()
        exposures = np.union1d(mine, others)
        looks = np.searchsorted(exposures, mine)[row] * _SPAN + self.detector
        return self[np.isin(looks, np.searchsorted(exposures, others)[other_row] * _SPAN + other.detector)]

    def digest(self) -> str:
        """SHA-256 of the chips, hexadecimal: equal for equal chips, whatever the order in which they were given."""
        sha = hashlib.sha256()
        for values, dtype in ((self.obs_id, f"<U{ID_LENGTH}"), (self.detector, "<i2"), (self.version, "<i2")):
            sha.update(np.ascontiguousarray(values, dtype).view(np.uint8).data)
        return sha.hexdigest()

    def variables(self) -> dict[str, xr.Variable]:
        """Coordinates of a map that say which chips are in it.

        Returns
        -------
        dict of str to xarray.Variable
            ``chip_version`` (exposure, detector) int16, -1 where there is no such chip, and the sorted ``exposure``
            (fixed-width text) and ``detector`` (int16).
        """
        exposures, row = self._exposures()
        detectors, column = np.unique(self.detector, return_inverse=True)
        version = np.full((exposures.size, detectors.size), NO_CHIP, np.int16)
        version[row, column] = self.version
        about = {"long_name": "version of the chip that is in the map, -1 where there is none", "units": "1"}
        return {
            "chip_version": xr.Variable(("exposure", "detector"), version, about),
            "exposure": xr.Variable("exposure", exposures, {"long_name": "observation identifier"}),
            "detector": xr.Variable("detector", detectors, {"long_name": "detector number", "units": "1"}),
        }

    def _exposures(self) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
        """Exposures, sorted, and which of them each chip is of."""
        first = np.append(True, self.obs_id[1:] != self.obs_id[:-1])[: len(self)]
        return self.obs_id[first], np.cumsum(first) - 1

    @classmethod
    def from_dataset(cls, ds: xr.Dataset) -> MapChips:
        """Chips of a density map.

        Parameters
        ----------
        ds : xarray.Dataset
            A map, or a selection of its bands and cells: its chips of other bands and cells stay listed.

        Returns
        -------
        MapChips

        Raises
        ------
        ConfigError
            If the map does not tell.
        """
        missing = [name for name in _NAMES if name not in ds.variables]
        if missing:
            raise ConfigError(
                f"the map does not tell which chips are in it: it lacks {', '.join(missing)}; make it again from its "
                "survey stores with this version of csst_dask"
            )
        version = ds["chip_version"].transpose("exposure", "detector").values
        row, column = np.nonzero(version > NO_CHIP)
        return cls(ds["exposure"].values[row], ds["detector"].values[column], version[row, column])


def _texts(values: ArrayLike) -> NDArray[np.str_]:
    texts = np.asarray(values)
    if texts.dtype.kind != "U":  # objects, or text of any length
        texts = texts.astype(object).astype(str)
    if texts.size and texts.dtype.itemsize > 4 * ID_LENGTH:
        lengths = np.strings.str_len(texts)
        if lengths.max() > ID_LENGTH:
            raise ConfigError(
                f"obs_id {str(texts[lengths.argmax()])!r} has {lengths.max()} characters; expected at most {ID_LENGTH}"
            )
    return texts.astype(f"<U{ID_LENGTH}", copy=False)


def _small(name: str, values: ArrayLike) -> NDArray[np.int16]:
    numbers = np.asarray(values, np.int64)
    low, high = (0, 0) if not numbers.size else (int(numbers.min()), int(numbers.max()))
    if low < 0 or high >= _SPAN // 2:
        raise ConfigError(f"chips of a map: {name} from {low} to {high} found, expected 0 to {_SPAN // 2 - 1}")
    return numbers.astype(np.int16)


def _rising(obs_id: NDArray[np.str_], detector: NDArray[np.int16]) -> bool:
    same = obs_id[1:] == obs_id[:-1]
    return bool(np.all((obs_id[1:] > obs_id[:-1]) | (same & (detector[1:] > detector[:-1]))))
