import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import write_maps

from csst_dask.errors import ConfigError
from csst_dask.schema import REJECTED, ChipInfo
from csst_dask.store import SurveyStore
from csst_dask.training import Samples, load_samples, split_by_field
from csst_dask.training.record import MOST_CENTRES, cover, record_split
from csst_dask.training.split import Split, split_at_random


def sky(n_fields, per_field, seed):
    """Fields scattered over a part of the sky, so that some come close."""
    rng = np.random.default_rng(seed)
    centre = np.stack([rng.uniform(350, 390, n_fields) % 360, rng.uniform(60, 90, n_fields)])
    ra, dec = np.repeat(centre, per_field, axis=1)
    dec = np.clip(dec + rng.uniform(-0.3, 0.3, len(dec)), -90, 90)
    field = np.repeat([f"field-{i}" for i in range(n_fields)], per_field)
    level = np.repeat(rng.choice(6, n_fields, p=[0.05, 0.15, 0.5, 0.2, 0.06, 0.04]), per_field)
    return field, level, ra, dec


def separation(ra, dec, other_ra, other_dec):
    """Least angle between two sets of points, deg (haversine)."""
    ra, dec, ra2, dec2 = (np.radians(v) for v in (ra[:, None], dec[:, None], other_ra, other_dec))
    h = np.sin((dec - dec2) / 2) ** 2 + np.cos(dec) * np.cos(dec2) * np.sin((ra - ra2) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(h))).min()


@settings(max_examples=20, deadline=None)
@given(st.integers(12, 60), st.integers(1, 8), st.integers(0, 1000))
def test_sets_share_no_chip_no_field_and_no_patch_of_sky(n_fields, per_field, seed):
    field, level, ra, dec = sky(n_fields, per_field, seed)
    ra[-3 * per_field :], dec[-3 * per_field :] = np.repeat([90.0, 180.0, 270.0], per_field), -40.0  # apart
    split = split_by_field(field, level, ra, dec, seed=seed)
    parts = (split.train, split.validation, split.test)
    assert sorted(np.concatenate(parts)) == list(range(len(field)))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        a, b = parts[one], parts[other]
        assert not set(field[a]) & set(field[b])
        assert separation(ra[a], dec[a], ra[b], dec[b]) > 1.5


def test_a_chain_of_close_fields_stays_together_across_ra_zero():
    field = np.array(["a", "b", "c", "d", "e"])
    ra, dec = np.array([359.0, 0.2, 1.4, 90.0, 180.0]), np.zeros(5)
    split = split_by_field(field, [2] * 5, ra, dec)
    assert sorted(len(part) for part in (split.train, split.validation, split.test)) == [1, 1, 3]
    with pytest.raises(ConfigError, match=r"5 fields form 2 group\(s\)"):
        split_by_field(field, [2] * 5, np.array([359.0, 0.2, 1.4, 2.0, 180.0]), dec)


def test_every_class_is_shared_out_as_asked():
    rng = np.random.default_rng(0)
    n = 600
    level = rng.choice(6, n, p=[0.05, 0.15, 0.5, 0.2, 0.06, 0.04])
    ra, dec = (v.ravel() for v in np.meshgrid(np.arange(0, 90, 3.0), np.arange(-28, 31, 3.0)))
    split = split_by_field(np.arange(n).astype(str), level, ra, dec)
    for rows, share in ((split.train, 0.8), (split.validation, 0.1), (split.test, 0.1)):
        counts = np.bincount(level[rows], minlength=6)
        assert np.abs(counts - share * np.bincount(level)).max() <= 1.5


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_chips():
    field, level, ra, dec = sky(60, 3, 5)
    first = split_by_field(field, level, ra, dec, seed=1)
    again = split_by_field(field, level, ra, dec, seed=1)
    np.testing.assert_array_equal(first.test, again.test)
    order = np.random.default_rng(0).permutation(len(field))
    mixed = split_by_field(field[order], level[order], ra[order], dec[order], seed=1)
    assert set(field[order][mixed.test]) == set(field[first.test])
    others = [split_by_field(field, level, ra, dec, seed=seed).test for seed in range(2, 8)]
    assert any(set(rows) != set(first.test) for rows in others)


