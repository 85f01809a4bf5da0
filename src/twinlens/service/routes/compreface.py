"""CompreFace's routes of subjects and their pictures, so that its clients can move.

A subject is an identity, an image a template. `compreface_answers` has the routes that answer.
"""

from __future__ import annotations

import math
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from twinlens.errors import PictureError
from twinlens.service import changes
from twinlens.service.compreface_schemas import (
    Deleted,
    Face,
    FacePage,
    Subject,
    Subjects,
    Updated,
)
from twinlens.service.errors import ServiceError
from twinlens.service.schemas import answer_of, file_of, picture_body
from twinlens.service.security import Admin, Enrol, Read
from twinlens.service.state import Service, ServiceState
from twinlens.service.uploads import Upload, read_uploads, require_one

__all__ = ["GalleryName", "hash_of", "read_file", "router"]

router = APIRouter(prefix="/api/v1", tags=["compreface"])

GalleryName = Annotated[
    str | None, Query(description="Name of a gallery; not needed if there is only one")
]
SubjectName = Annotated[str, Query(min_length=1, max_length=1000, description="Name of a subject")]


# --- subjects -----------------------------------------------------------------------------------


@router.get("/recognition/subjects", responses=answer_of(Subjects))
@router.get("/recognition/subjects/", include_in_schema=False)
async def list_subjects(
    service: Service, caller: Read, gallery: GalleryName = None
) -> JSONResponse:
    """List the subjects."""
    names = await service.queue.run(
        service.galleries.use, gallery, lambda opened: list(opened.identities())
    )
    return JSONResponse({"subjects": names})


@router.post("/recognition/subjects", status_code=201, responses=answer_of(Subject, 201))
async def add_subject(
    subject: Subject, service: Service, caller: Enrol, gallery: GalleryName = None
) -> JSONResponse:
    """Accept a subject; it is listed once it has a picture."""
    await service.queue.run(service.galleries.get, gallery)
    return JSONResponse({"subject": subject.subject}, 201)


@router.put("/recognition/subjects/{old:path}", responses=answer_of(Updated))
async def rename_subject(
    old: str, subject: Subject, service: Service, caller: Admin, gallery: GalleryName = None
) -> JSONResponse:
    """Rename a subject, or merge it into another one."""
    result = await service.queue.run(
        changes.rename, service, caller, gallery, old, subject.subject, merge=True
    )
    return JSONResponse({"updated": result.num_templates > 0})


@router.delete("/recognition/subjects", responses=answer_of(Deleted))
async def delete_subjects(
    service: Service, caller: Admin, gallery: GalleryName = None
) -> JSONResponse:
    """Erase all subjects."""
    return JSONResponse({"deleted": (await _erase_all(service, caller, gallery))[0]})


@router.delete("/recognition/subjects/{subject:path}", responses=answer_of(Subject))
async def delete_subject(
    subject: str, service: Service, caller: Admin, gallery: GalleryName = None
) -> JSONResponse:
    """Erase a subject with its pictures."""
    await service.queue.run(changes.erase, service, caller, gallery, subject)
    return JSONResponse({"subject": subject})


# --- enrolled pictures --------------------------------------------------------------------------


@router.post("/recognition/faces", status_code=201, responses=answer_of(Face, 201),
             openapi_extra=picture_body("file"))  # fmt: skip
async def add_face(
    request: Request,
    service: Service,
    caller: Enrol,
    subject: SubjectName,
    gallery: GalleryName = None,
    keep_thumbnails: Annotated[
        bool, Query(description="Keep a small picture; by default no picture is kept")
    ] = False,
    det_prob_threshold: Annotated[
        str | None, Query(description="Ignored: no face is detected")
    ] = None,
) -> JSONResponse:
    """Enrol a picture of a subject."""
    async with service.queue.admitted():
        upload = await read_file(request, service)

        def work() -> dict[str, str]:
            pictures = [(upload.name or "file", upload.content)]
            result = changes.enrol(
                service, caller, gallery, subject, pictures, keep_thumbnails=keep_thumbnails
            )
            for picture in result.skipped:
                if result.num_failed:
                    raise PictureError(picture.path, picture.reason)
                raise ServiceError(409, str(picture))
            [name] = result.hashes.values()
            return {"image_id": _image_id(name), "subject": subject}

        return JSONResponse(await service.queue.run(work), 201)


