"""Pages that sort pictures: groups to be named by hand, and faces cropped into another set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Form, Request, Response

from twinlens.face.detectors import cached_yunet
from twinlens.parsing import read_json
from twinlens.service.errors import ServiceError
from twinlens.service.job_folder import ENDED
from twinlens.service.job_work import GROUPS
from twinlens.service.pages import view
from twinlens.service.pages.bring import ALL, see_other, set_url
from twinlens.service.pages.train import day, job_place
from twinlens.service.security import Admin
from twinlens.service.state import Service

__all__ = ["router"]

router = APIRouter(prefix="/pictures", include_in_schema=False, route_class=view.PageRoute)

JOBS = 5  # shown

Name = Annotated[str, Form(max_length=64)]
Json: TypeAlias = dict[str, Any]


@router.get("/{name}/groups")
async def groups_form(request: Request, service: Service, caller: Admin, name: str) -> Response:
    """The form that starts a grouping, and the groupings so far."""

    def work() -> Json:
        jobs = [job for job in service.jobs.list()
                if job.kind == "cluster" and job.arguments["pictures"] == name]  # fmt: skip
        return {"models": list(service.models.folders()), "jobs": jobs[:JOBS],
                "num_unsorted": service.picture_sets.num_unsorted(name)}  # fmt: skip

    return view.render(
        request, "groups_form.html.j2", name=name, set_url=set_url, day=day,
        **await service.queue.run(work),
    )  # fmt: skip


@router.post("/{name}/groups")
async def start_groups(
    request: Request, service: Service, caller: Admin, name: str, model: Name
) -> Response:
    """Start a grouping of the unsorted pictures."""
    arguments = {"pictures": name, "model": model}
    job = await service.queue.run(service.jobs.start, "cluster", arguments, caller.name)
    return see_other(request, job_place(job))


@router.get("/{name}/groups/{id}")
async def groups(request: Request, service: Service, caller: Admin, name: str, id: str) -> Response:
    """A grouping: its progress, then its groups with a name to give to each."""

    def work() -> Json:
        job, file = service.jobs.get(id), service.jobs.folder(id) / GROUPS
        sets = service.picture_sets
        proposed = _groups(file) if job.state == "done" else []
        unsorted = {one.picture for one in sets.pictures(name, unsorted=True, limit=ALL)}
        left = [[key for key in group if key in unsorted] for group in proposed]
        return {
            "job": job, "identities": list(sets.identities(name)),
            "groups": [group for group in left if len(group) > 1],
            "alone": sum(len(group) == 1 for group in left),
        }  # fmt: skip

    values = await service.queue.run(work)
    return view.render(
        request, "groups.html.j2", name=name, set_url=set_url,
        ended=values["job"].state in ENDED, **values,
    )  # fmt: skip


@router.post("/{name}/name")
async def name_group(
    request: Request, service: Service, caller: Admin, name: str,
    identity: Annotated[str, Form(max_length=200)] = "",
    picture: Annotated[list[str] | None, Form()] = None, back: Annotated[str, Form()] = "",
) -> Response:  # fmt: skip
    """Name the chosen pictures of a group."""
    if not identity.strip():
        raise ServiceError(422, view.text("sort.no_name"))
    if not picture:
        raise ServiceError(422, view.text("sort.no_pictures"))
    for one in picture:
        await service.queue.run(service.picture_sets.move, name, one, identity.strip())
    if "HX-Request" not in request.headers:
        place = back if back.startswith("/pictures/") else set_url(name)
        return see_other(request, place)
    message = view.text("sort.named", identity=identity.strip(), count=len(picture))
    return view.render(request, "mended.html.j2", message=message)


@router.get("/{name}/faces")
async def faces_form(request: Request, service: Service, caller: Admin, name: str) -> Response:
    """The form that starts the search for faces."""
    return view.render(
        request, "faces_form.html.j2", name=name, set_url=set_url,
        problem=service.jobs.faces_problem, simple=cached_yunet() is None,
    )  # fmt: skip


@router.post("/{name}/faces")
async def start_faces(
    request: Request, service: Service, caller: Admin, name: str, into: Name
) -> Response:
    """Start the search for faces."""
    arguments = {"pictures": name, "into": into.strip()}
    job = await service.queue.run(service.jobs.start, "faces", arguments, caller.name)
    return see_other(request, job_place(job))


@router.get("/{name}/faces/{id}")
async def faces(request: Request, service: Service, caller: Admin, name: str, id: str) -> Response:
    """A search for faces: its progress, then what became of the pictures."""
    job = await service.queue.run(service.jobs.get, id)
    return view.render(
        request, "faces.html.j2", name=name, set_url=set_url, job=job, ended=job.state in ENDED
    )


def _groups(file: Path) -> list[list[str]]:
    """Keys of the pictures of each group, the largest first."""
    return [[one["picture"] for one in group["pictures"]] for group in read_json(file)["groups"]]
