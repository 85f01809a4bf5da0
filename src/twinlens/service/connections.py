"""Connections: limits on their number and on headers, before there is a request.

uvicorn waits for headers without limits of time and size, and keeps a connection whose client goes
on sending a body that was refused. The subclass of its protocol mends both.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import selectors
import uuid
from http import HTTPStatus
from selectors import EVENT_READ
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from twinlens.service.errors import CODES, error_body
from twinlens.service.metrics import ERRORS
from twinlens.service.security import HEADERS
from twinlens.service.settings import Limits

__all__ = ["Connection"]

LINGER_SECONDS = 5.0  # for the rest of a refused body, so that its sender can read the answer
IDLE_SECONDS = 1.0  # after which a connection leaves its place to a new one, if all are taken
MAX_TRIED = 8  # connections that may be closed for a new one
SELECTOR = getattr(selectors, "PollSelector", selectors.SelectSelector)  # Takes no file itself.
BUSY = "there are too many connections: try again in a second"


class Connection(HttpToolsProtocol):
    """A connection of uvicorn with limits.

    If there are too many, idle ones are closed, so that slow clients do not shut out others.

    At most `header_bytes` may come without completing headers or bringing bytes of a body: this
    bounds addresses, headers, trailers and the extensions of chunks alike.

    Attributes:
        idle_since: time of the loop of the last answer, or of the connection.
    """

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._own_app, self._is_refused = self.app, False
        self._num_held, self._in_headers = 0, True
        self._timer: asyncio.TimerHandle | None = None
        self.idle_since = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for headers; refuse if there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._is_refused = not self._take_place()
        if len(self.connections) > 4 * self._limits.connections:
            transport.abort()  # Each answer to a refused one takes a file of the process.
            return
        self._set_timer(self._limits.header_seconds, self._of_late_headers)

    def _take_place(self) -> bool:
        """Close the connection that has been idle for longest, if that is a second or more."""
        idle = [other for other in self.connections
                if isinstance(other, Connection) and other.is_idle()]  # fmt: skip
        for other in heapq.nsmallest(MAX_TRIED, idle, key=lambda other: other.idle_since):
            if self.loop.time() - other.idle_since < IDLE_SECONDS:
                return False
            if not other.has_unread():
                other.transport.abort()
                return True
        return False

    def has_unread(self) -> bool:
        """Whether bytes of the client have come that this busy process did not read yet."""
        with SELECTOR() as selector:
            selector.register(self.transport.get_extra_info("socket").fileno(), EVENT_READ)
            return bool(selector.select(0))

    def is_idle(self) -> bool:
        """Whether neither a request nor an answer is in progress; incomplete headers are none."""
        return self._in_headers and (self.cycle is None or self.cycle.response_complete)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._set_timer(0, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes of the client, as many at a time as may be held."""
        while data and not self.transport.is_closing():
            room = self._limits.header_bytes - self._num_held
            part, data = data[:room], data[room:]
            self._num_held += len(part)
            super().data_received(part)
            if self._num_held >= self._limits.header_bytes:
                self._refuse(431, f"headers have {self._limits.header_bytes:,} bytes at most")
        if self._in_headers and self._num_held and self._timer is None:
            self._set_timer(self._limits.header_seconds, self._of_late_headers)

    def on_headers_complete(self) -> None:
        """Start the handler of a request."""
        self._num_held, self._in_headers = 0, False
        self._set_timer(0, None)
        self._is_refused &= len(self.connections) > self._limits.connections
        self.app = _busy if self._is_refused else self._own_app
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind a body are dropped."""
        if self._in_headers:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take bytes of a body."""
        self._num_held = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request, which may be answered already."""
        self._num_held, self._in_headers = 0, True
        super().on_message_complete()
        if self.cycle.response_complete:  # The rest of a refused body has come.
            self._set_timer(self.timeout_keep_alive, self.transport.close)

    def on_response_complete(self) -> None:
        """Take the end of an answer; the rest of a refused body is awaited for a while."""
        super().on_response_complete()
        self.idle_since = self.loop.time()
        if not self._in_headers and self.cycle.response_complete:
            self._set_timer(LINGER_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, "this is no request of HTTP")

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: clients may ask for WebSockets as often as they like."""

    def _set_timer(self, seconds: float, call: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if call is None else self.loop.call_later(seconds, call)

    def _of_late_headers(self) -> None:
        self._timer = None
        if self.has_unread():
            self._set_timer(self._limits.header_seconds, self._of_late_headers)
        elif self._num_held:
            seconds = self._limits.header_seconds
            self._refuse(408, f"the headers did not come within {seconds:g} seconds")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Answer instead of a handler, and close."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            ERRORS.labels(CODES[status]).inc()
            body = json.dumps(error_body(CODES[status], message, uuid.uuid4().hex)).encode()
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
            headers = HEADERS | {
                "content-type": "application/json", "content-length": str(len(body)),
                "connection": "close",
            }  # fmt: skip
            lines += [f"{name}: {value}" for name, value in headers.items()]
            self.transport.write("\r\n".join((*lines, "", "")).encode() + body)
        self.transport.close()


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    """Application that refuses a request of one connection too many."""
    ERRORS.labels("busy").inc()
    body = json.dumps(error_body("busy", BUSY, uuid.uuid4().hex)).encode()
    headers = HEADERS | {"content-type": "application/json", "content-length": str(len(body)),
                         "retry-after": "1"}  # fmt: skip
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 503, "headers": raw})
    await send({"type": "http.response.body", "body": body})
