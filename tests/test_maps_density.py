from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import xarray as xr

from csst_dask.errors import ChipRejected, ConfigError
from csst_dask.maps.chips import MapChips
from csst_dask.maps.coverage import detector_area
from csst_dask.maps.dataset import add_maps, degrade, footprint_area, from_dataset, grid_of, to_dataset
from csst_dask.maps.density import AREAS, ChipForMap, accumulate, chip_sums, degrade_sums, empty_sums, merge
from csst_dask.maps.grid import HealpixGrid
from csst_dask.schema import BANDS

GRID = HealpixGrid(512)


def a_chip(ra=150.0, dec=2.0, band="g", count=700.0, side=0.19, **changes):
    """A chip that is square on a cylinder; its edges are great circles all the same."""
    x = side / 2 / np.cos(np.radians(dec)) * np.array([-1, 1, 1, -1])
    chip = ChipForMap(
        band=band,
        corner_ra=(ra + x) % 360,
        corner_dec=dec + side / 2 * np.array([-1, -1, 1, 1]),
        valid=np.ones((224, 224), np.float32),
        bright_count=count,
        bright_lower=0.8 * count,
        bright_upper=1.3 * count,
        density_class=3,
        crowded=False,
    )
    return replace(chip, **changes)


def keys(start=0, stop=15):
    return MapChips([f"{10_100_000_000 + k}" for k in range(start, stop)], [7] * (stop - start), [0] * (stop - start))


def as_map(sums, attrs=None, listed=None):
    return to_dataset(sums, HealpixGrid(sums.nside), attrs or {}, keys() if listed is None else listed)


@pytest.fixture(scope="module")
def chips():
    rng = np.random.default_rng(0)
    return [
        a_chip(
            ra=(359.9 + rng.uniform(-0.4, 0.4)) % 360,
            dec=40 + rng.uniform(-0.4, 0.4),
            band=("y", "g", "NUV")[k % 3],
            count=np.nan if k % 5 == 4 else rng.uniform(10, 5000),
            valid=rng.random((224, 224)).astype(np.float32) ** 3,
            density_class=int(rng.integers(0, 6)),
            crowded=k % 5 == 4,
            review=k % 4 == 1,
        )
        for k in range(15)
    ]


@pytest.fixture(scope="module")
def parts(chips):
    return [chip_sums(chip, GRID) for chip in chips]


