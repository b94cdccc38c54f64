"""Certify a data set: one row an image, appended as it is earned; resumable to the batch; shards that merge.

Beside `certificates.jsonl` lies `certificates.jsonl.votes`, the votes of the image under way, written batch by batch.
Rows and votes are flushed before the next query is sent, so a killed run pays again for the batch in flight only. Of a
base classifier that nothing tells from another one, `certificates.jsonl.canaries` keeps the first answers.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from certibox import __version__
from certibox.blackbox import BlackBox, BoxSpec, is_told_apart
from certibox.certification.alone import booked_as, meter_of
from certibox.certification.asking import UNNAMED
from certibox.certification.canaries import STREAM, Canaries
from certibox.certification.images import check_units, farthest, image_digest
from certibox.certification.interleaving import OldestFirst
from certibox.certification.noise import NEWEST, STREAMS
from certibox.certification.pieces import Certifying, Drawn, Piece
from certibox.certification.sampling import Sampling, sampling_of, whole
from certibox.certification.smoothing import SmoothedClassifier
from certibox.certification.spending import Spending
from certibox.certification.stored import believed, is_decided, read, replay, row_of, shared_settings, write_rows
from certibox.certification.votes import VoteFile
from certibox.confidence.stopping import StoppingRule
from certibox.data import Images
from certibox.errors import ConfigMismatch, InvalidInput, Notice
from certibox.records.certificates import CertificateRow, CertificateRows, add_row, is_rows
from certibox.records.checks import check_stream
from certibox.seeds.switches import settled
from certibox.storage.files import exclusive, truncate_partial_line
from certibox.storage.settings import require_same

BATCHES, LEAST = 200, 16  # batches that a number of queries is spent in at least, and the smallest of them
Progress = Callable[[int, int, str], None]  # images done, images in all, what is going on


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
    stream: int | None = None,
    spend: int | None = None,
) -> CertificateRows:
    """Certify every image of a shard and return all its rows, those of earlier runs included.

    The noise of an image depends on its pixels and `seed` alone: not on shards, batches or interruptions. Errors of the
    base classifier (`BudgetExceeded` among them) pass through; rows and votes so far are kept. Queries of a client or a
    defense are booked under the phase `certify`, unless the caller is inside a phase of another name.

    A run goes on only with the model that began it. What the `model` of its rows cannot tell, as of a bare function
    without a name, is asked: up to 8 noisy copies of its first image again, phase `canaries`.

    With `spend`, as many images as possible are certified at the one radius of the rule for so many queries: a look is
    bought where the expected number of certificates a query is highest, see `spending`. Every image that was begun has
    a row, which states what its votes prove; images that were not begun have none. The same call with more to spend
    goes on with those that the rule has not ended.

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
        stream: Version of the streams of noise; None for that of the rows in `out`, or the newest.
        spend: Most votes to buy in all, those of earlier runs included; None to ask until the rule ends each image.

    Raises:
        ConfigMismatch: if `out` holds rows of another n0, n, alpha, sigma, seed, model, rule, bound or stream; nothing
            is touched then.
        BoxChanged: if the base classifier answers otherwise than the one that began `out`.
        InvalidInput: for what `Sampling` refuses, a shard that does not exist, labels beyond the classes, a sigma or a
            radius that no two images are apart, or rows of other images in `out`.
    """
    index, shards = shard
    if not 0 <= index < shards:
        raise InvalidInput(f"shard is {index} of {shards}; wanted an index from 0 to {shards - 1}")
    wanted = sampling_of(sampling, n0, n, alpha, rule, second_class)
    if spend is not None:
        if wanted.rule is None or wanted.rule.radii is None or len(wanted.rule.radii) != 1:
            raise InvalidInput("queries are spent on one radius; wanted a rule such as EProcess(radii=(0.25,))")
        wanted = replace(wanted, spent=True)
    _check_images(smoothed, images, wanted)
    sizes = wanted.sizes(smoothed.law, smoothed.num_classes)  # before a file is touched
    if spend is not None:
        whole("spend", spend, wanted.n0 + sizes[0], " of queries, enough for the first look at one image")
    settings: dict[str, Any] = {
        **wanted.as_dict(),
        "sigma": smoothed.sigma,
        "seed": whole("seed", seed),
        "model": model or smoothed.model_id,
        "stream": stream if stream is None else check_stream(stream),
    }
    warn_of_training_images(smoothed.owner, images, range(index, len(images), shards))
    at_once = whole("batch_size", batch_size, least=1)
    run = _Run(smoothed, images, wanted, settings, at_once, shard, model is not None, spend)
    path, owner = Path(out) if out is not None else None, smoothed.owner
    booked = owner.default_phase("certify") if isinstance(owner, Booking) else nullcontext()
    with exclusive(path, is_rows) if path else nullcontext(), booked:
        return run.rows(path, progress)


def _check_images(smoothed: SmoothedClassifier, images: Images, sampling: Sampling) -> None:
    """Refuse images whose classes or size do not fit the smoothed classifier and what it is asked."""
    if images.num_classes is not None and images.num_classes > smoothed.num_classes:
        came = f"labels go up to {images.num_classes - 1} but the classifier has {smoothed.num_classes} classes"
        raise InvalidInput(f"{came}; wanted labels below {smoothed.num_classes}")
    if images.view is None:  # whose results may lie anywhere
        check_units(smoothed.law, sampling.rule, farthest(math.prod(images.shape)))


def warn_of_training_images(owner: object, images: Images, chosen: Sequence[int]) -> None:
    """Say how many images a defense was trained on, where both know the digests of their images.

    Args:
        owner: Owner of the base classifier.
        images: Images.
        chosen: Positions of those that are to be certified.
    """
    trained_on, digests = getattr(owner, "trained_on", None), getattr(images, "digests", None)
    if trained_on is None or digests is None:
        return
    known = int(torch.isin(digests[torch.as_tensor(chosen, dtype=torch.int64)], trained_on).sum())
    if known:
        text = "what is certified of them says little of new ones; certify images that it has not seen"
        warnings.warn(f"{known} of {len(chosen)} images trained this defense: {text}", Notice, stacklevel=3)


@dataclass(frozen=True)
class _Run:
    """One run over the images of a shard, checked."""

    smoothed: SmoothedClassifier
    images: Images
    sampling: Sampling
    settings: dict[str, Any]
    batch_size: int
    shard: tuple[int, int]
    named: bool
    spend: int | None = None

    def rows(self, path: Path | None, progress: Progress | None) -> CertificateRows:
        """Rows of the shard, going on from what `path` holds."""
        index, shards = self.shard
        rows, settings = _resume(path, self.settings, self.images, self.smoothed.num_classes, self.sampling)
        mine = range(index, len(self.images), shards)
        todo = [i for i in mine if i not in rows]
        votes = canaries = None
        if rows:
            self.smoothed.batch_check.skip()
        if path:
            votes, settings = self._votes(path, settings)
            if self.spend is not None:
                todo = self._taken_back(path, rows, votes, mine)
            canaries = self._canaries(path, settings, rows, todo, votes)
        reserved = self.sampling.reserve(len(todo)) if self.spend is None else self.spend
        with self.smoothed.batch_check.reserving(reserved), settled():
            self._certify(todo, len(mine), rows, settings, votes, canaries, path, progress)
        made = CertificateRows(rows[i] for i in sorted(rows))
        if path and self.spend is not None:
            write_rows(path, made)  # in order: some were taken back
        if votes and self.spend is None:  # else what is left has not been looked at
            votes.discard()
        if progress:
            progress(len(mine), len(mine), "done")
        return made

    def _certify(
        self,
        todo: list[int],
        total: int,
        rows: dict[int, CertificateRow],
        settings: dict[str, Any],
        votes: VoteFile | None,
        canaries: Canaries | None,
        path: Path | None,
        progress: Progress | None,
    ) -> None:
        """Certify the images `todo`, several at once, and add their rows, in the order of the images."""
        begun: dict[int, Certifying] = {}
        drawn = Drawn(self.smoothed.law, settings["seed"], settings["stream"] or NEWEST)

        def images() -> Iterator[Certifying]:
            for i in todo:
                x = self.images.floats([i])[0]
                journal = votes.of(image_digest(x)) if votes else None
                one = begun[i] = self.smoothed.begin(x, self.sampling, drawn, journal)
                if one.finished and one.decision and isinstance(order, Spending):
                    order.ended(self.sampling.n0 + one.looks[-1][0], one.decision.p_lower)
                yield one

        def pays(open_images: Iterable[Certifying]) -> bool:
            """Whether the budget pays for another image after all those that are open: else it might finish none."""
            left = getattr(meter_of(self.smoothed.owner), "images_left", None)
            most = self.sampling.n0 + self.sampling.n
            return left is None or left >= most + sum(one.most_left for one in open_images)

        def saw(one: Certifying, piece: Piece, outputs: Tensor) -> None:
            if canaries:
                canaries.see(one.image, piece.name, piece.start, outputs)

        done, waiting = total - len(todo), deque(todo)
        if progress:
            progress(done, total, "first image")
        together = votes.together if votes else nullcontext
        order = OldestFirst(pays) if self.spend is None else self._spending(self.spend, rows, votes)
        most = self.batch_size
        if self.spend is not None:  # what is bought next is to follow from what was bought before
            most = min(most, max(LEAST, self.spend // BATCHES))
        finished = self.smoothed.interleaved(images(), most, order, saw, together)

        def written() -> None:
            """Add the rows of images that are finished, up to the first that is not."""
            while waiting and waiting[0] in begun and begun[waiting[0]].finished:
                i = waiting.popleft()
                rows[i] = self._row(i, begun.pop(i), settings)
                if path:
                    add_row(path, rows[i])
                if votes:
                    votes.forget(rows[i].image)

        try:
            for _ in finished:
                done += 1
                if progress and done < total:
                    progress(done, total, f"{sum(not one.finished for one in begun.values())} images under way")
                written()
        finally:
            finished.close()
        for i, one in list(begun.items()):  # only where queries were to be spent, and are
            if one.looks:
                one.end()
            else:  # the first votes of an interrupted run, which are kept
                del begun[i]
        waiting = deque(sorted(begun))
        written()

    def _spending(self, queries: int, rows: dict[int, CertificateRow], votes: VoteFile | None) -> Spending:
        """The order in which the queries that are left to spend buy votes."""
        left = queries - sum(row.queries for row in rows.values()) - (votes.held if votes else 0)
        budget = getattr(meter_of(self.smoothed.owner), "images_left", None)
        left = max(0, left if budget is None else min(left, budget))
        held = votes.images if votes else 0
        order = Spending(left, self.sampling, self.smoothed.law, self.smoothed.num_classes, held)
        for row in rows.values():
            order.ended(row.queries, row.p_lower)
        return order

    def _taken_back(self, path: Path, rows: dict[int, CertificateRow], votes: VoteFile, mine: range) -> list[int]:
        """Images to go on with, in their order: those without a row, and those whose rule has not ended their votes.

        The rows of the latter become votes again.
        """
        known = {self.settings["rule"]["name"]: lambda **_: self.sampling.rule}
        undecided = [row for row in rows.values() if not is_decided(row, known)]  # pyright: ignore[reportArgumentType]
        votes.drop({row.image for row in rows.values()} - {row.image for row in undecided})
        if undecided:
            for row in undecided:
                votes.take_back(row)
                del rows[row.idx]
            write_rows(path, rows.values())
        return [i for i in mine if i not in rows]

    def _row(self, i: int, one: Certifying, settings: dict[str, Any]) -> CertificateRow:
        """The row of one image."""
        label = int(self.images.labels[i]) if self.images.labels is not None else None
        files = getattr(self.images, "files", None)
        file = files[i] if files else None
        return row_of(one.certificate(), i, label, one.seconds, settings["model"], __version__, file)

    def _votes(self, path: Path, settings: dict[str, Any]) -> tuple[VoteFile, dict[str, Any]]:
        """The votes of the image under way, and the settings with the stream that they, or else new ones, are of."""
        given = settings["stream"]
        tried = []
        for stream in sorted(STREAMS, reverse=True) if given is None else (given,):
            found = settings | {"stream": stream}
            kept = {key: value for key, value in found.items() if (key, value) != ("stream", 1)}  # as it always was
            tried.append((VoteFile(path, kept | {"num_classes": self.smoothed.num_classes}), found))
        return next((one for one in tried if one[0].begun), tried[0])

    def _canaries(
        self, path: Path, settings: dict[str, Any], rows: dict[int, CertificateRow], todo: list[int], votes: VoteFile
    ) -> Canaries | None:
        """The first answers of the run, asked again where it goes on; None where rows name the model, or are done."""
        if not todo or self.named or _told_apart(self.smoothed):
            return None
        canaries = Canaries(path, {key: settings[key] for key in ("sigma", "seed", "stream")})
        under_way = image_digest(self.images.floats([todo[0]])[0])
        if not rows and not votes.has(under_way):
            canaries.discard()
            return canaries
        places = {under_way: todo[0]} | {row.image: row.idx for row in rows.values()}
        place = places.get(canaries.image or "")
        canaries.require_same(None if place is None else partial(self._again, place, settings))
        return canaries

    def _again(self, place: int, settings: dict[str, Any], count: int) -> Tensor:
        """The answers to the first noisy copies of an image, asked again."""
        x = self.images.floats([place])[0]
        with booked_as(self.smoothed.owner, "canaries"):
            return self.smoothed.answers(x, n=count, seed=settings["seed"], name=STREAM, stream=settings["stream"])


def _told_apart(smoothed: SmoothedClassifier) -> bool:
    """Whether the name of a base classifier in records tells it from another one."""
    owner = smoothed.owner
    if isinstance(getattr(owner, "spec", None), BoxSpec) and not hasattr(owner, "told_apart"):
        return is_told_apart(cast(BlackBox, owner))
    return bool(getattr(owner, "told_apart", getattr(meter_of(owner), "told_apart", smoothed.model_id != UNNAMED)))


def _resume(
    path: Path | None, settings: dict[str, Any], images: Images, num_classes: int, sampling: Sampling
) -> tuple[dict[int, CertificateRow], dict[str, Any]]:
    """Rows of earlier runs by image, checked to be of this configuration; the settings, with the stream of theirs."""
    if path is None:
        return {}, settings
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return {}, settings
    rows = {row.idx: row for row in read(path)}
    for row in rows.values():
        if settings["stream"] is None:
            settings = settings | {"stream": row.stream}
        _require_same(row, settings, path)
        require_same({"num_classes": len(row.counts)}, {"num_classes": num_classes}, str(path))
        if row.idx >= len(images):
            came = f"{path} holds a certificate of image {row.idx}, but the images here end at {len(images) - 1}"
            raise InvalidInput(f"{came}; wanted as many images as before, or a new file")
        if row.image != image_digest(images.floats([row.idx])[0]):
            raise InvalidInput(
                f"{path} holds a certificate of another image {row.idx}; wanted the same images or a new file"
            )
    if own := believed(rows.values()):  # certibox has no builder of this rule, but here is the rule itself
        try:
            replay(rows.values(), {own[0]: lambda **_: sampling.rule})  # pyright: ignore[reportArgumentType]
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from error
    truncate_partial_line(path)
    return rows, settings


def _require_same(row: CertificateRow, settings: dict[str, Any], path: Path) -> None:
    """Refuse to go on from a row of another configuration or model."""
    there, here = shared_settings(row), settings
    require_same(there | {"model": here["model"]}, here, str(path))
    if row.model != here["model"]:
        raise ConfigMismatch(
            f"{path} holds rows of another model: model is {row.model!r} there and {here['model']!r} here; the model, "
            "or what is declared of it, such as its classes, has changed since these rows were written: use another "
            "file, or the model and its declaration as they were"
        )
