"""Pages that answer: who is on a picture, which are nearest, corrections, and comparing two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from PIL import Image

from twinlens.commands.identify import search_faces
from twinlens.data.decode import open_picture
from twinlens.errors import PictureError
from twinlens.face.faces_of import FacePlace
from twinlens.gallery.feedback_results import CorrectionList
from twinlens.gallery.gallery import Gallery
from twinlens.match.answers import IdentifyAnswer
from twinlens.match.matcher import Picture
from twinlens.measure.error_rates import matches
from twinlens.report.embedding_map import thumbnail_uri
from twinlens.report.faces import framed
from twinlens.service import changes
from twinlens.service.errors import ServiceError
from twinlens.service.pages import snippets, view
from twinlens.service.pages.forms import PageForm, read_form
from twinlens.service.pages.galleries import (
    allows,
    covers,
    gallery_url,
    has_details,
    known_names,
    picture_urls,
    quality_words,
)
from twinlens.service.routes.templates import named
from twinlens.service.security import Caller, Enrol, Read
from twinlens.service.state import Service, ServiceState
from twinlens.service.uploads import Upload

__all__ = ["router"]

router = APIRouter(include_in_schema=False, route_class=view.PageRoute)

SIDE, WIDE_SIDE = 320, 640  # pixels of a shown probe, and of one with several faces
MAX_CANDIDATES = 20


@router.get("/galleries/{name}/ask")
async def ask_form(request: Request, service: Service, caller: Read, name: str) -> Response:
    """The form that asks a gallery."""
    return await _ask_page(request, service, caller, name)


@router.post("/galleries/{name}/ask")
async def ask(request: Request, service: Service, caller: Read, name: str) -> Response:
    """Identify the picture of a form."""
    async with service.queue.admitted():
        form = await read_form(request, service.settings.limits)
        upload, k = form.picture("picture"), _count(form)

        def work(opened: Gallery) -> dict[str, Any]:
            try:
                faces = opened.matcher.faces_or_whole(upload.content)
                answers = [replace(opened.identify(face, k=k), face=place) for face, place in faces]
            except PictureError as error:
                raise upload.named(error) from error
            probe = _probe_uri(upload, opened.matcher.max_pixels, [place for _, place in faces])
            single = len(faces) == 1
            return {"answers": [
                        _answer_values(opened, answer, probe if single else _face_uri(face))
                        for answer, (face, _) in zip(answers, faces, strict=True)
                    ],
                    "probe": probe, "known": known_names(opened)}  # fmt: skip

        values = await service.queue.run(service.galleries.use, name, work)
    values |= {"code": snippets.identify(request, service, name, k),
               "quality_words": quality_words}  # fmt: skip
    return await _answered(request, service, caller, name, "ask_answer.html.j2", values)


@router.post("/galleries/{name}/nearest")
async def nearest(request: Request, service: Service, caller: Read, name: str) -> Response:
    """Find the enrolled pictures that are nearest to the picture of a form."""
    async with service.queue.admitted():
        form = await read_form(request, service.settings.limits)
        upload, k = form.picture("picture"), _count(form)
        where = form.texts.get("where") or None

        def work(opened: Gallery) -> dict[str, Any]:
            try:
                first = search_faces(opened, "", upload.content, k=k, where=where)
            except PictureError as error:
                raise upload.named(error) from error
            results = [
                replace(one, hits=tuple(replace(hit, path=PurePath(hit.path).name)
                                        for hit in one.hits))
                for one in (first, *first.others)
            ]  # fmt: skip
            identities = {hit.identity for one in results for hit in one.hits}
            places = [one.face for one in results]
            return {"results": results, "num_hits": sum(len(one.hits) for one in results),
                    "probe": _probe_uri(
                        upload, opened.matcher.max_pixels, places
                    ),
                    "with_picture": set(covers(opened, identities).values())}  # fmt: skip

        values = await service.queue.run(service.galleries.use, name, work)
    values |= {"code": snippets.search(request, service, name, k, where)}
    return await _answered(request, service, caller, name, "ask_nearest.html.j2", values)


@router.post("/galleries/{name}/correct")
async def correct(request: Request, service: Service, caller: Enrol, name: str) -> Response:
    """Correct an answer: the picture of the form is, or is not, of an identity."""
    async with service.queue.admitted():
        form = await read_form(request, service.settings.limits)
        pictures, is_of = named([form.picture("picture")]), form.texts.get("identity")
        identities = [is_of] if is_of else form.text("not").splitlines()

        def work() -> CorrectionList:
            for identity in identities:
                kind: changes.Kind = "is" if is_of else "is-not"
                changes.correct(service, caller, name, kind, pictures, identity).require_some()
            return service.galleries.use(name, lambda opened: opened.corrections())

        stored = await service.queue.run(work)
    values = {"is_of": is_of, "identities": identities,
              "newest": stored.corrections[-len(identities) :]}  # fmt: skip
    return await _answered(request, service, caller, name, "ask_corrected.html.j2", values)


@router.get("/galleries/{name}/corrections")
async def corrections(request: Request, service: Service, caller: Read, name: str) -> Response:
    """The corrections of a gallery, with buttons that take them back."""
    return await _corrections_page(request, service, caller, name)


@router.post("/galleries/{name}/undo")
async def undo(
    request: Request, service: Service, caller: Enrol, name: str, number: Annotated[int, Form(ge=1)]
) -> Response:
    """Take a correction back."""
    await service.queue.run(changes.undo, service, caller, name, number)
    return await _corrections_page(
        request, service, caller, name, done=view.text("corrections.undone")
    )


@router.get("/compare")
async def compare_form(request: Request, service: Service, caller: Read) -> Response:
    """The form that compares two pictures."""
    return _compare_page(request, service)


@router.post("/compare")
async def compare(request: Request, service: Service, caller: Read) -> Response:
    """Verify whether two pictures show the same thing."""
    async with service.queue.admitted():
        form = await read_form(request, service.settings.limits)
        uploads = form.picture("a"), form.picture("b")
        model = form.text("model")

        def work() -> dict[str, Any]:
            matcher = service.models.get(model)
            for upload in uploads:
                _probe_uri(upload, matcher.max_pixels)  # An error names the upload.
            try:
                answer = matcher.verify(*(upload.content for upload in uploads))
            except PictureError as error:
                raise PictureError("a picture", error.reason) from error
            faces = answer.faces
            places = (None, None) if faces is None else (faces.first, faces.second)
            shown = [
                _probe_uri(upload, matcher.max_pixels, [place])
                for upload, place in zip(uploads, places, strict=True)
            ]
            return {"answer": answer, "shown": shown}

        values = await service.queue.run(work)
    values |= {"code": snippets.verify(request, service, model), "model": model,
               "quality_words": quality_words}  # fmt: skip
    if "HX-Request" in request.headers:
        return view.render(request, "ask_verdict.html.j2", **values)
    return _compare_page(request, service, **values)


async def _answered(
    request: Request, service: ServiceState, caller: Caller, name: str, part: str,
    values: dict[str, Any],
) -> Response:  # fmt: skip
    """A part of the page for htmx; the whole page for browsers without scripts."""
    values |= {"may_correct": allows(caller, "enrol")}
    if "HX-Request" in request.headers:
        return view.render(
            request, part, name=name, gallery_url=gallery_url, picture_url=picture_urls(name),
            **values,
        )  # fmt: skip
    return await _ask_page(request, service, caller, name, part=part, **values)


async def _ask_page(
    request: Request, service: ServiceState, caller: Caller, name: str, *,
    part: str | None = None, **values: Any,
) -> Response:  # fmt: skip
    info, noted = await service.queue.run(
        service.galleries.use, name, lambda opened: (opened.info(), has_details(opened))
    )
    return view.render(
        request, "ask.html.j2", name=name, part=part, info=info,
        has_details=noted, gallery_url=gallery_url, picture_url=picture_urls(name),
        most=MAX_CANDIDATES, **values,
    )  # fmt: skip


async def _corrections_page(
    request: Request, service: ServiceState, caller: Caller, name: str, done: str | None = None
) -> Response:
    found = await service.queue.run(
        service.galleries.use, name, lambda opened: opened.corrections()
    )
    rows = [replace(row, pictures=tuple(PurePath(path).name for path in row.pictures))
            for row in found.corrections]  # fmt: skip
    return view.render(
        request, "ask_corrections.html.j2", name=name, rows=rows, adaptation=found.adaptation,
        done=done, may_correct=allows(caller, "enrol"), gallery_url=gallery_url,
    )  # fmt: skip


def _compare_page(request: Request, service: ServiceState, **values: Any) -> Response:
    values = {"answer": None, "model": None} | values
    return view.render(
        request, "ask_compare.html.j2", models=list(service.models.folders()), **values
    )


def _count(form: PageForm) -> int:
    text = form.texts.get("k") or "5"
    if not text.isdecimal() or not 1 <= int(text) <= MAX_CANDIDATES:
        raise ServiceError(422, view.text("ask.bad_count", most=MAX_CANDIDATES))
    return int(text)


def _rejected(answer: IdentifyAnswer) -> list[str]:
    """Identities that the picture is not of if it shows nobody who is enrolled."""
    near = [row.identity for row in answer.candidates if matches(row.distance, answer.threshold)]
    return near[: 2 if answer.verdict == "ambiguous" else 1]


def _answer_values(gallery: Gallery, answer: IdentifyAnswer, probe: str) -> dict[str, Any]:
    """An answer for a template."""
    cover_of = covers(gallery, [row.identity for row in answer.candidates])
    return {"answer": answer, "probe": probe, "rejected": _rejected(answer),
            "hashes": [cover_of.get((row.identity, row.path)) for row in answer.candidates],
            "is_match": [matches(row.distance, answer.threshold)
                         for row in answer.candidates]}  # fmt: skip


def _face_uri(face: Picture) -> str:
    assert isinstance(face, Image.Image)
    return thumbnail_uri(face, SIDE)


def _probe_uri(upload: Upload, max_pixels: int, places: Sequence[FacePlace | None] = ()) -> str:
    """A picture as a small one in the page itself, since uploads are not kept.

    Args:
        upload: the picture.
        max_pixels: largest height x width that is decoded.
        places: places of faces, which get a frame.
    Raises:
        PictureError: it cannot be read.
    """
    side = SIDE if len(places) < 2 else WIDE_SIDE
    framed_places = [place for place in places if place is not None and place.box is not None]
    target = None if framed_places else (SIDE, SIDE)
    try:
        opened = open_picture(upload.content, max_pixels=max_pixels, target=target)
    except PictureError as error:
        raise upload.named(error) from error
    return thumbnail_uri(framed(opened, framed_places, side) if framed_places else opened, side)
