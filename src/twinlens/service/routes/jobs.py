"""Routes of jobs: start, list, follow by server-sent events, cancel, resume, fetch results."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from twinlens.service.downloads import ZipResponse
from twinlens.service.errors import ServiceError, public_text
from twinlens.service.job_arguments import (
    Arguments,
    AuditArguments,
    CalibrateArguments,
    ClusterArguments,
    ExportArguments,
    FacesArguments,
    ImportArguments,
    TrainArguments,
)
from twinlens.service.job_folder import LOG, Job
from twinlens.service.job_schemas import GroupList, JobFacts, JobList
from twinlens.service.job_work import EXPORT, GROUPS
from twinlens.service.schemas import answer_of, file_of
from twinlens.service.security import Admin, Caller, Read
from twinlens.service.state import Service, ServiceState

__all__ = ["router"]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

LOG_BYTES = 2**20  # of the end of a log
STARTED = answer_of(JobFacts, 202)
PARQUET = {"requestBody": {"required": True, "content": {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
}}}  # fmt: skip


@router.get("", responses=answer_of(JobList))
async def list_jobs(service: Service, caller: Read) -> JSONResponse:
    """List the jobs, the newest first."""
    jobs = await run_in_threadpool(service.jobs.list)
    return JSONResponse({"jobs": [job.as_json() for job in jobs]})


@router.post("/train", status_code=202, responses=STARTED)
async def train(service: Service, caller: Admin, arguments: TrainArguments) -> JSONResponse:
    """Train a model on a picture set; needs the extra `train` on the server."""
    return await _start(service, caller, "train", arguments)


@router.post("/calibrate", status_code=202, responses=STARTED)
async def calibrate(service: Service, caller: Admin, arguments: CalibrateArguments) -> JSONResponse:
    """Calibrate a model on labelled pictures, or a gallery."""
    return await _start(service, caller, "calibrate", arguments)


@router.post("/cluster", status_code=202, responses=STARTED)
async def cluster(service: Service, caller: Admin, arguments: ClusterArguments) -> JSONResponse:
    """Cluster the unsorted pictures of a set, as a proposal of identities."""
    return await _start(service, caller, "cluster", arguments)


@router.post("/import", status_code=202, responses=STARTED)
async def enrol(service: Service, caller: Admin, arguments: ImportArguments) -> JSONResponse:
    """Enrol the labelled pictures of a set into a gallery."""
    return await _start(service, caller, "import", arguments)


@router.post("/import-file", status_code=202, responses=STARTED, openapi_extra=PARQUET)
async def import_file(
    request: Request,
    service: Service,
    caller: Admin,
    gallery: Annotated[str, Query(description="name of a gallery")],
) -> JSONResponse:
    """Import a Parquet file of a gallery's export, sent as it is, into a gallery."""
    async with service.queue.admitted():
        content = await request.body()
        return await _start(service, caller, "import", ImportArguments(gallery=gallery), content)


@router.post("/export", status_code=202, responses=STARTED)
async def export(service: Service, caller: Admin, arguments: ExportArguments) -> JSONResponse:
    """Export a model for other runtimes; its files are at `/v1/jobs/ID/files`."""
    return await _start(service, caller, "export", arguments)


@router.post("/audit", status_code=202, responses=STARTED)
async def audit(service: Service, caller: Admin, arguments: AuditArguments) -> JSONResponse:
    """Search a set for labels that are probably wrong."""
    return await _start(service, caller, "audit", arguments)


@router.post("/faces", status_code=202, responses=STARTED)
async def faces(service: Service, caller: Admin, arguments: FacesArguments) -> JSONResponse:
    """Crop the largest face of each picture of a set into another set."""
    return await _start(service, caller, "faces", arguments)


@router.get("/{id}", responses=answer_of(JobFacts))
async def show_job(id: str, service: Service, caller: Read) -> JSONResponse:
    """Show a job: state, progress, result or error."""
    return _answer(await run_in_threadpool(service.jobs.get, id))


