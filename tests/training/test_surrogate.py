"""The surrogate against boxes with known slopes: what it remembers, what it learns, and that a stop changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certibox.defense.pipeline import RobustPipeline
from certibox.errors import InvalidInput
from certibox.estimators import Alignment, Guided, guessed_gradient
from certibox.networks.surrogate import surrogate_cnn, surrogate_mlp
from certibox.queries.client import QueryClient
from certibox.training import losses, replay_memory, surrogate
from certibox.training.replay_memory import Memory
from certibox.training.stability import StabilityObjective
from certibox.training.surrogate import GuidedStability, Surrogate, probe, resolved, surrogate_for
from doubles import CountingBox, LinearBox

SHAPE, D, K = (1, 2, 5), 10, 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


WEIGHT = normal(K, D, seed=5)


def numbered(first: int, last: int, *shape: int) -> Tensor:
    """Inputs that are filled with their number."""
    return torch.arange(first, last, dtype=torch.float32).reshape(-1, *(1 for _ in shape)).expand(-1, *shape).clone()


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 8 answers, 4 of which are new."""
    monkeypatch.setattr(replay_memory, "MEMORY_ANSWERS", 8)
    monkeypatch.setattr(replay_memory, "NEWEST", 4)


def held(memory: Memory) -> list[float]:
    return memory.tensors()["inputs"].flatten(1)[:, 0].tolist()


def test_a_memory_holds_what_it_was_told() -> None:
    memory = Memory()
    assert (len(memory), memory.seen) == (0, 0)
    memory.add(numbered(0, 3, D), numbered(0, 3, K))
    memory.add(numbered(3, 5, D), numbered(3, 5, K))
    assert (len(memory), memory.seen) == (5, 5)
    assert torch.equal(memory.tensors()["inputs"], numbered(0, 5, D))
    assert torch.equal(memory.tensors()["answers"], numbered(0, 5, K))


@pytest.mark.parametrize("parts", [(5, 5), (8, 1), (3, 3, 3, 3, 3, 3), (1,) * 20])
@pytest.mark.usefixtures("small")
def test_the_oldest_give_way(parts: tuple[int, ...]) -> None:
    memory, seen = Memory(), 0
    for count in parts:
        memory.add(numbered(seen, seen + count, D), numbered(seen, seen + count, K))
        seen += count
    assert (len(memory), memory.seen) == (8, seen)
    assert sorted(held(memory)) == list(range(seen - 8, seen))
    assert torch.equal(memory.tensors()["answers"][:, 0], memory.tensors()["inputs"][:, 0])


