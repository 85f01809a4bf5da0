"""Bodies of requests: their size, their time, and the memory of all of them."""

from __future__ import annotations

import asyncio
import re

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinlens.service.errors import ServiceError, error_response
from twinlens.service.settings import Limits

__all__ = ["BodyLimits"]

UTF_8 = re.compile(r"""charset="?utf-8"?(?=\s*(;|$))""", re.IGNORECASE)


class BodyLimits:
    """ASGI middleware: refuses bodies that are too large, too slow, or too many at once.

    Bytes count while they arrive, whatever a header says. They are released when the request is
    answered, since handlers may hold them until then.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self._limits = limits
        self._num_bytes = 0  # of all requests in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        try:
            self._check(_announced(request), self._num_bytes)
            _check_charset(request.headers.get("content-type", ""))
        except ServiceError as error:
            answer = error_response(request, error.status, error.code, error.message, error.headers)
            await answer(scope, receive, send)
            return
        num_bytes, is_whole, deadline = 0, False, 0.0

        async def limited() -> Message:
            nonlocal num_bytes, is_whole, deadline
            if is_whole:  # The handler waits for the end of the connection.
                return await receive()
            deadline = deadline or asyncio.get_running_loop().time() + self._limits.body_seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ServiceError(
                    408, f"the body did not come within {self._limits.body_seconds:g} seconds"
                ) from None
            is_whole = not message.get("more_body", False)
            new = len(message.get("body", b""))
            num_bytes, self._num_bytes = num_bytes + new, self._num_bytes + new
            self._check(num_bytes, self._num_bytes - num_bytes)
            return message

        try:
            await self.app(scope, limited, send)
        except ClientDisconnect:
            pass  # Nobody is left to answer; this is no fault.
        finally:
            self._num_bytes -= num_bytes

    def _check(self, num_bytes: int, others: int) -> None:
        """Refuse a body.

        Args:
            num_bytes: of the body.
            others: bytes of the bodies of all other requests.
        Raises:
            ServiceError: too many bytes (413, 503).
        """
        if num_bytes > self._limits.body_bytes:
            raise ServiceError(
                413, f"the body is too large: at most {self._limits.body_bytes:,} bytes are taken"
            )
        if num_bytes and num_bytes + others > self._limits.memory_bytes:
            raise ServiceError(
                503, "the service holds too many uploads: try again in a second",
                headers={"Retry-After": "1"},
            )  # fmt: skip


def _check_charset(kind: str) -> None:
    """Refuse forms in rare character sets, whose texts may be none that can be encoded again.

    Raises:
        ServiceError: another one than UTF-8 (415).
    """
    if "charset" in UTF_8.sub("", kind).lower() and kind.lstrip().lower().startswith("multipart/"):
        raise ServiceError(415, "forms are read as UTF-8: leave the charset out")


def _announced(request: Request) -> int:
    """Bytes of the body by its header; 0 if unknown. The server checked that it is a number."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
