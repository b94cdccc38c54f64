"""The page for people: what it is served with, and the votes on one image as lines of JSON while they come in."""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from fastapi import Request, Response
from torch import Tensor

from certibox.blackbox.connection import required
from certibox.blackbox.json_text import written
from certibox.certification.pieces import ESTIMATE
from certibox.data import Images
from certibox.errors import one_line
from certibox.serving.gateway import Asker, Gateway
from certibox.serving.protocol import FAULT, Refused
from certibox.serving.terms import Terms, terms_of
from certibox.serving.tickets import Vote

SAMPLES = 24  # images that the page offers at most
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data: blob:; "
_POLICY += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@dataclass(frozen=True)
class Shown:
    """An image that the page asks about."""

    image: Tensor
    """Image (c, h, w), float pixels on [0, 1]."""
    terms: Terms
    """What is asked for."""


class Page:
    """What the page for people needs of a gateway.

    Args:
        gateway: Gateway that answers.
        samples: Images that the page offers; None for none.
    """

    def __init__(self, gateway: Gateway, samples: Images | None) -> None:
        self.gateway = gateway
        self._denoise: Callable[[Tensor], Tensor] | None = getattr(gateway.smoothed.owner, "denoise", None)
        self._names = None if samples is None else samples.class_names
        self._samples: list[dict[str, Any]] = []
        for i in range(0 if samples is None else min(len(samples), SAMPLES)):
            assert samples is not None
            label = None if samples.labels is None else int(samples.labels[i])
            self._samples.append({"pixels": _encoded(samples.floats([i])[0]), "label": label})
        self._text = (files("certibox.serving") / "page.html").read_bytes()

    @property
    def paths(self) -> dict[str, Callable[[Request], Awaitable[Response]]]:
        """What it is served with, by path."""
        return {"/": self._page, "/page/model": self._model, "/page/samples/{number}": self._sample}

    async def _page(self, _: Request) -> Response:
        return Response(self._text, media_type="text/html; charset=utf-8", headers=_HEADERS)

    async def _model(self, _: Request) -> Response:
        gateway, signature = self.gateway, self.gateway.signature
        limits = gateway.settings.limits
        return _json(
            {
                "name": signature.name,
                "version": signature.version,
                "image_shape": signature.image_shape,
                "num_classes": signature.num_classes,
                "class_names": self._names,
                "sigma": gateway.smoothed.sigma,
                "alpha": limits.alpha,
                "n": limits.n,
                "max_queries": limits.max_queries,
                "samples": len(self._samples),
                "denoises": self._denoise is not None,
                "wants_token": gateway.tokens is not None,
                "ready": not gateway.reason,
                "reason": gateway.reason,
            }
        )

    async def _sample(self, request: Request) -> Response:
        number = request.path_params["number"]
        if not (number.isascii() and number.isdigit() and int(number[:9]) < len(self._samples)):
            raise Refused(404, f"there are {len(self._samples)} samples, numbered from 0")
        return _json(self._samples[int(number[:9])])

    def read(self, body: bytes) -> Shown:
        """What the page asks for.

        Args:
            body: JSON with "pixels", base64 of bytes (h, w, c), and the parameters of a request.

        Raises:
            Refused: It is something else.
        """
        try:
            asked = required("orjson").loads(body)
        except ValueError as error:
            raise Refused(400, "the request is no JSON") from error
        if not isinstance(asked, dict) or not isinstance(asked.get("pixels"), str):
            raise Refused(400, "pixels are missing; wanted base64 of bytes (h, w, c)")
        c, h, w = self.gateway.signature.image_shape
        try:
            raw = base64.b64decode(asked.pop("pixels"), validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(400, "pixels are no base64") from error
        if len(raw) != math.prod((c, h, w)):
            raise Refused(400, f"pixels are {len(raw)} bytes; wanted {h} x {w} x {c}")
        pixels = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(h, w, c).copy())
        return Shown(pixels.permute(2, 0, 1).float().contiguous() / 255, terms_of(asked, self.gateway.settings.limits))

    async def lines(self, shown: Shown, asker: Asker, told: dict[str, Any]) -> AsyncGenerator[bytes]:
        """Lines of JSON: noisy and denoised pixels, votes as they come, and last the answer or why there is none.

        Args:
            shown: What is asked.
            asker: Who asks.
            told: What the log says of the request, to which "status" and what there is to say are added.
        """
        began = time.perf_counter()
        news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        watched: Callable[[list[Vote]], None] = lambda polls: news.put_nowait(_votes(polls[0]))  # noqa: E731
        work = asyncio.ensure_future(self.gateway.answers(shown.image[None], shown.terms, asker, watched=watched))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # where nobody asks any more
        arriving = asyncio.ensure_future(news.get())
        try:
            await asyncio.sleep(0)  # it is let in by then, or refused before anything is computed
            if not work.done():
                yield _line(await asyncio.to_thread(self._pictures, shown.image))
            while not work.done():
                await asyncio.wait({work, arriving}, return_when="FIRST_COMPLETED")
                if arriving.done():
                    yield _line(arriving.result())
                    arriving = asyncio.ensure_future(news.get())
            (answer,) = work.result()
        except Refused as error:
            told.update(status=error.status, error=error.reason)
            yield _line({"error": error.reason, "status": error.status})
            return
        except Exception as error:  # a fault of ours, which no client is told of
            self.gateway.log("fault", {"path": "/page/answer", "error": f"{type(error).__name__}: {one_line(error)}"})
            told.update(status=500)
            yield _line({"error": FAULT, "status": 500})
            return
        finally:
            work.cancel()
            arriving.cancel()
        told.update(status=200, queries=answer.queries, abstained=int(answer.label is None))
        yield _line(
            {
                "label": answer.label,
                "abstained": answer.label is None,
                "certified": shown.terms.certify,
                "radius": answer.radius,
                "p_lower": answer.p_lower,
                "votes": answer.counts,
                "queries": answer.queries,
                "alpha": shown.terms.alpha,
                "seconds": time.perf_counter() - began,
            }
        )

    def _pictures(self, x: Tensor) -> dict[str, Any]:
        """A noisy copy, of a seed that no answer uses, and what the denoiser makes of it."""
        with torch.inference_mode():
            noisy = x + self.gateway.smoothed.sigma * torch.randn(x.shape)
            denoised = None if self._denoise is None else self._denoise(noisy[None])[0]
        return {"noisy": _encoded(noisy), "denoised": None if denoised is None else _encoded(denoised)}


def _encoded(x: Tensor) -> str:
    """Pixels (c, h, w) as base64 of bytes (h, w, c)."""
    pixels = (x.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return base64.b64encode(pixels.permute(1, 2, 0).contiguous().numpy().tobytes()).decode()


def _votes(poll: Vote) -> dict[str, Any]:
    votes = poll.votes[ESTIMATE]
    return {"votes": votes.tolist(), "queries": sum(int(part.sum()) for part in poll.votes.values())}


def _line(values: dict[str, Any]) -> bytes:
    return written(values) + b"\n"


def _json(values: dict[str, Any]) -> Response:
    return Response(written(values), media_type="application/json")
