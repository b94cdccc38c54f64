"""The white part in front of a box, and the objective that is asked through it, against direct computation."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certibox.defense.pipeline import RobustPipeline
from certibox.defense.saved import Defense
from certibox.estimators import CGE, RGE, estimated_loss
from certibox.networks import Autoencoder
from certibox.queries.client import QueryClient
from certibox.training.losses import LOSSES, targets
from certibox.training.stability import StabilityObjective, full_precision, surviving_share
from doubles import CountingBox, LinearBox, QuadraticBox

SHAPE = (2, 4, 4)
D = math.prod(SHAPE)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module: nn.Module, seed: int) -> nn.Module:
    for index, parameter in enumerate(module.double().parameters()):
        parameter.data = 0.5 * normal(*parameter.shape, seed=100 * seed + index)
    return module


class Watched(nn.Module):
    """A module, with a record of how many samples came in each call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.batch_sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batch_sizes.append(len(x))
        return self.module(x)


def autoencoder(d_z: int = 5) -> Autoencoder:
    encoder = filled(nn.Sequential(nn.Conv2d(2, d_z, 4), nn.ReLU()), seed=1)
    decoder = filled(nn.Sequential(nn.ConvTranspose2d(d_z, 2, 4), nn.Sigmoid()), seed=2)
    return Autoencoder(encoder, decoder, SHAPE)


def denoiser() -> nn.Module:
    return filled(nn.Conv2d(2, 2, 3, padding=1), seed=3)


def linear_box(outputs: str = "logits") -> CountingBox:
    return CountingBox(LinearBox(normal(3, D), normal(3, seed=2), outputs))


def test_the_pipeline_is_the_composition_of_its_parts() -> None:
    x, d, ae = normal(3, *SHAPE), denoiser(), autoencoder()
    assert torch.equal(RobustPipeline(None)(x), x)
    assert torch.equal(RobustPipeline(d)(x), d(x))
    assert torch.equal(RobustPipeline(d, ae)(x), ae.decoder(ae.encoder(d(x))))
    assert torch.equal(RobustPipeline(None, ae)(x), ae.decoder(ae.encoder(x)))


def test_an_estimator_works_on_embeddings_or_else_on_pixels() -> None:
    x, ae = normal(3, *SHAPE), autoencoder()
    pixels, bottleneck = RobustPipeline(denoiser()), RobustPipeline(denoiser(), ae)
    assert torch.equal(pixels.embed(x), x.flatten(1))
    assert torch.equal(pixels.images(x.flatten(1), SHAPE), x)
    z = bottleneck.embed(x)
    assert torch.equal(z, ae.encoder(x).flatten(1))
    assert torch.equal(bottleneck.images(z, SHAPE), ae.decoder(z[:, :, None, None]))


@pytest.mark.parametrize("bottleneck", [False, True], ids=["pixels", "bottleneck"])
@pytest.mark.parametrize("kind", ["logits", "probabilities", "labels", "values"])
def test_the_objective_is_the_loss_of_the_answer_at_each_point(kind: str, bottleneck: bool) -> None:
    pipeline = RobustPipeline(None, autoencoder() if bottleneck else None)
    box, k, b = linear_box(kind), 4, 3
    target = targets(box.box(normal(b, *SHAPE, seed=5)), kind, hard=kind != "probabilities")
    points = normal(k, b, 5 if bottleneck else D)
    actual = StabilityObjective(pipeline, QueryClient(box), LOSSES[kind], target, SHAPE)(points)
    for i in range(k):
        expected = LOSSES[kind](box.box(pipeline.images(points[i], SHAPE)), target)
        torch.testing.assert_close(actual[i], expected.to(points.dtype), rtol=1e-12, atol=1e-12)


def test_the_objective_has_the_closed_form_of_a_quadratic_box() -> None:
    root, linear = normal(D, D), normal(D, seed=2)
    box, x, target = QuadraticBox(root + root.T, linear), normal(3, *SHAPE, seed=3), normal(3, 1, seed=4)
    objective = StabilityObjective(RobustPipeline(None), QueryClient(box), LOSSES["values"], target, SHAPE)
    # ∇ (f(x) − t)² = 2 (f(x) − t) (Ax + b)
    expected = 2 * (box(x) - target) * box.gradient(x).flatten(1)
    estimate = CGE(1e-5, central=True).estimate(objective, x.flatten(1), torch.Generator())
    assert float((estimate - expected).norm() / expected.norm()) < 1e-6


