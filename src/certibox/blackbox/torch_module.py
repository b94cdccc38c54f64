"""A torch module as a black box; the one adapter that can also give gradients."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.outputs import picked, to_outputs
from certibox.blackbox.pace import Pace
from certibox.storage.tensors import module_digest

# Images a second by batch size, channels last (contiguous), at 3x32x32 on 2 CPU threads with torch 2.13, best of three:
#     batch size                                16           32           64          128          256          512
#     20 layers, 16-32-64 channels     3293 (2770)  3750 (3076)  3992 (3314)  3636 (2340)  2441 (2020)  1935 (1383)
#     14 layers, 64-128-256 channels     498 (472)    524 (460)    443 (399)    378 (286)    373 (264)    356 (251)
# Channels last always won, and batches above 128 always lost.
_CPU_BATCH_SIZE = 64


class TorchBox:
    """A torch module, asked in eval mode without gradients, on the device and in the precision of its first parameter.

    The module is put in eval mode, and the weights of a convolutional one are laid out channels last (the same numbers;
    faster).

    Args:
        module: Module from float images (n, c, h, w) to outputs.
        outputs: Kind of the answers, as in `BoxSpec`.
        output_key: Key, position or attribute of the answers in what the module returns; None for all of it.
        declared: Other fields of `BoxSpec`; `name` is the module's class and `identity` a digest of its weights by
            default, `batch_size` what was fastest for its device.
    """

    answers_alone = True
    """Whether an image is answered alone, whatever else is in the batch."""

    def __init__(self, module: nn.Module, outputs: str, output_key: str | None = None, **declared: Any) -> None:
        self._output_key = output_key
        reference = _reference(module)
        batch_size = _CPU_BATCH_SIZE if reference is None or reference.device.type == "cpu" else BoxSpec.batch_size
        self.free_batch_size = "batch_size" not in declared  # what is fastest may be measured
        declared.setdefault("batch_size", batch_size)
        declared.setdefault("name", type(module).__name__)
        declared.setdefault("identity", module_digest(module))
        self.spec = BoxSpec(outputs, **declared)
        on_cpu = reference is None or reference.device.type == "cpu"
        self._pace = Pace(self.spec.batch_size) if self.free_batch_size and on_cpu else None
        self.module = module.eval()
        self._lay_out(channels_last=any(isinstance(layer, nn.Conv2d) for layer in module.modules()))

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
        if self.module.training:  # its owner may have gone on training it
            self.module.eval()
        reference = _reference(self.module)  # looked up every time: the user may move the module
        like = x if reference is None else reference
        channels_last = self._channels_last  # as it is now: another thread may find out that it does not work
        layout = torch.channels_last if channels_last else torch.contiguous_format
        # A copy: a module that works in place must not change the images that are certified.
        images = self.spec.arrange(self.spec.prepare(x)).to(like.device, like.dtype, copy=True, memory_format=layout)
        try:
            return picked(self.module(images), self._output_key, self.spec)
        except RuntimeError as error:
            # `features.view(n, -1)` works on contiguous features only. Such a module goes back to what it was.
            if not (channels_last and "view size is not compatible" in str(error)):
                raise
        self._lay_out(channels_last=False)
        return self._forward(x)

    def _lay_out(self, channels_last: bool) -> None:
        self._channels_last = channels_last
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        with torch.inference_mode(False):  # weights made in inference mode would never have a gradient again
            for parameter in self.module.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _reference(module: nn.Module) -> Tensor | None:
    """The tensor whose device and precision the module's input takes; None for a module without numbers of its own."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)
