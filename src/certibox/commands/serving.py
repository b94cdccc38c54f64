"""`certibox serve`, `certibox token` and `certibox verify`: the gateway, who may ask it, and what it has answered."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from certibox import serving
from certibox.certification.sampling import ALPHA
from certibox.certification.smoothing import SmoothedClassifier
from certibox.commands import process
from certibox.commands.boxes import LEDGER, BoxOptions
from certibox.commands.durations import seconds_of
from certibox.commands.fields import Needs, option
from certibox.commands.lines import tell
from certibox.commands.models import defense_folder
from certibox.commands.options import MOST_IMAGES, folder
from certibox.commands.printing import OUT, spent
from certibox.confidence.gaussian import Gaussian
from certibox.data import Images, load_images
from certibox.defense.saved import TENSORS, Defense, load_defense
from certibox.errors import InvalidInput, UnreadableFile
from certibox.queries.client import QueryClient
from certibox.storage.tensors import read_tensors

if TYPE_CHECKING:
    import uvicorn

_HERE = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Serve(BoxOptions):
    """Stand where the box stood: answer its clients with certificates, by the Open Inference Protocol over HTTP.

    Clients send what they sent to the box, and get a label with a certified radius, or an abstention. Limits bound what
    a request can cost; Ctrl-C, or SIGTERM, ends the server once what is in flight is answered.

    example: certibox serve --model http://127.0.0.1:8080/v2/models/digits --outputs probabilities --layout flat \\
                 --input-name predict --output-name predict_proba --defense runs/remote/defense --port 8000 \\
                 --audit runs/gateway/audit.jsonl --out runs/gateway
    """

    NEEDS: ClassVar = (Needs("split limit", lambda o: o.data is not None, "without --data", "--data"),)

    name: str = option("name of the model in the gateway's addresses", "defended")
    defense: str | None = option("directory of a saved defense; without it the bare box is smoothed", None)
    sigma: float | None = option("standard deviation of the noise, in pixels on [0, 1]; by default the defense's", None)
    host: str = option(
        "address to listen at; any other than 127.0.0.1 wants --tokens, or says what that means", _HERE[0]
    )
    port: int = option("port to listen at; 0 takes a free one", 8000, least=0, most=65535)
    tokens: str | None = option("file of tokens that may ask, from `certibox token`; by default everybody may", None)
    audit: str | None = option("file to which every answer is appended, for `certibox verify`", None)
    n: int = option("queries an image, at most, where a request does not say", 1000, least=1)
    max_queries: int = option("queries an image that a request may ask for, at most", 10_000, least=1)
    alpha: float = option("probability that an answer is wrong, where a request does not say", ALPHA)
    max_images: int = option("images in a request, at most", 64, least=1, most=MOST_IMAGES)
    max_waiting: int = option("images in flight, at most; one more is answered 429", 256, least=1, most=MOST_IMAGES)
    max_body: int = option("bytes of a request, at most", 16 << 20, least=1024, advanced=True)
    answer_within: float = option("seconds that an answer may take, at most", 60.0, least=0.001)
    grace: float = option("seconds that answers in flight have when the server ends", 30.0, least=0, advanced=True)
    every: str = option(
        "time between two looks at whether the box is still the same, as 30s, 10min or 1h; a query a canary", "10min"
    )
    data: str | None = option("images that the page for people offers as samples, as for certify", None)
    split: str = option("which split of the data", "test")
    limit: int = option("samples that the page offers, at most", 12, least=1, most=24)
    page: bool = option("serve a page for people at the address itself", True)
    smooth_twice: bool = option("go on where the box is a certibox gateway itself", False, advanced=True)
    noise_batch_size: int = option("noisy copies at a time", 1000, advanced=True, least=1, most=MOST_IMAGES)
    ledger: str | None = option("ledger of queries; by default one in --out", None, advanced=True)
    out: str = option("directory for the ledger, the key of the noise, accounts and canaries")


@dataclass(frozen=True)
class NewToken:
    """Make a token for a gateway; prints it once, and appends its hash to the file.

    example: certibox token --name shop --tokens runs/tokens --budget 1000000
    """

    name: str = option("name of who gets the token, as logs and accounts have it")
    tokens: str = option("file of tokens, made where there is none")
    budget: int | None = option("most queries that the token may ever spend; by default no limit", None, least=0)


@dataclass(frozen=True)
class Verify:
    """Check files of certificates and audit logs: whether every answer follows from its votes. Asks no query.

    With the key of the gateway, the seeds of its noise are checked too.

    example: certibox verify runs/gateway/audit.jsonl --key runs/gateway/noise.key
    """

    files: list[str] = option("files of certificates, or audit logs of a gateway", positional=True)
    key: str | None = option("key of the noise, from the folder of the gateway that kept an audit log", None)


def run_serve(options: Serve) -> None:
    """`certibox serve`.

    Args:
        options: Options of the command.
    """
    app_of, limits_of = serving.app, serving.Limits  # which say so where the extra is not installed
    import uvicorn

    from certibox.serving.heads import settings as settings_of

    out, every = folder(options.out), seconds_of("every", options.every)
    limits = limits_of(
        options.n,
        options.max_queries,
        options.alpha,
        options.max_images,
        options.max_waiting,
        options.max_body,
        options.answer_within,
    )
    samples = None if options.data is None else load_images(options.data, options.split, limit=options.limit)
    if options.host not in _HERE and options.tokens is None:
        tell(f"everybody who reaches {options.host} may ask, and spend queries: --tokens FILE says who may")
    with _listening(options.host, options.port) as listening:
        client, smoothed, shape = _smoothed(options, out, samples)
        with client:
            app = app_of(
                smoothed,
                name=options.name,
                image_shape=shape,
                limits=limits,
                out=out,
                audit=options.audit,
                tokens=options.tokens,
                canaries=every,
                batch_size=options.noise_batch_size,
                samples=samples,
                page=options.page,
                smooth_twice=options.smooth_twice,
                log=_log,
            )
            try:
                port = listening.getsockname()[1]
                host = f"[{options.host}]" if ":" in options.host else options.host
                settings = settings_of(
                    app,
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    timeout_graceful_shutdown=max(1, round(options.grace)),
                )
                server = uvicorn.Server(settings)
                with _ended_by_signals(server):  # before anybody is told that it serves
                    OUT.print(f"serving {options.name} at http://{host}:{port}; Ctrl-C ends it")
                    server.run(sockets=[listening])
            finally:
                app.state.close()
            OUT.print(f"ended; queries spent: {spent(client)}")


def run_token(options: NewToken) -> None:
    """`certibox token`.

    Args:
        options: Options of the command.
    """
    from certibox.serving.accounts import new_token

    secret = new_token(options.tokens, options.name, options.budget)
    tell(f"the token of {options.name}; it is shown once, and {options.tokens} keeps its hash alone")
    process.say(secret + "\n")


def run_verify(options: Verify) -> None:
    """`certibox verify`.

    Args:
        options: Options of the command.
    """
    from certibox.certification.stored import read
    from certibox.serving.audit import check_seeds, is_audit, read_audit

    for path in options.files:
        if not is_audit(path):
            if options.key is not None:
                raise InvalidInput(f"key is given, and {path} is no audit log; wanted audit logs alone beside it")
            rows = read(path)
            OUT.print(f"{path}: {len(rows)} certificates follow from their votes")
            continue
        entries = read_audit(path)
        if options.key is not None:
            check_seeds(entries, Path(options.key), path)
        certified = sum(entry.is_certificate for entry in entries)
        seeds = "" if options.key is None else ", and their seeds from the key"
        answers = f"{certified} certificates and {len(entries) - certified} predictions"
        OUT.print(f"{path}: {answers} follow from their votes{seeds}")


def _smoothed(
    options: Serve, out: Path, samples: Images | None
) -> tuple[QueryClient, SmoothedClassifier, tuple[int, int, int] | None]:
    """The meter and the smoothed classifier of the options, and the shape of an image where they say it."""
    if options.outputs == "values":
        raise InvalidInput("outputs is 'values'; wanted a classifier (logits, probabilities or labels) to smooth")
    if options.sigma is None and options.defense is None:
        raise InvalidInput("neither defense nor sigma is given; wanted --defense DIR, or --sigma 0.25 for the bare box")
    if options.sigma is not None:
        Gaussian(options.sigma)
    saved = None if options.defense is None else defense_folder(options.defense)
    shape = _shape(options, saved, samples)
    box = replace(options, name=None).box(1 if shape is None else shape[0])  # pyright: ignore[reportArgumentType]
    ledger = Path(options.ledger) if options.ledger is not None else out / LEDGER
    client = QueryClient(box, options.budget, ledger, rate=options.rate, wait=options.wait)
    if saved is None:
        assert options.sigma is not None
        classes = options.num_classes or client.spec.num_classes or _classes(samples)
        return client, SmoothedClassifier(client, classes, options.sigma), shape
    defense: Defense = load_defense(saved, client)
    if options.device is not None:
        defense.to(options.device)
    if options.sigma not in (None, defense.sigma):
        tell(f"the defense was trained at sigma = {defense.sigma}, and is smoothed at {options.sigma}")
    classes = client.spec.num_classes or defense.num_classes or _classes(samples)
    return client, SmoothedClassifier(defense.outputs, classes, options.sigma or defense.sigma), shape


def _shape(options: Serve, saved: Path | None, samples: Images | None) -> tuple[int, int, int] | None:
    """The shape (c, h, w) of an image: the defense's, that of the samples, or what the flags say."""
    given = None if options.image_shape is None else tuple(options.image_shape)
    known = {"--image-shape": given} if given else {}
    if saved is not None:
        _, facts = read_tensors(saved / TENSORS)
        try:
            known["the defense"] = tuple(facts["image_shape"])
        except (KeyError, TypeError) as error:
            raise UnreadableFile(f"{saved} holds no defense; wanted what Defense.save wrote") from error
    if samples is not None:
        known["the samples"] = tuple(samples.shape)
    if len(set(known.values())) > 1:
        came = ", ".join(f"{list(shape)} ({whose})" for whose, shape in known.items())
        raise InvalidInput(f"the shapes of an image differ: {came}; wanted one")
    found = next(iter(known.values()), None)
    return None if found is None or len(found) != 3 else (found[0], found[1], found[2])


def _classes(samples: Images | None) -> int:
    """The number of classes that the samples name."""
    if samples is not None and samples.class_names is not None and len(samples.class_names) > 1:
        return len(samples.class_names)
    raise InvalidInput("the number of classes is unknown; wanted --num-classes K")


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens, made before a query is spent."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise InvalidInput(f"{host}:{port} cannot be listened at ({error.strerror}); wanted another port") from error
    with listening:
        # Those that it accepts inherit this. asyncio sets it itself only where the protocol of the socket is said.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listening


@contextmanager
def _ended_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """A signal inside the block ends the server, which is a good end; a second one ends it at once."""
    before = {}

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    server.capture_signals = nothing  # uvicorn's own comes late, and raises the signal again once it has ended
    try:
        if threading.current_thread() is threading.main_thread():
            for wanted in (signal.SIGINT, signal.SIGTERM):
                before[wanted] = signal.signal(wanted, server.handle_exit)
        yield
    finally:
        for wanted, handler in before.items():
            signal.signal(wanted, handler)


def _log(event: str, values: Mapping[str, Any]) -> None:
    """A line of JSON on standard error."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}
    with suppress(OSError, ValueError):  # nobody reads it: no reason to end
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()
