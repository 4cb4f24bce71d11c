"""Networks and baselines are judged on a store that is only read."""

import shutil
from pathlib import Path

import in_process
import numpy as np
import pandas as pd
import pytest
from conftest import CHUNKS, FRAME
from typer.testing import CliRunner

from csst_dask.cli import app
from csst_dask.config import ExecutionConfig, build_config
from csst_dask.errors import ConfigError, RunEnded
from csst_dask.evaluation.cost import CostUnknown
from csst_dask.evaluation.judged import Judged
from csst_dask.evaluation.page import EXTRACTION, TREES
from csst_dask.evaluation.truth import Truth
from csst_dask.pipeline.kept import KeptResults
from csst_dask.runners import evaluate
from csst_dask.runners.baselines import open_distinct, try_trees
from csst_dask.runners.collect import collect
from csst_dask.runners.evaluate import judge_store, judge_weights
from csst_dask.runners.predict import predict_survey
from csst_dask.runners.window import Task
from csst_dask.schema import BANDS
from csst_dask.store import SurveyStore
from csst_dask.training.loop import LOG_COLUMNS

EXPOSURES, SEED = 48, 3


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """Chips of small frames that keep their pixels; four levels of density, in fields far from each other."""
    path = str(tmp_path_factory.mktemp("judged") / "survey.zarr")
    simulation = {
        "seed": 5, "region": "mixed", "exposures": EXPOSURES, "detectors": (8, 9), "trails": False, "galaxies": False,
        "star_counts": tuple(np.tile((6e4, 2e5, 6e5, 1.5e6), EXPOSURES // 4)),
    }  # fmt: skip
    config = build_config({"simulation": simulation, "ingest": {"frame": FRAME, "chunks": CHUNKS}}, "test")
    in_process.simulate(path, config)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Two untrained networks, which do not say what they learned from."""
    import torch

    from csst_dask.models import build_classifier, build_regressor, residual_quantiles, save_weights

    folder, truth = tmp_path_factory.mktemp("weights") / "untrained", np.linspace(0, 4, 200)
    common = {"arch": "resnet18", "inputs": "maps", "channels": 4, "bands": list(BANDS)}
    torch.manual_seed(0)
    save_weights(build_classifier("resnet18", 4), folder / "classifier.safetensors", {"task": "classifier", **common})
    quantiles = residual_quantiles(truth, truth + np.sin(37 * truth) / 10)
    regressor = {"task": "regressor", "residual_quantiles": quantiles, **common}
    save_weights(build_regressor("resnet18", 4), folder / "regressor.safetensors", regressor)
    return folder


@pytest.fixture(scope="module")
def config(weights):
    return build_config({"inference": {"weights": str(weights), "batch": 16}}, "test")


def test_the_judgement_is_of_what_predict_writes(client, store, weights, config):
    judged = judge_weights(client, Truth.open(store), config, weights)
    with SurveyStore.write(store) as opened:
        predict_survey(client, opened, config)
        again = Judged.from_datasets(opened.scalars(), opened.predictions.scalars())
    for name in (
        "band",
        "n_star",
        "n_bright",
        "density_class",
        "log_star",
        "star_lower",
        "log_bright",
        "bright_lower",
        "bright_upper",
        "route",
    ):
        np.testing.assert_array_equal(getattr(judged, name), getattr(again, name), err_msg=name)
    np.testing.assert_allclose(judged.class_probability, again.class_probability)


@pytest.fixture(scope="module")
def trained(store, weights, tmp_path_factory):
    """The same networks, whose weights record a split of this store."""
    from csst_dask.models import load_weights, save_weights
    from csst_dask.training import load_samples
    from csst_dask.training.record import record_split

    folder, samples = tmp_path_factory.mktemp("trained") / weights.name, load_samples(store)
    record = {"split": record_split(samples, samples.split(SEED), SEED)}
    for task in ("classifier", "regressor"):
        model = load_weights(weights / f"{task}.safetensors", task)
        save_weights(model.module, folder / f"{task}.safetensors", model.metadata | record)
    return folder, samples.split(SEED)


def test_networks_and_baselines_are_judged_on_the_test_chips_that_the_weights_record(
    client, store, trained, config, tmp_path, monkeypatch
):
    folder, split = trained
    monkeypatch.setattr(evaluate, "_network_costs", lambda *_: ([], []))
    monkeypatch.setattr("csst_dask.evaluation.trees.LEAST_CHIPS", 5)
    page = judge_store(
        client, store, tmp_path / "out", config, [folder], part="test", baselines=[store], least_pixels=len(split.test)
    )
    text = page.read_text()
    compared = pd.read_csv(page.parent / "methods.csv")
    assert compared["method"].tolist() == [folder.name, TREES, EXTRACTION]
    assert compared["chips"].tolist() == [len(split.test)] * 3
    assert f"(split seed {SEED})" in text
    rest = 2 * EXPOSURES - len(split.test)
    assert text.count(f"{rest} chips; {len(split.test)} within 1.5 deg of judged chips were dropped") == 2
    assert "CPU s a chip" in text
    bright = pd.read_csv(page.parent / "methods_bright.csv").set_index("method")
    assert bright["common"].nunique() == 1
    errors = bright["mae_common"]
    assert (errors[[TREES, EXTRACTION]] < 0.5 * errors[folder.name]).all()  # the networks were never trained
    costs = pd.read_csv(page.parent / "costs.csv").set_index("method")
    assert (costs[["ms_per_image", "memory_mb"]] > 0).all(axis=None)
    assert costs.loc[TREES, "parameters"] > 1000
    assert set(pd.read_csv(page.parent / "table4.csv")["method"]) == {TREES, EXTRACTION}
    gates = pd.read_csv(page.parent / "gates.csv")
    assert gates["rule"].tolist()[::2] == ["most probable class", "expected cost"]
    assert "costs 5, one below" in text


def test_networks_of_the_configuration_are_judged_by_their_own_record(client, store, trained, tmp_path):
    """Not by that of those that ship: sky that they learned from would count as unseen."""
    folder, split = trained
    config = build_config({"inference": {"weights": str(folder), "batch": 16}}, "test")
    page = judge_store(client, store, tmp_path / "out", config, [None], part="test", costs=False)
    assert f"survey.zarr: {len(split.test)} chips" in page.read_text()
    named = judge_store(client, store, tmp_path / "named", config, [folder], part="test", costs=False)
    assert page.read_text() == named.read_text()


def test_a_page_takes_what_an_earlier_one_showed_away(client, store, trained, weights, config, tmp_path):
    folder, out = tmp_path / "pair", tmp_path / "out"
    shutil.copytree(trained[0], folder)
    for name, epochs in (("one/a", 2), ("two/a", 1), ("young", 0)):  # the last is in its first epoch
        (folder / name).mkdir(parents=True)
        rows = "".join(f"{epoch},2,1,0.1,3,0.5\n" for epoch in range(1, epochs + 1))
        (folder / name / "log.csv").write_text(f"{','.join(LOG_COLUMNS)}\n{rows}")
    assert set(evaluate._logs({"pair": folder})) == {"pair: one/a", "pair: two/a", "pair: young"}
    judge_store(client, store, out, config, [folder, weights], costs=False)
    assert {"losses.png", "methods.csv"} <= {path.name for path in out.iterdir()}
    (out / "extracted-this.jsonl").touch()
    judge_store(client, store, out, config, [weights], costs=False)
    again = judge_store(client, store, tmp_path / "new", config, [weights], costs=False)
    kept = {path.name for path in out.iterdir()} - {"extracted-this.jsonl"}
    assert kept == {path.name for path in again.parent.iterdir()}
    assert (out / "extracted-this.jsonl").exists()


def test_stores_with_pixels_are_a_comparison_of_their_own_and_what_cannot_run_is_explained(
    client, store, weights, trained, config, tmp_path, monkeypatch
):
    seen = []
    original = evaluate.Truth.apart_from

    def watch(self, others, separation):
        seen.append((self, others, original(self, others, separation)))
        return seen[-1][2]

    monkeypatch.setattr(evaluate.Truth, "apart_from", watch)
    page = judge_store(
        client, store, tmp_path / "out", config, [trained[0]], pixel_stores=(store, store), least_pixels=1, costs=False
    )
    (learning, judged, kept), *_ = seen
    assert len(kept) == len(learning) - len(judged)
    assert not set(kept.column("field")) & set(judged.column("field"))
    text = page.read_text()
    assert "## On chips that keep their pixels: survey" in text
    table = next(page.parent.glob("on_chips_that_keep*methods.csv"))
    assert pd.read_csv(table)["method"].tolist() == [trained[0].name, EXTRACTION]
    assert len(pd.read_csv(page.parent / "table5.csv")) == 8
    page = judge_store(client, store, tmp_path / "why", config, [weights], baselines=[store], costs=False)
    text = page.read_text()
    assert f"No {TREES}: they would learn from survey.zarr, 0 chips" in text
    assert "it needs at least 200" in text
    assert "do not record what they learned from" in text


def test_networks_alone_are_judged_if_no_baseline_is_asked_for(client, store, weights, config, tmp_path, monkeypatch):
    def fail(*_):
        raise CostUnknown("Measuring the cost of it failed: no GPU")

    monkeypatch.setattr(evaluate, "measure_network", fail)
    page = judge_store(client, store, tmp_path / "out", config, [weights], least_pixels=1)
    text = page.read_text()
    assert EXTRACTION not in text
    assert TREES not in text
    assert not list(page.parent.glob("extracted-*"))
    assert "Measuring the cost of it failed: no GPU. `--no-cost` leaves costs out." in text
    assert not (page.parent / "costs.csv").exists()


def test_baselines_learn_from_stores_that_are_left_and_from_none_twice(client, store, config, tmp_path, monkeypatch):
    monkeypatch.setattr("csst_dask.evaluation.trees.LEAST_CHIPS", 5)
    whole = Truth.open(store)
    fields = np.unique(whole.column("field"))
    judged, others = (whole.take(np.isin(whole.column("field"), some)) for some in (fields[:8], fields[8:]))
    found, note, _ = try_trees(client, [judged, others], [judged], config, None, None)
    assert len(found) == 1
    assert "survey.zarr, 0 chips" in note
    assert f"survey.zarr, {len(others.apart_from(judged, 1.5))} chips" in note
    assert try_trees(client, [judged], [judged], config, None, None)[0] == []
    with pytest.raises(ConfigError, match="chips in common"):
        open_distinct([store, store])


def test_weights_without_a_record_have_no_test_chips(client, store, weights, config, tmp_path):
    with pytest.raises(ConfigError, match="do not record which chips were their test chips"):
        judge_store(client, store, tmp_path, config, [weights], part="test")


def test_the_command_tells_the_scores_that_matter_most(store, trained, tmp_path):
    words = [
        "evaluate",
        "--store",
        store,
        "--weights",
        str(trained[0]),
        "--part",
        "test",
        "--no-cost",
        "--workers",
        "1",
    ]
    said = CliRunner().invoke(app, [*words, "--out", str(tmp_path)]).output
    accuracy = pd.read_csv(tmp_path / "overall.csv")["accuracy"]
    assert f"right class: {100 * accuracy[0]:.1f} ± " in said
    assert f"{100 * accuracy[1]:.1f} ± " in said
    assert f"bright stars: mean absolute error {pd.read_csv(tmp_path / 'bright.csv')['mae'][0]:.4f} ± " in said


def test_the_command_refuses_what_it_cannot_do(store, tmp_path, weights):
    words = ["evaluate", "--store", store, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*words, "--dataset", "--weights", str(weights)])
    assert result.exit_code == 2
    assert "judges nothing" in result.output
    assert CliRunner().invoke(app, [*words, "--dataset", "--pixel-stores", store, store]).exit_code == 2
    assert CliRunner().invoke(app, [*words, "--part", "random-test"]).exit_code == 2
    empty = str(tmp_path / "empty.zarr")
    plain = build_config({}, "test")
    SurveyStore.write(empty, plain.ingest, plain.mask).close()
    with pytest.raises(ConfigError, match="no chip that is done"):
        Truth.open(empty)


def fail(marks):
    with Path(marks).open("a") as file:
        file.write("x")
    raise ValueError("always")


def test_a_judgement_that_would_lack_chips_ends_as_the_configuration_says(client, tmp_path):
    tasks, rows = [Task("chip-0", (str(tmp_path / "tries"),), np.array([0]))], np.array([0])
    with pytest.raises(RunEnded, match=r"^judge of chip-0 failed: ValueError: always$"):
        collect(client, "judge", fail, tasks, rows, None, ExecutionConfig(retries=0))
    assert (tmp_path / "tries").read_text() == "x"


def count_up(marks, number):
    """A result of every kind that tasks give; the task of 2 fails as long as the file ``bad`` is there."""
    folder = Path(marks)
    with (folder / "tries").open("a") as file:
        file.write(f"{number} ")
    if number == 2 and (folder / "bad").exists():
        raise ValueError("bad")
    return {"counts": np.array([{"bright": float(number), "ratio": float("nan")}], object), "seconds": np.array([0.5])}


def test_a_judgement_that_is_interrupted_goes_on_to_the_same_end(client, tmp_path):
    rows = np.arange(5)
    tasks = [Task(f"chip-{row}", (str(tmp_path), int(row)), np.array([row])) for row in rows]
    settings = ExecutionConfig(retries=0)
    (tmp_path / "bad").touch()
    with pytest.raises(RunEnded):
        collect(client, "judge", count_up, tasks, rows, None, settings, KeptResults(tmp_path / "kept", "these"))
    done = [row for row in rows if KeptResults(tmp_path / "kept", "these").get(f"chip-{row}") is not None]
    assert 2 not in done
    with (tmp_path / "kept").open("a") as file:
        file.write('{"task": "chip-2", "fou')  # a kill in the middle of a line
    (tmp_path / "bad").unlink()
    (tmp_path / "tries").unlink()
    kept = KeptResults(tmp_path / "kept", "these")
    found = collect(client, "judge", count_up, tasks, rows, None, settings, kept)
    assert set(map(int, (tmp_path / "tries").read_text().split())) == set(rows.tolist()) - set(done)
    undisturbed = collect(client, "judge", count_up, tasks, rows, None, settings)
    for name, values in undisturbed.items():
        assert repr(found[name].tolist()) == repr(values.tolist())
    (tmp_path / "tries").unlink()
    again = collect(client, "judge", count_up, tasks, rows, None, settings, KeptResults(tmp_path / "kept", "these"))
    assert repr(again) == repr(found)
    assert not (tmp_path / "tries").exists()


def test_results_of_something_else_are_not_taken(tmp_path):
    KeptResults(tmp_path / "kept", "these").add("chip-0", {"seconds": np.array([1.0])})
    assert KeptResults(tmp_path / "kept", "those").get("chip-0") is None
    assert KeptResults(tmp_path / "kept", "these").get("chip-0") is None  # the file is of those now
    (tmp_path / "kept").write_bytes(b"\xff\x00[1]\n")
    assert KeptResults(tmp_path / "kept", "these").get("chip-0") is None
