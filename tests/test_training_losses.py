import math

import pytest
import torch

from csst_dask.training.losses import class_loss, count_loss


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


def test_cross_entropy_of_an_even_answer_is_the_log_of_the_classes_whatever_the_smoothing():
    logits, target = torch.zeros(4, 6), torch.tensor([0, 1, 2, 5])
    for smoothing in (0.0, 0.1):
        assert class_loss(logits, target, smoothing).item() == pytest.approx(math.log(6))


def test_smoothing_makes_certainty_cost():
    logits, target = torch.tensor([[50.0, 0.0]]), torch.tensor([0])
    assert class_loss(logits, target).item() < 1e-6
    assert class_loss(logits, target, 0.1).item() == pytest.approx(0.05 * 50)