def test_points_that_are_not_wanted_are_not_asked() -> None:
    box, k, b = linear_box(), 6, 3
    client, target, points = QueryClient(box), torch.tensor([0, 1, 2]), normal(k, b, D)
    objective = StabilityObjective(RobustPipeline(None), client, LOSSES["logits"], target, SHAPE)
    everything = objective(points)
    assert client.queries == box.images == k * b
    active = torch.rand(k, b, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(active.any(0), torch.ones(b, dtype=torch.bool))
    torch.testing.assert_close(objective(points, active), everything * active, rtol=1e-12, atol=1e-12)
    assert client.queries - k * b == box.images - k * b == int(active.sum())


def test_no_wanted_point_is_no_call() -> None:
    box = linear_box()
    objective = StabilityObjective(
        RobustPipeline(None), QueryClient(box), LOSSES["logits"], torch.zeros(3).long(), SHAPE
    )
    assert torch.equal(objective(normal(2, 3, D), torch.zeros(2, 3, dtype=torch.bool)), torch.zeros(2, 3).double())
    assert box.calls == 0


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 12), (5, [5, 5, 2]), (12, [12]), (100, [12])])
def test_points_are_decoded_and_asked_in_batches_of_the_client(batch_size: int, sizes: list[int]) -> None:
    ae = autoencoder()
    decoder = Watched(ae.decoder)
    ae.decoder = decoder
    box, target, points = linear_box(), torch.tensor([0, 1, 2]), normal(4, 3, 5)
    client = QueryClient(box, batch_size=batch_size)
    losses = StabilityObjective(RobustPipeline(None, ae), client, LOSSES["logits"], target, SHAPE)(points)
    assert decoder.batch_sizes == box.batch_sizes == sizes
    whole = StabilityObjective(RobustPipeline(None, ae), QueryClient(box), LOSSES["logits"], target, SHAPE)(points)
    torch.testing.assert_close(losses, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("skip_dead", [False, True])
def test_the_white_part_learns_from_queries_what_autograd_would_teach_it(skip_dead: bool) -> None:
    box, x, target = linear_box(), normal(4, *SHAPE, seed=6), torch.tensor([0, 1, 2, 0])
    client, pipeline = QueryClient(box), RobustPipeline(denoiser(), autoencoder())
    assert pipeline.autoencoder is not None
    trained = [p for part in (pipeline.denoiser, pipeline.autoencoder.encoder) if part for p in part.parameters()]
    linear = LinearBox(normal(3, D), normal(3, seed=2))
    expected = torch.autograd.grad(LOSSES["logits"](linear.differentiable(pipeline(x)), target).sum(), trained)
    z = pipeline.embed(pipeline.denoise(x))
    live = z > 0
    assert 0 < live.sum() < live.numel()
    objective = StabilityObjective(pipeline, client, LOSSES["logits"], target, SHAPE)
    losses = estimated_loss(objective, z, CGE(1e-5, central=True), torch.Generator(), live if skip_dead else None)
    actual = torch.autograd.grad(losses.sum(), trained)
    for a, b in zip(actual, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-6
    assert client.queries == 2 * int(live.sum() if skip_dead else live.numel())


def on_the_grid(low: int, high: int, shape: tuple[int, ...] = (3, 2, 4, 4)) -> Tensor:
    """Images of 8-bit pixels in low ... high."""
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(0)).double() / 255


def share(x: Tensor, estimator: CGE | RGE, levels: int = 256) -> float:
    return surviving_share(RobustPipeline(None), x, estimator, levels, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("central", [False, True])
def test_a_step_from_the_grid_survives_from_half_a_level_on(central: bool) -> None:
    x = on_the_grid(2, 253)
    assert share(x, CGE(0.49 / 255, central)) == 0.0
    assert share(x, CGE(0.51 / 255, central)) == 1.0


def test_random_steps_survive_when_they_are_huge_and_vanish_when_they_are_tiny() -> None:
    x = on_the_grid(100, 155)
    assert share(x, RGE(8, mu=10.0)) == 1.0
    assert share(x, RGE(8, mu=1e-4)) == 0.0


def test_a_coarser_grid_needs_a_larger_step() -> None:
    x = torch.full((2, *SHAPE), 0.5, dtype=torch.float64)  # the middle of three levels 0, 1/2, 1
    assert share(x, CGE(0.24), levels=3) == 0.0
    assert share(x, CGE(0.26), levels=3) == 1.0


def test_steps_out_of_the_pixel_range_are_lost() -> None:
    white = torch.ones(2, *SHAPE, dtype=torch.float64)
    assert share(white, CGE(0.1)) == 0.0
    assert share(white, CGE(0.1, central=True)) == 0.5


def test_a_step_below_the_rounding_of_the_embedding_does_not_survive() -> None:
    assert share(on_the_grid(100, 155), CGE(1e-30)) == 0.0


class OneStep:
    """A stranger's estimator that moves pixel 0 by 0.6 of an 8-bit level and all others by 0.4 of one."""

    def estimate(
        self, objective: Callable[..., Tensor], z: Tensor, generator: torch.Generator, live: Tensor | None = None
    ) -> Tensor:
        step = torch.full_like(z, 0.4 / 255)
        step[:, 0] = 0.6 / 255
        objective((z + step).unsqueeze(0))
        return torch.zeros_like(z)

    def cost(self, d: int) -> int:
        return 1


@pytest.mark.parametrize(("pixels", "survives"), [(8, 1.0), (16, 1.0), (36, 0.0), (64, 0.0)])
def test_a_tenth_of_the_energy_must_survive(pixels: int, survives: float) -> None:
    """0.36 of 0.36 + 0.16 (pixels − 1) is a tenth at 21.25 pixels."""
    x = on_the_grid(2, 253, (2, 1, 1, pixels))
    assert surviving_share(RobustPipeline(None), x, OneStep(), 256, torch.Generator()) == survives


def scaling(factor: float) -> nn.Module:
    layer = nn.Conv2d(2, 2, 1, groups=2, bias=False).double()
    layer.weight.data.fill_(factor)
    return layer


def test_the_share_is_of_what_the_decoder_returns() -> None:
    """A decoder that divides steps by 100 needs a step 100 times larger."""
    pipeline = RobustPipeline(None, Autoencoder(scaling(1.0), scaling(0.01), SHAPE))
    x = 100 * on_the_grid(2, 253)
    for mu, expected in ((49 / 255, 0.0), (51 / 255, 1.0)):
        assert surviving_share(pipeline, x, CGE(mu), 256, torch.Generator()) == expected


def test_steps_start_at_the_denoised_image() -> None:
    twice_white = torch.full((2, *SHAPE), 2.0, dtype=torch.float64)
    for denoiser, expected in ((scaling(0.5), 0.0), (scaling(0.25), 1.0)):
        assert surviving_share(RobustPipeline(denoiser), twice_white, CGE(0.1), 256, torch.Generator()) == expected


def test_measuring_the_share_leaves_statistics_and_gradients_alone() -> None:
    pipeline = RobustPipeline(nn.BatchNorm2d(2).double())
    pipeline.train()
    before = {name: value.clone() for name, value in pipeline.state_dict().items()}
    surviving_share(pipeline, normal(3, *SHAPE), RGE(2, 0.1), 256, torch.Generator())
    assert all(torch.equal(value, before[name]) for name, value in pipeline.state_dict().items())
    assert all(parameter.grad is None for parameter in pipeline.parameters())


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is a GPU; its switches exist without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("a_gpu")
def test_full_precision_holds_inside_and_leaves_every_other_switch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", True)
    for allowed in (True, False):
        monkeypatch.setattr(cudnn, "allow_tf32", allowed)
        with full_precision():
            assert not cudnn.allow_tf32
            assert cudnn.deterministic
        assert cudnn.allow_tf32 is allowed
    assert cudnn.deterministic


@pytest.mark.usefixtures("a_gpu")
def test_full_precision_covers_products_too() -> None:
    """The last layer of most classifiers is a product of matrices, which has a switch of its own."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        for allowed in (True, False):
            matmul.allow_tf32 = allowed
            with full_precision():
                assert not matmul.allow_tf32
            assert matmul.allow_tf32 is allowed
    finally:
        matmul.allow_tf32 = before


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has one switch only")
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_full_precision_works_beside_the_newer_switch(precision: str) -> None:
    """Where convolutions and recurrent layers differ, torch refuses to read `allow_tf32`."""
    conv = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    before, conv.fp32_precision = conv.fp32_precision, precision
    try:
        with full_precision():
            assert conv.fp32_precision == "ieee"
        assert conv.fp32_precision == precision
    finally:
        conv.fp32_precision = before


SWITCHES: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)


@pytest.fixture
def tf32_on() -> Iterator[None]:
    before = [switch.allow_tf32 for switch in SWITCHES]
    for switch in SWITCHES:
        switch.allow_tf32 = True
    yield
    for switch, allowed in zip(SWITCHES, before, strict=True):
        switch.allow_tf32 = allowed


def allowed() -> list[bool]:
    return [switch.allow_tf32 for switch in SWITCHES]


@pytest.mark.usefixtures("tf32_on")
def test_full_precision_touches_nothing_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with full_precision():
        assert allowed() == [True, True]


@pytest.mark.usefixtures("a_gpu", "tf32_on")
def test_full_precision_lasts_until_the_last_thread_has_left_and_then_all_is_as_before() -> None:
    """Each thread restores what it found: the second to enter would find TF32 off, and leave it off for good."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def second() -> list[bool]:
        first_in.wait(10)
        with full_precision():
            second_in.set()
            first_out.wait(10)
            return allowed()

    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(second)
        with full_precision():
            first_in.set()
            second_in.wait(10)
        first_out.set()
        assert seen.result() == [False, False]  # though the thread that switched has left
    assert allowed() == [True, True]


@pytest.mark.usefixtures("a_gpu", "tf32_on")
def test_many_threads_in_full_precision_never_see_tf32_and_leave_it_as_it_was() -> None:
    def work(_: int) -> bool:
        return all(inside() for _ in range(50))

    def inside() -> bool:
        with full_precision(), full_precision():
            return not any(allowed())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert allowed() == [True, True]


def test_measuring_the_share_leaves_every_module_in_its_own_mode() -> None:
    pipeline = RobustPipeline(nn.Sequential(nn.BatchNorm2d(2).double(), nn.Dropout(0.5)))
    pipeline.train()
    assert pipeline.denoiser is not None
    pipeline.denoiser[0].eval()  # pyright: ignore[reportIndexIssue]
    before = [module.training for module in pipeline.modules()]
    seen: list[list[bool]] = []

    class Looking(OneStep):
        def estimate(self, *args: Any, **options: Any) -> Tensor:
            seen.append([module.training for module in pipeline.modules()])
            return super().estimate(*args, **options)

    class Broken(OneStep):
        def estimate(self, *_: Any, **__: Any) -> Tensor:
            raise ZeroDivisionError

    surviving_share(pipeline, on_the_grid(2, 253), Looking(), 256, torch.Generator())
    assert [module.training for module in pipeline.modules()] == before == [True, True, False, True]
    assert seen == [[False] * 4]
    with pytest.raises(ZeroDivisionError):
        surviving_share(pipeline, on_the_grid(2, 253), Broken(), 256, torch.Generator())
    assert [module.training for module in pipeline.modules()] == before


def test_a_defense_without_weights_is_the_bare_box() -> None:
    """The identity in front of a box: R(f) = f, on the CPU, one query an image."""
    x = normal(3, *SHAPE)
    box = linear_box()
    bare = Defense(RobustPipeline(nn.Identity()), QueryClient(box), "identity", 0.25, SHAPE, None)
    assert bare.device == torch.device("cpu")
    assert torch.equal(bare.outputs(x), QueryClient(linear_box())(x))
    assert bare.client.queries == 3
