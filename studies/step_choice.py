"""How good is the step that `choose_step` picks from a few hundred queries, beside the best and worst it could pick?

    python studies/step_choice.py [--write] [--tiny]

On scikit-learn's digits, at 64 noisy test images (sigma = 0.25), once in the 32 coordinates of the autoencoder of
studies/perceptron.py (`z`) and once in the 64 pixels themselves. Boxes: a small convolutional network in float32; the
same with its logits rounded to bfloat16, computing in bfloat16, and behind 256 grey levels (an 8-bit endpoint) and 17
(all that the digits have); a random forest; and the network again, answering with labels alone. For CGE, and for
Orthogonal with q = d (directions on the sphere; q = d leaves only the error that the step makes), forward and
central: the cosine of the estimate with the truth at each of the 7 steps that are tried, averaged over images, and at
the step that is chosen, over 5 seeds.

Truth: autograd in float64, without rounding. For the forest and the labels, whose gradient is zero wherever it exists,
the slope of the loss averaged over the sphere of the noise's radius (`reference_halves`: cosine between its halves).
`regret` is the best cosine of the 7 minus that at the chosen step, the mean over seeds and the worst.

`precision`: at each step, the error of differences under bfloat16 arithmetic as `precision_is_safe` measures it.

Result: the chosen step is within 0.05 of the best of the 7 in 50 of the 56 lines, where the worst step would cost 0.2
to 0.9. Averaged over a box's 8 lines it costs at most 0.02, and 0.06 with 17 levels. The lines that miss: three with 17
levels, the forest behind the decoder (CGE, central), and forward differences on the sphere for labels and for bfloat16.
Hardware and versions are printed with the table; --write puts all into studies/results/step_choice.json.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn
from torch.nn import functional as F

import certibox as cb
import perceptron
from certibox import report, seeds
from certibox.commands import demo
from certibox.defense.pipeline import RobustPipeline
from certibox.estimators.step_size import StepChoice, choose_step, precision_is_safe
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.storage.files import read_json, write_json_atomic
from certibox.training import losses
from certibox.training.stability import StabilityObjective
from gradient_quality import SIGMA, THREADS, Setting, smoothed_slope, true_gradient

RESULT = Path(__file__).parent / "results" / "step_choice.json"
NAMES = {
    "float32": "conv net, float32",
    "bfloat16 output": "its logits in bfloat16",
    "bfloat16": "computing in bfloat16",
    "256 levels": "behind 256 levels",
    "17 levels": "behind 17 levels",
    "forest": "random forest",
    "labels": "conv net, labels only",
}


@dataclass(frozen=True)
class Size:
    """How large the study is."""

    points: int
    """Number of test images at which a step is chosen."""
    seeds: int
    """Number of choices, each from directions of its own."""
    reference: int
    """Number of random directions of the reference of boxes without a gradient."""
    epochs: int
    """Number of epochs of the network."""
    settings: demo.Settings
    """Settings of the autoencoder."""


FULL = Size(64, 5, 2048, 20, perceptron.SETTINGS)
TINY = Size(2, 1, 64, 1, replace(FULL.settings, autoencoder_epochs=1))


class Rounded(nn.Module):
    """A network whose logits, or whose whole arithmetic, are in bfloat16."""

    def __init__(self, network: nn.Module, arithmetic: bool) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).bfloat16() if arithmetic else network
        self.arithmetic = arithmetic

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.bfloat16() if self.arithmetic else x).bfloat16().float()


class Labels(nn.Module):
    """A network that tells its labels alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).argmax(1)


