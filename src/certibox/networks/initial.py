"""How fresh weights are drawn where a paper states nothing and torch's default does not train."""

from __future__ import annotations

from torch import nn


def start_like_he(network: nn.Module) -> None:
    """He's normal weights, no biases: torch's default shrinks the signal layer by layer, and deep ones stall."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
