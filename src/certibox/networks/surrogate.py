"""Small smooth networks that learn a box from its answers: on flat points, or on images of any size.

SiLU and group norm: their gradients are the product here, so they must be smooth and the same in training and use.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import InvalidInput

SMALL = 16  # pixels below which an image is halved only once: the digits have 8


def surrogate_mlp(inputs: int, outputs: int, width: int = 256) -> nn.Sequential:
    """(n, inputs) -> (n, outputs): two hidden layers. Raises `InvalidInput` without inputs, outputs or width."""
    _check(inputs, outputs, width)
    layers = [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs)]
    return nn.Sequential(*layers)


def surrogate_cnn(image_shape: tuple[int, int, int], outputs: int, width: int = 32) -> nn.Sequential:
    """(n, c, h, w) -> (n, outputs): a stem and two residual blocks, the image halved twice (once below 16 pixels).

    The last stage is pooled to at most 8x8 and read by a linear layer. Raises `InvalidInput` without outputs or width.
    """
    channels, height, side = image_shape
    _check(channels, outputs, width)
    stride = 2 if min(height, side) >= SMALL else 1
    pooled = min(8, -(-height // (2 * stride))), min(8, -(-side // (2 * stride)))
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 4, stride, 2),
        _Block(width, 2 * width, 2),
        _Block(2 * width, 2 * width, 1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(pooled),
        nn.Flatten(),
        nn.Linear(2 * width * pooled[0] * pooled[1], outputs),
    ]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    """A pre-activation residual block."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(4, channels),
            nn.SiLU(),
            nn.Conv2d(channels, out, 3, stride, 1),
            nn.GroupNorm(4, out),
            nn.SiLU(),
            nn.Conv2d(out, out, 3, 1, 1),
        )
        plain = channels == out and stride == 1
        self.shortcut = nn.Identity() if plain else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def _check(inputs: int, outputs: int, width: int) -> None:
    if min(inputs, outputs, width) < 1 or width % 4:
        raise InvalidInput(
            f"a surrogate got {inputs} inputs, {outputs} outputs, width {width}; wanted at least 1, and a width by 4"
        )