def trained_network(train: cb.Images, epochs: int) -> nn.Module:
    """Three convolutions and a linear layer, a few seconds of Adam."""
    torch.manual_seed(0)
    x, y = train.floats(), train.labels
    assert y is not None
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(x[index]), y[index]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def boxes(network: nn.Module, train: cb.Images) -> dict[str, cb.QueryClient]:
    """Every box behind its meter."""
    assert train.labels is not None
    forest = RandomForestClassifier(100, random_state=0).fit(train.floats().flatten(1).numpy(), train.labels.numpy())
    rounded, low = Rounded(network, arithmetic=False), Rounded(network, arithmetic=True)
    made = {
        "float32": cb.as_blackbox(network, outputs="logits", batch_size=8192),
        "bfloat16 output": cb.as_blackbox(rounded, outputs="logits", batch_size=8192),
        "bfloat16": cb.as_blackbox(low, outputs="logits", batch_size=8192),
        "256 levels": cb.as_blackbox(network, outputs="logits", levels=256, batch_size=8192),
        "17 levels": cb.as_blackbox(network, outputs="logits", levels=17, batch_size=8192),
        "forest": cb.as_blackbox(forest, outputs="probabilities", clip=False, batch_size=8192),
        "labels": cb.as_blackbox(Labels(network), outputs="labels", num_classes=10, batch_size=8192),
    }
    return {name: cb.QueryClient(box) for name, box in made.items()}


def settings(size: Size) -> tuple[list[Setting], dict[str, Any]]:
    """Every box in both spaces, with its truth; and facts about them."""
    train, validation, test = (cb.load_images("digits", split) for split in ("train", "validation", "test"))
    network = trained_network(train, size.epochs)
    autoencoder = demo.train_stage1(size.settings, train, validation, 0)
    x = test.floats(slice(0, size.points))
    noisy = x + SIGMA * torch.randn(x.shape, generator=seeds.generator(0, "noise"))
    found, halves = [], {}
    for name, client in boxes(network, train).items():
        target = losses.targets(client(x), client.spec.outputs, hard=True).clone()
        for space, pipeline in {"z": RobustPipeline(None, autoencoder), "pixels": RobustPipeline(None)}.items():
            objective = StabilityObjective(pipeline, client, losses.LOSSES[client.spec.outputs], target, test.shape)
            with torch.no_grad():
                z, clean = pipeline.embed(noisy), pipeline.embed(x)
            if name in ("forest", "labels"):
                radius = float((z - clean).square().mean() * z.shape[1]) ** 0.5  # of the sphere on which the noise lies
                truth, halves[f"{name}, {space}"] = smoothed_slope(objective, z, radius, size.reference)
            else:
                truth = true_gradient(pipeline, network, z, target, test.shape)
            found.append(Setting(space, name, client, objective, z, truth))
    assert test.labels is not None
    right = (network(test.floats()).argmax(1) == test.labels).double().mean().item()
    return found, {"box_accuracy": round(right, 3), "reference_halves": halves}


def row(setting: Setting, count: int, coordinates: bool, central: bool) -> dict[str, Any]:
    """One line of the table: the cosine at every step that is tried, and at the steps chosen with `count` seeds."""
    before = setting.client.queries
    choices = [
        choose_step(setting.objective, setting.z, seeds.generator(seed, "step"), coordinates=coordinates,
                    central=central)
        for seed in range(count)
    ]  # fmt: skip
    spent = (setting.client.queries - before) / count
    assert spent == choices[0].queries, (spent, choices[0].queries)
    cosines = {step.mu: cosine(setting, step.mu, coordinates, central) for step in choices[0].evidence}
    chosen = [cosines[choice.mu] for choice in choices]
    best = max(cosines.values())
    return {
        "space": setting.space,
        "box": setting.box,
        "estimator": "CGE" if coordinates else "Orthogonal",
        "difference": "central" if central else "forward",
        "queries": choices[0].queries,
        "cosine": round(sum(chosen) / count, 3),
        "best": round(best, 3),
        "worst": round(min(cosines.values()), 3),
        "regret": round(best - sum(chosen) / count, 3),
        "worst_regret": round(best - min(chosen), 3),
        "agreed": sum(choice.agreed for choice in choices),
        "chosen": [round(choice.mu, 5) for choice in choices],
        "steps": [step(choices, index, value) for index, value in enumerate(cosines.values())],
    }