@router.get("/recognition/faces", responses=answer_of(FacePage))
async def list_faces(
    service: Service,
    caller: Read,
    page: Annotated[int, Query(ge=0, description="Number of the page, from 0")] = 0,
    size: Annotated[int, Query(ge=1, le=1000, description="Pictures of a page")] = 20,
    subject: Annotated[str | None, Query(description="Only those of a subject")] = None,
    gallery: GalleryName = None,
) -> JSONResponse:
    """List the enrolled pictures."""
    part = await service.queue.run(
        service.galleries.use, gallery,
        lambda opened: opened.templates(subject, offset=page * size, limit=size),
    )  # fmt: skip
    faces = [{"image_id": _image_id(row.hash), "subject": row.identity} for row in part.templates]
    return JSONResponse({
        "faces": faces, "page_number": page, "page_size": size,
        "total_pages": math.ceil(part.total / size), "total_elements": part.total,
    })  # fmt: skip


@router.delete("/recognition/faces", responses=answer_of(Deleted))
async def delete_faces(
    service: Service,
    caller: Admin,
    subject: Annotated[str | None, Query(description="A subject; without one, all")] = None,
    gallery: GalleryName = None,
) -> JSONResponse:
    """Erase the pictures of a subject, or of all."""
    if subject is None:
        return JSONResponse({"deleted": (await _erase_all(service, caller, gallery))[1]})
    receipt = await service.queue.run(changes.erase, service, caller, gallery, subject)
    return JSONResponse({"deleted": receipt.num_templates})


@router.post("/recognition/faces/delete", responses={200: {"model": list[Face]}})
async def delete_some_faces(
    image_ids: list[str], service: Service, caller: Admin, gallery: GalleryName = None
) -> JSONResponse:
    """Erase some pictures by their ids."""
    return JSONResponse(await _erase_faces(service, caller, gallery, image_ids))


@router.delete("/recognition/faces/{image_id}", responses=answer_of(Face))
async def delete_face(
    image_id: str, service: Service, caller: Admin, gallery: GalleryName = None
) -> JSONResponse:
    """Erase a picture by its id."""
    [face] = await _erase_faces(service, caller, gallery, [image_id])
    return JSONResponse(face)


@router.get("/recognition/faces/{image_id}/img", response_class=Response,
            responses=file_of("image/jpeg", "the small picture"))  # fmt: skip
async def show_face(
    image_id: str, service: Service, caller: Read, gallery: GalleryName = None
) -> Response:
    """Show the small picture, if it was kept."""
    content = await service.queue.run(
        service.galleries.use, gallery, lambda opened: opened.thumbnail(hash_of(image_id))
    )
    if content is None:
        raise ServiceError(404, "no picture was kept: enrol with keep_thumbnails=true")
    return Response(content, media_type="image/jpeg")


async def read_file(request: Request, service: ServiceState) -> Upload:
    """The picture of a request, in the field `file`."""
    uploads = await read_uploads(request, ("file",), service.settings.limits)
    return require_one(uploads, "file")


async def _erase_all(service: ServiceState, caller: Admin, gallery: str | None) -> tuple[int, int]:
    """Erase all templates; the number of identities and of templates."""

    def work() -> tuple[int, int]:
        name = service.galleries.name_of(gallery)
        hashes = [row.hash for row in service.galleries.get(name).templates().templates]
        if not hashes:
            return 0, 0
        receipt = changes.erase_templates(service, caller, name, hashes)
        return receipt.num_identities, receipt.num_templates

    return await service.queue.run(work)


async def _erase_faces(
    service: ServiceState, caller: Admin, gallery: str | None, image_ids: list[str]
) -> list[dict[str, str]]:
    """Erase templates by their ids; ids and subjects."""

    def work() -> list[dict[str, str]]:
        hashes = [hash_of(image_id) for image_id in image_ids]
        owners = service.galleries.use(gallery, lambda opened: opened.core.owners(hashes))
        if hashes:
            changes.erase_templates(service, caller, gallery, hashes)
        return [{"image_id": image_id, "subject": owners[name]}
                for image_id, name in zip(image_ids, hashes, strict=True)]  # fmt: skip

    return await service.queue.run(work)


def _image_id(hash: str) -> str:
    """A template's hash, which has as many digits as a UUID."""
    return str(UUID(hash))


def hash_of(image_id: str) -> str:
    """A template's hash.

    Raises:
        ServiceError: no UUID (404).
    """
    try:
        return UUID(image_id).hex
    except ValueError as error:
        raise ServiceError(404, "an image_id is a UUID, as in the list of faces") from error
