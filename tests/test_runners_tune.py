"""A search that can be killed and called again, repeats itself, and whose best settings can be trained with."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import optuna
import pytest
from distributed import Client, LocalCluster
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import TrainingConfig, build_config, load_config
from csst_dask.errors import ConfigError
from csst_dask.pipeline.isolated import run_alone
from csst_dask.runners import tune
from csst_dask.runners.faults import ClusterLost, TaskFailed
from csst_dask.runners.tune import SPACE, search_space, settings_of, tune_network
from csst_dask.training import fit, load_samples
from csst_dask.training.study import JOURNAL, Search, _unjudged, create_study, open_study

SETTINGS = {"arch": "resnet18", "context_epochs": 0, "epochs": 2, "batch": 16}
CONFIG = build_config({"training": SETTINGS}, "a test")


def study_in(out):
    storage = JournalStorage(JournalFileBackend(str(out / JOURNAL)))
    return optuna.load_study(study_name=optuna.get_all_study_summaries(storage)[0].study_name, storage=storage)


def states_in(out):
    return sorted(trial.state.name for trial in study_in(out).trials)


def test_what_is_searched_depends_on_the_network(tmp_path):
    paper = TrainingConfig(recipe="paper")
    assert "mse_weight" in search_space("regressor", paper)
    assert "mse_weight" not in search_space("classifier", paper)
    assert "layer_rate_rest" not in search_space("regressor", paper)
    assert search_space("regressor", paper.model_copy(update={"pretrained": tmp_path / "file"})) == SPACE
    params = {"learning_rate": 1e-3, "layer_rate_last": 0.5, "layer_rate_rest": 0.1}
    assert settings_of(params, paper) == {"learning_rate": 1e-3, "layer_rates": [1.0, 0.5, 0.1]}


@pytest.fixture(scope="module")
def study(client, training_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    first = tune_network(client, "classifier", training_store, 2, out, CONFIG)
    told = []
    second = tune_network(client, "classifier", training_store, 3, out, CONFIG, lambda *trial: told.append(trial))
    return out, first, second, told


def test_a_study_goes_on_and_never_gets_worse(study):
    out, first, second, told = study
    assert (first["trials"], second["trials"]) == (2, 3)
    assert second["score"] >= first["score"]
    assert 0 <= first["score"] <= 1
    assert second["failed"] == 0
    assert told == [("trial-2", "done", "")]
    assert states_in(out) == ["COMPLETE"] * 3


def test_what_trials_leave_is_the_study_and_the_inputs(study):
    assert {path.name for path in study[0].iterdir()} == {JOURNAL, "best.yaml", "inputs"}


def test_the_best_settings_repeat_the_best_trial(client, study, training_store, tmp_path):
    """Trained with the file alone, the network scores what the trial did, to the digits of the log."""
    out, _, second, _ = study
    config = load_config(out / "best.yaml").training
    assert (config.recipe, config.arch, config.epochs) == ("csst", "resnet18", 2)
    for name, value in second["settings"].items():
        low, high = SPACE[name]
        assert low <= value <= high
        assert getattr(config, name) == value
    samples = load_samples(training_store, config.bands)
    threads = client.submit(tune._threads, tune._workers_by_host(client), pure=False).result()
    result = fit("classifier", samples, samples.split(config.seed), config, tmp_path, threads=threads)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    kept = rows[result.best_epoch - 1]
    assert float(kept["validation_score"]) == pytest.approx(second["score"], rel=1e-5)


def test_the_command_says_what_it_found(client, study, training_store, tmp_path):
    out, _, second, _ = study
    (tmp_path / "c.yaml").write_text(json.dumps({"training": SETTINGS}))
    words = ["tune", "classifier", "--store", training_store, "--trials", "3", "--out", str(out)]
    words += ["--scheduler", client.scheduler.address, "--config", str(tmp_path / "c.yaml")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"best accuracy: {second['score']:.4f}" in result.output
    assert f"learning_rate: {second['settings']['learning_rate']}" in result.output


def test_a_line_that_was_cut_off_does_not_spoil_the_study(client, study, training_store):
    whole = (study[0] / JOURNAL).read_bytes()
    with (study[0] / JOURNAL).open("ab") as file:
        file.write(whole.splitlines(keepends=True)[-1][:-9])
    assert tune_network(client, "classifier", training_store, 3, study[0], CONFIG) == study[2]
    assert states_in(study[0]) == ["COMPLETE"] * 3


@pytest.mark.parametrize(
    ("task", "change", "what"),
    [
        ("regressor", {}, "task 'classifier', expected 'regressor'"),
        ("classifier", {"epochs": 3}, "epochs 2, expected 3"),
        ("classifier", {"arch": None}, "arch 'resnet18', expected 'perceptron'"),
        ("classifier", {"recipe": "paper"}, "recipe 'csst', expected 'paper'"),
        ("classifier", {"batch": 8}, "batch 16, expected 8"),
        ("classifier", {"bands": ("g",)}, r"bands \[.*\], expected \['g'\]"),
    ],
)
def test_another_study_is_not_mixed_in(client, study, training_store, task, change, what):
    config = build_config({"training": SETTINGS | change}, "a test")
    before = (study[0] / JOURNAL).read_bytes()
    with pytest.raises(ConfigError, match=f"{what}.*choose another folder"):
        tune_network(client, task, training_store, 4, study[0], config)
    assert (study[0] / JOURNAL).read_bytes() == before


def test_settings_that_are_searched_do_not_make_another_study(client, study, training_store):
    config = build_config({"training": SETTINGS | {"learning_rate": 5e-3, "ranks": 2}}, "a test")
    assert tune_network(client, "classifier", training_store, 3, study[0], config) == study[2]


def test_a_wrong_setting_is_told_before_the_first_trial(client, training_store, tmp_path):
    config = build_config({"training": SETTINGS | {"arch": "transformer"}}, "a test")
    with pytest.raises(ConfigError, match="transformer"):
        tune_network(client, "classifier", training_store, 2, tmp_path, config)
    assert study_in(tmp_path).trials == []


def test_a_trial_that_diverges_is_pruned_and_not_tried_again(client, training_store, tmp_path):
    """At a rate that no network survives."""
    told, limits = [], SPACE["learning_rate"]

    def set_limits(found):
        tune.SPACE["learning_rate"] = found

    client.run(set_limits, (1e30, 1e31))
    try:
        with pytest.raises(ConfigError, match="2 pruned, 0 failed"):
            tune_network(client, "classifier", training_store, 2, tmp_path, CONFIG, lambda *trial: told.append(trial))
    finally:
        client.run(set_limits, limits)
    assert states_in(tmp_path) == ["PRUNED"] * 2
    assert sorted(name for name, _, _ in told) == ["trial-0", "trial-1"]
    assert all(state == "pruned" and "the loss is" in reason for _, state, reason in told)
    assert not list(tmp_path.glob("trial-*"))


def test_a_trial_that_fails_is_told_once_and_tried_again_when_asked(client, training_store, tmp_path):
    """Workers that cannot write the trial's folder."""
    out, told = tmp_path / "out", []
    out.mkdir()
    for k in range(2):
        (out / f"trial-{k:04d}").touch()
    with pytest.raises(ConfigError, match="0 pruned, 2 failed"):
        tune_network(client, "classifier", training_store, 2, out, CONFIG, lambda *trial: told.append(trial))
    assert sorted((name, state) for name, state, _ in told) == [("trial-0", "failed"), ("trial-1", "failed")]
    assert states_in(out) == ["FAIL"] * 2
    for path in out.glob("trial-*"):
        path.unlink()
    found = tune_network(client, "classifier", training_store, 1, out, CONFIG)
    assert (found["trials"], found["failed"]) == (1, 2)


