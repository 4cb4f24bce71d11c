"""The density network: probabilities from a law, and what is unlike the chips that it learned from."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA

from csst_dask.models import build_network
from csst_dask.models.calibrate import best_temperature
from csst_dask.models.density import (
    CHANGED,
    COMPONENTS,
    LEAST_VARIANCE,
    FiLM,
    ask,
    build_density_network,
    class_log_chance,
    class_log_probability,
)
from csst_dask.schema import BANDS, CLASS_BORDERS, CLASS_EDGES, N_CLASSES, density_class

CONTEXT = len(BANDS) + 5


def context_of(bands, rest):
    """One indicator for each band, then five numbers."""
    return torch.cat([torch.eye(len(BANDS))[torch.as_tensor(bands)], torch.as_tensor(rest, dtype=torch.float32)], dim=1)


@pytest.fixture(scope="module")
def seen():
    """Context of 600 chips of three bands; of the five numbers the last one never changes."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(600, 4)) @ rng.normal(size=(4, 4)) + 3.0
    bands = rng.integers(0, 3, 600)
    return context_of(bands, np.hstack([mixed + bands[:, None], np.full((600, 1), 2.0)]))


@pytest.fixture(scope="module")
def network(seen):
    torch.manual_seed(0)
    module = build_density_network("resnet18", 4, CONTEXT, 0).eval()
    module.standardise(seen)
    return module


def test_class_probabilities_are_those_of_a_laplace_law():
    edges = np.log10(1 + np.asarray(CLASS_EDGES, float) - 0.5)
    rng = np.random.default_rng(0)
    median, log_scale = rng.uniform(-1, 7, 300), rng.uniform(-5, 1, 300)
    star = torch.tensor(np.stack([median, log_scale], axis=1))
    found = class_log_probability(star, torch.tensor(edges)).numpy()
    law = stats.laplace(median[:, None], np.exp(log_scale)[:, None])
    below = np.hstack([np.zeros((300, 1)), law.cdf(edges), np.ones((300, 1))])
    np.testing.assert_allclose(found, np.log(np.diff(below, axis=1) + 1e-4), rtol=1e-9, atol=1e-9)


def test_the_likeliest_class_of_a_certain_count_is_its_class(network):
    n_star = np.array([0, 1, 99, 100, 101, 5000, 99_999, 100_001, 2_000_000])
    star = torch.tensor(np.stack([np.log10(1.0 + n_star), np.full(len(n_star), -12.0)], axis=1), dtype=torch.float32)
    found = class_log_probability(star, network.edges)
    assert found.argmax(1).tolist() == density_class(n_star).tolist()
    assert found.min() >= math.log(1e-4) - 1e-6


def test_a_temperature_widens_the_count_and_a_certain_count_is_told_as_certain():
    rng = np.random.default_rng(0)
    median, log_scale = rng.uniform(0, 6, 20_000), rng.uniform(-4, 0, 20_000)
    answer = {"logits": torch.zeros(len(median), N_CLASSES)}
    answer |= {"star": torch.tensor(median), "star_scale": torch.tensor(log_scale)}
    found = class_log_chance(answer, 2.0)
    wide = torch.tensor(np.stack([median, log_scale + math.log(2)], axis=1))
    torch.testing.assert_close(
        found.exp(), class_log_probability(wide, torch.tensor(CLASS_BORDERS)).exp(), atol=6e-3, rtol=0
    )
    torch.testing.assert_close(found.exp().sum(1), torch.ones(len(median), dtype=found.dtype))
    drawn = rng.laplace(median, 1.7 * np.exp(log_scale))
    truth = density_class(np.maximum(np.round(10**drawn - 1), 0).astype(int))
    assert best_temperature(lambda t: class_log_chance(answer, t).numpy(), truth) == pytest.approx(1.7, rel=0.08)
    certain = {"logits": torch.zeros(1, N_CLASSES), "star": torch.tensor([2.5]), "star_scale": torch.tensor([-5.0])}
    assert 0.99 < class_log_chance(certain, 1.5).exp().max() < 0.999


def test_a_few_counts_that_are_off_by_far_do_not_widen_all_others():
    rng = np.random.default_rng(1)
    n, scale = 4000, 0.02
    median = rng.uniform(0, 6, n)
    drawn = np.where(rng.random(n) < 0.02, rng.uniform(0, 6, n), rng.laplace(median, scale))
    truth = density_class(np.maximum(np.round(10**drawn - 1), 0).astype(int))
    answer = {"logits": torch.zeros(n, N_CLASSES), "star": torch.tensor(median)}
    answer["star_scale"] = torch.full((n,), math.log(scale))
    found = best_temperature(lambda t: class_log_chance(answer, t).numpy(), truth)
    assert found < 1.3
    chance = class_log_chance(answer, found).exp().numpy()
    assert chance.max(1).mean() == pytest.approx((chance.argmax(1) == truth).mean(), abs=0.015)


def test_film_starts_as_the_identity_and_then_follows_the_context():
    torch.manual_seed(0)
    film, maps, context = FiLM(8, 3), torch.randn(2, 3, 4, 4), torch.randn(2, 8)
    assert torch.equal(film(maps, context), maps)
    torch.nn.init.constant_(film.affine.bias, 0.5)
    torch.testing.assert_close(film(maps, context), 1.5 * maps + 0.5)
    torch.nn.init.normal_(film.affine.weight)
    assert not torch.allclose(film(maps, context)[0], film(maps, context.flip(0))[0])


