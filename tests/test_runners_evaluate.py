"""Networks and baselines are judged on a store that is only read."""

import numpy as np
import pandas as pd
import pytest
from conftest import CHUNKS, FRAME
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import build_config
from csst_dask.errors import ConfigError
from csst_dask.evaluation.judged import Judged
from csst_dask.runners.chips import simulate_to_store
from csst_dask.runners.evaluate import Truth, judge_store, judge_weights
from csst_dask.runners.ledger import Ledger, Summary
from csst_dask.runners.predict import predict_survey
from csst_dask.simulation.product import chip_key
from csst_dask.simulation.survey import plan_survey
from csst_dask.store import predictions
from csst_dask.store.survey import open_scalars

EXPOSURES = 48


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """Chips of small frames that keep their pixels; six levels of density, in fields far from each other."""
    path = str(tmp_path_factory.mktemp("judged") / "survey.zarr")
    simulation = {
        "seed": 5, "region": "mixed", "exposures": EXPOSURES, "detectors": (8, 9), "trails": False, "galaxies": False,
        "star_counts": tuple(np.tile((6e4, 4e5, 2e6, 6e6), EXPOSURES // 4)),
    }  # fmt: skip
    config = build_config({"simulation": simulation, "ingest": {"frame": FRAME, "chunks": CHUNKS}}, "test")
    chips = {chip_key(e, d): (e, d) for e in plan_survey(config.simulation) for d in e.detectors}
    ledger, summary = Ledger(path, config, keep_mask=True), Summary()
    for key, row in ledger.to_do([(key, "simulated", "") for key in chips], summary):
        ledger.record(simulate_to_store(*chips[key], row, path, config))
    ledger.flush()
    return path


@pytest.fixture(scope="module")
def config(weights):
    return build_config({"inference": {"weights": str(weights), "batch": 16}}, "test")


def test_the_judgement_is_of_what_predict_writes(client, store, weights, config):
    judged = judge_weights(client, Truth.open(store), config, weights)
    predict_survey(client, store, config)
    again = Judged.from_datasets(open_scalars(store), predictions.read(store).load())
    for name in ("band", "n_star", "n_bright", "density_class", "log_bright", "bright_lower", "bright_upper", "route"):
        np.testing.assert_array_equal(getattr(judged, name), getattr(again, name), err_msg=name)
    np.testing.assert_allclose(judged.class_probability, again.class_probability)


def test_parts_of_a_store_are_apart(store):
    truth = Truth.open(store)
    parts = {which: truth.part(which, 0) for which in ("all", "test", "random-test")}
    assert len(parts["all"].rows) == 2 * EXPOSURES
    fields = set(parts["test"].column("field"))
    rest = np.setdiff1d(truth.rows, parts["test"].rows)
    assert 0 < len(parts["test"].rows) < len(truth.rows) / 4
    assert not fields & set(truth.scalars["field"].values[rest].tolist())
    assert len(parts["random-test"].rows) == round(0.1 * 2 * EXPOSURES)
    assert (parts["random-test"].rows != truth.part("random-test", 1).rows).any()


def test_networks_and_baselines_stand_in_one_table(client, store, weights, config, tmp_path):
    page = judge_store(client, store, tmp_path / "out", config, [weights], baselines=store)
    text = page.read_text()
    for name in (weights.name, "trees and SVM", "source extraction"):
        assert name in text
    assert "CPU s a chip" in text
    compared = pd.read_csv(next((tmp_path / "out").glob("*method*.csv")))
    assert len(compared) == 3


def test_baselines_learn_something(client, store, weights, config):
    """Counting sources beats networks that were never trained."""
    from csst_dask.runners.evaluate import judge_classical, judge_trees

    truth = Truth.open(store).part("test", 0)
    errors = {}
    untrained = judge_weights(client, truth, config, weights)
    errors["untrained"] = np.nanmean(np.abs(untrained.log_bright - untrained.true_log_bright))
    trees = judge_trees(client, Truth.open(store), truth, config)
    errors["trees"] = np.nanmean(np.abs(trees.log_bright - trees.true_log_bright))
    found = judge_classical(client, Truth.open(store), truth)
    if found is not None:
        errors["classical"] = np.nanmean(np.abs(found[0].log_bright - found[0].true_log_bright))
    assert all(errors[name] < 0.5 * errors["untrained"] for name in errors.keys() - {"untrained"}), errors


def test_the_command_refuses_what_it_cannot_do(store, tmp_path, weights):
    words = ["evaluate", "--store", store, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*words, "--dataset", "--weights", str(weights)])
    assert result.exit_code == 2
    assert "judges nothing" in result.output
    empty = str(tmp_path / "empty.zarr")
    from csst_dask.store.survey import create_survey

    plain = build_config({}, "test")
    create_survey(empty, plain.ingest, plain.mask)
    with pytest.raises(ConfigError, match="no chip that is done"):
        Truth.open(empty)
