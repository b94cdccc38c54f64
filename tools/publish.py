"""Carry measured numbers into the docs: a table between `<!-- name -->` and `<!-- /name -->` comes from a file here.

python tools/publish.py            rewrite the tables of README.md and docs/ from the committed results, and those of
                                   docs/models-and-data.md from what the tests try
python tools/publish.py --demo DIR first take the numbers and the pictures of a finished demo in DIR
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from certibox.paper.logbook import Rows
from certibox.report import markdown
from certibox.storage.files import read_json

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import accepted
import early_prediction
import families
import gradient_quality
import image_counts
import live_latents
import query_efficiency
import sequential_certification
import sequential_pipelines
import step_choice

ROOT = Path(__file__).parents[1]
DEMO = Path("tools") / "results" / "demo.json"
RATES = ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Rewrite the tables of the docs below `root`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="directory of a finished demo, such as runs/demo")
    folder = parser.parse_args(arguments).demo
    if folder:
        take(folder, root)
    for path, text in published(root).items():
        path.write_text(text, encoding="utf-8")


def take(folder: Path, root: Path) -> None:
    """Copy the numbers and the pictures of a finished demo to where the docs have them."""
    copies = {
        "summary.json": root / DEMO,
        "ca_curve.png": root / "docs" / "images" / "demo_ca_curve.png",
        "digits.png": root / "docs" / "images" / "demo_digits.png",
    }
    for name, target in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, target)


TABLES: dict[str, Callable[[], str]] = {  # by the name that its place in the docs has
    "demo": lambda: demo_table(ROOT / DEMO),
    "price": lambda: price(ROOT / DEMO),
    "sizes": lambda: sizes_table(RATES / "sizes.json"),
    "image-counts": image_counts.table,
    "few-and-many": lambda: few_and_many(image_counts.RESULTS),
    "families": families.table,
    "rates": lambda: rates_table(),
    "remote": lambda: remote_table(),
    "faults": lambda: faults_table(),
    "looks": lambda: looks_table(),
    "contention": lambda: contention_table(),
    "gateway": lambda: gateway_table(),
    "gateway-clients": lambda: gateway_clients_table(),
    "soak": lambda: soak_table(),
    "gradients": gradient_quality.table,
    "steps": step_choice.table,
    "latents": live_latents.table,
    "certificates": sequential_certification.table,
    "certificates-modes": sequential_certification.modes_table,
    "certificates-false": sequential_certification.false_table,
    "certificates-pipelines": sequential_pipelines.table,
    "early-prediction": early_prediction.table,
    "worth": query_efficiency.worth,
    "prices": query_efficiency.prices,
    **{name: partial(accepted.printed, table) for name, table in accepted.tables().items()},
    **{f"queries-{study}": partial(query_efficiency.report, study) for study in query_efficiency.STUDIES},
}


def published(root: Path = ROOT) -> dict[Path, str]:
    """The pages below `root` with their tables as the committed results say."""
    tables = {name: table() for name, table in TABLES.items()}
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return {path: fill(path.read_text(encoding="utf-8"), tables) for path in pages}


def fill(text: str, tables: dict[str, str]) -> str:
    """`text` with what stands between the markers of each table replaced."""
    for name, table in tables.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = block.sub(lambda found, table=table: found[1] + table + found[2], text)
    return text


def demo_table(path: Path) -> str:
    """Markdown: certified accuracy of the demo's rows, what each row is, and what the demo says of them."""
    result = read_json(path)
    radii, facts = result["rows"][0]["radii"], result["facts"]
    lines = [["", *(f"r = {radius:g}" for radius in radii), "queries to train", "queries a certificate"]]
    for row in result["rows"]:
        counts = [row["training_queries"], row["certification_queries"] / row["images"]]
        lines.append([row["name"], *_shares(row), *(f"{count:,.0f}" for count in counts)])
    symbols = {"sigma": "σ =", "n0": "n0 =", "n": "n ≤", "alpha": "α ="}
    said = ", ".join(f"{symbol} {facts[key]}" for key, symbol in symbols.items())
    caption = f"Certified accuracy in % with 95 % intervals; {facts['box']}, {facts['images']}, {said}."
    notes = "\n".join(f"- {note}" for note in [*result["legend"], *result["notes"]])
    table = "| |" + markdown(lines, rule="|---|" + "---:|" * (len(radii) + 2)).removeprefix("|  |")
    return f"{table}\n{caption}\n\n{notes}\n"


def _shares(row: dict[str, Any]) -> list[str]:
    pairs = zip(row["share"], row["interval"], strict=True)
    return [f"{100 * share:.1f} [{100 * low:.0f}, {100 * high:.0f}]" for share, (low, high) in pairs]


