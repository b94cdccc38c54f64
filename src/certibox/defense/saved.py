"""The defense that training returns, and how it is saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certibox import networks
from certibox.defense.pipeline import RobustPipeline
from certibox.errors import InvalidInput, UnreadableFile
from certibox.networks import Autoencoder
from certibox.queries.client import QueryClient
from certibox.queries.fingerprint import Fingerprint
from certibox.storage.files import write_json_atomic
from certibox.storage.settings import require_same
from certibox.storage.tensors import load_module, module_digest, read_tensors, under, write_tensors


@dataclass(frozen=True)
class Defense:
    """A trained defense: the white part, the box behind it, and how it was made.

    sigma: the noise that it was trained for, in pixels on [0, 1]. facts: plain values that describe the training.
    """

    pipeline: RobustPipeline
    client: QueryClient
    method: str
    sigma: float
    image_shape: tuple[int, ...]
    num_classes: int | None
    facts: dict[str, Any] = field(default_factory=dict)
    fingerprint: Fingerprint | None = None

    def outputs(self, x: Tensor) -> Tensor:
        """Answers of the robustified model R(f) (a base classifier to smooth): (n, c, h, w) -> (n, K); n queries."""
        self.pipeline.eval()
        with torch.inference_mode():
            return torch.cat([self._answer(batch) for batch in x.split(self.client.batch_size)])

    def robustify(self, x: Tensor) -> Tensor:
        """The images that the box is asked about: (n, c, h, w) -> (n, c, h, w); no query."""
        self.pipeline.eval()
        with torch.inference_mode():
            return self.pipeline(x.to(self.device))

    def denoise(self, x: Tensor) -> Tensor:
        """D_θ alone: (n, c, h, w) -> (n, c, h, w); no query."""
        self.pipeline.eval()
        with torch.inference_mode():
            return self.pipeline.denoise(x.to(self.device))

    @property
    def model_id(self) -> str:
        """A name in records that changes with the white part, the box's declaration, and a box that can be told."""
        return f"{self.method}:{module_digest(self.pipeline)[:12]}:{self.client.spec.model_id}"

    @property
    def batch_size(self) -> int:
        """Images that the box is asked at a time."""
        return self.client.batch_size

    def default_phase(self, name: str) -> AbstractContextManager[None]:
        """Book what the box is asked inside under `name`, unless the caller has named a phase already."""
        return self.client.default_phase(name)

    def save(self, directory: str | Path) -> Path:
        """Write `defense.safetensors` (everything) and `defense.json` (the same facts, to read) into `directory`."""
        directory = Path(directory)
        modules = {name: getattr(module, "spec", None) for name, module in self._modules()}
        facts = {
            "method": self.method,
            "sigma": self.sigma,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "modules": modules,
            "box": self.client.spec.provenance(),
            "fingerprint": self.fingerprint.as_dict() if self.fingerprint else None,
            "training": self.facts,
        }
        directory.mkdir(parents=True, exist_ok=True)
        write_tensors(directory / "defense.safetensors", self.pipeline.state_dict(), facts)
        write_json_atomic(directory / "defense.json", facts)
        return directory

    def _answer(self, x: Tensor) -> Tensor:
        x = x.to(self.device)
        if self.pipeline.classifier is not None:
            return self.pipeline.classifier(self.client.spec.prepare(x))
        return self.client(self.pipeline(x))

    @property
    def device(self) -> torch.device:
        """Where the white part works; the CPU for one without weights, such as the identity."""
        return next((parameter.device for parameter in self.pipeline.parameters()), torch.device("cpu"))

    def _modules(self) -> list[tuple[str, nn.Module]]:
        named = ("denoiser", "autoencoder", "classifier")
        return [(name, module) for name in named if (module := getattr(self.pipeline, name)) is not None]


def load_defense(
    directory: str | Path,
    client: QueryClient,
    *,
    denoiser: nn.Module | None = None,
    autoencoder: Autoencoder | None = None,
    classifier: nn.Module | None = None,
) -> Defense:
    """A defense that `Defense.save` wrote, in front of `client`'s box.

    certibox's own networks are rebuilt; give a network of your own, of any weights, as it was when it was trained.
    Nothing is queried: call `defense.fingerprint.check(client)` to ask whether the box is still the same. Errors:
    `UnreadableFile`; `InvalidInput` if a network of your own is missing, does not fit, or the box answers differently.
    """
    tensors, facts = read_tensors(Path(directory) / "defense.safetensors")
    if "modules" not in facts:
        raise UnreadableFile(
            f"{directory} holds a checkpoint of training, not a defense; wanted what Defense.save wrote"
        )
    kind = facts["box"]["outputs"]
    if kind != client.spec.outputs:
        raise InvalidInput(
            f"the defense in {directory} is for a box that answers {kind}, this one answers {client.spec.outputs}"
        )
    declared = ("input_range", "clip", "levels", "mean", "std")
    here = client.spec.provenance()
    require_same({key: facts["box"][key] for key in declared}, {key: here[key] for key in declared}, str(directory))
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
    )
