"""How close an estimated gradient comes to the true one, and what the step and the box's precision do to it.

    python studies/gradient_quality.py --data FOLDER [--write] [--tiny]

FOLDER (or a Hugging Face name) holds CIFAR-10. A ResNet-20 box and the AE-192 in front of it are first trained briefly
on 5,000 of its training images, without a defense: seconds, not accuracy, are the point. Then, at 12 test images:

1. `z`: cosine of each estimate of ∇_z ℓ with autograd in float64, at z = ψ_enc(x + δ), d_z = 192, where training begins
   (the denoiser starts as the identity); ℓ is the cross-entropy of the box with its own answer to x. The box computes
   in float32, once as it is and once behind an 8-bit grid (256 levels).
2. `live z`: the same over the coordinates that the encoder's ReLU lets through, for the queries that those need.
3. `pixels`: the same at the decoded image ψ_dec(z), d = 3,072: the bottleneck taken away.
4. `staircase`: a random forest on scikit-learn's digits, d = 64. Its gradient is zero wherever it exists, so the truth
   is the gradient of the loss averaged over the sphere of radius σ√d around x, where the noise lies. It is itself an
   estimate; the cosine between its halves is printed.

`norm` is the median length of the estimate over that of the truth, `null` the share of its coordinates that are exactly
0, `±` the standard error of the mean cosine over images. Queries are per image and estimate, from the client's meter.
Result: at z, in float32, the step hardly matters and CGE and Orthogonal with q = d_z are exact; behind 256 levels only
steps of 0.5 keep most of the gradient; on a staircase CGE at 0.5 does, and Orthogonal with steps as long as the noise.
Hardware and versions are printed with the table; --write puts all into studies/results/gradient_quality.json.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn
from torch.nn import functional as F

import certibox as cb
from certibox import networks, report, seeds
from certibox.defense.pipeline import RobustPipeline
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.storage.files import read_json, write_json_atomic
from certibox.training import losses
from certibox.training.stability import StabilityObjective

SIGMA, THREADS = 0.25, 1
STEPS = (0.005, 0.05, 0.5)
RESULT = Path(__file__).parent / "results" / "gradient_quality.json"
Estimator = cb.RGE | cb.Orthogonal | cb.CGE


@dataclass(frozen=True)
class Size:
    """How large the study is."""

    points: int
    """Number of test images at which gradients are estimated."""
    images: int
    """Number of training images of box and autoencoder."""
    depth: int
    """Depth of the box, a residual network."""
    box_epochs: int
    """Number of epochs of the box."""
    autoencoder_epochs: int
    """Number of epochs of the autoencoder."""
    reference: int
    """Number of random directions of the staircase's reference."""
    steps: tuple[float, ...]
    """Steps of the differences."""


FULL = Size(12, 5_000, 20, 6, 20, 8_192, STEPS)
TINY = Size(2, 16, 8, 1, 1, 512, STEPS[1:2])


@dataclass(frozen=True)
class Setting:
    """Where gradients are estimated: points z (b, d), the loss by queries there, and the truth (b, d)."""

    space: str
    box: str
    client: cb.QueryClient
    objective: StabilityObjective
    z: Tensor
    truth: Tensor
    live: Tensor | None = None


def grid(steps: tuple[float, ...], directions: tuple[int, ...], both: bool = True) -> Iterator[Estimator]:
    """CGE, and RGE and Orthogonal with each number of directions, at every step; forward, or forward and central."""
    for mu in steps:
        for central in (False, True) if both else (False,):
            for q in directions:
                yield cb.RGE(q, mu, central)
                yield cb.Orthogonal(q, mu, central)
            yield cb.CGE(mu, central)


def row(setting: Setting, estimator: Estimator) -> dict[str, Any]:
    """One line of the table: the estimate against the truth, over all points."""
    before = setting.client.queries
    generator = seeds.generator(0, "directions")
    estimate = estimator.estimate(setting.objective, setting.z, generator, setting.live).double()
    spent = (setting.client.queries - before) / len(setting.z)
    cosine = F.cosine_similarity(estimate, setting.truth, dim=1)
    return {
        "space": setting.space,
        "box": setting.box,
        "estimator": type(estimator).__name__,
        "q": getattr(estimator, "q", None),
        "difference": "central" if estimator.central else "forward",
        "mu": estimator.mu,
        "queries": round(spent, 1),
        "cosine": round(cosine.mean().item(), 3),
        "standard_error": round(cosine.std().item() / len(cosine) ** 0.5, 3),
        "norm": round((estimate.norm(dim=1) / setting.truth.norm(dim=1)).median().item(), 3),
        "null": round((estimate == 0).double().mean().item(), 3),
    }


