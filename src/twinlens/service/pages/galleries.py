"""Pages of galleries: list, create, identities with pictures, enrol, rename, erase, calibrate."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import PurePath
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from twinlens.data.quality import PARTS, PictureQuality
from twinlens.errors import CalibrationError, GalleryError, TwinlensError, one_line
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.results import EraseReceipt, GalleryCalibrationResult
from twinlens.gallery.schema import quoted
from twinlens.service import changes
from twinlens.service.errors import ServiceError, public_text
from twinlens.service.jobs import ENDED, Job
from twinlens.service.keys import ROLES, Role
from twinlens.service.pages import snippets, view
from twinlens.service.pages.forms import read_form
from twinlens.service.routes.galleries import DIRECT
from twinlens.service.routes.templates import Offset, named
from twinlens.service.security import Admin, Caller, Enrol, Read
from twinlens.service.state import Service, ServiceState

__all__ = ["allows", "covers", "gallery_url", "has_details", "known_names", "picture_urls",
           "quality_words", "router"]  # fmt: skip

router = APIRouter(prefix="/galleries", include_in_schema=False, route_class=view.PageRoute)

PAGE = 48  # identities or templates shown at once
SHOWN = 20  # skipped pictures named
NOTED = 500  # templates among which metadata are looked for
MOST_NAMES = 500  # suggested while a name is typed
FPIR_CHOICES = (0.001, 0.01, 0.05, 0.1, 0.2)

Name = Annotated[str, Form(max_length=1000)]


def gallery_url(name: str, part: str = "", **query: str | int) -> str:
    """The address of a gallery's page."""
    words = urlencode(query, quote_via=quote, safe="")
    return f"/galleries/{quote(name, safe='')}{part}" + (f"?{words}" if words else "")


def allows(caller: Caller, role: Role) -> bool:
    """Whether a caller may do what needs a role, so that a page offers it."""
    return ROLES.index(caller.role) >= ROLES.index(role)


def quality_words(quality: PictureQuality) -> str:
    """The worst part of a picture's quality, in words."""
    parts = {name: getattr(quality, name) for name in PARTS}
    known = {name: value for name, value in parts.items() if value is not None}
    worst = min(known, key=lambda name: known[name])
    return str(view.texts()["quality"][worst]).format(score=quality.score)


@router.get("")
async def galleries(request: Request, service: Service, caller: Read) -> Response:
    """All galleries, and a form for a new one."""
    return await _galleries_page(request, service, caller)


@router.post("")
async def create(
    request: Request, service: Service, caller: Admin, name: Annotated[str, Form(max_length=200)],
    model: Annotated[str, Form(max_length=200)],
) -> Response:  # fmt: skip
    """Create a gallery."""
    try:
        await service.queue.run(changes.create, service, caller, name.strip(), model)
    except view.ERRORS as error:
        problem = await view.problem(request, error)
        return await _galleries_page(request, service, caller, problem, name=name, model=model)
    return RedirectResponse(gallery_url(name.strip()), 303)


@router.get("/{name}")
async def gallery(
    request: Request, service: Service, caller: Read, name: str,
    q: Annotated[str, Query(max_length=200)] = "",
    where: Annotated[str, Query(max_length=2000)] = "", offset: Offset = 0,
) -> Response:  # fmt: skip
    """A gallery: its identities, a form to enrol, and its limit."""
    try:
        return await _gallery_page(request, service, caller, name, q=q, where=where, offset=offset)
    except GalleryError as error:
        if not where:
            raise
        problem = await view.problem(request, error)
        return await _gallery_page(
            request, service, caller, name, q=q, problem=problem, typed=where
        )


@router.get("/{name}/identity")
async def one_identity(
    request: Request, service: Service, caller: Read, name: str,
    identity: Annotated[str, Query(max_length=1000)], offset: Offset = 0,
) -> Response:  # fmt: skip
    """The templates of an identity, with forms to change them."""
    return await _identity_page(request, service, caller, name, identity, offset=offset)


