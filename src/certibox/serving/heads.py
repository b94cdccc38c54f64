"""How HTTP is read where requests come from anywhere: by httptools where it is installed, with an end to every head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

MOST = 64 << 10  # bytes of a request's line and headers, about

if TYPE_CHECKING:
    import uvicorn


def settings(app: Any, **more: Any) -> uvicorn.Config:
    """Settings of a server whose requests have heads of at most about `MOST` bytes; a longer one is answered 400.

    Args:
        app: ASGI application.
        more: Other settings of uvicorn.
    """
    import uvicorn

    return uvicorn.Config(app, http=_protocol(), h11_max_incomplete_event_size=MOST, **more)


def _protocol() -> Any:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:  # h11 has a bound of its own
        return "h11"

    class Bounded(HttpToolsProtocol):
        """uvicorn's reader of HTTP by httptools, which itself takes a head of any length."""

        _head = 0  # bytes that came of a head which is not whole
        _whole = _moved = False  # whether a head is whole; whether one became whole, or a body did, in this piece

        def on_headers_complete(self) -> None:
            self._whole = self._moved = True
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._whole, self._moved = False, True

        def data_received(self, data: bytes) -> None:
            self._moved = False
            super().data_received(data)
            self._head = 0 if self._whole or self._moved else self._head + len(data)
            if self._head > MOST and not self.transport.is_closing():
                self.send_400_response(f"the head of a request has at most {MOST} bytes")

    return Bounded
