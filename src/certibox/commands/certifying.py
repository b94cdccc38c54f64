"""`certibox certify` and `certibox predict`: the smoothed classifier, of a defense or of the bare box."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from certibox import certification, report
from certibox.certification.certificate import out_of_reach
from certibox.certification.sampling import ALPHA, EARLY, Sampling
from certibox.certification.smoothing import SmoothedClassifier
from certibox.certification.stored import is_decided
from certibox.commands import process
from certibox.commands.boxes import LEDGER, BoxOptions, require_ledger
from certibox.commands.fields import Needs, option
from certibox.commands.lines import tell
from certibox.commands.models import defense_folder
from certibox.commands.options import MOST_IMAGES, MOST_VOTES, DataOptions, RuleOptions, folder
from certibox.commands.printing import OUT, spent
from certibox.commands.progress import bar
from certibox.confidence.gaussian import Gaussian
from certibox.confidence.ranks import RankVerification
from certibox.data import Images
from certibox.defense.saved import Defense, load_defense
from certibox.errors import InvalidInput
from certibox.queries.client import QueryClient
from certibox.records.certificates import CertificateRows
from certibox.records.tsv import is_tsv, write_tsv
from certibox.storage.files import require_place

_NO_SIGMA = "sigma is not given; wanted the noise's standard deviation in pixels on [0, 1], such as --sigma 0.25"


@dataclass(frozen=True)
class Smoothing:
    """Noise, votes and confidence of the smoothed classifier."""

    defense: str | None = option("directory of a saved defense; without it the bare box is smoothed", None)
    sigma: float | None = option("standard deviation of the noise, in pixels on [0, 1]; by default the defense's", None)
    alpha: float = option("probability that one certificate is false", ALPHA)
    seed: int = option("seed of the noise", 0, least=0)
    noise_batch_size: int = option("noisy copies at a time", 1000, advanced=True, least=1, most=MOST_IMAGES)
    check_box: bool = option(
        "first ask the canaries of the defense's fingerprint, and stop if the box has changed", False, advanced=True
    )
    ledger: str | None = option(
        "ledger of queries; by default certify keeps one in --out, predict none", None, advanced=True
    )


@dataclass(frozen=True)
class Certify(BoxOptions, DataOptions, Smoothing, RuleOptions):
    """Certify images: one row each, appended as earned. Interrupted runs resume from --out.

    Votes on an image end when they have decided the radii sigma/2, sigma and 2 sigma, or those of --radii.

    example: certibox certify --model box.py:predict --outputs probabilities --data digits --limit 100 \\
                 --defense runs/mine/defense --out runs/mine/certified
    """

    NEEDS: ClassVar = (
        Needs(
            "second_class",
            lambda o: o.rule == "fixed",
            "with --rule {rule}, which bounds the probability of the top class alone",
            "--rule fixed",
        ),
        Needs("radius", lambda o: o.spend is not None, "without --spend, whose radius it is", "--spend N"),
    )

    split: str = option("which split of the data", "test")
    spend: int | None = option(
        "certify as many images as possible at --radius for so many queries in all: votes go where certificates are "
        "near; more to spend goes on",
        None,
        least=1,
    )
    radius: float | None = option("l2 radius that --spend is for, in pixels on [0, 1]", None, least=0)
    second_class: bool = option(
        "bound the runner-up's probability too, with alpha split; wants --rule fixed", False, advanced=True
    )
    shard: str = option(
        "this part of the images, as i/k with i from 1 to k; `merge` joins the parts", "1/1", advanced=True
    )
    out: str = option("directory for certificates.jsonl and certificates.tsv")


@dataclass(frozen=True)
class Predict(BoxOptions, DataOptions, Smoothing):
    """Predict with the smoothed classifier, the one that certificates speak of; prints one JSON line an image.

    Votes end as soon as they prove a class to be the likeliest. A null class is an abstention: the votes cannot tell
    the top two classes apart.

    example: certibox predict --model box.py:predict --outputs probabilities --data digits --limit 3 \\
                 --defense runs/mine/defense
    """

    split: str = option("which split of the data", "test")
    n: int | None = option(
        "votes an image, at most; by default 1500, for a fixed n 1000", None, least=1, most=MOST_VOTES
    )
    rule: Literal["rank-verification", "fixed"] = option(
        "rank-verification ends the votes as soon as they prove a class to be the likeliest; fixed always draws n",
        "rank-verification",
    )
    n0: int | None = option(
        "first votes that only weigh the classes; by default 5, for a fixed n none", None, least=0, most=MOST_VOTES
    )


def run_certify(options: Certify) -> None:
    """`certibox certify`.

    Args:
        options: Options of the command.
    """
    index, shards = _shard(options.shard)
    options = _spending(options)
    sampling = Sampling(*options.sample_sizes(), options.alpha)  # what can only abstain is refused before images load
    out = folder(options.out)
    name = "certificates.jsonl" if shards == 1 else f"certificates.{index + 1}-of-{shards}.jsonl"
    table = (out / name).with_suffix(".tsv")
    images = _images(options)
    if images.labels is not None:
        require_place(table, is_tsv)
    if index >= len(images):
        raise InvalidInput(
            f"shard {options.shard} of {len(images)} images is empty; wanted at most {len(images)} shards"
        )
    if options.ledger is None:
        advice = "restore it, or name a new one with --ledger and lower budget by what was spent"
        require_ledger(out / LEDGER, out / name, options.budget, advice)
    client, smoothed, model, defense = _smoothed(options, images, Path(options.ledger or out / LEDGER))
    rule = options.build_rule(smoothed.sigma)
    sampling = replace(sampling, rule=rule, second_class=options.second_class)
    sampling.sizes(smoothed.law, smoothed.num_classes)  # again below, but after the canaries
    if rule and (beyond := out_of_reach(rule, sampling.n, sampling.alpha, smoothed.law)):
        OUT.print(beyond)
    if options.check_box:
        _check_box(defense, client)
    with client.phase("certify"), bar("certifying", client) as progress:
        rows = certification.certify_dataset(
            smoothed,
            images,
            sampling=sampling,
            seed=options.seed,
            out=out / name,
            model=model,
            shard=(index, shards),
            batch_size=options.noise_batch_size,
            progress=progress,
            spend=options.spend,
        )
    if images.labels is not None:
        write_tsv(rows, table)
    if options.spend is not None:
        OUT.print(
            _bought(rows, decided_at=options.radii_at(smoothed.sigma)[0], of=len(range(index, len(images), shards)))
        )
    run = report.Run(out.name, rows, client.spent)
    decided = options.radii_at(smoothed.sigma)  # a rule may stop before it knows about any other, 0 included
    OUT.print(report.render_table([run], list(decided) if rule and options.tolerance is None else [0.0, *decided]))
    OUT.print(f"saved {Path(options.out) / name}; queries spent: {spent(client)}")


def run_predict(options: Predict) -> None:
    """`certibox predict`.

    Args:
        options: Options of the command.
    """
    images = _images(options)
    ledger = Path(options.ledger) if options.ledger else None
    client, smoothed, _, defense = _smoothed(options, images, ledger)
    if options.check_box:
        _check_box(defense, client)
    files = getattr(images, "files", None)
    rule, (n0, n) = (RankVerification(), EARLY) if options.rule == "rank-verification" else (None, (0, 1000))
    with client.phase("predict"):
        for i in range(len(images)):
            x = images.floats([i])[0]
            made = smoothed.predict(
                x,
                n=n if options.n is None else options.n,
                alpha=options.alpha,
                seed=options.seed,
                rule=rule,
                n0=n0 if options.n0 is None else options.n0,
                batch_size=options.noise_batch_size,
            )
            named = {} if files is None else {"file": files[i]}
            line = {"idx": i, **named, "predict": made.label, "p_value": made.p_value, "counts": made.counts}
            line["queries"] = made.queries
            process.say(json.dumps(line) + "\n")
            if process.lost():  # nobody reads on: another image would be paid for in vain
                return


def _spending(options: Certify) -> Certify:
    """The options with the one radius that queries are spent on."""
    if options.spend is None:
        return options
    if options.radius is None:
        raise InvalidInput(f"spend is {options.spend} without a radius; wanted --radius, as --radius 0.25")
    if options.rule == "fixed" or options.radii is not None or options.tolerance is not None:
        given = "rule fixed" if options.rule == "fixed" else "radii" if options.radii is not None else "tolerance"
        raise InvalidInput(f"--{given} was given beside --spend, which decides --radius alone; leave it out")
    return replace(options, radii=[options.radius])


def _bought(rows: CertificateRows, decided_at: float, of: int) -> str:
    """What was bought, in words: images that were not certified, for whatever reason, count in the share."""
    certified = sum(row.predict is not None and row.radius >= decided_at for row in rows)
    open_ = sum(not is_decided(row) for row in rows)
    share = f"{certified} of {of} images ({certified / of:.1%}) certified at r = {decided_at:g}"
    votes = sum(row.queries for row in rows)
    return f"{share} for {votes:,} votes; {open_} undecided, {of - len(rows)} not begun: more --spend goes on"


def _images(options: Certify | Predict) -> Images:
    """The images, after what can be refused without them."""
    if options.outputs == "values":
        raise InvalidInput("outputs is 'values'; wanted a classifier (logits, probabilities or labels) to smooth")
    if options.sigma is None and options.defense is None:
        raise InvalidInput(_NO_SIGMA)
    if options.sigma is not None:
        Gaussian(options.sigma)
    return options.images()


def _smoothed(
    options: Certify | Predict, images: Images, ledger: Path | None
) -> tuple[QueryClient, SmoothedClassifier, str, Defense | None]:
    """The meter and the smoothed classifier of the options, its name, and the defense unless it is the bare box."""
    client = options.client(ledger, images)
    defense = None if options.defense is None else load_defense(defense_folder(options.defense), client)
    if defense is None:
        assert options.sigma is not None
        classes = _classes(options, client, images)
        bare = SmoothedClassifier(_BareBox(client, classes), classes, options.sigma)
        return client, bare, client.model_id, None
    if options.device is not None:
        defense.to(options.device)
    if defense.image_shape != images.shape:
        raise InvalidInput(
            f"the defense takes images {defense.image_shape}, the data has {images.shape}; wanted the same"
        )
    sigma = defense.sigma if options.sigma is None else options.sigma
    if defense.sigma != sigma:
        # Not on standard output: that of `predict` is JSON lines.
        tell(f"the defense was trained at sigma = {defense.sigma}, and is smoothed at {sigma}")
    classes = client.spec.num_classes or defense.num_classes or _classes(options, client, images)
    return client, SmoothedClassifier(defense.outputs, classes, sigma), defense.model_id, defense


def _classes(options: Certify | Predict, client: QueryClient, images: Images) -> int:
    """The number of classes, as the box declares it or the data shows it."""
    if client.spec.num_classes is not None:
        return client.spec.num_classes
    if images.class_names is not None and len(images.class_names) > 1:
        return len(images.class_names)
    if images.num_classes is None:
        raise InvalidInput("the number of classes is unknown, for the data has no labels; wanted --num-classes K")
    assert images.labels is not None
    if images.num_classes < 2:
        raise InvalidInput("the number of classes is unknown: the data shows one class alone; wanted --num-classes K")
    seen = images.labels.bincount(minlength=images.num_classes)
    if options.limit is not None and len(images) == options.limit and int(seen.min()) < 2:  # then others are likely
        shown = f"the first {len(images)} images show {int((seen > 0).sum())} classes, some of them once or never"
        raise InvalidInput(
            f"the number of classes is unknown: {shown}, so others may be left out; wanted --num-classes K"
        )
    return images.num_classes


@dataclass(frozen=True)
class _BareBox:
    """The bare box, refused if its scores are not for the number of classes that the data suggests."""

    client: QueryClient
    classes: int

    @property
    def batch_size(self) -> int:
        return self.client.batch_size

    @property
    def free_batch_size(self) -> bool:
        return self.client.free_batch_size

    @property
    def _is_unknown(self) -> bool:
        return self.client.num_outputs is None and self.client.spec.outputs != "labels"

    def _has_left(self, queries: int) -> bool:
        return (left := self.client.images_left) is None or left >= queries

    def asking(self, n: int) -> AbstractContextManager[None]:
        return self.client.asking(n)

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) > 1 and self._is_unknown and self._has_left(len(x)):
            return torch.cat([self(x[:1]), self(x[1:])])  # where it answers for other classes, one query tells
        outputs, scores = self.client(x), self.client.num_outputs
        if scores not in (None, self.classes):
            came = f"the box answers {scores} scores, but the data has {self.classes} classes"
            raise InvalidInput(f"{came}; wanted --num-classes {scores} if the data shows only some of them")
        return outputs


def _check_box(defense: Defense | None, client: QueryClient) -> None:
    if defense is None or defense.fingerprint is None:
        raise InvalidInput(
            "there is no fingerprint to check the box by; wanted a defense trained with --fingerprint true"
        )
    defense.fingerprint.check(client)
    tell("the box answers its canaries as it did when the defense was trained")


def _shard(text: str) -> tuple[int, int]:
    index, _, shards = text.partition("/")
    if not (index.isdigit() and shards.isdigit() and 1 <= int(index) <= int(shards)):
        raise InvalidInput(f"shard is {text!r}; wanted i/k with i from 1 to k, such as 1/4")
    return int(index) - 1, int(shards)
