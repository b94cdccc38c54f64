"""Residual classifiers (He et al., CVPR 2016, arXiv:1512.03385) for CIFAR, STL-10 and ImageNet image sizes.

All take pixels in [0, 1] and hold no normalisation: that belongs to the black box. Parameters of the ImageNet
networks carry the usual names (conv1, bn1, layer1.0.conv1, layer1.0.downsample.0, fc), so published weights load.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InvalidInput


class ResNet(nn.Sequential):
    """(b, c, h, w) -> (b, num_classes) logits: stem, stages of residual blocks, mean over pixels, linear layer."""

    spec: dict[str, Any]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, `expansion * planes` channels out."""

    expansion = 1

    def __init__(self, channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, `expansion * planes` channels out; the 3x3 one takes the stride."""

    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, self.expansion * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.expansion * planes)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class PaddedShortcut(nn.Module):
    """Parameter-free shortcut (option A of He et al.): every `stride`-th pixel, zeros in the new channels."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = out_channels - channels, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def projected_shortcut(channels: int, out_channels: int, stride: int) -> nn.Module:
    """A 1x1 convolution and BatchNorm (option B of He et al.)."""
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


@dataclass(frozen=True)
class Plan:
    """What sets one residual network apart from another."""

    block: type[BasicBlock] | type[Bottleneck]
    """Kind of the residual blocks."""
    blocks: tuple[int, ...]
    """Number of blocks of each stage."""
    planes: tuple[int, ...] = (64, 128, 256, 512)
    """Number of planes of each stage."""
    shortcut: Callable[[int, int, int], nn.Module] = projected_shortcut
    """Function of channels in, channels out and stride that makes a shortcut."""
    stem_kernel: int = 7
    """Size of the stem's kernel in pixels."""
    stem_stride: int = 2
    """Stride of the stem in pixels."""
    max_pool: bool = True
    """Whether a max-pool follows the stem."""


IMAGENET_PLANS = {18: Plan(BasicBlock, (2, 2, 2, 2)), 50: Plan(Bottleneck, (3, 4, 6, 3))}
# At 96x96 the ImageNet stem would leave the last stage 3x3 pixels; this one leaves it 6x6.
STL10_PLAN = Plan(BasicBlock, (2, 2, 2, 2), stem_kernel=3, max_pool=False)


def cifar_resnet(depth: int, num_classes: int = 10, channels: int = 3) -> ResNet:
    """The CIFAR network of 6n + 2 weight layers, 16-32-64 channels, with parameter-free shortcuts.

    Args:
        depth: Number of weight layers, such as 20, 56 or 110.
        num_classes: Number K of classes.
        channels: Number of channels of an image.

    Raises:
        InvalidInput: The depth is not 6n + 2 with n >= 1, or there are no classes or channels.
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise InvalidInput(f"depth {depth} came for a CIFAR ResNet; give 6n + 2, such as 20, 56 or 110")
    plan = Plan(BasicBlock, (n, n, n), (16, 32, 64), PaddedShortcut, stem_kernel=3, stem_stride=1, max_pool=False)
    net = _resnet(plan, num_classes, channels)
    net.spec = _spec("cifar-resnet", depth=depth, num_classes=num_classes, channels=channels)
    return net


def imagenet_resnet(depth: int, num_classes: int = 10, channels: int = 3) -> ResNet:
    """ResNet-18 or ResNet-50 with the ImageNet stem.

    Args:
        depth: Number of weight layers: 18 or 50.
        num_classes: Number K of classes.
        channels: Number of channels of an image.

    Raises:
        InvalidInput: The depth is another one, or there are no classes or channels.
    """
    if depth not in IMAGENET_PLANS:
        raise InvalidInput(f"depth {depth} came for an ImageNet ResNet; give one of {sorted(IMAGENET_PLANS)}")
    net = _resnet(IMAGENET_PLANS[depth], num_classes, channels)
    net.spec = _spec("imagenet-resnet", depth=depth, num_classes=num_classes, channels=channels)
    return net


def resnet18_stl10(num_classes: int = 10, channels: int = 3) -> ResNet:
    """ResNet-18 for 96x96 images: a 3x3 stem with stride 2, no max-pool.

    Args:
        num_classes: Number K of classes.
        channels: Number of channels of an image.

    Raises:
        InvalidInput: There are no classes or no channels.
    """
    net = _resnet(STL10_PLAN, num_classes, channels)
    net.spec = _spec("resnet18-stl10", num_classes=num_classes, channels=channels)
    return net


def _resnet(plan: Plan, num_classes: int, channels: int) -> ResNet:
    if min(num_classes, channels) < 1:
        raise InvalidInput(f"ResNet got {num_classes} classes, {channels} channels; give at least 1 of each")
    width, padding = plan.planes[0], plan.stem_kernel // 2
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, width, plan.stem_kernel, plan.stem_stride, padding, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1) if plan.max_pool else nn.Identity(),
    )
    for i, (planes, blocks) in enumerate(zip(plan.planes, plan.blocks, strict=True)):
        layers[f"layer{i + 1}"] = _stage(plan, width, planes, blocks, stride=1 if i == 0 else 2)
        width = planes * plan.block.expansion
    layers.update(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(width, num_classes))
    net = ResNet(layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def _stage(plan: Plan, channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """The first block changes resolution and channels, and has a shortcut module if it does; the rest keep both."""
    out = planes * plan.block.expansion
    shortcut = plan.shortcut(channels, out, stride) if stride != 1 or channels != out else None
    rest = (plan.block(out, planes, 1, None) for _ in range(blocks - 1))
    return nn.Sequential(plan.block(channels, planes, stride, shortcut), *rest)


def _spec(name: str, **arguments: int) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}
