"""Errors of the service: one JSON body for all, without paths of the server."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from twinlens.errors import (
    CalibrationError,
    ConfigError,
    DataError,
    GalleryError,
    MissingExtraError,
    ModelError,
    NotEnrolledError,
    PictureError,
    TrainingError,
    TwinlensError,
    message_lines,
    one_line,
)

__all__ = ["ServiceError", "add_handlers", "error_body", "error_response", "public_text"]

log = logging.getLogger("twinlens.service")

# Kind of error -> code and status. The first that fits is taken.
KINDS: tuple[tuple[type[TwinlensError], str, int], ...] = (
    (PictureError, "picture_unreadable", 422),
    (CalibrationError, "not_calibrated", 409),
    (ConfigError, "invalid_value", 422),
    (DataError, "invalid_data", 422),
    (NotEnrolledError, "not_found", 404),
    (GalleryError, "gallery", 422),
    (MissingExtraError, "missing_extra", 501),
    (ModelError, "model", 500),
    (TrainingError, "training", 409),
    (TwinlensError, "error", 500),
)
CODES = {400: "bad_request", 401: "no_key", 403: "forbidden", 404: "not_found",
         405: "method_not_allowed", 408: "too_slow", 409: "conflict", 411: "length_required",
         413: "too_large", 415: "unsupported_type", 422: "invalid_value", 429: "too_many_requests",
         431: "headers_too_large", 503: "busy"}  # fmt: skip
SERVER_PATH = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?(?:/[^\s/:'\"`,;()<>]+){2,}/?")


class ServiceError(HTTPException):
    """An answer of the service that is an error; FastAPI passes it on while it reads a body.

    Args:
        status: HTTP status.
        message: says what was found, what is needed and what to do.
        code: short name for programs; by default that of the status.
        headers: further headers.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, message, headers)
        self.status, self.message = status, message
        self.code = CODES.get(status, "error") if code is None else code


def public_text(message: str) -> str:
    """A message with each path of the server replaced by its last part.

    >>> public_text("the model /srv/runs/faces/model is not calibrated")
    'the model model is not calibrated'
    """
    return SERVER_PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], message)


def error_response(
    request: Request, status: int, code: str, message: str,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    """The answer to a request that failed."""
    request.state.error_code = code
    body = error_body(code, message, getattr(request.state, "request_id", ""))
    return JSONResponse(body, status, headers)


def error_body(code: str, message: str, request_id: str) -> dict[str, Any]:
    """The body of an error, which can be encoded whatever a client sent."""
    text = message_lines(message).encode("utf-8", "backslashreplace").decode()
    return {"error": {"code": code, "message": text, "request_id": request_id}}


def add_handlers(app: FastAPI) -> None:
    """Answer every error of an application in one form; `logs.RequestLog` answers faults."""

    @app.exception_handler(ServiceError)
    async def of_service(request: Request, error: ServiceError) -> JSONResponse:
        return error_response(request, error.status, error.code, error.message, error.headers)

    @app.exception_handler(TwinlensError)
    async def of_twinlens(request: Request, error: TwinlensError) -> JSONResponse:
        code, status = next((c, s) for kind, c, s in KINDS if isinstance(error, kind))
        if status == 500:
            log.error("%s", error)
        text = error.reason if isinstance(error, PictureError) and not error.path else str(error)
        return error_response(request, status, code, public_text(text))

    @app.exception_handler(RequestValidationError)
    async def of_values(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = "; ".join(
            f"{one_line('.'.join(map(str, entry['loc'][1:])))}: {one_line(entry['msg'], 300)}"
            for entry in error.errors()[:20]
        )
        return error_response(request, 422, "invalid_value", problems)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code, "error")
        return error_response(request, error.status_code, code, str(error.detail), error.headers)
