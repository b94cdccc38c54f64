"""The robustified model: denoise → encode → decode → query, and the defense that training returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certibox import checkpoints, networks
from certibox.config import require_same
from certibox.errors import InvalidInput, UnreadableFile
from certibox.estimators import GradientEstimator
from certibox.losses import Loss
from certibox.networks import Autoencoder
from certibox.query import Fingerprint, QueryClient
from certibox.records import write_json_atomic


class RobustPipeline(nn.Module):
    """The white part in front of a box: x (b, c, h, w) -> the image (b, c, h, w) that the box sees.

    denoiser: D_θ, or None for the identity. autoencoder: with one, the box is queried at ψ_dec(ψ_enc(D_θ(x))) (AE-DS)
    and the estimator works on embeddings of d_z; without, at D_θ(x) (DS), on all d pixels. classifier: RS only: the
    network that was trained on noise and now answers instead of the box.
    """

    def __init__(
        self, denoiser: nn.Module | None, autoencoder: Autoencoder | None = None, classifier: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.denoiser, self.autoencoder, self.classifier = denoiser, autoencoder, classifier

    def denoise(self, x: Tensor) -> Tensor:
        """D_θ(x): (b, c, h, w) -> (b, c, h, w)."""
        return x if self.denoiser is None else self.denoiser(x)

    def embed(self, denoised: Tensor) -> Tensor:
        """The point that an estimator perturbs: (b, c, h, w) -> (b, d_z), or (b, d) pixels without an autoencoder."""
        return denoised.flatten(1) if self.autoencoder is None else self.autoencoder.encode(denoised)

    def images(self, z: Tensor, image_shape: torch.Size | tuple[int, ...]) -> Tensor:
        """The images that the box sees at points z: (n, d) -> (n, c, h, w)."""
        return z.reshape(-1, *image_shape) if self.autoencoder is None else self.autoencoder.decode(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.images(self.embed(self.denoise(x)), x.shape[1:])


Heard = Callable[[Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class StabilityObjective:
    """ℓ(z) = loss(f(ψ_dec(z)), target) at k variants of b points: what an estimator differentiates by queries.

    client: answers images. target: (b, ...). exact: with TF32 off. Points are decoded and asked in batches of the
    client's size, so memory does not grow with k.
    """

    pipeline: RobustPipeline
    client: QueryClient
    loss: Loss
    target: Tensor
    image_shape: tuple[int, ...]
    exact: bool = True

    def __call__(self, points: Tensor, active: Tensor | None = None, heard: Heard | None = None) -> Tensor:
        """(k, b, d) -> (k, b); points outside `active` (k, b) are not asked and score 0.

        heard: told of each batch: points (n, d), the images (n,) of 0 to b - 1 that they belong to, what the box saw
        (n, c, h, w) and what it answered.
        """
        k, b, _ = points.shape
        wanted = torch.arange(k * b, device=points.device) if active is None else active.flatten().nonzero().squeeze(1)
        flat, owner = points.flatten(0, 1), wanted % b
        losses = torch.zeros(k * b, dtype=points.dtype, device=points.device)
        with torch.inference_mode(), full_precision() if self.exact else nullcontext():
            for low in range(0, len(wanted), self.client.batch_size):
                chosen = wanted[low : low + self.client.batch_size]
                owners, images = owner[low : low + len(chosen)], self.pipeline.images(flat[chosen], self.image_shape)
                outputs = self.client(images)
                losses[chosen] = self.loss(outputs, self.target[owners]).to(losses.dtype)
                if heard:
                    heard(flat[chosen], owners, images, outputs)
        return losses.reshape(k, b)


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 off inside, in convolutions and products: at small steps a difference drowns in their rounding."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    places: list[Any] = [getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None), matmul]
    parts = [part for part in places if hasattr(part, "fp32_precision")]  # none before torch 2.9
    before = [part.fp32_precision for part in parts]
    switches = [switch for switch in (cudnn, matmul) if _allows_tf32(switch)]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        for part in parts:  # a global fp32_precision would outweigh the switches above
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision
        for switch in switches:
            switch.allow_tf32 = True


def tf32_is_on(device: torch.device) -> bool:
    """Whether convolutions or products on `device` may round to TF32."""
    return device.type == "cuda" and (_allows_tf32(torch.backends.cudnn) or _allows_tf32(torch.backends.cuda.matmul))


def _allows_tf32(switch: Any) -> bool:
    try:
        return bool(switch.allow_tf32)
    except RuntimeError:  # its parts differ, and torch refuses to sum them up
        return False


def surviving_share(
    pipeline: RobustPipeline, x: Tensor, estimator: GradientEstimator, levels: int, generator: torch.Generator
) -> float:
    """Share of an estimator's perturbed inputs that a box with `levels` grey levels can tell from the unperturbed ones.

    x: (b, c, h, w). An input counts as changed when at least a tenth of its step's energy lies on pixels that land on
    another grid value. 0 where no step survives the rounding of the embedding itself. Measured on the white part alone:
    no query is spent.
    """
    pipeline.eval()
    changed: list[Tensor] = []
    with torch.inference_mode():
        z = pipeline.embed(pipeline.denoise(x))
        base = pipeline.images(z, x.shape[1:])
        grid = (base.clamp(0, 1) * (levels - 1)).round()

        def look(points: Tensor, *_: Tensor) -> Tensor:
            for variant in points:
                if torch.equal(variant, z):
                    continue
                images = pipeline.images(variant, x.shape[1:])
                energy = (images - base).square().flatten(1)
                moved = ((images.clamp(0, 1) * (levels - 1)).round() != grid).flatten(1)
                changed.append((energy * moved).sum(1) >= 0.1 * energy.sum(1).clamp_min(torch.finfo(energy.dtype).tiny))
            return torch.zeros(points.shape[:2], dtype=points.dtype, device=points.device)

        estimator.estimate(look, z, generator)
    return float(torch.stack(changed).float().mean()) if changed else 0.0


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
        return f"{self.method}:{checkpoints.module_digest(self.pipeline)[:12]}:{self.client.spec.model_id}"

    @property
    def batch_size(self) -> int:
        """Images that the box is asked at a time."""
        return self.client.batch_size

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
        checkpoints.write(directory / "defense.safetensors", self.pipeline.state_dict(), facts)
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
    tensors, facts = checkpoints.read(Path(directory) / "defense.safetensors")
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
        checkpoints.load_module(module, checkpoints.under(name, tensors), name)
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
