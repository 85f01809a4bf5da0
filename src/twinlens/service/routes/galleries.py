"""Routes of galleries: list, create, facts, calibrate, optimize, delete; and the audit log."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response

from twinlens.errors import CalibrationError, GalleryError
from twinlens.gallery.gallery import Gallery
from twinlens.service import changes
from twinlens.service.errors import ServiceError, public_text
from twinlens.service.gallery_schemas import (
    AuditEntries,
    GalleryCalibrated,
    GalleryFacts,
    GalleryList,
    OptimizeAnswer,
)
from twinlens.service.schemas import answer_of
from twinlens.service.security import Admin, Read
from twinlens.service.state import Service, ServiceState

__all__ = ["DIRECT", "facts", "router"]

router = APIRouter(prefix="/v1", tags=["galleries"])

DIRECT = 5000
"""Templates up to which a request may calibrate; larger galleries take a job."""


@router.get("/galleries", responses=answer_of(GalleryList))
async def list_galleries(service: Service, caller: Read) -> JSONResponse:
    """List the galleries."""

    def work() -> dict[str, Any]:
        return {
            "galleries": [_facts_or_error(service, name) for name in service.galleries.places()]
        }

    return JSONResponse(await service.queue.run(work))


@router.post("/galleries", status_code=201, responses=answer_of(GalleryFacts, 201))
async def create_gallery(
    service: Service,
    caller: Admin,
    name: Annotated[str, Query(description="Name of the new gallery")],
    model: Annotated[
        str | None, Query(description="Name of a model; by default the one of the start")
    ] = None,
) -> JSONResponse:
    """Create an empty gallery with a copy of a model."""

    def work() -> dict[str, Any]:
        return facts(service, name, changes.create(service, caller, name, model))

    return JSONResponse(await service.queue.run(work), 201)


@router.get("/galleries/{gallery}", responses=answer_of(GalleryFacts))
async def show_gallery(gallery: str, service: Service, caller: Read) -> JSONResponse:
    """Show a gallery in numbers."""
    return JSONResponse(await service.queue.run(
        service.galleries.use, gallery, lambda opened: facts(service, gallery, opened)
    ))  # fmt: skip


@router.delete("/galleries/{gallery}", status_code=204, response_class=Response)
async def delete_gallery(gallery: str, service: Service, caller: Admin) -> None:
    """Delete a gallery with everything in it; its receipt is a line of the audit log."""
    await service.queue.run(changes.delete, service, caller, gallery)


@router.post("/galleries/{gallery}/calibrate", responses=answer_of(GalleryCalibrated))
async def calibrate_gallery(
    gallery: str,
    service: Service,
    caller: Admin,
    fpir: Annotated[
        float, Query(gt=0, lt=1, description="False positive identification rate to aim at")
    ] = 0.01,
    rule: Annotated[
        str, Query(description="Fusion of an identity's templates: nearest, mean, vote or auto")
    ] = "auto",
    seed: Annotated[int, Query(ge=0, description="Random seed for probes and bootstrap")] = 0,
) -> JSONResponse:
    """Set the threshold for the gallery's size, from its own templates.

    A larger gallery, and a calibration on other pictures, take a job.
    """

    def work() -> dict[str, Any]:
        if (num := len(service.galleries.get(gallery))) > DIRECT:
            raise ServiceError(
                409, f"{num} templates take too long for a request: start a job, POST /v1/jobs"
            )
        try:
            result = changes.calibrate(service, caller, gallery, fpir=fpir, rule=rule, seed=seed)
        except CalibrationError as error:
            text = f"{public_text(str(error))} (the parameter fpir, found {fpir:g})"
            raise ServiceError(409, text, "not_calibrated") from error
        return result.as_json()

    return JSONResponse(await service.queue.run(work))


@router.post("/galleries/{gallery}/optimize", responses=answer_of(OptimizeAnswer))
async def optimize_gallery(gallery: str, service: Service, caller: Admin) -> JSONResponse:
    """Compact files, and build an index if it is faster.

    Beyond the service's limit of seconds the answer is 503, and the work goes on.
    """

    def work() -> dict[str, Any]:
        return changes.optimize(service, caller, gallery).as_json()

    return JSONResponse(await service.queue.run(work))


@router.get("/audit", tags=["operations"], responses=answer_of(AuditEntries))
async def read_audit(
    service: Service,
    caller: Admin,
    offset: Annotated[
        int, Query(ge=0, le=10**9, description="Lines to leave out at the beginning")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Lines, at most")] = 100,
) -> JSONResponse:
    """Read the audit log, the newest line first."""
    return JSONResponse({"entries": await service.queue.run(service.audit.entries, offset, limit)})


def facts(service: ServiceState, name: str, gallery: Gallery) -> dict[str, Any]:
    """A gallery in numbers, as of `twinlens gallery info --json`, without the server's path."""
    info = gallery.info().as_json()
    place = PurePosixPath(info["place"]).name
    return {"name": name, **info, "place": place, "deletable": service.galleries.is_own(name)}


def _facts_or_error(service: ServiceState, name: str) -> dict[str, Any]:
    try:
        return service.galleries.use(name, lambda opened: facts(service, name, opened))
    except GalleryError as error:
        return {"name": name, "error": public_text(str(error))}
