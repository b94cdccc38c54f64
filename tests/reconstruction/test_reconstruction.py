"""Reconstruction against closed forms: the measurement's moments, PGD on linear losses, SSIM against scikit-image."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from certibox import reconstruction
from certibox.blackbox import as_blackbox
from certibox.data import Images
from certibox.defense.pipeline import RobustPipeline
from certibox.defense.saved import Defense
from certibox.errors import BadOutput, ConfigMismatch, InvalidImages, InvalidInput, NotDifferentiable
from certibox.estimators import CGE
from certibox.networks import Autoencoder, dncnn
from certibox.queries.client import QueryClient
from certibox.reconstruction.attacks import Attack, l2_pgd
from certibox.reconstruction.evaluation import defended_output, evaluate
from certibox.reconstruction.measurements import Measurement, measured, train_reconstructor
from certibox.reconstruction.metrics import rmse, ssim
from certibox.storage.tensors import read_tensors, under
from certibox.training.defenses import train
from certibox.training.schedules import Phase, Schedule
from certibox.training.supervised import pretrain_autoencoder
from doubles import CountingBox, LinearBox

SHAPE, D = (1, 4, 4), 16
MEASUREMENT = Measurement(3, SHAPE, 12)
BIG = (1, 12, 12)  # room for an SSIM window


def pictures(count: int = 6, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Images:
    drawn = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Images(drawn, torch.arange(count) % 3, "random")


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streams(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 * seed + i) for i in range(count)]


class Affine(nn.Module):
    """x -> scale · x + shift, a "reconstructor" whose every error has a closed form."""

    def __init__(self, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(scale)), shift

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


class Bent(nn.Module):
    """A small convolution with a curve in it: its output depends on the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(1, 1, 3, padding=1)
        with torch.no_grad():
            self.net.weight.copy_(torch.linspace(-0.5, 1, 9).reshape(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(2 * self.net(x))


def values(module: nn.Module) -> QueryClient:
    return QueryClient(as_blackbox(module, outputs="values"))


def defended(client: QueryClient, denoiser: nn.Module, sigma: float, shape: tuple[int, int, int] = BIG) -> Defense:
    return Defense(RobustPipeline(denoiser).eval(), client, "DS", sigma, shape, None)


# ------------------------------------------------------------------------------------------------------ measurements


def test_expected_gram_matrix_is_the_identity():
    """(AᵀA)_ij is a mean of m products of normals: variance 2/m on the diagonal, 1/m beside it; over 200 seeds."""
    grams = torch.stack([(a := Measurement(seed, SHAPE, 10).matrix.double()).T @ a for seed in range(200)])
    off = grams.mean(0) - torch.eye(D)
    assert off.diagonal().abs().max() < 4 * math.sqrt(2 / (10 * 200))
    assert (off - off.diagonal().diag()).abs().max() < 4.5 * math.sqrt(1 / (10 * 200))
    assert grams.diagonal(dim1=1, dim2=2).var(0).mean().item() == pytest.approx(2 / 10, rel=0.15)


def test_adjoint():
    x, y = uniform(5, *SHAPE), uniform(5, 12, seed=1)
    left = (MEASUREMENT.measure(x) * y).sum(1)
    torch.testing.assert_close(left, (x * MEASUREMENT.adjoint(y)).flatten(1).sum(1))
    assert MEASUREMENT.measure(x).shape == (5, 12)


def test_network_input_is_the_scaled_back_projection():
    x = uniform(5, *SHAPE)
    a = MEASUREMENT.matrix.double()
    torch.testing.assert_close(MEASUREMENT(x), (((a.T @ a) @ x.flatten(1).T).T.reshape(x.shape) + 2) / 5)
    assert torch.equal(MEASUREMENT(torch.zeros(1, *SHAPE)), torch.full((1, *SHAPE), 0.4))


def test_measurement_of_the_paper():
    matrix = Measurement(0).matrix
    assert matrix.shape == (576, 784)
    # a sample variance of k normals has relative standard error sqrt(2 / k)
    assert matrix.var().item() == pytest.approx(1 / 576, rel=4 * math.sqrt(2 / matrix.numel()))


def test_digest_names_the_measurement():
    same = Measurement(3, SHAPE, 12)
    assert same == MEASUREMENT
    assert torch.equal(same.matrix, MEASUREMENT.matrix)
    others = [Measurement(4, SHAPE, 12), Measurement(3, SHAPE, 11), Measurement(3, (1, 2, 8), 12)]
    assert len({m.digest for m in (same, MEASUREMENT, *others)}) == 4


def test_measured_images_keep_labels_and_float_precision():
    images = pictures()
    seen = measured(images, MEASUREMENT)
    assert torch.equal(seen.floats([4, 1]), MEASUREMENT(images.floats([4, 1])))
    assert seen.labels is images.labels
    assert seen.digest not in (images.digest, measured(images, Measurement(4, SHAPE, 12)).digest)
    rounded = (seen.floats() * 255).round() / 255
    assert not torch.allclose(rounded, seen.floats(), atol=1e-4)


def test_what_does_not_fit_is_refused():
    images = pictures()
    for wrong in (pictures(shape=(1, 5, 5)), measured(images, MEASUREMENT)):
        with pytest.raises(InvalidImages, match=r"wanted plain images of shape \(1, 4, 4\)"):
            measured(wrong, MEASUREMENT)
    with pytest.raises(InvalidImages, match=r"takes \(1, 4, 4\)"):
        MEASUREMENT(torch.zeros(2, 1, 4, 5))
    with pytest.raises(InvalidInput, match="at least 1 row"):
        Measurement(0, SHAPE, 0)


# ------------------------------------------------------------------------------------------------------------ errors


def test_rmse_of_a_shift_is_the_shift():
    x = uniform(3, 2, 5, 5)
    shift = torch.tensor([0.0, 0.25, -0.5], dtype=x.dtype)
    torch.testing.assert_close(rmse(x + shift.reshape(3, 1, 1, 1), x), shift.abs())


def test_ssim_of_an_image_with_itself_is_one():
    x = uniform(3, 1, 14, 11)
    for padding in (0, 5):
        torch.testing.assert_close(ssim(x, x, padding=padding), torch.ones(3, dtype=x.dtype))


def test_ssim_of_flat_images_is_the_luminance_term():
    a, b = torch.full((1, 1, 11, 11), 0.2), torch.full((1, 1, 11, 11), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(a, b).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssim_is_scikit_images(shape: tuple[int, int, int], dtype: torch.dtype):
    a = uniform(4, *shape).to(dtype)
    b = (a + 0.3 * uniform(4, *shape, seed=1).to(dtype)).square() - 0.2  # like a tanh's answers, below 0 too
    expected = [
        structural_similarity(
            p.numpy(),
            q.numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            win_size=11,
            data_range=1,
            channel_axis=0,
        )
        for p, q in zip(a.double(), b.double(), strict=True)
    ]
    torch.testing.assert_close(ssim(a, b), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_padded_ssim_is_that_of_padded_images():
    a, b = uniform(2, 1, 12, 13), uniform(2, 1, 12, 13, seed=1)
    wide_a, wide_b = (nn.functional.pad(x, (5, 5, 5, 5)) for x in (a, b))
    torch.testing.assert_close(ssim(a, b, padding=5), ssim(wide_a, wide_b))
    assert not torch.allclose(ssim(a, b, padding=5), ssim(a, b), atol=1e-3)


def test_ssim_refuses_images_without_room_for_a_window():
    small = uniform(1, 1, 10, 20)
    with pytest.raises(InvalidImages, match="at least 11x11"):
        ssim(small, small)
    assert ssim(small, small, padding=1).item() == pytest.approx(1)
    with pytest.raises(InvalidImages, match="one shape"):
        ssim(uniform(2, 1, 12, 12), uniform(1, 1, 12, 12))


# ------------------------------------------------------------------------------------------------------------ attack


def linear(direction: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (x * direction).flatten(1).sum(1)


def test_pgd_on_a_linear_loss_reaches_the_maximiser():
    """max <g, δ> over ‖δ‖ ≤ ε is ε g / ‖g‖ where the bounds are far; a great step forgets the random start."""
    x, g = uniform(3, *SHAPE), uniform(3, *SHAPE, seed=1) - 0.5
    found = l2_pgd(linear(g), x, 2.0, generators=streams(3), bounds=(-1e6, 1e6), step_size=1000.0)
    expected = x + 2 * g / g.flatten(1).norm(dim=1).reshape(3, 1, 1, 1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [1, 40])
def test_default_step_size_is_two_radii_over_the_steps(steps: int):
    """On a linear loss each step adds s = 2/steps of ε along g, then scales back to the sphere: a known recursion."""
    x, g = torch.zeros(1, *SHAPE, dtype=torch.float64), uniform(1, *SHAPE, seed=1) - 0.5
    unit = g / g.norm()
    delta = torch.randn(SHAPE, generator=streams(1)[0]).double()[None]
    delta = delta / delta.norm()
    for _ in range(steps):
        delta = delta + 2 / steps * unit
        delta = delta / delta.norm().clamp(min=1)
    found = l2_pgd(linear(g), x, 0.5, steps=steps, generators=streams(1), bounds=(-9, 9))
    torch.testing.assert_close(found, 0.5 * delta, atol=1e-7, rtol=0)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 30.0])
def test_pgd_stays_in_the_ball_and_the_bounds(epsilon: float):
    x = 1.4 * uniform(4, *SHAPE) - 0.2  # some pixels start outside [0, 1]
    g = uniform(4, *SHAPE, seed=1) - 0.5
    found = l2_pgd(linear(g), x, epsilon, generators=streams(4))
    assert ((found - x).flatten(1).norm(dim=1) <= epsilon * (1 + 1e-9)).all()
    assert (found >= x.clamp(max=0) - 1e-9).all()
    assert (found <= x.clamp(min=1) + 1e-9).all()


def test_pgd_within_a_box_reaches_its_corner():
    """Where the ball holds the whole box, the maximiser of a linear loss is the corner that the gradient points to."""
    x, g = uniform(2, *SHAPE), uniform(2, *SHAPE, seed=1) - 0.5
    found = l2_pgd(linear(g), x, 5.0, generators=streams(2), step_size=1e5)
    torch.testing.assert_close(found, (g > 0).double())


def test_no_radius_is_the_clean_input_and_costs_no_pass():
    def never(x: Tensor) -> Tensor:
        raise AssertionError

    x = 1.4 * uniform(2, *SHAPE) - 0.2
    assert torch.equal(l2_pgd(never, x, 0.0, generators=streams(2)), x)


def test_a_flat_loss_is_left_at_random_and_not_at_nan():
    x = uniform(2, *SHAPE)
    found = l2_pgd(lambda point: 0 * point.flatten(1).sum(1), x, 0.1, generators=streams(2), bounds=(-9, 9))
    norms = (found - x).flatten(1).norm(dim=1)
    assert found.isfinite().all()
    assert (norms > 0).all()
    assert (norms <= 0.1 + 1e-9).all()


def test_pgd_of_a_sample_does_not_depend_on_its_batch():
    x, g = uniform(3, *SHAPE), uniform(3, *SHAPE, seed=1) - 0.5
    g[1] = 0  # this one moves at random, and draws from its own stream alone
    shared, own = streams(3), streams(3)
    together = l2_pgd(linear(g), x, 0.5, generators=shared)
    alone = [l2_pgd(linear(g[i : i + 1]), x[i : i + 1], 0.5, generators=own[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(shared, own, strict=True))


def test_pgd_works_where_gradients_are_off():
    x, g = uniform(1, *SHAPE), uniform(1, *SHAPE, seed=1)
    with torch.no_grad():
        off = l2_pgd(linear(g), x, 0.5, generators=streams(1))
    assert torch.equal(off, l2_pgd(linear(g), x, 0.5, generators=streams(1)))


@pytest.mark.parametrize(("epsilon", "steps", "count"), [(-1.0, 40, 2), (1.0, 0, 2), (1.0, 40, 1)])
def test_impossible_attacks_are_refused(epsilon: float, steps: int, count: int):
    x = uniform(2, *SHAPE)
    with pytest.raises(InvalidInput, match="one generator for each sample"):
        l2_pgd(linear(x), x, epsilon, steps=steps, generators=streams(count))


@pytest.mark.parametrize("arguments", [("sneaky", 40, 1), ("adaptive", 40, 0)])
def test_unknown_threats_are_refused(arguments: tuple[Literal["adaptive"], int, int]):
    with pytest.raises(InvalidInput, match="wanted one of transfer, adaptive"):
        Attack(*arguments)


def attacked(attack: Attack, model: Defense | QueryClient, epsilon: float = 0.5) -> Tensor:
    truth = uniform(3, *BIG, seed=5).float()
    return attack(model, uniform(3, *BIG).float(), truth, epsilon, streams(3))


def test_threats_agree_on_an_identity_pipeline_without_noise():
    """An untrained DnCNN is the identity."""
    client = values(Bent())
    model = defended(client, dncnn(1, depth=3, width=4), sigma=0.0)
    transfer, adaptive = attacked(Attack("transfer"), model), attacked(Attack("adaptive", samples=2), model)
    torch.testing.assert_close(adaptive, transfer, atol=1e-5, rtol=0)
    torch.testing.assert_close(transfer, attacked(Attack("transfer"), client))
    assert client.queries == 0
    assert client.white_passes == 40 * 3 * (1 + 2 + 1)


def test_threats_differ_where_the_pipeline_does():
    """f = id, D = -id: the two attacks climb <x - t, δ> and <x + t, δ>; each is the better one on its own victim."""
    client = values(Affine(1.0))
    model = defended(client, Affine(-1.0), sigma=0.0)
    truth = uniform(3, *BIG, seed=5).float()
    transfer, adaptive = (attacked(Attack(threat, samples=1), model) for threat in ("transfer", "adaptive"))
    assert ((adaptive + truth).flatten(1).norm(dim=1) > (transfer + truth).flatten(1).norm(dim=1)).all()
    assert ((adaptive - truth).flatten(1).norm(dim=1) < (transfer - truth).flatten(1).norm(dim=1)).all()


def test_adaptive_gradient_is_that_of_the_mean_output():
    """One step of the attack on f = id: the gradient of ‖x + mean σ·noise − t‖² is along x + mean noise − t."""
    client, sigma, samples = values(Affine(1.0)), 0.3, 4
    model = defended(client, Affine(1.0), sigma)
    x, truth = uniform(1, *BIG).float(), uniform(1, *BIG, seed=5).float()
    found = Attack("adaptive", steps=1, samples=samples)(model, x, truth, 1e-3, streams(1))
    stream = streams(1)[0]
    start = torch.randn(BIG, generator=stream)
    start = 1e-3 * start / start.norm()
    noise = torch.randn((samples, *BIG), generator=stream).mean(0)
    up = (x + start + sigma * noise - truth)[0]
    delta = start + 2e-3 * up / up.norm()
    low, high = (0 - x).clamp(max=0)[0], (1 - x).clamp(min=0)[0]
    delta = delta.clamp(low, high)
    torch.testing.assert_close((found - x)[0], 1e-3 * delta / delta.norm(), atol=3e-7, rtol=0)


# -------------------------------------------------------------------------------------------------------- evaluation


def test_defended_output_is_the_mean_over_the_noise():
    """D = 2x, f = x + 1: the mean output is 2x + 1 + 2σ · mean noise; the bare box gets no noise."""
    client = values(Affine(1.0, 1.0))
    model, x = defended(client, Affine(2.0), sigma=0.3), uniform(3, *BIG).float()
    noise = torch.stack([torch.randn((7, *BIG), generator=stream).mean(0) for stream in streams(3)])
    found = defended_output(model, x, copies=7, generators=streams(3))
    torch.testing.assert_close(found, 2 * x + 1 + 0.6 * noise)
    assert client.queries == 3 * 7
    assert torch.equal(defended_output(client, x, copies=7, generators=streams(3)), x + 1)
    assert client.queries == 3 * 8


def clean_errors(images: Images, measurement: Measurement) -> tuple[list[float], list[float]]:
    x, truth = measurement(images.floats()), images.floats()
    return rmse(x, truth).tolist(), ssim(x, truth).tolist()


def test_rows_of_the_clean_measurement():
    measurement, images = Measurement(1, BIG, 100), pictures(5, BIG)
    client = values(Affine(1.0))
    rows = evaluate(client, images, measurement, attack=Attack("transfer"), epsilons=(0,), seed=0, batch_size=2)
    errors, similarities = clean_errors(images, measurement)
    assert [row.idx for row in rows] == [0, 1, 2, 3, 4]
    assert [row.rmse for row in rows] == pytest.approx(errors)
    assert [row.ssim for row in rows] == pytest.approx(similarities)
    assert {(row.queries, row.epsilon, row.threat, row.model, row.seed) for row in rows} == {
        (1, 0, "transfer", client.model_id, 0)
    }
    assert (client.queries, client.white_passes) == (5, 0)
    assert client.spent == {"reconstruct": 5}


def test_linear_box_under_attack_has_a_known_error():
    """f = id on inputs well inside the bounds: the worst error is ‖x − t‖ + ε, and PGD nearly gets there."""
    measurement, images = Measurement(1, BIG, 100), pictures(4, BIG)
    client, epsilon = values(Affine(1.0)), 0.05
    rows = evaluate(client, images, measurement, attack=Attack("transfer"), epsilons=(0, epsilon), seed=0)
    pixels = math.sqrt(math.prod(BIG))
    for clean, worse in zip(rows[:4], rows[4:], strict=True):
        assert (worse.idx, worse.epsilon) == (clean.idx, epsilon)
        assert 0.9 * epsilon < (worse.rmse - clean.rmse) * pixels < epsilon * 1.001


THREAT_PAIR = (Attack("transfer", steps=5), Attack("adaptive", steps=5, samples=2))


@pytest.mark.parametrize("attack", THREAT_PAIR, ids=lambda attack: attack.threat)
def test_rows_depend_on_the_seed_and_not_on_the_batches(attack: Attack):
    measurement, images = Measurement(1, BIG, 100), pictures(5, BIG)
    model = defended(values(Bent()), dncnn(1, depth=3, width=4), sigma=0.2)

    def rows(seed: int, batch_size: int, count: int = 5) -> Sequence[reconstruction.ReconstructionRow]:
        chosen = images.select(slice(0, count))
        return evaluate(
            model, chosen, measurement, attack=attack, epsilons=(1,), copies=3, seed=seed, batch_size=batch_size
        )

    together = rows(0, 5)
    assert rows(0, 5) == together
    for other in (rows(0, 2), rows(0, 3, count=4)):
        assert [row.rmse for row in other] == pytest.approx([row.rmse for row in together[: len(other)]], abs=2e-4)
    assert all(abs(a.rmse - b.rmse) > 1e-5 for a, b in zip(together, rows(1, 5), strict=True))
    assert {row.queries for row in together} == {3}


def test_threats_share_the_clean_row():
    measurement, images = Measurement(1, BIG, 100), pictures(3, BIG)
    model = defended(values(Bent()), dncnn(1, depth=3, width=4), sigma=0.2)
    transfer, adaptive = (
        evaluate(model, images, measurement, attack=attack, epsilons=(0,), seed=0) for attack in THREAT_PAIR
    )
    assert [replace(row, threat="adaptive") for row in transfer] == adaptive


def test_boxes_that_cannot_be_evaluated_are_refused():
    measurement, images = Measurement(1, BIG, 100), pictures(3, BIG)
    attack = Attack("transfer")
    logits = QueryClient(as_blackbox(nn.Flatten(), outputs="logits"))
    with pytest.raises(InvalidInput, match="wanted a box that answers values"):
        evaluate(logits, images, measurement, attack=attack, seed=0)
    blind = QueryClient(CountingBox(as_blackbox(Affine(1.0), outputs="values")))
    with pytest.raises(NotDifferentiable):
        evaluate(blind, images, measurement, attack=attack, seed=0)
    assert blind.queries == 0
    assert len(evaluate(blind, images, measurement, attack=attack, epsilons=(0,), seed=0)) == 3
    with pytest.raises(BadOutput, match="is it a reconstructor"):
        evaluate(values(nn.Flatten()), images, measurement, attack=attack, epsilons=(0,), seed=0)


# ---------------------------------------------------------------------------------------------------------- training

TWO_EPOCHS = Schedule((Phase(2, 2e-3),), 8)


def trained(
    out: Path | None = None, seed: int = 0, progress: Callable[[int, int, str], None] | None = None
) -> nn.Module:
    images, held = pictures(24, (1, 28, 28)), pictures(6, (1, 28, 28), seed=1)
    return train_reconstructor(
        images, Measurement(0), schedule=TWO_EPOCHS, seed=seed, validation=held, out=out, progress=progress
    )


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in module.state_dict().values()])


def test_reconstructor_is_a_function_of_its_seed_and_resumes_to_the_same_weights(tmp_path: Path):
    def stop(done: int, total: int, _: str) -> None:
        assert total == 6
        if done == 4:
            raise KeyboardInterrupt

    expected = weights(trained())
    assert not torch.equal(weights(trained(seed=1)), expected)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, progress=stop)
    assert torch.equal(weights(trained(tmp_path)), expected)
    with pytest.raises(ConfigMismatch, match="seed is 0"):
        trained(tmp_path, seed=1)


def test_reconstructor_learns_to_undo_the_measurement():
    """On two grey levels the best constant leaves RMSE 0.3; a trained network tells them apart."""
    levels = torch.tensor([0, 153], dtype=torch.uint8).repeat(32).reshape(-1, 1, 1, 1)
    images = Images(levels.expand(-1, 1, 28, 28).contiguous(), None, "flat")
    measurement = Measurement(0)
    network = train_reconstructor(
        images, measurement, schedule=Schedule((Phase(25, 1e-2),), 16), seed=0, validation=images
    )
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        x = images.floats([0, 1])
        assert rmse(network(measurement(x)), x).max() < 0.1


# ------------------------------------------------------------------------- defenses of a box that answers with values


def conv(layer: nn.Module, scale: float) -> nn.Module:
    """The layer in double precision, with weights that a ramp gives."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.linspace(-scale, 1.5 * scale, parameter.numel()).reshape(parameter.shape))
    return layer.double()


class Small(nn.Module):
    """A denoiser in double precision without kinks."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv(nn.Conv2d(1, 1, 3, padding=1), 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x.double() - self.net(x.double())


def bottleneck() -> Autoencoder:
    encoder = nn.Sequential(conv(nn.Conv2d(1, 5, 4), 0.3), nn.ReLU())
    return Autoencoder(encoder, nn.Sequential(conv(nn.ConvTranspose2d(5, 1, 4), 1.0), nn.Sigmoid()), SHAPE)


def last_weights(method: str, out: Path, estimator: CGE | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights after two steps of training, and the targets, on measured images and a box that answers Wx."""
    weight = uniform(D, D, seed=2) - 0.5
    train(
        QueryClient(LinearBox(weight, outputs="values")),
        measured(pictures(8), MEASUREMENT),
        method=method,
        sigma=0.1,
        schedule=Schedule((Phase(1, 0.05, optimizer="sgd"),), 4),
        seed=0,
        estimator=estimator,
        gamma=5.0,
        denoise_weight=0.1,
        denoiser=Small(),
        autoencoder=bottleneck() if "AE" in method else None,
        validation=measured(pictures(4, seed=1), MEASUREMENT),
        out=out,
    )
    tensors, _ = read_tensors(out / "checkpoint.safetensors")
    flat = torch.cat([value.flatten() for value in under("module", tensors).values()])
    return flat, under("constants", tensors)


@pytest.mark.parametrize("kind", ["DS", "AE-DS"])
def test_zeroth_order_training_on_measurements_is_that_of_first_order(kind: str, tmp_path: Path):
    """The loss of a box Wx with values is quadratic in its input, where central differences are exact."""
    first, constants = last_weights(f"FO-{kind}", tmp_path / "fo")
    zeroth, _ = last_weights(f"ZO-{kind}", tmp_path / "zo", CGE(1e-4, central=True))
    start = [*Small().state_dict().values(), *(bottleneck().state_dict().values() if kind == "AE-DS" else ())]
    moved = (first - torch.cat([value.flatten() for value in start])).norm()
    assert moved > 1e-3
    assert (zeroth - first).norm() < 1e-6 * moved
    clean = MEASUREMENT(pictures(8).floats()).double().flatten(1)
    torch.testing.assert_close(constants["shown"], clean @ (uniform(D, D, seed=2) - 0.5).T, atol=1e-6, rtol=0)


def test_autoencoders_are_pretrained_on_the_measurements(tmp_path: Path):
    class Floating(Autoencoder):
        def encode(self, x: Tensor) -> Tensor:
            return super().encode(x.double())

    own = Floating(bottleneck().encoder, bottleneck().decoder, SHAPE)
    images = measured(pictures(8), MEASUREMENT)
    schedule = Schedule((Phase(1, 1e-3),), 8)
    pretrain_autoencoder(images, own, schedule=schedule, seed=0, validation=images, out=tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    x = MEASUREMENT(pictures(8).floats())
    assert row["loss"] == pytest.approx((own(x) - x).square().sum().item() / 8)
