"""Statistics of normalisations are those of the chips to learn from, under the parameters as they are."""

import numpy as np
import torch
from torch import nn

from csst_dask.training.ranks import joined
from csst_dask.training.running import settle_statistics


def network():
    torch.manual_seed(0)
    layers = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4), nn.BatchNorm1d(4)
    return nn.Sequential(*layers)


def settle(module, batches):
    with joined("cpu", 10) as ranks:
        settle_statistics(module, ranks, batches, module)


def test_they_are_the_mean_over_the_batches_and_leave_the_rest_alone():
    module = network()
    batches = list(torch.randn(6, 16, 3) * torch.logspace(-1, 1, 6)[:, None, None])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        seen = torch.stack([module[0](batch) for batch in batches])
    settle(module, batches)
    torch.testing.assert_close(module[1].running_mean, seen.mean(1).mean(0))
    torch.testing.assert_close(module[1].running_var, seen.var(1).mean(0))
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{k}.{name}" for k in (1, 5) for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert not module.training
    assert {module[k].momentum for k in (1, 5)} == {0.1}


def test_nothing_of_what_was_seen_while_learning_is_left():
    one, other = network(), network()
    with torch.no_grad():
        other.train()(1e3 * torch.randn(16, 3))
    batches = list(torch.randn(4, 16, 3))
    for module in (one, other):
        settle(module, batches)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_a_normalisation_that_does_not_learn_keeps_its_own():
    module = network()
    for parameter in module[:2].parameters():
        parameter.requires_grad_(False)
    settle(module, list(torch.randn(4, 16, 3)))
    np.testing.assert_array_equal(module[1].running_mean, np.zeros(8))
    assert not torch.equal(module[5].running_mean, torch.zeros(4))


def test_a_few_chips_of_huge_contrast_do_not_spoil_what_is_said_of_the_others():
    """By statistics that run along, what is said depends on whether such a chip was among the last."""
    module, rng = network(), torch.Generator().manual_seed(1)
    batches = torch.randn(64, 16, 3, generator=rng)
    batches[::8, 0] *= 100
    said = []
    for order in (batches, batches.roll(-1, 0)):
        settle(module, list(order))
        with torch.inference_mode():
            said.append(module(batches[1]))
    torch.testing.assert_close(*said)
    running = []
    for order in (batches, batches.roll(-1, 0)):
        with torch.no_grad():
            for batch in order:
                module.train()(batch)
            running.append(module.eval()(batches[1]))
    assert not torch.allclose(*running, rtol=0.05)
