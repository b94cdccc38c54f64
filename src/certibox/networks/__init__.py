"""Denoisers, autoencoders, classifiers and reconstructors by name, and their rebuilding from a checkpoint's spec.

Every module made here carries `.spec`, a plain dict such as {"name": "dncnn", "arguments": {"channels": 1, ...}} that
`build` turns into the same architecture. A name of a dict below may be short for a more general factory with
arguments; the spec then names the general one, so it stays true if the short name ever changes its meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ..errors import InvalidInput, one_of
from .autoencoder import PAPER_AUTOENCODERS, Autoencoder, fitting_autoencoder, paper_autoencoder, suitable_autoencoder
from .classifiers import ConvNet, mnist_cnn, mnist_mlp, vgg16
from .dncnn import DnCNN, dncnn
from .reconstructor import Reconstructor, mnist_reconstructor
from .resnet import ResNet, cifar_resnet, imagenet_resnet, resnet18_stl10
from .unet import UNet, unet

__all__ = [
    "AUTOENCODERS",
    "CLASSIFIERS",
    "DENOISERS",
    "RECONSTRUCTORS",
    "Autoencoder",
    "ConvNet",
    "DnCNN",
    "Reconstructor",
    "ResNet",
    "UNet",
    "build",
    "cifar_resnet",
    "dncnn",
    "fitting_autoencoder",
    "imagenet_resnet",
    "mnist_cnn",
    "mnist_mlp",
    "mnist_reconstructor",
    "resnet18_stl10",
    "suitable_autoencoder",
    "unet",
    "vgg16",
]

DENOISERS: dict[str, Callable[..., nn.Module]] = {  # factory(channels): (b, c, h, w) -> (b, c, h, w)
    "dncnn": dncnn,
    "dncnn-wide": partial(dncnn, width=128),
    "unet": unet,
}

AUTOENCODERS: dict[str, Callable[..., Autoencoder]] = {  # factory(latent)
    name: partial(paper_autoencoder, name) for name in PAPER_AUTOENCODERS
}

CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {  # factory(num_classes, channels): (b, c, h, w) -> (b, num_classes)
    "resnet20": partial(cifar_resnet, 20),
    "resnet56": partial(cifar_resnet, 56),
    "resnet110": partial(cifar_resnet, 110),
    "vgg16": vgg16,
    "resnet18-stl10": resnet18_stl10,
    "resnet18": partial(imagenet_resnet, 18),
    "resnet50": partial(imagenet_resnet, 50),
    "mnist-cnn": mnist_cnn,
    "mnist-mlp": mnist_mlp,
}

RECONSTRUCTORS: dict[str, Callable[[], nn.Module]] = {  # (b, 1, 28, 28) -> (b, 1, 28, 28)
    "mnist-reconstructor": mnist_reconstructor,
}

_FACTORIES: dict[str, Callable[..., nn.Module]] = {
    **DENOISERS,
    **AUTOENCODERS,
    **CLASSIFIERS,
    **RECONSTRUCTORS,
    "fitting-autoencoder": fitting_autoencoder,
    "cifar-resnet": cifar_resnet,
    "imagenet-resnet": imagenet_resnet,
}


def build(spec: dict[str, Any]) -> nn.Module:
    """The architecture that a spec describes, with fresh weights: `build(module.spec)` has `module`'s state_dict keys.

    Args:
        spec: Name and arguments of a network, {"name": ..., "arguments": {...}}.

    Raises:
        InvalidInput: The name is unknown, or its factory refuses the arguments.
    """
    if not isinstance(spec, dict) or spec.keys() != {"name", "arguments"}:
        raise InvalidInput(f"network spec is {spec!r}; give {{'name': ..., 'arguments': {{...}}}}")
    name, arguments = spec["name"], spec["arguments"]
    if not isinstance(name, str) or name not in _FACTORIES:
        raise InvalidInput(f"network {name!r} is unknown; give {one_of(name, sorted(_FACTORIES))}")
    try:
        return _FACTORIES[name](**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidInput(f"network {name!r} cannot be built from {arguments!r}: {reason}; correct them") from error
