"""Autoencoders that the paper's authors released, imported without running what a pickle may hold.

Released: `.pth.tar` files, one an encoder and one a decoder, each a dict with `epoch`, `arch`, `state_dict` and
`optimizer`. Source: https://github.com/damon-demon/Black-Box-Defense
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certibox.defense.autoencoders import rebuilt
from certibox.errors import InvalidInput, UnreadableFile
from certibox.networks import AUTOENCODERS, Autoencoder
from certibox.storage.files import read_bytes
from certibox.storage.tensors import Tensors, under


def import_authors(encoder: str | Path, decoder: str | Path) -> tuple[Autoencoder, dict[str, Any]]:
    """The autoencoder in a released encoder and decoder file, and facts for `save_autoencoder`: where it comes from.

    Which of `networks.AUTOENCODERS` it is, the names and shapes of the weights tell. Tensors and plain values are read
    and nothing else is unpickled, so no code of the files runs. Weights are kept as float32.

    Args:
        encoder: Released file of the encoder, a .pth.tar.
        decoder: Released file of the decoder, a .pth.tar.

    Returns:
        The autoencoder, and plain values that name the files and their SHA-256.

    Raises:
        UnreadableFile: A file is missing, damaged, or needs more unpickling than that.
        InvalidInput: A file lacks a `state_dict`, or the two are not the halves of one network.
    """
    halves = {"encoder": _read_half(encoder, "encoder"), "decoder": _read_half(decoder, "decoder")}
    names = {role: half.name for role, half in halves.items()}
    if names["encoder"] != names["decoder"]:
        raise InvalidInput(
            f"{encoder} is the encoder of {names['encoder']}, {decoder} the decoder of {names['decoder']}; "
            "wanted two halves of one network"
        )
    spec = {"name": names["encoder"], "arguments": {}}
    autoencoder = rebuilt(spec, halves["encoder"].weights | halves["decoder"].weights)
    for name, weights in autoencoder.state_dict().items():
        if not weights.isfinite().all():
            raise InvalidInput(f"{name} of the released {spec['name']} is not finite; wanted trained weights")
    return autoencoder, {"source": {role: half.source for role, half in halves.items()}}


@dataclass(frozen=True)
class _Half:
    """One released file: weights of the encoder or the decoder of the network `name`, and where they come from."""

    name: str
    weights: Tensors
    source: dict[str, Any]


def _read_half(path: str | Path, role: str) -> _Half:
    content = read_bytes(path)
    stored = _unpickled(content, path)
    state = stored.get("state_dict") if isinstance(stored, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and _is_weight(v) for k, v in state.items()):
        raise InvalidInput(f"{path} holds no 'state_dict' of named weights; wanted a released .pth.tar file")
    if all(name.startswith("module.") for name in state):  # saved under DataParallel
        state = under("module", state)
    found = _recognised(state)
    if found is None:
        came = ", ".join(f"{name!r} {tuple(weights.shape)}" for name, weights in list(state.items())[:2])[:100]
        raise InvalidInput(
            f"{path} holds {came or 'no weights'}, which is the {role} of none of {', '.join(AUTOENCODERS)}; "
            "wanted one of these"
        )
    name, part = found
    if part != role:
        raise InvalidInput(f"{path} is the {part} of {name}; wanted its {role}: are the two files swapped?")
    told = {"epoch": stored.get("epoch"), "arch": stored.get("arch")}
    source = {"file": Path(path).name, "sha256": hashlib.sha256(content).hexdigest()}
    return _Half(name, state, source | {key: value for key, value in told.items() if isinstance(value, int | str)})


def _unpickled(content: bytes, path: str | Path) -> Any:
    """Tensors and plain values in what torch.save wrote."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on what is no file of torch's, it speculates before it fails
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # bytes of any origin: torch's readers share no base exception
        # Torch's own text is long and ends in advice to switch the check off.
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UnreadableFile(
                f"{path} holds a pickled {wanted[1]}, which certibox does not load, as it may run code; "
                "wanted tensors and plain values alone"
            ) from error
        raise UnreadableFile(
            f"{path} is cut short, damaged, or not tensors and plain values that torch.save wrote; "
            "wanted a released .pth.tar file"
        ) from error


def _is_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _recognised(weights: Tensors) -> tuple[str, str] | None:
    """The network of the paper, and the half of it, that has weights of these names and shapes."""
    shapes = {name: weight.shape for name, weight in weights.items()}
    for name, factory in AUTOENCODERS.items():
        with torch.device("meta"):  # shapes alone: no memory, no random draws
            whole = factory().state_dict()
        for role in ("encoder", "decoder"):
            if shapes == {key: weight.shape for key, weight in whole.items() if key.startswith(f"{role}.")}:
                return name, role
    return None
