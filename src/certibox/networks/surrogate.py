"""Small smooth networks that learn a box from its answers: on flat points, or on images of any size.

SiLU and group norm: their gradients are the product here, so they must be smooth and the same in training and use.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import InvalidInput

SMALL = 16  # pixels below which an image is halved only once: the digits have 8


def surrogate_mlp(inputs: int, outputs: int, width: int = 256) -> nn.Sequential:
    """A perceptron of flat points, (n, inputs) -> (n, outputs), with two hidden layers.

    Args:
        inputs: Dimension of the points.
        outputs: Number of outputs.
        width: Number of hidden units of each layer, a multiple of 4.

    Raises:
        InvalidInput: A size is below 1, or the width is no multiple of 4.
    """
    _check(inputs, outputs, width)
    layers = [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs)]
    return nn.Sequential(*layers)


def surrogate_cnn(image_shape: tuple[int, int, int], outputs: int, width: int = 32) -> nn.Sequential:
    """A small network of images, (n, c, h, w) -> (n, outputs): a stem and two residual blocks.

    The image is halved twice (once below 16 pixels); a linear layer reads the last stage, pooled to at most 8x8.

    Args:
        image_shape: Shape (c, h, w) of an image.
        outputs: Number of outputs.
        width: Number of features of the stem, a multiple of 4.

    Raises:
        InvalidInput: A size is below 1, or the width is no multiple of 4.
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
