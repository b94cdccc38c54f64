"""A model behind any endpoint that answers JSON: what a request looks like, and where in the answer the scores are."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.connection import LARGEST, Connection, connection_of, required, served
from certibox.blackbox.encodings import ENCODINGS, PICTURES, has_eight_bits, is_file
from certibox.blackbox.http import ServedVersion, Server
from certibox.blackbox.inputs import as_array
from certibox.blackbox.json_text import parsed, written
from certibox.blackbox.outputs import to_outputs
from certibox.errors import BadOutput, InvalidInput, one_line, one_of

FORMS = ("scores", "mapping", "top-k")
IMAGE, IMAGES = "$image", "$images"  # what stands for them in a template
PROFILES: dict[str, dict[str, Any]] = {
    "tensorflow-serving": {"request": {"instances": IMAGES}, "answer": "predictions"},
    "torchserve": {"request": IMAGE, "image": "file-png", "answer": "@", "form": "mapping"},
    "mlflow": {"request": {"inputs": IMAGES}, "answer": "predictions"},
    "label-list": {
        "request": {"Image": {"Bytes": IMAGE}},
        "image": "base64-png",
        "answer": "Labels",
        "form": "top-k",
        "name": "Name",
        "score": "Confidence",
        "scale": 0.01,
        "busy_texts": ("ThrottlingException", "ProvisionedThroughputExceededException", "LimitExceededException"),
    },
}
"""Fields of `Endpoint` by the kind of server that answers in this form: TensorFlow Serving's and MLflow's REST, the
image classifiers of TorchServe, and a cloud service that answers with the names it is surest of, in percent."""


@dataclass(frozen=True)
class Endpoint:
    """What a request to an endpoint looks like, and where in its answer the scores are.

    Raises:
        InvalidInput: A field cannot hold; the text says which and what is wanted.
    """

    url: str
    """Address of the requests, http or https, without secrets."""
    profile: str | None = None
    """Name of a ready set of fields, one of `PROFILES`; those given beside it win."""
    request: Any = None
    """Body as JSON, in which "$images" stands for the list of the images of a request, or "$image" for its only one."""
    item: Any = None
    """One element of "$images" as JSON, in which "$image" stands for the image; None for the image alone."""
    image: str | None = None
    """How an image is written: "nested" or "flat" numbers, "base64-float32", "base64-png", "base64-jpeg", or
    "file-png" and "file-jpeg", the bytes of a picture that are the whole body, or a part of a form (see `part`)."""
    part: str | None = None
    """Name of the part that holds the picture in a multipart form; None where the picture is the body."""
    answer: str | None = None
    """Path (JMESPath) in the answer to the list of one entry an image, or, with "$image", to the only entry."""
    form: str | None = None
    """What an entry is: "scores", numbers a class; "mapping", scores by label; or "top-k", the likeliest labels."""
    labels: Sequence[str] | None = None
    """Names of all classes, in the order of their indices; needed where the endpoint answers with names."""
    name: str | None = None
    """Path (JMESPath) to the label in an element of a "top-k" entry; None where the element is the label."""
    score: str | None = None
    """Path (JMESPath) to the score in an element of a "top-k" entry; None where there is none."""
    scale: float | None = None
    """Factor of the scores, .01 for percent."""
    method: str = "POST"
    """HTTP method, "POST" or "PUT"."""
    version: str | None = None
    """Path (JMESPath) in the answer to the model's version, which must stay what it was first; None for none."""
    busy_texts: Sequence[str] | None = None
    """Texts in the body of a refusal of any status that say that the same may be asked again later."""
    connection: Connection | Mapping[str, Any] = field(default_factory=Connection)
    """Limits and secrets."""

    def __post_init__(self) -> None:
        if self.profile is not None and self.profile not in PROFILES:
            raise InvalidInput(f"profile is {self.profile!r}; give {one_of(self.profile, PROFILES)}")
        usual = {"request": {"instances": IMAGES}, "image": "nested", "answer": "predictions", "form": "scores"}
        usual |= {"scale": 1.0, "busy_texts": ()} | PROFILES.get(self.profile or "", {})
        if is_file(str(self.image)):
            usual["request"] = IMAGE
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        object.__setattr__(self, "connection", connection_of(self.connection))
        for name, known in (("image", ENCODINGS), ("form", FORMS), ("method", ("POST", "PUT"))):
            came = getattr(self, name)
            if came not in known:
                raise InvalidInput(f"{name} is {came!r}; give {one_of(came, known)}")
        for name in ("answer", "name", "score", "version"):
            if (path := getattr(self, name)) is not None:
                _compiled(path, name)
        self._check_labels()
        self._check_request()

    def _check_labels(self) -> None:
        if self.labels is None:
            if self.form != "scores":
                raise InvalidInput(f"form is {self.form!r} without labels; give the names of all classes, in order")
            return
        labels = tuple(self.labels)
        if isinstance(self.labels, str) or not all(isinstance(label, str) for label in labels):
            raise InvalidInput("labels are no list of names; give the names of all classes, in order")
        if len(set(labels)) < len(labels) or len(labels) < 2:
            twice = next((label for label in labels if labels.count(label) > 1), None)
            raise InvalidInput(f"labels name {twice!r} twice" if twice else "labels name fewer than two classes")
        object.__setattr__(self, "labels", labels)

    def _check_request(self) -> None:
        found = (_count(self.request, IMAGES), _count(self.request, IMAGE))
        if self.is_file:
            if self.item is not None or found[0]:
                raise InvalidInput(
                    f"image is {self.image!r}, which is one picture a request; leave out item and $images"
                )
            return
        if found not in ((1, 0), (0, 1)):
            raise InvalidInput(
                f"request holds $images {found[0]} times and $image {found[1]} times; wanted one of them once"
            )
        if self.item is not None and (found[1] or _count(self.item, IMAGE) != 1):
            raise InvalidInput("item must hold $image once, and goes with a request that holds $images")
        if self.part is not None:
            raise InvalidInput("part names a picture in a form; it goes with image: file-png or file-jpeg")

    @property
    def is_file(self) -> bool:
        """Whether the body of a request is a picture, or a form with one."""
        return is_file(str(self.image))

    @property
    def holds_many(self) -> bool:
        """Whether one request can hold several images."""
        return not self.is_file and _count(self.request, IMAGES) == 1

    def digest(self) -> str:
        """SHA-256 (hex) of what decides an answer: everything but limits, secrets and retries."""
        left_out = ("connection", "busy_texts", "profile")
        kept = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in left_out}
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=list).encode()).hexdigest()


