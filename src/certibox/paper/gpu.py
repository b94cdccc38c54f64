"""What the GPU queue checked on a GPU: its lines on disk, and their page. No torch.

A line of `gpu.jsonl`, beside the folder of the measured rows, is one check:

    precision   figures: images, coordinates, columns, and rows: estimator, mu, queries, cosines in each column's order
    epoch       figures: batch, steps, seconds and queries a step, raw seconds, raw batch, raw layout
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from certibox.errors import UnreadableFile
from certibox.report import markdown
from certibox.storage.files import append_line

PAPER_MINUTES = 29  # of one epoch of ZO-AE-DS (CGE, q = 192) on an RTX A6000: Zhang et al. 2022, section 5
EPOCH_IMAGES = 50_000  # CIFAR-10's training split
RELEASED, LIVE = "central differences, every coordinate", "forward differences, live coordinates"
NOTHING = "Not measured: no CUDA device was at hand; `python tools/gpu_queue.py --seconds 600 --data DIR`.\n"

_HEAD = """# On a GPU: the precision of gradients, and the time of an epoch

What training takes for granted on a GPU, checked there: that gradients estimated in fast arithmetic are right, and how
long an epoch takes.
"""
_PRECISION = """## Precision

Cosine between the gradient that an estimator gives at an embedding and the true gradient (autograd in float64), mean
over images: 1 is perfect. CGE and RGE estimate the gradient from differences of answers of the black box, μ apart: CGE
along every coordinate, RGE along random directions. The columns say in which arithmetic decoder and black box computed:
float32 with TF32 off, TF32, autocast to bfloat16 and to float16; `certibox` is the way that training takes, while TF32
is on everywhere else. The differences themselves are always taken in float32.
"""
_EPOCH = f"""## Time of an epoch

ZO-AE-DS, the paper's method, on CIFAR-10: denoiser DnCNN and the encoder are trained before a ResNet-110 that is only
queried, with CGE on 192 coordinates. A few steps are timed and put to an epoch of {EPOCH_IMAGES:,} images, without
targets and validation. The paper takes about {PAPER_MINUTES} minutes on an RTX A6000. *Raw* is the time that decoder
and black box alone take for as many images, at the fastest batch size and memory format of a few. The black box has
random weights, on which no time depends.
"""


@dataclass(frozen=True)
class Check:
    """One check: a line of the file."""

    check: str
    """Kind of the check: `precision` or `epoch`."""
    name: str
    """Black box whose gradients were checked, or way to train that was timed."""
    device: str
    """Device: `cuda` or `cpu`."""
    tiny: bool
    """Whether the check was a dry run at a tiny size, which is never published."""
    data: str
    """Name of the images."""
    figures: Mapping[str, Any]
    """Numbers of the check; see the module."""
    hardware: str
    """Name of the GPU or processor."""
    versions: Mapping[str, str]
    """Versions by name of the program or library."""
    date: str
    """Day of the check, as 2026-01-31."""
    command: str
    """Command that checks again."""


def read_checks(path: Path) -> list[Check]:
    """The checks of a file in order; none where there is no file.

    Args:
        path: File with one JSON line a check.

    Raises:
        UnreadableFile: For a line that is no check.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    checks = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            if set(values) != {item.name for item in fields(Check)}:
                raise ValueError("the fields are not those of a check")
        except (ValueError, TypeError) as error:
            raise UnreadableFile(f"{path}, line {number}: {error}; restore the file or delete the line") from error
        checks.append(Check(**values))
    return checks


def append_check(path: Path, check: Check) -> None:
    """Write one check and flush it.

    Args:
        path: File of the checks; it is made where there is none.
        check: Check to add.
    """
    append_line(path, asdict(check))


def minutes_an_epoch(check: Check) -> float:
    """Minutes of a pass over CIFAR-10's training images, from the timed steps.

    Args:
        check: Check of the kind `epoch`.
    """
    return check.figures["seconds"] * EPOCH_IMAGES / check.figures["batch"] / 60


def page(path: Path, back: str) -> str:
    """The page of the checks as Markdown.

    Args:
        path: File of the checks; it need not exist.
        back: Link from the page to the page of all results.
    """
    return "\n".join([_HEAD, f"[All results]({back})\n", section(path)])


def section(path: Path) -> str:
    """What was measured on CUDA devices, and nothing else, as Markdown.

    Of checks that answer the same question on the same hardware, the last stands.

    Args:
        path: File of the checks; it need not exist.
    """
    latest: dict[tuple[str, str, str], Check] = {}
    for check in read_checks(path):
        if check.device == "cuda" and not check.tiny:
            latest[check.check, check.name, check.hardware] = check
    precisions, epochs = ([c for c in latest.values() if c.check == kind] for kind in ("precision", "epoch"))
    parts = [_PRECISION, *(map(_cosines, precisions) if precisions else [NOTHING])]
    parts += [_EPOCH, _seconds(epochs) if epochs else NOTHING]
    return "\n".join(parts)


def _cosines(check: Check) -> str:
    figures = check.figures
    header = ["estimator", "μ", "queries an image", *figures["columns"]]
    body = [
        [row["estimator"], f"{row['mu']:g}", str(row["queries"]), *(f"{cosine:.3f}" for cosine in row["cosines"])]
        for row in figures["rows"]
    ]
    about = (
        f"Box **{check.name}** on **{check.data}**, {figures['images']} images, {figures['coordinates']} coordinates."
    )
    return "\n".join([about + "\n", markdown([header, *body]), _provenance(check)])


def _seconds(checks: Sequence[Check]) -> str:
    columns = ["queries a step", "seconds a step", "minutes an epoch", f"of the paper's {PAPER_MINUTES}", "of raw"]
    body = []
    for check in checks:
        figures, minutes = check.figures, minutes_an_epoch(check)
        body.append(
            [
                f"{check.name} ({check.hardware}, {figures['steps']} steps of {figures['batch']})",
                f"{figures['queries']:,.0f}",
                f"{figures['seconds']:.2f}",
                f"**{minutes:.1f}**",
                f"{minutes / PAPER_MINUTES:.2f} ×",
                f"{figures['seconds'] / figures['raw_seconds']:.2f} ×",
            ]
        )
    return "\n".join([markdown([["ZO-AE-DS with", *columns], *body]), *map(_provenance, checks)])


def _provenance(check: Check) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in check.versions.items())
    return f"<sub>{check.name}: {check.hardware}, {versions}, {check.date}: `{check.command}`</sub>\n"
