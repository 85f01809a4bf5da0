"""CompreFace's recognition and verification routes, so that its clients can move.

A subject is an identity, an image a template. The models answer for a whole picture, so each
picture has one "face" whose box is the picture.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from twinlens.data.decode import read_header
from twinlens.errors import PictureError
from twinlens.gallery.gallery import Gallery
from twinlens.match.matcher import Matcher
from twinlens.measure.error_rates import matches
from twinlens.service import changes
from twinlens.service.compreface_schemas import (
    Deleted,
    Face,
    FacePage,
    Recognized,
    Subject,
    Subjects,
    Updated,
    Verified,
    VerifiedFaces,
)
from twinlens.service.errors import ServiceError
from twinlens.service.schemas import answer_of, file_of, picture_body
from twinlens.service.security import Admin, Enrol, Read
from twinlens.service.state import Service, ServiceState
from twinlens.service.uploads import Upload, read_uploads, require_one

__all__ = ["router", "similarity"]

router = APIRouter(prefix="/api/v1", tags=["compreface"])

BELOW_HALF = math.nextafter(0.5, 0)

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
        upload = await _read_file(request, service)

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
        service.galleries.use, gallery, lambda opened: opened.thumbnail(_hash(image_id))
    )
    if content is None:
        raise ServiceError(404, "no picture was kept: enrol with keep_thumbnails=true")
    return Response(content, media_type="image/jpeg")


# --- answers ------------------------------------------------------------------------------------


@dataclass
class Options:
    """Options of the routes that answer.

    Attributes:
        limit: ignored.
        det_prob_threshold: ignored.
        face_plugins: names of plugins, with commas between them.
        status: whether to add `plugins_versions` and `execution_time`.
    """

    limit: Annotated[
        int, Query(ge=0, description="Ignored: there is one answer, for the whole picture")
    ] = 0
    det_prob_threshold: Annotated[str | None, Query(description="Ignored: no face is detected")] = (
        None
    )
    face_plugins: Annotated[str, Query(description="`calculator`, for the embedding")] = ""
    status: Annotated[bool, Query(description="Add versions and times")] = False

    def __post_init__(self) -> None:
        plugins = {name.strip() for name in self.face_plugins.split(",")} - {""}
        if unknown := sorted(plugins - {"calculator"}):
            raise ServiceError(
                422, f"face_plugins: '{unknown[0]}' is not supported, only 'calculator' is"
            )

    def face(self, matcher: Matcher, upload: Upload, start: float) -> dict[str, Any]:
        """Box, embedding and time of a picture."""
        try:
            header = read_header(upload.content, max_pixels=matcher.max_pixels)
            more = {}
            if self.face_plugins:
                more["embedding"] = matcher.embed([upload.content])[0].tolist()
        except PictureError as error:
            raise upload.named(error) from error
        if self.status:
            more["execution_time"] = {"calculator": round(1000 * (time.monotonic() - start), 1)}
        box = {"probability": 1.0, "x_min": 0, "y_min": 0, "x_max": header.width,
               "y_max": header.height}  # fmt: skip
        return {"box": box} | more

    def versions(self, matcher: Matcher) -> dict[str, Any]:
        """The model, if `status` is set."""
        return {"plugins_versions": {"calculator": matcher.fingerprint}} if self.status else {}


Wanted = Annotated[Options, Depends()]


@router.post("/recognition/recognize", responses=answer_of(Recognized),
             openapi_extra=picture_body("file"))  # fmt: skip
async def recognize(
    request: Request,
    service: Service,
    caller: Read,
    options: Wanted,
    prediction_count: Annotated[int, Query(ge=1, le=1000, description="Subjects, at most")] = 1,
    gallery: GalleryName = None,
) -> JSONResponse:
    """Find the most similar subjects; those at 0.5 or more are within the threshold."""
    async with service.queue.admitted():
        upload = await _read_file(request, service)

        def work(opened: Gallery) -> dict[str, Any]:
            start = time.monotonic()
            try:
                answer = opened.identify(upload.content, k=prediction_count)
            except PictureError as error:
                raise upload.named(error) from error
            subjects = [
                {"subject": row.identity, "similarity": similarity(row.distance, answer.threshold)}
                for row in answer.candidates
            ]
            face = options.face(opened.matcher, upload, start) | {"subjects": subjects}
            return {"result": [face]} | options.versions(opened.matcher)

        return JSONResponse(await service.queue.run(service.galleries.use, gallery, work))


@router.post("/recognition/faces/{image_id}/verify", responses=answer_of(VerifiedFaces),
             openapi_extra=picture_body("file"))  # fmt: skip
async def verify_face(
    image_id: str,
    request: Request,
    service: Service,
    caller: Read,
    options: Wanted,
    gallery: GalleryName = None,
) -> JSONResponse:
    """Compare a picture with an enrolled one, by the model's threshold for pairs."""
    async with service.queue.admitted():
        upload = await _read_file(request, service)

        def work(opened: Gallery) -> dict[str, Any]:
            start, matcher = time.monotonic(), opened.matcher
            enrolled_D = opened.embedding(_hash(image_id))
            try:
                emb_1D = opened.embed([upload.content])
            except PictureError as error:
                raise upload.named(error) from error
            answer = matcher.verify_embeddings(emb_1D[0], enrolled_D)
            face = options.face(matcher, upload, start)
            face["similarity"] = similarity(answer.distance, answer.threshold)
            return {"result": [face]} | options.versions(matcher)

        return JSONResponse(await service.queue.run(service.galleries.use, gallery, work))


