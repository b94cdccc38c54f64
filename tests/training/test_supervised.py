"""Networks that train by themselves, against gradients written out by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certibox import seeds
from certibox.blackbox import BoxSpec, as_blackbox
from certibox.data import Images, augment, held_out, mean_over
from certibox.errors import ConfigMismatch, InvalidInput
from certibox.networks import Autoencoder
from certibox.storage.tensors import module_digest
from certibox.training.schedules import Phase, Schedule
from certibox.training.supervised import fit, pretrain_autoencoder, train_classifier

SHAPE, D, K, D_Z, SEED = (2, 2, 3), 12, 3, 4, 5
LR, MOMENTUM = 0.01, 0.9
SPEC = BoxSpec("logits", mean=(0.5, 0.25), std=(0.1, 0.2))


def pictures(count: int = 6, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % K, "random")


def one_epoch(images: Images, lr: float = LR, batches: int = 1) -> Schedule:
    """Plain SGD, in so many equal steps."""
    return Schedule((Phase(1, lr, "sgd"),), len(images) // batches)


def linear(out: int, *, seed: int = 1) -> Any:
    """Flatten, then W of normal weights: (b, c, h, w) -> (b, out)."""
    layer = nn.Linear(D, out, bias=False)
    with torch.no_grad():
        layer.weight.copy_(0.1 * torch.randn((out, D), generator=torch.Generator().manual_seed(seed)))
    return nn.Sequential(nn.Flatten(), layer)


def weight(network: nn.Module) -> Tensor:
    """Of the one linear layer."""
    (parameter,) = network.parameters()
    return parameter.detach().clone()


def squared_norm(network: nn.Module) -> Callable[[Tensor, Images, Tensor], Tensor]:
    """A loss ‖Wx‖² of each image, whose gradient is 2 W x xᵀ."""
    return lambda x, images, index: network(x).square().sum(1)


# ---------------------------------------------------------------------------------------------------------------- fit


def test_one_step_is_one_step_down_the_gradient_of_the_mean() -> None:
    images, network = pictures(), linear(K)
    start, x = weight(network), images.floats().flatten(1)  # (6, d)
    fitted = fit(network, images, loss=squared_norm(network), schedule=one_epoch(images), seed=SEED, validation=images)
    gradient = 2 * start @ x.T @ x / len(images)
    assert fitted is network
    torch.testing.assert_close(weight(network), start - LR * gradient)


def test_steps_take_the_images_in_the_order_of_the_seed() -> None:
    """Three steps of two images with momentum: v ← 0.9 v + g, W ← W − lr v, over the permutation of the seed."""
    images, network = pictures(), linear(K)
    expected, velocity = weight(network), torch.zeros(K, D)
    for index in torch.randperm(len(images), generator=seeds.generator(SEED, "order", 0)).split(2):
        x = images.floats(index).flatten(1)
        velocity = MOMENTUM * velocity + 2 * expected @ x.T @ x / 2
        expected = expected - LR * velocity
    loss = squared_norm(network)
    fit(network, images, loss=loss, schedule=one_epoch(images, batches=3), seed=SEED, validation=images)
    torch.testing.assert_close(weight(network), expected)


def test_what_comes_back_is_frozen_and_set_to_answer() -> None:
    network = nn.Sequential(linear(K), nn.BatchNorm1d(K)).requires_grad_(False)
    images = pictures()
    fitted = fit(network, images, loss=squared_norm(network), schedule=one_epoch(images), seed=SEED, validation=images)
    assert not fitted.training
    assert not any(parameter.requires_grad for parameter in fitted.parameters())


def test_statistics_move_in_steps_and_rest_in_validation() -> None:
    """BatchNorm sees each training batch once, and the held-out images never."""
    images, norm = pictures(), nn.BatchNorm1d(D)
    network = nn.Sequential(nn.Flatten(), norm)
    x = images.floats().flatten(1)
    loss = lambda x, images, index: -network(x)[:, 0] * 0 + norm.weight[0]  # noqa: E731  falls with every step
    fit(network, images, loss=loss, schedule=one_epoch(images), seed=SEED, validation=pictures(4, seed=9))
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))


def test_a_step_that_makes_validation_worse_is_not_taken() -> None:
    """At a rate beyond 2/λ the quadratic grows: the start has the best score, and comes back."""
    images, network = pictures(), linear(K)
    start, loss = weight(network), squared_norm(network)
    fit(network, images, loss=loss, schedule=one_epoch(images, lr=10.0), seed=SEED, validation=images)
    assert torch.equal(weight(network), start)


def test_the_best_of_all_epochs_is_kept(tmp_path: Path) -> None:
    """Scores are minus the mean loss over all held-out images, and the weights are those of the best epoch."""
    images, held, network = pictures(), pictures(5, seed=3), linear(K)
    schedule = Schedule((Phase(3, LR, "sgd"), Phase(1, 10.0, "sgd")), len(images))
    loss = squared_norm(network)
    fit(network, images, loss=loss, schedule=schedule, seed=SEED, validation=held, out=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    scores = [row["validation"] for row in rows]
    assert scores == [*sorted(scores[:3]), scores[3]]
    assert scores[3] < scores[0]
    reached = (held.floats().flatten(1) @ weight(network).T).square().sum(1).mean()
    assert -scores[2] == pytest.approx(float(reached), rel=1e-5)


def test_training_sees_moved_images_and_validation_the_images() -> None:
    """Each step moves its images by a stream of its own, which its number names."""
    images, held = pictures(), pictures(4, seed=3)
    network, seen = linear(K), []

    def loss(x: Tensor, source: Images, index: Tensor) -> Tensor:
        seen.append((x.clone(), source, index.clone(), network.training))
        return network(x).square().sum(1)

    schedule = one_epoch(images, batches=3)
    fit(network, images, loss=loss, schedule=schedule, seed=SEED, augmentation="flip", validation=held)
    assert [training for *_, training in seen] == [False, True, True, True, False]
    for number, (x, source, index, training) in enumerate(seen, start=-1):
        assert source is (images if training else held)
        plain, stream = source.floats(index), seeds.generator(SEED, "augment", number)
        assert torch.equal(x, augment(plain, "flip", stream) if training else plain)
    assert any(not torch.equal(x, images.floats(index)) for x, _, index, training in seen if training)


class Negative:
    """A view: the images turned."""

    digest = "negative"

    def __call__(self, x: Tensor) -> Tensor:
        return 1 - x


def test_images_are_seen_through_their_view() -> None:
    plain, network = pictures(), linear(K)
    images = Images(plain.images, plain.labels, "turned", view=Negative())
    start, x = weight(network), 1 - plain.floats().flatten(1)
    fit(network, images, loss=squared_norm(network), schedule=one_epoch(images), seed=SEED, validation=images)
    torch.testing.assert_close(weight(network), start - LR * 2 * start @ x.T @ x / len(images))


# ------------------------------------------------------------------------------------------------- held out, averaged


def test_a_share_is_held_out_of_training() -> None:
    images = pictures(8)
    shown, held = held_out(images, 0.25, SEED)
    assert (len(shown), len(held)) == (6, 2)
    together = sorted(image.numpy().tobytes() for part in (shown, held) for image in part.images)
    assert together == sorted(image.numpy().tobytes() for image in images.images)
    network, x = linear(K), shown.floats().flatten(1)
    start = weight(network)
    fit(network, images, loss=squared_norm(network), schedule=one_epoch(shown), seed=SEED, validation=0.25)
    torch.testing.assert_close(weight(network), start - LR * 2 * start @ x.T @ x / len(shown))


def test_images_held_out_apart_are_taken_as_they_are() -> None:
    images, held = pictures(), pictures(2, seed=4)
    assert held_out(images, held, SEED) == (images, held)
    other = Images(torch.zeros((2, 1, 2, 3), dtype=torch.uint8), None, "grey")
    with pytest.raises(InvalidInput, match=r"shape \(1, 2, 3\), training images \(2, 2, 3\); wanted the same"):
        held_out(images, other, SEED)
    with pytest.raises(InvalidInput, match=r"leaves a part empty"):
        held_out(images, 0.01, SEED)


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_a_mean_does_not_depend_on_batches(batch: int) -> None:
    images = pictures(7)
    expected = float(((images.floats().flatten(1).sum(1)) * torch.arange(7)).mean())
    assert mean_over(images, lambda x, index: x.flatten(1).sum(1) * index, batch) == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------------------------- autoencoders


def autoencoder() -> Autoencoder:
    """x -> W V x."""
    decoder = nn.Sequential(nn.Linear(D_Z, D, bias=False), nn.Unflatten(1, SHAPE))
    with torch.no_grad():
        decoder[0].weight.copy_(0.1 * torch.randn((D, D_Z), generator=torch.Generator().manual_seed(2)))  # pyright: ignore
    return Autoencoder(linear(D_Z), decoder, SHAPE)


def test_stage_1_steps_down_the_squared_error_of_an_image() -> None:
    """e = W V x − x: the gradient is 2 e (Vx)ᵀ for W and 2 Wᵀ e xᵀ for V, averaged over images, not over pixels."""
    images, start = pictures(), autoencoder()
    before = copy.deepcopy(start.state_dict())
    v, w = (before[name] for name in ("encoder.1.weight", "decoder.0.weight"))
    x = images.floats().flatten(1).T  # (d, n)
    error = w @ v @ x - x
    trained = pretrain_autoencoder(images, start, schedule=one_epoch(images), seed=SEED, validation=images)
    after = trained.state_dict()
    torch.testing.assert_close(after["decoder.0.weight"], w - LR * 2 * error @ (v @ x).T / len(images))
    torch.testing.assert_close(after["encoder.1.weight"], v - LR * 2 * w.T @ error @ x.T / len(images))
    assert trained is not start
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_stage_1_selects_on_the_squared_error(tmp_path: Path) -> None:
    images, held = pictures(), pictures(5, seed=3)
    settings: dict[str, Any] = {"schedule": one_epoch(images), "seed": SEED, "out": tmp_path}
    trained = pretrain_autoencoder(images, autoencoder(), validation=held, **settings)
    (row,) = (json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    with torch.no_grad():
        error = (trained(held.floats()) - held.floats()).flatten(1).square().sum(1).mean()
    assert row["validation"] == pytest.approx(-float(error), rel=1e-5)
    assert row["queries"] == 0


# -------------------------------------------------------------------------------------------------------- classifiers


def normalised(images: Images) -> Tensor:
    """(x − mean) / std of each channel, written out: (n, d)."""
    x = images.floats()
    return torch.stack([(x[:, 0] - 0.5) / 0.1, (x[:, 1] - 0.25) / 0.2], dim=1).flatten(1)


def cross_entropy(w: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Minus the log of the softmax at the label: (n,)."""
    logits = x @ w.T
    return logits.exp().sum(1).log() - logits.gather(1, labels[:, None]).squeeze(1)


