"""The white part in front of a box: denoise → encode → decode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from certibox.networks import Autoencoder


class RobustPipeline(nn.Module):
    """The white part in front of a box: x (b, c, h, w) -> the image (b, c, h, w) that the box sees.

    denoiser: D_θ, or None for the identity. autoencoder: with one, the box is queried at ψ_dec(ψ_enc(D_θ(x))) (AE-DS)
    and the estimator works on embeddings of d_z; without, at D_θ(x) (DS), on all d pixels. classifier: RS only: the
    network that was trained on noise and now answers instead of the box.
    """

    def __init__(
        self, denoiser: nn.Module | None, autoencoder: Autoencoder | None = None, classifier: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.denoiser, self.autoencoder, self.classifier = denoiser, autoencoder, classifier

    def denoise(self, x: Tensor) -> Tensor:
        """D_θ(x): (b, c, h, w) -> (b, c, h, w)."""
        return x if self.denoiser is None else self.denoiser(x)

    def embed(self, denoised: Tensor) -> Tensor:
        """The point that an estimator perturbs: (b, c, h, w) -> (b, d_z), or (b, d) pixels without an autoencoder."""
        return denoised.flatten(1) if self.autoencoder is None else self.autoencoder.encode(denoised)

    def images(self, z: Tensor, image_shape: torch.Size | tuple[int, ...]) -> Tensor:
        """The images that the box sees at points z: (n, d) -> (n, c, h, w)."""
        return z.reshape(-1, *image_shape) if self.autoencoder is None else self.autoencoder.decode(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.images(self.embed(self.denoise(x)), x.shape[1:])
