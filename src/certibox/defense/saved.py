"""The defense that training returns, and how it is saved and loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certibox import networks
from certibox.blackbox.pace import Pace
from certibox.certification.smoothing import SmoothedClassifier
from certibox.data.pixels import as_images
from certibox.defense.hub import FACTS, TENSORS, is_address, pull, push, write_files
from certibox.defense.pipeline import RobustPipeline
from certibox.errors import InvalidImages, InvalidInput, Notice, UnreadableFile
from certibox.networks import Autoencoder
from certibox.networks.devices import usable_device
from certibox.queries.client import QueryClient
from certibox.queries.concurrency import Forkable
from certibox.queries.fingerprint import Fingerprint
from certibox.seeds.switches import settled
from certibox.storage.files import require_place
from certibox.storage.settings import require_same
from certibox.storage.strict import is_json
from certibox.storage.tensors import Tensors, is_tensors, load_module, module_digest, read_tensors, under

_COMPUTING = Forkable()  # whose lock the thread holds that computes on the CPU


@dataclass(frozen=True, repr=False)
class Defense:
    """A trained defense: the white part, the box behind it, and how it was made.

    It is a base classifier to smooth, `defense(x)`, and `defense.smoothed()` is its smoothed classifier. Images x are
    floats (n, c, h, w) on [0, 1] up to noise, as a tensor or a numpy array; answers are tensors. The white part is in
    evaluation mode while it works.
    """

    pipeline: RobustPipeline
    """White part: denoiser and autoencoder, or the classifier of RS."""
    client: QueryClient
    """Meter around the box."""
    method: str
    """Name of the method that trained it."""
    sigma: float
    """Standard deviation of the noise that it was trained for, in pixels on [0, 1]."""
    image_shape: tuple[int, ...]
    """Shape (c, h, w) of one image."""
    num_classes: int | None
    """Number of classes K; None where the box does not classify, or did not say how many there are."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Plain values that describe the training."""
    fingerprint: Fingerprint | None = None
    """Answers of the box to canary images, where they were taken."""
    trained_on: Tensor | None = field(default=None, compare=False)
    """Digests (n,) of the training and validation images, sorted; None where they are not known."""

    _pace: Pace = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pace", Pace(self.client.batch_size))

    def __repr__(self) -> str:
        classes = f"{self.num_classes} classes" if self.num_classes else "no known number of classes"
        box = f"box {self.client.spec.name!r} ({self.client.spec.outputs})"
        return f"Defense({self.method}, sigma={self.sigma:g}, {classes}, images {tuple(self.image_shape)}, {box})"

    def __call__(self, x: Tensor | np.ndarray) -> Tensor:
        """The same as `outputs`; see `Defense.outputs`."""
        return self.outputs(x)

    @settled()
    def outputs(self, x: Tensor | np.ndarray) -> Tensor:
        """Answers of the robustified model R(f), a base classifier to smooth; n queries (none for RS).

        Args:
            x: Images (n, c, h, w).

        Returns:
            Answers (n, K), labels (n,) or values (n, ...), as the box gives them.
        """
        images = self._checked(x)
        self.pipeline.eval()
        with torch.inference_mode():
            return torch.cat([self._answer(batch) for batch in images.split(self.client.at_once)])

    @settled()
    def robustify(self, x: Tensor | np.ndarray) -> Tensor:
        """The images (n, c, h, w) that the box is asked about; no query.

        Args:
            x: Images (n, c, h, w).
        """
        images = self._checked(x)
        self.pipeline.eval()
        with torch.inference_mode():
            return self.pipeline(images.to(self.device))

    @settled()
    def denoise(self, x: Tensor | np.ndarray) -> Tensor:
        """The denoised images D_θ(x), (n, c, h, w), before the autoencoder; no query.

        Args:
            x: Images (n, c, h, w).
        """
        images = self._checked(x)
        self.pipeline.eval()
        with torch.inference_mode():
            return self.pipeline.denoise(images.to(self.device))

    def smoothed(self, num_classes: int | None = None) -> SmoothedClassifier:
        """The smoothed classifier of this defense, at the sigma that it was trained for; no query.

        Args:
            num_classes: Number of classes K; wanted only where the defense does not know it.

        Raises:
            InvalidInput: The number of classes is not known, or is another one; the box does not classify.
        """
        if self.client.spec.outputs == "values":
            raise InvalidInput("the box answers with values; wanted logits, probabilities or labels to smooth")
        if None not in (num_classes, self.num_classes) and num_classes != self.num_classes:
            raise InvalidInput(f"num_classes is {num_classes}, but the defense has {self.num_classes} classes")
        classes = self.num_classes if num_classes is None else num_classes
        if classes is None:
            raise InvalidInput("the number of classes is not known; wanted it, such as smoothed(num_classes=10)")
        return SmoothedClassifier(self.outputs, classes, self.sigma)

    def to(self, device: torch.device | str) -> Defense:
        """This defense, its white part moved to a device in place, as torch moves a module.

        Args:
            device: Device such as "cuda" or "cpu".

        Raises:
            InvalidInput: This machine has no such device.
        """
        self.pipeline.to(usable_device(device))
        return self

    @property
    def model_id(self) -> str:
        """A name in records that changes with the white part, the box's declaration, and a box that can be told."""
        return f"{self.method}:{module_digest(self.pipeline)[:12]}:{self.client.spec.model_id}"

    @property
    def batch_size(self) -> int:
        """Images that the box is asked at a time."""
        return self.client.batch_size

    @property
    def free_batch_size(self) -> bool:
        """Whether a caller may choose how many images the box is asked at a time, see `QueryClient`."""
        return self.client.free_batch_size

    def asking(self, n: int) -> AbstractContextManager[None]:
        """Work on up to n images at a time inside the block, see `QueryClient.asking`.

        Args:
            n: Number of images.
        """
        return self.client.asking(n)

    def default_phase(self, name: str) -> AbstractContextManager[None]:
        """Book what the box is asked inside under a name, unless the caller has named a phase already.

        Args:
            name: Name of the phase, such as "certify".
        """
        return self.client.default_phase(name)

    def save(self, directory: str | Path) -> Path:
        """Write `defense.safetensors` (everything) and `defense.json` (the same facts, to read).

        Args:
            directory: Directory to write into; it is made where there is none.

        Returns:
            The directory.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_files(directory, *self._content())
        return directory

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, api: Any = None, **more: Any) -> str:
        """Upload this defense to the Hugging Face Hub, with a model card made of its facts; the address of the commit.

        Names of boxes are uploaded without users, tokens and queries of addresses.

        Args:
            repo_id: Name of the repository, as owner/name; it is made where there is none.
            private: Whether a new repository is private; None for the owner's default.
            api: Client of the hub, a `huggingface_hub.HfApi`; by default one with the user's own token.
            more: Other arguments of `HfApi.upload_folder`, such as revision or commit_message.

        Raises:
            InvalidInput: The name is none, huggingface_hub is not installed, or the hub refuses.
        """
        return push(*self._content(), repo_id, api, private, **more)

    def _content(self) -> tuple[Tensors, dict[str, Any]]:
        """The tensors and facts that are saved."""
        facts = {
            "method": self.method,
            "sigma": self.sigma,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "modules": {name: getattr(module, "spec", None) for name, module in self._modules()},
            "box": self.client.spec.provenance(),
            "fingerprint": self.fingerprint.as_dict() if self.fingerprint else None,
            "training": self.facts,
        }
        known = {} if self.trained_on is None else {"trained_on": self.trained_on}
        return self.pipeline.state_dict() | known, facts

    def _checked(self, x: Tensor | np.ndarray) -> Tensor:
        """Images (n, c, h, w) of the shape that the defense was trained on, or `InvalidImages`."""
        images = as_images(x, array_type=np.float32)
        if images.shape[1:] != tuple(self.image_shape):
            came, wanted = tuple(images.shape[1:]), tuple(self.image_shape)
            raise InvalidImages(f"images have shape {came}; the defense takes {wanted} (channels, height, width)")
        return images

    def _answer(self, x: Tensor) -> Tensor:
        x = x.to(self.device)
        if self.pipeline.classifier is not None:
            return self._at_its_pace(self.pipeline.classifier, self.client.spec.prepare(x))
        return self.client(self._at_its_pace(self.pipeline, x))

    def _at_its_pace(self, network: nn.Module, x: Tensor) -> Tensor:
        """A network of the white part on x, so many images at a time as is fastest where more come than usual.

        On the CPU one thread after the other: requests to a remote model wait beside one another, but networks that
        compute at once only take each other's processors.
        """
        if x.device.type != "cpu":
            return network(x)
        with _COMPUTING.lock:
            return self._pace.in_parts(network, x) if self.free_batch_size else network(x)

    @property
    def device(self) -> torch.device:
        """Where the white part works; the CPU for one without weights, such as the identity."""
        return next((parameter.device for parameter in self.pipeline.parameters()), torch.device("cpu"))

    def _modules(self) -> list[tuple[str, nn.Module]]:
        named = ("denoiser", "autoencoder", "classifier")
        return [(name, module) for name in named if (module := getattr(self.pipeline, name)) is not None]


def require_defense_place(directory: str | Path) -> None:
    """Refuse a folder where no defense can be saved, before one is trained.

    Args:
        directory: Directory to write into.

    Raises:
        InvalidInput: `require_place` refuses one of the files.
    """
    for name, ours in ((TENSORS, is_tensors), (FACTS, is_json)):
        require_place(Path(directory) / name, ours)


@settled()
def load_defense(
    directory: str | Path,
    client: QueryClient,
    *,
    denoiser: nn.Module | None = None,
    autoencoder: Autoencoder | None = None,
    classifier: nn.Module | None = None,
) -> Defense:
    """A defense that `Defense.save` wrote, in front of a box.

    certibox's own networks are rebuilt; give a network of your own, of any weights, as it was when it was trained.
    Nothing is queried: `defense.fingerprint.check(client)` asks whether the box is still the same.

    Args:
        directory: Directory that `Defense.save` wrote, or an address on the Hugging Face Hub: hf://owner/name, or
            hf://owner/name@revision.
        client: Meter around the box, which must answer in the same kind and be declared alike.
        denoiser: Denoiser of your own, where the defense was trained with one.
        autoencoder: Autoencoder of your own, where the defense was trained with one.
        classifier: Classifier of your own, where RS trained one.

    Raises:
        UnreadableFile: The directory holds no defense, or a damaged one.
        InvalidInput: A network of your own is missing or does not fit, or the box answers differently.
        ConfigMismatch: The box is declared otherwise.
    """
    if is_address(directory):
        directory = pull(str(directory))
    tensors, facts = read_tensors(Path(directory) / TENSORS)
    if "modules" not in facts:
        raise UnreadableFile(
            f"{directory} holds a checkpoint of training, not a defense; wanted what Defense.save wrote"
        )
    kind = facts["box"]["outputs"]
    if kind != client.spec.outputs:
        raise InvalidInput(
            f"the defense in {directory} is for a box that answers {kind}, this one answers {client.spec.outputs}"
        )
    declared = ("input_range", "clip", "levels", "mean", "std", "layout", "dtype")
    here = client.spec.provenance()
    there = facts["box"]
    require_same({key: there.get(key) for key in declared}, {key: here.get(key) for key in declared}, str(directory))
    given = {"denoiser": denoiser, "autoencoder": autoencoder, "classifier": classifier}
    parts: dict[str, Callable | nn.Module | None] = dict.fromkeys(given)
    for name, spec in facts["modules"].items():
        module = given[name]
        if module is None and spec is None:
            raise InvalidInput(
                f"the defense in {directory} has a {name} of your own; give it: load_defense(..., {name}=module)"
            )
        module = module if module is not None else networks.build(spec)
        load_module(module, under(name, tensors), name)
        parts[name] = module
    pipeline = RobustPipeline(**parts).to(memory_format=torch.channels_last)  # pyright: ignore
    pipeline.eval().requires_grad_(False)
    if "classifier" not in facts["modules"]:
        _warn_of_another_model(facts["box"].get("identity"), client, directory)
    stored = facts["fingerprint"]
    return Defense(
        pipeline=pipeline,
        client=client,
        method=facts["method"],
        sigma=facts["sigma"],
        image_shape=tuple(facts["image_shape"]),
        num_classes=facts["num_classes"],
        facts=facts["training"],
        fingerprint=Fingerprint.from_dict(stored) if stored else None,
        trained_on=tensors.get("trained_on"),
    )


def _warn_of_another_model(identity: str | None, client: QueryClient, directory: str | Path) -> None:
    """Say that the box is not the one that the defense was trained in front of, where both can be told."""
    here = client.spec.identity
    if None not in (identity, here) and identity != here:
        warnings.warn(
            f"the model has changed since the defense in {directory} was trained: certificates are of the new pair",
            Notice,
            stacklevel=4,
        )
