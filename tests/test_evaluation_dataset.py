"""A data set's tables add up, its splits are splits, and its pictures show what they are given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csst_dask.evaluation import dataset, dataset_figures
from csst_dask.schema import BANDS, BRIGHT_LIMIT, CLASS_EDGES, N_CLASSES, density_class

COUNTS = st.lists(st.integers(0, 400_000), min_size=1, max_size=60)


def make_chips(n_star, bands=None, fields=None) -> dataset.Chips:
    """Chips with the given counts; a tenth of the stars is bright."""
    n = np.asarray(n_star, np.int64)
    field = np.array([f"f{k // 2}" for k in range(len(n))]) if fields is None else np.array(fields)
    band = np.array([BANDS[k % 7] for k in range(len(n))]) if bands is None else np.array(bands)
    return dataset.Chips(np.array([f"e{k // 2}" for k in range(len(n))]), band, field, n, n // 10)


def make_scenes(chips: dataset.Chips, few: int = 3) -> dataset.Scenes:
    """All stars of the chips at a magnitude of 20.25, and a thousand galaxies on each."""
    chosen = dataset.sample_chips(chips.density_class, np.ones(len(chips), bool), few)
    magnitudes = np.zeros((len(chosen), len(dataset.MAGNITUDE_EDGES) - 1), np.int64)
    magnitudes[:, np.searchsorted(dataset.MAGNITUDE_EDGES, 20.25) - 1] = chips.n_star[chosen]
    return dataset.Scenes(chosen, magnitudes, np.full(len(chosen), 1000))


@given(n=st.integers(0, 500), seed=st.integers(0, 9))
def test_a_random_split_is_a_partition_in_the_shares_asked_for(n, seed):
    rows = dataset.random_split(n, seed)
    assert sorted(np.concatenate(rows).tolist()) == list(range(n))
    assert np.abs(np.array([len(part) for part in rows]) - n * np.array(dataset.FRACTIONS)).max() <= 1
    assert all((np.diff(part) > 0).all() for part in rows)


def test_a_random_split_has_the_sizes_of_the_published_one():
    assert [len(part) for part in dataset.random_split(28_200)] == [22_560, 2_820, 2_820]
    assert not np.array_equal(dataset.random_split(100, 1)[2], dataset.random_split(100, 2)[2])


@given(counts=COUNTS)
@settings(deadline=None, max_examples=30)
def test_the_composition_counts_every_chip_once(counts):
    classes = density_class(counts)
    table = dataset.composition(classes, dataset.random_split(len(counts)))
    inner = table.iloc[:N_CLASSES]
    np.testing.assert_array_equal(inner["total"], np.bincount(classes, minlength=N_CLASSES))
    np.testing.assert_array_equal(inner[list(dataset.SETS)].sum(axis=1), inner["total"])
    np.testing.assert_array_equal(inner[["total", *dataset.SETS]].sum(), table.loc["all", ["total", *dataset.SETS]])
    assert table["share"].iloc[:N_CLASSES].sum() == pytest.approx(100)
    assert table["published"].iloc[:N_CLASSES].sum() == pytest.approx(100)


@given(counts=COUNTS)
@settings(deadline=None, max_examples=30)
def test_the_band_table_counts_every_chip_once(counts):
    chips = make_chips(counts)
    table = dataset.band_table(chips.band, chips.density_class)
    assert table.loc["all", "all"] == len(counts)
    np.testing.assert_array_equal(table.iloc[:-1].sum(), table.loc["all"])
    assert list(table.index[:-1]) == [band for band in BANDS if band in chips.band]


def test_the_published_shares_are_those_of_the_paper():
    # training, validation and test chips of Table 2, class 0 and 5, and the total
    assert dataset.PUBLISHED[0] == 1120 + 149 + 152
    assert dataset.PUBLISHED[5] == 1033 + 139 + 138
    assert sum(dataset.PUBLISHED) == 22_560 + 2_820 + 2_820


def test_shared_fields_tell_a_split_by_field_from_a_random_one():
    fields = np.repeat([f"f{k}" for k in range(50)], 10)
    by_field = (np.arange(400), np.arange(400, 450), np.arange(450, 500))
    assert dataset.shared_fields(fields, by_field) == 0
    assert dataset.shared_fields(fields, dataset.random_split(500)) > 0.95
    assert np.isnan(dataset.shared_fields(fields, (np.arange(500), np.arange(0), np.arange(0))))


@given(counts=COUNTS, few=st.integers(1, 5), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_a_sample_takes_few_usable_chips_of_every_class(counts, few, seed):
    classes = density_class(counts)
    usable = np.arange(len(counts)) % 3 > 0
    chosen = dataset.sample_chips(classes, usable, few, seed)
    assert usable[chosen].all()
    assert (np.diff(chosen) > 0).all()
    available = np.bincount(classes[usable], minlength=N_CLASSES)
    np.testing.assert_array_equal(np.bincount(classes[chosen], minlength=N_CLASSES), np.minimum(available, few))


def test_every_sampled_chip_stands_for_its_class():
    classes = np.array([2] * 90 + [5] * 10, np.int8)
    weights = dataset.class_weights(classes, np.array([0, 1, 2, 95]))
    np.testing.assert_allclose(weights, [30, 30, 30, 10])
    assert weights.sum() == len(classes)


def test_a_class_is_represented_by_a_chip_of_median_count_in_g_where_it_has_one():
    counts = [150, 300, 900, 320, 5000, 6000]
    chips = make_chips(counts, bands=["g", "g", "g", "i", "NUV", "y"])
    assert dataset.representatives(chips) == {2: 1, 3: 5}


def test_the_bright_limit_is_an_edge_of_the_magnitude_bins():
    assert BRIGHT_LIMIT in dataset.MAGNITUDE_EDGES


def test_the_description_quotes_its_numbers():
    chips = make_chips([0, 50, 1234, 250_000])
    splits = {"at random": dataset.random_split(4)}
    text = dataset.describe(
        "T", chips, splits, {"maps": 4_000_000}, ["fact one"], ["this, since that."], {"C": "c.png"}
    )
    assert text.startswith("# T\n")
    for part in (
        "4 chips with truth, of 2 exposures in 2 sky fields",
        "0 to 250,000",
        "0 to 25,000",
        "4 MB (maps 4 MB)",
    ):
        assert part in text
    for part in ("1 MB a chip", "* fact one", "Left out: this, since that.", "![C](c.png)", "split at random"):
        assert part in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {9}  # both tables have eight columns
    unknown = dataset.Chips(chips.obs_id, chips.band, chips.field, chips.n_star, np.full(4, -1))
    assert "in its own band): unknown" in dataset.describe("T", unknown, splits, {})


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
@settings(deadline=None, max_examples=20)
def test_the_stretch_rises_with_the_light_whatever_its_unit(scale, shift):
    image = np.random.default_rng(0).lognormal(0, 2, (30, 40))
    image[3, 4] = np.nan
    out = dataset_figures.log_stretch(image)
    order = np.argsort(image[np.isfinite(image)])
    assert (np.diff(out[np.isfinite(image)][order]) >= 0).all()
    assert np.isnan(out[3, 4])
    assert (np.nanmin(out), np.nanmax(out)) == (0, 1)
    np.testing.assert_allclose(dataset_figures.log_stretch(scale * image + shift), out, atol=1e-6)


def test_the_stretch_is_logarithmic_and_bears_empty_maps():
    ramp = np.linspace(0, 1, 1001)[None, :]
    out = dataset_figures.log_stretch(ramp, 0, 100, contrast=300)
    np.testing.assert_allclose(out, np.log1p(300 * ramp) / np.log1p(300), atol=1e-9)
    assert np.isnan(dataset_figures.log_stretch(np.full((3, 3), np.nan))).all()
    assert (dataset_figures.log_stretch(np.ones((3, 3))) == 0).all()


def bars(axis) -> float:
    """Sum of the heights of a histogram's bars."""
    return sum(patch.get_height() for patch in axis.patches)


