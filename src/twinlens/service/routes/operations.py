"""Routes for those who run the service: health, readiness, metrics."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from twinlens._version import __version__
from twinlens.errors import TwinlensError
from twinlens.service.errors import ServiceError
from twinlens.service.metrics import CONTENT_TYPE, exposition
from twinlens.service.security import Read
from twinlens.service.state import Service, ServiceState

__all__ = ["router"]

router = APIRouter(tags=["operations"])

PROBE_BYTES = 4096  # written to see whether the disk takes more


@router.get("/health", include_in_schema=False)
@router.get("/v1/health")
async def health() -> JSONResponse:
    """Whether the process lives; needs no key."""
    return JSONResponse({"status": "ok", "version": __version__})


@router.get("/ready", include_in_schema=False)
@router.get("/v1/ready")
def ready(service: Service) -> JSONResponse:
    """Whether requests can be answered, else 503 with the reasons; needs no key.

    The model and the galleries of the start must open, the folder of `--data` must be writable, and
    the queue must move.
    """
    reasons = list(_reasons(service))
    if reasons:
        raise ServiceError(503, "; ".join(reasons), "not_ready", {"Retry-After": "5"})
    return JSONResponse({"status": "ready"})


@router.get("/metrics", include_in_schema=False)
@router.get("/v1/metrics", response_class=Response)
def metrics(service: Service, caller: Read) -> Response:
    """Metrics of all worker processes, in Prometheus' format."""
    return Response(exposition(_gallery_sizes(service)), media_type=CONTENT_TYPE)


def _reasons(service: ServiceState) -> Iterator[str]:
    """Reasons not to send requests here, without names or paths: callers have no key."""
    if service.closing.is_set():
        yield "the service ends"
    if service.queue.is_stuck():
        yield "the queue does not move"
    try:
        if service.settings.model is not None:
            service.models.get()
    except (TwinlensError, ServiceError):
        yield "the model cannot be opened"
    for name in service.start_galleries():
        try:
            service.galleries.get(name)
        except (TwinlensError, ServiceError):
            yield "a gallery cannot be opened"
    if service.settings.data is not None and not _is_writable(service.settings.data):
        yield "the folder of --data cannot be written, or its disk is full"


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            return file.write(os.urandom(PROBE_BYTES)) == PROBE_BYTES
    except OSError:
        return False


def _gallery_sizes(service: ServiceState) -> Iterator[tuple[str, int]]:
    """Names and sizes of the galleries of the start; opening all those of --data could be slow."""
    for name in service.start_galleries():
        try:
            yield name, len(service.galleries.get(name))
        except (TwinlensError, ServiceError):  # `ready` tells of it.
            continue