def test_room_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_memory, "NEWEST", 2)
    monkeypatch.setattr(replay_memory, "MEMORY_BYTES", 2 * D * 6)
    memory = Memory()
    memory.add(numbered(0, 6, *SHAPE), numbered(0, 6, K))
    memory.add(numbered(6, 7, *SHAPE), numbered(6, 7, K))
    assert sorted(held(memory)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("small")
def test_images_are_kept_in_half_precision_and_all_else_as_it_came() -> None:
    images, answers = torch.rand(8, *SHAPE, generator=generator()), normal(8, K)
    memory, flat, labels = Memory(), Memory(), Memory()
    memory.add(images, answers, images / 4, answers)
    flat.add(images.flatten(1), answers)
    labels.add(images, torch.arange(8))
    kept = memory.tensors()
    assert {name: kept[name].dtype for name in ("inputs", "steps", "answers", "changes")} == {
        "inputs": torch.float16,
        "steps": torch.float16,
        "answers": torch.float32,
        "changes": torch.float32,
    }
    assert 0 < (kept["inputs"].float() - images).abs().max() <= 2**-12
    assert torch.equal(flat.tensors()["inputs"], images.flatten(1))
    assert torch.equal(labels.tensors()["answers"], torch.arange(8))
    assert memory.sample(5, generator())["inputs"].dtype == torch.float32


def test_answers_that_are_images_keep_their_range_and_precision() -> None:
    answers = 1e5 + torch.arange(4.0).reshape(4, 1, 1, 1)  # beyond half precision, and its steps
    memory = Memory()
    memory.add(torch.rand(4, *SHAPE, generator=generator()), answers, torch.zeros(4, *SHAPE), answers)
    again = Memory()
    again.load(memory.tensors(), torch.device("cpu"))
    for kept in (memory.tensors(), again.tensors()):
        assert torch.equal(kept["answers"], answers)
        assert torch.equal(kept["changes"], answers)


@pytest.mark.parametrize("pairs_first", [True, False])
@pytest.mark.usefixtures("small")
def test_steps_are_zero_where_there_were_none(pairs_first: bool) -> None:
    memory, plain = Memory(), (numbered(1, 3, D), numbered(1, 3, K))
    pairs = (numbered(3, 5, D), numbered(3, 5, K), numbered(5, 7, D), numbered(7, 9, K))
    for parts in (pairs, plain) if pairs_first else (plain, pairs):
        memory.add(*parts)
    kept = memory.tensors()
    by_input = dict(zip(held(memory), kept["steps"][:, 0].tolist(), strict=True))
    assert by_input == {1: 0, 2: 0, 3: 5, 4: 6}
    assert dict(zip(held(memory), kept["changes"][:, 0].tolist(), strict=True)) == {1: 0, 2: 0, 3: 7, 4: 8}
    memory.add(numbered(10, 18, D), numbered(10, 18, K))  # and are forgotten with what they belonged to
    assert not memory.tensors()["steps"].any()


@pytest.mark.parametrize("seen", [3, 8, 13])
@pytest.mark.usefixtures("small")
def test_half_of_a_sample_is_among_the_newest(seen: int) -> None:
    memory = Memory()
    for number in range(1, seen + 1):
        memory.add(numbered(number, number + 1, D), numbered(number, number + 1, K))
    drawn = memory.sample(400, generator())
    numbers = drawn["inputs"][:, 0]
    oldest, new = max(1, seen - 7), max(1, seen - 3)
    assert set(numbers[:200].tolist()) == set(range(new, seen + 1))
    assert set(numbers[200:].tolist()) == set(range(oldest, seen + 1))
    assert torch.equal(drawn["answers"][:, 0], numbers)


@pytest.mark.parametrize("count", [5, 8, 13])
@pytest.mark.usefixtures("small")
def test_a_memory_that_is_loaded_goes_on_as_before(count: int) -> None:
    memory, loaded = Memory(), Memory()
    for number in range(count):
        part = (numbered(number, number + 1, *SHAPE), numbered(number, number + 1, K))
        memory.add(*part, *part) if number % 3 else memory.add(*part)
    loaded.load({name: value.clone() for name, value in memory.tensors().items()}, torch.device("cpu"))
    for _ in range(2):
        assert (len(loaded), loaded.seen) == (len(memory), memory.seen)
        for name, value in memory.tensors().items():
            assert torch.equal(loaded.tensors()[name], value), name
        for name, value in memory.sample(50, generator()).items():
            assert torch.equal(loaded.sample(50, generator())[name], value), name
        for one in (memory, loaded):
            one.add(numbered(50, 55, *SHAPE), numbered(50, 55, K))


def test_an_empty_memory_is_loaded_empty() -> None:
    loaded = Memory()
    loaded.load(Memory().tensors(), torch.device("cpu"))
    assert (len(loaded), loaded.seen, loaded.tensors().keys()) == (0, 0, {"seen"})


# --- learning ---------------------------------------------------------------------------------------------------------


def untaught(kind: str, d: int = D, outputs: int = K) -> Surrogate:
    return surrogate_for(Guided(surrogate="latent"), kind, d, (1, 1, d), outputs, 0)


def cross_entropy_gradient(outputs: Callable[[Tensor], Tensor], z: Tensor, target: Tensor) -> Tensor:
    z = z.clone().requires_grad_(True)
    return torch.autograd.grad(F.cross_entropy(outputs(z), target, reduction="sum"), z)[0]


# Labels tell only sides of boundaries, and 1,024 of them less than as many probabilities.
@pytest.mark.parametrize(("kind", "level"), [("logits", 0.95), ("probabilities", 0.95), ("labels", 0.85)])
def test_it_learns_a_linear_classifier_to_the_gradient(kind: str, level: float) -> None:
    box, taught = LinearBox(WEIGHT, outputs=kind), untaught(kind)
    x, fresh, target = normal(1024, D), normal(200, D, seed=2), torch.arange(200) % K
    taught.memory.add(x, box(x))
    exact = cross_entropy_gradient(lambda z: z @ WEIGHT.T, fresh, target)

    def cosine() -> float:
        found = cross_entropy_gradient(taught.outputs, fresh, target)
        return float(torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0))

    before = cosine()
    taught.learn(150)
    assert before < 0.7
    assert cosine() > level
    assert taught.updates == 150


