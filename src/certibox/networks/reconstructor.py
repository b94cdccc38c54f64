"""The network that reconstructs MNIST digits from compressed measurements, the black box of a regression task.

Architecture: Zhang et al., "How to Robustify Black-Box ML Models?", ICLR 2022, section 5.3.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .initial import start_like_he

ENCODER = ((16, 3, 1, 1), (32, 3, 3, 1), (16, 3, 3, 1), (8, 3, 3, 1))  # out channels, kernel, stride, padding
DECODER = ((16, 3, 2, 0), (8, 5, 3, 1), (1, 2, 2, 1))


class Reconstructor(nn.Sequential):
    """(b, 1, 28, 28) -> (b, 1, 28, 28) in (-1, 1)."""

    spec: dict[str, Any]


def mnist_reconstructor() -> Reconstructor:
    """Four convolutions with ReLU down to 8x2x2, three transposed ones up again with ReLU between and tanh at the end.

    He's normal weights from torch's global generator: the paper states none, and torch's default ones learn the narrow
    middle slowly.
    """
    layers: list[nn.Module] = []
    channels = 1
    for kind, rows in ((nn.Conv2d, ENCODER), (nn.ConvTranspose2d, DECODER)):
        for out, kernel, stride, padding in rows:
            layers += [kind(channels, out, kernel, stride, padding), nn.ReLU()]
            channels = out
    layers[-1] = nn.Tanh()
    net = Reconstructor(*layers)
    start_like_he(net)
    net.spec = {"name": "mnist-reconstructor", "arguments": {}}
    return net
