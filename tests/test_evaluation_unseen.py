"""Networks are judged on sky that they have not learned from, and where that cannot be it is said."""

import json

import numpy as np
import pytest
import xarray as xr

from csst_dask.errors import ConfigError
from csst_dask.evaluation.truth import Truth
from csst_dask.evaluation.unseen import FLATTERS, choose_chips
from csst_dask.training import Samples
from csst_dask.training.record import checksum_chips, record_split

COLUMNS = ("band", "field", "n_star", "n_bright", "ra", "dec")


def survey(shift=0.0, name="a", seed=0, n_fields=60) -> Truth:
    """Four chips in each of some fields, 6 deg apart; another survey is shifted and has other names."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(0, 60, 6.0), np.arange(-15, 21, 6.0)), -1).reshape(-1, 2)[:n_fields]
    ra, dec = np.repeat(grid, 4, axis=0).T + rng.uniform(-0.4, 0.4, (2, 4 * len(grid)))
    n_star = rng.integers(0, 300_000, len(ra))
    columns = {
        "band": np.tile(["g", "u"], 2 * len(grid)), "field": np.repeat([f"{name}{k}" for k in range(len(grid))], 4),
        "n_star": n_star, "n_bright": n_star // 5, "ra": ra + shift, "dec": dec,
    }  # fmt: skip
    return Truth("nowhere", xr.Dataset({key: ("chip", values) for key, values in columns.items()}), np.arange(len(ra)))


def checksum(chips: Truth) -> str:
    return checksum_chips(*(chips.column(name) for name in COLUMNS))


def network(chips: Truth, kind="field", task="classifier", seed=0) -> dict:
    """Metadata of a network that learned from some chips, as they come back from a file."""
    columns = {name: chips.column(name) for name in COLUMNS}
    samples = Samples(np.zeros((len(chips), 6, 1, 1)), {}, **columns)
    split = samples.split(seed, kind)
    if task == "regressor":
        below = samples.n_star < 100_000
        split = type(split)(*(rows[below[rows]] for rows in (split.train, split.validation, split.test)))
    return json.loads(json.dumps({"task": task, "split": record_split(samples, split, seed, kind)}))


def angles(one: Truth, other: Truth) -> np.ndarray:
    """(n, m) separations, deg (haversine)."""
    ra, dec, ra2, dec2 = (np.radians(v) for v in (one.column("ra")[:, None], one.column("dec")[:, None],
                                                  other.column("ra"), other.column("dec")))  # fmt: skip
    h = np.sin((dec - dec2) / 2) ** 2 + np.cos(dec) * np.cos(dec2) * np.sin((ra - ra2) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(h)))


@pytest.mark.parametrize("part", ["all", "test"])
def test_on_its_own_store_a_pair_is_judged_on_its_recorded_test_fields(part):
    chips = survey()
    pair = {task: network(chips, task=task, seed=4) for task in ("classifier", "regressor")}
    chosen = choose_chips(chips, pair, part, checksum)
    samples = Samples(np.zeros((len(chips), 6, 1, 1)), {}, **{name: chips.column(name) for name in COLUMNS})
    np.testing.assert_array_equal(chosen.chips.rows, samples.split(4).test)
    assert FLATTERS not in chosen.notes
    assert (chosen.chips.column("n_star") >= 100_000).any()  # the classifier's alone
    # whatever the configuration says now
    assert (samples.split(5).test != samples.split(4).test).any()


def test_no_judged_chip_of_another_store_lies_near_sky_that_was_learned_from():
    learned, other = survey(), survey(shift=31.3, name="b", seed=1)
    metadata = network(learned)
    chosen = choose_chips(other, {"net": metadata}, "all", checksum)
    split = Samples(np.zeros((len(learned), 6, 1, 1)), {}, **{name: learned.column(name) for name in COLUMNS}).split(0)
    seen = learned.take(np.concatenate([split.train, split.validation]))
    least = angles(other, seen).min(axis=1)
    kept = np.isin(other.rows, chosen.chips.rows)
    assert (least[kept] > 1.5).all()
    assert kept[least > 1.5 + 2 * 0.52].all()
    assert 0 < kept.sum() < len(other)
    assert f"{(~kept).sum()} of {len(other)} chips are left out" in chosen.notes[0]
    apart = choose_chips(survey(shift=100, name="c"), {"net": metadata}, "all", checksum)
    assert len(apart.chips) == 240
    assert "None of the 240 chips" in apart.notes[0]


def test_a_store_that_has_grown_is_judged_where_it_was_not_seen():
    chips = survey()
    metadata = network(chips.take(np.arange(200)))
    test = choose_chips(chips.take(np.arange(200)), {"net": metadata}, "test", checksum).chips
    grown = choose_chips(chips, {"net": metadata}, "test", checksum).chips
    assert set(grown.rows) <= set(test.rows)
    assert len(grown) > 0


def test_a_random_split_is_judged_on_its_very_chips_and_told():
    chips = survey()
    pair = {task: network(chips, "random", task, 2) for task in ("classifier", "regressor")}
    chosen = choose_chips(chips, pair, "test", checksum)
    assert chosen.chips.rows.tolist() == pair["classifier"]["split"]["test_rows"]
    assert FLATTERS in chosen.notes
    with pytest.raises(ConfigError, match="learned from the sky of all 240 chips"):
        choose_chips(chips, pair, "all", checksum)
    with pytest.raises(ConfigError, match=r"other chips than this store now holds \(240 then, 239 now\)"):
        choose_chips(chips.take(np.arange(239)), pair, "test", checksum)


def test_what_cannot_be_told_is_refused_or_said():
    chips, silent = survey(), {"task": "classifier"}
    with pytest.raises(ConfigError, match="the weights of old do not record which chips"):
        choose_chips(chips, {"old": silent}, "test", checksum)
    chosen = choose_chips(chips, {"old": silent}, "all", checksum)
    assert len(chosen.chips) == len(chips)
    assert "old do not record what they learned from" in chosen.notes[0]
    with pytest.raises(ConfigError, match="judge them apart"):
        choose_chips(chips, {"a": network(chips), "b": network(chips, "random")}, "test", checksum)
    with pytest.raises(ConfigError, match="name the store that they learned from"):
        choose_chips(survey(shift=100, name="c"), {"a": network(chips)}, "test", checksum)
    with pytest.raises(ConfigError, match="no part 'random-test'"):
        choose_chips(chips, {"a": network(chips)}, "random-test", checksum)


@pytest.mark.parametrize("kind", ["field", "random"])
def test_each_of_several_stores_is_judged_on_its_share_of_the_test_chips(kind):
    stores = [survey(name="a"), survey(name="b", seed=1, shift=120)]
    columns = {name: np.concatenate([chips.column(name) for chips in stores]) for name in COLUMNS}
    samples = Samples(np.zeros((480, 6, 1, 1)), {}, **columns, sizes=(240, 240))
    split = samples.split(2, kind)
    net = json.loads(json.dumps({"task": "classifier", "split": record_split(samples, split, 2, kind)}))
    found = [choose_chips(chips, {"net": net}, "test", checksum).chips.rows for chips in stores]
    np.testing.assert_array_equal(np.concatenate([found[0], found[1] + 240]), split.test)
    if kind == "random":
        with pytest.raises(ConfigError, match="240 and 240 then, 239 now"):
            choose_chips(stores[0].take(np.arange(239)), {"net": net}, "test", checksum)


def test_several_networks_are_judged_where_none_has_learned():
    chips = survey()
    nets = {f"n{seed}": network(chips, seed=seed) for seed in range(2)}
    test = [set(choose_chips(chips, {name: net}, "test", checksum).chips.rows) for name, net in nets.items()]
    if test[0] & test[1]:
        assert set(choose_chips(chips, nets, "test", checksum).chips.rows) == test[0] & test[1]
    else:
        with pytest.raises(ConfigError, match="none of them learned from"):
            choose_chips(chips, nets, "test", checksum)


def test_chips_apart_are_those_beyond_the_separation():
    one, other = survey(), survey(shift=2.0, name="b", seed=3)
    kept = one.apart_from(other, 1.5)
    np.testing.assert_array_equal(kept.rows, np.flatnonzero(angles(one, other).min(axis=1) > 1.5))
    assert 0 < len(kept) < len(one)
