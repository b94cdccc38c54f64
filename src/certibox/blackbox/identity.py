"""What tells a model from another without a query: one digest over its numbers, its settings and its code.

Nothing in it depends on the process: neither addresses, nor the order of sets, nor lines of files, nor what lies
between the fields of a record. What a model writes while it is asked (caches, counters), random generators and times
are left out.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import weakref
from collections.abc import Iterable
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certibox.blackbox.code import PLAIN, is_pinned, library, of_class, of_function, written_by

_DEEPEST = 120  # levels below which only kinds of values count
# What differs between two equal fits, or changes no answer.
_LEFT_OUT = re.compile(
    r"_sklearn_version|(mean|std)_(fit|score)_time|refit_time_|n_jobs|verbose|memory|pre_dispatch|device"
    r"|_compiled_call_impl|_is_torch_compile"
)
_RANDOM = (np.random.RandomState, np.random.Generator, np.random.BitGenerator, random.Random, torch.Generator)
_BY_KIND = (*_RANDOM, logging.Logger, torch.device, weakref.ref, weakref.ProxyType)  # only that there is one
_TREES = {"BinaryTree", "BinaryTree32", "BinaryTree64", "cKDTree"}  # they count questions, and save addresses
# Lines of files, numbers in the order of making, addresses.
_UNNAMED = re.compile(r" # .*|___torch_mangle_\d+\.|(?<=object\()0x[0-9a-f]+")
_PLAINEST = frozenset((int, float, str, bool, type(None)))
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def digest_of(value: object) -> str:
    """SHA-256 (hex) of what decides the answers of a model, or of any other value.

    Args:
        value: Torch module, fitted estimator, function, or anything that such a thing may hold.
    """
    return _Walk().digest(value).hex()


def joined(given: str | None, own: str | None) -> str | None:
    """One identity of that which a user gave and that which an adapter found; None without either.

    Args:
        given: Digest or version that the user gave.
        own: Digest of what the adapter sees of the model.
    """
    if given is None or own is None:
        return own if given is None else given
    return hashlib.sha256(f"{len(given)}/{given}/{own}".encode()).hexdigest()


class _Walk:
    """A digest for each value, from those of its parts; what is shared is walked once, and circles are closed."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, object]] = {}  # with the object, so that its address stays its own
        self._open: dict[int, int] = {}
        self._written: dict[type, set[str]] = {}

    def digest(self, value: Any) -> bytes:
        if isinstance(value, PLAIN) and not isinstance(value, Enum):
            return _hashed(type(value).__name__, repr(value))
        if (known := self._known.get(id(value))) is not None:
            return known[0]
        depth = len(self._open)
        if id(value) in self._open or depth > _DEEPEST:
            return _hashed("above", str(depth - self._open.get(id(value), depth)), type(value).__name__)
        self._open[id(value)] = depth
        try:
            found = _of_numbers(value) or self._of_parts(*self._parts(value))
        finally:
            del self._open[id(value)]
        self._known[id(value)] = found, value
        return found

    def _of_parts(self, kind: str, parts: Iterable[Any]) -> bytes:
        return _hashed(kind, *map(self.digest, parts))

    def _parts(self, value: Any) -> tuple[str, Iterable[Any]]:
        """A word for the kind of a value, and its parts in an order of their own."""
        if isinstance(value, list | tuple):
            return "sequence", value
        if isinstance(value, dict) and type(value).__reduce_ex__ is dict.__reduce_ex__:
            return "mapping", (self._of_mapping(value),)
        if isinstance(value, set | frozenset):
            return "set", sorted(map(self.digest, value))
        if isinstance(value, Enum):
            return "enum", (type(value).__qualname__, value.name)
        if isinstance(value, np.ndarray):
            return "array", _of_array(value)
        if isinstance(value, nn.Module):
            return "module", self._of_module(value)
        if isinstance(value, type):
            return "class", of_class(value)
        if (code := of_function(value)) is not None:
            return "code", code
        if (to_numpy := getattr(value, "to_numpy", None)) is not None:  # of a table or a column of one
            return "table", (list(getattr(value, "columns", ())), to_numpy())
        if isinstance(value, torch.ScriptObject):
            return "scripted", (value._type().qualified_name(), *_scripted_state(value))
        if isinstance(value, _BY_KIND):
            return "kind", (type(value).__name__,)
        return "object", self._of_object(value)

    def _of_mapping(self, mapping: dict[Any, Any], left_out: Iterable[str] = ()) -> bytes:
        kept = {key: item for key, item in mapping.items() if key not in left_out and not _is_left_out(key)}
        pairs = sorted((self.digest(key), self.digest(item)) for key, item in kept.items())
        return _hashed("pairs", *(part for pair in pairs for part in pair))

    def _of_object(self, value: Any) -> list[Any]:
        """What would build the object again, by its own word."""
        kind = type(value)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # a lock, a file, a session: whatever pickling such an object raises
            return [kind]
        if isinstance(reduced, str) or len(reduced) < 2:
            return [kind, reduced]
        make, arguments, state, *items = *reduced, *[None] * (5 - len(reduced))
        if {base.__name__ for base in kind.__mro__} & _TREES:
            state = [part for part in state or () if not isinstance(part, int | bytes)]
        states = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        return [
            kind,
            make if is_pinned(make) or of_function(make) else getattr(make, "__qualname__", ""),
            arguments,
            [self._of_mapping(part, self._written_by(kind)) if isinstance(part, dict) else part for part in states],
            *(list(part) for part in items[:2] if part is not None),
        ]

    def _of_module(self, module: nn.Module) -> Iterable[Any]:
        """Weights and buffers, and the class, settings, hooks and program of each part."""
        yield {_plain_name(name): tensor for name, tensor in _state(module).items()}
        for name, part in module.named_modules(remove_duplicate=False):
            if type(part).__name__ != "OptimizedModule":  # the module as it was is within
                hooks = [list(vars(part).get(kind, {}).values()) for kind in ("_forward_pre_hooks", "_forward_hooks")]
                yield (_plain_name(name), type(part), hooks, _program(part) or self._settings(part))

    def _settings(self, module: nn.Module) -> bytes:
        """The attributes of one module that are neither weights, nor parts, nor computed from them."""
        own = library(type(module).__module__) is None
        found = {
            name: value
            for name, value in vars(module).items()
            if name not in _OF_EVERY_MODULE
            and (own or is_pinned(value))
            and not (isinstance(value, Tensor) and value.grad_fn is not None)
            and not {f"{name}_orig", f"{name}_v"} & module._parameters.keys()  # as norms and pruning of torch do
        }
        return self._of_mapping(found, self._written_by(type(module)))

    def _written_by(self, kind: type) -> set[str]:
        if kind not in self._written:
            self._written[kind] = written_by(kind)
        return self._written[kind]