@router.delete("/{id}", status_code=204, response_class=Response)
async def delete_job(id: str, service: Service, caller: Admin) -> None:
    """Delete an ended job with its files; the model or gallery that it made stays."""
    await run_in_threadpool(service.jobs.delete, id)


@router.post("/{id}/cancel", responses=answer_of(JobFacts))
async def cancel_job(id: str, service: Service, caller: Admin) -> JSONResponse:
    """Cancel a job. A training keeps its checkpoint; a second request ends it at once."""
    return _answer(await run_in_threadpool(service.jobs.cancel, id))


@router.post("/{id}/resume", responses=answer_of(JobFacts))
async def resume_job(id: str, service: Service, caller: Admin) -> JSONResponse:
    """Resume a job that was interrupted or cancelled, or has failed."""
    return _answer(await run_in_threadpool(service.jobs.resume, id))


async def _place_to_follow(id: str, service: Service, caller: Read) -> AsyncIterator[None]:
    """A place for a stream of events, taken before the answer begins."""
    await run_in_threadpool(service.jobs.folder, id)
    with service.jobs.following():
        yield


@router.get(
    "/{id}/events", response_class=EventSourceResponse, dependencies=[Depends(_place_to_follow)]
)
async def follow_job(
    id: str,
    service: Service,
    caller: Read,
    after: Annotated[int, Query(ge=0, description="id of the last known event")] = 0,
    last_event_id: Annotated[int | None, Header(ge=0)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Follow a job by server-sent events: state, progress, log and curve, up to its end."""
    start = after if last_event_id is None else last_event_id
    async for event in service.until_closing(service.jobs.events(id, start)):
        yield ServerSentEvent(data=event.data, event=event.type, id=str(event.id))


@router.get(
    "/{id}/log", response_class=Response, responses=file_of("text/plain", "output of the job")
)
async def show_log(id: str, service: Service, caller: Admin) -> PlainTextResponse:
    """Show the end of a job's output, without folders of the server."""

    def work() -> str:
        file = service.jobs.folder(id) / LOG
        content = file.read_bytes()[-LOG_BYTES:] if file.is_file() else b""
        return public_text(content.decode(errors="replace"))

    return PlainTextResponse(await run_in_threadpool(work))


@router.get("/{id}/groups", responses=answer_of(GroupList))
async def show_groups(id: str, service: Service, caller: Admin) -> FileResponse:
    """Show the groups of a clustering, the largest first, and the pictures of none."""
    folder = await run_in_threadpool(service.jobs.folder, id)
    if not (folder / GROUPS).is_file():
        raise ServiceError(404, f"the job {id} has no groups: it is no clustering that is done")
    return FileResponse(folder / GROUPS, media_type="application/json")


@router.get(
    "/{id}/files", response_class=Response,
    responses=file_of("application/zip", "the exported folder"),
)  # fmt: skip
async def download_files(id: str, service: Service, caller: Admin) -> Response:
    """Download the files of an export as a zip archive."""

    def work() -> ZipResponse:
        out = service.jobs.folder(id) / EXPORT
        files = {path.relative_to(out).as_posix(): path
                 for path in sorted(out.rglob("*")) if path.is_file()}  # fmt: skip
        if not files:
            raise ServiceError(404, f"the job {id} has no files: it is no export that is done")
        return ZipResponse(f"{id}.zip", files, ExitStack())

    return await run_in_threadpool(work)


async def _start(
    service: ServiceState, caller: Caller, kind: str, arguments: Arguments,
    upload: bytes | None = None,
) -> JSONResponse:  # fmt: skip
    values: dict[str, Any] = arguments.model_dump()
    job = await run_in_threadpool(service.jobs.start, kind, values, caller.name, upload)
    return _answer(job, 202)


def _answer(job: Job, status: int = 200) -> JSONResponse:
    return JSONResponse(job.as_json(), status)