def chip(row, field, n_star, n_bright, band="g"):
    rng, ra = np.random.default_rng(row), 10.0 * row
    mean, std, level, sigma = rng.normal(size=4)
    return ChipInfo(
        band=band, exptime=150.0, mjd=61_000.0, ra=ra, dec=0.0, corner_ra=(ra,) * 4, corner_dec=(0.0,) * 4, field=field,
        n_star=n_star, n_bright=n_bright, pixel_mean=mean, pixel_std=std, n_valid=9, sky_level=level, sky_sigma=sigma,
    )  # fmt: skip


TRUTH = ((5, 1), (100, 20), (-1, -1), (200, 50), (100_000, 9000), (3, 1))


def write(path, fields, scale=1.0, size=4):
    """Six chips: the second is rejected, the third has no truth, the fourth is of band u, the last is pending."""
    maps = scale * np.random.default_rng(0).normal(size=(6, 6, 4, 4)).astype("f4")[..., :size]
    chips = [chip(row, fields[row], *TRUTH[row], band="gggugg"[row]) for row in range(5)]
    write_maps(str(path), maps, [*chips, None])
    with SurveyStore.write(str(path)) as store:
        store.set_status([1], REJECTED, ["spoilt"])
    return path, maps, chips


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "survey.zarr", "abcdef")


def test_only_chips_that_are_done_and_have_truth_are_loaded(store):
    path, maps, chips = store
    samples = load_samples(path)
    assert samples.field.tolist() == ["a", "d", "e"]
    assert samples.density_class.tolist() == [1, 2, 5]
    np.testing.assert_array_equal(samples.block_stats, maps[[0, 3, 4]])
    assert samples.scalars["sky_sigma"].tolist() == [chips[row].sky_sigma for row in (0, 3, 4)]
    assert load_samples(path, bands=("u",)).field.tolist() == ["d"]


def test_chips_of_several_stores_follow_one_another(store, tmp_path):
    path, *_ = store
    more, *_ = write(tmp_path / "more.zarr", "xyzuvw", scale=2.0)
    one, other = load_samples(path), load_samples(more)
    both = load_samples([path, more])
    assert both.field.tolist() == ["a", "d", "e", "x", "u", "v"]
    assert (both.sizes, both.checksums) == ((3, 3), one.checksums + other.checksums)
    assert both.block_stats.shape == (6, 6, 4, 4)
    np.testing.assert_array_equal(both.block_stats, np.concatenate([one.block_stats, other.block_stats]))
    np.testing.assert_array_equal(2 * np.asarray(one.block_stats), other.block_stats)
    rows = np.array([5, 0, 3, 0])
    np.testing.assert_array_equal(both.block_stats[rows], np.asarray(both.block_stats)[rows])
    np.testing.assert_array_equal(both.scalars["sky_sigma"][3:], other.scalars["sky_sigma"])
    with pytest.raises(ConfigError, match=r"have 3 chips in common, alike in field, band, place and counts"):
        load_samples([path, path])
    small, *_ = write(tmp_path / "small.zarr", "xyzuvw", size=2)
    with pytest.raises(ConfigError, match="reduce them alike"):
        load_samples([path, small])


def test_a_store_without_what_is_needed_is_refused(store, tmp_path):
    path, *_ = store
    with pytest.raises(ConfigError, match="no chip"):
        load_samples(path, bands=("y",))
    with pytest.raises(ConfigError, match="no survey store at"):
        load_samples(tmp_path / "nowhere.zarr")
    with SurveyStore.write(str(path)) as opened:
        opened.set_attrs({"measured": []})
    with pytest.raises(ConfigError, match="filled without block_stats"):
        load_samples(path)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=300), st.integers(0, 9))
def test_a_split_at_random_has_every_chip_once_and_every_class_in_its_shares(level, seed):
    level = np.array(level)
    split = split_at_random(level, seed=seed)
    parts = (split.train, split.validation, split.test)
    assert sorted(np.concatenate(parts)) == list(range(len(level)))
    assert min(len(part) for part in parts) >= 1
    if len(level) >= 30:
        for rows, share in zip(parts, (0.8, 0.1, 0.1), strict=True):
            counts = np.bincount(level[rows], minlength=6)
            assert np.abs(counts - share * np.bincount(level, minlength=6)).max() <= 2.5
    np.testing.assert_array_equal(split_at_random(level, seed=seed).test, split.test)


