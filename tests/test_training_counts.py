"""The recipe that corrects direct counts: what it learns from, and what it cannot do without."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import CHUNKS, FRAME
from in_process import simulate
from test_preprocess_counted import field
from test_training_fit import SPLIT, fit, make_samples

import csst_dask as cd
from csst_dask.config import Config, IngestConfig, SimulationConfig, TrainingConfig
from csst_dask.errors import ConfigError
from csst_dask.inference import load_two_stage
from csst_dask.models import load_weights
from csst_dask.models.calibrate import COUNT_QUANTILES
from csst_dask.preprocess.counted import ANCHORS, COUNTED, SPANS
from csst_dask.schema import MAGNITUDES
from csst_dask.training import load_samples

CONFIG = TrainingConfig(recipe="counts", epochs=30, batch=8, seed=3)
BIASED = 0.1
"""By how much the direct counts of `counted_samples` are too high, dex."""


def counted_samples(n=40):
    """Samples whose direct counts scatter about a truth that a network could learn."""
    samples, rng = make_samples(n), np.random.default_rng(1)
    slope = 10.0 ** (0.2 * (np.array(MAGNITUDES) - MAGNITUDES[-1]))
    brighter = np.rint(samples.n_star[:, None] * slope).astype(np.int64)
    numbers = np.zeros((n, len(COUNTED)), np.float32)
    truth = np.log10(1.0 + np.concatenate([brighter, samples.n_star[:, None]], axis=1))
    numbers[:, : len(ANCHORS)] = truth + BIASED + rng.normal(0, 0.02, truth.shape)
    numbers[:, len(ANCHORS) : len(ANCHORS) + len(SPANS)] = 0.05
    numbers[:, len(ANCHORS) + len(SPANS) :] = rng.normal(0, 1, (n, len(COUNTED) - len(ANCHORS) - len(SPANS)))
    bright = brighter[:, MAGNITUDES.index(23.5)]
    return replace(samples, n_brighter=brighter, n_bright=bright, counted=lambda rows: numbers[rows])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of both networks, and what their trainings came to."""
    out, results = tmp_path_factory.mktemp("counts"), {}
    for task in ("classifier", "regressor"):
        results[task] = fit(task, counted_samples(), SPLIT, CONFIG, out / task, threads=1)
        for file in (results[task].weights, results[task].card):
            shutil.copy(file, out)
    return out, results


def test_a_bias_is_learned_from_few_chips(trained):
    out, results = trained
    assert results["regressor"].metrics["mae_dex"][0] < 0.7 * BIASED
    metadata = load_weights(out / "regressor.safetensors").metadata
    assert metadata["inputs"] == "counts"
    assert len(metadata[COUNT_QUANTILES]) == len(MAGNITUDES)
    assert "direct counts" in (out / "regressor.md").read_text().lower()


def test_the_weights_predict_chips(trained):
    models = load_two_stage(trained[0])
    assert models.counts
    found = cd.predict_chips([cd.measure_image(field(300))], ["g"], 150.0, weights=trained[0])
    direct = found["direct_counts"][0]
    counts = 10 ** found["log_bright"][0] - 1
    assert 0.2 * direct[MAGNITUDES.index(23.5)] < counts < 2 * direct[MAGNITUDES.index(23.5)]


def test_a_training_that_runs_again_gives_the_same_weights(trained, tmp_path):
    again = fit("regressor", counted_samples(), SPLIT, CONFIG, tmp_path, threads=1)
    assert again.weights.read_bytes() == (trained[0] / "regressor.safetensors").read_bytes()


def test_samples_without_peaks_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"learns from peaks, which these samples do not hold; give survey stores"):
        fit("regressor", make_samples(40), SPLIT, CONFIG, tmp_path)


def test_an_architecture_for_maps_is_refused(tmp_path):
    config = CONFIG.model_copy(update={"arch": "resnet18"})
    with pytest.raises(ConfigError, match=r"has no maps for 'resnet18' to look at; leave training.arch out"):
        fit("regressor", counted_samples(), SPLIT, config, tmp_path)


def test_a_store_gives_what_was_counted_on_each_of_its_chips(tmp_path):
    config = Config(
        ingest=IngestConfig(frame=FRAME, chunks=CHUNKS, pixels="none"),
        simulation=SimulationConfig(exposures=2, detectors=(8, 9), region="demo", seed=4),
    )
    for name, seed in (("a", 4), ("b", 5)):
        simulation = config.simulation.model_copy(update={"seed": seed})
        simulate(str(tmp_path / f"{name}.zarr"), config.model_copy(update={"simulation": simulation}))
    samples = load_samples([tmp_path / "a.zarr", tmp_path / "b.zarr"])
    rows = np.array([7, 0, 3, 3])
    found = samples.counted(rows)
    assert found.shape == (4, len(COUNTED))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[2], found[3])
    np.testing.assert_array_equal(found[:1], load_samples(tmp_path / "b.zarr").counted(np.array([3])))
    assert samples.n_brighter.shape == (8, len(MAGNITUDES))
