"""The application: its routes, its errors, and the life of its state."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType

from fastapi import FastAPI
from threadpoolctl import threadpool_limits

from twinlens._version import __version__
from twinlens.service.bodies import BodyLimits
from twinlens.service.description import describe
from twinlens.service.errors import add_handlers
from twinlens.service.logs import RequestLog
from twinlens.service.pages import routes as pages
from twinlens.service.routes import (
    answers,
    compreface,
    compreface_answers,
    galleries,
    jobs,
    models,
    operations,
    pictures,
    reference,
    templates,
)
from twinlens.service.schemas import ERRORS
from twinlens.service.security import Access, SafeHeaders
from twinlens.service.settings import ServiceSettings
from twinlens.service.state import ServiceState

__all__ = ["create_app", "worker_app"]

log = logging.getLogger("twinlens.service")

ROUTERS = (
    answers.router, models.router, galleries.router, templates.router, pictures.router,
    jobs.router, compreface.router, compreface_answers.router, operations.router,
    reference.router, pages.router,
)  # fmt: skip


def create_app(settings: ServiceSettings) -> FastAPI:
    """The application of one worker.

    Args:
        settings: what is served.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        state = app.state.service = ServiceState(settings)
        try:
            await asyncio.to_thread(state.warm_up)
            await asyncio.to_thread(state.jobs.resume_interrupted)
            _note_signals(state.closing)
            # Requests share the cores: threads within one would only wait for each other.
            with threadpool_limits(1, user_api="blas"):
                yield
        finally:
            state.close()

    # The pages of FastAPI load scripts from elsewhere. Its logs would hold messages of exceptions.
    app = FastAPI(
        title="twinlens", version=__version__, lifespan=life, docs_url=None, redoc_url=None,
        openapi_url="/v1/openapi.json", responses=ERRORS,
        redirect_slashes=False,  # To the host that a client names.
        telemetry={"logs": False, "operation_spans": False},
    )  # fmt: skip
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(BodyLimits, limits=settings.limits)
    app.add_middleware(Access, settings=settings)
    app.add_middleware(RequestLog)
    app.add_middleware(SafeHeaders)  # The last one added is the outermost.
    return app


def worker_app() -> FastAPI:
    """The application with the settings of the environment, for worker processes."""
    logging.captureWarnings(True)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A worker whose parent was killed would hold the port for ever.
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    return create_app(ServiceSettings.from_environment())


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _note_signals(closing: asyncio.Event) -> None:
    """Set an event when the server is told to end, which waits for open answers before the rest."""
    if threading.current_thread() is not threading.main_thread():
        return  # Signals are for the main thread; a test's server runs in another.
    loop = asyncio.get_running_loop()

    def note(number: int) -> None:
        before = signal.getsignal(number)

        def receive(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(closing.set)
            if callable(before):
                before(number, frame)

        signal.signal(number, receive)

    for number in (signal.SIGINT, signal.SIGTERM):
        note(number)
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        signal.signal(hang_up, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
