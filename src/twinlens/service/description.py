"""The OpenAPI description: that of FastAPI, with the keys, and without keys of OpenAPI 3.2."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

__all__ = ["describe"]

KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
STREAM = {"schema": {"type": "string", "description": "server-sent events"}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of an application, made once.

    A service without keys, which answers to this machine only, needs none of `security`.
    """
    if app.openapi_schema is None:
        described = FastAPI.openapi(app)
        described["components"]["securitySchemes"] = KEYS
        described["security"] = [{}, *({name: []} for name in KEYS)]
        for operations in described["paths"].values():
            for operation in operations.values():
                for answer in operation["responses"].values():
                    content = answer.get("content", {})
                    if "text/event-stream" in content:  # FastAPI's is of OpenAPI 3.2.
                        content["text/event-stream"] = STREAM
    return app.openapi_schema or {}
