"""Pages that look at a model: what a threshold accepts, worst pairs, nearest pictures."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response

from twinlens.service.errors import ServiceError
from twinlens.service.job_folder import ENDED
from twinlens.service.pages import view
from twinlens.service.pages.bring import ALL, see_other, set_url
from twinlens.service.pages.forms import read_form
from twinlens.service.pages.train import day, job_place
from twinlens.service.pair_views import Neighbour, PairView
from twinlens.service.security import Admin
from twinlens.service.state import Service

__all__ = ["router"]

router = APIRouter(prefix="/look", include_in_schema=False, route_class=view.PageRoute)

NEAREST = 12  # pictures shown
STEPS = 400  # of the slider
MOST_FINDINGS = 60
AUDITS = 5  # shown
FARS = (0.001, 0.01, 0.05)  # rates to calibrate for

ModelName = Annotated[str, Query(max_length=64)]
SetName = Annotated[str, Query(alias="set", max_length=64)]
Json: TypeAlias = dict[str, Any]


@router.get("")
async def choose(
    request: Request,
    service: Service,
    caller: Admin,
    model: Annotated[str | None, Query(max_length=64)] = None,
    chosen: Annotated[str | None, Query(alias="set", max_length=64)] = None,
) -> Response:
    """The choice of a model and a set; the rest of the page is computed from them."""

    def work() -> Json:
        models, sets = list(service.models.folders()), service.picture_sets.names()
        # The set that a model was trained on has its name, unless somebody chose another.
        name = models[0] if model is None and models else model
        filled = [one for one in sets if service.picture_sets.identities(one)]
        fitting = name if name in filled else next(iter(filled or sets), None)
        audits = [job for job in service.jobs.list() if job.kind == "audit"]
        return {"models": models, "sets": sets, "model": name, "audits": audits[:AUDITS],
                "chosen": fitting if chosen is None else chosen}  # fmt: skip

    values = await service.queue.run(work)
    query = urlencode({"model": values["model"] or "", "set": values["chosen"] or ""})
    return view.render(request, "look.html.j2", query=query, day=day, **values)


@router.get("/pairs")
async def pairs(
    request: Request, service: Service, caller: Admin, model: ModelName, name: SetName
) -> Response:
    """Threshold and worst pairs of a model on a set; a part of the page for htmx."""
    async with service.queue.admitted():
        pair_view = await service.queue.run(service.pair_views.get, model, name)
        calibration = pair_view.matcher.calibration
        low, high = pair_view.span
        threshold = (low + high) / 2 if calibration is None else calibration.threshold
        values = await service.queue.run(_border, pair_view, threshold)
        worst = await service.queue.run(
            lambda: {kind: pair_view.worst(kind) for kind in ("impostor", "genuine")}
        )
    return _page(
        request, "look_pairs.html.j2", pair_view=pair_view, worst=worst, model=model, name=name,
        calibration=calibration, low=low, high=high, step=(high - low) / STEPS, set_url=set_url,
        back=f"/look?{urlencode({'model': model, 'set': name})}", fars=FARS,
        jobs_enabled=service.jobs.enabled, **values,
    )  # fmt: skip


@router.get("/border")
async def border(
    request: Request, service: Service, caller: Admin, model: ModelName, name: SetName,
    threshold: Annotated[float, Query(ge=0)],
) -> Response:  # fmt: skip
    """What a threshold accepts and rejects; a part of the page for htmx."""
    pair_view = await service.queue.run(service.pair_views.get, model, name)
    values = await service.queue.run(_border, pair_view, threshold)
    return _page(request, "look_border.html.j2", name=name, model=model, **values)


@router.get("/nearest")
async def nearest_of(
    request: Request, service: Service, caller: Admin, model: ModelName, name: SetName,
    picture: Annotated[str, Query(max_length=1000)],
) -> Response:  # fmt: skip
    """The nearest pictures of one of the set."""
    pair_view = await service.queue.run(service.pair_views.get, model, name)

    def work() -> list[Neighbour]:
        emb_1D = pair_view.embedding_of(picture)
        if emb_1D is None:
            emb_1D = pair_view.matcher.embed([service.picture_sets.file(name, picture)])
        return pair_view.nearest(emb_1D, NEAREST, picture)

    return _nearest_page(request, model, name, picture, await service.queue.run(work))


@router.post("/nearest")
async def nearest_of_upload(
    request: Request, service: Service, caller: Admin, model: ModelName, name: SetName
) -> Response:
    """The nearest pictures of an uploaded one."""
    async with service.queue.admitted():
        upload = (await read_form(request, service.settings.limits)).picture("picture")
        pair_view = await service.queue.run(service.pair_views.get, model, name)

        def work() -> list[Neighbour]:
            return pair_view.nearest(pair_view.matcher.embed([upload.content]), NEAREST)

        hits = await service.queue.run(work)
    return _nearest_page(request, model, name, None, hits)


@router.post("/calibrate")
async def calibrate(
    request: Request, service: Service, caller: Admin, model: ModelName, name: SetName,
    far: Annotated[float, Form(gt=0, lt=1)],
) -> Response:  # fmt: skip
    """Start a calibration of the model for another false accept rate."""
    arguments = {"pictures": name, "model": model, "far": far}
    job = await service.queue.run(service.jobs.start, "calibrate", arguments, caller.name)
    return see_other(request, job_place(job))


@router.get("/calibrate/{id}")
async def calibration(request: Request, service: Service, caller: Admin, id: str) -> Response:
    """A calibration: its progress, then the threshold."""
    job = await service.queue.run(service.jobs.get, id)
    return view.render(request, "calibrate.html.j2", job=job, ended=job.state in ENDED)


@router.post("/audit")
async def start_audit(
    request: Request, service: Service, caller: Admin, model: ModelName, name: SetName
) -> Response:
    """Start a search for wrong names."""
    arguments = {"pictures": name, "model": model}
    job = await service.queue.run(service.jobs.start, "audit", arguments, caller.name)
    return see_other(request, job_place(job))


@router.get("/audit/{id}")
async def audit(request: Request, service: Service, caller: Admin, id: str) -> Response:
    """A search for wrong names: its progress, then what it found."""

    def work() -> Json:
        job = service.jobs.get(id)
        findings = [] if job.result is None else job.result["findings"]
        name = job.arguments["pictures"]
        # A picture that was mended since has another key, or none.
        here = {one.picture: one.identity for one in service.picture_sets.pictures(name, limit=ALL)}
        return {
            "job": job, "name": name, "identities": sorted({*filter(None, here.values())}),
            "wrong": [one for one in findings if one["finding"] == "wrong_label"
                      and one["path"] in here][:MOST_FINDINGS],
            "merges": [one for one in findings if one["finding"] == "merge"][:MOST_FINDINGS],
        }  # fmt: skip

    values = await service.queue.run(work)
    return view.render(
        request, "audit.html.j2", ended=values["job"].state in ENDED, set_url=set_url, day=day,
        back=request.url.path, **values,
    )  # fmt: skip


def _nearest_page(
    request: Request, model: str, name: str, picture: str | None,
    hits: list[Neighbour],
) -> Response:  # fmt: skip
    return _page(
        request, "look_nearest.html.j2", model=model, name=name, picture=picture, hits=hits
    )


def _page(request: Request, template: str, **values: Any) -> Response:
    """A part of the page for htmx; for others a whole page around it."""
    if "HX-Request" in request.headers:
        return view.render(request, template, **values)
    return view.render(request, "look_part.html.j2", part=template, **values)


def _border(pair_view: PairView, threshold: float) -> Json:
    """Counts and pairs at a threshold, and bars of both kinds of distances."""
    if not pair_view.span[0] <= threshold < float("inf"):
        raise ServiceError(422, view.text("look.no_threshold"))
    genuine, impostor = pair_view.histogram()
    return {
        "at": pair_view.at(threshold),
        "bars": {"same": _heights(genuine), "different": _heights(impostor)},
        "place": min(1.0, threshold / pair_view.span[1]),
    }


def _heights(counts: list[int]) -> list[float]:
    most = max(counts) or 1
    return [count / most for count in counts]
