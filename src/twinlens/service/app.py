"""The application: its routes, its errors, and the life of its state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from twinlens._version import __version__
from twinlens.service.errors import add_handlers
from twinlens.service.routes import answers
from twinlens.service.settings import ServiceSettings
from twinlens.service.state import ServiceState

__all__ = ["create_app", "worker_app"]

ROUTERS = (answers.router,)


def create_app(settings: ServiceSettings) -> FastAPI:
    """The application of one worker.

    Args:
        settings: what is served.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = ServiceState(settings)
        yield
        app.state.service.close()

    # The pages of FastAPI load scripts from elsewhere.
    app = FastAPI(
        title="twinlens", version=__version__, lifespan=life, docs_url=None, redoc_url=None,
        openapi_url="/v1/openapi.json", max_body_size=settings.limits.body_bytes,
    )  # fmt: skip
    add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    return app


def worker_app() -> FastAPI:
    """The application with the settings of the environment, for worker processes."""
    return create_app(ServiceSettings.from_environment())
