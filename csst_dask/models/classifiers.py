"""Networks that tell the density class of a chip: the five of the paper's comparison, and a quick one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from csst_dask.errors import ConfigError
from csst_dask.schema import N_CLASSES

BASELINE_WIDTHS = (32, 64, 128, 256)
"""Channels of the baseline's convolutions."""


def from_torchvision(arch: str, **settings: Any) -> Any:
    """Build a network of torchvision, whose import takes seconds that the shipped networks need not spend.

    Parameters
    ----------
    arch : str
        Name of a function of `torchvision.models`.
    **settings
        Its arguments.

    Returns
    -------
    torch.nn.Module
    """
    from torchvision import models

    return getattr(models, arch)(**settings)


def baseline(num_classes: int, weights: None = None) -> nn.Sequential:
    """Four convolutions with pooling between them and one hidden layer: 0.42 million parameters with two channels.

    The paper names its size alone.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    weights : None
        There are no trained ones.

    Returns
    -------
    torch.nn.Sequential
    """
    layers: list[nn.Module] = []
    width = 3
    for following in BASELINE_WIDTHS:
        layers += [nn.Conv2d(width, following, 3, padding=1, bias=False), nn.BatchNorm2d(following), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
        width = following
    hidden = BASELINE_WIDTHS[-2]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
    return nn.Sequential(*layers, *pool)


CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(from_torchvision, name) for name in ("resnet34", "vgg16", "densenet121", "alexnet")},
    "baseline": baseline,
    "resnet18": partial(from_torchvision, "resnet18"),
}
"""Architectures of the classifier: ``resnet34`` is the paper's choice, the next four are what it was compared with
(table 4), ``resnet18`` is the quick one."""


def build_classifier(arch: str, channels: int, n_classes: int = N_CLASSES) -> nn.Module:
    """A classifier with random weights, drawn from torch's global generator.

    Parameters
    ----------
    arch : str
        A key of `CLASSIFIERS`.
    channels : int
        Channels of the input.
    n_classes : int
        Length of the output.

    Returns
    -------
    torch.nn.Module
        (n, channels, y, x) float32 -> (n, n_classes) logits.

    Raises
    ------
    ConfigError
        If the architecture is unknown or the number of channels is not positive.

    References
    ----------
    .. [1] He et al. (2016), Deep residual learning for image recognition, CVPR, 770.
    .. [2] Simonyan & Zisserman (2015), Very deep convolutional networks, ICLR.
    .. [3] Huang et al. (2017), Densely connected convolutional networks, CVPR, 2261.
    .. [4] Krizhevsky (2014), One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997.
    """
    if arch not in CLASSIFIERS:
        raise ConfigError(f"unknown classifier {arch!r}; expected one of {', '.join(CLASSIFIERS)}")
    return set_channels(CLASSIFIERS[arch](weights=None, num_classes=n_classes), channels)


def set_channels(network: nn.Module, channels: int) -> nn.Module:
    """Give a network a first convolution for another number of channels.

    Parameters
    ----------
    network : torch.nn.Module
        Modified in place.
    channels : int
        Channels of the input, at least 1.

    Returns
    -------
    torch.nn.Module
        The same network; its first convolution is drawn anew.

    Raises
    ------
    ConfigError
        If the number of channels is not positive.
    """
    if channels < 1:
        raise ConfigError(f"a network needs at least 1 input channel, found {channels}")
    name, old = next((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, new)
    return network
