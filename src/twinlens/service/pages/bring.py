"""Pages that take pictures: sets, identities, what was understood, and how to mend it."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import UploadFile

from twinlens.data.picture_file import picture_suffixes
from twinlens.service.errors import ServiceError
from twinlens.service.folder_names import identity_of
from twinlens.service.pages import view
from twinlens.service.security import Admin
from twinlens.service.state import Service, ServiceState
from twinlens.service.uploads import check_size

__all__ = ["ALL", "router", "see_other", "set_url"]

router = APIRouter(prefix="/pictures", include_in_schema=False, route_class=view.PageRoute)

PAGE = 60  # pictures shown at once
SHOWN = 12  # findings of a kind
COVERS = 24  # identities with a picture
ALL = 10**9
STATES = ("stored", "duplicate", "contradiction", "refused")

Picture = Annotated[str, Form(max_length=1000)]
Identity = Annotated[str, Form(max_length=200)]


def set_url(name: str, part: str = "", **query: str | int) -> str:
    """The address of a picture set's page."""
    words = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in query.items())
    return f"/pictures/{quote(name, safe='')}{part}" + (f"?{words}" if words else "")


def see_other(request: Request, place: str) -> Response:
    """To another page after a form: a redirect, which htmx follows as a whole page."""
    if "HX-Request" in request.headers:
        return Response(status_code=200, headers={"HX-Redirect": place})
    return RedirectResponse(place, 303)


@router.get("")
async def sets(request: Request, service: Service, caller: Admin) -> Response:
    """All sets, and a form for a new one."""
    return await _sets_page(request, service)


@router.post("")
async def create(request: Request, service: Service, caller: Admin, name: Identity) -> Response:
    """Make a set."""
    try:
        service.picture_sets.create(name)
    except view.ERRORS as error:
        return await _sets_page(request, service, name, problem=await view.problem(request, error))
    return see_other(request, set_url(name))


@router.get("/{name}")
async def one_set(request: Request, service: Service, caller: Admin, name: str) -> Response:
    """A set: the form that takes pictures, its identities, and what is unsorted."""
    facts = await service.queue.run(_facts, service, name)
    return view.render(
        request, "set.html.j2", name=name, set_url=set_url,
        suffixes=sorted(picture_suffixes()), **facts,
    )  # fmt: skip


@router.get("/{name}/identities")
async def identities(request: Request, service: Service, caller: Admin, name: str) -> Response:
    """The identities of a set, as a part of its page."""
    facts = await service.queue.run(_facts, service, name)
    return view.render(request, "identities.html.j2", name=name, set_url=set_url, **facts)


@router.get("/{name}/summary")
async def summary(request: Request, service: Service, caller: Admin, name: str) -> Response:
    """What was understood of a set; a part of its page for htmx."""
    values = await service.queue.run(service.picture_sets.summary, name)
    part = "HX-Request" in request.headers
    return view.render(
        request, "summary.html.j2" if part else "summary_page.html.j2", name=name, set_url=set_url,
        shown=SHOWN, summary=values, inspection=values["inspection"], identity_of=_identity_of,
        copies=_copies(values["inspection"]),
    )  # fmt: skip


@router.post("/{name}/forget")
async def forget(request: Request, service: Service, caller: Admin, name: str) -> Response:
    """Forget the uploads that were refused."""
    await service.queue.run(service.picture_sets.forget_refused, name)
    return see_other(request, set_url(name))


