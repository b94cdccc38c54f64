"""A torch module as a black box; the one adapter that can also give gradients."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.identity import digest_of, joined
from certibox.blackbox.numbers import as_numbers
from certibox.blackbox.outputs import in_columns, picked, to_outputs
from certibox.blackbox.pace import Pace
from certibox.errors import InvalidInput
from certibox.storage.tensors import put_in_eval_mode

# Images a second by batch size, channels last (contiguous), at 3x32x32 on 2 CPU threads with torch 2.13, best of three:
#     batch size                                16           32           64          128          256          512
#     20 layers, 16-32-64 channels     3293 (2770)  3750 (3076)  3992 (3314)  3636 (2340)  2441 (2020)  1935 (1383)
#     14 layers, 64-128-256 channels     498 (472)    524 (460)    443 (399)    378 (286)    373 (264)    356 (251)
# Channels last always won, and batches above 128 always lost.
_CPU_BATCH_SIZE = 64
_PRECISIONS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class TorchBox:
    """A torch module, asked in eval mode without gradients, on the device and in the precision of its first parameter.

    The module is put in eval mode, and the weights of a convolutional one are laid out channels last (the same numbers;
    faster). It may be compiled, scripted, traced, quantised or exported. The mode of an exported program was fixed by
    the export, and so were the sizes of its images and their number, unless they were declared dynamic: it is run on so
    many at a time. Pixels are not clipped unless `clip` or `levels` is declared, since clipping cuts gradients: with
    noise on them, and behind a defense, they leave [0, 1].

    Args:
        module: Module from float images (n, c, h, w) to outputs, or what `layout` and `dtype` declare.
        outputs: Kind of the answers, as in `BoxSpec`.
        output_key: Key, position or attribute of the answers in what the module returns; None for all of it.
        declared: Other fields of `BoxSpec`; `name` is the module's class by default, `batch_size` what was fastest for
            its device, and `identity` a digest of its weights, settings and code, joined with one that is given.

    Raises:
        InvalidInput: The module has no weights yet.
    """

    def __init__(self, module: Any, outputs: str, output_key: str | int | None = None, **declared: Any) -> None:
        self._output_key = output_key
        module = module if isinstance(module, nn.Module) else module.module()  # of an exported program
        name = _name(module)
        _require_weights(module, name)
        self._at_once, *sizes = _exported_sizes(module)
        if sizes:
            declared["takes"] = tuple(sizes)
        reference = _reference(module)
        on_cpu = reference is None or reference.device.type == "cpu"
        self.free_batch_size = "batch_size" not in declared  # what is fastest may be measured
        declared.setdefault("batch_size", _CPU_BATCH_SIZE if on_cpu else BoxSpec.batch_size)
        declared.setdefault("name", name)
        BoxSpec(outputs, **declared)  # refused before a large model is read
        declared["identity"] = joined(declared.get("identity"), digest_of(module))
        self.spec = BoxSpec(outputs, **declared)
        self._pace = Pace(self.spec.batch_size) if self.free_batch_size and on_cpu else None
        self.module = module
        self.is_quantised = any(map(_is_quantised, module.modules()))
        """Whether a part computes in whole numbers, through which no gradient passes."""
        self._keeps_mode = not put_in_eval_mode(module)
        self.answers_alone = not (self._keeps_mode or any(map(_mixes_a_batch, module.modules())))
        """Whether an image is answered alone, whatever else is in the batch."""
        images = self.spec.layout == "NCHW"
        self._lay_out(channels_last=images and any(isinstance(layer, nn.Conv2d) for layer in module.modules()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary})"

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`."""
        with torch.inference_mode():
            answer = self._forward(x) if self._pace is None else self._pace.in_parts(self._forward, x)
        return to_outputs(answer, self.spec, x.device)

    def differentiable(self, x: Tensor) -> Tensor:
        """The same computation under autograd; take the gradient with respect to x only.

        Args:
            x: Images (n, c, h, w), floats on [0, 1].
        """
        return self._forward(x).to(x.device)

    def _forward(self, x: Tensor) -> Tensor:
        if not self._keeps_mode:
            put_in_eval_mode(self.module)  # its owner may have gone on training it, or a part of it
        if self._at_once in (None, len(x)):
            return self._run(x)
        return torch.cat([self._run(_filled_up(part, self._at_once))[: len(part)] for part in x.split(self._at_once)])

    def _run(self, x: Tensor) -> Tensor:
        device, dtype = self._wanted(x)
        channels_last = self._channels_last  # as it is now: another thread may find out that it does not work
        layout = torch.channels_last if channels_last else torch.contiguous_format
        # A copy: a module that works in place must not change the images that are certified.
        images = self.spec.arrange(self.spec.prepare(x)).to(device, dtype, copy=True, memory_format=layout)
        try:
            answer = picked(self.module(images), self._output_key, self.spec)
            return in_columns(as_numbers(answer, self.spec), self.spec, len(x))
        except RuntimeError as error:
            # `features.view(n, -1)` works on contiguous features only. Such a module goes back to what it was.
            if not (channels_last and "view size is not compatible" in str(error)):
                raise
        self._lay_out(channels_last=False)
        return self._run(x)

    def _wanted(self, x: Tensor) -> tuple[torch.device, torch.dtype]:
        """Device and type of the module's input, looked up every time: its user may move the module."""
        like = x if (reference := _reference(self.module)) is None else reference
        if self.spec.dtype is not None:
            return like.device, getattr(torch, self.spec.dtype)
        return like.device, torch.float32 if reference is None and self.is_quantised else like.dtype

    def _lay_out(self, channels_last: bool) -> None:
        self._channels_last = channels_last
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        with torch.inference_mode(False):  # weights made in inference mode would never have a gradient again
            for parameter in self.module.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _reference(module: nn.Module) -> Tensor | None:
    """The tensor whose device and precision the module's input takes; None for a module without floats of its own."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.dtype in _PRECISIONS), None)


def _exported_sizes(module: nn.Module) -> list[int | None]:
    """Sizes of the images that an exported program takes, the batch first, None where one is free; else [None]."""
    nodes = module.graph.find_nodes(op="placeholder") if isinstance(module, torch.fx.GraphModule) else []
    example = nodes[0].meta.get("val") if len(nodes) == 1 else None
    if not isinstance(example, Tensor) or example.dim() not in (2, 4):
        return [None]
    return [size if isinstance(size, int) else None for size in example.shape]


def _filled_up(x: Tensor, n: int) -> Tensor:
    """At most n images as n of them: the last one again and again."""
    return torch.cat([x, x[-1:].expand(n - len(x), *x.shape[1:])])


def _is_quantised(module: nn.Module) -> bool:
    """Whether a module is quantised: its numbers are whole, and what it takes is single precision."""
    if isinstance(module, torch.jit.ScriptModule):
        return "quantized::" in str(getattr(module, "inlined_graph", ""))  # none of a part without a forward
    return "quantized" in type(module).__module__


def _mixes_a_batch(module: nn.Module) -> bool:
    """Whether a module's answer to an image depends on the others in eval mode too, or may: their common statistics."""
    normalises = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    return normalises or "quantized.dynamic" in type(module).__module__ or isinstance(module, torch.jit.ScriptModule)


def _name(module: nn.Module) -> str:
    """The class of the module, as it was before it was compiled, scripted or traced."""
    original = getattr(module, "original_name", None) if isinstance(module, torch.jit.ScriptModule) else None
    return str(original or type(getattr(module, "_orig_mod", module)).__name__)


def _require_weights(module: nn.Module, name: str) -> None:
    """Raises InvalidInput where a weight is still to be made or lies nowhere."""
    for weight, tensor in chain(module.named_parameters(), module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise InvalidInput(f"{weight} of {name} has no shape yet; run the module on one image first, it is lazy")
        if tensor.is_meta:
            raise InvalidInput(f"{weight} of {name} is on the meta device, without numbers; load the weights first")