def test_it_learns_values_to_their_slopes() -> None:
    box, taught = LinearBox(WEIGHT, outputs="values"), untaught("values")
    x, fresh = normal(1024, D), normal(50, D, seed=2)
    taught.memory.add(x, box(x))
    first = taught.learn(1)
    last = taught.learn(150)
    assert last < 0.05 < 0.5 < first  # relative to the variance of the values
    slopes = torch.func.vmap(torch.func.jacrev(taught.outputs))(fresh)  # (n, K, d)
    assert float((slopes - WEIGHT).norm() / WEIGHT.expand_as(slopes).norm()) < 0.3


@pytest.mark.parametrize("kind", ["values", "logits"])
def test_pairs_teach_slopes_that_the_same_answers_as_values_do_not(kind: str) -> None:
    """32 points with a short step each: as 64 values, a step's change drowns in what the fit has left of the values."""
    weight = normal(K, D, seed=6)

    def box(x: Tensor) -> Tensor:
        return (3 * x @ weight.T).sin()

    x = normal(32, D)
    steps = 0.02 * F.normalize(normal(32, D, seed=2))
    changes = box(x + steps) - box(x)
    paired, valued = untaught(kind), untaught(kind)
    paired.memory.add(x, box(x), steps, changes)
    valued.memory.add(torch.cat([x, x + steps]), torch.cat([box(x), box(x + steps)]))

    def wrong(taught: Surrogate) -> float:
        """The share of the changes that the surrogate misses."""
        taught.learn(120)
        missed, truth = taught.outputs(x + steps) - taught.outputs(x) - changes, changes
        if kind == "logits":
            missed, truth = (a - a.mean(1, keepdim=True) for a in (missed, truth))
        return float((missed.square().sum() / truth.square().sum()).detach())

    with_pairs = wrong(paired)
    assert with_pairs < 0.5
    assert wrong(valued) > 2 * with_pairs


def gradient_of_misfit(taught: Surrogate) -> Tensor:
    parameters = [parameter.requires_grad_(True) for parameter in taught.network.parameters()]
    misfit = taught._misfit(taught.memory.sample(32, torch.Generator().manual_seed(1)))
    return torch.cat([part.flatten() for part in torch.autograd.grad(misfit, parameters)])


def test_logits_are_learned_up_to_a_constant() -> None:
    """Which no answer of a classifier depends on: shifting all logits of an answer changes no update."""
    plain, shifted = untaught("logits"), untaught("logits")
    x, steps = normal(64, D), 0.1 * normal(64, D, seed=2)
    before, after = x @ WEIGHT.T, (x + steps) @ WEIGHT.T
    shift = normal(64, 1, seed=4)
    plain.memory.add(x, before, steps, after - before)
    shifted.memory.add(x, before + shift, steps, after - before - 2 * shift)
    wanted, found = gradient_of_misfit(plain), gradient_of_misfit(shifted)
    assert float((found - wanted).norm()) < 1e-5 * float(wanted.norm())


def test_answers_that_hardly_change_do_not_outweigh_the_others() -> None:
    """Their misfit is relative to the larger of both slopes: at most 2, where relative to the box's it has no bound."""
    x, steps = normal(64, D), 0.1 * normal(64, D, seed=2)
    answers = torch.zeros(64, K)
    flat = untaught("logits")
    flat.memory.add(x, answers, steps, 1e-6 * steps @ WEIGHT.T)
    batch = flat.memory.sample(32, torch.Generator().manual_seed(1))
    values = F.cross_entropy(flat.outputs(batch["inputs"] + batch["steps"]), torch.full((32, K), 1 / K))
    assert 0.9 < float(flat._misfit(batch) - values) <= 2  # the untaught network changes, the box does not