class EndpointBox:
    """A model behind an endpoint that answers JSON.

    Names become class indices by `endpoint.labels`; a name that is not among them is an error. Of a "top-k" answer the
    missing classes are known only up to a bound, see `BoxSpec.outputs`.

    Args:
        endpoint: What requests and answers look like.
        outputs: Kind of the answers, as in `BoxSpec`; "labels" takes the likeliest class of any form.
        declared: Other fields of `BoxSpec`; pixels are clipped by default, and up to 8 requests are under way at once.

    Raises:
        InvalidInput: The declaration cannot hold.
    """

    is_adaptive = True
    """Whether the number of calls at once follows what the server bears."""
    may_change = True
    """Whether the model may become another without a word: its identity alone does not vouch for it."""

    def __init__(self, endpoint: Endpoint, outputs: str, **declared: Any) -> None:
        self.endpoint = endpoint
        self.is_named = declared.get("identity") is not None
        if not endpoint.holds_many:
            declared["max_batch"] = 1
        declared = served(declared, endpoint.url, endpoint.digest())
        if endpoint.labels is not None:
            given = declared.setdefault("num_classes", len(endpoint.labels))
            if given != len(endpoint.labels):
                raise InvalidInput(f"num_classes is {given}, but labels name {len(endpoint.labels)} classes")
        if endpoint.form == "top-k" and outputs not in ("top-k", "labels"):
            raise InvalidInput(
                f"outputs is {outputs!r}, but the endpoint names its likeliest classes: give top-k or labels"
            )
        if endpoint.form == "top-k" and outputs == "top-k" and endpoint.score is None:
            raise InvalidInput("outputs is 'top-k' without scores; give score, or outputs labels")
        if has_eight_bits(str(endpoint.image)):
            if declared.setdefault("dtype", "uint8") != "uint8":
                raise InvalidInput(f"dtype is {declared['dtype']!r}, but pictures hold whole numbers; leave it out")
            if declared.setdefault("layout", "NHWC") != "NHWC":
                raise InvalidInput(f"layout is {declared['layout']!r}, but pictures are NHWC; leave it out")
        self.spec = BoxSpec(outputs, **declared)
        self._server = Server(endpoint.url, connection_of(endpoint.connection), endpoint.busy_texts or ())
        self._server.connection.secret_headers()  # a variable that is not set is better found now
        self._paths = {
            name: _compiled(getattr(endpoint, name), name) for name in ("answer", "name", "score", "version")
        }
        self._index = {label: i for i, label in enumerate(endpoint.labels or ())}
        self._version = ServedVersion(f"box {self.spec.name}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary})"

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`."""
        images = as_array(self.spec, x)
        content, headers = self._request(images)
        reply = self._server.post(content, headers, method=self.endpoint.method)
        answer = parsed(reply.body, f"box {self.spec.name}")
        if self._paths["version"] is not None:
            self._version.check(self._paths["version"].search(answer))
        entries = self._found("answer", answer)
        entries = entries if self.endpoint.holds_many else [entries]
        if not isinstance(entries, list) or len(entries) != len(images):
            came = f"{len(entries)} entries" if isinstance(entries, list) else self._shown(entries)
            raise BadOutput(
                f"box {self.spec.name} answered {len(images)} images with {came} at {self.endpoint.answer!r}"
            )
        return to_outputs(self._scores(entries), self.spec, x.device, len(images))

    def images_at_once(self, image_shape: tuple[int, ...]) -> int:
        """The most images of a shape that one request can hold in `connection.largest_request` bytes.

        Args:
            image_shape: Shape (c, h, w) of an image.
        """
        each = math.prod(image_shape) * (6 if str(self.endpoint.image).startswith("base64") else 26)
        return max(1, ((self._server.connection.largest_request or LARGEST) - 4096) // max(1, each))

    def _request(self, images: np.ndarray) -> tuple[bytes, dict[str, str]]:
        """The body and the headers of a request."""
        endpoint, encode = self.endpoint, ENCODINGS[str(self.endpoint.image)]
        if endpoint.is_file:
            kind = str(endpoint.image).removeprefix("file-")
            content = encode(images[0])
            if endpoint.part is None:
                return content, {"Content-Type": PICTURES[kind]}
            return _form(endpoint.part, content, kind)
        written_images = [encode(image) for image in images]
        if not endpoint.holds_many:
            body = _filled(endpoint.request, IMAGE, written_images[0])
        else:
            items = written_images
            if endpoint.item is not None:
                items = [_filled(endpoint.item, IMAGE, image) for image in items]
            body = _filled(endpoint.request, IMAGES, items)
        return written(body), {"Content-Type": "application/json", "Accept": "application/json"}

    def _scores(self, entries: list[Any]) -> Any:
        """All entries as one array: scores (n, K), with NaN for what is not said, or the likeliest classes (n,)."""
        endpoint = self.endpoint
        if endpoint.form == "scores":
            rows = self._numbers(entries)
            return rows if self.spec.outputs != "labels" or rows.ndim < 2 else rows.argmax(1)
        if endpoint.form == "top-k" and endpoint.score is None:
            return np.array([self._class(self._names(entry)[0]) for entry in entries])
        rows = np.full((len(entries), len(self._index)), np.nan)
        for row, entry in zip(rows, entries, strict=True):
            pairs = self._pairs(entry)
            for label, score in pairs:
                at = self._class(label)
                row[at] = np.fmax(row[at], score)  # a label that is named twice counts once
        if endpoint.form == "mapping" and self.spec.outputs not in ("labels", "top-k") and np.isnan(rows).any():
            missing = self.endpoint.labels[int(np.isnan(rows).any(0).argmax())] if self.endpoint.labels else ""
            raise BadOutput(
                f"box {self.spec.name} answered without a score for {missing!r}; if it leaves out unlikely classes, "
                "declare outputs='top-k' or 'labels'"
            )
        return np.nanargmax(rows, 1) if self.spec.outputs == "labels" else rows

    def _numbers(self, entries: list[Any]) -> np.ndarray:
        try:
            rows = np.array(entries)
        except ValueError:
            rows = np.array(None)
        if rows.dtype.kind not in "biuf":
            what = "null among the scores" if "null" in json.dumps(entries) else self._shown(entries)
            raise BadOutput(
                f"box {self.spec.name} answered {what} at {self.endpoint.answer!r}, where numbers were wanted"
            )
        return rows * self.endpoint.scale if self.endpoint.scale != 1.0 else rows

    def _pairs(self, entry: Any) -> list[tuple[str, float]]:
        """Labels and scores of one image."""
        if self.endpoint.form == "mapping":
            if not isinstance(entry, dict) or not entry:
                raise BadOutput(
                    f"box {self.spec.name} answered {self._shown(entry)}, where scores by label were wanted"
                )
            pairs = list(entry.items())
        else:
            pairs = list(zip(self._names(entry), [self._found("score", one) for one in entry], strict=True))
        scale = self.endpoint.scale or 1.0
        for label, score in pairs:
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise BadOutput(f"box {self.spec.name} answered {one_line(label, 60)!r} with {self._shown(score)}")
        return [(str(label), float(score) * scale) for label, score in pairs]

    def _names(self, entry: Any) -> list[str]:
        if not isinstance(entry, list) or not entry:
            raise BadOutput(f"box {self.spec.name} answered {self._shown(entry)}, where a list of labels was wanted")
        return [one if self.endpoint.name is None else self._found("name", one) for one in entry]

    def _class(self, label: object) -> int:
        if isinstance(label, str) and label in self._index:
            return self._index[label]
        raise BadOutput(
            f"box {self.spec.name} answered the label {one_line(label, 60)!r}, which is none of the "
            f"{len(self._index)} declared: add it to labels, or ask a model with these classes"
        )

    def _found(self, name: str, value: Any) -> Any:
        try:
            return self._paths[name].search(value)
        except Exception as error:  # of JMESPath: a function of the path met another type
            raise BadOutput(
                f"box {self.spec.name} answered what {name} cannot be read from ({one_line(error)})"
            ) from None

    def _shown(self, value: Any) -> str:
        return "nothing" if value is None else one_line(json.dumps(value, default=str), 80)


def _compiled(path: str | None, name: str) -> Any:
    if path is None:
        return None
    jmespath = required("jmespath")
    try:
        return jmespath.compile(path)
    except (jmespath.exceptions.JMESPathError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{name} is {path!r}, which is no JMESPath: {one_line(error, 80)}") from None


def _count(template: Any, mark: str) -> int:
    """How often a mark stands in a template."""
    if isinstance(template, Mapping):
        return sum(_count(value, mark) for value in template.values())
    if isinstance(template, list | tuple):
        return sum(_count(value, mark) for value in template)
    return int(template == mark) if isinstance(template, str) else 0


def _filled(template: Any, mark: str, value: Any) -> Any:
    """A template with a value in place of its mark."""
    if isinstance(template, Mapping):
        return {key: _filled(part, mark, value) for key, part in template.items()}
    if isinstance(template, list | tuple):
        return [_filled(part, mark, value) for part in template]
    return value if isinstance(template, str) and template == mark else template


def _form(part: str, content: bytes, kind: str) -> tuple[bytes, dict[str, str]]:
    """A multipart form with one picture; its boundary is a digest of the picture, which then cannot hold it."""
    edge = f"certibox-{hashlib.sha256(content).hexdigest()[:32]}"
    head = (
        f'--{edge}\r\nContent-Disposition: form-data; name="{part}"; filename="image.{kind}"\r\n'
        f"Content-Type: {PICTURES[kind]}\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={edge}"}
