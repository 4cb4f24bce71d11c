import shutil

import numpy as np
import pytest
import torch
from tiny_networks import save_perceptron

from csst_dask.config import RoutingConfig
from csst_dask.errors import ConfigError
from csst_dask.inference import Predictor, load_two_stage, predict_batch, route
from csst_dask.inference.device import choose_device, choose_precision, is_fatal, is_out_of_memory
from csst_dask.inference.predictor import CPU_BATCH, MAX_BATCH, batch_that_fits
from csst_dask.models import (
    build_classifier,
    build_regressor,
    load_weights,
    residual_quantiles,
    save_weights,
    weights_folder,
)
from csst_dask.models.regressor import set_output_level

N, SIZE = 7, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    common = {"arch": "resnet18", "inputs": "maps", "channels": 4, "bands": ["g", "r", "i"]}
    classifier = build_classifier("resnet18", 4)
    regressor = build_regressor("resnet18", 4)
    set_output_level(regressor, 2.0)
    for module in (classifier, regressor):
        module.train()
        with torch.no_grad():
            for _ in range(4):
                module(torch.randn(8, 4, SIZE, SIZE))
    save_weights(classifier, path / "classifier.safetensors", {**common, "task": "classifier"})
    quantiles = residual_quantiles(np.linspace(-0.2, 0.3, 101), np.zeros(101))
    metadata = {**common, "task": "regressor", "bands": ["g", "r"], "residual_quantiles": quantiles}
    save_weights(regressor, path / "regressor.safetensors", metadata)
    return path


@pytest.fixture(scope="module")
def models(folder):
    return load_two_stage(folder)


def chips(n=N, seed=0):
    rng = np.random.default_rng(seed)
    block_stats = rng.exponential(0.2, (n, 6, SIZE, SIZE)).astype(np.float32) * rng.lognormal(0, 2, (n, 1, 1, 1))
    scalars = {name: rng.uniform(0.05, 0.2, n) for name in ("pixel_mean", "pixel_std", "sky_level", "sky_sigma")}
    return block_stats.astype(np.float32), scalars, ["g", "r", "i", "u", "g", "r", "g"][:n]


def subset(rows):
    block_stats, scalars, band = chips()
    return block_stats[rows], {k: v[rows] for k, v in scalars.items()}, [band[i] for i in rows]


def test_a_chip_does_not_depend_on_its_company(models):
    together = predict_batch(models, *chips(), batch=4)
    for rows in ([3], [6, 5, 4, 3, 2, 1, 0], [2, 0]):
        part = predict_batch(models, *subset(rows), batch=4)
        for name, values in part.items():
            np.testing.assert_allclose(values, together[name][rows], rtol=1e-6, atol=1e-6, err_msg=name)


def test_another_batch_size_changes_rounding_only(models):
    one, other = predict_batch(models, *chips(), batch=4), predict_batch(models, *chips(), batch=7)
    np.testing.assert_allclose(one["class_probability"], other["class_probability"], atol=1e-5)
    np.testing.assert_allclose(one["log_bright"], other["log_bright"], atol=1e-5)


def test_predictions_agree_with_each_other(models):
    found = predict_batch(models, *chips(), batch=4)
    np.testing.assert_allclose(found["class_probability"].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found["density_class"], found["class_probability"].argmax(axis=1))
    np.testing.assert_array_equal(found["confidence"], found["class_probability"].max(axis=1))
    np.testing.assert_allclose(found["bright_count"], 10.0 ** found["log_bright"] - 1, rtol=1e-5)
    assert (found["bright_lower"] < found["bright_count"]).all()
    assert (found["bright_count"] < found["bright_upper"]).all()
    assert found["out_of_distribution"].tolist() == [False, False, True, True, False, False, False]
    dtypes = {name: values.dtype.name for name, values in found.items()}
    assert dtypes.pop("density_class") == "int8"
    assert dtypes.pop("out_of_distribution") == "bool"
    assert set(dtypes.values()) == {"float32"}


def test_crowded_chips_are_bypassed(folder):
    models = load_two_stage(folder)
    with torch.no_grad():
        models.classifier.module.fc.bias[5] += 100
    found = predict_batch(models, *chips(), batch=4)
    assert (found["density_class"] == 5).all()
    for name in ("log_bright", "bright_count", "bright_lower", "bright_upper"):
        assert np.isnan(found[name]).all()


def test_counts_are_never_negative(folder):
    models = load_two_stage(folder)
    set_output_level(models.regressor.module, -3.0)
    found = predict_batch(models, *chips(), batch=4)
    for name in ("log_bright", "bright_count", "bright_lower"):
        assert (found[name] == 0).all()


def test_no_chips(models):
    block_stats, scalars, _ = chips()
    found = predict_batch(models, block_stats[:0], {k: v[:0] for k, v in scalars.items()}, [], batch=4)
    assert found["class_probability"].shape == (0, 6)
    assert all(len(values) == 0 for values in found.values())


