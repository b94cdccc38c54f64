"""Plain classifiers: VGG-16 for 32x32 images (Simonyan & Zisserman, ICLR 2015), and two small ones for MNIST.

All take pixels in [0, 1] and hold no normalisation: that belongs to the black box.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from ..errors import InvalidInput

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # a max-pool ends each


class ConvNet(nn.Sequential):
    """(b, c, h, w) -> (b, num_classes) logits: `features`, then `classifier`."""

    spec: dict[str, Any]


def vgg16(num_classes: int = 10, channels: int = 3) -> ConvNet:
    """VGG-16 with batch norm and one linear layer, for 32x32 images (larger ones are averaged at the end).

    Its convolutions have no bias, since BatchNorm subtracts it.

    Args:
        num_classes: Number K of classes.
        channels: Number of channels of an image.

    Raises:
        InvalidInput: There are no classes or no channels.
    """
    _check(num_classes, channels)
    features, width = [], channels
    for stage in STAGES:
        for out in stage:
            features += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            nn.init.kaiming_normal_(features[-3].weight, mode="fan_out", nonlinearity="relu")
            width = out
        features.append(nn.MaxPool2d(2))
    features += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return _conv_net("vgg16", features, [nn.Linear(width, num_classes)], num_classes, channels)


def mnist_cnn(num_classes: int = 10, channels: int = 1) -> ConvNet:
    """3x3 convolutions of 16 and 32 channels, each with ReLU and 2x2 max-pool, then 64 hidden units; for 28x28 images.

    Args:
        num_classes: Number K of classes.
        channels: Number of channels of an image.

    Raises:
        InvalidInput: There are no classes or no channels.
    """
    _check(num_classes, channels)
    features: list[nn.Module] = []
    for width, out in ((channels, 16), (16, 32)):
        features += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    features.append(nn.Flatten())
    classifier = [nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, num_classes)]
    return _conv_net("mnist-cnn", features, classifier, num_classes, channels)


def mnist_mlp(num_classes: int = 10, channels: int = 1) -> ConvNet:
    """A perceptron with 256 hidden units, for 28x28 images: no convolution, so another family than `mnist_cnn`.

    Args:
        num_classes: Number K of classes.
        channels: Number of channels of an image.

    Raises:
        InvalidInput: There are no classes or no channels.
    """
    _check(num_classes, channels)
    classifier = [nn.Linear(channels * 28 * 28, 256), nn.ReLU(), nn.Linear(256, num_classes)]
    return _conv_net("mnist-mlp", [nn.Flatten()], classifier, num_classes, channels)


def _conv_net(
    name: str, features: list[nn.Module], classifier: list[nn.Module], num_classes: int, channels: int
) -> ConvNet:
    net = ConvNet(OrderedDict(features=nn.Sequential(*features), classifier=nn.Sequential(*classifier)))
    net.spec = {"name": name, "arguments": {"num_classes": num_classes, "channels": channels}}
    return net


def _check(num_classes: int, channels: int) -> None:
    if min(num_classes, channels) < 1:
        raise InvalidInput(f"network got {num_classes} classes, {channels} channels; give at least 1 of each")
