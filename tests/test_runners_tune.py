"""A search that can be called again, and finds what is better."""

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import TrainingConfig, build_config
from csst_dask.errors import ConfigError
from csst_dask.runners.tune import SPACE, searched, settings_of, tune_network

SETTINGS = {"arch": "resnet18", "epochs": 2, "batch": 16}


def test_what_is_searched_depends_on_the_network(tmp_path):
    paper = TrainingConfig(recipe="paper")
    assert "mse_weight" in searched("regressor", paper)
    assert "mse_weight" not in searched("classifier", paper)
    assert "layer_rate_rest" not in searched("regressor", paper)
    assert set(searched("regressor", paper.model_copy(update={"pretrained": tmp_path / "file"}))) == set(SPACE)
    params = {"learning_rate": 1e-3, "layer_rate_last": 0.5, "layer_rate_rest": 0.1}
    assert settings_of(params, paper) == {"learning_rate": 1e-3, "layer_rates": [1.0, 0.5, 0.1]}


@pytest.fixture(scope="module")
def study(client, training_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    config = build_config({"training": SETTINGS}, "a test")
    first = tune_network(client, "classifier", training_store, 2, out, config)
    second = tune_network(client, "classifier", training_store, 3, out, config)
    return out, config, first, second


def test_a_study_goes_on_and_never_gets_worse(study):
    _, _, first, second = study
    assert (first["trials"], second["trials"]) == (2, 3)
    assert second["score"] >= first["score"]
    assert 0 <= first["score"] <= 1
    assert second["failed"] == 0


def test_the_best_settings_are_a_configuration(study):
    out, _, _, second = study
    assert yaml.safe_load((out / "best.yaml").read_text())["training"] == second["settings"]
    for name, value in second["settings"].items():
        low, high = SPACE[name]
        assert low <= value <= high


def test_trials_that_were_running_when_their_worker_died_count_as_failed(client, study, training_store):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    out, config, _, second = study
    storage = JournalStorage(JournalFileBackend(str(out / "study.log")))
    name = optuna.get_all_study_summaries(storage)[0].study_name
    optuna.load_study(study_name=name, storage=storage).ask()
    again = tune_network(client, "classifier", training_store, 3, out, config)
    assert again == second | {"trials": 3}
    states = [trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).trials]
    assert states.count("FAIL") == 1


def test_another_study_is_not_mixed_in(client, study, training_store):
    with pytest.raises(ConfigError, match="another folder"):
        tune_network(client, "regressor", training_store, 3, study[0], study[1])


def test_the_command_says_what_it_found(study, training_store, tmp_path):
    out, _, _, second = study
    (tmp_path / "c.yaml").write_text(json.dumps({"training": SETTINGS}))
    words = ["tune", "classifier", "--store", training_store, "--trials", "3", "--out", str(out), "--workers", "1"]
    result = CliRunner().invoke(app, [*words, "--config", str(tmp_path / "c.yaml")])
    assert result.exit_code == 0, result.output
    assert f"{second['score']:.4f}"[:4] in result.output
    assert np.isfinite(second["score"])
