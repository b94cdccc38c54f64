"""Carry measured numbers into the docs: a table between `<!-- name -->` and `<!-- /name -->` comes from a file here.

python benchmarks/publish.py            rewrite the tables of README.md and docs/ from benchmarks/results/
python benchmarks/publish.py --demo DIR first take the numbers and the picture of a finished demo in DIR
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import families
import live_latents
import query_efficiency
import sequential_certification
import sequential_pipelines
import step_choice

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--demo", type=Path, help="directory of a finished demo, such as runs/demo")
    folder = parser.parse_args().demo
    if folder:
        shutil.copy(folder / "summary.json", RESULTS / "demo.json")
        shutil.copy(folder / "ca_curve.png", ROOT / "docs" / "images" / "demo_ca_curve.png")
        shutil.copy(folder / "digits.png", ROOT / "docs" / "images" / "demo_digits.png")
    for path, text in published().items():
        path.write_text(text, encoding="utf-8")


TABLES: dict[str, Callable[[], str]] = {  # by the name that its place in the docs has
    "demo": lambda: demo_table(),
    "families": families.table,
    "rates": lambda: rates_table(),
    "gradients": lambda: gradients_table(),
    "steps": step_choice.table,
    "latents": live_latents.table,
    "certificates": sequential_certification.table,
    "certificates-modes": sequential_certification.modes_table,
    "certificates-false": sequential_certification.false_table,
    "certificates-pipelines": sequential_pipelines.table,
    **{f"queries-{study}": partial(query_efficiency.report, study) for study in query_efficiency.STUDIES},
}


def published() -> dict[Path, str]:
    """The docs with their tables as the committed results say."""
    tables = {name: table() for name, table in TABLES.items()}
    docs = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {path: fill(path.read_text(encoding="utf-8"), tables) for path in docs}


def fill(text: str, tables: dict[str, str]) -> str:
    """`text` with what stands between the markers of each table replaced."""
    for name, table in tables.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = block.sub(lambda found, table=table: found[1] + table + found[2], text)
    return text


def demo_table() -> str:
    result = read("demo.json")
    radii = result["rows"][0]["radii"]
    lines = [
        "| | " + " | ".join(f"r = {r:g}" for r in radii) + " | training queries |",
        "|---|" + "---:|" * (len(radii) + 1),
    ]
    for row in result["rows"]:
        cells = [
            f"{100 * share:.1f} [{100 * low:.0f}, {100 * high:.0f}]"
            for share, (low, high) in zip(row["share"], row["interval"], strict=True)
        ]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + f" | {row['training_queries']:,} |")
    notes = "\n".join(f"- {note}" for note in result["notes"])
    facts = result["facts"]
    said = ", ".join(
        f"{symbol} = {facts[key]}" for key, symbol in {"sigma": "σ", "n0": "n0", "n": "n", "alpha": "α"}.items()
    )
    caption = f"Certified accuracy in % with 95 % intervals; {said}, {facts['images']}."
    return "\n".join([*lines, "", caption, "", notes, ""])


def rates_table() -> str:
    rate, step = read("certification_rate.json"), read("training_step.json")
    growth = rate["peak_rss_mib"]["growth"]
    rows = [
        (
            "certification of a small conv net, batch 1,000: ÷ raw forward rate",
            f"{rate['cnn_ratio']['median']:.2f}",
            "≥ 0.93",
        ),
        (
            "linear model, 784 pixels: µs a sample above the model",
            f"{rate['linear_overhead_us_per_sample']['median']:.1f}",
            "≤ 4",
        ),
        ("memory from n = 1,000 to n = 1,000,000: growth in MiB", f"{growth:.1f}", "flat"),
        (
            f"a ZO-AE-DS step (CGE, AE-192, ResNet-20, {step['queries_per_step']:,} queries): ÷ its raw forward passes",
            f"{step['ratio_to_raw']:.2f}",
            "≤ 1.10",
        ),
    ]
    return "| figure | measured | goal |\n|---|---:|---:|\n" + "".join(f"| {a} | {b} | {c} |\n" for a, b, c in rows)


def gradients_table() -> str:
    """Cosine with the true gradient, a row for each box and estimator, a column for each mu."""
    rows = read("gradient_quality.json")["rows"]
    boxes = {
        ("z", "float32"): "conv net, float32",
        ("z", "256 levels"): "the same, 8-bit endpoint",
        ("staircase", "random forest"): "random forest",
    }
    lines = ["| box | estimator | queries | μ = 0.005 | μ = 0.05 | μ = 0.5 |", "|---|---|---:|---:|---:|---:|"]
    for (space, box), name in boxes.items():
        here = [row for row in rows if (row["space"], row["box"]) == (space, box)]
        most = max(row["q"] or 0 for row in here)
        kinds = {(row["estimator"], row["q"], row["difference"]): row["queries"] for row in here}
        for (estimator, q, difference), queries in kinds.items():
            if q not in (None, most) or (q == most and difference == "central"):
                continue
            same = {row["mu"]: row for row in here if kinds_of(row) == (estimator, q, difference)}
            cells = " | ".join(f"{same[mu]['cosine']:.2f}" if mu in same else "–" for mu in (0.005, 0.05, 0.5))
            what = f"{estimator}, {difference}" if q is None else f"{estimator}, q = {q}, {difference}"
            lines.append(f"| {name} | {what} | {queries:.0f} | {cells} |")
    return "\n".join(lines) + "\n"


def kinds_of(row: dict) -> tuple:
    """What names an estimator in a row of gradient_quality.json."""
    return row["estimator"], row["q"], row["difference"]


def read_rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
