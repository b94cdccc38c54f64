"""How good is the step that `choose_step` picks from a few hundred queries, beside the best and worst it could pick?

    python benchmarks/step_choice.py [--write]

On scikit-learn's digits, at 64 noisy test images (sigma = 0.25), once in the 32 coordinates of the demo's autoencoder
(`z`) and once in the 64 pixels themselves. Boxes: a small convolutional network in float32; the same with its logits
rounded to bfloat16, computing in bfloat16, and behind 256 grey levels (an 8-bit endpoint) and 17 (all that the digits
have); a random forest; and the network again, answering with labels alone. For CGE, and for Orthogonal with q = d
(directions on the sphere; q = d leaves only the error that the step makes), forward and central: the cosine of the
estimate with the truth at each of the 7 steps that are tried, averaged over images, and at the step that is chosen,
over 5 seeds.

Truth: autograd in float64, without rounding. For the forest and the labels, whose gradient is zero wherever it exists,
the slope of the loss averaged over the sphere of the noise's radius (`reference_halves`: cosine between its halves).
`regret` is the best cosine of the 7 minus that at the chosen step, the mean over seeds and the worst.

`precision`: at each step, the error of differences under bfloat16 arithmetic as `precision_is_safe` measures it.

Result: the chosen step is within 0.05 of the best of the 7 in 50 of the 56 lines, where the worst step would cost 0.2
to 0.9. Averaged over a box's 8 lines it costs at most 0.02, and 0.06 with 17 levels. The lines that miss: three with 17
levels, the forest behind the decoder (CGE, central), and forward differences on the sphere for labels and for bfloat16.
n, hardware and versions are printed with the table, and stand in results/step_choice.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sklearn
import torch
from gradient_quality import SIGMA, THREADS, Setting, processor, true_gradient
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn
from torch.nn import functional as F

import certibox as cb
from certibox import __version__, seeds
from certibox.commands import demo
from certibox.defense.pipeline import RobustPipeline
from certibox.estimators.step_size import StepChoice, choose_step, precision_is_safe
from certibox.storage.files import write_json_atomic
from certibox.training import losses
from certibox.training.stability import StabilityObjective

POINTS, SEEDS, REFERENCE = 64, 5, 2048
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


class Rounded(nn.Module):
    """A network whose logits, or whose whole arithmetic, are in bfloat16."""

    def __init__(self, network: nn.Module, arithmetic: bool) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).bfloat16() if arithmetic else network
        self.arithmetic = arithmetic

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.bfloat16() if self.arithmetic else x).bfloat16().float()


class Labels(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).argmax(1)


def trained_network(shown: cb.Images) -> nn.Module:
    """Three convolutions and a linear layer, a few seconds of Adam."""
    torch.manual_seed(0)
    x, y = shown.floats(), shown.labels
    assert y is not None
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(20):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(x[index]), y[index]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def boxes(network: nn.Module, shown: cb.Images) -> dict[str, cb.QueryClient]:
    assert shown.labels is not None
    forest = RandomForestClassifier(100, random_state=0).fit(shown.floats().flatten(1).numpy(), shown.labels.numpy())
    rounded, low = Rounded(network, arithmetic=False), Rounded(network, arithmetic=True)
    made = {
        "float32": cb.as_blackbox(network, outputs="logits", batch_size=8192),
        "bfloat16 output": cb.as_blackbox(rounded, outputs="logits", batch_size=8192),
        "bfloat16": cb.as_blackbox(low, outputs="logits", batch_size=8192),
        "256 levels": cb.as_blackbox(network, outputs="logits", levels=256, batch_size=8192),
        "17 levels": cb.as_blackbox(network, outputs="logits", levels=17, batch_size=8192),
        "forest": cb.as_blackbox(forest, outputs="probabilities", batch_size=8192),
        "labels": cb.as_blackbox(Labels(network), outputs="labels", num_classes=10, batch_size=8192),
    }
    return {name: cb.QueryClient(box) for name, box in made.items()}


def settings() -> tuple[list[Setting], dict[str, Any]]:
    """Every box in both spaces, with its truth; and facts about them."""
    shown, validation = cb.load_images("digits", "train"), cb.load_images("digits", "validation")
    held = cb.load_images("digits", "test")
    network = trained_network(shown)
    autoencoder = demo.train_stage1(demo.settings(), shown, validation, 0)
    x = held.floats(slice(0, POINTS))
    noisy = x + SIGMA * torch.randn(x.shape, generator=seeds.generator(0, "noise"))
    found, halves = [], {}
    for name, client in boxes(network, shown).items():
        target = losses.targets(client(x), client.spec.outputs, hard=True).clone()
        for space, pipeline in {"z": RobustPipeline(None, autoencoder), "pixels": RobustPipeline(None)}.items():
            objective = StabilityObjective(pipeline, client, losses.LOSSES[client.spec.outputs], target, held.shape)
            with torch.no_grad():
                z, clean = pipeline.embed(noisy), pipeline.embed(x)
            if name in ("forest", "labels"):
                truth, halves[f"{name}, {space}"] = smoothed_slope(objective, z, float((z - clean).square().mean()))
            else:
                truth = true_gradient(pipeline, network, z, target, held.shape)
            found.append(Setting(space, name, client, objective, z, truth))
    right = (network(held.floats()).argmax(1) == held.labels).double().mean().item()  # pyright: ignore
    return found, {"box_accuracy": round(right, 3), "reference_halves": halves}


def smoothed_slope(objective: StabilityObjective, z: Tensor, variance: float) -> tuple[Tensor, float]:
    """Gradient of the loss averaged over the sphere on which the noise lies, (b, d), and how sure it is."""
    around = cb.RGE(REFERENCE, (variance * z.shape[1]) ** 0.5, central=True)
    first, second = (around.estimate(objective, z, seeds.generator(0, "reference", half)).double() for half in (0, 1))
    return (first + second) / 2, round(F.cosine_similarity(first, second, dim=1).mean().item(), 3)


def row(setting: Setting, coordinates: bool, central: bool) -> dict[str, Any]:
    """One line of the table: the cosine at every step that is tried, and at the steps chosen."""
    before = setting.client.queries
    choices = [
        choose_step(setting.objective, setting.z, seeds.generator(seed, "step"), coordinates=coordinates,
                    central=central)
        for seed in range(SEEDS)
    ]  # fmt: skip
    spent = (setting.client.queries - before) / SEEDS
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
        "cosine": round(sum(chosen) / SEEDS, 3),
        "best": round(best, 3),
        "worst": round(min(cosines.values()), 3),
        "regret": round(best - sum(chosen) / SEEDS, 3),
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
        "disagreement": round(sum(found.disagreement for found in rows) / SEEDS, 3),
        "zeros": round(sum(found.zeros for found in rows) / SEEDS, 3),
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


def table() -> str:
    """Markdown: cosine at the chosen step, and in brackets the worst and the best of the steps tried."""
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    kinds = [(e, d) for e in ("CGE", "Orthogonal") for d in ("forward", "central")]
    lines = ["| box | " + " | ".join(", ".join(kind) for kind in kinds) + " |", "|---|" + "---:|" * len(kinds)]
    for space, where in (("z", "behind the decoder"), ("pixels", "pixels")):
        for box, name in NAMES.items():
            here = {(r["estimator"], r["difference"]): r for r in rows if (r["space"], r["box"]) == (space, box)}
            cells = [f"{here[k]['cosine']:.2f} [{here[k]['worst']:.2f}, {here[k]['best']:.2f}]" for k in kinds]
            lines.append(f"| {name}, {where} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="The chosen step beside the best and the worst of those tried.")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.parent.name}/{RESULT.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    started = time.process_time()
    found, facts = settings()
    rows = []
    print(f"{'space':8}{'box':17}{'estimator':12}{'diff.':9}{'queries':>8}{'cosine':>8}{'best':>7}{'worst':>7}"
          f"{'regret':>8}{'max':>7}  chosen")  # fmt: skip
    for setting in found:
        for coordinates in (True, False):
            for central in (False, True):
                rows.append(line := row(setting, coordinates, central))
                print(
                    f"{line['space']:8}{line['box']:17}{line['estimator']:12}{line['difference']:9}"
                    f"{line['queries']:8}{line['cosine']:8.3f}{line['best']:7.3f}{line['worst']:7.3f}"
                    f"{line['regret']:8.3f}{line['worst_regret']:7.3f}  {line['chosen']}"
                )
    facts |= {
        "precision": list(precision(found, rows)),
        "points": POINTS,
        "seeds": SEEDS,
        "sigma": SIGMA,
        "cpu_seconds": round(time.process_time() - started),
        "hardware": f"{processor()}, {THREADS} thread",
        "versions": {
            "certibox": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
    for name, value in facts.items():
        print(f"{name:20} {value}")
    if arguments.write:
        write_json_atomic(RESULT, facts | {"rows": rows})


if __name__ == "__main__":
    main()
