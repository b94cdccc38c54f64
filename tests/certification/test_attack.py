"""An outside library attacks certified images inside their certified radius; beyond it, the same attacks succeed.

A certificate is false with probability at most alpha, and `predict` at the attacked image is wrong with probability at
most alpha, both over their seeds. So where certificates are honest an image flips, that is gets a class other than the
certified one from a prediction that does not abstain, with probability at most 2 alpha, however it was attacked: the
attack may know all but the seed of that prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

import certibox as cb
from certibox import networks
from doubles import ANYWHERE, LinearBox

foolbox = pytest.importorskip("foolbox", reason="the attacks come from foolbox: install certibox[attacks]")
pytestmark = [pytest.mark.attack, ANYWHERE]

SIGMA, ALPHA, IMAGES, CLASSES = 0.25, 0.01, 60, 10
SIGNIFICANCE = 1e-3
BOUNDS = (-100.0, 100.0)  # a certificate covers every perturbation, not only those that leave an image an image
Attack = Callable[..., tuple[list[Tensor], list[Tensor], Tensor]]
ATTACKS = {
    "PGD": foolbox.attacks.L2ProjectedGradientDescentAttack(steps=10, rel_stepsize=0.25, random_start=False),
    "DeepFool": foolbox.attacks.L2DeepFoolAttack(steps=10, candidates=3, overshoot=0.3),
}


class ExpectationOverNoise(nn.Module):
    """Log of the mean probabilities of noisy copies of x: a differentiable stand-in for the votes that certify counts.

    Source: Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers", NeurIPS 2019.
    """

    def __init__(self, network: nn.Module, noise: Tensor) -> None:  # noise: (m, c, h, w)
        super().__init__()
        self.network, self.noise = network, noise

    def forward(self, x: Tensor) -> Tensor:  # (b, c, h, w) -> (b, K)
        noisy = (x.unsqueeze(1) + self.noise).flatten(0, 1)
        votes = self.network(noisy).softmax(1).unflatten(0, (len(x), -1))
        return votes.mean(1).clamp_min(1e-30).log()


@dataclass(frozen=True)
class Target:
    """A smoothed classifier, what an attacker differentiates instead, and those of the `IMAGES` that it certified."""

    smoothed: cb.SmoothedClassifier
    attacked: nn.Module
    images: list[Tensor]
    certificates: list[cb.Certificate]

    def flips(self, attack: Attack, factor: float) -> int:
        """How many certified images the attack flips, given `factor` times their radius."""
        total = 0
        for x, certificate in zip(self.images, self.certificates, strict=True):
            budget = factor * certificate.radius
            x_attacked = perturbed(attack, self.attacked, x, certificate.label, budget)
            assert (x_attacked - x).norm() <= budget * 1.001
            label = self.smoothed.predict(x_attacked, n=1000, alpha=ALPHA, seed=1).label
            total += label not in (None, certificate.label)
        return total

    def refuted_by(self, flips: int) -> bool:
        """Whether honest certificates flip this often with probability below `SIGNIFICANCE`: exact binomial test.

        The trials are the images that certification was run on, abstentions too: alpha bounds "certified, and falsely".
        """
        return bool(binom.sf(flips - 1, IMAGES, 2 * ALPHA) < SIGNIFICANCE)


def perturbed(attack: Attack, network: nn.Module, x: Tensor, label: int | None, budget: float) -> Tensor:
    """What the attack makes of x (c, h, w) with an l2 norm of at most `budget`."""
    model = foolbox.PyTorchModel(network.eval(), bounds=BOUNDS, device="cpu")
    _, (clipped,), _ = attack(model, x.unsqueeze(0), torch.tensor([label]), epsilons=[budget])
    return clipped[0]


def digits_classifier(images: cb.Images) -> nn.Sequential:
    """A small convolutional box, trained on clean images; call it with torch's generator seeded."""
    layers = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU())
    network = nn.Sequential(*layers, nn.Linear(64, CLASSES))
    x, y = images.floats(), images.labels
    assert y is not None
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(10):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[index]), y[index]).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def digits() -> Target:
    """FO-DS in front of a convolutional network, certified on held-out digits; the attacker sees through all of it."""
    shown, held = cb.load_images("digits", "train"), cb.load_images("digits", "test")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        box, denoiser = digits_classifier(shown), networks.dncnn(1, depth=4, width=16)
    client, schedule = cb.QueryClient(cb.as_blackbox(box, outputs="logits")), cb.one_cycle(6, 2e-3)
    defense = cb.train(
        client, shown, method="FO-DS", sigma=SIGMA, schedule=schedule, seed=0, gamma=5.0, denoiser=denoiser
    )
    smoothed = cb.SmoothedClassifier(defense.outputs, CLASSES, SIGMA)
    noise = SIGMA * torch.randn(50, *held.shape, generator=torch.Generator().manual_seed(2))
    images = list(held.floats(slice(0, None, len(held) // IMAGES))[:IMAGES])
    certificates = [smoothed.certify(x, n0=100, n=1000, alpha=ALPHA, seed=0) for x in images]
    kept = [i for i, certificate in enumerate(certificates) if certificate.label is not None]
    assert len(kept) > IMAGES / 2
    return Target(
        smoothed,
        ExpectationOverNoise(nn.Sequential(defense.pipeline, box), noise),
        [images[i] for i in kept],
        [certificates[i] for i in kept],
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_inside_the_certified_radius_flips_more_than_alpha_allows(digits: Target, name: str) -> None:
    flips = digits.flips(ATTACKS[name], 0.99)
    assert not digits.refuted_by(flips), f"{name} flipped {flips} of {len(digits.images)} certified images"


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_attack_refutes_radii_that_are_too_large(digits: Target, name: str) -> None:
    """The attacks are strong enough for the test above to fail: radii half as large again, and it would."""
    flips = digits.flips(ATTACKS[name], 1.5)
    assert digits.refuted_by(flips), f"{name} flipped {flips} of {len(digits.images)} at 1.5 times the radius"


def test_far_outside_the_radius_hardly_an_image_stands(digits: Target) -> None:
    assert digits.flips(ATTACKS["PGD"], 3.0) > 0.8 * len(digits.images)


# --------------------------------------------------- a linear classifier, whose distance to the boundary is known

SIDE = 4
Linear = tuple[LinearBox, list[Tensor], list[cb.Certificate]]
LINEAR_ATTACKS = {
    "FGM": foolbox.attacks.L2FastGradientAttack(random_start=False),  # optimal: the gradient is the same everywhere
    "PGD": ATTACKS["PGD"],
    "DeepFool": foolbox.attacks.L2DeepFoolAttack(overshoot=0.02),
}


@pytest.fixture(scope="module")
def linear() -> Linear:
    """Two classes, so that the smoothed classifier g is the linear one itself; certificates that are never false."""
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(SIDE * SIDE, generator=generator)
    box = LinearBox(torch.stack([w, -w]), -torch.tensor([0.5, -0.5]) * w.sum())  # the boundary halves the cube
    smoothed = cb.SmoothedClassifier(box, 2, SIGMA)
    images = list(torch.rand(25, 1, SIDE, SIDE, generator=generator))
    certificates = [smoothed.certify(x, n0=100, n=1000, alpha=1e-6, seed=0) for x in images]
    kept = [i for i, certificate in enumerate(certificates) if certificate.label is not None]
    assert len(kept) > len(images) / 2
    return box, [images[i] for i in kept], [certificates[i] for i in kept]


@pytest.mark.parametrize("name", LINEAR_ATTACKS)
def test_attacks_on_a_linear_classifier_fail_within_the_radius_and_succeed_beyond_the_boundary(
    linear: Linear, name: str
) -> None:
    box, images, certificates = linear
    layer = nn.Linear(SIDE * SIDE, 2)
    layer.weight.data, layer.bias.data = box.weight, box.bias
    network = nn.Sequential(nn.Flatten(), layer)
    for x, certificate in zip(images, certificates, strict=True):
        label, distance = certificate.label, box.radius(x.unsqueeze(0)).item()
        assert 0 < certificate.radius <= distance
        within = perturbed(LINEAR_ATTACKS[name], network, x, label, 0.99 * certificate.radius)
        beyond = perturbed(LINEAR_ATTACKS[name], network, x, label, 1.05 * distance)
        assert (within - x).norm() == pytest.approx(0.99 * certificate.radius, rel=1e-4), "all of the budget is used"
        assert box(within.unsqueeze(0)).argmax() == label
        assert box(beyond.unsqueeze(0)).argmax() != label