def assert_same(a, b, rtol=1e-12):
    assert a.nside == b.nside
    for name in ("band", "cell", "n_visits"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    for name in (*AREAS, "class_area"):
        assert np.allclose(getattr(a, name), getattr(b, name), rtol=rtol, atol=0), name


def test_addition_is_associative_and_commutative(parts):
    a, b, c = (accumulate(parts[k::3]) for k in range(3))
    assert_same(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert_same(merge(a, b), merge(b, a))
    assert_same(merge(a, empty_sums(GRID.nside)), a, rtol=0)


def test_partial_maps_add_up_to_the_whole(parts):
    whole = accumulate(parts)
    assert_same(merge(accumulate(parts[:4]), accumulate(parts[4:])), whole)
    assert np.all(np.diff(whole.band * GRID.n_cells + whole.cell) > 0)


def test_going_on_from_a_checkpoint_gives_the_same_bits(parts):
    assert_same(accumulate(parts[6:], start=accumulate(parts[:6])), accumulate(parts), rtol=0)


def test_sums_of_different_resolution_do_not_add(parts):
    with pytest.raises(ConfigError, match="nside"):
        merge(parts[0], chip_sums(a_chip(), HealpixGrid(64)))


def test_visited_area_is_that_of_the_valid_pixels(chips, parts):
    ds = as_map(accumulate(parts))
    expected = sum(detector_area(c.corner_ra, c.corner_dec) * c.valid.mean(dtype=float) for c in chips)
    assert float(ds["visit_area"].sum()) == pytest.approx(expected, rel=1e-12)
    assert np.allclose(ds["class_area"].sum("density_level") + ds["review_area"], ds["visit_area"], rtol=1e-12)


def test_stars_of_fully_valid_chips_are_all_on_the_map():
    chips = [a_chip(ra=10 + 0.05 * k, count=100.0 * k) for k in range(1, 4)]
    sums = accumulate([chip_sums(chip, GRID) for chip in chips])
    assert sums.bright_sum.sum() == pytest.approx(600, rel=1e-12)


def test_one_count_on_every_chip_gives_one_density():
    rng = np.random.default_rng(1)
    chips = [
        a_chip(
            ra=200 + rng.uniform(-0.3, 0.3),
            dec=0.0,
            count=321.0,
            valid=rng.random((224, 224)).astype(np.float32),
        )
        for _ in range(6)
    ]
    ds = as_map(accumulate([chip_sums(chip, GRID) for chip in chips]))
    whole = detector_area(chips[0].corner_ra, chips[0].corner_dec)
    assert np.allclose(ds["bright_star_density"], 321 / whole, rtol=1e-12)
    sigma = 321 * 0.5 / (2 * NormalDist().inv_cdf(0.95))
    assert np.allclose(ds["bright_star_density_error"], sigma / whole, rtol=1e-12)


def test_a_narrower_level_means_a_larger_error():
    wide, narrow = (chip_sums(a_chip(level=level), GRID).bright_err_sum.sum() for level in (0.6827, 0.9))
    assert wide / narrow == pytest.approx(NormalDist().inv_cdf(0.95) / 1.0, rel=1e-4)


def test_a_bypassed_chip_counts_as_crowded_area_only():
    crowded = a_chip(count=np.nan, density_class=5, crowded=True)
    alone = as_map(chip_sums(crowded, GRID))
    assert np.isnan(alone["bright_star_density"]).all()
    assert (alone["crowded_fraction"] == 1).all()
    assert (alone["density_class"] == 5).all()
    both = as_map(merge(chip_sums(crowded, GRID), chip_sums(a_chip(), GRID)))
    assert np.allclose(both["crowded_fraction"], 0.5)
    assert np.allclose(both["bright_star_density"], as_map(chip_sums(a_chip(), GRID))["bright_star_density"])


def test_the_class_with_the_largest_area_wins():
    chips = [
        a_chip(density_class=2),
        a_chip(density_class=4),
        a_chip(density_class=4),
        a_chip(density_class=1),
    ]
    sums = [chip_sums(chip, GRID) for chip in chips]
    assert (as_map(accumulate(sums))["density_class"] == 4).all()
    assert (as_map(accumulate(sums[:2]))["density_class"] == 2).all()  # a tie: the lower one


VISITS = ("visit_area", "n_visits", "review_area")
"""What chips under review may change."""


def test_chips_under_review_change_nothing_but_visits(chips, parts):
    reviewed = np.array([chip.review for chip in chips])
    assert 0 < reviewed.sum() < len(chips)
    without = as_map(accumulate(part for part, review in zip(parts, reviewed, strict=True) if not review))
    ds = as_map(accumulate(parts))
    there = ds.isel(cells=np.isin(ds["cell_ids"], without["cell_ids"])).sel(band=without["band"])
    xr.testing.assert_identical(there.drop_vars(VISITS), without.drop_vars(VISITS))
    review = as_map(accumulate(part for part, review in zip(parts, reviewed, strict=True) if review))
    for name in ("visit_area", "n_visits"):
        added = from_dataset(without), from_dataset(review)
        assert sum(getattr(sums, name).sum() for sums in added) == pytest.approx(float(ds[name].sum()), rel=1e-12)
    assert np.array_equal(review["review_area"], review["visit_area"])
    assert float(ds["review_area"].sum()) == pytest.approx(float(review["visit_area"].sum()), rel=1e-12)


def test_three_chips_under_review_cannot_change_a_density():
    good = chip_sums(a_chip(), GRID)
    wrong = [chip_sums(a_chip(count=1e6, density_class=4, review=True), GRID) for _ in range(3)]
    alone, among = as_map(good), as_map(accumulate([wrong[0], good, *wrong[1:]]))
    xr.testing.assert_identical(among.drop_vars(VISITS), alone.drop_vars(VISITS))
    assert (among["n_visits"] == 4).all()
    assert np.allclose(among["review_area"], 3 * alone["visit_area"])


def test_what_only_chips_under_review_saw_is_seen_and_has_no_value():
    ds = as_map(chip_sums(a_chip(count=np.nan, density_class=-1, crowded=True, review=True), GRID))
    assert footprint_area(ds) > 0
    assert (ds["density_class"] == -1).all()
    for name in ("bright_star_density", "bright_star_density_error", "crowded_fraction"):
        assert np.isnan(ds[name]).all(), name
    for name in ("class_area", "crowded_area", "bright_area", "bright_sum", "bright_err_sum"):
        assert (ds[name] == 0).all(), name


def test_crowded_fraction_is_of_the_area_that_is_not_under_review(parts):
    ds = as_map(accumulate(parts))
    trusted = ds["visit_area"] - ds["review_area"]
    assert ((ds["crowded_fraction"] > 0) & (ds["review_area"] > 0)).any()
    assert np.array_equal(np.isfinite(ds["crowded_fraction"]), trusted > 0)
    assert np.allclose((ds["crowded_fraction"] * trusted).fillna(0), ds["crowded_area"], rtol=1e-9, atol=1e-15)


def test_masked_cells_are_not_seen():
    valid = np.ones((224, 224), np.float32)
    valid[:, :112] = 0
    grid = HealpixGrid(4096)
    masked, whole = (chip_sums(a_chip(valid=v), grid) for v in (valid, np.ones_like(valid)))
    assert 0.4 < masked.cell.size / whole.cell.size < 0.6
    assert masked.visit_area.min() > 0


@pytest.mark.parametrize("nside", [512, 128, 16, 1])
def test_degrading_equals_building_coarser(chips, parts, nside):
    coarse = degrade_sums(accumulate(parts), nside)
    built = accumulate([chip_sums(chip, HealpixGrid(nside)) for chip in chips])
    for name in ("band", "cell"):
        assert np.array_equal(getattr(coarse, name), getattr(built, name))
    for name in (*AREAS, "class_area"):
        assert np.allclose(getattr(coarse, name), getattr(built, name), rtol=1e-11, atol=1e-16), name
    assert np.all(coarse.n_visits <= built.n_visits)


def test_degraded_chip_number_is_the_largest_of_the_children(parts):
    whole = accumulate(parts)
    coarse = degrade_sums(whole, 64)
    parents = whole.cell >> 6
    for band, cell, n in zip(coarse.band, coarse.cell, coarse.n_visits, strict=True):
        assert n == whole.n_visits[(whole.band == band) & (parents == cell)].max()


def test_a_map_is_never_refined(parts):
    with pytest.raises(ConfigError, match="cannot be refined"):
        degrade_sums(parts[0], 1024)


def test_dataset_round_trip(parts):
    sums = accumulate(parts)
    ds = as_map(sums, {"weights": "sha256:0"})
    assert_same(from_dataset(ds), sums, rtol=0)
    assert_same(from_dataset(ds.isel(cells=slice(None, None, -1), band=[2, 0, 1])), sums, rtol=0)
    for name in ds["band"].values:
        one, own = from_dataset(ds.sel(band=name)), sums.band == BANDS.index(name)
        assert np.array_equal(one.cell, sums.cell[own])
        assert np.array_equal(one.bright_sum, sums.bright_sum[own])
    assert ds.attrs["weights"] == "sha256:0"


def test_dataset_layout(parts):
    ds = as_map(accumulate(parts))
    assert list(ds["band"].values) == ["NUV", "g", "y"]
    assert ds["visit_area"].dims == ("band", "cells")
    assert np.all(np.diff(ds["cell_ids"]) > 0)
    assert grid_of(ds) == GRID
    assert ds["cell_ids"].attrs == {"grid_name": "healpix", "level": 9, "indexing_scheme": "nested"}
    assert ds["crs"].attrs["grid_mapping_name"] == "healpix"
    assert ds.attrs["coordinate_frame"] == "icrs"
    assert ds.attrs["zarr_conventions"][0]["name"] == "dggs"
    assert ds.attrs["dggs"]["coordinate"] in ds.coords
    for name, variable in ds.data_vars.items():
        assert variable.attrs["units"], name
        assert variable.attrs["grid_mapping"] == "crs"
    flags = ds["density_class"].attrs
    assert len(flags["flag_values"]) == len(flags["flag_meanings"].split())
    unseen = ds["n_visits"] == 0
    assert unseen.any()
    assert np.isnan(ds["bright_star_density"].where(unseen)).all()
    assert (ds["density_class"].values[unseen.values] == -1).all()


def test_footprint_counts_a_cell_once(parts):
    ds = as_map(accumulate(parts))
    assert footprint_area(ds) == pytest.approx(ds.sizes["cells"] * GRID.cell_area)
    again = as_map(accumulate(parts), listed=keys(15, 30))
    assert footprint_area(add_maps(ds, again)) == footprint_area(ds)


def test_a_new_night_is_one_addition(parts):
    first = as_map(accumulate(parts[:7]), {"night": "1"}, keys(0, 7))
    second = as_map(accumulate(parts[7:]), {"night": "2"}, keys(7))
    both = add_maps(first, second)
    xr.testing.assert_allclose(both.drop_attrs(), as_map(accumulate(parts)).drop_attrs(), rtol=1e-12)
    assert both.attrs["night"] == ["1", "2"]
    assert both.attrs["dggs"] == first.attrs["dggs"]


def test_degrading_a_map_commutes_with_adding(parts):
    a, b = as_map(accumulate(parts[:7]), {}, keys(0, 7)), as_map(accumulate(parts[7:]), {}, keys(7))
    one, other = degrade(add_maps(a, b), 64), add_maps(degrade(a, 64), degrade(b, 64))
    xr.testing.assert_allclose(one.drop_vars("n_visits"), other.drop_vars("n_visits"), rtol=1e-12)


def test_no_chips_make_an_empty_map():
    ds = as_map(empty_sums(64), listed=keys(0, 0))
    assert dict(ds.sizes) == {"band": 0, "cells": 0, "density_level": 6, "exposure": 0, "detector": 0}
    assert from_dataset(ds).cell.size == 0


@pytest.mark.parametrize(
    "change",
    [
        {"band": "K"},
        {"density_class": -1},
        {"density_class": 6},
        {"bright_lower": np.nan},
        {"bright_lower": 900.0, "bright_upper": 800.0},
        {"level": 1.0},
        {"corner_ra": np.full(4, np.nan)},
        {"review": True, "band": "K"},
        {"review": True, "corner_ra": np.full(4, np.nan)},
    ],
    ids=str,
)
def test_impossible_chips_are_rejected(change):
    with pytest.raises(ChipRejected, match=r"; "):
        chip_sums(a_chip(**change), GRID)


def test_other_datasets_are_refused(parts):
    ds = as_map(parts[0])
    for wrong in (
        ds.drop_vars("cell_ids"),
        ds.drop_vars("bright_sum"),
        ds.drop_vars("review_area"),
        ds.assign_attrs(coordinate_frame="galactic"),
        ds.assign_coords(band=["K"]),
    ):
        with pytest.raises(ConfigError):
            from_dataset(wrong)
    with pytest.raises(ConfigError, match="nside"):
        to_dataset(parts[0], HealpixGrid(64), {}, keys(0, 1))


def test_bands_are_those_of_the_schema():
    sums = accumulate([chip_sums(a_chip(band=band, ra=5.0), HealpixGrid(64)) for band in reversed(BANDS)])
    assert tuple(as_map(sums, listed=keys(0, 7))["band"].values) == BANDS
