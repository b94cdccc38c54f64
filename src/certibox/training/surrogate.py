"""A network that learns the box from every answer paid for. Its gradient is what `estimators.Guided` starts from.

Answers go into a replay memory: inputs with what the box said, and, for perturbed queries, the step with the change
that it made. The network is fitted to both, so directional differences teach it slopes and not values alone. Those of
probabilities do not: where the box is sure they fade, the loss's slope with respect to their logarithm does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certibox import seeds
from certibox.estimators import Alignment, Guided, alignment, corrections
from certibox.networks.surrogate import surrogate_cnn, surrogate_mlp
from certibox.storage.tensors import load_module, load_optimizer, optimizer_tensors, prefixed, under
from certibox.training import losses
from certibox.training.replay_memory import Memory, as_float
from certibox.training.stability import StabilityObjective

BATCH = 128  # answers an update, half of them among the newest
LEARNING_RATE = 2e-3
PROBED, PROBE_DIRECTIONS = 8, 8  # images and directions of a probe
SLOPED = ("logits", "values")  # answers whose differences teach
KEEP, TRIED = 0.5, 3  # of the running alignment at each probe; probes before corrections are bought: it learns fast
# What a surrogate counts: steps of its optimizer, steps of training, probes, and whether it was taught beforehand.
COUNTS = ("updates", "steps", "probes", "distilled")


class Surrogate:
    """The network, its optimizer and its memory, with the running measure of how far its gradient can be trusted.

    Args:
        network: Network of inputs (n, ...) -> (n, K): logits for a box that classifies, else values.
        kind: Kind of the box's answers: logits, probabilities, labels or values.
        seed: Seed of the replayed batches.
    """

    def __init__(self, network: nn.Module, kind: str, seed: int) -> None:
        self.network, self.kind, self.seed = network, kind, seed
        self.memory, self.alignment = Memory(), Alignment(0.0, 0.0, 0.0)
        self.updates, self.steps, self.probes, self.distilled = 0, 0, 0, False
        self._optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)

    def outputs(self, inputs: Tensor) -> Tensor:
        """The network's guess of the box's outputs: as logits for a box that classifies, else as its values (n, K).

        Args:
            inputs: Inputs (n, ...), images or points of the embedding.
        """
        return self.network(as_float(inputs))

    def learn(self, updates: int) -> float:
        """Fit the memory, and give the last loss.

        Args:
            updates: Number of optimizer steps.
        """
        loss = torch.zeros(())
        self.network.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            for _ in range(updates):
                batch = self.memory.sample(BATCH, seeds.generator(self.seed, "replay", self.updates))
                loss = self._misfit(batch)
                self._optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self._optimizer.step()
                self.updates += 1
        self.network.requires_grad_(False)
        return float(loss.detach())

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs."""
        parts = {
            "network": self.network.state_dict(),
            "optimizer": optimizer_tensors(self._optimizer),
            "memory": self.memory.tensors(),
        }
        return {key: value for name, part in parts.items() for key, value in prefixed(name, part).items()}

    def notes(self) -> dict[str, Any]:
        """The plain values beside `tensors`."""
        counts = {name: getattr(self, name) for name in COUNTS}
        return counts | {"alignment": vars(self.alignment)}

    def load(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """The inverse of `tensors` and `notes`."""
        load_module(self.network, under("network", tensors), "surrogate")
        if held := under("optimizer", tensors):
            load_optimizer(self._optimizer, held)
        self.memory.load(under("memory", tensors), next(self.network.parameters()).device)
        for name in COUNTS:
            setattr(self, name, notes[name])
        self.alignment = Alignment(**notes["alignment"])

    def _misfit(self, batch: dict[str, Tensor]) -> Tensor:
        """Of values at the remembered points, and of slopes along the remembered steps, relative to their size."""
        if "steps" not in batch:
            return self._wrong(self.network(batch["inputs"]), batch["answers"])
        moved = self.network(batch["inputs"] + batch["steps"])
        loss = self._wrong(moved, batch["answers"] + batch["changes"])
        rows = batch["steps"].flatten(1).any(1)
        if not rows.any():
            return loss
        length = batch["steps"][rows].flatten(1).norm(dim=1, keepdim=True)
        slope = _centred(moved[rows] - self.network(batch["inputs"][rows]), self.kind) / length
        truth = _centred(_rows(batch["changes"][rows]), self.kind) / length
        size = truth.square().sum() + slope.detach().square().sum()  # a batch of flat answers must not weigh the most
        return loss + (slope - truth).square().sum() / size.clamp_min(1e-12)

    def _wrong(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Cross-entropy with the box's answers, or the squared error of values relative to their variance."""
        if self.kind == "values":
            truth = _rows(answers)
            return (outputs - truth).square().mean() / truth.var().clamp_min(1e-12)
        if self.kind == "labels":
            return F.cross_entropy(outputs, answers.long())
        return F.cross_entropy(outputs, answers.softmax(1) if self.kind == "logits" else answers)


@dataclass(frozen=True)
class GuidedStability:
    """ℓ(z) by queries, each answer told to a surrogate, beside ℓ as the surrogate guesses it: a `GuidedObjective`."""

    stability: StabilityObjective
    """Loss by queries."""
    surrogate: Surrogate
    """Network that learns the box from the answers."""
    z: Tensor
    """Points (b, d) of this step."""
    kind: Literal["image", "latent"]
    """Inputs of the surrogate: `image`, what the box sees, or `latent`, z itself."""
    updates: int
    """Number of optimizer steps of the surrogate a step of training."""
    _bases: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, points: Tensor, active: Tensor | None = None) -> Tensor:
        """(k, b, d) -> (k, b), by queries."""
        return self.stability(points, active, listener=self._hear)

    def guess(self, points: Tensor) -> Tensor:
        """(k, b, d) -> (k, b), by the surrogate; differentiable."""
        k, b, _ = points.shape
        outputs = self.surrogate.outputs(self._inputs(points.flatten(0, 1)))
        target = as_float(self.stability.target).repeat(k, *(1,) * (self.stability.target.ndim - 1))
        if self.surrogate.kind == "values":
            return losses.values_loss(outputs, _rows(target)).reshape(k, b)
        return F.cross_entropy(outputs, target, reduction="none").reshape(k, b)

    def learn(self) -> None:
        """Update the surrogate."""
        if self.surrogate.memory.seen:
            self.surrogate.learn(self.updates)

    def _inputs(self, points: Tensor) -> Tensor:
        stability = self.stability
        return points if self.kind == "latent" else stability.pipeline.images(points, stability.image_shape)

    def _hear(self, points: Tensor, owners: Tensor, images: Tensor, answers: Tensor) -> None:
        """Remember answers to points (n, d) that belong to images `owners` (n,) of this step."""
        inputs, memory = (images if self.kind == "image" else points), self.surrogate.memory
        if self.surrogate.kind not in SLOPED:
            memory.add(inputs, answers)
            return
        at_z = (points == self.z[owners]).all(1)
        for owner, place in zip(owners[at_z].tolist(), at_z.nonzero().flatten().tolist(), strict=True):
            self._bases[owner] = (inputs[place], answers[place])
        if not at_z.any() and all(owner in self._bases for owner in owners.tolist()):
            bases = [self._bases[owner] for owner in owners.tolist()]
            base, said = (torch.stack(parts) for parts in zip(*bases, strict=True))
            memory.add(base, said, inputs - base, answers - said)
        else:
            memory.add(inputs, answers)


def surrogate_for(
    guided: Guided, kind: str, d: int, image_shape: tuple[int, int, int], outputs: int, seed: int
) -> Surrogate:
    """An untrained surrogate.

    Args:
        guided: Estimator that wants it, which says what its inputs are.
        kind: Kind of the box's answers.
        d: Dimension of the points.
        image_shape: Shape (c, h, w) of an image.
        outputs: Number K of the box's outputs.
        seed: Seed of its weights and of its replayed batches.
    """
    with seeds.initialisation(seed, "surrogate"):
        network = surrogate_mlp(d, outputs) if guided.surrogate == "latent" else surrogate_cnn(image_shape, outputs)
    return Surrogate(network.requires_grad_(False), kind, seed)


def probe(objective: GuidedStability, guided: Guided, generator: torch.Generator, live: Tensor | None) -> None:
    """Measure how well the surrogate's gradient agrees with the truth at `PROBED` points; keeps a running average.

    Args:
        objective: Loss by queries and by the surrogate's guess, at the points of a step.
        guided: Estimator whose step mu the differences take.
        generator: Source of the random directions.
        live: Mask (b, d) of the coordinates that matter; None for all.
    """
    z = objective.z[:PROBED]
    few = replace(objective, stability=replace(objective.stability, target=objective.stability.target[:PROBED]), z=z)
    shown = alignment(
        few,
        z,
        generator,
        directions=PROBE_DIRECTIONS,
        mu=guided.mu,
        central=guided.central,
        live=None if live is None else live[:PROBED],
    )
    surrogate = objective.surrogate
    surrogate.alignment = surrogate.alignment.blended(shown, KEEP) if surrogate.probes else shown
    surrogate.probes += 1


def resolved(guided: Guided, surrogate: Surrogate, d: int) -> Guided:
    """The estimator with the corrections that the measured cosine asks for: none until it was probed a few times.

    Args:
        guided: Estimator, whose q may be "auto".
        surrogate: Network with the measured cosine.
        d: Dimension of the points that matter.
    """
    if guided.q != "auto":
        return guided
    q = corrections(surrogate.alignment.cosine, guided.target, d) if surrogate.probes >= TRIED else 0
    return replace(guided, q=q, trust=surrogate.alignment.true_length if q else 1.0)


def _centred(outputs: Tensor, kind: str) -> Tensor:
    """Logits up to the constant that no answer depends on; other outputs as they are."""
    return outputs - outputs.mean(1, keepdim=True) if kind == "logits" else outputs


def _rows(values: Tensor) -> Tensor:
    """Values (n, ...) or (n,) as rows (n, K)."""
    return values.reshape(len(values), -1)
