"""Networks that count the bright stars of a chip."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from csst_dask.errors import ConfigError
from csst_dask.models.classifiers import from_torchvision, set_channels

if TYPE_CHECKING:
    from torchvision.models import ResNet

REGRESSORS: dict[str, Callable[..., ResNet]] = {
    name: partial(from_torchvision, name) for name in ("resnet50", "resnet18")
}
"""Backbones of the regressor; ``resnet50`` is the paper's choice, ``resnet18`` the quick one."""

HEAD = (512, 256, 128)
"""Widths of the hidden layers of the head (paper, section 3.1)."""

DROPOUT = 0.2
"""Share of units dropped in the first hidden layer in training; half of it in the later ones. The paper
gives no value."""


def build_regressor(arch: str, channels: int) -> nn.Module:
    """A regressor with random weights, drawn from torch's global generator.

    Parameters
    ----------
    arch : str
        A key of `REGRESSORS`.
    channels : int
        Channels of the input.

    Returns
    -------
    torch.nn.Module
        (n, channels, y, x) float32 -> (n,) log10(1 + n_bright), dex.

    Raises
    ------
    ConfigError
        If the backbone is unknown or the number of channels is not positive.
    """
    if arch not in REGRESSORS:
        raise ConfigError(f"unknown regressor {arch!r}; expected one of {', '.join(REGRESSORS)}")
    network = REGRESSORS[arch](weights=None)
    set_channels(network, channels)
    network.fc = _head(network.fc.in_features)
    return network


def _head(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for depth, hidden in enumerate(HEAD):
        layers += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
        layers += [nn.Dropout(DROPOUT if depth == 0 else DROPOUT / 2)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, 1), nn.Flatten(0))


def set_output_level(network: nn.Module, level: float) -> None:
    """Start a regressor at a constant answer, so that training need not travel there first.

    Parameters
    ----------
    network : torch.nn.Module
        From `build_regressor`; its last bias is overwritten.
    level : float
        For instance the mean target, dex.
    """
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.constant_(last.bias, level)
