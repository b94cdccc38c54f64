"""Certify a data set: one row an image, appended as it is earned; resumable to the batch; shards that merge.

Beside `certificates.jsonl` lies `certificates.jsonl.votes`, the votes of the image under way, written batch by batch.
Rows and votes are flushed before the next query is sent, so a killed run pays again for the batch in flight only.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from certibox.config import require_same
from certibox.data import Images
from certibox.errors import InvalidInput, UnreadableFile
from certibox.records import CertificateRow, append_row, exclusive, read_rows, truncate_partial_line, write_text_atomic
from certibox.report import certified_accuracy
from certibox.sequential import StoppingRule
from certibox.smoothing import Certificate, SmoothedClassifier, image_digest, rule_record
from certibox.version import VERSION

Progress = Callable[[int, int, str], None]  # images done, images in all, what is going on
Ask = Callable[..., Certificate]  # an image and `journal=` -> its certificate


def certify_dataset(
    smoothed: SmoothedClassifier,
    images: Images,
    *,
    n0: int,
    n: int,
    alpha: float,
    seed: int,
    rule: StoppingRule | None = None,
    second_class: bool = False,
    out: str | Path | None = None,
    model: str | None = None,
    shard: tuple[int, int] = (0, 1),
    batch_size: int = 1000,
    progress: Progress | None = None,
) -> list[CertificateRow]:
    """Certify every image of a shard and return all its rows, those of earlier runs included.

    Image i of `images` belongs to shard i % k of (index, k). out: a JSON-lines file to append to and resume from; it
    must hold rows of the same n0, n, alpha, sigma, seed, model, rule and bound, or `ConfigMismatch` is raised and
    nothing touched. rule, second_class: as in `SmoothedClassifier.certify`; with a rule, n is its cap.
    model: a name for the base classifier; a `QueryClient` or `Defense` has its own, but two bare functions can only be
    told apart by the names that you give them.
    The noise of an image depends on its pixels and `seed` alone: not on shards, batches or interruptions. Errors
    of the base classifier (`BudgetExceeded` among them) pass through; rows and votes so far are kept.
    """
    index, shards = shard
    if not 0 <= index < shards:
        raise InvalidInput(f"shard is {index} of {shards}; wanted an index from 0 to {shards - 1}")
    n0, n, alpha, second_class = int(n0), int(n), float(alpha), bool(second_class)  # as JSON has them
    smoothed.sizes(n, alpha, rule, second_class)
    if images.num_classes is not None and images.num_classes > smoothed.num_classes:
        came = f"labels go up to {images.num_classes - 1} but the classifier has {smoothed.num_classes} classes"
        raise InvalidInput(f"{came}; wanted labels below {smoothed.num_classes}")
    settings: dict[str, Any] = {
        "n0": n0,
        "n": n,
        "alpha": alpha,
        "sigma": smoothed.sigma,
        "seed": seed,
        "model": model or smoothed.model_id,
        "second_class": second_class,
        "rule": rule_record(rule, n, alpha) if rule else None,
    }
    ask = partial(
        smoothed.certify,
        n0=n0,
        n=n,
        alpha=alpha,
        seed=seed,
        rule=rule,
        second_class=second_class,
        batch_size=batch_size,
    )
    path = Path(out) if out is not None else None
    with exclusive(path) if path else nullcontext():
        return _certify(ask, images, settings, smoothed.num_classes, path, shard, progress)


def _certify(
    ask: Ask,
    images: Images,
    settings: dict[str, Any],
    num_classes: int,
    path: Path | None,
    shard: tuple[int, int],
    progress: Progress | None,
) -> list[CertificateRow]:
    """Rows of a shard, going on from what `path` holds."""
    index, shards = shard
    rows = _resume(path, settings, images, num_classes)
    mine = range(index, len(images), shards)
    todo = [i for i in mine if i not in rows]
    votes = _VoteFile(path, settings | {"num_classes": num_classes}) if path else None
    for done, i in enumerate(todo, start=len(mine) - len(todo)):
        if progress:
            progress(done, len(mine), f"image {i}")
        started = time.perf_counter()
        x = images.floats([i])[0]
        journal = votes.of(image_digest(x)) if votes else None
        certificate = ask(x, journal=journal)
        label = int(images.labels[i]) if images.labels is not None else None
        rows[i] = _row(certificate, i, label, time.perf_counter() - started, settings["model"], VERSION)
        if path:
            with path.open("a", encoding="utf-8") as file:
                append_row(file, rows[i])
    if votes:
        votes.discard()
    if progress:
        progress(len(mine), len(mine), "done")
    return [rows[i] for i in sorted(rows)]


def at_alpha(rows: Iterable[CertificateRow], alpha: float) -> list[CertificateRow]:
    """The rows that the same votes give at another alpha; no query is spent. See `Certificate.at_alpha`."""
    return [_again(row, _certificate(row).at_alpha(alpha)) for row in rows]


def replay(rows: Iterable[CertificateRow]) -> list[CertificateRow]:
    """The rows, computed again from their votes: every look, every decision of the rule, bound, radius and queries.

    Errors: `InvalidInput`, naming the image, for a row that states anything else. A row that contradicts itself nowhere
    passes: this cannot see whether the votes came from the box, or from the noise of the seed; nor that a rule was
    taken away, where a sequential row is rewritten as one of a fixed n. For that, the queries must be asked again.
    """
    replayed = []
    for row in rows:
        try:
            replayed.append(_again(row, _certificate(row).replay()))
        except InvalidInput as error:
            raise InvalidInput(f"row of image {row.idx} does not replay: {error}") from error
    return replayed


def merge(parts: Sequence[str | Path], out: str | Path) -> list[CertificateRow]:
    """Merge the files of shards into one, in order of images.

    Errors: `ConfigMismatch` if their settings differ; `InvalidInput` if two files disagree about an image. A row that
    is in two files alike is kept once.
    """
    if not parts:
        raise InvalidInput("there is nothing to merge; wanted the certificate files of some shards")
    merged: dict[int, CertificateRow] = {}
    first: dict[str, object] | None = None
    for part in parts:
        for row in read_rows(part):
            settings = _settings(row)
            first = first or settings
            require_same(settings, first, str(part))
            known = merged.setdefault(row.idx, row)
            if replace(known, seconds=0.0) != replace(row, seconds=0.0):
                raise InvalidInput(
                    f"{part} disagrees with an earlier file on image {row.idx}; wanted shards of one run"
                )
    rows = [merged[i] for i in sorted(merged)]
    text = io.StringIO()
    for row in rows:
        append_row(text, row)
    write_text_atomic(out, text.getvalue())
    return rows


@dataclass(frozen=True)
class SigmaChoice:
    """The sigma with which to certify each radius, and the images that it was chosen on.

    sigmas: radius -> sigma. images: SHA-256 of the validation images, none of which may be certified under the choice.
    """

    sigmas: dict[float, float]
    images: frozenset[str]


def choose_sigma(rows_by_sigma: Mapping[float, Sequence[CertificateRow]], radii: Sequence[float]) -> SigmaChoice:
    """For each radius the sigma with the most certified accuracy on validation images; ties go to the smaller sigma.

    rows_by_sigma: sigma -> rows of the same validation images. The radius asked decides which sigma a test image is
    certified with, and never the image: Theorem 1 holds for one g, so a sigma that depends on the input has no
    certificate. Errors: `InvalidInput` for rows of another sigma, or without labels, or of different images, or whose
    rule did not decide one of the radii.
    """
    images = [_images(rows_by_sigma, sigma) for sigma in sorted(rows_by_sigma)]
    if not images or any(seen != images[0] for seen in images):
        raise InvalidInput("the validation rows are not of the same images under every sigma; wanted them all alike")
    for sigma, rows in rows_by_sigma.items():
        _require_decided(rows, sigma, radii)
    accuracies = {sigma: certified_accuracy(rows_by_sigma[sigma], list(radii)) for sigma in sorted(rows_by_sigma)}
    best = {radius: max(accuracies, key=lambda sigma: accuracies[sigma][i]) for i, radius in enumerate(radii)}
    return SigmaChoice(best, images[0])


def envelope(choice: SigmaChoice, rows_by_sigma: Mapping[float, Sequence[CertificateRow]]) -> dict[float, float]:
    """Certified accuracy on test images at each radius, under the sigma that validation images chose for it.

    rows_by_sigma: sigma -> test rows. Errors: `InvalidInput` if an image was chosen on, or a chosen sigma has no rows.
    """
    for sigma in sorted(set(choice.sigmas.values())):
        if shared := _images(rows_by_sigma, sigma) & choice.images:
            text = f"{len(shared)} of the test images at sigma = {sigma} are validation images"
            raise InvalidInput(f"{text}, such as {min(shared)[:12]}; wanted images that chose nothing")
        _require_decided(rows_by_sigma[sigma], sigma, [r for r, chosen in choice.sigmas.items() if chosen == sigma])
    return {
        radius: float(certified_accuracy(rows_by_sigma[sigma], [radius])[0]) for radius, sigma in choice.sigmas.items()
    }


def undecided(rows: Sequence[CertificateRow], radii: Sequence[float]) -> list[float]:
    """Those of `radii` that the stopping rule of some row was not asked about: it stopped before it knew."""
    return [r for r in radii if any(row.decided is not None and r not in row.decided for row in rows)]


def _require_decided(rows: Sequence[CertificateRow], sigma: float, radii: Sequence[float]) -> None:
    """Raise `InvalidInput` for a radius that a rule was not asked about: accuracies there are not comparable."""
    if open_ := undecided(rows, radii):
        came = f"the rule of the rows at sigma = {sigma} did not decide r = {open_[0]:g}"
        raise InvalidInput(f"{came}; certify again with it")


def _images(rows_by_sigma: Mapping[float, Sequence[CertificateRow]], sigma: float) -> frozenset[str]:
    """Which images the rows under `sigma` are of, after checking that this is their sigma."""
    rows = rows_by_sigma.get(sigma, ())
    if not rows or any(row.sigma != sigma for row in rows):
        came = (
            f"of sigma = {', '.join(f'{other}' for other in sorted({row.sigma for row in rows}))}" if rows else "none"
        )
        raise InvalidInput(f"the rows given for sigma = {sigma} are {came}; wanted rows certified with that noise")
    return frozenset(row.image for row in rows)


def _settings(row: CertificateRow) -> dict[str, Any]:
    """What all rows of one file share; n is the cap of a sequential rule."""
    shared = {key: getattr(row, key) for key in ("n0", "alpha", "sigma", "seed", "model", "second_class")}
    return shared | {"n": row.cap, "rule": row.rule}


def _certificate(row: CertificateRow) -> Certificate:
    held = {item.name: getattr(row, item.name) for item in fields(Certificate) if item.name != "label"}
    return Certificate(label=row.predict, **held)


def _again(row: CertificateRow, certificate: Certificate) -> CertificateRow:
    """The row of an image under another certificate."""
    return _row(certificate, row.idx, row.label, row.seconds, row.model, row.version)


def _row(
    certificate: Certificate, idx: int, label: int | None, seconds: float, model: str, version: str
) -> CertificateRow:
    """The row of one certificate; `label` is the true class, where it is known."""
    held = {key: value for key, value in certificate.as_dict().items() if key != "label"}
    correct = None if label is None else certificate.label == label
    predict = certificate.label
    return CertificateRow(idx, label, predict, correct=correct, seconds=seconds, model=model, version=version, **held)  # pyright: ignore


def _resume(path: Path | None, settings: dict[str, Any], images: Images, num_classes: int) -> dict[int, CertificateRow]:
    """Rows of earlier runs by image, after checking that they are of this configuration and these images."""
    if path is None:
        return {}
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return {}
    rows = {row.idx: row for row in read_rows(path)}
    for row in rows.values():
        require_same(_settings(row), settings, str(path))
        require_same({"num_classes": len(row.counts)}, {"num_classes": num_classes}, str(path))
        if row.idx >= len(images) or row.image != image_digest(images.floats([row.idx])[0]):
            raise InvalidInput(
                f"{path} holds a certificate of another image {row.idx}; wanted the same images or a new file"
            )
    truncate_partial_line(path)
    return rows


class _VoteFile:
    """Votes of the image under way: one JSON line a batch, kept only until the next image begins."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self._settings = path.with_name(path.name + ".votes"), settings
        self._image = ""
        self._streams: dict[str, tuple[int, np.ndarray]] = {}
        if self.path.exists():
            truncate_partial_line(self.path)  # the line that a kill cut short
            for line in self.path.read_text(encoding="utf-8").splitlines():
                self._take(line)

    def of(self, image: str) -> _VoteFile:
        """The journal of one image: what an interrupted run left of it, else empty."""
        if image != self._image:
            self._image, self._streams = image, {}
            self.discard()
        return self

    def recall(self, stream: str) -> tuple[int, np.ndarray | None]:
        return self._streams.get(stream, (0, None))

    def note(self, stream: str, done: int, votes: np.ndarray) -> None:
        entry = {"image": self._image, "settings": self._settings, "stream": stream}
        line = json.dumps({**entry, "done": done, "votes": votes.tolist()})
        with self.path.open("a", encoding="utf-8") as file:  # closed, so flushed, before the next query
            file.write(line + "\n")

    def discard(self) -> None:
        """Forget the file: its votes are in a row, or of no use here."""
        self.path.unlink(missing_ok=True)

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
            settings, image, stream = entry["settings"], entry["image"], entry["stream"]
            done, votes = entry["done"], np.array(entry["votes"], dtype=np.int64)
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableFile(f"{self.path}: {line[:60]!r} is no line of votes; delete the file") from error
        if settings == self._settings:
            self._image, self._streams[stream] = image, (done, votes)
