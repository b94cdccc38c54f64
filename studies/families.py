"""Three families of black boxes on the digits: which estimator, which mu, and do queries pay at all?

Boxes: a multilayer perceptron (smooth), logistic regression (linear) and a random forest (a staircase: its
probabilities move in steps of one tree). For each, certified accuracy at r = sigma on held-out test digits (200,
n0 = 100, n = 1,000, alpha = 0.001) of the bare box, the query-free MSE denoiser, and ZO-AE-DS with RGE and CGE at three
values of mu. Everything else is `presets/demo.yaml`, chosen on validation images for the perceptron alone. Rows are
appended to benchmarks/results/families.jsonl as they are earned; a row that is there is not run again.

    python benchmarks/families.py
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import sklearn
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import certibox as cb
from certibox import report
from certibox.commands import demo
from certibox.data import Images

RESULTS = Path(__file__).parent / "results" / "families.jsonl"
IMAGES, SEED = 200, 0


def boxes(shown: Images, validation: Images) -> dict:
    """The families, trained on the training split."""
    x, y = shown.floats().flatten(1).numpy(), shown.labels.numpy()
    return {
        "perceptron": demo.train_box(shown, validation)[0],
        "logistic": LogisticRegression(max_iter=2000).fit(x, y),
        "forest": RandomForestClassifier(100, random_state=0).fit(x, y),
    }


def main() -> None:
    s = demo.settings()
    shown, validation = cb.load_images("digits", "train"), cb.load_images("digits", "validation")
    test = cb.load_images("digits", "test").select(slice(0, IMAGES))
    autoencoder = demo.train_stage1(s, shown, validation, SEED)
    estimators = {"none": None} | {
        f"{kind.__name__} mu={mu:g}": kind(mu=mu, **({"q": s.d_z} if kind is cb.RGE else {}))
        for kind in (cb.CGE, cb.RGE)
        for mu in (0.005, 0.05, 0.5)
    }
    for family, model in boxes(shown, validation).items():
        client = cb.QueryClient(cb.as_blackbox(model, outputs="probabilities"))
        for name, estimator in {"bare": None, **estimators}.items():
            if not known(family, name):
                record(s, family, name, estimator, client, shown, validation, test, autoencoder)
    print_table()


def record(s, family, name, estimator, client, shown, validation, test, autoencoder) -> None:
    """Train one defense, certify it, and append its row."""
    started, before = time.perf_counter(), client.queries
    if estimator is not None:
        base = demo.train_queries(s, client, shown, validation, estimator, autoencoder, SEED).outputs
    else:
        base = client if name == "bare" else demo.train_denoiser(s, client, shown, validation, SEED).outputs
    queries = client.queries - before
    smoothed = cb.SmoothedClassifier(base, demo.CLASSES, s.sigma)
    rows = cb.certify_dataset(smoothed, test, n0=s.n0, n=s.n, alpha=s.alpha, seed=SEED)
    row = {
        "family": family,
        "estimator": name,
        "training_queries": queries,
        "certified_accuracy_at_sigma": float(cb.certified_accuracy(rows, [s.sigma])[0]),
        "average_certified_radius": report.average_certified_radius(rows),
        "certified_at_sigma": [int(bool(r.correct) and r.radius >= s.sigma) for r in rows],
        "sigma": s.sigma,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, {platform.python_version()}",
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def known(family: str, name: str) -> bool:
    return any(row["family"] == family and row["estimator"] == name for row in read())


def read() -> list[dict]:
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def table() -> str:
    """Markdown: certified accuracy at r = sigma, and the difference to the query-free denoiser with its interval."""
    lines = [
        "| box | trained with | training queries | CA at r = σ | minus MSE denoiser (95 % interval) |",
        "|---|---|---:|---:|---:|",
    ]
    rows = read()
    free = {row["family"]: row["certified_at_sigma"] for row in rows if row["estimator"] == "none"}
    for row in rows:
        trained = {"bare": "nothing (bare box)", "none": "MSE denoiser"}.get(row["estimator"], row["estimator"])
        difference, low, high = cb.confidence.paired_bootstrap(row["certified_at_sigma"], free[row["family"]])
        gap = "–" if row["estimator"] == "none" else f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        accuracy = row["certified_accuracy_at_sigma"]
        lines.append(f"| {row['family']} | {trained} | {row['training_queries']:,} | {accuracy:.3f} | {gap} |")
    return "\n".join(lines) + "\n"


def print_table() -> None:
    print(table())


if __name__ == "__main__":
    main()
