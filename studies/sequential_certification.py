"""How many samples sequential certificates take, and how often they are false: exact, on published votes.

    python studies/sequential_certification.py --cohen DIR [--write] [--tiny]

DIR holds the certification logs that Cohen et al. 2019 published for ResNet-110 on 500 CIFAR-10 test images
(`cifar10_resnet110_sigma_0.25.tsv` and `..._0.50.tsv`: idx, label, predict, radius, correct; n = 100,000,
alpha = 0.001). Each radius is turned back into the successes of n whose Clopper–Pearson bound gives it, and their
share is taken as the true p of that image. Nothing is known of abstentions but p <= 1/2 or hardly more: they get
p = 1/2, which takes the most samples.

For every image and rule, the chance of a certificate and the expected samples come from `certibox.forecast`, an exact
recursion; no noise is drawn. Selection: n0 votes, 100 before a fixed n as published and 25 before a rule; they are
counted. All votes that are not for the published class are taken to be for one other class, which makes a wrong
selection as likely as it can be; a wrong selection earns no certificate and takes the samples that the rule needs for
1 − p. Goals, alpha 0.001: at r = sigma and 2 sigma a fifth of n = 10,000's samples at no lower certified accuracy; at
3 sigma at most 8,500 samples and a higher certified accuracy.

False certificates: exact at every p of a grid from 0 to the threshold and just below it (with a tolerance or a grid of
radii: P(bound > p) at every p), beside 100,000 simulated certificates for each rule just below each threshold. The
prior of the e-process and the ratios of looks were chosen, coarsely, on the same 500 rows. One thread; hardware and
versions are printed with the result; `--write` puts all into studies/results/sequential_certification.json.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import beta, binom, binomtest, norm

from certibox import confidence
from certibox.confidence import looks
from certibox.confidence.forecast import forecast
from certibox.confidence.gaussian import Gaussian
from certibox.confidence.sequential import AlphaSpending, EProcess, Rule
from certibox.confidence.stopping import asked
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.report.tables import markdown
from certibox.storage.files import read_json, write_json_atomic

RESULT = Path(__file__).parent / "results" / "sequential_certification.json"
SIGMAS, RATIOS, ALPHA = (0.25, 0.5), (1, 2, 3), 0.001
USUAL = (0.5, 1, 2)  # what `certibox certify` decides by default
PUBLISHED_N, N0_FIXED, N0 = 100_000, 100, 25
SIGNIFICANT = 1e-4
RULES: dict[str, Callable[..., Rule]] = {"e-process": EProcess, "α-spending": AlphaSpending}
Chances = tuple[float, tuple[float, ...]]  # expected samples, chance of each radius


@dataclass(frozen=True)
class Size:
    """How large the study is."""

    caps: tuple[int, ...]
    """Maximum sample sizes of the rules, ascending."""
    fixed: tuple[int, ...]
    """Fixed sample sizes, ascending; the first is what rules are compared with."""
    points: int
    """Number of success probabilities below a threshold at which the chance of a false certificate is computed."""
    simulated: int
    """Number of simulated certificates."""


FULL = Size((10_000, 50_000, 100_000), (10_000, 100_000), 39, 100_000)
TINY = Size((6_000, 8_000), (6_000, 8_000), 2, 1_000)


def votes(path: Path, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """(p, correct) of each published row; p is the share of successes that its radius was computed from."""
    successes = np.arange(1, PUBLISHED_N + 1)
    radii = sigma * norm.ppf(beta.ppf(ALPHA, successes, PUBLISHED_N - successes + 1))
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    nearest = [int(np.abs(radii - float(row["radius"])).argmin()) for row in rows]
    abstained = np.array([int(row["predict"]) < 0 for row in rows])
    return np.where(abstained, 0.5, successes[nearest] / PUBLISHED_N), np.array([int(row["correct"]) for row in rows])


def fixed(n: int, sigma: float, radii: tuple[float, ...], p: float) -> Chances:
    """The certificate at a fixed n."""
    p0s = [confidence.threshold(radius, sigma) for radius in radii]
    return float(n), tuple(float(binom.sf(fewest(n, p0) - 1, n, p)) for p0 in p0s)


@cache
def fewest(n: int, p0: float) -> int:
    """The fewest successes of n whose Clopper–Pearson bound reaches p0: a single look of α-spending."""
    return looks.needed(AlphaSpending(radii=(0.0,)), n, p0, ALPHA)


def by_rule(rule: Rule, n: int, sigma: float, radii: tuple[float, ...], p: float) -> Chances:
    """The certificate of a rule with the maximum n."""
    law = Gaussian(sigma)
    found = forecast(rule, p, n, ALPHA, asked(rule, law), proven=[law.needed_p(radius) for radius in radii])
    return found.samples, found.proven


def expected(
    one: Callable[[float], Chances], n0: int, p: np.ndarray, correct: np.ndarray
) -> tuple[float, tuple[float, ...]]:
    """Mean samples, n0 included, and certified accuracy at each radius, over all images and selections."""
    samples, accuracy = [], []
    values, counts = np.unique(np.stack([p, correct]), axis=1, return_counts=True)
    for value, right in values.T:
        chosen = float(binom.sf(n0 // 2, n0, value))  # a tie goes wrong
        (right_samples, proven), (wrong_samples, _) = one(float(value)), one(1.0 - float(value))
        samples.append(n0 + chosen * right_samples + (1.0 - chosen) * wrong_samples)
        accuracy.append(chosen * right * np.array(proven))
    mean = np.average(np.array(accuracy), axis=0, weights=counts)
    return float(np.average(samples, weights=counts)), tuple(float(share) for share in mean)


def row(name: str, n: int, mode: dict[str, Any], sigma: float, radii: tuple[float, ...], data: Any) -> dict[str, Any]:
    """One line of the table: a rule in a mode, on one file of votes."""
    if name == "fixed n":
        rule, n0 = None, N0_FIXED
        samples, accuracy = expected(cache(lambda p: fixed(n, sigma, radii, p)), n0, *data)
    else:
        rule, n0 = RULES[name](**mode), N0
        samples, accuracy = expected(cache(lambda p: by_rule(rule, n, sigma, radii, p)), n0, *data)
    return {
        "sigma": sigma,
        "rule": name,
        "settings": rule and rule.as_dict(),
        "cap": n,
        "n0": n0,
        "asked": "tolerance" if "tolerance" in mode else "grid" if len(radii) > 1 else "radius",
        "radii": list(radii),
        "certified_accuracy": [round(share, 6) for share in accuracy],
        "mean_samples": round(samples, 1),
    }


def measure_cost(folder: Path, size: Size) -> list[dict[str, Any]]:
    """All rows, in the order in which the tables print them."""
    rows, most = [], size.caps[-1]
    for sigma in SIGMAS:
        data = votes(folder / f"cifar10_resnet110_sigma_{sigma:.2f}.tsv", sigma)
        grid = tuple(ratio * sigma for ratio in RATIOS)
        plans = [("fixed n", n) for n in size.fixed] + [(name, cap) for name in RULES for cap in size.caps]
        for radius in grid:
            rows += [row(name, n, {"radii": (radius,)}, sigma, (radius,), data) for name, n in plans]
        for mode in ({"radii": grid}, {"tolerance": 0.05}):
            rows += [row(name, most, mode, sigma, grid, data) for name in RULES]
        usual, compared = tuple(ratio * sigma for ratio in USUAL), [("fixed n", size.fixed[0])]
        compared += [(name, most) for name in RULES]
        rows += [row(name, n, {"radii": usual}, sigma, usual, data) for name, n in compared]
    return rows


def measure_false(size: Size, sigma: float = 0.25) -> list[dict[str, Any]]:
    """The largest chance of a false certificate over p, for each rule and mode."""
    grid = tuple(ratio * sigma for ratio in RATIOS)
    modes = [{"radii": (radius,)} for radius in grid] + [{"radii": grid}, {"tolerance": 0.05}]
    return [false_row(name, mode, size, sigma) for name in RULES for mode in modes]


def false_row(name: str, mode: dict[str, Any], size: Size, sigma: float) -> dict[str, Any]:
    """One line: exact chances at a grid of p, and simulated certificates just below the threshold."""
    rule = RULES[name](**mode, futility=None)  # futility can only lower these
    usual, cap = RULES[name](**mode), size.caps[-1]
    one = len(mode.get("radii", ())) == 1
    p0s = [confidence.threshold(radius, sigma) for radius in mode.get("radii", ())]
    below = [float(np.nextafter(p0, 0.0)) for p0 in p0s]
    highest = p0s[0] if one else 0.9999
    near_one = () if one else (0.99, 0.999, 0.9999, 0.99999)
    ps = sorted({*np.linspace(0.0, highest, size.points + 2)[1:-1].tolist(), *p0s, *below, *near_one})
    # One radius: the claim is p > p0, wherever p is below. Else the bound itself, so all radii at once.
    needs = asked(usual, Gaussian(sigma))
    chances = {
        "futility none": [forecast(rule, p, cap, ALPHA, needs, proven=p0s if one else [p]).proven[0] for p in ps],
        "futility 0.05": [forecast(usual, p, cap, ALPHA, needs, proven=p0s if one else [p]).proven[0] for p in ps],
    }
    result: dict[str, Any] = {"rule": name, "mode": mode, "cap": cap, "sigma": sigma, "points": len(ps) + 1}
    result["p = 0"] = 0.0  # no success ever proves anything
    for futility, values in chances.items():
        result[futility] = {"largest": float(max(values)), "at_p": ps[int(np.argmax(values))]}
    if one:
        false = simulate(usual, below[0], p0s[0], cap, sigma, size.simulated)
        result["simulated"] = {
            "certificates": size.simulated,
            "p": below[0],
            "false": false,
            "p_value": float(binomtest(false, size.simulated, ALPHA, alternative="greater").pvalue),
        }
    return result


def simulate(rule: Rule, p: float, p0: float, cap: int, sigma: float, runs: int) -> int:
    """False certificates of so many runs whose votes succeed with probability p."""
    sizes = rule.sizes(cap, ALPHA, asked(rule, Gaussian(sigma)))
    level = rule.level(ALPHA, len(sizes))
    rng, successes, false = np.random.default_rng(0), np.zeros(runs, dtype=np.int64), 0
    for size, step in zip(sizes, np.diff(sizes, prepend=0), strict=True):
        successes = successes + rng.binomial(step, p, len(successes))
        certified = successes >= looks.needed(rule, size, p0, level)
        false += int(certified.sum())
        successes = successes[~certified & (successes > looks.hopeless(rule, size, cap, p0, level))]
    return false


def second_class(n: int = 10_000, classes: int = 10, sigma: float = 0.25) -> list[dict[str, float]]:
    """When the second class pays, by p_A: the radius from p_A alone, the one with the rest of the votes spread evenly
    over the other classes, and the largest share of that rest which one class may hold for it to be the larger one."""
    rows = []
    for p in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999):
        successes, rest = round(p * n), n - round(p * n)
        alone = confidence.radius(confidence.lower_confidence_bound(successes, n, ALPHA), sigma)
        by_largest = [
            confidence.second_class_radius((successes, *[held] * (rest // held), rest % held), 0, ALPHA, sigma)
            for held in range(1, rest + 1)
        ]
        pays = max(held for held, radius in enumerate(by_largest, start=1) if radius > alone)
        even = by_largest[-(-rest // (classes - 1)) - 1]
        rows.append({"p": p, "alone": round(alone, 4), "even": round(even, 4), "pays_to_share": round(pays / rest, 3)})
    return rows


def figures(rows: list[dict[str, Any]], false: list[dict[str, Any]], size: Size) -> dict[str, Any]:
    """The goals and what was reached when one radius is asked, for each file, rule and cap but the smallest."""
    compared = {(r["sigma"], *r["radii"]): r for r in rows if (r["rule"], r["cap"]) == ("fixed n", size.fixed[0])}
    reached: dict[str, Any] = {}
    for r in rows:
        if r["asked"] != "radius" or r["rule"] not in RULES or r["cap"] == size.caps[0]:
            continue
        ratio = round(r["radii"][0] / r["sigma"])
        gain = r["certified_accuracy"][0] - compared[r["sigma"], *r["radii"]]["certified_accuracy"][0]
        enough = r["mean_samples"] <= (8_500 if ratio == 3 else 2_000)
        reached[f"sigma {r['sigma']:g}, {r['rule']}, cap {r['cap']:,}, r = {ratio} sigma"] = {
            "mean_samples": r["mean_samples"],
            "certified_accuracy_above_fixed_10000": round(gain, 6),
            "reached": bool(enough and (gain > 0 if ratio == 3 else gain >= 0)),
        }
    largest = max(r[futility]["largest"] for r in false for futility in ("futility none", "futility 0.05"))
    simulated = min(r["simulated"]["p_value"] for r in false if "simulated" in r)
    return {
        **reached,
        "largest chance of a false certificate": {"chance": largest, "reached": largest <= ALPHA},
        "smallest p-value of the simulations": {"p_value": simulated, "reached": simulated > SIGNIFICANT},
    }


def table(path: Path = RESULT) -> str:
    """Markdown: certified accuracy and mean samples of each rule when one radius is asked, both files of votes."""
    rows = [r for r in read_json(path)["rows"] if r["asked"] == "radius"]
    lines = [["σ", "rule", "cap", *(f"r = {'' if ratio == 1 else ratio}σ: CA % / samples" for ratio in RATIOS)]]
    for sigma, name, cap in dict.fromkeys((r["sigma"], r["rule"], r["cap"]) for r in rows):
        same = [r for r in rows if (r["sigma"], r["rule"], r["cap"]) == (sigma, name, cap)]
        cells = [f"{100 * r['certified_accuracy'][0]:.1f} / {r['mean_samples']:,.0f}" for r in same]
        lines.append([f"{sigma:g}", name, f"{cap:,}", *cells])
    return markdown(lines)


def modes_table(path: Path = RESULT) -> str:
    """Markdown: what more than one radius costs; certified accuracy is at the radii asked."""
    rows = [r for r in read_json(path)["rows"] if r["asked"] != "radius"]
    lines = [["σ", "asked", "rule", "cap", "CA % (for the full radius: at σ, 2σ, 3σ)", "samples"]]
    for r in rows:
        names = ", ".join(f"{radius / r['sigma']:g}σ" for radius in r["radii"])
        asked = "the full radius, to 5 %" if r["asked"] == "tolerance" else names
        shares = " / ".join(f"{100 * share:.1f}" for share in r["certified_accuracy"])
        lines.append([f"{r['sigma']:g}", asked, r["rule"], f"{r['cap']:,}", shares, f"{r['mean_samples']:,.0f}"])
    return markdown(lines)


def false_table(path: Path = RESULT) -> str:
    """Markdown: the largest chance of a false certificate over all p, against alpha."""
    rows = read_json(path)["false"]
    runs = next(r["simulated"]["certificates"] for r in rows if "simulated" in r)
    lines = [["rule", "asked", "largest chance, exact", "without futility", f"of {runs:,} simulated"]]
    for r in rows:
        radii = ", ".join(f"{radius:g}" for radius in r["mode"].get("radii", ()))
        asked = f"r = {radii}" if radii else f"tolerance {r['mode']['tolerance']:g}"
        largest = [f"{r[futility]['largest']:.6f}" for futility in ("futility 0.05", "futility none")]
        simulated = f"{r['simulated']['false']}" if "simulated" in r else "–"
        lines.append([r["rule"], asked, *largest, simulated])
    return markdown(lines)


def measure(folder: Path, size: Size) -> dict[str, Any]:
    """All of the result."""
    started = time.perf_counter()
    rows, false = measure_cost(folder, size), measure_false(size)
    return {
        "alpha": ALPHA,
        "rows": rows,
        "false": false,
        "second_class": second_class(size.fixed[0]),
        "figures": figures(rows, false, size),
        "seconds": round(time.perf_counter() - started, 1),
        "hardware": hardware(),
        "versions": versions("scipy"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute everything, and say which goals are missed."""
    options = parser(__doc__)
    options.add_argument("--cohen", type=Path, required=True, metavar="DIR", help="folder of the published rows (TSV)")
    options.add_argument("--write", action="store_true", help="write the result and print its tables")
    options = options.parse_args(arguments)
    torch.set_num_threads(1)
    result = measure(options.cohen, TINY if options.tiny else FULL)
    if options.write:
        path = destination(options, RESULT)
        write_json_atomic(path, result)
        print(table(path), modes_table(path), false_table(path), sep="\n")
    said = ("figures", "second_class", "seconds", "hardware", "versions")
    print(json.dumps({key: result[key] for key in said}, indent=2))
    missed = [name for name, figure in result["figures"].items() if not figure["reached"]]
    print(f"goals missed: {'; '.join(missed) or 'none'}")


if __name__ == "__main__":
    main()