def sampled(n_fields=80, per_field=4, seed=0):
    """Chips without maps."""
    field, _, ra, dec = sky(n_fields, per_field, seed)
    ra[-3 * per_field :], dec[-3 * per_field :] = np.repeat([90.0, 180.0, 270.0], per_field), -40.0  # apart
    n_star = np.random.default_rng(seed).integers(0, 200_000, len(field))
    band = np.tile(["g", "i"], len(field))[: len(field)]
    return Samples(np.zeros((len(field), 6, 2, 2)), {}, band, n_star, n_star // 9, field, ra % 360, dec)


def test_fewer_chips_to_learn_from_are_some_of_the_same_fields():
    samples = sampled()
    whole = samples.split(3)
    few, more = samples.split(3, chips=41), samples.split(3, chips=100)
    assert (len(few.train), len(more.train)) == (41, 100)
    assert set(few.train) < set(more.train) < set(whole.train)
    assert len(np.unique(samples.field[few.train])) == 11  # four chips each: ten fields and a part of the next
    np.testing.assert_array_equal(few.test, whole.test)
    np.testing.assert_array_equal(few.validation, whole.validation)
    np.testing.assert_array_equal(samples.split(3, chips=len(whole.train)).train, whole.train)
    with pytest.raises(ConfigError, match=f"at most the {len(whole.train)} chips"):
        samples.split(3, chips=len(whole.train) + 1)


def test_a_split_at_random_shares_fields_and_says_so():
    samples = sampled()
    split = samples.split(3, "random")
    assert set(samples.field[split.train]) & set(samples.field[split.test])
    record = record_split(samples, split, 3)
    assert (record["kind"], record["test_fields"]) == ("random", [])
    np.testing.assert_array_equal(record["test_rows"], split.test)
    assert record_split(samples, samples.split(3), 3)["kind"] == "field"
    assert record_split(samples, samples.split(3), 3, "random")["kind"] == "random"  # what was asked for
    np.testing.assert_array_equal(samples.split(3).test, samples.split(3, "field").test)


def test_sets_of_other_fields_that_lie_side_by_side_are_not_apart():
    n = 40
    ra, dec = np.arange(n) * 0.5, np.zeros(n)  # a field of its own for each chip
    field = np.array([f"f{k}" for k in range(n)])
    samples = Samples(np.zeros((n, 6, 2, 2)), {}, np.full(n, "g"), np.arange(n), np.arange(n), field, ra, dec)
    for gap, kind in ((2, "random"), (4, "field")):  # 1 and 2 deg
        split = Split(np.arange(20), np.arange(20, 24), np.arange(23 + gap, n))
        assert record_split(samples, split, 0)["kind"] == kind


def test_what_was_learned_from_lies_near_the_recorded_centres():
    samples = sampled()
    split = samples.split(1)
    record = record_split(samples, split, 1)
    learned = np.concatenate([split.train, split.validation])
    centres = np.array(record["centres"]["ra"]), np.array(record["centres"]["dec"])
    assert len(centres[0]) < len(learned)
    away = [separation(samples.ra[[k]], samples.dec[[k]], *centres) for k in learned]
    assert max(away) <= record["radius"]
    assert (
        min(separation(samples.ra[[k]], samples.dec[[k]], *centres) for k in split.test) > record["separation"] - 0.01
    )
    assert set(record["test_fields"]) == set(samples.field[split.test])
    order = np.random.default_rng(0).permutation(len(samples))
    taken = {"band": samples.band, "n_star": samples.n_star, "n_bright": samples.n_bright, "field": samples.field}
    other = Samples(samples.block_stats, {}, **{k: v[order] for k, v in taken.items()}, ra=samples.ra[order],
                    dec=samples.dec[order])  # fmt: skip
    assert other.checksums != samples.checksums == sampled().checksums


def test_a_record_of_very_many_chips_stays_small():
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 12_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 12_000)))
    centres, radius = cover(ra, dec)
    assert len(centres["ra"]) <= MOST_CENTRES
    assert 1 < radius < 5
    assert cover([], []) == ({"ra": [], "dec": []}, 0.51)