def price(path: Path) -> str:
    """A sentence: what training and an answer cost in the demo, and an answer on a published network."""
    trained = read_json(path)["rows"][-1]
    each = trained["certification_queries"] / trained["images"]
    found = read_json(ROOT / "studies" / "results" / "sequential_certification.json")["rows"]
    wanted = {"sigma": 0.25, "rule": "e-process", "cap": 100_000, "radii": [0.25]}
    (published,) = [row for row in found if all(row[key] == value for key, value in wanted.items())]
    training = f"{trained['training_queries']:,} queries to train for handwritten digits"
    certified = f"{published['mean_samples']:,.0f} a certified image on CIFAR-10 for one radius, r = σ = 0.25"
    return f"Typical: {training}, then {each:,.0f} a certified digit for three radii; {certified}.\n"


def few_and_many(path: Path) -> str:
    """A sentence: certified accuracy at r = σ with the fewest and with the most unlabelled images that were tried."""
    few, *_, many = Rows(path).read()
    at = few["radii"].index(few["settings"]["sigma"])
    said = []
    for row in (few, many):
        free, guided = (f"{row[name][at]:.0%}" for name in ("free", "guided"))
        said.append(f"{row['images']} unlabelled digits gave {guided} at r = σ (the free denoiser {free})")
    return f"{', and '.join(said)}: [all counts](docs/measurements/image-counts.md).\n"


def sizes_table(path: Path) -> str:
    """Markdown: seconds and queries at the image sizes that were tried."""
    result = read_json(path)
    rows = [("image", "seconds for 1,000 votes", "seconds for an epoch of 1,000 images", "queries of either")]
    for row in result["rows"]:
        votes, images = row["defended_seconds_per_1000_votes"], row["seconds_per_1000_training_images"]
        rows.append(("×".join(map(str, row["shape"])), rounded(votes), rounded(images), "1,000"))
    note = f"Of certibox itself with its default networks ({result['hardware']}); the model's own time comes on top."
    return f"{markdown(rows, rule='|---|---:|---:|---:|')}\n{note}\n"


def rounded(number: float) -> str:
    """A number to two digits, without an exponent."""
    digits = 1 - math.floor(math.log10(number))
    return f"{round(number, digits):,.{max(digits, 0)}f}"


def rates_table() -> str:
    """Markdown: the benchmarks' figures beside their goals."""
    rate, step = (read_json(RATES / f"{name}.json") for name in ("certification_rate", "training_step"))
    one, two = rate["1 thread"], rate["2 threads"]
    what = f"a ZO-AE-DS step (CGE, AE-192, ResNet-20, {step['queries_per_step']:,} queries): ÷ its raw forward passes"
    rows = [
        ("figure", "one thread", "two threads", "goal"),
        ("certification of a small conv net: ÷ its best raw rate", *both(one, two, "cnn_ratio_metered", 2), "≥ 0.93"),
        ("samples a second of that raw rate", *both(one, two, "cnn_raw_samples_per_s", 0), ""),
        (
            "linear model, 784 pixels: µs a sample above model and noise",
            *both(one, two, "linear_added_us_per_sample_metered", 1),
            "≤ 4",
        ),
        ("memory from n = 1,000 to n = 1,000,000: growth in MiB", "", f"{rate['peak_rss_mib']['growth']:.1f}", "flat"),
        (what, "", f"{step['ratio_to_raw']:.2f}", "≤ 1.10"),
    ]
    return markdown(rows, rule="|---|---:|---:|---:|")


def both(one: dict[str, Any], two: dict[str, Any], name: str, digits: int) -> tuple[str, str]:
    """The medians of a figure with one thread and with two; what is below the noise of the clock is 0."""
    return tuple(f"{max(0.0, found[name]['median']):,.{digits}f}" for found in (one, two))  # pyright: ignore[reportReturnType]


def remote_table() -> str:
    """Markdown: certification of a remote model beside the rate at which its server answers."""
    result = read_json(RATES / "remote.json")
    rates, added = result["certification"]["samples_a_second"], result["overhead"]["microseconds_an_image"]
    one = rates["one_at_a_time"] / rates["blind"]
    rows = [
        ("figure", "measured", "goal"),
        ("requests that are ready, nobody looking at the answers: images a second", f"{rates['blind']:,.0f}", ""),
        ("`certify`, default rule: ÷ that rate", f"{result['certification']['certify_over_blind']:.2f}", "≥ 0.9"),
        ("one image and one request at a time: ÷ that rate", f"{one:.2f}", ""),
        ("images in a request of `certify`, of 32", f"{result['certification']['images_a_request']:.1f}", ""),
        ("client's time above the server's, binary: µs an image 3×32×32", f"{added['binary']:.0f}", "≤ 60"),
        ("the same as JSON", f"{added['json']:.0f}", ""),
    ]
    return markdown(rows, rule="|---|---:|---:|")


