import math

import numpy as np
import pytest
import torch
from scipy import stats

from csst_dask.config import TrainingConfig
from csst_dask.schema import MAGNITUDES
from csst_dask.training.losses import class_loss, count_loss, laplace_loss
from csst_dask.training.recipes import Targets, task_named


def test_count_loss_done_by_hand():
    predicted, target = torch.tensor([1.5, 3.0]), torch.tensor([1.0, 2.0])
    found = count_loss(predicted, target, alpha=1, beta=2, gamma=3).item()
    assert found == pytest.approx((0.25 + 1) / 2 + 2 * (0.5 + 1) / 2 + 3 * (0.25 + 0.25) / 2)


def test_the_relative_term_is_limited_for_each_chip():
    found = count_loss(torch.tensor([5.0, 0.0]), torch.tensor([0.0, 0.0]), alpha=0, beta=0, gamma=1)
    assert found.item() == pytest.approx((10 + 0) / 2)


def test_a_perfect_prediction_costs_nothing_and_has_finite_gradients():
    predicted = torch.zeros(3, requires_grad=True)
    loss = count_loss(predicted, torch.zeros(3))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(predicted.grad).all()


def test_cross_entropy_of_an_even_answer_is_the_log_of_the_classes_and_of_a_sure_one_nothing():
    assert class_loss(torch.zeros(4, 6), torch.tensor([0, 1, 2, 5])).item() == pytest.approx(math.log(6))
    assert class_loss(torch.tensor([[50.0, 0.0]]), torch.tensor([0])).item() < 1e-6


def test_the_laplace_loss_is_the_negative_log_likelihood_less_a_constant():
    rng = np.random.default_rng(0)
    median, log_scale, target = rng.normal(size=(3, 50))
    found = laplace_loss(*(torch.tensor(values) for values in (median, log_scale, target))).item()
    expected = -np.mean(stats.laplace.logpdf(target, median, np.exp(log_scale)))
    assert found == pytest.approx(expected - math.log(2))


def test_chips_without_a_target_cost_nothing_and_pull_at_nothing():
    median = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    log_scale = torch.zeros(3, requires_grad=True)
    loss = laplace_loss(median, log_scale, torch.tensor([1.5, float("nan"), 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx((0.5 + 2.0) / 2)
    assert median.grad.tolist() == pytest.approx([-0.5, 0, 0.5])
    assert log_scale.grad.tolist() == pytest.approx([0.25, 0, -0.5])
    nothing = laplace_loss(median, log_scale, torch.full((3,), float("nan")))
    nothing.backward()
    assert nothing.item() == 0
    assert torch.isfinite(median.grad).all()


N = 24


@pytest.fixture(scope="module")
def targets():
    """Targets of which the first half mostly lacks the bright stars, and some magnitudes."""
    rng = np.random.default_rng(1)
    bright = rng.uniform(0, 3, N).astype(np.float32)
    bright[: N // 2 - 1] = np.nan
    counts = rng.uniform(0, 3, (N, len(MAGNITUDES))).astype(np.float32)
    counts[rng.random(counts.shape) < 0.3] = np.nan
    return Targets(rng.integers(0, 6, N), rng.uniform(0, 5, N).astype(np.float32), bright, counts)


def outputs(names):
    generator = torch.Generator().manual_seed(2)
    wide = {"logits": (N, 6), "counts": (N, len(MAGNITUDES)), "counts_scale": (N, len(MAGNITUDES))}
    drawn = {name: torch.randn(wide.get(name, N), generator=generator) for name in names}
    return {name: values.requires_grad_() for name, values in drawn.items()}


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("classifier", ["logits"]),
        ("classifier", ["logits", "star", "star_scale", "bright", "bright_scale"]),
        ("regressor", ["logits", "star", "star_scale", "bright", "bright_scale"]),
        ("regressor", ["logits", "star", "star_scale", "bright", "bright_scale", "counts", "counts_scale"]),
    ],
)
def test_parts_of_a_batch_add_up_to_the_batch_however_it_is_cut(targets, task, names):
    """Loss and gradients; the parts hold different numbers of chips with known counts of bright stars."""
    rows, config, found = np.arange(2, N), TrainingConfig(), []
    for parts in (1, 2, 5):
        answer, total = outputs(names), 0.0
        for part in np.array_split(rows, parts):
            share = {name: values[part] for name, values in answer.items()}
            total = total + task_named(task).loss(share, targets, part, config, batch=rows)
        total.backward()
        found.append([total.detach(), *(values.grad for values in answer.values())])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_parts_of_the_paper_regressor_add_up_too(targets):
    rows, config, answer = np.arange(N // 2, N), TrainingConfig(), outputs(["bright"])

    def loss(part, **batch):
        return task_named("regressor").loss({"bright": answer["bright"][part]}, targets, part, config, **batch).item()

    assert loss(rows[:3], batch=rows) + loss(rows[3:], batch=rows) == pytest.approx(loss(rows))
    assert loss(rows[:3], batch=rows) == pytest.approx(loss(rows[:3]) * 3 / len(rows))
