"""How many unlabelled images does a defense want? Digits and box of `certibox demo`, defended with fewer images.

Training takes 50, 100, 200, 400 or 800 of the digits' training images without their labels, in as many steps as the
demo's with all of them, so that each defense costs about the same time and number of queries. For each count: the free
denoiser and ZO-AE-DS (Guided), certified at sigma / 2, sigma and 2 sigma on test images 200 to 299 by the rule of
`certibox certify`. All else is `presets/demo.yaml`. Rows are appended to studies/results/image_counts.jsonl as they are
measured; a row that is there is not measured again.

    python studies/image_counts.py [--tiny]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import certibox as cb
from certibox import report
from certibox.commands import demo
from certibox.commands.options import RuleOptions
from certibox.data import Images
from certibox.paper.logbook import Rows, destination, hardware, parser, versions

RESULTS = Path(__file__).parent / "results" / "image_counts.jsonl"
SEED = 0


@dataclass(frozen=True)
class Size:
    """How large the study is."""

    settings: demo.Settings
    """Settings of training and certification with all training images."""
    counts: tuple[int, ...]
    """Numbers of training images."""
    whole: int
    """Number of training images for which the settings' epochs are meant."""
    test: int
    """Number of test images that are certified, from number 200 on."""
    rounds: int = 100
    """Number of the box's boosting rounds."""


FULL = Size(demo.settings(), (50, 100, 200, 400, 800), 1000, 100)
TINY = Size(
    replace(demo.settings(quick=True), autoencoder_epochs=1, width=4), counts=(32, 64), whole=64, test=3, rounds=3
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rows that are not there yet, and print the table."""
    options = parser(__doc__).parse_args(arguments)
    rows, size = Rows(destination(options, RESULTS)), TINY if options.tiny else FULL
    train, validation = cb.load_images("digits", "train"), cb.load_images("digits", "validation")
    missing = [count for count in size.counts if not rows.find({"images": count})]
    if missing:
        model = demo.train_box(train, size.rounds)
        client = cb.QueryClient(cb.as_blackbox(model, outputs="probabilities", clip=False))
        for count in missing:
            rows.once({"images": count}, partial(measure, size, client, train, validation, count))
    print(table(rows.path))


def scaled(size: Size, count: int) -> demo.Settings:
    """The settings with as many steps for `count` images as they have for all."""
    s, times = size.settings, size.whole / count
    epochs = {name: round(getattr(s, name) * times) for name in ("denoise_epochs", "epochs", "autoencoder_epochs")}
    return replace(s, **epochs)


def measure(size: Size, client: cb.QueryClient, train: Images, validation: Images, count: int) -> dict[str, Any]:
    """Both defenses with so many images, and their certified accuracy."""
    started, s = time.perf_counter(), scaled(size, count)
    shown = train.select(slice(0, count))
    autoencoder = demo.train_stage1(s, shown, validation, SEED)
    free = demo.train_denoiser(s, client, shown, validation, SEED)
    before = client.queries
    defense = demo.train_queries(s, client, shown, validation, demo.guided(s), autoencoder, SEED)
    row: dict[str, Any] = {"queries": client.queries - before, "settings": asdict(s), "radii": demo.radii(s)}
    rule, part = (
        RuleOptions(n0=s.n0, n=s.n).build_rule(s.sigma),
        cb.load_images("digits", "test").select(slice(200, 200 + size.test)),
    )
    for name, base in (("free", free.outputs), ("guided", defense.outputs)):
        smoothed = cb.SmoothedClassifier(base, demo.CLASSES, s.sigma)
        rows = cb.certify_dataset(smoothed, part, n0=s.n0, n=s.n, alpha=s.alpha, seed=SEED, rule=rule)
        row[name] = cb.certified_accuracy(rows, row["radii"]).tolist()
    seconds = round(time.perf_counter() - started, 1)
    return {**row, "certified": size.test, "seconds": seconds, "hardware": hardware(), "versions": versions()}


def table(path: Path = RESULTS) -> str:
    """Markdown: certified accuracy at each radius by the number of unlabelled images."""
    found = Rows(path).read()
    radii = [f"r = {radius:g}" for radius in found[0]["radii"]]
    lines = [["unlabelled images", "defense", *radii, "training queries"]]
    for row in found:
        for name, what in (("free", "free denoiser"), ("guided", "trained by queries")):
            queries = f"{row['queries']:,}" if name == "guided" else "0"
            lines.append([f"{row['images']}", what, *(f"{100 * share:.0f} %" for share in row[name]), queries])
    return report.markdown(lines, rule="|---:|---|" + "---:|" * (len(radii) + 1))


if __name__ == "__main__":
    main()