@router.post("/{name}/enrol")
async def enrol(request: Request, service: Service, caller: Enrol, name: str) -> Response:
    """Enrol the pictures of a form."""
    async with service.queue.admitted():
        form = await read_form(request, service.settings.limits)
        identity, metadata = form.text("identity"), _metadata(form.texts.get("metadata", ""))
        pictures = named(form.pictures.get("pictures", ()))
        if not pictures:
            raise ServiceError(422, view.text("forms.no_picture"))
        result = await service.queue.run(
            changes.enrol, service, caller, name, identity, pictures, metadata=metadata,
            keep_thumbnails="keep" in form.texts,
        )  # fmt: skip
    values: dict[str, Any] = {
        "enrolled": result, "identity": identity, "quality_words": quality_words,
        "code": snippets.enrol(request, service, name, identity),
    }  # fmt: skip
    if "HX-Request" in request.headers:
        return view.render(
            request, "gallery_enrolled.html.j2", name=name, gallery_url=gallery_url, **values
        )
    return await _gallery_page(request, service, caller, name, **values)


@router.post("/{name}/remove")
async def remove(
    request: Request, service: Service, caller: Admin, name: str,
    identity: Name, hash: Annotated[str, Form(max_length=64)],
    sure: Annotated[str, Form(max_length=10)] = "",
) -> Response:  # fmt: skip
    """Erase one template."""
    if not sure:
        problem = view.Problem(422, view.text("erase.not_sure"), {})
        return await _identity_page(request, service, caller, name, identity, problem=problem)
    receipt = await service.queue.run(changes.erase_templates, service, caller, name, [hash])
    if receipt.num_identities:
        return _receipt_page(request, name, identity, receipt)
    return await _identity_page(
        request, service, caller, name, identity, done=view.text("identity.removed")
    )


@router.post("/{name}/rename")
async def rename(
    request: Request, service: Service, caller: Admin, name: str,
    identity: Name, new: Name, merge: Annotated[bool, Form()] = False,
) -> Response:  # fmt: skip
    """Rename an identity, or merge it with another."""
    new = new.strip()
    try:
        result = await service.queue.run(
            changes.rename, service, caller, name, identity, new, merge=merge
        )
    except view.ERRORS as error:
        problem = await view.problem(request, error)
        taken = not merge and new in await service.queue.run(
            service.galleries.use, name, lambda opened: opened.identities()
        )
        if taken:
            problem = problem._replace(message=view.text("identity.taken", new=new))
        return await _identity_page(
            request, service, caller, name, identity, problem=problem, new=new, taken=taken
        )
    done = view.text("identity.renamed", old=identity, new=new, count=result.num_templates)
    return await _identity_page(request, service, caller, name, new, done=done)


@router.post("/{name}/erase")
async def erase(
    request: Request, service: Service, caller: Admin, name: str, identity: Name,
    sure: Annotated[str, Form(max_length=10)] = "",
) -> Response:  # fmt: skip
    """Erase an identity, with a receipt."""
    if not sure:
        problem = view.Problem(422, view.text("erase.not_sure"), {})
        return await _identity_page(request, service, caller, name, identity, problem=problem)
    receipt = await service.queue.run(changes.erase, service, caller, name, identity)
    return _receipt_page(request, name, identity, receipt)


@router.post("/{name}/calibrate")
async def calibrate(
    request: Request, service: Service, caller: Admin, name: str,
    fpir: Annotated[float, Form(gt=0, lt=1)],
) -> Response:  # fmt: skip
    """Set the limit of a gallery from its own templates; a large one takes a job."""
    before = await service.queue.run(
        service.galleries.use, name, lambda opened: opened.info().threshold
    )

    def work() -> Job | GalleryCalibrationResult:
        if len(service.galleries.get(name)) > DIRECT:
            return service.jobs.start("calibrate", {"gallery": name, "fpir": fpir}, caller.name)
        return changes.calibrate(service, caller, name, fpir=fpir, rule="auto", seed=0)

    try:
        result = await service.queue.run(work)
    except view.ERRORS as error:
        problem = await view.problem(request, error)
        if isinstance(error, CalibrationError):
            problem = problem._replace(message=view.text("limit.unequal", share=100 * fpir))
        return await _gallery_page(request, service, caller, name, problem=problem, fpir=fpir)
    if isinstance(result, Job):
        return RedirectResponse(gallery_url(name, f"/work/{result.id}"), 303)
    own = result.calibration
    done = view.text("limit.done", threshold=own.threshold, fpir=own.target_fpir)
    if own.tpir.value is not None:
        done += " " + view.text("limit.tpir", tpir=own.tpir.value)
    if before is not None and own.threshold > before:
        done += " " + view.text("limit.more_lenient", before=before)
    return await _gallery_page(request, service, caller, name, done=done)


