"""The gateway as an ASGI application: the paths of the Open Inference Protocol v2, metrics, and a page for people."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from certibox import __version__
from certibox.certification.smoothing import SmoothedClassifier
from certibox.data import Images
from certibox.defense.saved import Defense
from certibox.errors import InvalidInput, one_line
from certibox.serving.accounts import Token
from certibox.serving.gateway import Asker, Gateway, Log, Settings
from certibox.serving.metrics import CONTENT_TYPE
from certibox.serving.page import Page
from certibox.serving.protocol import (
    FAULT,
    HEADER,
    Refused,
    compressed,
    decompressed,
    read_request,
    written_answer,
    written_error,
)
from certibox.serving.schema import INFER, answers_of
from certibox.serving.signature import require_unsmoothed, signature_of
from certibox.serving.terms import Limits, terms_of

_IDENT = re.compile(r"[\w.:@/+=-]{1,128}")  # ids of requests from outside that logs repeat
Handler = Callable[[Request], Awaitable[Response]]


def app(
    defense: Defense | SmoothedClassifier,
    *,
    name: str = "defended",
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    limits: Limits | None = None,
    out: str | Path | None = None,
    audit: str | Path | None = None,
    tokens: str | Path | None = None,
    canaries: float | None = None,
    batch_size: int = 1000,
    samples: Images | None = None,
    page: bool = True,
    smooth_twice: bool = False,
    log: Log = lambda event, values: None,
) -> FastAPI:
    """An ASGI application that answers with certificates, to be served by uvicorn or mounted in another one.

    What it holds is given back when its lifespan ends; a mounted application has none, so call `app.state.close()`.

    Args:
        defense: Defense, or smoothed classifier of whatever else.
        name: Name of the model in addresses.
        num_classes: Number of classes K, where the defense does not say.
        image_shape: Shape (c, h, w) of an image, where neither defense nor box says.
        limits: What a request may take; None for the defaults of `Limits`.
        out: Folder that keeps the key of the noise, accounts and canaries; None to keep none of them.
        audit: File to which every certificate is appended; None for none.
        tokens: File of tokens, lines of name:sha256 or name:sha256:budget; None to answer everybody.
        canaries: Seconds between two looks at whether the box is still the same; None for none.
        batch_size: Most noisy copies at a time.
        samples: Images that the page offers.
        page: Whether there is a page for people at the address itself.
        smooth_twice: Whether to go on where the box is a gateway itself, whose answers are smoothed already.
        log: Function that is told of events: a name, and what there is to say.

    Returns:
        A FastAPI application; `app.state.gateway` is its `Gateway`.

    Raises:
        InvalidInput: The shape or the number of classes is not known, or a setting is out of range.
        BoxChanged: The box answers its canaries otherwise than before.
    """
    smoothed = defense.smoothed(num_classes) if isinstance(defense, Defense) else defense
    if not isinstance(smoothed, SmoothedClassifier):
        wanted = "wanted a Defense or a SmoothedClassifier"
        raise InvalidInput(f"a {type(defense).__name__} cannot be served; {wanted}")
    signature = signature_of(smoothed, name, image_shape)
    if not smooth_twice:
        require_unsmoothed(smoothed)
    places = [None if place is None else Path(place) for place in (out, audit, tokens)]
    kept, log_file, known = places
    settings = Settings(limits or Limits(), kept, log_file, known, canaries, batch_size)
    gateway = Gateway(smoothed, signature, settings, log)
    return _Site(gateway, Page(gateway, samples) if page else None).app


class _Site:
    """The paths of one gateway."""

    def __init__(self, gateway: Gateway, page: Page | None) -> None:
        self.gateway, self.page = gateway, page
        self.app = FastAPI(
            title="certibox",
            version=__version__,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,  # an address that is not there is an error in the protocol's form
            lifespan=self._lifespan,
        )
        self.app.router.route_class = _Plain
        self.app.state.gateway, self.app.state.close = gateway, gateway.close
        self.app.add_exception_handler(HTTPException, self._http_error)
        self._paths()

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.gateway.log("start", {"model": self.gateway.signature.name, "version": self.gateway.signature.version})
        try:
            yield
        finally:
            await asyncio.to_thread(self.gateway.close)
            self.gateway.log("stop", {})

    def _paths(self) -> None:
        signature, add = self.gateway.signature, self._add
        add("GET", "/v2", self._server, "Metadata of the server.")
        add("GET", "/v2/health/live", self._live, "Whether the server lives.")
        add("GET", "/v2/health/ready", self._ready, "Whether requests are answered, and else why not.")
        for path in (f"/v2/models/{signature.name}", f"/v2/models/{signature.name}/versions/{signature.version}"):
            add("GET", path, self._model, "Metadata of the model.")
            add("GET", f"{path}/ready", self._ready, "Whether the model answers, and else why not.")
            add("POST", f"{path}/infer", self._infer, "Certificates of images.", INFER)
        add("GET", "/metrics", self._metrics, "Counters, as Prometheus reads them.")
        if self.page is not None:
            for path, function in self.page.paths.items():
                add("GET", path, function, "Part of the page for people.", schema=False)
            self.app.add_api_route("/page/answer", self._page_answer, methods=["POST"], include_in_schema=False)

    def _add(
        self,
        method: str,
        path: str,
        handler: Handler,
        summary: str,
        more: Mapping[str, Any] | None = None,
        schema: bool = True,
    ) -> None:
        async def answered(request: Request) -> Response:
            return await self._guarded(handler, request)

        name = f"{handler.__name__.strip('_')}{path.count('/')}"
        self.app.add_api_route(
            path,
            answered,
            methods=[method],
            summary=summary,
            name=name,
            response_class=Response,
            responses=answers_of(path),
            openapi_extra=dict(more or {}),
            include_in_schema=schema,
        )

    # --- errors -------------------------------------------------------------------------------------------------------

    async def _guarded(self, handler: Handler, request: Request) -> Response:
        """The answer of a handler, and whatever it raises in the protocol's form."""
        try:
            return await handler(request)
        except Refused as error:
            return _error(error.status, error.reason, error.headers)
        except Exception as error:  # a fault of ours, which no client is told of
            self.gateway.log("fault", {"path": request.url.path, "error": f"{type(error).__name__}: {one_line(error)}"})
            return _error(500, FAULT)

    async def _http_error(self, request: Request, error: Exception) -> Response:
        """Paths and methods that are not there."""
        assert isinstance(error, HTTPException)
        path = one_line(request.url.path, 100)
        known = self.gateway.signature
        reason = f"there is no {path} here; the model is {known.name}, version {known.version}"
        if error.status_code != 404:
            reason = f"{request.method} {path}: {error.detail}"
        return _error(error.status_code, reason, error.headers)

    # --- what is there ------------------------------------------------------------------------------------------------

    async def _server(self, _: Request) -> Response:
        return _json({"name": "certibox", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def _live(self, _: Request) -> Response:
        if reason := self.gateway.broken:
            return _json({"live": False, "error": reason}, 503)
        return _json({"live": True})

    async def _ready(self, _: Request) -> Response:
        if reason := self.gateway.reason:
            return _json({"ready": False, "error": reason}, 503)
        return _json({"ready": True})

    async def _model(self, _: Request) -> Response:
        return _json(self.gateway.signature.metadata())

    async def _metrics(self, _: Request) -> Response:
        return Response(self.gateway.metrics.text(), media_type=CONTENT_TYPE)

    # --- answers ------------------------------------------------------------------------------------------------------

    async def _infer(self, request: Request) -> Response:
        """Certificates of the images of a request."""
        ident = _ident(request)
        with self._told("infer", ident) as told:
            try:
                response = await self._answered(request, ident, told)
                told["status"] = response.status_code
                return response
            except Refused as error:
                told.update(status=error.status, error=error.reason)
                return _error(error.status, error.reason, {**error.headers, "X-Request-ID": ident})
            except Exception:
                told["status"] = 500
                raise

    @contextmanager
    def _told(self, event: str, ident: str) -> Iterator[dict[str, Any]]:
        """What metrics and log say of a request once it is over: its "status", 499 where it was cut off, and more."""
        began, told = time.perf_counter(), {"request": ident, "status": 499}
        try:
            yield told
        finally:
            seconds = time.perf_counter() - began
            self.gateway.metrics.request(told["status"], seconds)
            self.gateway.log(event, {**told, "seconds": round(seconds, 4)})

    async def _answered(self, request: Request, ident: str, told: dict[str, Any]) -> Response:
        gateway, signature, limits = self.gateway, self.gateway.signature, self.gateway.settings.limits
        token = self._token(request)
        told["token"] = None if token is None else token.name
        body = await _body(request, limits.max_body)
        plain = decompressed(body, request.headers.get("content-encoding", "").lower(), limits.max_body)
        asked = read_request(plain, request.headers.get(HEADER))
        for output in asked.outputs:
            if output.name not in signature.outputs:
                known = ", ".join(signature.outputs)
                raise Refused(400, f"there is no output {one_line(output.name, 40)!r}; the model has {known}")
        terms = terms_of(asked.parameters, limits)
        images = signature.images(asked, limits.max_images)
        told["images"] = len(images)
        answers = await gateway.answers(images, terms, Asker(ident, token), _Gone(request))
        told["queries"] = sum(one.queries for one in answers)
        told["abstained"] = sum(one.label is None for one in answers)
        about = {"sigma": gateway.smoothed.sigma, "alpha": terms.alpha}
        content, headers = written_answer(
            signature.name, signature.version, asked, signature.tensors(answers), about, signature.always(answers)
        )
        content, encoding = compressed(content, request.headers.get("accept-encoding", ""))
        headers |= {"Content-Encoding": encoding} if encoding else {}
        return Response(content, headers={**headers, "X-Request-ID": ident})

    def _token(self, request: Request) -> Token | None:
        tokens = self.gateway.tokens
        return None if tokens is None else tokens.found(request.headers.get("authorization"))

    async def _page_answer(self, request: Request) -> Response:
        """The votes on one image as they come, a line of JSON each."""
        assert self.page is not None
        ident = _ident(request)
        with ExitStack() as stack:
            told = stack.enter_context(self._told("page", ident))
            try:
                token = self._token(request)
                told["token"] = None if token is None else token.name
                asked = self.page.read(await _body(request, self.gateway.settings.limits.max_body))
            except Refused as error:
                told.update(status=error.status, error=error.reason)
                return _error(error.status, error.reason, error.headers)
            lines = self.page.lines(asked, Asker(ident, token), told)
            return StreamingResponse(_held(lines, stack.pop_all()), media_type="application/x-ndjson")


class _Plain(APIRoute):
    """A route whose function is given the request as it is: nothing is read, checked or filled in on the way."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself."""
        return self.endpoint


class _Gone:
    """Waits until the client of a request is gone."""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def __call__(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


async def _held(lines: AsyncGenerator[bytes], held: ExitStack) -> AsyncGenerator[bytes]:
    """The same lines, and what is to be closed once they are over, or nobody reads them any more."""
    with held:
        async with aclosing(lines):
            async for line in lines:
                yield line


async def _body(request: Request, most: int) -> bytes:
    """The body of a request, refused as soon as it is too large."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most:
        raise Refused(413, f"the body has {int(length):,} bytes; wanted at most {most:,}", {"Connection": "close"})
    parts, total = [], 0
    try:
        async for part in request.stream():
            total += len(part)
            if total > most:
                raise Refused(413, f"the body has more than {most:,} bytes", {"Connection": "close"})
            parts.append(part)
    except ClientDisconnect as error:
        raise Refused(400, "the client left before its request was whole") from error
    return b"".join(parts)


def _ident(request: Request) -> str:
    """The id of a request in logs: its client's, where that is a plain one, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _IDENT.fullmatch(given) else uuid.uuid4().hex


def _json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value), status, media_type="application/json")


def _error(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(written_error(reason), status, dict(headers or {}), media_type="application/json")
