"""A map knows its chips: sets of them, their place in a dataset, and what may be added."""

import time
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.errors import ConfigError
from csst_dask.maps.chips import MapChips
from csst_dask.maps.dataset import add_maps, degrade, from_dataset, to_dataset
from csst_dask.maps.density import ChipForMap, chip_sums, empty_sums
from csst_dask.maps.grid import HealpixGrid

GRID = HealpixGrid(256)

LOOKS = st.tuples(st.sampled_from(["9", "10", "10100000001", "x" * 32]), st.sampled_from([1, 6, 7, 30]))
SETS = st.dictionaries(LOOKS, st.integers(0, 3)).flatmap(lambda found: st.permutations(list(found.items())))


def of(keys):
    keys = [(obs_id, detector, version) for (obs_id, detector), version in keys]
    return MapChips(*(list(column) for column in zip(*keys, strict=True))) if keys else MapChips([], [], [])


def listed(chips):
    return list(zip(chips.obs_id.tolist(), chips.detector.tolist(), chips.version.tolist(), strict=True))


def a_map(chips, ra=150.0, band="g", nside=256):
    corners = ra + np.array([-0.1, 0.1, 0.1, -0.1]), np.array([-0.1, -0.1, 0.1, 0.1])
    chip = ChipForMap(band, *corners, np.ones((4, 4), np.float32), 50.0, 45.0, 55.0, 1, False)
    return to_dataset(chip_sums(chip, HealpixGrid(nside)), HealpixGrid(nside), {"title": "a"}, chips)


@settings(deadline=None)
@given(SETS)
def test_a_dataset_keeps_the_chips_whatever_their_order(keys):
    chips = of(keys)
    assert listed(chips) == sorted((obs_id, detector, version) for (obs_id, detector), version in keys)
    assert (chips.obs_id.dtype, chips.detector.dtype, chips.version.dtype) == (np.dtype("<U32"), np.int16, np.int16)
    ds = to_dataset(empty_sums(64), HealpixGrid(64), {}, chips)
    assert ds["chip_version"].dims == ("exposure", "detector")
    assert int((ds["chip_version"] >= 0).sum()) == len(chips) == len(keys)
    for name in ("exposure", "detector"):
        assert np.array_equal(ds[name], np.unique(ds[name]))
    mixed = ds.isel(exposure=slice(None, None, -1), detector=slice(None, None, -1))
    for found in (MapChips.from_dataset(ds), MapChips.from_dataset(mixed), of(keys[::-1])):
        assert listed(found) == listed(chips)
        assert found.digest() == chips.digest()


@settings(deadline=None)
@given(SETS, SETS)
def test_sets_of_chips_are_sets_of_looks_at_the_sky(a, b):
    one, other, looks = of(a), of(b), {key for key, _ in a} & {key for key, _ in b}
    assert listed(one.common(other)) == sorted((*key, dict(a)[key]) for key in looks)
    both, newest = one.union(other), dict(a)
    for key, version in b:
        newest[key] = max(version, newest.get(key, version))
    assert listed(both) == listed(of(list(newest.items()))) == listed(other.union(one))
    assert (one.digest() == other.digest()) == (listed(one) == listed(other))


@pytest.mark.parametrize("dtype", ["U11", "U40", object, np.dtypes.StringDType(), np.int64], ids=str)
def test_any_kind_of_text_is_taken(dtype):
    obs_id = np.array(["10100000002", "10100000001"]).astype(dtype)
    assert MapChips(obs_id, [7, 7], [0, 0]).obs_id.tolist() == ["10100000001", "10100000002"]
    assert len(MapChips(obs_id[:0], [], [])) == 0


@pytest.mark.parametrize(
    "keys",
    [(["1"], [1, 2], [0]), (["1"], [-1], [0]), (["1"], [1], [-1]), (["1"], [1 << 15], [0]), (["1" * 33], [1], [0])],
    ids=str,
)
def test_what_is_no_chip_is_refused(keys):
    with pytest.raises(ConfigError, match="expected"):
        MapChips(*keys)


def test_chips_of_a_survey_are_cheap():
    exposures, detectors = 20_000, 18
    order = np.random.default_rng(0).permutation(exposures * detectors)
    obs_id = np.repeat(np.arange(10_100_000_000, 10_100_000_000 + exposures).astype(str), detectors)[order]
    start = time.monotonic()
    chips = MapChips(obs_id, np.tile(np.arange(6, 24), exposures)[order], np.zeros(order.size))
    found = MapChips.from_dataset(xr.Dataset(chips.variables()))
    assert found.digest() == chips.digest()
    assert len(found.common(chips)) == exposures * detectors
    assert time.monotonic() - start < 20, "seconds for a fifth of a survey; a loop over its chips takes minutes"


def test_a_chip_is_not_added_twice():
    first = a_map(of([(("10100000001", 7), 0), (("10100000001", 8), 1), (("10100000002", 7), 0)]))
    again = a_map(of([(("10100000001", 8), 2), (("10100000003", 7), 0)]), ra=151.0)
    before = [ds.copy(deep=True) for ds in (first, again)]
    with pytest.raises(ConfigError, match=r"1 of the 2 chips .*\(10100000001-08-V02\).*nothing was added.*"):
        add_maps(first, again)
    with pytest.raises(ConfigError, match="3 of the 3 chips"):
        add_maps(first, first)
    many = a_map(of([(("10100000001", detector), 0) for detector in range(1, 11)]))
    with pytest.raises(ConfigError, match=r"10 of the 10 .*-01, 10100000001-02, 10100000001-03, \.\.\.\)"):
        add_maps(many, many)
    for ds, was in zip((first, again), before, strict=True):
        xr.testing.assert_identical(ds, was)


def test_added_and_degraded_maps_list_their_chips():
    a, b = of([(("10100000001", 7), 0)]), of([(("10100000001", 8), 1), (("10100000002", 7), 0)])
    both = add_maps(a_map(a), a_map(b, ra=151.0, band="i"))
    for ds in (both, degrade(both, 64), both.sel(band=["i"]), both.sel(band="i"), both.isel(cells=slice(2))):
        assert listed(MapChips.from_dataset(ds)) == listed(a.union(b))
    one = from_dataset(both.sel(band=["i"]))
    assert np.array_equal(one.bright_sum, from_dataset(a_map(b, ra=151.0, band="i")).bright_sum)


def test_a_map_that_does_not_know_its_chips_is_refused():
    ds = a_map(of([(("10100000001", 7), 0)]))
    old = ds.drop_vars(["chip_version", "exposure", "detector"])
    for use in (MapChips.from_dataset, lambda ds: degrade(ds, 64), lambda ds: add_maps(ds, a_map(of([])))):
        with pytest.raises(ConfigError, match="make it again"):
            use(old)


def test_keys_cannot_be_changed():
    chips = of([(("10100000001", 7), 0)])
    assert len(replace(chips, version=[3])) == 1
    with pytest.raises(AttributeError):
        chips.version = np.zeros(1)