def faults_table() -> str:
    """Markdown: what a run through faults and kills left, beside an undisturbed one."""
    result = read_json(RATES / "faults.json")
    hard, plain, poor = (result[name] for name in ("disturbed", "undisturbed", "with_half_the_budget"))
    yes = {True: "yes", False: "**no**"}
    failed = sum(hard["faults"].values())
    rows = [
        ("what", "figure"),
        ("requests, undisturbed and through faults", f"{plain['requests']:,} and {hard['requests']:,}"),
        ("faults met, kills, starts", f"{failed:,}, {hard['ends']['killed']}, {sum(hard['ends'].values())}"),
        (f"the {result['rows']} rows are the same", yes[result["rows_are_the_same"]]),
        ("images computed by the server", f"{hard['computed']:,}"),
        ("answered and lost in the ledger", f"{hard['answered']:,} + {hard['lost']:,}"),
        ("all that was computed is booked", yes[result["all_that_was_computed_is_booked"]]),
        ("answers paid twice, of those needed", f"{hard['answered'] - plain['answered']:,} of {plain['answered']:,}"),
        (f"a budget of {poor['budget']:,} was kept, with {poor['booked']:,} booked", yes[result["budget_was_kept"]]),
    ]
    return markdown(rows, rule="|---|---:|")


def looks_table() -> str:
    """Markdown: samples a second under a stopping rule beside a fixed n, and the time of a look."""
    result = read_json(RATES / "interleaving.json")
    found, look = result["rule_over_fixed"], result["microseconds_a_look"]
    rows = [("figure", "measured", "goal")]
    for name in (name for name in found if "thread" in name):
        rows.append((f"default rule ÷ fixed n, samples a second: {name}", f"{found[name]['median']:.2f}", "≥ 0.9"))
    rows.append(("µs a look, mean", f"{look['mean']:.0f}", "≤ 50"))
    rows.append(("of certificates with at most 10 looks", f"{look['of_certificates_with_at_most_10']:.0f}", "≤ 50"))
    return markdown(rows, rule="|---|---:|---:|")


def contention_table() -> str:
    """Markdown: training steps a second beside busy processes."""
    loads = read_json(RATES / "contention.json")["loads"]
    ways = list(loads[0]["steps_per_s"])
    rows = [["steps a second", *ways, "commands ÷ one thread"]]
    for load in loads:
        rates = [f"{load['steps_per_s'][way]:.1f}" for way in ways]
        rows.append([load["beside"], *rates, f"{load['commands_to_one_thread']:.2f}"])
    return markdown(rows)


def gateway_table() -> str:
    """Markdown: what the gateway costs beside its box."""
    result = read_json(RATES / "gateway.json")
    added, memory = result["added"], result["memory"]["megabytes"]
    first, last = min(memory, key=int), max(memory, key=int)
    ratio, goal = result["throughput"], f"≤ {added['goal_ms']}"
    rows = [
        ("figure", "measured", "goal"),
        ("noisy copies a second with 16 clients ÷ `certify_dataset`", f"{ratio['ratio']:.2f}", f"≥ {ratio['goal']}"),
        ("1×28×28, the box answers at once: ms a request, median", f"{added['1x28x28']['p50_ms']:.1f}", goal),
        ("the same at 3×32×32", f"{added['3x32x32']['p50_ms']:.1f}", goal),
        (
            f"MB of memory after {int(first):,} and after {int(last):,} requests",
            f"{memory[first]:.0f} and {memory[last]:.0f}",
            "flat",
        ),
    ]
    return markdown(rows, rule="|---|---:|---:|")


def gateway_clients_table() -> str:
    """Markdown: how long a certificate takes, by the number of clients at once."""
    found = read_json(RATES / "gateway.json")["latency"]
    rows = [["clients at once", "median, s", "99th percentile, s", "noisy copies a second"]]
    for name, one in found.items():
        times = [f"{one['p50_s']:.2f}", f"{one['p99_s']:.2f}"]
        rows.append([name.removesuffix(" clients"), *times, f"{one['samples_a_second']:,}"])
    return markdown(rows, rule="|---:|---:|---:|---:|")


def soak_table() -> str:
    """Markdown: what a gateway went through, and what it left."""
    result = read_json(ROOT / "tools" / "results" / "soak_gateway.json")
    zeros, queries = result["must be 0"], result["queries"]
    bad = {name: count for name, count in zeros.items() if count}
    kills = f"{result['kills by SIGKILL']} + {result['kills by SIGTERM']} + {result['upstream restarts']}"
    statuses = ", ".join(f"{status}: {count:,}" for status, count in result["by status"].items())
    rows = [
        ("what", "figure"),
        ("minutes of load", f"{result['minutes']:g}"),
        ("kills without a warning + ends by SIGTERM + restarts of the model", kills),
        ("answers by status", statuses),
        ("images answered, of which abstentions", f"{result['answered images']:,}, {result['abstentions']:,}"),
        (
            "answers whose votes were counted again at the model, which never fails there",
            f"{result['answers counted again']:,}",
        ),
        ("queries booked, of a budget of", f"{queries['committed']:,}, {queries['budget']:,}"),
        (f"wrong answers, overspent budgets, unpaid queries and {len(zeros) - 3} other faults", f"{sum(bad.values())}"),
    ]
    return markdown(rows, rule="|---|---:|")


if __name__ == "__main__":
    main()