def test_a_classifier_steps_down_cross_entropy_on_normalised_pixels() -> None:
    """The gradient of a softmax regression is (p − y) x̃ᵀ, where x̃ is what the box will make of the pixels."""
    images, network = pictures(), linear(K)
    start, x, labels = weight(network), normalised(images), images.labels
    assert labels is not None
    p = (x @ start.T).softmax(1)
    gradient = (p - torch.eye(K)[labels]).T @ x / len(images)
    settings: dict[str, Any] = {"schedule": one_epoch(images), "seed": SEED, "validation": images}
    trained = train_classifier(images, network, spec=SPEC, **settings)
    torch.testing.assert_close(weight(trained), start - LR * gradient)
    assert torch.equal(weight(network), start)  # a copy was trained
    box = as_blackbox(trained, "logits", mean=SPEC.mean, std=SPEC.std)
    torch.testing.assert_close(box(images.floats()), x @ weight(trained).T)


def test_without_a_spec_pixels_are_taken_as_they_are() -> None:
    images, network = pictures(), linear(K)
    start, x, labels = weight(network), images.floats().flatten(1), images.labels
    assert labels is not None
    gradient = ((x @ start.T).softmax(1) - torch.eye(K)[labels]).T @ x / len(images)
    trained = train_classifier(images, network, schedule=one_epoch(images), seed=SEED, validation=images)
    torch.testing.assert_close(weight(trained), start - LR * gradient)


