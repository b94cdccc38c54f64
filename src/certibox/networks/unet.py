"""A small U-Net denoiser with residual blocks (after Ronneberger et al., MICCAI 2015, arXiv:1505.04597)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InvalidInput

GROUPS = 8  # of every GroupNorm
MULTIPLE = 4  # two halvings, so heights and widths are padded to a multiple of this


class UNet(nn.Module):
    """`x - net(x)` over three resolutions, `width`, 2 `width` and 4 `width` features wide.

    GroupNorm keeps no running statistics: an answer depends on its own image alone, in training as in evaluation.
    The last layer is zero, so an untrained network is the identity.

    Args:
        channels: Number of channels of an image.
        width: Number of features at the finest resolution, a multiple of 8.
    """

    spec: dict[str, Any]

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        if channels < 1 or width < 1 or width % GROUPS:
            raise InvalidInput(
                f"U-Net got {channels} channels, width {width}; give channels >= 1 and a width divisible by {GROUPS}"
            )
        self.spec = {"name": "unet", "arguments": {"channels": channels, "width": width}}
        fine, middle, coarse = width, 2 * width, 4 * width
        self.stem = nn.Conv2d(channels, fine, 3, padding=1)
        self.encode_fine = ResidualBlock(fine, fine)
        self.shrink_fine = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.encode_middle = ResidualBlock(middle, middle)
        self.shrink_middle = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.bottom = nn.Sequential(ResidualBlock(coarse, coarse), ResidualBlock(coarse, coarse))
        self.grow_middle = nn.ConvTranspose2d(coarse, middle, 2, stride=2)
        self.decode_middle = ResidualBlock(2 * middle, middle)
        self.grow_fine = nn.ConvTranspose2d(middle, fine, 2, stride=2)
        self.decode_fine = ResidualBlock(2 * fine, fine)
        self.head = nn.Sequential(nn.GroupNorm(GROUPS, fine), nn.SiLU(), nn.Conv2d(fine, channels, 3, padding=1))
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (b, c, h, w) -> (b, c, h, w)
        """The images without the noise that the network finds in them, (b, c, h, w).

        Args:
            x: Noisy images (b, c, h, w).
        """
        height, width = x.shape[-2:]
        # Zeros, as the convolutions see beyond every border anyway; unlike reflection, their gradient is deterministic.
        padded = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        return x - self._noise(padded)[..., :height, :width]

    def _noise(self, x: torch.Tensor) -> torch.Tensor:  # height and width are multiples of MULTIPLE
        fine = self.encode_fine(self.stem(x))
        middle = self.encode_middle(self.shrink_fine(fine))
        coarse = self.bottom(self.shrink_middle(middle))
        middle = self.decode_middle(torch.cat([self.grow_middle(coarse), middle], dim=1))
        fine = self.decode_fine(torch.cat([self.grow_fine(middle), fine], dim=1))
        return self.head(fine)


class ResidualBlock(nn.Module):
    """Two pre-activated 3x3 convolutions and a shortcut, 1x1 where the number of channels changes."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, out_channels, 3, padding=1),
            nn.GroupNorm(GROUPS, out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (b, channels, h, w) -> (b, out_channels, h, w)
        return self.shortcut(x) + self.body(x)


def unet(channels: int, width: int = 32) -> UNet:
    """U-Net, a residual denoiser for images of any size; about a million parameters at the default width.

    Weights come from torch's global generator.

    Args:
        channels: Number of channels of an image.
        width: Number of features at the finest resolution, a multiple of 8.

    Raises:
        InvalidInput: The width is no multiple of 8, or there are no channels.
    """
    return UNet(channels, width)