@router.post("/verification/verify", responses=answer_of(Verified),
             openapi_extra=picture_body("source_image", "target_image"))  # fmt: skip
async def verify(
    request: Request,
    service: Service,
    caller: Read,
    options: Wanted,
    model: Annotated[
        str | None, Query(description="Name of a model; by default the one of the start")
    ] = None,
) -> JSONResponse:
    """Compare two pictures, by the model's threshold."""
    async with service.queue.admitted():
        fields = ("source_image", "target_image")
        uploads = await read_uploads(request, fields, service.settings.limits)
        source, target = (require_one(uploads, field) for field in fields)

        def work() -> dict[str, Any]:
            start, matcher = time.monotonic(), service.models.get(model)
            faces = [options.face(matcher, upload, start) for upload in (source, target)]
            answer = matcher.verify(source.content, target.content)
            match = faces[1] | {"similarity": similarity(answer.distance, answer.threshold)}
            pair = {"source_image_face": faces[0], "face_matches": [match]}
            return {"result": [pair | options.versions(matcher)]}

        return JSONResponse(await service.queue.run(work))


def similarity(distance: float, threshold: float) -> float:
    """threshold / (threshold + distance): 1 for equal pictures, 0.5 at the threshold, 0 far away.

    At least 0.5 exactly if the distance matches; no probability.
    """
    if not matches(distance, threshold):
        return min(threshold / (threshold + distance), BELOW_HALF) if threshold > 0 else 0.0
    return threshold / (threshold + distance) if threshold > 0 else 1.0


async def _read_file(request: Request, service: ServiceState) -> Upload:
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
        hashes = [_hash(image_id) for image_id in image_ids]
        owners = service.galleries.use(gallery, lambda opened: opened.core.owners(hashes))
        if hashes:
            changes.erase_templates(service, caller, gallery, hashes)
        return [{"image_id": image_id, "subject": owners[name]}
                for image_id, name in zip(image_ids, hashes, strict=True)]  # fmt: skip

    return await service.queue.run(work)


def _image_id(hash: str) -> str:
    """A template's hash, which has as many digits as a UUID."""
    return str(UUID(hash))


def _hash(image_id: str) -> str:
    try:
        return UUID(image_id).hex
    except ValueError as error:
        raise ServiceError(404, "an image_id is a UUID, as in the list of faces") from error