def test_trials_that_fail_are_replaced_as_long_as_others_do_not(client, training_store, tmp_path):
    def block(name, *numbers):
        (tmp_path / name).mkdir()
        for number in numbers:
            (tmp_path / name / f"trial-{number:04d}").touch()
        return tmp_path / name

    expected = []
    found = tune_network(
        client, "classifier", training_store, 2, block("some", 0), CONFIG, expect=lambda total: expected.append(total)
    )
    assert (found["trials"], found["failed"], expected) == (2, 1, [2, 3])
    out = block("all", *range(1, 20))
    with pytest.raises(TaskFailed, match=r"found 1 trials .* expected 3: the last 2 failed \(.*trial-000"):
        tune_network(client, "classifier", training_store, 3, out, CONFIG)
    assert states_in(out) == ["COMPLETE"] + ["FAIL"] * 4
    assert (out / "best.yaml").exists()


def test_a_search_without_workers_ends(training_store, tmp_path):
    config = build_config({"training": SETTINGS, "execution": {"storage_timeout": 1}}, "a test")
    empty = LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=":0", silence_logs=50)
    with empty, Client(empty) as nobody, pytest.raises(ClusterLost, match="no worker"):
        tune_network(nobody, "classifier", training_store, 1, tmp_path, config)


def test_a_trial_takes_as_long_as_it_likes(client, training_store, tmp_path):
    settings = {
        "training": SETTINGS | {"epochs": 1},
        "execution": {"time_limit": 0.01, "worker_losses": 1, "process_deaths": 1},
    }
    workers = {**client.run(os.getpid)}
    found = tune_network(client, "classifier", training_store, 1, tmp_path, build_config(settings, "a test"))
    assert (found["trials"], found["failed"]) == (1, 0)
    assert client.run(os.getpid) == workers