def test_labels_follow_their_images_through_batches_and_validation(tmp_path: Path) -> None:
    images, held, network = pictures(), pictures(5, seed=3), linear(K)
    assert images.labels is not None
    assert held.labels is not None
    w, velocity = weight(network), torch.zeros(K, D)
    for index in torch.randperm(len(images), generator=seeds.generator(SEED, "order", 0)).split(2):
        x, y = normalised(images)[index], torch.eye(K)[images.labels[index]]
        velocity = MOMENTUM * velocity + ((x @ w.T).softmax(1) - y).T @ x / 2
        w = w - 0.001 * velocity
    schedule = one_epoch(images, lr=0.001, batches=3)
    settings: dict[str, Any] = {"schedule": schedule, "seed": SEED, "spec": SPEC, "out": tmp_path}
    trained = train_classifier(images, network, validation=held, **settings)
    (row,) = (json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    after = float(cross_entropy(w, normalised(held), held.labels).mean())
    before = float(cross_entropy(weight(network), normalised(held), held.labels).mean())
    assert row["validation"] == pytest.approx(-after, rel=1e-4)
    torch.testing.assert_close(weight(trained), w if after < before else weight(network))


def test_a_classifier_wants_labels() -> None:
    plain = pictures()
    images = Images(plain.images, None, "unnamed")
    with pytest.raises(InvalidInput, match=r"unnamed has no labels; wanted labelled images to train a classifier"):
        train_classifier(images, linear(K), schedule=one_epoch(images), seed=SEED, validation=plain)


# ------------------------------------------------------------------------------------------------------------ resuming


class Stopped(Exception):
    pass


def stopping(after: int) -> Callable[[int, int, str], None]:
    def report(done: int, total: int, text: str) -> None:
        if done == after:
            raise Stopped

    return report


LONG = Schedule((Phase(2, 0.01), Phase(2, 0.02, "sgd")), 2)  # 12 steps


@pytest.mark.parametrize("after", [1, 4, 6, 9])
def test_interrupted_training_ends_at_the_same_weights(tmp_path: Path, after: int) -> None:
    """At whichever step it is stopped, in either phase: to the bit."""
    images = pictures()
    settings: dict[str, Any] = {"schedule": LONG, "seed": SEED, "validation": images, "augmentation": "flips"}
    for train, start in ((pretrain_autoencoder, autoencoder()), (train_classifier, linear(K))):
        out = tmp_path / train.__name__
        whole = train(images, start, **settings)  # pyright: ignore[reportArgumentType]
        with pytest.raises(Stopped):
            train(images, start, out=out, progress=stopping(after), **settings)  # pyright: ignore[reportArgumentType]
        resumed = train(images, start, out=out, **settings)  # pyright: ignore[reportArgumentType]
        assert module_digest(resumed) == module_digest(whole)
        assert module_digest(resumed) != module_digest(start)


def test_finished_training_takes_no_step_again(tmp_path: Path) -> None:
    images, network = pictures(), linear(K)
    settings: dict[str, Any] = {"schedule": LONG, "seed": SEED, "validation": images, "out": tmp_path}
    first = train_classifier(images, network, **settings)
    again = train_classifier(images, network, progress=stopping(1), **settings)
    assert torch.equal(weight(first), weight(again))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"spec": BoxSpec("logits", mean=(0.5, 0.5), std=(0.1, 0.2))}, "box"),
        ({"seed": SEED + 1}, "seed"),
        ({"augmentation": "flip"}, "augmentation"),
        ({"schedule": Schedule((Phase(2, 0.01),), 2)}, "schedule"),
        ({"validation": pictures(4, seed=7)}, "validation"),
        ({"images": pictures(seed=7)}, "images"),
        ({"network": linear(K, seed=7)}, "start"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_work_of_other_settings_is_left_alone(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    """A folder goes on under the settings that it began with, the box's declaration among them, or not at all."""
    usual: dict[str, Any] = {"images": pictures(), "network": linear(K), "spec": SPEC, "schedule": LONG, "seed": SEED}
    usual |= {"validation": pictures(4, seed=3), "augmentation": "none", "out": tmp_path}
    train_classifier(**usual)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ConfigMismatch, match=rf"holds work of another configuration: .*\b{named}(\.\S+)? is "):
        train_classifier(**(usual | change))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_what_a_loss_depends_on_is_part_of_the_settings(tmp_path: Path) -> None:
    images, network = pictures(), linear(K)
    settings: dict[str, Any] = {"schedule": one_epoch(images), "seed": SEED, "validation": images, "out": tmp_path}
    fit(copy.deepcopy(network), images, loss=squared_norm(network), facts={"measurement": "a"}, **settings)
    with pytest.raises(ConfigMismatch, match=r"measurement is 'a' there and 'b' here"):
        fit(copy.deepcopy(network), images, loss=squared_norm(network), facts={"measurement": "b"}, **settings)
