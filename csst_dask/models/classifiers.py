"""Networks that tell the density class of a chip."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.models import ResNet, resnet18, resnet34

from csst_dask.errors import ConfigError
from csst_dask.schema import N_CLASSES

CLASSIFIERS: dict[str, Callable[..., ResNet]] = {"resnet34": resnet34, "resnet18": resnet18}
"""Architectures of the classifier; ``resnet34`` is the paper's choice, ``resnet18`` the quick one."""


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
    """
    if arch not in CLASSIFIERS:
        raise ConfigError(f"unknown classifier {arch!r}; expected one of {', '.join(CLASSIFIERS)}")
    return set_channels(CLASSIFIERS[arch](weights=None, num_classes=n_classes), channels)


def set_channels(network: ResNet, channels: int) -> ResNet:
    """Give a residual network a first convolution for another number of channels.

    Parameters
    ----------
    network : torchvision.models.ResNet
        Modified in place.
    channels : int
        Channels of the input, at least 1.

    Returns
    -------
    torchvision.models.ResNet
        The same network.

    Raises
    ------
    ConfigError
        If the number of channels is not positive.
    """
    if channels < 1:
        raise ConfigError(f"a network needs at least 1 input channel, found {channels}")
    conv = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    network.conv1 = conv
    return network
