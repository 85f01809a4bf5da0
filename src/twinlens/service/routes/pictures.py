"""Routes of picture sets: upload, list, label, thumbnails, inspection."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from twinlens.errors import one_line
from twinlens.service.errors import ServiceError
from twinlens.service.job_schemas import (
    AddedList,
    IdentityCounts,
    PictureList,
    SetList,
    SetSummary,
)
from twinlens.service.picture_sets import Added, AddedState
from twinlens.service.schemas import answer_of, file_of, picture_body
from twinlens.service.security import Admin
from twinlens.service.settings import Limits
from twinlens.service.state import Service
from twinlens.service.uploads import check_size

__all__ = ["router"]

router = APIRouter(prefix="/v1/pictures", tags=["pictures"])

MAX_PAGE = 1000

Identity = Annotated[str | None, Query(description="any text; without it, folders name it")]
Key = Annotated[str, Query(description="key of a picture in the set")]


class Moved(BaseModel):
    """Pictures that get another identity, or none."""

    pictures: list[str] = Field(min_length=1, max_length=10_000)
    identity: str | None


class Renamed(BaseModel):
    """A new name of an identity."""

    identity: str
    new: str
    merge: bool = False


@router.get("", responses=answer_of(SetList))
async def list_sets(service: Service, caller: Admin) -> JSONResponse:
    """List the picture sets."""
    return JSONResponse({"sets": await service.queue.run(service.picture_sets.names)})


@router.post("/{set}", responses=answer_of(AddedList), openapi_extra=picture_body("picture"))
async def add_pictures(
    request: Request,
    set: str,
    service: Service,
    caller: Admin,
    identity: Identity = None,
    name: Annotated[str, Query(description="file name of a picture sent as it is")] = "",
) -> JSONResponse:
    """Add pictures to a set, which is made with the first one.

    The file name of a part may hold folders: the first names the identity. Pictures without an
    identity are unsorted. Unreadable pictures are refused, one by one, and counted.
    """
    sets, added = service.picture_sets, list[Added]()
    async with service.queue.admitted():
        async for folder, file, content in _parts(request, name, service.settings.limits):
            whose = folder if identity is None else identity
            added.append(await service.queue.run(sets.add, set, whose, file, content))
    counts = Counter(one.state for one in added)
    return JSONResponse(
        {"added": [one.as_json() for one in added]}
        | {state: counts[state] for state in get_args(AddedState)}
    )


@router.get("/{set}", responses=answer_of(SetSummary))
async def show_set(set: str, service: Service, caller: Admin) -> JSONResponse:
    """Show counts of a set, what was left out and why, duplicates and contradictions.

    Every picture is read after a change, so it may take a while: 503 says to try again.
    """
    async with service.queue.admitted():
        return JSONResponse(await service.queue.run(service.picture_sets.summary, set))


@router.delete("/{set}", status_code=204, response_class=Response)
async def delete_set(set: str, service: Service, caller: Admin) -> None:
    """Delete a set with its pictures."""
    await service.queue.run(service.picture_sets.delete, set)


@router.get("/{set}/identities", responses=answer_of(IdentityCounts))
async def list_identities(set: str, service: Service, caller: Admin) -> JSONResponse:
    """List the identities of a set with their numbers of pictures."""

    def work() -> dict[str, Any]:
        sets = service.picture_sets
        return {"identities": sets.identities(set), "unsorted": sets.num_unsorted(set)}

    return JSONResponse(await service.queue.run(work))


@router.patch("/{set}/identities", responses=answer_of(IdentityCounts))
async def rename_identity(
    set: str, service: Service, caller: Admin, values: Renamed
) -> JSONResponse:
    """Rename an identity, or merge it with another."""

    def work() -> dict[str, Any]:
        sets = service.picture_sets
        sets.rename(set, values.identity, values.new, merge=values.merge)
        return {"identities": sets.identities(set), "unsorted": sets.num_unsorted(set)}

    return JSONResponse(await service.queue.run(work))


@router.get("/{set}/list", responses=answer_of(PictureList))
async def list_pictures(
    set: str,
    service: Service,
    caller: Admin,
    identity: Annotated[str | None, Query(description="only those of an identity")] = None,
    unsorted: Annotated[bool, Query(description="the unsorted pictures")] = False,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> JSONResponse:
    """List pictures of a set, a page at a time."""

    def work() -> dict[str, Any]:
        sets = service.picture_sets
        page = sets.pictures(set, identity, unsorted=unsorted, offset=offset, limit=limit)
        counts = sets.identities(set)
        total = sum(counts.values()) if identity is None else counts.get(identity, 0)
        return {"pictures": [one.as_json() for one in page],
                "total": sets.num_unsorted(set) if unsorted else total}  # fmt: skip

    return JSONResponse(await service.queue.run(work))


@router.post("/{set}/move", responses=answer_of(PictureList))
async def move_pictures(set: str, service: Service, caller: Admin, values: Moved) -> JSONResponse:
    """Give pictures another identity, or none: they are unsorted then. Answers with new keys."""

    def work() -> dict[str, Any]:
        keys = [service.picture_sets.move(set, one, values.identity) for one in values.pictures]
        entries = [service.picture_sets.entry(set, key).as_json() for key in keys]
        return {"pictures": entries, "total": len(entries)}

    return JSONResponse(await service.queue.run(work))


@router.get("/{set}/file", response_class=Response, responses=file_of("image/*", "the picture"))
async def show_picture(set: str, service: Service, caller: Admin, picture: Key) -> FileResponse:
    """Show a picture as it was uploaded."""
    path = await service.queue.run(service.picture_sets.file, set, picture)
    return FileResponse(path)


@router.get(
    "/{set}/thumbnail", response_class=Response,
    responses=file_of("image/jpeg", "at most 192 x 192 pixels"),
)  # fmt: skip
async def show_thumbnail(set: str, service: Service, caller: Admin, picture: Key) -> FileResponse:
    """Show a small copy of a picture."""
    path = await service.queue.run(service.picture_sets.thumbnail, set, picture)
    return FileResponse(path, headers={"Cache-Control": "private, max-age=86400"})


@router.delete("/{set}/file", status_code=204, response_class=Response)
async def delete_picture(set: str, service: Service, caller: Admin, picture: Key) -> None:
    """Delete a picture."""
    await service.queue.run(service.picture_sets.remove, set, picture)


async def _parts(
    request: Request, name: str, limits: Limits
) -> AsyncIterator[tuple[str | None, str, bytes]]:
    """First folder, file name and content of the pictures of a body.

    Raises:
        ServiceError: no picture, another field, or beyond the limits (413, 415, 422).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if not (kind.startswith("image/") or kind in ("application/octet-stream", "")):
            raise ServiceError(415, "send pictures as multipart/form-data, or one as it is")
        yield None, name, _checked(await request.body(), limits)
        return
    num = 0
    async with request.form(max_files=limits.pictures, max_fields=limits.pictures) as form:
        for field, part in form.multi_items():
            if field != "picture" or not isinstance(part, UploadFile):
                raise ServiceError(
                    422, f"unknown field '{one_line(field)}': pictures belong in picture"
                )
            num += 1
            folders, _, file = (part.filename or "").replace("\\", "/").strip("/").rpartition("/")
            yield folders.partition("/")[0] or None, file, _checked(await part.read(), limits)
    if not num:
        raise ServiceError(422, "no picture was sent: put it in picture")


def _checked(content: bytes, limits: Limits) -> bytes:
    if not content:
        raise ServiceError(422, "no picture was sent: the body is empty")
    check_size(content, limits)
    return content
