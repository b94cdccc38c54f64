"""Errors of reconstructed images: RMSE and SSIM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from certibox.errors import InvalidImages

WINDOW, WINDOW_SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # SSIM as Wang et al. (2004) define it


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root mean squared difference of each pair of images, (n,).

    Args:
        a: Images (n, c, h, w).
        b: Images of the same shape.
    """
    return (a - b).flatten(1).square().mean(1).sqrt()


def ssim(a: Tensor, b: Tensor, *, padding: int = 0) -> Tensor:
    """Structural similarity of each pair of images, (n,), for a data range of 1.

    Local means, variances and the covariance are weighted by an 11x11 Gaussian window of σ 1.5, and the similarity is
    averaged over the windows.

    Args:
        a: Images (n, c, h, w).
        b: Images of the same shape.
        padding: Number of zeros put around both images first. With 0 every window lies inside the image, as in Wang et
            al. (2004) and scikit-image, which crops the rest away; with 5 there is a window around every pixel, as in
            the code behind the paper's table.

    Raises:
        InvalidImages: The shapes differ, or no window fits in the images.
    """
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[2:]) + 2 * padding < WINDOW:
        raise InvalidImages(
            f"SSIM of shapes {tuple(a.shape)} and {tuple(b.shape)} with padding {padding}; "
            f"wanted one shape (n, channels, height, width), padded to at least {WINDOW}x{WINDOW}"
        )
    n, _, h, w = a.shape
    a, b = a.double().reshape(-1, 1, h, w), b.double().reshape(-1, 1, h, w)  # variances below are differences
    offsets = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    bell = (-0.5 * (offsets / WINDOW_SIGMA).square()).exp()
    window = torch.outer(bell, bell) / bell.sum().square()
    moments = F.conv2d(torch.cat([a, b, a * a, b * b, a * b]), window[None, None], padding=padding)
    mean_a, mean_b, square_a, square_b, product = moments.chunk(5)
    luminance = (2 * mean_a * mean_b + K1**2) / (mean_a**2 + mean_b**2 + K1**2)
    covariance, variances = product - mean_a * mean_b, square_a - mean_a**2 + square_b - mean_b**2
    return (luminance * (2 * covariance + K2**2) / (variances + K2**2)).reshape(n, -1).mean(1)