def trained_box(size: Size, images: cb.Images) -> nn.Module:
    """The box's network after a few epochs of Adam."""
    torch.manual_seed(0)
    network, x, y = networks.cifar_resnet(size.depth), images.floats(), images.labels
    assert y is not None
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.Adam(network.parameters())
    steps = size.box_epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(size.box_epochs):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(x[index].contiguous(memory_format=torch.channels_last)), y[index]).backward()
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def true_gradient(pipeline: RobustPipeline, network: nn.Module, z: Tensor, target: Tensor, shape: Any) -> Tensor:
    """Autograd in float64, (b, d)."""
    exact, point = copy.deepcopy(pipeline).double(), z.double().requires_grad_(True)
    outputs = copy.deepcopy(network).double()(exact.images(point, shape))
    return torch.autograd.grad(losses.logits_loss(outputs, target).sum(), point)[0]


def cifar_settings(source: str, size: Size) -> tuple[list[Setting], dict[str, Any]]:
    """Points behind the bottleneck and in pixels, of a box in float32 and behind an 8-bit grid; and facts."""
    train, test = (cb.load_images(source, split=split, limit=size.images) for split in ("train", "test"))
    labels = test.labels
    assert labels is not None
    network = trained_box(size, train)
    torch.manual_seed(1)
    schedule = cb.one_cycle(size.autoencoder_epochs, 2e-3, 64)
    autoencoder = cb.pretrain_autoencoder(train, networks.AUTOENCODERS["ae-192"](), schedule=schedule, seed=0)
    x = test.floats(slice(0, size.points))
    noise = torch.randn(x.shape, generator=seeds.generator(0, "noise"))
    with torch.inference_mode():
        target = network(x).argmax(1)
        correct = torch.cat(
            [network(test.floats(index)).argmax(1) for index in torch.arange(len(test))[:1000].split(250)]
        )
        z = autoencoder.encode(x + SIGMA * noise)
        decoded = autoencoder.decode(z)
        reconstruction = F.mse_loss(autoencoder(x), x).item()
    z, decoded, target = z.clone(), decoded.flatten(1).clone(), target.clone()
    bottleneck, pixels, settings = RobustPipeline(None, autoencoder), RobustPipeline(None), []
    for name, levels in (("float32", None), ("256 levels", 256)):
        client = cb.QueryClient(cb.as_blackbox(network, outputs="logits", levels=levels))
        for space, pipeline, point in (("z", bottleneck, z), ("pixels", pixels, decoded)):
            objective = StabilityObjective(pipeline, client, losses.logits_loss, target, test.shape)
            truth = true_gradient(pipeline, network, point, target, test.shape)
            settings.append(Setting(space, name, client, objective, point, truth))
            if space == "z":
                settings.append(Setting("live z", name, client, objective, point, truth * (z > 0), z > 0))
    facts = {
        "box_accuracy": round((correct == labels[:1000]).double().mean().item(), 3),
        "reconstruction_mse": round(reconstruction, 4),
        "live_coordinates": round((z > 0).double().sum(1).mean().item(), 1),
    }
    return settings, facts


def staircase_setting(size: Size) -> tuple[Setting, dict[str, Any]]:
    """Points of a random forest, and how far the halves of the reference agree."""
    train, test = cb.load_images("digits", "train"), cb.load_images("digits", "test")
    assert train.labels is not None
    forest = RandomForestClassifier(100, random_state=0).fit(train.floats().flatten(1).numpy(), train.labels.numpy())
    client = cb.QueryClient(cb.as_blackbox(forest, outputs="probabilities", clip=False, batch_size=8192))
    x = test.floats(slice(0, size.points))
    target = client(x).argmax(1)
    objective = StabilityObjective(RobustPipeline(None), client, losses.probabilities_loss, target, test.shape)
    z = x.flatten(1)
    truth, agreement = smoothed_slope(objective, z, SIGMA * z.shape[1] ** 0.5, size.reference)
    setting = Setting("staircase", "random forest", client, objective, z, truth)
    return setting, {"staircase_reference_halves": agreement}