def test_the_distance_of_what_was_seen_has_the_mean_of_its_law(network, seen):
    """Mean square = mean over the directions of v / (v + `LEAST_VARIANCE`), v the variances about the bands' means."""
    constant = seen.std(0) < 1e-6
    known = ((seen - seen.mean(0)) / seen.std(0)).double().numpy()
    known[:, constant] = 0.0
    bands = seen[:, : len(BANDS)].argmax(1).numpy()
    centres = np.stack([known[bands == band].mean(0) for band in range(3)])
    residual = known - centres[bands]
    values = np.clip(np.linalg.eigvalsh(residual.T @ residual / len(residual)), 0, None)
    found = network.ood_score(seen).double()
    assert found.square().mean().item() == pytest.approx(np.mean(values / (values + LEAST_VARIANCE)), rel=1e-3)
    whitening = np.linalg.inv(residual.T @ residual / len(residual) + LEAST_VARIANCE * np.eye(CONTEXT))
    expected = np.sqrt(np.einsum("ni,ij,nj->n", residual, whitening, residual) / CONTEXT)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3)


def test_what_is_far_away_is_farther_and_what_never_changed_must_not(network, seen):
    usual = network.ood_score(seen)
    far, changed, wobbled = seen.clone(), seen.clone(), seen.clone()
    far[:, len(BANDS)] += 10 * seen[:, len(BANDS)].std()
    changed[:, -1] += 2 * CHANGED
    wobbled[:, -1] += 0.5 * CHANGED
    assert (network.ood_score(far) > usual.max()).all()
    assert torch.isinf(network.ood_score(changed)).all()
    torch.testing.assert_close(network.ood_score(wobbled), usual)


def test_answers_have_names_whatever_the_network():
    maps, context = torch.zeros(3, 4, 32, 32), context_of([0, 1, 2], np.zeros((3, 5)))
    common = {"arch": "resnet18", "channels": 4}
    told = {"context": CONTEXT, "histograms": 0}
    everything = {"logits", "star", "star_scale", "bright", "bright_scale"}
    for task, more, names in (
        ("classifier", {}, {"logits"}),
        ("regressor", {"context": 0}, {"bright"}),
        ("classifier", told, everything),
        ("regressor", told, everything),
    ):
        metadata = common | more | {"task": task}
        answer = ask(build_network(metadata).eval(), metadata, maps, context)
        assert answer.keys() == names
        shapes = {name: (3, N_CLASSES) if name == "logits" else (3,) for name in names}
        assert {name: tuple(values.shape) for name, values in answer.items()} == shapes
        assert all(values.dtype == torch.float32 for values in answer.values())


def test_scales_stay_in_their_range_and_counts_are_not_confused(network):
    """The columns of the raw output, by name: a change of one head's bias moves that answer alone."""
    maps, context = torch.randn(2, 4, 32, 32), context_of([0, 1], np.zeros((2, 5)))
    metadata = {"task": "regressor", "context": CONTEXT}
    with torch.inference_mode():
        before = ask(network, metadata, maps, context)
        bias = network.context_head[-1].bias
        for column, name in ((2, "bright"), (3, "bright_scale")):
            bias[column] += 100.0
            after = ask(network, metadata, maps, context)
            bias[column] -= 100.0
            assert {key for key in after if not torch.allclose(after[key], before[key], atol=1e-4)} == {name}
        assert (before["star_scale"] > -5).all()
        assert (before["star_scale"] < 1).all()


def test_maps_start_with_nothing_to_add(seen):
    torch.manual_seed(1)
    module = build_density_network("resnet18", 4, CONTEXT, 0).eval()
    module.standardise(seen)
    maps = torch.randn(4, 4, 64, 64)
    with torch.inference_mode():
        assert torch.equal(module(maps, seen[:4]), module(None, seen[:4]))
        torch.nn.init.normal_(module.maps_head[-1].weight)
        assert not torch.allclose(module(maps, seen[:4]), module(None, seen[:4]))


def test_histograms_become_principal_components(seen):
    """Those of scikit-learn but for signs; the scatter of each is the square root of its own, 1 for the first."""
    rng = np.random.default_rng(2)
    axes = np.linalg.qr(rng.normal(size=(90, 90)))[0]
    bins = rng.normal(size=(len(seen), 90)) * np.geomspace(30, 0.3, 90) @ axes  # no two directions alike
    context = torch.cat([seen, torch.tensor(bins, dtype=torch.float32)], dim=1)
    module = build_density_network("perceptron", 0, CONTEXT + 90, 90).eval()
    module.standardise(context)
    found = module._known(context)[:, CONTEXT:].numpy()
    pca = PCA(COMPONENTS).fit(bins)
    scatter = np.sqrt(pca.explained_variance_)
    expected = pca.transform(bins) / np.sqrt(scatter * scatter[0])
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=0.02)


def test_a_perceptron_does_not_look_at_maps(seen):
    torch.manual_seed(0)
    module = build_density_network("perceptron", 0, CONTEXT, 0).eval()
    module.standardise(seen)
    with torch.inference_mode():
        answer = module(torch.randn(3, 4, 8, 8), seen[:3])
        assert torch.equal(answer, module(None, seen[:3]))
        assert torch.equal(answer, module(torch.zeros(3, 0, 8, 8), seen[:3]))