def searched_serially(out, seed, trials, resume_at=None):
    """Parameters of trials that are told a score of their own, without any training."""
    search = Search("regressor", [], str(out), {"recipe": "paper", "seed": seed}, "a study", "")
    create_study(search, {})
    for place in range(trials):
        trial = open_study(search, place).ask()
        params = {name: trial.suggest_float(name, *limits, log=True) for name, limits in list(SPACE.items())[:3]}
        trial.study.tell(trial, sum(np.log(value) ** 2 for value in params.values()))
    return [trial.params for trial in open_study(search, 0).trials]


def test_a_serial_search_repeats_itself_and_no_trial_repeats_another(tmp_path):
    one, two, other = (searched_serially(tmp_path / name, seed, 14) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert one == two
    assert len({tuple(params.values()) for params in one + other}) == 28


def test_trials_that_run_at_the_same_time_do_not_look_at_the_same_place(tmp_path):
    search = Search("classifier", [], str(tmp_path), {}, "a study", "")
    create_study(search, {})
    asked = [open_study(search, place).ask() for place in range(6)]
    rates = [trial.suggest_float("learning_rate", *SPACE["learning_rate"], log=True) for trial in asked]
    assert len(set(rates)) == 6
    assert open_study(search, 0).sampler._constant_liar


def test_a_trial_takes_its_share_of_the_cores(client):
    def share(cores, workers):
        import dask.system

        real, dask.system.CPU_COUNT = dask.system.CPU_COUNT, cores
        try:
            return tune._threads(workers)
        finally:
            dask.system.CPU_COUNT = real

    counted = tune._workers_by_host(client)
    assert counted == {"127.0.0.1": 2}
    for cores, workers, expected in ((16, counted, 8), (16, {"127.0.0.1": 5}, 3), (2, {"127.0.0.1": 5}, 1)):
        assert client.submit(share, cores, workers, pure=False).result() == expected
    assert run_alone(share, None, None, 16, {"a": 2, "b": 5}) == 3


def test_a_killed_search_goes_on_to_as_many_trials_as_asked_for(client, training_store, tmp_path):
    """The whole process tree dies in the second trial; its parameters are searched again."""
    out = tmp_path / "out"
    (tmp_path / "c.yaml").write_text(json.dumps({"training": SETTINGS | {"epochs": 3}}))
    words = [sys.executable, "-m", "csst_dask", "tune", "classifier", "--store", training_store, "--trials", "3"]
    words += ["--out", str(out), "--workers", "1", "--config", str(tmp_path / "c.yaml")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

    def reports():
        text = (out / JOURNAL).read_text() if (out / JOURNAL).exists() else ""
        return text.count('"intermediate_value"')

    while reports() < 4:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert states_in(out) == ["COMPLETE", "RUNNING"]
    assert list(out.glob("trial-*"))
    config = load_config(tmp_path / "c.yaml")
    found = tune_network(client, "classifier", training_store, 3, out, config)
    assert (found["trials"], found["failed"]) == (3, 1)
    trials = study_in(out).trials
    assert trials[1].state.name == "FAIL"
    assert trials[1].params in [trial.params for trial in trials[2:]]
    assert states_in(out) == ["COMPLETE"] * 3 + ["FAIL"]
    assert not list(out.glob("trial-*"))


@pytest.mark.parametrize(
    ("task", "settings", "epochs"),
    [
        ("classifier", {"recipe": "paper", "epochs": 30}, 10),
        ("regressor", {"recipe": "paper", "pretrained": "resnet50.pth"}, 70),  # rates of layers act in the last stage
        ("classifier", {"context_epochs": 240}, 80),
        ("regressor", {"arch": "resnet18", "context_epochs": 50, "epochs": 10}, 50),
    ],
)
def test_trials_are_compared_once_what_is_searched_has_acted(task, settings, epochs):
    assert _unjudged(Search(task, [], "", settings, "", "")) == epochs
