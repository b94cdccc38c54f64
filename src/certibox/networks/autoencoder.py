"""Autoencoders: the wrapper that knows the embedding, the paper's networks, and one that fits any image shape.

Architectures: Zhang et al., "How to Robustify Black-Box ML Models?", ICLR 2022.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from .. import seeds
from ..errors import InvalidImages, InvalidInput
from ..storage import values
from .initial import start_like_he

ImageShape = tuple[int, int, int]  # (c, h, w)
Latent = Literal["relu", "leaky", "linear"]  # what ends the encoder
LATENTS: dict[str, float] = {"relu": 0.0, "leaky": 0.1, "linear": 1.0}  # its slope below zero


class Autoencoder(nn.Module):
    """An encoder and a decoder, with the embedding as a flat vector between them.

    The embedding's shape is inferred from one batch of two black images, in evaluation mode; no module's mode or
    statistics change.

    Args:
        encoder: Encoder ψ_enc of your own, (b, c, h, w) -> (b, ...).
        decoder: Decoder ψ_dec of your own, from what the encoder returns back to (b, c, h, w).
        image_shape: Shape (c, h, w) of an image.

    Attributes:
        image_shape: Shape (c, h, w) of an image.
        embedding_shape: Shape of what the encoder returns for one image, such as (12, 4, 4).
        d_z: Number of coordinates of the embedding, the product of `embedding_shape`.

    Raises:
        InvalidInput: A module fails on such a batch, or the decoder does not return `image_shape`.
    """

    spec: dict[str, Any]  # only on those made by a factory of this package; see `networks.build`

    def __init__(self, encoder: nn.Module, decoder: nn.Module, image_shape: ImageShape) -> None:
        super().__init__()
        self.image_shape = _checked_shape(image_shape)
        self.encoder, self.decoder = encoder, decoder
        black = torch.zeros(2, *self.image_shape, **_placement(encoder))
        with evaluating(self), torch.no_grad():
            z = _probe("encoder", encoder, black)
            decoded = _probe("decoder", decoder, z)
        self.embedding_shape = tuple(z.shape[1:])
        self.d_z = math.prod(self.embedding_shape)
        if decoded.shape != black.shape:
            raise InvalidInput(
                f"decoder returned {tuple(decoded.shape[1:])} for embedding {self.embedding_shape}, "
                f"image_shape is {self.image_shape}; make them agree"
            )

    @property
    def nonnegative(self) -> bool:
        """True when the encoder's last layer is seen to be a ReLU: then z_i = 0 has zero gradient upstream of z.

        Only `nn.Sequential` fixes the order of its layers, so any other composite counts as not ending in a ReLU.
        """
        return isinstance(_last_layer(self.encoder), nn.ReLU)

    def encode(self, x: torch.Tensor) -> torch.Tensor:  # (b, c, h, w) -> (b, d_z)
        """Flat embeddings (b, d_z), never below float32: finite differences at z need the digits.

        Args:
            x: Images (b, c, h, w).

        Raises:
            InvalidImages: The images have another shape.
        """
        if tuple(x.shape[1:]) != self.image_shape:
            raise InvalidImages(
                f"images of shape {tuple(x.shape)} came to an autoencoder of {self.image_shape}; resize them"
            )
        z = self.encoder(x).flatten(1)
        return z.to(torch.promote_types(z.dtype, torch.float32))

    def decode(self, z: torch.Tensor) -> torch.Tensor:  # (n, d_z) -> (n, c, h, w)
        """Images (n, c, h, w) of flat embeddings.

        Args:
            z: Embeddings (n, d_z).

        Raises:
            InvalidInput: The embeddings have another shape.
        """
        if z.ndim != 2 or z.shape[1] != self.d_z:
            raise InvalidInput(
                f"embeddings of shape {tuple(z.shape)} came to a decoder for (n, {self.d_z}); flatten them"
            )
        return self.decoder(z.reshape(len(z), *self.embedding_shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (b, c, h, w) -> (b, c, h, w)
        """The images decoded from their embeddings, (b, c, h, w).

        Args:
            x: Images (b, c, h, w).
        """
        return self.decode(self.encode(x))


@dataclass(frozen=True)
class Layer:
    """One convolution of an encoder."""

    out_channels: int
    """Number of channels that it returns."""
    kernel: int | tuple[int, int]
    """Size of the kernel in pixels; a tuple is (height, width)."""
    stride: int
    """Stride in pixels."""
    padding: int
    """Number of zeros on each side."""


def _cifar(d_z: int) -> tuple[Layer, ...]:
    return Layer(d_z // 8, 4, 4, 0), Layer(d_z // 4, 3, 3, 2), Layer(d_z // 2, 4, 2, 1), Layer(d_z, 2, 2, 0)


PAPER_AUTOENCODERS: dict[str, tuple[ImageShape, tuple[Layer, ...]]] = {
    "ae-48": ((3, 32, 32), _cifar(48)),
    "ae-96": ((3, 32, 32), _cifar(96)),
    "ae-192": ((3, 32, 32), _cifar(192)),
    "ae-576": (
        (3, 96, 96),
        (Layer(18, 5, 3, 1), Layer(72, 4, 4, 0), Layer(144, 3, 3, 2), Layer(288, 4, 2, 1), Layer(576, 2, 2, 0)),
    ),
    "ae-mnist": ((1, 28, 28), (Layer(3, 4, 2, 1), Layer(12, 5, 3, 0))),
    "ae-mnist-96": ((1, 28, 28), (Layer(3, 4, 2, 1), Layer(6, 5, 3, 0))),  # ours: the same with half the embedding
    "ae-1152": (
        (3, 224, 224),
        (
            *(Layer(24, 8, 6, 0), Layer(48, 3, 2, 0), Layer(96, 3, 3, 0)),
            *(Layer(192, 2, 2, 1), Layer(384, 2, 2, 1), Layer(1152, 3, 3, 0)),
        ),
    ),
}


def paper_autoencoder(name: str, latent: Latent = "relu") -> Autoencoder:
    """One of the paper's autoencoders, with He's normal weights from torch's global generator (the paper states none).

    Behind a ReLU a coordinate at 0 is dead: no gradient passes upstream, and training can lose it for good. The other
    two ends keep all d_z coordinates alive, so that a coordinate-wise estimator asks about each of them.

    Args:
        name: Name of the autoencoder in `PAPER_AUTOENCODERS`.
        latent: End of the encoder: relu (the paper's), leaky or linear.

    Raises:
        InvalidInput: The end is another one.
    """
    image_shape, layers = PAPER_AUTOENCODERS[name]
    autoencoder = _mirrored(image_shape, layers, latent)
    autoencoder.spec = {"name": name, "arguments": _stated(latent)}
    return autoencoder


def fitting_autoencoder(
    image_shape: ImageShape, d_z: int, width: int = 32, latent: Latent = "relu", *, seed: int | None = None
) -> Autoencoder:
    """An autoencoder for images of any shape (c, h, w) from 4x4 up, with embedding (d_z, 1, 1).

    4x4 convolutions halve the image until its shorter side is at most 4, their channels doubling from `width` to at
    most 8 `width`; one convolution over the remaining window gives z. Weights are He's normal ones.

    Args:
        image_shape: Shape (c, h, w) of an image.
        d_z: Number of coordinates of the embedding.
        width: Number of channels of the first convolution.
        latent: End of the encoder: relu, leaky or linear, see `paper_autoencoder`.
        seed: Seed of the weights; the same seed gives the same weights, which resuming a training wants. Without one
            they come from torch's global generator.

    Raises:
        InvalidInput: The images are smaller than 4x4, or a size is below 1.
    """
    channels, height, width_px = _checked_shape(image_shape)
    for name, size in (("d_z", d_z), ("width", width)):
        values.whole(name, size, 1)
    if min(height, width_px) < 4:
        raise InvalidInput(f"autoencoder wanted for {(channels, height, width_px)}; images must be at least 4x4")
    layers, window = [], (height, width_px)
    while min(window) > 4 or not layers:
        layers.append(Layer(width * min(2 ** len(layers), 8), 4, 2, 1))
        window = (window[0] // 2, window[1] // 2)
    with seeds.initialisation(values.seed(seed), "autoencoder") if seed is not None else nullcontext():
        autoencoder = _mirrored(image_shape, (*layers, Layer(d_z, window, 1, 0)), latent)
    arguments = {"image_shape": [channels, height, width_px], "d_z": d_z, "width": width}
    autoencoder.spec = {"name": "fitting-autoencoder", "arguments": arguments | _stated(latent)}
    return autoencoder


def suitable_autoencoder(
    image_shape: ImageShape, latent: Latent = "relu", d_z: int | None = None, *, seed: int | None = None
) -> Autoencoder:
    """The paper's autoencoder for images of this shape, else a fitting one with d_z = half of the pixels, at most 192.

    3x32x32: AE-192. 3x96x96: AE-576. 1x28x28: MNIST's. 3x224x224: AE-1152.

    Args:
        image_shape: Shape (c, h, w) of an image.
        latent: End of the encoder: relu, leaky or linear, see `paper_autoencoder`.
        d_z: Number of coordinates of the embedding, for a fitting one of that size whatever the shape.
        seed: Seed of the weights, as in `fitting_autoencoder`.
    """
    names = ("ae-192", "ae-576", "ae-mnist", "ae-1152")
    name = next((name for name in names if PAPER_AUTOENCODERS[name][0] == tuple(image_shape)), None)
    with seeds.initialisation(values.seed(seed), "autoencoder") if seed is not None else nullcontext():
        if name and d_z is None:
            return paper_autoencoder(name, latent)
        return fitting_autoencoder(
            image_shape, min(math.prod(image_shape) // 2, 192) if d_z is None else d_z, latent=latent
        )


def _stated(latent: Latent) -> dict[str, str]:
    """`latent` as arguments of a spec. The paper's goes without saying, as in specs from before there was a choice."""
    return {} if latent == "relu" else {"latent": latent}


def _mirrored(image_shape: ImageShape, layers: Sequence[Layer], latent: Latent) -> Autoencoder:
    """Convolution and ReLU for each layer, `latent` for the last; backwards the same, transposed, up to a sigmoid."""
    values.known("latent", latent, LATENTS)
    channels, *size = image_shape
    encoder: list[nn.Module] = []
    decoder: list[nn.Module] = []
    for layer in layers:
        out, stride, padding = layer.out_channels, layer.stride, layer.padding
        kernel = (layer.kernel, layer.kernel) if isinstance(layer.kernel, int) else layer.kernel
        span = [pixels + 2 * padding - k for pixels, k in zip(size, kernel, strict=True)]
        lost = span[0] % stride, span[1] % stride  # rows and columns that the stride drops; the mirror adds them back
        encoder += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
        decoder = [nn.ConvTranspose2d(out, channels, kernel, stride, padding, lost), nn.ReLU(), *decoder]
        channels, size = out, [pixels // stride + 1 for pixels in span]
    decoder[-1] = nn.Sigmoid()
    slope = LATENTS[latent]
    encoder[-1:] = [nn.LeakyReLU(slope) if slope else nn.ReLU()] if slope < 1 else []
    autoencoder = Autoencoder(nn.Sequential(*encoder), nn.Sequential(*decoder), image_shape)
    start_like_he(autoencoder)
    *_, last = (layer for layer in autoencoder.encoder.modules() if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        last.weight.div_(math.sqrt(1 + slope**2))  # He's gain makes up for a ReLU; a milder end needs less
    return autoencoder


def _last_layer(module: nn.Module) -> nn.Module | None:
    """The layer whose values `module` returns, looking through layers that keep values; None if it has no other."""
    if isinstance(module, nn.Identity | nn.Flatten | nn.Unflatten):
        return None
    if type(module).forward is not nn.Sequential.forward:
        return module
    lasts = (_last_layer(child) for child in reversed(list(module.children())))
    return next((last for last in lasts if last is not None), None)


def _checked_shape(image_shape: Sequence[int]) -> ImageShape:
    shape = tuple(image_shape) if isinstance(image_shape, Iterable) else ()
    if len(shape) != 3 or not all(isinstance(extent, int) and extent >= 1 for extent in shape):
        raise InvalidInput(f"image_shape is {image_shape}; give three positive integers (c, h, w)")
    return shape


def _placement(module: nn.Module) -> dict[str, Any]:
    """Device and floating type that `module` works in, torch's defaults if it holds no tensors."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next(({"device": t.device, "dtype": t.dtype} for t in tensors if t.is_floating_point()), {})


def _probe(role: str, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    try:
        answer = module(batch)
    except Exception as error:  # a stranger's module may raise anything
        reason = " ".join(str(error).split())
        raise InvalidInput(
            f"{role} failed on a batch of shape {tuple(batch.shape)}: {reason}; check image_shape and the modules"
        ) from error
    if not isinstance(answer, torch.Tensor) or answer.ndim < 2 or len(answer) != len(batch):
        came = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise InvalidInput(f"{role} returned {came} for {len(batch)} inputs; return one tensor with a row for each")
    return answer


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Keep a module in evaluation mode inside the block, and give every part its own mode back.

    Args:
        module: Module of any mixture of modes.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
