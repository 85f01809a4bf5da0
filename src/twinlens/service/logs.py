"""Logs: one line for each request, JSON for machines or text for a terminal; and its metrics.

A line names the route's template and never the path, the query or the body of a request: these may
hold names of people.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinlens.service.errors import error_response
from twinlens.service.metrics import ERRORS, IN_PROGRESS, PICTURES, REQUEST_SECONDS

__all__ = ["JsonLines", "RequestLog", "TextLines", "log", "log_config"]

log = logging.getLogger("twinlens.service")

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
QUIET = frozenset(("/health", "/ready", "/metrics", "/v1/health", "/v1/ready", "/v1/metrics"))
"""Routes whose successful requests are logged at the level debug: probes come every few seconds."""


class RequestLog:
    """ASGI middleware: request ids, one log line and metrics for each request, and faults.

    The id of the header `x-request-id` is taken if it is short and plain, else one is made. It is
    `request.state.request_id`, and a header of the answer. Handlers may set `request.state.caller`,
    `request.state.error_code` and `request.state.num_pictures`, which are logged and counted.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(scope)
        status, num_bytes = 0, 0

        async def observed(message: Message) -> None:
            nonlocal status, num_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                header = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
            elif message["type"] == "http.response.body":
                num_bytes += len(message.get("body", b""))
            await send(message)

        IN_PROGRESS.inc()
        try:
            await self.app(scope, receive, observed)
        except Exception as error:
            log.exception("a fault of twinlens", exc_info=error, extra={"request_id": request_id})
            if status:  # The answer has begun: only a broken connection tells of the fault.
                raise
            answer = error_response(
                Request(scope), 500, "internal",
                "a fault of twinlens: the log of the server has its details",
            )  # fmt: skip
            await answer(scope, receive, observed)
        finally:
            IN_PROGRESS.dec()
            _record(scope, state, status, num_bytes, time.perf_counter() - started)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _record(
    scope: Scope, state: dict[str, Any], status: int, num_bytes: int, seconds: float
) -> None:
    """Log and count one request; status 0 is a client that left before the answer began."""
    route, code = _template(scope), state.get("error_code")
    method = scope["method"] if scope["method"] in METHODS else "other"
    REQUEST_SECONDS.labels(route, method, str(status)).observe(seconds)
    if code is not None:
        ERRORS.labels(code).inc()
    num_pictures = state.get("num_pictures", 0)
    if num_pictures and 0 < status < 400:
        PICTURES.labels(route).inc(num_pictures)
    level = logging.DEBUG if route in QUIET and status < 400 else logging.INFO
    if not log.isEnabledFor(level):
        return
    facts = {"request_id": state["request_id"], "key": getattr(state.get("caller"), "name", None),
             "method": method, "route": route, "status": status, "error": code,
             "ms": round(seconds * 1000, 1), "bytes": num_bytes,
             "pictures": num_pictures or None}  # fmt: skip
    log.log(level, "request", extra={"facts": facts})


def _template(scope: Scope) -> str:
    """The template of the route, as "/v1/galleries/{name}"; "" if none fits."""
    route = scope.get("route")
    if route is not None:
        return str(getattr(route, "path", ""))
    return str(scope["root_path"]) if "app_root_path" in scope else ""  # A mounted folder.


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{seconds}.{int(record.msecs):03d}Z", "level": record.levelname.lower(),
                "message": record.getMessage(), "worker": record.process,
                "request_id": getattr(record, "request_id", None),
                **getattr(record, "facts", {})}  # fmt: skip
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in line.items() if value is not None})


class TextLines(logging.Formatter):
    """Lines for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        facts = getattr(record, "facts", {})
        if "route" not in facts:
            return " ".join((super().format(record), *(f"{k}={v}" for k, v in facts.items())))
        if "method" not in facts:  # Of the audit log.
            return f"{super().format(record)} {json.dumps(facts, ensure_ascii=False)}"
        words = (self.formatTime(record, self.datefmt), facts["method"], facts["route"] or "-",
                 facts["status"], facts["error"] or "", f"{facts['ms']:g} ms",
                 f"{facts['bytes']} bytes", facts["key"] or "-", facts["request_id"])  # fmt: skip
        return " ".join(str(word) for word in words if word != "")


def log_config() -> dict[str, Any]:
    """Configuration of `logging`: text if standard error is a terminal, else JSON."""
    kind = TextLines if sys.stderr is not None and sys.stderr.isatty() else JsonLines
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": kind}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
        "loggers": {
            "twinlens": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
            "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        },
    }