def test_networks_of_another_context_are_refused(tmp_path):
    shipped = load_weights(weights_folder() / "classifier.safetensors")
    for task in ("classifier", "regressor"):
        shutil.copy(weights_folder() / f"{task}.safetensors", tmp_path)
    load_two_stage(tmp_path)
    save_weights(shipped.module, tmp_path / "classifier.safetensors", shipped.metadata | {"context_sha256": "0" * 64})
    with pytest.raises(ConfigError, match=r"classifier of .* defined otherwise"):
        load_two_stage(tmp_path)


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"classifier\.safetensors"):
        load_two_stage(tmp_path)
    (tmp_path / "classifier.safetensors").write_bytes((folder / "regressor.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="expected a classifier"):
        load_two_stage(tmp_path)
    with pytest.raises(ValueError, match="at least 1"):
        predict_batch(load_two_stage(folder), *chips(), batch=0)


def short_of_memory(models, most):
    """Let the classifier fail with more chips than this at a time; the sizes that it was asked for."""
    asked = []

    def refuse(module, inputs):
        asked.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    models.classifier.module.register_forward_pre_hook(refuse)
    return asked


def test_a_batch_is_halved_for_good_when_memory_runs_out(folder, models):
    expected, other = predict_batch(models, *chips(), batch=8), load_two_stage(folder)
    asked, predictor = short_of_memory(other, 2), Predictor(other, batch=8)
    found = predictor.predict(*chips())
    assert asked == [8, 4, 2, 2, 2, 2]
    assert predictor.batch == 2
    predictor.predict(*chips(2))
    assert asked[6:] == [2]
    for name in ("class_probability", "log_bright"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    np.testing.assert_array_equal(found["density_class"], expected["density_class"])


def test_no_memory_for_one_chip_and_other_errors_are_told(folder):
    models = load_two_stage(folder)
    short_of_memory(models, 0)
    with pytest.raises(MemoryError, match=r"one chip.*inference\.device"):
        Predictor(models, batch=4).predict(*chips())
    models = load_two_stage(folder)
    models.classifier.module.conv1 = torch.nn.Conv2d(9, 64, 7)
    predictor = Predictor(models, batch=4)
    with pytest.raises(RuntimeError, match="channels"):
        predictor.predict(*chips())
    assert predictor.batch == 4


def test_a_processor_computes_in_full_precision_and_in_its_own_batches(models):
    predictor = Predictor(models)
    assert (predictor.batch, predictor.precision) == (CPU_BATCH, torch.float32)
    found, expected = predictor.predict(*chips()), predict_batch(models, *chips(), batch=CPU_BATCH)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    assert choose_device("cpu") == "cpu"
    assert choose_precision("bf16", "cpu") is torch.float32


@pytest.mark.parametrize(
    ("free", "chip", "expected"), [(1e9, 1e7, 64), (10, 1e7, 1), (1e12, 1, MAX_BATCH), (1e9, 0, MAX_BATCH)]
)
def test_the_batch_fits_into_the_free_memory(free, chip, expected):
    assert batch_that_fits(free, chip) == expected


def test_errors_that_break_a_device_are_told_from_those_that_do_not():
    accelerator = getattr(torch, "AcceleratorError", RuntimeError)
    illegal = accelerator("CUDA error: an illegal memory access was encountered")
    wrapped = ValueError("reading failed")
    wrapped.__cause__ = illegal
    for error in (
        illegal,
        wrapped,
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    ):
        assert is_fatal(error)
        assert not is_out_of_memory(error)
    full = torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")
    for error in full:
        assert is_out_of_memory(error)
    for error in (*full, RuntimeError("shapes"), ValueError("CUDA error: said a file"), OSError("disk")):
        assert not is_fatal(error)


@pytest.mark.parametrize(
    ("limits", "crowded", "expected"),
    [
        ((np.inf, np.inf), False, False),
        ((0.0, np.inf), False, True),
        ((np.inf, 0.0), False, True),
        ((0.0, 0.0), False, True),
        ((np.inf, 0.0), True, False),  # the regressor is not asked about crowded chips
        ((0.0, np.inf), True, True),
    ],
)
def test_a_chip_is_out_of_distribution_if_either_network_finds_it_so(tmp_path, limits, crowded, expected):
    for task, limit in zip(("classifier", "regressor"), limits, strict=True):
        save_perceptron(task, tmp_path, limit, bands=["g"])
    models = load_two_stage(tmp_path)
    with torch.no_grad():
        models.classifier.module.context_head[-1].bias[0] = 6.0 if crowded else 2.5
    block_stats, scalars, _ = chips()
    found = predict_batch(models, block_stats, scalars, ["g"] * N, batch=4)
    assert (found["density_class"] == 5).all() == crowded
    assert found["out_of_distribution"].tolist() == [expected] * N
    names, _ = route(
        found["class_probability"][:, 5],
        found["bright_count"],
        np.ones(N),
        [True] * N,
        found["out_of_distribution"],
        RoutingConfig(),
    )
    assert set(names.tolist()) <= ({"review"} if expected else {"crowded", "standard", "sparse"})
