"""Routes that answer: verify, embed, identify, search."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from twinlens.commands.embed import embed_pictures
from twinlens.commands.identify import IdentificationResult, identify_each, search_faces
from twinlens.errors import PictureError
from twinlens.gallery.gallery import Gallery
from twinlens.service.schemas import (
    EmbedAnswer,
    IdentifyAnswer,
    SearchAnswer,
    VerifyAnswer,
    answer_of,
    picture_body,
)
from twinlens.service.security import Read
from twinlens.service.state import Service, ServiceState
from twinlens.service.uploads import Upload, read_uploads, require_one

__all__ = ["AsIs", "router"]

router = APIRouter(prefix="/v1", tags=["answers"])

ModelName = Annotated[
    str | None, Query(description="Name of a model; by default the one of the start, or the only")
]
GalleryName = Annotated[
    str | None, Query(description="Name of a gallery; not needed if there is only one")
]
AsIs = Annotated[
    bool, Query(description="Take pictures as they are, without a search for the faces in them")
]
MinQuality = Annotated[
    float | None, Query(ge=0, le=1, description="Least quality of a picture; by default no gate")
]


@router.post(
    "/verify", responses=answer_of(VerifyAnswer), openapi_extra=picture_body("a", "b"),
)  # fmt: skip
async def verify(
    request: Request,
    service: Service,
    caller: Read,
    model: ModelName = None,
    prior: Annotated[
        float, Query(gt=0, lt=1, description="Probability of a genuine pair before the comparison")
    ] = 0.5,
    min_quality: MinQuality = None,
    as_is: AsIs = False,
) -> JSONResponse:
    """Verify whether two pictures, `a` and `b`, show the same thing."""
    async with service.queue.admitted():
        uploads = await read_uploads(request, ("a", "b"), service.settings.limits)
        a, b = require_one(uploads, "a"), require_one(uploads, "b")

        def work() -> dict[str, Any]:
            matcher = service.models.get(model)
            matcher = matcher.as_is() if as_is else matcher
            try:
                answer = matcher.verify(a.content, b.content, prior=prior, min_quality=min_quality)
            except PictureError as error:
                raise PictureError("a picture", error.reason) from error
            return answer.as_json()

        return JSONResponse(await service.queue.run(work))


@router.post(
    "/embed", responses=answer_of(EmbedAnswer), openapi_extra=picture_body("picture", many=True)
)
async def embed(
    request: Request,
    service: Service,
    caller: Read,
    model: ModelName = None,
    min_quality: MinQuality = None,
    as_is: AsIs = False,
) -> JSONResponse:
    """Embed one picture or several; an unreadable one does not stop the others."""
    async with service.queue.admitted():
        pictures = await _read_pictures(request, service)

        def work() -> dict[str, Any]:
            matcher = service.models.get(model)
            matcher = matcher.as_is() if as_is else matcher
            result = embed_pictures(matcher, pictures, min_quality=min_quality)
            result.require_some()
            return result.as_json()

        return JSONResponse(await service.queue.run(work))


@router.post(
    "/identify",
    responses=answer_of(IdentifyAnswer),
    openapi_extra=picture_body("picture", many=True),
)
async def identify(
    request: Request,
    service: Service,
    caller: Read,
    gallery: GalleryName = None,
    k: Annotated[int, Query(ge=1, le=1000, description="Candidates of each picture, at most")] = 5,
    far: Annotated[
        float | None,
        Query(gt=0, lt=1, description="False positive identification rate; the gallery's if none"),
    ] = None,
    min_quality: MinQuality = None,
    as_is: AsIs = False,
) -> JSONResponse:
    """Identify one picture or several in a gallery, or answer "nobody"."""
    async with service.queue.admitted():
        pictures = await _read_pictures(request, service)

        def ask(opened: Gallery) -> dict[str, Any]:
            each = identify_each(
                opened, pictures, k=k, far=far, min_quality=min_quality, as_is=as_is
            )
            result = IdentificationResult(tuple(each))
            result.require_some()
            answer = result.as_json()
            _shorten(row for part in answer["answers"] for row in part.get("candidates", ()))
            return answer

        return JSONResponse(await service.queue.run(service.galleries.use, gallery, ask))


@router.post("/search", responses=answer_of(SearchAnswer), openapi_extra=picture_body("picture"))
async def search(
    request: Request,
    service: Service,
    caller: Read,
    gallery: GalleryName = None,
    k: Annotated[int, Query(ge=1, le=1000, description="Number of hits, at most")] = 20,
    where: Annotated[
        str | None,
        Query(max_length=2000, description="Condition on templates: `metadata.room = 'north'`"),
    ] = None,
    as_is: AsIs = False,
) -> JSONResponse:
    """Find the enrolled pictures that are nearest to a picture, without a verdict."""
    async with service.queue.admitted():
        uploads = await read_uploads(request, ("picture",), service.settings.limits)
        upload = require_one(uploads, "picture")

        def ask(opened: Gallery) -> dict[str, Any]:
            try:
                result = search_faces(
                    opened, _name(upload, 1), upload.content, k=k, where=where, as_is=as_is
                )
            except PictureError as error:
                raise upload.named(error) from error
            answer = result.as_json()
            for each in (answer, *answer.get("others", ())):
                _shorten(each["hits"])
            return answer

        return JSONResponse(await service.queue.run(service.galleries.use, gallery, ask))


async def _read_pictures(request: Request, service: ServiceState) -> list[tuple[str, bytes]]:
    uploads = await read_uploads(request, ("picture",), service.settings.limits)
    return [(_name(upload, number), upload.content)
            for number, upload in enumerate(uploads["picture"], 1)]  # fmt: skip


def _name(upload: Upload, number: int) -> str:
    return upload.name or f"picture {number}"


def _shorten(rows: Iterable[dict[str, Any]]) -> None:
    """Replace paths, which are those of the server, by the names of the files."""
    for row in rows:
        row["path"] = PurePath(row["path"]).name