@router.get("/{name}/identity")
async def identity_page(
    request: Request,
    service: Service,
    caller: Admin,
    name: str,
    identity: Annotated[str | None, Query(max_length=200)] = None,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> Response:
    """The pictures of an identity, or the unsorted ones, with forms to mend them."""
    return await _identity_page(request, service, name, identity, offset=offset)


async def _identity_page(
    request: Request, service: ServiceState, name: str, identity: str | None, *, offset: int = 0,
    problem: view.Problem | None = None, new: str | None = None,
) -> Response:  # fmt: skip
    sets = service.picture_sets

    def work() -> dict[str, Any]:
        numbers = sets.identities(name)
        if identity is not None and identity not in numbers:
            raise ServiceError(404, view.text("bring.no_identity"))
        pictures = sets.pictures(
            name, identity, unsorted=identity is None, offset=offset, limit=PAGE
        )
        pictures = sorted(pictures, key=lambda one: view.natural(one.name))
        total = sets.num_unsorted(name) if identity is None else numbers[identity]
        return {
            "pictures": pictures,
            "total": total,
            "identities": sorted(numbers, key=view.natural),
        }

    return view.render(
        request, "identity.html.j2", status=200 if problem is None else problem.status,
        problem=problem, new=identity if new is None else new, name=name,
        identity=identity, offset=offset, page=PAGE,
        set_url=set_url, **await service.queue.run(work),
    )  # fmt: skip


@router.post("/{name}/add")
async def add(request: Request, service: Service, caller: Admin, name: str) -> Response:
    """Store the pictures of a form, for browsers without scripts."""
    limits = service.settings.limits
    added = []
    async with (
        service.queue.admitted(),
        request.form(max_files=limits.pictures, max_fields=8) as form,
    ):
        identity = str(form.get("identity", "")).strip() or None
        for _, part in form.multi_items():
            if isinstance(part, UploadFile) and part.filename:
                folders, _, file = part.filename.replace("\\", "/").rpartition("/")
                # Browsers send the path below a chosen folder, which names the identity.
                person = folders.partition("/")[2] or folders or identity
                content = await part.read()
                check_size(content, limits)
                added.append(
                    await service.queue.run(service.picture_sets.add, name, person, file, content)
                )
    if not added:
        raise ServiceError(422, view.text("bring.no_files"))
    return view.render(
        request, "added.html.j2", name=name, set_url=set_url, added=added, states=STATES
    )


@router.post("/{name}/move")
async def move(
    request: Request, service: Service, caller: Admin, name: str, picture: Picture,
    identity: Identity = "", back: Picture = "",
) -> Response:  # fmt: skip
    """Give a picture another identity, or none."""
    target = identity.strip() or None
    await service.queue.run(service.picture_sets.move, name, picture, target)
    text = (view.text("bring.moved_unsorted") if target is None
            else view.text("bring.moved", identity=target))  # fmt: skip
    return _mended(request, name, text, back)


@router.post("/{name}/remove")
async def remove(
    request: Request, service: Service, caller: Admin, name: str,
    picture: Annotated[list[str], Form()], back: Picture = "",
) -> Response:  # fmt: skip
    """Remove pictures."""
    for one in picture:
        await service.queue.run(service.picture_sets.remove, name, one)
    return _mended(request, name, view.text("bring.removed", count=len(picture)), back)


@router.post("/{name}/rename")
async def rename(
    request: Request, service: Service, caller: Admin, name: str, identity: Identity,
    new: Identity, merge: Annotated[bool, Form()] = False,
) -> Response:  # fmt: skip
    """Rename an identity, or merge it with another."""
    new = new.strip()
    try:
        await service.queue.run(service.picture_sets.rename, name, identity, new, merge=merge)
    except view.ERRORS as error:
        problem = await view.problem(request, error)
        if problem.status == 409:
            problem = problem._replace(message=view.text("bring.taken", new=new))
        return await _identity_page(request, service, name, identity, problem=problem, new=new)
    return see_other(request, set_url(name, "/identity", identity=new))


@router.post("/{name}/delete")
async def delete(request: Request, service: Service, caller: Admin, name: str) -> Response:
    """Delete a set."""
    await service.queue.run(service.picture_sets.delete, name)
    return see_other(request, "/pictures")


async def _sets_page(
    request: Request, service: ServiceState, new_name: str | None = None,
    problem: view.Problem | None = None,
) -> Response:  # fmt: skip
    names = service.picture_sets.names() if service.settings.data is not None else []
    return view.render(
        request, "sets.html.j2", status=200 if problem is None else problem.status,
        rows=await service.queue.run(_set_rows, service, names), set_url=set_url, problem=problem,
        has_data=service.settings.data is not None, new_name=new_name or _new_name(names),
    )  # fmt: skip


def _mended(request: Request, name: str, message: str, back: str) -> Response:
    """What stands in place of a picture that was mended; the page without scripts."""
    if "HX-Request" not in request.headers:
        # A place of this site only: "//host" would be another one.
        place = back if back.startswith(("/pictures/", "/look")) else set_url(name)
        return RedirectResponse(place, 303)
    return view.render(request, "mended.html.j2", message=message)


def _copies(inspection: dict[str, Any] | None) -> dict[str, list[list[str]]]:
    """Groups of copies by kind, without those under two names, which are shown apart."""
    if inspection is None:
        return {}
    apart = [set(one["paths"]) for one in inspection["contradictions"]]
    return {
        kind: [group for group in inspection["duplicates"][kind]["groups"]
               if set(group) not in apart]
        for kind in ("exact", "near")
    }  # fmt: skip


def _identity_of(picture: str) -> str:
    return identity_of(picture.rpartition("/")[0])


def _new_name(names: list[str]) -> str:
    first = view.text("bring.first_name")
    number = 1
    while (name := first if number == 1 else f"{first} {number}") in names:
        number += 1
    return name


def _set_rows(service: ServiceState, names: list[str]) -> list[dict[str, Any]]:
    return [{"name": name} | _facts(service, name) for name in names]


def _facts(service: ServiceState, name: str) -> dict[str, Any]:
    """Identities with a picture each, and counts."""
    sets = service.picture_sets
    numbers, covers = Counter[str](), dict[str, str]()
    for entry in sets.pictures(name, limit=ALL):
        if entry.identity is not None:
            numbers[entry.identity] += 1
            covers.setdefault(entry.identity, entry.picture)
    names = sorted(numbers, key=view.natural)
    return {
        "numbers": {name: numbers[name] for name in names},
        "covers": [(name, covers[name]) for name in names[:COVERS]],
        "num_pictures": numbers.total(),
        "num_unsorted": sets.num_unsorted(name),
    }