def _hashed(kind: str, *parts: str | bytes) -> bytes:
    total = hashlib.sha256(kind.encode())
    for part in parts:
        encoded = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        total.update(f"/{len(encoded)}/".encode())
        total.update(encoded)
    return total.digest()


def _is_left_out(key: object) -> bool:
    return isinstance(key, str) and _LEFT_OUT.fullmatch(key) is not None


def _plain_name(name: str) -> str:
    """The name of a part as before it was compiled."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _of_numbers(value: object) -> bytes | None:
    """Digest of an array or tensor by its bytes, or of many plain values at once; None for what has parts instead."""
    if isinstance(value, list | tuple) and all(type(part) in _PLAINEST for part in value):
        return _hashed("plain", repr(list(value)))
    if isinstance(value, Tensor):
        return _of_tensor(value.detach())
    if not isinstance(value, np.ndarray) or value.dtype.hasobject or value.dtype.names or np.ma.isMaskedArray(value):
        return None
    array = np.ascontiguousarray(value)
    if array.dtype.kind in "fc" and array.dtype.itemsize > 8 * (1 + (array.dtype.kind == "c")):
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.complex128)  # has bytes that mean nothing
    return _hashed("numbers", f"{array.dtype.str}/{value.shape}", array.tobytes())


def _of_array(array: np.ndarray) -> Iterable[Any]:
    """The parts of an array that is no block of numbers."""
    yield array.shape
    if isinstance(array, np.ma.MaskedArray):
        yield from (np.ma.getmaskarray(array), array.compressed())
    elif array.dtype.names:
        yield from ((name, np.ascontiguousarray(array[name])) for name in array.dtype.names)
    else:
        yield array.ravel().tolist()


def _of_tensor(tensor: Tensor) -> bytes:
    about = f"{tensor.dtype}/{tuple(tensor.shape)}"
    if tensor.is_meta:
        return _hashed("tensor", about)
    if tensor.is_quantized:
        about += f"/{tensor.qscheme()}"
        per_tensor = tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        about += f"/{tensor.q_scale()}/{tensor.q_zero_point()}" if per_tensor else ""
        scales = [] if per_tensor else [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
        return _hashed("tensor", about, *map(_of_tensor, [tensor.int_repr(), *scales]))
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return _hashed("tensor", about, flat.view(torch.uint8).numpy().tobytes())


def _state(module: nn.Module) -> dict[str, Any]:
    """Weights, buffers (also those that are never saved) and what else a module would save."""
    try:
        saved = dict(module.state_dict(keep_vars=True))
    except Exception:  # of a module's own making
        saved = {}
    parameters, buffers = (
        dict(tensors(remove_duplicate=False)) for tensors in (module.named_parameters, module.named_buffers)
    )
    return saved | parameters | buffers


def _program(module: nn.Module) -> Any:
    """The program of a module that was exported, traced or scripted; None for one that runs its class's code."""
    if isinstance(module, torch.jit.ScriptModule):
        try:
            code, constants = module.code_with_constants
        except (RuntimeError, AttributeError):  # a part without a forward
            return ("no forward", _script_attributes(module))
        texts = [_UNNAMED.sub("", text) for text in (code, str(module.inlined_graph))]
        return (texts, dict(constants.const_mapping), _script_attributes(module))
    if isinstance(module, torch.fx.GraphModule):
        return (module.code, {name: value for name, value in vars(module).items() if isinstance(value, Tensor)})
    return None


def _scripted_state(value: Any) -> tuple[Any, ...]:
    """What an object of TorchScript would save."""
    return (value.__getstate__(),) if value._has_method("__getstate__") else ()


def _script_attributes(module: torch.jit.ScriptModule) -> dict[str, Any]:
    """Settings that a scripted module reads while it runs."""
    names = getattr(getattr(module, "_concrete_type", None), "get_attributes", dict)()
    found = {name: getattr(module, name, None) for name in names}
    return {name: value for name, value in found.items() if name != "training" and _is_read(value)}


def _is_read(value: Any) -> bool:
    return is_pinned(value) or isinstance(value, torch.ScriptObject)  # of which weights in whole numbers are