def test_answers_that_were_made_without_gradients_can_be_learned_from() -> None:
    taught = untaught("logits")
    with torch.inference_mode():
        x = normal(32, D)
        taught.memory.add(x * 1, x @ WEIGHT.T)
        start = [parameter.clone() for parameter in taught.network.parameters()]
        assert taught.learn(2) > 0
    assert all(not torch.equal(a, b) for a, b in zip(start, taught.network.parameters(), strict=True))


def test_answers_in_double_precision_are_learned_and_guessed_too() -> None:
    single, double, x = untaught("values"), untaught("values"), normal(32, D)
    for taught, inputs in ((single, x), (double, x.double())):
        taught.memory.add(inputs, inputs.float() @ WEIGHT.T)
        taught.learn(2)
    assert torch.equal(single.outputs(x), double.outputs(x.double()))


def test_the_network_trains_only_while_it_learns() -> None:
    taught, modes = untaught("values"), []
    taught.network.register_forward_hook(
        lambda module, *_: modes.append([parameter.requires_grad for parameter in module.parameters()])
    )
    assert not any(parameter.requires_grad for parameter in taught.network.parameters())
    taught.memory.add(normal(32, D), normal(32, K))
    taught.learn(1)
    assert modes == [[True] * 6]
    assert not any(parameter.requires_grad for parameter in taught.network.parameters())


@pytest.mark.parametrize("pairs", [False, True])
def test_a_surrogate_that_is_loaded_learns_on_bit_for_bit(pairs: bool) -> None:
    taught = untaught("logits")
    x = normal(40, D)
    part = (x, x @ WEIGHT.T)
    taught.memory.add(*part, *part) if pairs else taught.memory.add(*part)
    taught.learn(3)
    taught.alignment, taught.probes, taught.distilled = Alignment(1.0, 2.0, 3.0), 2, True
    loaded = surrogate_for(Guided(surrogate="latent"), "logits", D, (1, 1, D), K, 0)
    kept = {name: value.clone() for name, value in taught.tensors().items()}
    loaded.load(kept, json.loads(json.dumps(taught.notes())))
    assert (loaded.updates, loaded.probes, loaded.distilled) == (3, 2, True)
    assert loaded.alignment == Alignment(1.0, 2.0, 3.0)
    for one in (taught, loaded):
        one.memory.add(x + 1, x @ -WEIGHT.T)
        one.learn(3)
    assert taught.tensors().keys() == loaded.tensors().keys()
    for name, value in taught.tensors().items():
        assert torch.equal(loaded.tensors()[name], value), name
    assert loaded.notes() == taught.notes()
    assert not torch.equal(kept["network.0.weight"], loaded.tensors()["network.0.weight"])


def test_a_surrogate_that_knows_nothing_can_be_kept_too() -> None:
    fresh, loaded = untaught("logits"), untaught("logits")
    loaded.load(fresh.tensors(), json.loads(json.dumps(fresh.notes())))
    assert (loaded.updates, loaded.distilled, len(loaded.memory)) == (0, False, 0)


