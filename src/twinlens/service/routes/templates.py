"""Routes of what a gallery holds: identities, templates and corrections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BeforeValidator

from twinlens.errors import DataError, GalleryError, first_line, one_line
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.results import EnrolResult, RenameResult
from twinlens.parsing import parse_json
from twinlens.service import changes
from twinlens.service.errors import ServiceError, public_text
from twinlens.service.gallery_schemas import (
    CorrectionList,
    EnrolAnswer,
    FeedbackAnswer,
    IdentityPage,
    Receipt,
    Renamed,
    TemplatePage,
)
from twinlens.service.routes.answers import AsIs
from twinlens.service.schemas import answer_of, file_of, picture_body
from twinlens.service.security import Admin, Enrol, Read
from twinlens.service.state import Service, ServiceState
from twinlens.service.uploads import Upload, read_uploads, require_one

__all__ = ["Offset", "named", "router"]

router = APIRouter(prefix="/v1/galleries/{gallery}", tags=["templates"])

MOST_REASONS = 20  # that a message lists

Offset = Annotated[int, Query(ge=0, le=10**9, description="Entries to leave out at the beginning")]
Size = Annotated[int, Query(ge=1, le=1000, description="Entries of a page, at most")]
Identity = Annotated[str, Query(max_length=1000, description="Name of an identity")]
CorrectionKind = Annotated[
    changes.Kind,
    BeforeValidator(lambda kind: "is-not" if kind == "is_not" else kind),  # As a CSV file has it.
    Query(description="What holds of the pictures"),
]


# --- identities ---------------------------------------------------------------------------------


@router.get("/identities", tags=["identities"], responses=answer_of(IdentityPage))
async def list_identities(
    gallery: str,
    service: Service,
    caller: Read,
    prefix: Annotated[
        str, Query(max_length=1000, description="Begin of the names, in small or large letters")
    ] = "",
    offset: Offset = 0,
    limit: Size = 100,
) -> JSONResponse:
    """List identities by name, with the number of their templates."""

    def work(opened: Gallery) -> dict[str, Any]:
        begin = prefix.casefold()
        counts = [(name, num) for name, num in opened.identities().items()
                  if name.casefold().startswith(begin)]  # fmt: skip
        page = [{"identity": name, "num_templates": num}
                for name, num in islice(counts, offset, offset + limit)]  # fmt: skip
        return {"identities": page, "total": len(counts)}

    return JSONResponse(await service.queue.run(service.galleries.use, gallery, work))


@router.patch("/identities", tags=["identities"], responses=answer_of(Renamed))
async def rename_identity(
    gallery: str,
    service: Service,
    caller: Admin,
    identity: Identity,
    name: Annotated[str, Query(min_length=1, max_length=1000, description="New name")],
    merge: Annotated[bool, Query(description="Allow the new name to be enrolled already")] = False,
) -> JSONResponse:
    """Rename an identity, or merge it into another one."""

    def work() -> RenameResult:
        try:
            return changes.rename(service, caller, gallery, identity, name, merge=merge)
        except GalleryError as error:
            enrolled = service.galleries.use(gallery, lambda opened: opened.identities())
            if merge or not {identity, name} <= enrolled.keys():
                raise
            text = (f"the identity {one_line(name)} is enrolled already: merge=true puts both "
                    "under that name")  # fmt: skip
            raise ServiceError(409, text) from error

    result = await service.queue.run(work)
    return JSONResponse(result.as_json())


@router.delete("/identities", tags=["identities"], responses=answer_of(Receipt))
async def erase_identity(
    gallery: str, service: Service, caller: Admin, identity: Identity
) -> JSONResponse:
    """Erase an identity and every byte of it; the answer is the receipt."""
    receipt = await service.queue.run(changes.erase, service, caller, gallery, identity)
    return JSONResponse(receipt.as_json())


# --- templates ----------------------------------------------------------------------------------


@router.get("/templates", responses=answer_of(TemplatePage))
async def list_templates(
    gallery: str,
    service: Service,
    caller: Read,
    identity: Annotated[str | None, Query(description="Only those of one identity")] = None,
    where: Annotated[
        str | None,
        Query(max_length=2000, description="Condition on templates: `metadata.room = 'north'`"),
    ] = None,
    offset: Offset = 0,
    limit: Size = 100,
) -> JSONResponse:
    """List templates by identity and file name."""

    def work(opened: Gallery) -> dict[str, Any]:
        page = opened.templates(identity, where=where, offset=offset, limit=limit)
        answer = page.as_json()
        for row in answer["templates"]:
            row["path"] = PurePath(row["path"]).name
        return answer | {"total": page.total}

    return JSONResponse(await service.queue.run(service.galleries.use, gallery, work))


@router.post("/templates", responses=answer_of(EnrolAnswer),
             openapi_extra=picture_body("picture", many=True))  # fmt: skip
async def enrol(
    gallery: str,
    request: Request,
    service: Service,
    caller: Enrol,
    identity: Annotated[
        str, Query(min_length=1, max_length=1000, description="Identity of all pictures")
    ],
    metadata: Annotated[
        str | None,
        Query(description='JSON object for each picture, to search by: `{"room": "north"}`'),
    ] = None,
    keep_thumbnails: Annotated[
        bool, Query(description="Keep small pictures; by default no picture is kept")
    ] = False,
    min_quality: Annotated[
        float | None, Query(ge=0, le=1, description="Least quality of a picture")
    ] = None,
    as_is: AsIs = False,
) -> JSONResponse:
    """Enrol one picture or several of an identity; the answer comes once they are on the disk.

    A picture that is enrolled already is known, one under another identity is skipped.
    """
    values = _metadata(metadata)
    async with service.queue.admitted():
        uploads = await read_uploads(request, ("picture",), service.settings.limits)
        pictures = named(uploads["picture"])

        def work() -> dict[str, Any]:
            result = changes.enrol(
                service, caller, gallery, identity, pictures, metadata=values,
                keep_thumbnails=keep_thumbnails, min_quality=min_quality, as_is=as_is,
            )  # fmt: skip
            _require_some(result)
            return (
                result.as_json()
                | {"pictures": [_fate(name, result) for name, _ in pictures]}
                | {"warnings": _warnings(service, gallery, result)}
            )

        return JSONResponse(await service.queue.run(work))


@router.delete("/templates/{hash}", responses=answer_of(Receipt))
async def erase_template(gallery: str, hash: str, service: Service, caller: Admin) -> JSONResponse:
    """Erase a template and every byte of it; the answer is the receipt."""
    receipt = await service.queue.run(changes.erase_templates, service, caller, gallery, [hash])
    return JSONResponse(receipt.as_json())


@router.get("/templates/{hash}/thumbnail", response_class=Response,
            responses=file_of("image/jpeg", "the small picture"))  # fmt: skip
async def show_thumbnail(gallery: str, hash: str, service: Service, caller: Read) -> Response:
    """Show the small picture of a template, if it was kept."""
    content = await service.queue.run(
        service.galleries.use, gallery, lambda opened: opened.thumbnail(hash)
    )
    if content is None:
        raise ServiceError(404, "no picture was kept: enrol with keep_thumbnails=true")
    return Response(content, media_type="image/jpeg")


# --- corrections --------------------------------------------------------------------------------


def _either(*bodies: dict[str, Any]) -> dict[str, Any]:
    """One of several bodies, for OpenAPI."""
    content: dict[str, Any] = {}
    for body in bodies:
        for media_type, part in body["requestBody"]["content"].items():
            either = content.setdefault(media_type, {"schema": {"anyOf": []}})
            either["schema"]["anyOf"].append(part["schema"])
    return {"requestBody": {"required": True, "content": content}}


@router.get("/corrections", tags=["corrections"], responses=answer_of(CorrectionList))
async def list_corrections(gallery: str, service: Service, caller: Read) -> JSONResponse:
    """List the corrections, and what they changed."""

    def work(opened: Gallery) -> dict[str, Any]:
        answer = opened.corrections().as_json()
        for row in answer["corrections"]:
            row["pictures"] = [PurePath(path).name for path in row["pictures"]]
        return answer

    return JSONResponse(await service.queue.run(service.galleries.use, gallery, work))


@router.post(
    "/corrections", tags=["corrections"], responses=answer_of(FeedbackAnswer),
    openapi_extra=_either(picture_body("picture", many=True), picture_body("a", "b")),
)  # fmt: skip
async def correct(
    gallery: str,
    request: Request,
    service: Service,
    caller: Enrol,
    kind: CorrectionKind,
    identity: Annotated[
        str | None, Query(max_length=1000, description="Enrolled identity, for `is` and `is-not`")
    ] = None,
) -> JSONResponse:
    """Correct an answer: `picture` is or is not an identity, or `a` and `b` are same or different.

    Templates, threshold and a small metric adapt, without training.
    """
    async with service.queue.admitted():
        fields = ("picture",) if kind in ("is", "is-not") else ("a", "b")
        uploads = await read_uploads(request, fields, service.settings.limits)
        pictures = uploads["picture"] if len(fields) == 1 else [
            require_one(uploads, field) for field in fields
        ]  # fmt: skip

        def work() -> dict[str, Any]:
            result = changes.correct(service, caller, gallery, kind, named(pictures), identity)
            result.require_some()
            return result.as_json()

        return JSONResponse(await service.queue.run(work))


@router.delete("/corrections/{number}", tags=["corrections"], responses=answer_of(FeedbackAnswer))
async def undo(gallery: str, number: int, service: Service, caller: Enrol) -> JSONResponse:
    """Take a correction back, and erase what it stored."""
    result = await service.queue.run(changes.undo, service, caller, gallery, number)
    return JSONResponse(result.as_json())


# --- pictures -----------------------------------------------------------------------------------


def named(uploads: Sequence[Upload]) -> list[tuple[str, bytes]]:
    """Names and contents; a name that came before gets a number."""
    names: Counter[str] = Counter()
    pictures = []
    for number, upload in enumerate(uploads, 1):
        name = upload.name or f"picture {number}"
        names[name] += 1
        shown = name if names[name] == 1 else f"{name} ({names[name]})"
        pictures.append((shown, upload.content))
    return pictures


def _metadata(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ServiceError(422, f"metadata must be JSON: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise ServiceError(422, 'metadata must be a JSON object, such as {"room": "north"}')
    return values


def _require_some(result: EnrolResult) -> None:
    """Refuse a result in which every picture was skipped.

    Raises:
        DataError: names the pictures and the reasons.
    """
    if result.skipped and not result.num_new + result.num_known:
        reasons = [str(picture) for picture in result.skipped[:MOST_REASONS]]
        more = len(result.skipped) - len(reasons)
        reasons += [f"and {more} more"] if more else []
        raise DataError(f"nothing was enrolled: {'; '.join(reasons)}")


def _fate(name: str, result: EnrolResult) -> dict[str, Any]:
    reason = next((one.reason for one in result.skipped if one.path == name), None)
    quality = None if reason is not None else result.quality.get(name)
    status = "skipped" if reason is not None else "known" if quality is None else "new"
    return {
        "picture": name,
        "status": status,
        "hash": result.hashes.get(name),
        "quality": None if quality is None else quality.score,
        "reason": reason,
    }


def _warnings(service: ServiceState, name: str, result: EnrolResult) -> list[str]:
    """Advice that `twinlens gallery enrol` logs."""
    if not result.num_new:
        return []
    gallery = service.galleries.get(name)
    outgrown = gallery.calibration_outgrown()
    warnings = [] if outgrown is None else [public_text(outgrown)]
    if gallery.needs_index():
        warnings.append(f"the gallery has outgrown its index: POST /v1/galleries/{name}/optimize")
    return warnings
