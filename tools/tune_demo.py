"""Choose the demo's settings on validation images: sigma, gamma, mu, and the weight of the white term.

Trains on the digits' training split and scores on the validation split alone; test images are never loaded. The score
of a setting is the average certified radius of ZO-AE-DS (CGE) over validation images (n0 = 100, n = 1,000,
alpha = 0.001). Rows are appended to benchmarks/results/tune_demo.jsonl as they are earned, and a setting that has a row
is not run again; the best row's settings are what `src/certibox/presets/demo.yaml` holds.

    python benchmarks/tune_demo.py [--images 150]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import certibox as cb
from certibox import report
from certibox.commands import demo
from certibox.data import Images

RESULTS = Path(__file__).parent / "results" / "tune_demo.jsonl"
GRID = {
    "sigma": (0.25, 0.35, 0.5),
    "gamma": (1.0, 5.0),
    "mu": (0.05, 0.2),
    "reconstruction_weight": (0.0, 1.0),
}  # varied one at a time around the best so far, in this order


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=150, help="validation images to certify")
    images = parser.parse_args().images
    shown, validation = cb.load_images("digits", "train"), cb.load_images("digits", "validation")
    model, _ = demo.train_box(shown, validation)
    client = cb.QueryClient(cb.as_blackbox(model, outputs="probabilities"))
    best = demo.settings()
    for name, values in GRID.items():
        rows = [evaluate(replace(best, **{name: value}), client, shown, validation, images) for value in values]
        winner = max(rows, key=lambda row: row["cge"]["average_certified_radius"])
        best = demo.Settings(**winner["settings"])
        print(f"best {name}: {getattr(best, name)}")
    print(json.dumps(asdict(best), indent=1))


def evaluate(s: demo.Settings, client: cb.QueryClient, shown: Images, validation: Images, images: int) -> dict:
    """One row: the bare model, the query-free denoiser and ZO-AE-DS (CGE) on validation images."""
    if row := known(s, images):
        return row
    started = time.perf_counter()
    autoencoder = demo.train_stage1(s, shown, validation, seed=0)
    denoised = demo.train_denoiser(s, client, shown, validation, seed=0)
    before = client.queries
    defended = demo.train_queries(s, client, shown, validation, cb.CGE(mu=s.mu), autoencoder, seed=0)
    row = {"settings": asdict(s), "images": images, "queries": client.queries - before}
    for name, base in (("bare", client), ("mse", denoised.outputs), ("cge", defended.outputs)):
        smoothed = cb.SmoothedClassifier(base, demo.CLASSES, s.sigma)
        part = validation.select(slice(0, images))
        rows = cb.certify_dataset(smoothed, part, n0=s.n0, n=s.n, alpha=s.alpha, seed=1)
        accuracy = cb.certified_accuracy(rows, demo.radii(s)).tolist()
        row[name] = {"average_certified_radius": report.average_certified_radius(rows), "certified_accuracy": accuracy}
    row["seconds"] = round(time.perf_counter() - started, 1)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))
    return row


def known(s: demo.Settings, images: int) -> dict | None:
    """The row of a setting that was run before."""
    if not RESULTS.exists():
        return None
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return next((row for row in rows if row["settings"] == asdict(s) and row["images"] == images), None)


if __name__ == "__main__":
    main()
