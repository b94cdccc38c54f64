"""Autoencoders on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certibox import networks
from certibox.data import Images, mean_over
from certibox.errors import InvalidInput, UnreadableFile
from certibox.networks import Autoencoder
from certibox.seeds.switches import settled
from certibox.storage.files import write_json_atomic
from certibox.storage.tensors import Tensors, load_module, read_tensors, write_tensors

FILE = "autoencoder.safetensors"


def save_autoencoder(autoencoder: Autoencoder, directory: str | Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Write `autoencoder.safetensors` (everything) and `autoencoder.json` (the same facts, to read).

    Args:
        autoencoder: Autoencoder that a factory of certibox made; only its weights are stored.
        directory: Directory to write into; it is made where there is none.
        facts: Plain values that say where the autoencoder comes from; its `spec` joins them.

    Returns:
        The directory.

    Raises:
        InvalidInput: The autoencoder is made of modules of your own, which nothing here could rebuild.
    """
    spec = getattr(autoencoder, "spec", None)
    if spec is None:
        raise InvalidInput(
            "the autoencoder is made of modules of your own; wanted one that certibox can rebuild, "
            "such as fitting_autoencoder(...): keep the state_dict of yours"
        )
    directory, stored = Path(directory), {**(facts or {}), "spec": spec}
    write_tensors(directory / FILE, autoencoder.state_dict(), stored)
    write_json_atomic(directory / "autoencoder.json", stored)
    return directory


def load_autoencoder(directory: str | Path) -> Autoencoder:
    """The autoencoder that `save_autoencoder` wrote, in evaluation mode, its weights fixed until training frees them.

    Args:
        directory: Directory that `save_autoencoder` wrote.

    Raises:
        UnreadableFile: There is none, or it is damaged.
        InvalidInput: Its network is not known here.
    """
    tensors, facts = read_tensors(Path(directory) / FILE)
    if "spec" not in facts:
        raise UnreadableFile(f"{Path(directory) / FILE} holds no autoencoder; wanted what save_autoencoder wrote")
    return rebuilt(facts["spec"], tensors)


def reconstruction_mse(autoencoder: Autoencoder, images: Images, batch: int = 256) -> float:
    """Mean of (ψ_dec(ψ_enc(x)) − x)² over images and pixels, pixels on [0, 1]; no query.

    Args:
        autoencoder: Autoencoder (ψ_enc, ψ_dec).
        images: Images of its shape.
        batch: Number of images at a time.
    """

    def error(x: Tensor, _index: Tensor) -> Tensor:  # (b, c, h, w) -> (b,)
        return (autoencoder(x) - x).square().flatten(1).mean(1)

    with settled(), torch.inference_mode():
        return mean_over(images, error, batch)


@settled()
def rebuilt(spec: dict[str, Any], weights: Tensors) -> Autoencoder:
    """The autoencoder that a spec and its weights describe.

    Args:
        spec: Name and arguments of the network, see `certibox.networks.build`.
        weights: State dict of the network.

    Raises:
        InvalidInput: The network is no autoencoder, or the weights do not fit.
    """
    with torch.device("meta"):  # the weights it starts with would be drawn only to be replaced
        autoencoder = networks.build(spec)
    if not isinstance(autoencoder, Autoencoder):
        raise InvalidInput(f"the saved network is a {type(autoencoder).__name__}; wanted an autoencoder")
    autoencoder.to_empty(device="cpu")
    load_module(autoencoder, weights, "autoencoder")
    return autoencoder.eval().requires_grad_(False)