def test_a_seed_fixes_the_first_weights_and_draws_nothing_else() -> None:
    state = torch.random.get_rng_state()
    a, b = untaught("values"), untaught("values")
    other = surrogate_for(Guided(surrogate="latent"), "values", D, (1, 1, D), K, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(a.network[0].weight, b.network[0].weight)  # pyright: ignore[reportIndexIssue]
    assert not torch.equal(a.network[0].weight, other.network[0].weight)  # pyright: ignore[reportIndexIssue]


# --- between the queries and the estimator ----------------------------------------------------------------------------


class Truth(nn.Module):
    """The linear box's own logits, as a surrogate that knows everything."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def told(kind: Any, outputs: str = "logits", b: int = 4) -> GuidedStability:
    """An objective in pixel space with a surrogate that knows the box; kind: of its inputs."""
    box = LinearBox(WEIGHT, outputs=outputs)
    client, z = QueryClient(CountingBox(box), batch_size=5), normal(b, D)
    target = torch.arange(b) % K if outputs != "values" else normal(b, K, seed=3)
    stability = StabilityObjective(RobustPipeline(None), client, losses.LOSSES[outputs], target, SHAPE)
    known = Surrogate(Truth(), outputs, 0)
    return GuidedStability(stability, known, z, kind, 1)


@pytest.mark.parametrize("kind", ["image", "latent"])
@pytest.mark.parametrize("outputs", ["logits", "probabilities", "values"])
def test_a_surrogate_that_knows_the_box_guesses_its_losses_and_gradient(outputs: str, kind: str) -> None:
    objective = told(kind, outputs=outputs)
    points = normal(3, 4, D, seed=8)
    torch.testing.assert_close(objective.guess(points), objective(points), rtol=1e-4, atol=1e-4)
    logits = objective.z @ WEIGHT.T
    if outputs == "values":
        slope = 2 * (logits - objective.stability.target) / K
    else:
        slope = logits.softmax(1) - F.one_hot(objective.stability.target, K)
    torch.testing.assert_close(guessed_gradient(objective, objective.z), slope @ WEIGHT, rtol=1e-4, atol=1e-5)
    assert objective.stability.client.queries == 12  # guesses are free


@pytest.mark.parametrize("kind", ["image", "latent"])
def test_every_answer_is_remembered_and_perturbed_ones_as_changes(kind: str) -> None:
    objective = told(kind)
    z, memory = objective.z, objective.surrogate.memory
    steps = 0.5 * normal(3, 4, D, seed=8)
    active = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    objective(z.unsqueeze(0))
    assert memory.seen == 4
    objective(z + steps, active)
    assert memory.seen == 10 == objective.stability.client.queries
    kept = memory.tensors()
    inputs = kept["inputs"].float().flatten(1)
    tolerance = 2e-3 if kind == "image" else 1e-5
    torch.testing.assert_close(inputs[:4], z, rtol=tolerance, atol=tolerance)
    assert not kept["steps"][:4].any()
    owners = [0, 1, 2, 3, 0, 2]
    asked = torch.cat([steps[0], steps[1][[0, 2]]])
    torch.testing.assert_close(inputs[4:], z[owners], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(kept["steps"][4:].float().flatten(1), asked, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(kept["answers"][4:], z[owners] @ WEIGHT.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept["changes"][4:], asked @ WEIGHT.T, rtol=1e-4, atol=1e-4)


def test_a_difference_of_probabilities_is_remembered_as_two_values() -> None:
    objective = told("latent", outputs="probabilities")
    z, steps = objective.z, 0.5 * normal(1, 4, D, seed=8)
    objective(z.unsqueeze(0))
    objective(z + steps)
    kept = objective.surrogate.memory.tensors()
    assert kept.keys() == {"inputs", "answers", "seen"}
    points = torch.cat([z, z + steps[0]])
    assert torch.equal(kept["inputs"], points)
    torch.testing.assert_close(kept["answers"], (points @ WEIGHT.T).softmax(1))


def test_an_answer_around_an_image_that_was_not_asked_is_a_value() -> None:
    objective = told("latent")
    memory, z = objective.surrogate.memory, objective.z
    objective(z.unsqueeze(0), torch.tensor([[True, True, False, False]]))
    objective((z + 1).unsqueeze(0))
    kept = memory.tensors()
    assert kept.keys() == {"inputs", "answers", "seen"}
    assert torch.equal(kept["inputs"], torch.cat([z[:2], z + 1]))
    assert memory.seen == 6


def test_labels_have_no_changes() -> None:
    objective = told("latent", outputs="labels")
    objective(objective.z.unsqueeze(0))
    objective((objective.z + 1).unsqueeze(0))
    kept = objective.surrogate.memory.tensors()
    assert kept.keys() == {"inputs", "answers", "seen"}
    assert torch.equal(kept["answers"][4:], ((objective.z + 1) @ WEIGHT.T).argmax(1))


def test_it_learns_nothing_from_nothing() -> None:
    objective = told("latent")
    objective.learn()
    assert objective.surrogate.updates == 0


@pytest.mark.parametrize("central", [False, True])
def test_a_probe_of_a_perfect_guess_shows_a_cosine_of_1_at_its_price(central: bool) -> None:
    objective = told("latent", b=20)
    guided = Guided("auto", 1e-2, central, surrogate="latent")
    probe(objective, guided, generator(), None)
    shown = objective.surrogate.alignment
    assert objective.stability.client.queries == 8 * (18 if central else 10)  # 8 images; along the guess and 8 across
    exact = guessed_gradient(objective, objective.z)[:8]
    assert shown.guess == pytest.approx(float(exact.square().sum()), rel=1e-4)
    assert shown.product == pytest.approx(shown.guess, rel=0.05)
    assert shown.truth == pytest.approx(shown.guess, rel=0.1)
    assert resolved(guided, objective.surrogate, D).q == 0


def test_probes_are_averaged_and_decide_the_corrections() -> None:
    objective = told("latent", b=20)
    wrong = Alignment(0.0, 1.0, 1.0)
    objective.surrogate.alignment, objective.surrogate.probes = wrong, 10
    guided = Guided("auto", 1e-2, surrogate="latent", target=0.6)
    assert resolved(guided, objective.surrogate, D).q == 5  # 1 + ceil(9 · 0.36)
    probe(objective, guided, generator(), None)
    fresh = told("latent", b=20)
    probe(fresh, guided, generator(), None)
    expected = wrong.blended(fresh.surrogate.alignment, surrogate.KEEP)
    assert vars(objective.surrogate.alignment) == pytest.approx(vars(expected))
    assert resolved(Guided(3, 1e-2), objective.surrogate, D) == Guided(3, 1e-2)


def test_a_batch_above_the_capacity_leaves_its_last_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_memory, "NEWEST", 4)
    monkeypatch.setattr(replay_memory, "MEMORY_ANSWERS", 4)
    memory = replay_memory.Memory()
    memory.add(torch.arange(3.0).unsqueeze(1), torch.arange(3.0).unsqueeze(1))
    memory.add(torch.arange(10.0, 20.0).unsqueeze(1), torch.arange(10.0, 20.0).unsqueeze(1))
    assert (len(memory), memory.seen) == (4, 13)
    assert sorted(memory.tensors()["inputs"].flatten().tolist()) == [16, 17, 18, 19]


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2, 5), (1, 4, 4), (3, 8, 8), (1, 28, 28), (3, 33, 20)])
def test_a_network_takes_images_of_any_size_one_by_one(shape: tuple[int, int, int]) -> None:
    network = surrogate_cnn(shape, K, width=8)
    x = normal(3, *shape)
    network.train()
    together, moved = network(x), network(x + 1e-3 * normal(3, *shape, seed=2))
    assert together.shape == (3, K)
    assert not torch.equal(together, moved)
    network.eval()
    assert torch.equal(network(x), together)  # the same in training and use
    torch.testing.assert_close(torch.cat([network(image[None]) for image in x]), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [surrogate_mlp(D, K, 8), surrogate_cnn(SHAPE, K, 8)], ids=["mlp", "cnn"])
def test_networks_are_smooth(network: nn.Module) -> None:
    """Central differences approach autograd as μ²: there is no kink to cross."""
    network = network.double().requires_grad_(False)
    x = normal(1, *(SHAPE if isinstance(network[0], nn.Conv2d) else (D,))).double()  # pyright: ignore
    u, point = normal(*x.shape, seed=4).double(), x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(point).sum(), point)
    exact = (gradient * u).sum()
    errors = [
        float(((network(x + mu * u) - network(x - mu * u)).sum() / (2 * mu) - exact).abs()) for mu in (1e-2, 1e-3)
    ]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("make", [lambda k, w: surrogate_mlp(D, k, w), lambda k, w: surrogate_cnn(SHAPE, k, w)])
@pytest.mark.parametrize(("outputs", "width"), [(0, 8), (3, 0), (3, 6)])
def test_a_network_without_outputs_or_of_odd_width_is_refused(make: Any, outputs: int, width: int) -> None:
    with pytest.raises(InvalidInput, match=f"{outputs} outputs, width {width}"):
        make(outputs, width)
