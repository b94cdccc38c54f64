"""Certify a data set: one row an image, appended as it is earned; resumable to the batch; shards that merge.

Beside `certificates.jsonl` lies `certificates.jsonl.votes`, the votes of the image under way, written batch by batch.
Rows and votes are flushed before the next query is sent, so a killed run pays again for the batch in flight only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from certibox import __version__
from certibox.certification.certificate import Certificate
from certibox.certification.sampling import Sampling, sampling_of
from certibox.certification.smoothing import SmoothedClassifier, image_digest
from certibox.certification.stored import read, row_of, shared_settings
from certibox.certification.votes import VoteFile
from certibox.confidence.stopping import StoppingRule
from certibox.data import Images
from certibox.errors import InvalidInput
from certibox.records.certificates import CertificateRow, add_row, is_rows
from certibox.storage.files import exclusive, truncate_partial_line
from certibox.storage.settings import require_same

Progress = Callable[[int, int, str], None]  # images done, images in all, what is going on
Ask = Callable[..., Certificate]  # an image and `journal=` -> its certificate


@runtime_checkable
class Booking(Protocol):
    """What a base classifier belongs to, where it books queries by phase, as `QueryClient` and `Defense` do."""

    def default_phase(self, name: str) -> AbstractContextManager[None]:
        """Book what is spent inside under a name, unless the caller has named a phase already.

        Args:
            name: Name of the phase.
        """
        ...


def certify_dataset(
    smoothed: SmoothedClassifier,
    images: Images,
    *,
    n0: int | None = None,
    n: int | None = None,
    alpha: float | None = None,
    seed: int,
    rule: StoppingRule | None = None,
    second_class: bool = False,
    sampling: Sampling | None = None,
    out: str | Path | None = None,
    model: str | None = None,
    shard: tuple[int, int] = (0, 1),
    batch_size: int = 1000,
    progress: Progress | None = None,
) -> list[CertificateRow]:
    """Certify every image of a shard and return all its rows, those of earlier runs included.

    The noise of an image depends on its pixels and `seed` alone: not on shards, batches or interruptions. Errors of the
    base classifier (`BudgetExceeded` among them) pass through; rows and votes so far are kept. Queries of a client or a
    defense are booked under the phase `certify`, unless the caller is inside a phase of another name.

    Args:
        smoothed: Smoothed classifier to certify.
        images: Images to certify, with labels where they are known.
        n0: Number of votes that pick the class.
        n: Number of votes that bound its probability; with a rule, the maximum of them.
        alpha: Failure probability of each certificate, in (0, 1).
        seed: Seed of the noise.
        rule: Stopping rule that looks at the votes as they come; None draws all n votes.
        second_class: Whether the other classes are bounded from above too, as in `SmoothedClassifier.certify`.
        sampling: Sampling in place of n0, n, alpha, rule and second_class.
        out: JSON-lines file to append to and resume from.
        model: Name of the base classifier in the rows; a `QueryClient` or `Defense` has its own, but two bare functions
            can only be told apart by the names that you give them.
        shard: Index and number k of the shards; image i belongs to shard i % k.
        batch_size: Number of noisy copies at a time.
        progress: Function that is told (images done, images in all, what is going on).

    Raises:
        ConfigMismatch: if `out` holds rows of another n0, n, alpha, sigma, seed, model, rule or bound; nothing is
            touched then.
        InvalidInput: for what `Sampling` refuses, a shard that does not exist, labels beyond the classes, or rows of
            other images in `out`.
    """
    index, shards = shard
    if not 0 <= index < shards:
        raise InvalidInput(f"shard is {index} of {shards}; wanted an index from 0 to {shards - 1}")
    wanted = sampling_of(sampling, n0, n, alpha, rule, second_class)
    wanted.sizes(smoothed.law, smoothed.num_classes)  # before a file is touched
    if images.num_classes is not None and images.num_classes > smoothed.num_classes:
        came = f"labels go up to {images.num_classes - 1} but the classifier has {smoothed.num_classes} classes"
        raise InvalidInput(f"{came}; wanted labels below {smoothed.num_classes}")
    settings: dict[str, Any] = {
        **wanted.as_dict(),
        "sigma": smoothed.sigma,
        "seed": seed,
        "model": model or smoothed.model_id,
    }
    ask = partial(smoothed.certify, sampling=wanted, seed=seed, batch_size=batch_size)
    path, owner = Path(out) if out is not None else None, smoothed.owner
    booked = owner.default_phase("certify") if isinstance(owner, Booking) else nullcontext()
    with exclusive(path, is_rows) if path else nullcontext(), booked:
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
    votes = VoteFile(path, settings | {"num_classes": num_classes}) if path else None
    for done, i in enumerate(todo, start=len(mine) - len(todo)):
        if progress:
            progress(done, len(mine), f"image {i}")
        started = time.perf_counter()
        x = images.floats([i])[0]
        journal = votes.of(image_digest(x)) if votes else None
        certificate = ask(x, journal=journal)
        label = int(images.labels[i]) if images.labels is not None else None
        rows[i] = row_of(certificate, i, label, time.perf_counter() - started, settings["model"], __version__)
        if path:
            add_row(path, rows[i])
    if votes:
        votes.discard()
    if progress:
        progress(len(mine), len(mine), "done")
    return [rows[i] for i in sorted(rows)]


def _resume(path: Path | None, settings: dict[str, Any], images: Images, num_classes: int) -> dict[int, CertificateRow]:
    """Rows of earlier runs by image, after checking that they are of this configuration and these images."""
    if path is None:
        return {}
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return {}
    rows = {row.idx: row for row in read(path)}
    for row in rows.values():
        require_same(shared_settings(row), settings, str(path))
        require_same({"num_classes": len(row.counts)}, {"num_classes": num_classes}, str(path))
        if row.idx >= len(images) or row.image != image_digest(images.floats([row.idx])[0]):
            raise InvalidInput(
                f"{path} holds a certificate of another image {row.idx}; wanted the same images or a new file"
            )
    truncate_partial_line(path)
    return rows
