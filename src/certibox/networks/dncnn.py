"""DnCNN, the plain residual denoiser of Zhang et al. (IEEE TIP 2017, arXiv:1608.03981)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import InvalidInput


class DnCNN(nn.Module):
    """`x - net(x)`: the network learns the noise. Zero last layer, so untrained it is the identity.

    Args:
        channels: Number of channels of an image.
        depth: Number of convolutions, at least 3.
        width: Number of features.
    """

    spec: dict[str, Any]

    def __init__(self, channels: int, depth: int, width: int) -> None:
        super().__init__()
        if min(channels, width) < 1 or depth < 3:
            raise InvalidInput(
                f"DnCNN got {channels} channels, depth {depth}, width {width}; give channels and width >= 1, depth >= 3"
            )
        self.spec = {"name": "dncnn", "arguments": {"channels": channels, "depth": depth, "width": width}}
        self.net = nn.Sequential(*_layers(channels, depth, width))
        convolutions = [layer for layer in self.net if isinstance(layer, nn.Conv2d)]
        for convolution in convolutions[:-1]:
            nn.init.orthogonal_(convolution.weight)
        nn.init.zeros_(convolutions[-1].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (b, c, h, w) -> (b, c, h, w)
        """The images without the noise that the network finds in them, (b, c, h, w).

        Args:
            x: Noisy images (b, c, h, w).
        """
        return x - self.net(x)


def dncnn(channels: int, depth: int = 17, width: int = 64) -> DnCNN:
    """DnCNN, a residual denoiser for images of any size.

    BatchNorm (eps 1e-4) follows the inner depth - 2 convolutions; 18cw + w + (depth - 2)(9w^2 + 2w) parameters in all.
    Weights are orthogonal and come from torch's global generator.

    Args:
        channels: Number c of channels of an image.
        depth: Number of 3x3 convolutions, at least 3.
        width: Number w of features.

    Raises:
        InvalidInput: The depth is below 3, or there are no channels or features.
    """
    return DnCNN(channels, depth, width)


def _layers(channels: int, depth: int, width: int) -> Iterator[nn.Module]:
    """Only the first convolution has a bias: BatchNorm subtracts any constant, and the noise to learn has mean zero."""
    yield from (nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
    for _ in range(depth - 2):
        yield from (nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, eps=1e-4), nn.ReLU())
    yield nn.Conv2d(width, channels, 3, padding=1, bias=False)