@router.post("/{name}/import")
async def import_set(
    service: Service, caller: Enrol, name: str, set: Annotated[str, Form(max_length=200)],
    keep: Annotated[str, Form(max_length=10)] = "",
) -> Response:  # fmt: skip
    """Start to enrol all pictures of a picture set."""
    arguments = {"gallery": name, "pictures": set, "thumbnails": bool(keep)}
    job = await service.queue.run(service.jobs.start, "import", arguments, caller.name)
    return RedirectResponse(gallery_url(name, f"/work/{job.id}"), 303)


@router.post("/{name}/delete")
async def delete(
    service: Service, caller: Admin, name: str, sure: Annotated[str, Form(max_length=10)] = ""
) -> Response:
    """Delete a gallery."""
    if not sure:
        raise ServiceError(422, view.text("erase.not_sure"))
    await service.queue.run(changes.delete, service, caller, name)
    return RedirectResponse("/galleries", 303)


@router.get("/{name}/work/{id}")
async def work(request: Request, service: Service, caller: Read, name: str, id: str) -> Response:
    """The progress of a job of a gallery."""
    job = await service.queue.run(service.jobs.get, id)
    return view.render(
        request, "gallery_work.html.j2", name=name, job=job, ended=job.state in ENDED,
        shown=SHOWN, gallery_url=gallery_url,
    )  # fmt: skip


def known_names(gallery: Gallery) -> list[str]:
    """Identities to suggest while a name is typed."""
    return sorted(gallery.identities(), key=view.natural)[:MOST_NAMES]


def has_details(gallery: Gallery) -> bool:
    """Whether pictures were enrolled with metadata, going by the first ones."""
    return any(one.metadata for one in gallery.templates(limit=NOTED).templates)


def covers(gallery: Gallery, identities: Iterable[str]) -> dict[tuple[str, str], str]:
    """Hashes of templates with a thumbnail, by identity and path."""
    names = ", ".join(map(quoted, identities))
    if not names:
        return {}
    templates = gallery.templates(where=f"identity IN ({names})").templates
    return {(row.identity, row.path): row.hash for row in templates if row.has_thumbnail}


def picture_urls(name: str) -> Callable[[str | None], str]:
    """The address of a template's thumbnail by its hash; of a placeholder for None."""

    def url(hash: str | None) -> str:
        if hash is None:
            return view.static("no-picture.svg")
        return f"/v1{gallery_url(name)}/templates/{quote(hash, safe='')}/thumbnail"

    return url


def _rows(service: ServiceState) -> list[dict[str, Any]]:
    rows = []
    for name in service.galleries.places():
        try:
            opened = service.galleries.get(name)
            counts = {"num_identities": len(opened.identities()), "num_templates": len(opened)}
            rows.append({"name": name, "error": None, **counts})
        except (TwinlensError, ServiceError) as error:
            rows.append({"name": name, "error": public_text(str(error))})
    return rows


async def _galleries_page(
    request: Request, service: ServiceState, caller: Caller, problem: view.Problem | None = None,
    **form: str,
) -> Response:  # fmt: skip
    rows = await service.queue.run(_rows, service)
    return view.render(
        request, "galleries.html.j2", status=200 if problem is None else problem.status, rows=rows,
        models=list(service.models.folders()), has_data=service.settings.data is not None,
        caller=caller, gallery_url=gallery_url, problem=problem, form=form,
    )  # fmt: skip


def _rates(num_strangers: int) -> list[dict[str, Any]]:
    """Rates to choose from, and which a gallery resolves that has so many probes of strangers.

    The nearest two of them often have one distance, so twice as many are needed to be sure.
    """
    rates: list[dict[str, Any]] = [
        {"share": share, "least": math.ceil(1 / share), "enough": num_strangers * share >= 1}
        for share in FPIR_CHOICES
    ]
    sure = [one for one in rates if num_strangers * one["share"] > 2]
    chosen = sure[0] if sure else rates[-1]
    return [one | {"chosen": one is chosen and one["enough"]} for one in rates]


