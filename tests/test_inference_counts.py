"""Networks that correct direct counts: never beyond their bounds, and one account of a chip's stars."""

import numpy as np
import pytest
import torch
from test_preprocess_counted import field
from tiny_networks import save_correction

import csst_dask as cd
from csst_dask.errors import ConfigError
from csst_dask.inference import load_two_stage
from csst_dask.inference.predictor import predict_batch, share_out
from csst_dask.models.density import (
    ANCHORED,
    BOUND_SPANS,
    BRIGHT_PLACE,
    LEAST_LOWER,
    LEAST_UPPER,
    ask,
    build_density_network,
)
from csst_dask.preprocess.counted import COUNTED
from csst_dask.preprocess.inputs import SCALARS, anchor_count, context_definition, context_length, make_context
from csst_dask.schema import BLOCK_SHAPE, BLOCK_STATS, BRIGHT_LIMIT, CROWDED, MAGNITUDES, TILES

K = anchor_count("counts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("corrections")
    for task in ("classifier", "regressor"):
        save_correction(task, path)
    return path


@pytest.fixture(scope="module")
def chips():
    return [cd.measure_image(field(stars, seed=stars)) for stars in (0, 30, 400, 2500)]


@pytest.mark.parametrize("size", [0.1, 1.0, 100.0])
def test_a_correction_stays_within_its_bounds_whatever_was_learned(size):
    length = context_length("counts")
    torch.manual_seed(int(size))
    module = build_density_network("perceptron", 0, length, 0, anchors=K)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, size)
    context = torch.rand(200, length) * 4
    direct, span = context[:, ANCHORED : ANCHORED + 2 * K].chunk(2, dim=1)
    module.eval()
    answer = ask(module, {"context": length, "anchors": K, "task": "regressor"}, None, context)
    told = torch.cat([answer["counts"], answer["star"][:, None]], dim=1)
    assert (told >= direct - LEAST_LOWER - BOUND_SPANS * span - 1e-4).all()
    assert (told <= direct + LEAST_UPPER + BOUND_SPANS * span + 1e-4).all()
    torch.testing.assert_close(answer["bright"], answer["counts"][:, BRIGHT_PLACE])
    torch.testing.assert_close(answer["logits"].exp().sum(1), torch.ones(200), atol=2e-3, rtol=0)


def test_a_network_that_has_learned_nothing_believes_the_direct_counts():
    length = context_length("counts")
    module = build_density_network("perceptron", 0, length, 0, anchors=K)
    with torch.no_grad():
        module.context_head[-1].weight.zero_()
    context = torch.rand(20, length)
    answer = ask(module.eval(), {"context": length, "anchors": K, "task": "regressor"}, None, context)
    torch.testing.assert_close(answer["counts"], context[:, ANCHORED : ANCHORED + K - 1])


def test_counts_of_a_chip_agree_with_one_another(folder, chips):
    found = cd.predict_chips(chips, ["g"] * len(chips), 150.0, weights=folder)
    assert found["star_counts"].shape == (len(chips), len(MAGNITUDES))
    gated = found["density_class"] == CROWDED
    for name in ("star_counts", "star_counts_lower", "star_counts_upper", "tile_bright"):
        assert (np.isnan(found[name]).reshape(len(chips), -1).all(1) == gated).all(), name
    some = ~gated
    assert (np.diff(found["star_counts"][some], axis=1) >= 0).all()
    assert (found["star_counts_lower"] <= found["star_counts"] + 1e-3)[some].all()
    assert (found["star_counts_upper"] >= found["star_counts"] - 1e-3)[some].all()
    bright = found["star_counts"][:, MAGNITUDES.index(BRIGHT_LIMIT)]
    assert (bright[some] >= found["bright_count"][some] * (1 - 1e-5)).all()  # they rise with magnitude
    np.testing.assert_allclose(found["tile_bright"][some].sum((1, 2)), found["bright_count"][some], rtol=1e-4)
    np.testing.assert_allclose(found["tile_star"].sum((1, 2)), 10.0 ** found["log_star"] - 1, rtol=1e-4, atol=1e-3)


def test_direct_counts_are_the_same_beside_any_networks(folder, chips):
    one = cd.predict_chips(chips, ["g"] * len(chips), 150.0, weights=folder)
    other = cd.predict_chips(chips, ["g"] * len(chips), 150.0)
    for name in ("direct_counts", "direct_counts_error", "direct_tile"):
        np.testing.assert_array_equal(one[name], other[name])
    for row, measured in enumerate(chips):
        alone = cd.direct_counts(measured, "g")
        np.testing.assert_allclose(one["direct_counts"][row], alone.counts, rtol=1e-6)
        np.testing.assert_allclose(one["direct_tile"][row], alone.tile, rtol=1e-6)


def test_a_chip_does_not_depend_on_its_company(folder, chips):
    together = cd.predict_chips(chips, ["g"] * len(chips), 150.0, weights=folder)
    for row, measured in enumerate(chips):
        alone = cd.predict_chips([measured], ["g"], 150.0, weights=folder)
        for name, values in alone.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(values[0], together[name][row], rtol=1e-4, atol=1e-4, err_msg=name)
            else:
                np.testing.assert_array_equal(values[0], together[name][row], err_msg=name)


def test_tiles_share_a_count_by_what_was_counted_in_them():
    rng = np.random.default_rng(0)
    tiles = rng.poisson(3.0, (3, TILES, TILES)).astype(float)
    tiles[1] = 0
    tiles[2, 0] = np.nan
    found = {"bright_count": np.array([500.0, 20.0, np.nan]), "log_star": np.array([3.0, 1.5, 4.0])}
    shared = share_out(found, tiles)
    np.testing.assert_allclose(shared["tile_bright"][:2].sum((1, 2)), [500, 20], rtol=1e-5)
    np.testing.assert_allclose(shared["tile_star"].sum((1, 2)), 10 ** found["log_star"] - 1, rtol=1e-5)
    np.testing.assert_allclose(shared["tile_bright"][0] * tiles[0].sum(), 500 * tiles[0], rtol=1e-5)
    assert np.ptp(shared["tile_bright"][1]) == 0  # nothing was counted: evenly
    assert (shared["tile_star"][2, 0] == 0).all()
    assert np.isnan(shared["tile_bright"][2]).all()


def test_such_networks_need_what_was_counted(folder):
    models = load_two_stage(folder)
    maps, scalars = np.ones((1, len(BLOCK_STATS), *BLOCK_SHAPE), np.float32), dict.fromkeys(SCALARS, np.ones(1))
    with pytest.raises(ValueError, match="need what was counted"):
        predict_batch(models, maps, scalars, ["g"], 1)
    assert models.counts
    context = make_context("counts", maps, scalars, ["g"], np.ones((1, len(COUNTED)), np.float32))
    assert context.shape == (1, context_length("counts"))


def test_weights_of_another_definition_are_refused(tmp_path):
    for task, known in (("classifier", context_definition("counts")), ("regressor", context_definition("context"))):
        save_correction(task, tmp_path, context_sha256=known)
    with pytest.raises(ConfigError, match=r"regressor of .* learned from statistics .* defined otherwise"):
        load_two_stage(tmp_path)
