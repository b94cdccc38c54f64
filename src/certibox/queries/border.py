"""The border of a box: what is let through to it, what comes back, what its errors mean, and numbers of a caller."""

from __future__ import annotations

import math
import operator
from types import TracebackType

import numpy as np
from torch import Tensor, float32

from certibox.blackbox import BlackBox, BoxSpec, FunctionBox, OnnxBox, SklearnBox, TfliteBox, TorchBox
from certibox.blackbox.http import ServerFailed
from certibox.errors import (
    BadOutput,
    BlackBoxError,
    BoxChanged,
    BoxFailed,
    BudgetExceeded,
    InvalidImages,
    InvalidInput,
    NotAnswered,
    NotDifferentiable,
    Overloaded,
    described,
    one_line,
)

FAR = 16.0  # a pixel beyond it is in another unit, unless noise put it there: then others are as far below
# Adapters that copy both images and answers themselves.
_COPYING = (FunctionBox, OnnxBox, SklearnBox, TfliteBox, TorchBox)
_KEPT = (KeyboardInterrupt, BlackBoxError, BudgetExceeded, NotDifferentiable)  # errors that say all by themselves


def require_box(box: object) -> None:
    """Refuse what is no box.

    Args:
        box: What should be a black box.

    Raises:
        InvalidInput: It has no declaration, or raises where that is read.
    """
    try:
        declared = getattr(box, "spec", None)
    except Exception as error:
        came = f"the box of type {type(box).__name__} raised when its spec was read ({described(error)})"
        raise InvalidInput(f"{came}; wanted a BoxSpec there") from error
    if not isinstance(declared, BoxSpec) or not callable(box):
        raise InvalidInput(f"QueryClient got a {type(box).__name__}; wanted a box from certibox.as_blackbox(...)")


def require_pixels(x: Tensor, spec: BoxSpec) -> None:
    """Refuse images that a box should never be paid for: not finite, or in other units than [0, 1].

    One sum decides for almost all: it is not finite where a pixel is not, and the pixels of clean or noisy images have
    a mean near [0, 1]. Noise goes as far below as above, and is let through however strong it is.

    Args:
        x: Images (n, c, h, w), floats.
        spec: Declaration of the box.

    Raises:
        InvalidImages: A pixel is NaN or infinite, or pixels go far above 1.
    """
    mean = float(x.detach().sum(dtype=float32)) / max(x.numel(), 1)
    if spec.takes_nan or (math.isfinite(mean) and abs(mean) <= 1.5):
        return
    if not bool((finite := x.isfinite()).all()):
        place = tuple(int(index) for index in (~finite).nonzero()[0])
        raise InvalidImages(
            f"images hold {x[place].item()} at {place}, {int((~finite).sum())} such pixels in all; wanted finite "
            "pixels on [0, 1]; a box that takes others is declared with takes_nan=True"
        )
    low, high = (float(extreme) for extreme in x.aminmax())
    if high > FAR and low > -high / 4:
        wanted = "wanted [0, 1]: divide by the highest value of a pixel, such as 255"
        raise InvalidImages(f"pixels go from {low:g} to {high:g}; {wanted}")


def ask(box: BlackBox, batch: Tensor) -> Tensor:
    """What a box answers, in memory that the box cannot change later; nor can it change the batch.

    Args:
        box: Black box; its answer comes back as it is where it is no tensor.
        batch: Images (n, c, h, w).
    """
    if type(box) in _COPYING:
        return box(batch)
    answer = box(batch.detach().clone())
    return answer.clone() if isinstance(answer, Tensor) else answer


def billed(error: BaseException, n: int) -> int | None:
    """How many queries of a batch are paid for after an error; None where nobody knows, which counts as lost.

    Args:
        error: Error that the call of the box raised, caught where it was called.
        n: Number of queries of the batch.
    """
    if isinstance(error, BadOutput | BoxChanged):
        return n  # a wrong answer is paid for all the same
    return 0 if _is_not_billed(error) else None


def in_our_words(error: BaseException, batch: str, n: int, kept: int) -> BaseException:
    """What to raise for an error that the call of a box raised: itself, where it is one of ours, or one in our words.

    An exit inside the box is a failure of the box too: it must not end our process without a word.

    Args:
        error: Error that was raised.
        batch: Name of the batch.
        n: Number of queries of the batch; 0 where the box was asked for no answer.
        kept: Number of answers that were paid for before.
    """
    go_on = f"{kept} answers so far are kept: run the same again to go on"
    if isinstance(error, NotAnswered):
        said = f": {text}" if (text := one_line(error)) else ""
        refused = f"the box refused {batch} and bills nothing{said}; {go_on}"
        return Overloaded(refused, error.after) if isinstance(error, Overloaded) else NotAnswered(refused)
    counts = f"{n} {'query counts' if n == 1 else 'queries count'} as lost, for the box may have billed; " if n else ""
    if isinstance(error, ServerFailed):
        return BoxFailed(f"{batch}: {one_line(error)}; {counts}{go_on}")
    if isinstance(error, _KEPT) or _is_not_billed(error):
        return error
    said = f": {text}" if (text := one_line(error)) else ""
    what = f"{type(error).__name__} on {batch}{said}"
    return BoxFailed(f"the box raised {what}; {counts}{go_on}")


def _is_not_billed(error: BaseException) -> bool:
    """Whether an error says that nothing was computed: the box says so itself, or no code of a model was reached."""
    return isinstance(error, NotAnswered) or (isinstance(error, InvalidInput) and _is_ours(error.__traceback__))


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether every frame that an error went through is of certibox."""
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__")).split(".")[0] != "certibox":
            return False
        trace = trace.tb_next
    return True


def whole(name: str, came: object, least: int, hint: str = "") -> int:
    """A number of things, given as an integer or as a float without a fraction.

    Args:
        name: Name of the parameter.
        came: What was given.
        least: Least number that is allowed.
        hint: End of the message, about what else may be given.

    Raises:
        InvalidInput: It is something else, or below `least`.
    """
    number: int | None = None
    if isinstance(came, float | np.floating):
        number = int(came) if math.isfinite(came) and came == int(came) else None
    elif not isinstance(came, bool | np.bool_):
        try:
            number = operator.index(came)  # pyright: ignore[reportArgumentType]
        except TypeError:
            number = None
    if number is None or number < least:
        raise InvalidInput(f"{name} is {came!r}; wanted a whole number of at least {least}{hint}")
    return number