def smoothed_slope(objective: StabilityObjective, z: Tensor, radius: float, directions: int) -> tuple[Tensor, float]:
    """Gradient (b, d) of the loss averaged over the sphere of that radius around z; and the cosine of its halves."""
    around = cb.RGE(directions, radius, central=True)
    first, second = (around.estimate(objective, z, seeds.generator(0, "reference", half)).double() for half in (0, 1))
    return (first + second) / 2, round(F.cosine_similarity(first, second, dim=1).mean().item(), 3)


def rows(settings: list[Setting], steps: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    """Every line of the table."""
    for setting in settings:
        if setting.space == "live z":
            estimators = grid((steps[len(steps) // 2],), (20, 100), both=False)
        elif setting.space == "pixels":
            estimators = (cb.RGE(192, mu, central) for mu in steps for central in (False, True))
        elif setting.space == "staircase":
            estimators = grid((*steps, 2.0), (20, 64))
        else:
            estimators = grid(steps, (20, 100, 192) if setting.box == "float32" else (192,))
        for estimator in estimators:
            yield row(setting, estimator)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every line and print it."""
    options = parser(__doc__)
    options.add_argument("--data", default="cifar10", help="CIFAR-10: a folder with parquet files, or a hub's name")
    options.add_argument("--write", action="store_true", help="write the result")
    options = options.parse_args(arguments)
    torch.set_num_threads(THREADS)
    started, size = time.process_time(), TINY if options.tiny else FULL
    settings, facts = cifar_settings(options.data, size)
    staircase, more = staircase_setting(size)
    print(f"{'space':10}{'box':15}{'estimator':12}{'q':>4} {'diff.':9}{'mu':>6}{'queries':>9}{'cosine':>8}"
          f"{'±':>7}{'norm':>8}{'null':>7}")  # fmt: skip
    found = []
    for line in rows([*settings, staircase], size.steps):
        found.append(line)
        print(
            f"{line['space']:10}{line['box']:15}{line['estimator']:12}{line['q'] or '':>4} {line['difference']:9}"
            f"{line['mu']:6g}{line['queries']:9g}{line['cosine']:8.3f}{line['standard_error']:7.3f}"
            f"{line['norm']:8.3g}{line['null']:7.2f}"
        )
    facts |= more | {
        "data": Path(options.data).name,
        "points": size.points,
        "sigma": SIGMA,
        "train_images": size.images,
        "cpu_seconds": round(time.process_time() - started),
        "hardware": hardware(),
        "versions": versions("scikit-learn"),
    }
    for name, value in facts.items():
        print(f"{name:28} {value}")
    if options.write:
        write_json_atomic(destination(options, RESULT), facts | {"rows": found})


def table(path: Path = RESULT) -> str:
    """Markdown: cosine with the true gradient, a row for each box and estimator, a column for each mu."""
    found = read_json(path)["rows"]
    boxes = {
        ("z", "float32"): "conv net, float32",
        ("z", "256 levels"): "the same, 8-bit endpoint",
        ("staircase", "random forest"): "random forest",
    }
    lines = [["box", "estimator", "queries", *(f"μ = {mu:g}" for mu in STEPS)]]
    for (space, box), name in boxes.items():
        here = [line for line in found if (line["space"], line["box"]) == (space, box)]
        most = max(line["q"] or 0 for line in here)
        kinds = {kind_of(line): line["queries"] for line in here}
        for (estimator, q, difference), queries in kinds.items():
            if q not in (None, most) or (q == most and difference == "central"):
                continue
            same = {line["mu"]: line for line in here if kind_of(line) == (estimator, q, difference)}
            cells = [f"{same[mu]['cosine']:.2f}" if mu in same else "–" for mu in STEPS]
            what = f"{estimator}, {difference}" if q is None else f"{estimator}, q = {q}, {difference}"
            lines.append([name, what, f"{queries:.0f}", *cells])
    return report.markdown(lines, rule="|---|---|---:|---:|---:|---:|")


def kind_of(line: dict[str, Any]) -> tuple[str, int | None, str]:
    """What names an estimator in a line of the result."""
    return line["estimator"], line["q"], line["difference"]


if __name__ == "__main__":
    main()
