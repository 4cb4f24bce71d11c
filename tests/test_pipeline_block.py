"""A block of chips from pixels to the sky: how the work is divided, repeated or disturbed leaves no trace in it."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
from conftest import assert_same_result
from tiny_networks import save_perceptron

from csst_dask.config import Config, with_settings
from csst_dask.errors import ChipRejected, ConfigError
from csst_dask.inference.networks import ModelPair
from csst_dask.maps.density import AREAS, DensitySums
from csst_dask.models.files import identify_pair
from csst_dask.pipeline import block as block_module
from csst_dask.pipeline.block import Block, BlockResult, Work, process_block
from csst_dask.pipeline.plan import (
    Candidate,
    find_candidates,
    plan_predicting,
    plan_reading,
    predictions_of,
    scalars_of,
)
from csst_dask.pipeline.record import Recorder
from csst_dask.pipeline.routes import prepare_predictions
from csst_dask.pipeline.skymap import MapSums, on_map
from csst_dask.pipeline.source import open_files
from csst_dask.pipeline.summary import Summary
from csst_dask.store import SurveyStore
from csst_dask.store.arrays import read_chip
from csst_dask.store.writer import ChipWriter, task_arrays

CHIPS, BATCH, NSIDE = 8, 3, 4096


@dataclass(frozen=True)
class Survey:
    """Files of some chips, and how they are worked on."""

    chips: list[Candidate]
    config: Config
    pair: ModelPair

    @contextmanager
    def store(self, path):
        """A store that has a row for each of them, and what is to be read, by row."""
        with SurveyStore.write(str(path), self.config.ingest, self.config.mask) as store:
            items = plan_reading(store, self.chips, self.config, Summary())
            prepare_predictions(store, self.pair, self.config)
            yield store, items

    def work(self, store, **changes) -> Work:
        whole = Work(store.location, store.rows, self.config, open_files, self.pair, NSIDE)
        return replace(whole, **changes)


@pytest.fixture(scope="module")
def survey(tmp_path_factory, write_exposures, small) -> Survey:
    folder, weights = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("weights")
    save_perceptron("classifier", weights, level=2.5)
    save_perceptron("regressor", weights, level=2.5)
    write_exposures(folder, exposures=CHIPS // 2, star_counts=(0, 60_000, 900_000, 6_000_000))
    config = with_settings(Config(), {**small, "inference.weights": weights})
    chips, left = find_candidates([folder], truth=True)
    assert (len(chips), left) == (CHIPS, {})
    pair = ModelPair(*identify_pair(weights), config.inference, BATCH)
    return Survey(chips, config, pair)


def record(store, blocks, work) -> BlockResult:
    """Work on blocks one after the other, and record what became of the chips; all results together."""
    recorder, found = Recorder(store, Summary(), Summary(), Summary()), BlockResult()
    for block in blocks:
        result = process_block(block, work)
        recorder.take(block, result)
        for name in ("chips", "predictions", "sums", "errors"):
            getattr(found, name).update(getattr(result, name))
    recorder.finish()
    return found


def assert_same_values(one: dict, other: dict) -> None:
    """Equal bit for bit."""
    assert one.keys() == other.keys()
    for name in one:
        a, b = np.asarray(one[name]), np.asarray(other[name])
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


def values_of(sums: DensitySums) -> dict:
    return {name: getattr(sums, name) for name in ("band", "cell", "n_visits", "class_area", *AREAS)}


def assert_same_outcome(found: BlockResult, expected: BlockResult, rows) -> None:
    for row in rows:
        assert_same_values(found.predictions[row], expected.predictions[row])
        assert_same_values(values_of(found.sums[row]), values_of(expected.sums[row]))


@pytest.fixture(scope="module")
def apart(survey, tmp_path_factory):
    """Path of a store whose chips were read one by one, then predicted, then projected; and what each step gave."""
    path = tmp_path_factory.mktemp("apart") / "survey.zarr"
    with survey.store(path) as (store, items):
        found = record(
            store, [Block(read={row: items[row]}) for row in items], survey.work(store, pair=None, nside=None)
        )
        todo = plan_predicting(store, store.predictions.state == 1, survey.config, Summary())
        assert len(todo) == CHIPS
        known = scalars_of(store, todo)
        predicted = record(store, [Block(known=known)], survey.work(store, source=None, nside=None))
        mapped = predictions_of(store, np.flatnonzero(on_map(store)).tolist())
        projected = record(store, [Block(predicted=mapped)], survey.work(store, source=None, pair=None))
        assert not found.predictions
        assert not found.sums
        assert not predicted.sums
    assert [chip.status for chip in found.chips.values()] == ["done"] * CHIPS
    assert sum((sums.visit_area > 0).any() for sums in projected.sums.values()) == CHIPS
    for name in ("log_star", "confidence", "bright_count"):  # each chip has an answer of its own
        assert len({float(values[name]) for values in predicted.predictions.values()}) == CHIPS, name
    return path, BlockResult(found.chips, predicted.predictions, projected.sums)


def test_all_at_once_is_what_is_done_apart(survey, apart, tmp_path):
    path, expected = apart
    with survey.store(tmp_path / "s.zarr") as (store, items):
        found = record(store, [Block(read=items)], survey.work(store))
    assert found.errors == {}
    assert found.chips == expected.chips
    assert_same_outcome(found, expected, range(CHIPS))
    for group in ("", "predictions"):
        assert_same_result(str(path), str(tmp_path / "s.zarr"), group)


@pytest.mark.parametrize("seed", range(4))
def test_neither_the_size_of_blocks_nor_their_order_nor_what_is_done_before_matters(survey, apart, tmp_path, seed):
    path, expected = apart
    rng = np.random.default_rng(seed)
    order, size = rng.permutation(CHIPS).tolist(), int(rng.integers(1, CHIPS))
    kept = rng.integers(0, 3, CHIPS)  # nothing is done before, it was read, it was predicted too
    assert len(set(kept.tolist())) > 1
    with survey.store(tmp_path / "s.zarr") as (store, items):
        work = survey.work(store)
        record(store, [Block(read={row: items[row] for row in order if kept[row] >= 1})], replace(work, pair=None))
        before = scalars_of(store, [row for row in order if kept[row] == 2])
        record(store, [Block(known={row: before[row]}) for row in before], replace(work, nside=None))
        known = scalars_of(store, [row for row in order if kept[row] == 1])
        predicted = predictions_of(store, list(before))
        parts = ({row: items[row] for row in order if kept[row] == 0}, known, predicted)
        starts = range(0, CHIPS, size)
        blocks = [
            Block(*({row: part[row] for row in order[start : start + size] if row in part} for part in parts))
            for start in starts
        ]
        assert sorted(row for block in blocks for row in block.rows) == list(range(CHIPS))
        found = record(store, blocks, work)
    assert found.errors == {}
    assert sorted(found.sums) == list(range(CHIPS))
    assert_same_outcome(found, expected, found.predictions)
    for row in range(CHIPS):
        assert_same_values(values_of(found.sums[row]), values_of(expected.sums[row]))
    for group in ("", "predictions"):
        assert_same_result(str(path), str(tmp_path / "s.zarr"), group)


def test_maps_of_blocks_in_any_order_are_the_same(survey, apart):
    path, expected = apart
    store, totals = SurveyStore.read(str(path)), []
    for seed in range(3):
        sums = MapSums(NSIDE, range(CHIPS), store)
        for row in np.random.default_rng(seed).permutation(CHIPS).tolist():
            sums.take(row, expected.sums[row])
        totals.append(values_of(sums.total(range(CHIPS))))
    assert totals[0]["n_visits"].sum() >= CHIPS
    assert_same_values(totals[0], totals[1])
    assert_same_values(totals[0], totals[2])


def test_a_chip_does_not_depend_on_its_neighbours(survey, apart, tmp_path):
    """Neither on those that share its pass, nor on what they are, nor on their number."""
    _, expected = apart
    with survey.store(tmp_path / "s.zarr") as (store, items):
        work = survey.work(store)
        record(store, [Block(read=items)], replace(work, pair=None, nside=None))
        known, arrays, rng = (
            scalars_of(store, range(CHIPS)),
            task_arrays(store.location, store.rows),
            np.random.default_rng(1),
        )
        for row in range(CHIPS):
            alone = process_block(Block(known={row: known[row]}), work)
            assert list(alone.predictions) == [row]
            assert_same_outcome(alone, expected, [row])
        for row in range(1, CHIPS):
            others = 10 ** rng.uniform(-3, 3, read_chip(arrays["block_stats"], row).shape)
            ChipWriter(arrays, row).write_measured({"block_stats": others}, np.zeros(0, np.uint8))
            known[row] = known[row] | {"sky_level": 1e3, "sky_sigma": 1e-3, "band": "y"}
        among = process_block(Block(known=known), work)
    assert_same_outcome(among, expected, [0])
    changed = [row for row in known if among.predictions[row]["log_star"] != expected.predictions[row]["log_star"]]
    assert changed == list(range(1, CHIPS))


def spoilt(at, row, error, opened=None):
    """Opens files as `open_files`, but one of them fails at some moment."""

    @contextmanager
    def source(item, config):
        here = item.key == row
        if opened is not None:
            opened[item.key] += 1
        if here and at == "open":
            raise error
        with open_files(item, config) as chip:

            def rows(y0, y1):
                if here and y1 > config.frame[0] // 2:
                    raise error
                return chip.rows(y0, y1)

            def finish(info):
                if here:
                    raise error
                return chip.finish(info)

            yield replace(chip, **({"rows": rows} if at == "rows" else {"finish": finish} if at == "finish" else {}))

    return source


@pytest.mark.parametrize("at", ["open", "rows", "finish"])
@pytest.mark.parametrize("error", [OSError("gone"), MemoryError("full"), ChipRejected("torn")])
def test_a_chip_that_fails_leaves_the_others_alone(survey, apart, tmp_path, at, error):
    _, expected = apart
    with survey.store(tmp_path / "s.zarr") as (store, items):
        bad = 4
        work = survey.work(store, source=spoilt(at, items[bad].key, error))
        found = process_block(Block(read=items), work)
        if isinstance(error, ChipRejected):
            assert found.errors == {}
            assert (found.chips[bad].status, found.chips[bad].reason, found.chips[bad].info) == (
                "rejected",
                "torn",
                None,
            )
        else:
            assert found.errors == {bad: error}
            assert bad not in found.chips
        others = [row for row in items if row != bad]
        assert sorted(found.predictions) == sorted(found.sums) == others
        assert {row: found.chips[row] for row in others} == {row: expected.chips[row] for row in others}
        assert_same_outcome(found, expected, others)
        if found.errors:
            again = process_block(Block(read=items).part(bad, found), survey.work(store))
            assert list(again.chips) == [bad]
            assert again.chips[bad] == expected.chips[bad]
            assert_same_outcome(again, expected, [bad])


def test_a_chip_that_cannot_be_predicted_is_not_read_again(survey, apart, tmp_path):
    _, expected = apart
    opened = Counter()
    other = replace(survey.pair, checksums=dict.fromkeys(survey.pair.checksums, "0" * 64))
    with survey.store(tmp_path / "s.zarr") as (store, items):
        work, block = survey.work(store, source=spoilt("", None, None, opened)), Block(read=items)
        found = process_block(block, replace(work, pair=other))
        assert sorted(found.errors) == list(range(CHIPS))
        assert {type(error) for error in found.errors.values()} == {ConfigError}
        assert found.chips == expected.chips
        assert not found.predictions
        assert set(opened.values()) == {1}
        assert len(opened) == CHIPS
        for row in found.errors:
            again = process_block(block.part(row, found), work)
            assert (again.chips, again.errors) == ({}, {})
            assert_same_outcome(again, expected, [row])
        assert set(opened.values()) == {1}


def test_a_chip_that_cannot_be_projected_is_neither_read_nor_predicted_again(survey, apart, tmp_path, monkeypatch):
    _, expected = apart
    opened = Counter()
    with survey.store(tmp_path / "s.zarr") as (store, items):
        work, block = survey.work(store, source=spoilt("", None, None, opened)), Block(read=items)
        with monkeypatch.context() as patch:
            patch.setattr(block_module, "chip_sums", lambda *_: [][0])
            found = process_block(block, work)
        assert {type(error) for error in found.errors.values()} == {IndexError}
        assert sorted(found.errors) == sorted(found.predictions) == list(range(CHIPS))
        for row in found.errors:
            part = block.part(row, found)
            again = process_block(part, replace(work, source=None, pair=None))
            assert part.rows == [row]
            assert (again.chips, again.predictions, again.errors) == ({}, {}, {})
            assert_same_values(values_of(again.sums[row]), values_of(expected.sums[row]))
        assert set(opened.values()) == {1}


@pytest.mark.parametrize("name", ["read", "known", "predicted"])
def test_a_part_of_a_block_that_nothing_was_done_of_is_that_part(name):
    block = Block(**{name: {3: {"a": 1}, 5: {"b": 2}}})
    for before in (None, BlockResult()):
        part = block.part(5, before)
        assert part == Block(**{name: {5: {"b": 2}}})
        assert part.rows == [5]


def test_every_chip_is_read_within_its_limit(survey, tmp_path):
    """One that takes too long must not use up the time of the next."""
    log = []

    @contextmanager
    def limit():
        log.append("begin")
        yield
        log.append("end")

    @contextmanager
    def source(item, config):
        log.append("read")
        with open_files(item, config) as chip:
            yield chip

    with survey.store(tmp_path / "s.zarr") as (store, items):
        process_block(Block(read=items), survey.work(store, source=source, pair=None, nside=None), limit)
    assert log == ["begin", "read", "end"] * CHIPS
