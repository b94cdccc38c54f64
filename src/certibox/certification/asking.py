"""How a base classifier is asked for votes: so many images at a time, in evaluation mode, its answers checked.

Nothing here knows what the base classifier is: it is a callable, and may say more of itself by its attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from certibox.certification.alone import BatchCheck, meter_of
from certibox.errors import BadOutput, InvalidInput
from certibox.storage.tensors import module_digest, put_in_eval_mode

BaseClassifier = Callable[[Tensor], Tensor]
PIXELS = 1 << 20  # of the images in a call whose size is chosen here: a MiB of 8-bit pixels, 4 MiB of floats
UNNAMED = "base classifier"  # the name of one that says nothing of itself, as a bare function


@runtime_checkable
class Batching(Protocol):
    """A base classifier, or its owner, that lets its caller choose how many images it is asked at a time."""

    @property
    def batch_size(self) -> int:
        """Number of images at a time, where nobody chooses."""
        ...

    @property
    def free_batch_size(self) -> bool:
        """Whether a caller may choose: not where its user did, nor where a call that is lost costs money."""
        ...

    def asking(self, n: int) -> AbstractContextManager[None]:
        """Take up to n images at a time inside the block.

        Args:
            n: Number of images.
        """
        ...


class Voter:
    """A base classifier as certificates ask it.

    Args:
        base_classifier: Function (b, c, h, w) float32 -> (b, K) scores, or (b,) integer labels: a function on tensors,
            a torch module, a black box, a `QueryClient`, or a method of an object that says more of itself.
        num_classes: Number of classes K.

    Raises:
        InvalidInput: if it cannot be called, or there are fewer than two classes.
    """

    def __init__(self, base_classifier: BaseClassifier, num_classes: int) -> None:
        if not callable(base_classifier):
            came = type(base_classifier).__name__
            raise InvalidInput(
                f"the base classifier is a {came}; wanted a function: certibox.as_blackbox(...) makes one"
            )
        if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer) or num_classes < 2:
            raise InvalidInput(f"num_classes is {num_classes!r}; wanted at least 2")
        self.base_classifier, self.num_classes = base_classifier, int(num_classes)
        self.owner: object = getattr(base_classifier, "__self__", base_classifier)  # of a method, or the base itself
        self.batch_check = BatchCheck(self.owner)
        self._given = self._chosen_size()

    @property
    def model_id(self) -> str:
        """The base classifier's name in records: its own, or one from a box's declaration or a module's weights."""
        declared = getattr(getattr(self.owner, "spec", None), "model_id", None)
        named = getattr(self.owner, "model_id", None) or (f"bare:{declared}" if declared else None)
        if named is None and isinstance(self.owner, nn.Module):
            return f"{type(self.owner).__name__}:{module_digest(self.owner)[:12]}"
        return str(named or UNNAMED)

    @property
    def called(self) -> str:
        """What the base classifier is called where its weights are not to be read for it."""
        named = getattr(self.owner, "model_id", None) or getattr(self.base_classifier, "__qualname__", None)
        return str(named or type(self.base_classifier).__name__)

    @property
    def calls_at_once(self) -> int:
        """Number of calls that the base classifier takes at once: what the box behind it declares, else one."""
        declared = getattr(meter_of(self.owner), "spec", getattr(self.owner, "spec", None))
        most = getattr(declared, "concurrency", 1)
        return most if isinstance(most, int) and most > 1 else 1

    def at_a_time(self, pixels: int) -> int | None:
        """Noisy copies that the base classifier is asked about at a time; None for all that are ready.

        Where the choice is free these are as many as memory allows, for each call has a price of its own.

        Args:
            pixels: Number of pixels of an image.
        """
        free = self._free_owner
        return self._given if free is None else max(free.batch_size, PIXELS // pixels)

    def ask(self, images: Tensor) -> Tensor:
        """The base classifier's answers, all from one call where the choice is free.

        Args:
            images: Noisy copies (n, c, h, w).
        """
        if isinstance(self.owner, nn.Module):
            put_in_eval_mode(self.owner)  # its owner may have gone on training it
        free = self._free_owner
        with nullcontext() if free is None else free.asking(len(images)):
            return self.base_classifier(images)

    def labels(self, outputs: Tensor, n: int) -> Tensor:
        """The classes (n,) of one batch of scores (n, K) or integer labels (n,), checked.

        Args:
            outputs: Answers of the base classifier.
            n: Number of images.

        Raises:
            BadOutput: The answers are something else.
        """
        if not isinstance(outputs, Tensor):
            advice = (
                "wanted a tensor: a function on numpy arrays is asked by certibox.as_blackbox(function, outputs=...)"
            )
            raise BadOutput(f"the base classifier gave {type(outputs).__name__} for {n} images; {advice}")
        if outputs.shape == (n, self.num_classes) and not outputs.is_complex():
            if not (finite := outputs.isfinite()).all():
                came = outputs[~finite][0].item()
                raise BadOutput(f"the base classifier gave the score {came} in a batch of {n}; wanted finite scores")
            labels = outputs.argmax(dim=1)
        elif outputs.shape == (n,) and not (outputs.is_floating_point() or outputs.is_complex()):
            labels = outputs
        else:
            raise BadOutput(
                f"the base classifier gave {outputs.dtype} of shape {tuple(outputs.shape)} for {n} images; "
                f"wanted scores ({n}, {self.num_classes}) or integer labels ({n},)"
            )
        low, high = (int(label) for label in labels.aminmax())
        if low < 0 or high >= self.num_classes:
            came = low if low < 0 else high
            raise BadOutput(f"the base classifier gave label {came}; wanted 0 to {self.num_classes - 1}")
        return labels

    def votes(self, outputs: Tensor, n: int) -> np.ndarray:
        """Votes per class (K,) of one batch of answers.

        Args:
            outputs: Answers of the base classifier.
            n: Number of images.
        """
        return np.bincount(self.labels(outputs, n).cpu().numpy(), minlength=self.num_classes)

    def checked(self, images: Tensor) -> Tensor:
        """The base classifier's answers, refused where they cannot be votes.

        Args:
            images: Noisy copies (n, c, h, w).
        """
        outputs = self.ask(images)
        self.labels(outputs, len(images))
        return outputs

    def _chosen_size(self) -> int | None:
        """The number of images at a time that the owner has, or its declaration; None where it has none."""
        spec, free = getattr(self.owner, "spec", None), getattr(self.owner, "free_batch_size", False)
        declared = getattr(spec, "max_batch" if free else "batch_size", None)
        size = getattr(self.owner, "batch_size", declared)
        return size if isinstance(size, int) and size > 0 else None

    @property
    def _free_owner(self) -> Batching | None:
        """The owner of the base classifier, where it lets its caller choose how many images it is asked at a time."""
        return self.owner if isinstance(self.owner, Batching) and self.owner.free_batch_size else None
