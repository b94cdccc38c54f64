"""The white part in front of a box: denoise → encode → decode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from certibox.networks import Autoencoder


class RobustPipeline(nn.Module):
    """The white part in front of a box: x (b, c, h, w) -> the image (b, c, h, w) that the box sees.

    With an autoencoder, the box is queried at ψ_dec(ψ_enc(D_θ(x))) (AE-DS) and the estimator works on embeddings of d_z
    dimensions; without one, at D_θ(x) (DS), and the estimator works on all d pixels.

    Args:
        denoiser: Denoiser D_θ, (b, c, h, w) -> (b, c, h, w); None stands for the identity.
        autoencoder: Autoencoder (ψ_enc, ψ_dec) behind the denoiser; None stands for no bottleneck.
        classifier: Classifier that was trained on noise and answers instead of the box, for RS alone.
    """

    def __init__(
        self, denoiser: nn.Module | None, autoencoder: Autoencoder | None = None, classifier: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.denoiser, self.autoencoder, self.classifier = denoiser, autoencoder, classifier

    def denoise(self, x: Tensor) -> Tensor:
        """The denoised images D_θ(x), (b, c, h, w).

        Args:
            x: Images (b, c, h, w).
        """
        return x if self.denoiser is None else self.denoiser(x)

    def embed(self, denoised: Tensor) -> Tensor:
        """The point that an estimator perturbs: an embedding (b, d_z), or all pixels (b, d) without an autoencoder.

        Args:
            denoised: Denoised images (b, c, h, w).
        """
        return denoised.flatten(1) if self.autoencoder is None else self.autoencoder.encode(denoised)

    def images(self, z: Tensor, image_shape: torch.Size | tuple[int, ...]) -> Tensor:
        """The images (n, c, h, w) that the box sees.

        Args:
            z: Points (n, d_z), or (n, d) pixels without an autoencoder.
            image_shape: Shape (c, h, w) of an image.
        """
        return z.reshape(-1, *image_shape) if self.autoencoder is None else self.autoencoder.decode(z)

    def forward(self, x: Tensor) -> Tensor:
        """The images (b, c, h, w) that the box sees.

        Args:
            x: Images (b, c, h, w), noisy or not.
        """
        return self.images(self.embed(self.denoise(x)), x.shape[1:])
