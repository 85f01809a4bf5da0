"""Routes of models: list, facts, download, report, export, deletion, calibration."""

from __future__ import annotations

import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from twinlens.commands.export import export
from twinlens.service.downloads import ZipResponse
from twinlens.service.errors import ServiceError
from twinlens.service.job_arguments import CalibrateArguments
from twinlens.service.job_folder import ENDED
from twinlens.service.job_schemas import JobFacts
from twinlens.service.schemas import ModelFacts, ModelList, answer_of, file_of
from twinlens.service.security import DOCUMENT_POLICY, Admin, Read
from twinlens.service.state import Service

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models", responses=answer_of(ModelList))
async def list_models(service: Service, caller: Read) -> JSONResponse:
    """List the models."""

    def work() -> dict[str, Any]:
        return {"models": [service.models.info(name) for name in service.models.folders()]}

    return JSONResponse(await run_in_threadpool(work))


@router.get("/models/{name}", responses=answer_of(ModelFacts))
async def show_model(name: str, service: Service, caller: Read) -> JSONResponse:
    """Show the facts of a model, with its calibration."""
    return JSONResponse(await run_in_threadpool(service.models.info, name))


@router.delete("/models/{name}", status_code=204, response_class=Response)
async def delete_model(name: str, service: Service, caller: Admin) -> None:
    """Delete a model with its run folder; galleries keep their copies of it."""

    def work() -> None:
        for job in service.jobs.list():
            users = (job.arguments.get("model"), job.arguments.get("run"))
            if job.state not in ENDED and name in users:
                raise ServiceError(409, f"the job {job.id} uses the model {name}: cancel it first")
        service.models.delete(name)
        service.audit.write("delete model", caller, model=name)

    await run_in_threadpool(work)


@router.get(
    "/models/{name}/download", response_class=Response,
    responses=file_of("application/zip", "the model's folder"),
)  # fmt: skip
async def download_model(name: str, service: Service, caller: Admin) -> Response:
    """Download a model's folder as a zip archive, without pictures of the training."""

    def work() -> ZipResponse:
        files = {f"model/{file.name}": file for file in service.models.files(name)}
        return ZipResponse(_file_name(name, "model.zip"), files, ExitStack())

    return await run_in_threadpool(work)


@router.get(
    "/models/{name}/report", response_class=Response,
    responses=file_of("text/html", "the report of the training"),
)  # fmt: skip
async def show_report(name: str, service: Service, caller: Admin) -> FileResponse:
    """Show the report of a model's training, one HTML file, which holds pictures."""
    report = await run_in_threadpool(service.models.report, name)
    return FileResponse(
        report, media_type="text/html", filename=_file_name(name, "report.html"),
        content_disposition_type="inline", headers={"Content-Security-Policy": DOCUMENT_POLICY},
    )  # fmt: skip


@router.get(
    "/models/{name}/export", response_class=Response,
    responses=file_of("application/zip", "the exported folder"),
)  # fmt: skip
async def export_model(
    name: str,
    service: Service,
    caller: Admin,
    format: Literal["onnx", "onnx-int8", "openvino", "hub"] = "onnx",
    resize: Literal["outside", "inside"] = "outside",
) -> Response:
    """Download a model in another form, as `twinlens export` writes it."""

    def work() -> ZipResponse:
        with ExitStack() as stack:
            top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinlens-")))
            out = top / "export"
            export(service.models.get(name).path, out, format=format, resize=resize, quiet=True)
            files = {file.relative_to(out).as_posix(): file
                     for file in sorted(out.rglob("*")) if file.is_file()}  # fmt: skip
            return ZipResponse(_file_name(name, f"{format}.zip"), files, stack.pop_all())

    async with service.queue.admitted():
        try:
            return await service.queue.run(work)
        except ServiceError as error:
            if error.code != "timeout":
                raise
            text = f"{error.message}, or start the job POST /v1/jobs/export, which has no limit"
            raise ServiceError(503, text, "timeout", dict(error.headers or {})) from error


@router.post("/calibrate", status_code=202, responses=answer_of(JobFacts, 202))
async def calibrate(
    service: Service,
    caller: Admin,
    arguments: Annotated[CalibrateArguments, Query()],
) -> JSONResponse:
    """Calibrate a model on labelled pictures, or a gallery: starts a job.

    The same as `POST /v1/jobs/calibrate`, with query parameters.
    """
    values = arguments.model_dump()
    job = await run_in_threadpool(service.jobs.start, "calibrate", values, caller.name)
    return JSONResponse(job.as_json(), 202)


def _file_name(name: str, ending: str) -> str:
    """A name for the client's disk, in plain ASCII."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{ending}"
