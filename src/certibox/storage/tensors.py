"""Tensors and facts in one safetensors file, written atomically and verified when read. No pickle.

A single file cannot disagree with itself: the facts (JSON) and a SHA-256 over facts and tensors live in its header.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from certibox.errors import InvalidInput, UnreadableFile
from certibox.storage.files import write_bytes_atomic

Tensors = dict[str, Tensor]


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and facts into one file, whole or not at all.

    Args:
        path: File to write.
        tensors: Tensors by name.
        facts: Values of JSON's types, by name.
    """
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    content = save(kept, metadata={"facts": text, "sha256": _seal(text, kept)})
    write_bytes_atomic(Path(path), _in_order(content), is_tensors)


def is_tensors(content: bytes) -> bool:
    """Whether a file that begins so is one of tensors and facts.

    Args:
        content: First bytes of the file.
    """
    begin = content[8:].lstrip()
    return begin.startswith((b'{"__metadata__":{"facts":', b'{"__metadata__":{"sha256":'))


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its header in one order: the library writes its facts in an order of chance.

    The format is eight bytes of the header's length, the header as JSON, padded with spaces, and the tensors' bytes, to
    which the header points by offsets from its own end.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))}
    ordered |= sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
    text = json.dumps(ordered, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def read_tensors(path: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and facts of a file that `write_tensors` made.

    Args:
        path: File to read.

    Raises:
        UnreadableFile: The file is missing, cut short or altered.
    """
    if not os.path.isfile(path):
        raise UnreadableFile(f"there is no checkpoint {path}; wanted a file that certibox saved")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        what = f"the checkpoint {path} is cut short or damaged ({' '.join(str(error).split())})"
        raise UnreadableFile(f"{what}; restore it or delete it to start again") from error
    if header.get("sha256") != _seal(header.get("facts", ""), tensors):
        what = f"the checkpoint {path} is damaged: its digest does not match"
        raise UnreadableFile(f"{what}; restore it or delete it to start again")
    return tensors, json.loads(header["facts"])


def _seal(facts: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(f"{tensors_digest(tensors)}/{facts}".encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of tensors on the CPU.

    Args:
        tensors: Tensors by name.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def module_digest(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's parameters and buffers.

    Args:
        module: Module to name.
    """
    return tensors_digest(module.state_dict())


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors under `prefix.`.

    Args:
        prefix: Name to put before each, without the dot.
        tensors: Tensors by name.
    """
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors below `prefix.`, without it.

    Args:
        prefix: Name before each, without the dot.
        tensors: Tensors by name.
    """
    prefix = f"{prefix}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def put_in_eval_mode(module: nn.Module) -> bool:
    """Put a module in evaluation mode, where no running statistic moves; False for one exported with a fixed mode.

    A module whose own `eval` or `train` raises has the mode of every part set, as they would have done.

    Args:
        module: Module of any origin.
    """
    if not any(getattr(part, "training", False) for part in module.modules()):  # a frozen program has none
        return True
    try:
        module.eval()
    except Exception:  # of a module's own making
        if isinstance(module, torch.fx.GraphModule):
            return False
        for part in module.modules():
            part.training = False
    return True


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict strictly.

    Args:
        module: Module to load into.
        tensors: Parameters and buffers by name.
        name: Name of the module in the message.

    Raises:
        InvalidInput: The tensors belong to another architecture.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        text = " ".join(str(error).split())[:200]
        raise InvalidInput(f"the saved {name} does not fit the {name} at hand: {text}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """An optimizer's state as flat tensors (momenta and counters; its settings come from the schedule).

    Args:
        optimizer: Optimizer of any kind.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`.

    Args:
        optimizer: Optimizer over the same parameters.
        tensors: State of the other optimizer, as flat tensors.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
