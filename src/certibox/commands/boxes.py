"""The black box that the command line describes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from certibox.blackbox import BlackBox, BoxSpec, Connection, as_blackbox, is_address
from certibox.blackbox.identity import joined
from certibox.commands.devices import require_device
from certibox.commands.fields import Needs, option
from certibox.commands.lines import tell
from certibox.commands.models import load_endpoint, load_model
from certibox.data import Images
from certibox.errors import CertiboxError, InvalidInput, described
from certibox.queries.client import QueryClient

_SEEN = (
    "the box sees pixels as noise and a defense leave them, from about -1 to 2, as its gradients want it; "
    "--clip true keeps them to [0, 1], --levels 256 rounds them too"
)


LEDGER = "ledger.sqlite"  # of a run, in its folder


class _Identified:
    """A box that a file defines, with an identity that changes with the file; all else is the box's own."""

    def __init__(self, box: BlackBox, identity: str | None) -> None:
        self._box = box
        self.spec = replace(box.spec, identity=joined(box.spec.identity, identity))

    def __call__(self, x: Tensor) -> Tensor:
        return self._box(x)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of a copy that is being made, which has no box yet
            raise AttributeError(name)
        return getattr(self._box, name)


@dataclass(frozen=True)
class BoxOptions:
    """The black box and its meter."""

    NEEDS: ClassVar = (
        Needs(
            "endpoint token_env token_file binary timeout",
            lambda o: is_address(o.model),
            "with --model {model}, which is no address",
            "--model http://...",
        ),
        Needs("num_classes", lambda o: o.outputs != "values", "with --outputs values, which are no classes", "scores"),
    )

    model: str = option(
        "the box: file.py:function, package.module:function, model.onnx, http://.../v2/models/NAME or grpc://HOST:PORT/NAME"
    )
    outputs: Literal["logits", "probabilities", "labels", "values", "top-k"] = option("what the box answers with")
    num_classes: int | None = option(
        "number of classes; wanted for labels, and to smooth a bare box on data without labels", None
    )
    input_range: list[float] = option(
        "pixel range the box expects, as [low, high]; certibox itself keeps to [0, 1]", (0.0, 1.0)
    )
    layout: Literal["NCHW", "NHWC", "flat", "flat-NHWC"] = option(
        "order of the numbers that the box takes: channels first or last, or a row of all", "NCHW"
    )
    mean: list[float] | None = option(
        "mean of each channel to subtract, in the units of the input range, as [.485, .456, .406]; one number in "
        "brackets is for all channels",
        None,
    )
    std: list[float] | None = option("standard deviation of each channel to divide by, likewise", None)
    dtype: Literal["float32", "float64", "float16", "uint8"] | None = option(
        "type of the numbers that the box takes; by default the usual one for its kind", None
    )
    clip: bool | None = option(
        "clip pixels to [0, 1] before the box sees them; by default true, but for torch modules", None
    )
    levels: int | None = option("round pixels to so many grey levels before the box sees them, 256 for 8 bits", None)
    image_shape: list[int] | None = option(
        "shape of an image, as [channels, height, width]; others are refused", None, advanced=True
    )
    input_name: str | None = option(
        "name of the input that takes the images, of a model in a file or at an address", None, advanced=True
    )
    output_name: str | None = option(
        "name of the output to answer with, of a model in a file or at an address", None, advanced=True
    )
    output_key: str | None = option(
        "key, position or attribute of the answers in what a function or module returns", None, advanced=True
    )
    name: str | None = option("name of the box in messages and records; by default what --model says", None)
    device: str | None = option(
        "where networks compute, those of the defense and a torch module: cpu, cuda, cuda:1 or mps; by default cpu, "
        "and a module where it is",
        None,
    )
    concurrency: int | None = option("most calls under way at once, for a box that takes several", None, advanced=True)
    max_batch: int | None = option("most images the box takes at a time", None, advanced=True)
    batch_size: int | None = option(
        "images sent to the box at a time; by default what suits its kind", None, advanced=True
    )
    endpoint: str | None = option(
        "YAML file that describes requests to the address in --model and their answers; without it, the address is "
        "that of the Open Inference Protocol",
        None,
    )
    token_env: str | None = option("variable of the environment that holds the endpoint's token", None)
    token_file: str | None = option("file that holds the endpoint's token", None, advanced=True)
    binary: bool | None = option(
        "send tensors to the endpoint in binary form; by default what its metadata say", None, advanced=True
    )
    timeout: float = option("seconds that a request to the endpoint may take", 60.0, least=0.001, advanced=True)
    rate: str | None = option("most images or requests a second, as '200 images/s' or '600 requests/min'", None)
    wait: float = option(
        "seconds for which a batch that the box is too busy for is asked again", 120.0, least=0, advanced=True
    )
    bills: Literal["image", "request", "attempt"] | None = option(
        "what the provider bills, and --budget counts: images that were answered, the default, requests that were, or "
        "the images of every attempt",
        None,
        advanced=True,
    )
    budget: int | None = option("most queries that may ever be spent from this ledger; by default no limit", None)

    def box(self, channels: int = 1) -> BlackBox:
        """The adapter around the model.

        Args:
            channels: Number of channels of the images, for a mean and deviation that are one number.

        Raises:
            InvalidInput: The declaration cannot hold, the model raises while it is looked at, or there is no such
                device.
        """
        if self.device is not None:
            require_device(self.device)
        declared = self._declared(channels)
        if self.endpoint is not None:
            model, identity = load_endpoint(self.endpoint, self.model, self._connection()), None
        else:
            model, identity = load_model(self.model)
            declared |= {"connection": self._connection()} if isinstance(model, str) and is_address(model) else {}
        try:
            if self.device is not None and isinstance(model, nn.Module):
                model = model.to(self.device)
            if isinstance(getattr(model, "spec", None), BoxSpec):  # a box, with a name of its own
                return _Identified(as_blackbox(model, outputs=self.outputs, **declared), identity)
            given = declared.pop("name") or (None if is_address(self.model) else self.model)
            declared |= {"identity": identity, "name": given}
            return as_blackbox(model, outputs=self.outputs, **declared)
        except (CertiboxError, KeyboardInterrupt):
            raise
        except BaseException as error:
            came = f"{self.model} raised while it was looked at ({described(error)})"
            raise InvalidInput(f"{came}; wanted a model whose attributes can be read") from error

    def _declared(self, channels: int) -> dict[str, Any]:
        """What the flags say of the box, as `as_blackbox` takes it."""
        if len(self.input_range) != 2:
            raise InvalidInput(f"input_range is {list(self.input_range)}; wanted two numbers, such as [0, 255]")
        low, high = self.input_range
        each = {name: getattr(self, name) for name in ("mean", "std")}
        plain = ("num_classes", "layout", "dtype", "clip", "levels", "image_shape", "name")
        more = ("input_name", "output_name", "output_key", "concurrency", "max_batch", "batch_size", "bills")
        return {
            **{name: getattr(self, name) for name in (*plain, *more)},
            **{name: value * channels if value and len(value) == 1 else value for name, value in each.items()},
            "input_range": (low, high),
        }

    def _connection(self) -> Connection:
        """What the flags say of how an address is reached."""
        return Connection(self.token_env, self.token_file, timeout=self.timeout, binary=self.binary)

    def client(self, ledger: Path | None, images: Images) -> QueryClient:
        """The meter around the box, which goes on from what `ledger` holds. Images that do not fit are refused.

        Args:
            ledger: File that counts the queries; None for none.
            images: Images that the box will be asked about.

        Raises:
            InvalidInput: As for `box`; or the images are not of the shape that the box takes.
        """
        box = self.box(images.shape[0])
        box.spec.check_images(images.floats([0]))
        if hasattr(box, "differentiable") and not box.spec.clip:
            tell(_SEEN)
        return QueryClient(box, budget=self.budget, ledger=ledger, rate=self.rate, wait=self.wait)


def require_ledger(ledger: Path, work: Path, budget: int | None, advice: str) -> None:
    """Refuse to begin a budget anew over work that was paid for, where the ledger that says how much is gone.

    Args:
        ledger: Ledger of the work, in its folder.
        work: File that is there where work has begun.
        budget: Most queries that may be spent; None for no limit.
        advice: What to do.
    """
    begun = [path for path in (work, work.with_name(f"{work.name}.votes")) if path.exists()]
    if budget is not None and begun and not ledger.exists():
        came = f"budget is {budget}, and {ledger}, which says what {begun[0]} has spent of it, is gone"
        raise InvalidInput(f"{came}; {advice}")
