"""Choose the demo's settings on validation images: gamma, the learning rate, and the weight of the white term.

Trains on the digits' training images and scores on the validation images alone; test images are never loaded. The score
of a setting is the certified accuracy of row (c), ZO-AE-DS by Guided, on validation images, averaged over the radii
that the demo decides (sigma / 2, sigma, 2 sigma). Rows are appended to tools/results/tune_demo.jsonl as they are
measured, and a setting that has a row is not measured again; the best row's settings are what
`src/certibox/commands/presets/demo.yaml` holds.

    python tools/tune_demo.py [--images 100] [--tiny]
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import certibox as cb
from certibox.commands import demo
from certibox.commands.options import RuleOptions
from certibox.data import Images
from certibox.paper.logbook import Rows, destination, hardware, parser, versions

RESULTS = Path(__file__).parent / "results" / "tune_demo.jsonl"
Grid = Mapping[str, Sequence[float]]  # values of settings, varied one at a time around the best so far, in this order
GRID: Grid = {"gamma": (1.0, 5.0), "lr": (1e-3, 3e-3), "reconstruction_weight": (1.0, 0.0)}


@dataclass(frozen=True)
class Size:
    """How large the search is."""

    start: demo.Settings
    """Settings that it starts from."""
    grid: Grid
    """Values that it tries."""
    train: int | None
    """Number of training images; None for all."""
    rounds: int = 100
    """Number of the box's boosting rounds, by default the demo's."""


# The search starts from what the demo had before it; what it ends with is in presets/demo.yaml.
START = replace(demo.settings(), gamma=1.0, lr=1e-3, reconstruction_weight=1.0)
FULL = Size(START, GRID, None)
TINY = Size(
    replace(FULL.start, denoise_epochs=1, epochs=1, autoencoder_epochs=1, depth=3, width=4, n0=5, n=50),
    {"gamma": (1.0, 5.0), "lr": (1e-3,)},
    64,
    3,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Vary one setting after the other, and print the best."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=100, help="validation images to certify")
    options = options.parse_args(arguments)
    rows, size = Rows(destination(options, RESULTS)), TINY if options.tiny else FULL
    train, validation = cb.load_images("digits", "train"), cb.load_images("digits", "validation")
    train = train.select(slice(0, size.train))
    client = cb.QueryClient(cb.as_blackbox(demo.train_box(train, size.rounds), outputs="probabilities", clip=False))
    best = size.start
    for name, values in size.grid.items():
        tried = []
        for settings in (replace(best, **{name: value}) for value in values):
            key = {"settings": asdict(settings), "images": options.images}
            tried.append(rows.once(key, partial(measure, settings, client, train, validation, options.images)))
        winner = max(tried, key=lambda row: row["score"])
        best = demo.Settings(**winner["settings"])
        print(f"best {name}: {getattr(best, name)}")
    print(json.dumps(asdict(best), indent=1))


def measure(s: demo.Settings, client: cb.QueryClient, train: Images, validation: Images, images: int) -> dict[str, Any]:
    """Row (c) on validation images: its certified accuracy at the demo's radii, their mean, and its queries."""
    started = time.perf_counter()
    autoencoder = demo.train_stage1(s, train, validation, seed=0)
    before = client.queries
    defended = demo.train_queries(s, client, train, validation, demo.guided(s), autoencoder, seed=0)
    queries = client.queries - before
    rule, part = RuleOptions(n0=s.n0, n=s.n).build_rule(s.sigma), validation.select(slice(0, images))
    rows = cb.certify_dataset(defended.smoothed(), part, n0=s.n0, n=s.n, alpha=s.alpha, seed=1, rule=rule)
    accuracy = cb.certified_accuracy(rows, demo.radii(s)).tolist()
    return {
        "score": sum(accuracy) / len(accuracy),
        "certified_accuracy": accuracy,
        "queries": queries,
        "seconds": round(time.perf_counter() - started, 1),
        "hardware": hardware(),
        "versions": versions("scikit-learn"),
    }


if __name__ == "__main__":
    main()