def cosine(setting: Setting, mu: float, coordinates: bool, central: bool) -> float:
    """Mean over images of the cosine of a whole estimate with the truth."""
    estimator = cb.CGE(mu, central) if coordinates else cb.Orthogonal(setting.z.shape[1], mu, central)
    estimate = estimator.estimate(setting.objective, setting.z, seeds.generator(0, "directions")).double()
    return F.cosine_similarity(estimate, setting.truth, dim=1).mean().item()


def step(choices: list[StepChoice], index: int, value: float) -> dict[str, float]:
    """A step tried: its cosine, and what the evidence said of it, on average over seeds."""
    rows = [choice.evidence[index] for choice in choices]
    return {
        "mu": round(rows[0].mu, 5),
        "cosine": round(value, 3),
        "disagreement": round(sum(found.disagreement for found in rows) / len(rows), 3),
        "zeros": round(sum(found.zeros for found in rows) / len(rows), 3),
    }


def precision(found: list[Setting], table: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Central differences along the axes of z, in float32 and in bfloat16 arithmetic."""
    full, fast = (next(s for s in found if (s.space, s.box) == ("z", box)) for box in ("float32", "bfloat16"))
    like = next(
        line for line in table if (line["space"], line["box"], line["difference"]) == ("z", "bfloat16", "central")
    )
    for tried in like["steps"]:
        check = precision_is_safe(full.objective, fast.objective, full.z, tried["mu"], seeds.generator(0, "precision"),
                                  coordinates=True, central=True)  # fmt: skip
        yield {"mu": tried["mu"], "error": round(check.error, 4), "safe": check.safe}


def table(path: Path = RESULT) -> str:
    """Markdown: cosine at the chosen step, and in brackets the worst and the best of the steps tried."""
    found = read_json(path)["rows"]
    kinds = [(e, d) for e in ("CGE", "Orthogonal") for d in ("forward", "central")]
    lines = [["box", *(", ".join(kind) for kind in kinds)]]
    for space, where in (("z", "behind the decoder"), ("pixels", "pixels")):
        for box, name in NAMES.items():
            here = {(r["estimator"], r["difference"]): r for r in found if (r["space"], r["box"]) == (space, box)}
            cells = [f"{here[k]['cosine']:.2f} [{here[k]['worst']:.2f}, {here[k]['best']:.2f}]" for k in kinds]
            lines.append([f"{name}, {where}", *cells])
    return report.markdown(lines, rule="|---|" + "---:|" * len(kinds))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every line and print it."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help="write the result")
    options = options.parse_args(arguments)
    torch.set_num_threads(THREADS)
    started, size = time.process_time(), TINY if options.tiny else FULL
    found, facts = settings(size)
    rows = []
    print(f"{'space':8}{'box':17}{'estimator':12}{'diff.':9}{'queries':>8}{'cosine':>8}{'best':>7}{'worst':>7}"
          f"{'regret':>8}{'max':>7}  chosen")  # fmt: skip
    for setting in found:
        for coordinates in (True, False):
            for central in (False, True):
                rows.append(line := row(setting, size.seeds, coordinates, central))
                print(
                    f"{line['space']:8}{line['box']:17}{line['estimator']:12}{line['difference']:9}"
                    f"{line['queries']:8}{line['cosine']:8.3f}{line['best']:7.3f}{line['worst']:7.3f}"
                    f"{line['regret']:8.3f}{line['worst_regret']:7.3f}  {line['chosen']}"
                )
    facts |= {
        "precision": list(precision(found, rows)),
        "points": size.points,
        "seeds": size.seeds,
        "sigma": SIGMA,
        "cpu_seconds": round(time.process_time() - started),
        "hardware": hardware(),
        "versions": versions("scikit-learn"),
    }
    for name, value in facts.items():
        print(f"{name:20} {value}")
    if options.write:
        write_json_atomic(destination(options, RESULT), facts | {"rows": rows})


if __name__ == "__main__":
    main()