@pytest.fixture
def drawn(monkeypatch):
    """Keeps the figures that are saved."""
    kept = []
    original = dataset_figures._save
    monkeypatch.setattr(dataset_figures, "_save", lambda figure, path: (kept.append(figure), original(figure, path)))
    return kept


def test_histograms_hold_every_chip_and_galaxies_stand_for_their_class(tmp_path, drawn):
    rng = np.random.default_rng(1)
    chips = make_chips(np.concatenate([np.zeros(5, int), (10 ** rng.uniform(0, 5.5, 95)).astype(int), CLASS_EDGES]))
    dataset_figures.plot_counts(chips, make_scenes(chips), tmp_path / "counts.png")
    dataset_figures.plot_counts(make_chips(rng.integers(900, 2000, 40)), None, tmp_path / "few.png")
    stars, galaxies, bright = drawn[0].axes
    assert bars(stars) == bars(bright) == len(chips)
    assert bars(galaxies) == pytest.approx(len(chips))
    assert stars.patches[0].get_height() == 5  # zero has a bar of its own
    assert [bars(axis) for axis in drawn[1].axes] == [40, 40]
    assert (tmp_path / "few.png").read_bytes()[1:4] == b"PNG"


def test_magnitudes_are_means_per_chip(tmp_path, drawn):
    chips = make_chips([0, 0, 40, 60, 700, 5000, 6000, 200_000])
    dataset_figures.plot_magnitudes(chips, make_scenes(chips, 2), tmp_path / "magnitudes.png")
    assert [bars(axis) for axis in drawn[0].axes] == [0, 50, 700, 5500, 0, 200_000]
    titles = [axis.get_title(loc="left") for axis in drawn[0].axes]
    assert "2 of 2 chips" in titles[0]
    assert "0 of 0 chips" in titles[4]


def test_a_class_without_a_chip_has_an_empty_panel(tmp_path, drawn):
    chips = make_chips([0, 50, 1234, 250_000])
    maps = {k: (row, np.random.default_rng(k).random((20, 20), np.float32)) for k, row in enumerate([0, 1, 2, 3])}
    dataset_figures.plot_classes(chips, {0: maps[0], 1: maps[1], 3: maps[2], 5: maps[3]}, tmp_path / "classes.png")
    assert [len(axis.images) for axis in drawn[0].axes] == [1, 1, 0, 1, 0, 1]
    assert [axis.texts[0].get_text() for axis in drawn[0].axes][2:] == [
        "no chip of class 2",
        "3",
        "no chip of class 4",
        "5",
    ]