async def _gallery_page(
    request: Request, service: ServiceState, caller: Caller, name: str, *,
    q: str = "", where: str = "", offset: int = 0, **values: Any,
) -> Response:  # fmt: skip
    def work(opened: Gallery) -> dict[str, Any]:
        counts = opened.identities()
        if where:
            templates = opened.templates(where=where).templates
            counts = dict(Counter(template.identity for template in templates))
        matching = {key: num for key, num in counts.items() if q.casefold() in key.casefold()}
        shown = sorted(matching, key=view.natural)[offset : offset + PAGE]
        cover_of: dict[str, str] = {}
        for (identity, _), hash in covers(opened, shown).items():
            cover_of.setdefault(identity, hash)
        rows = [{"identity": key, "num_templates": matching[key], "hash": cover_of.get(key)}
                for key in shown]  # fmt: skip
        info = opened.info()
        resolved = info.num_templates if info.num_identities > 1 else 0
        return {"info": info, "rates": _rates(resolved),
                "outgrown": opened.calibration_outgrown() is not None,
                "known": known_names(opened), "rows": rows, "has_details": has_details(opened),
                "num_matching": len(matching)}  # fmt: skip

    def paged_url(to: int) -> str:
        return gallery_url(name, q=q, where=where, offset=to)

    has_data = service.settings.data is not None
    problem: view.Problem | None = values.get("problem")
    return view.render(
        request, "gallery.html.j2", status=problem.status if problem else 200, name=name,
        q=q, where=where, offset=offset, page=PAGE,
        caller=caller, may_enrol=allows(caller, "enrol"),
        sets=service.picture_sets.names() if has_data else [], gallery_url=gallery_url,
        may_delete=allows(caller, "admin") and service.galleries.is_own(name),
        picture_url=picture_urls(name), paged_url=paged_url,
        **{"done": None, "enrolled": None, "problem": None, "fpir": None, "typed": where} | values,
        **await service.queue.run(service.galleries.use, name, work),
    )  # fmt: skip


async def _identity_page(
    request: Request, service: ServiceState, caller: Caller, name: str, identity: str, *,
    offset: int = 0, done: str | None = None, problem: view.Problem | None = None, new: str = "",
    taken: bool = False,
) -> Response:  # fmt: skip
    def work(opened: Gallery) -> dict[str, Any]:
        part = opened.templates(identity, offset=offset, limit=PAGE)
        shown = [replace(row, path=PurePath(row.path).name) for row in part.templates]
        return {"templates": shown, "num_templates": part.total}

    return view.render(
        request, "gallery_identity.html.j2", name=name, identity=identity, offset=offset,
        status=200 if problem is None else problem.status, problem=problem, new=new, taken=taken,
        page=PAGE, done=done, enrolled=None, may_enrol=allows(caller, "enrol"),
        may_rename=allows(caller, "admin"), may_erase=allows(caller, "admin"),
        gallery_url=gallery_url, picture_url=picture_urls(name),
        paged_url=lambda to: gallery_url(name, "/identity", identity=identity, offset=to),
        **await service.queue.run(service.galleries.use, name, work),
    )  # fmt: skip


def _receipt_page(request: Request, name: str, identity: str, receipt: EraseReceipt) -> Response:
    kept = {"gallery": name, **receipt.as_json()}
    text = f"{receipt.as_text()}\n\n{json.dumps(kept, indent=2)}\n"
    return view.render(
        request, "gallery_erased.html.j2", name=name, identity=identity, receipt=receipt,
        file_name=f"receipt-{receipt.time[:10]}.txt", gallery_url=gallery_url,
        receipt_uri=f"data:text/plain;base64,{base64.b64encode(text.encode()).decode()}",
    )  # fmt: skip


def _metadata(text: str) -> dict[str, Any]:
    """Metadata of lines `key = value`; numbers and true or false become such.

    Raises:
        ServiceError: a line of another form (422).
    """
    metadata: dict[str, Any] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        key, sign, value = (part.strip() for part in line.partition("="))
        if not sign or not key:
            raise ServiceError(422, view.text("enrol.bad_metadata", line=one_line(line)))
        try:
            plain = json.loads(value)
        except ValueError:
            plain = value
        metadata[key] = plain if isinstance(plain, bool | int | float) else value
    return metadata
