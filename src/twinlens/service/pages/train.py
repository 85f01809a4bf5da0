"""Pages that train: the button, the curve while it runs, and the result in plain words."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Form, Query, Request, Response

from twinlens.service.job_folder import ENDED, Job
from twinlens.service.pages import view
from twinlens.service.pages.bring import see_other, set_url
from twinlens.service.pages.galleries import gallery_url
from twinlens.service.security import Admin, Read
from twinlens.service.state import Service, ServiceState

__all__ = ["caution_of", "day", "job_place", "router"]

router = APIRouter(prefix="/train", include_in_schema=False, route_class=view.PageRoute)

MINUTES = (2, 5, 15, 0)  # 0: until it stops improving
USUAL = 5
JOBS = 10  # shown
LEAST_IDENTITIES = 2  # of a set that is offered
FEW_IDENTITIES = 10  # behind figures that are rough
MOST_REJECTED = 0.25  # share of genuine pairs, beyond which a threshold is called strict

Name = Annotated[str, Form(max_length=64)]
Json: TypeAlias = dict[str, Any]


@router.get("")
async def form(
    request: Request,
    service: Service,
    caller: Admin,
    chosen: Annotated[str | None, Query(alias="set", max_length=64)] = None,
) -> Response:
    """The form that starts a training, and the trainings so far."""
    return await _form_page(request, service, chosen)


async def _form_page(
    request: Request, service: ServiceState, chosen: str | None, minutes: int = USUAL,
    run: str = "", problem: view.Problem | None = None,
) -> Response:  # fmt: skip
    def work() -> Json:
        every = [_set_facts(service, name) for name in service.picture_sets.names()]
        sets = [one for one in every if one["identities"] >= LEAST_IDENTITIES]
        jobs = [job for job in service.jobs.list() if job.kind == "train"]
        return {"sets": sets, "jobs": jobs[:JOBS]}

    values = await service.queue.run(work)
    return view.render(
        request, "train.html.j2", status=problem.status if problem else 200, refused=problem,
        chosen=chosen, minutes=MINUTES, usual=minutes, run=run,
        problem=service.jobs.training_problem, has_data=service.jobs.enabled, day=day, **values,
    )  # fmt: skip


@router.post("")
async def start(
    request: Request, service: Service, caller: Admin, pictures: Name,
    minutes: Annotated[int, Form(ge=0, le=24 * 60)] = USUAL, run: Name = "",
) -> Response:  # fmt: skip
    """Start a training."""
    arguments: Json = {"pictures": pictures}
    if minutes:
        arguments["time_budget"] = 60.0 * minutes
    if run.strip():
        arguments["run"] = run.strip()
    try:
        job = await service.queue.run(service.jobs.start, "train", arguments, caller.name)
    except view.ERRORS as error:
        problem = await view.problem(request, error)
        return await _form_page(request, service, pictures, minutes, run, problem)
    return see_other(request, f"/train/{job.id}")


@router.get("/{id}")
async def one_training(request: Request, service: Service, caller: Read, id: str) -> Response:
    """A training: its curve while it runs, its result in the end."""
    job = await service.queue.run(service.jobs.get, id)
    return view.render(
        request, "training.html.j2", job=job, ended=job.state in ENDED, day=day,
        words=_words(job.result),
    )  # fmt: skip


@router.post("/{id}/cancel")
async def cancel(request: Request, service: Service, caller: Admin, id: str) -> Response:
    """Cancel a job; what a training learned until then stays."""
    return see_other(request, job_place(await service.queue.run(service.jobs.cancel, id)))


@router.post("/{id}/resume")
async def resume(request: Request, service: Service, caller: Admin, id: str) -> Response:
    """Resume a job that was cancelled or interrupted."""
    return see_other(request, job_place(await service.queue.run(service.jobs.resume, id)))


def job_place(job: Job) -> str:
    """The address of a job's page."""
    if job.kind in ("cluster", "faces"):
        part = "groups" if job.kind == "cluster" else "faces"
        return set_url(job.arguments["pictures"], f"/{part}/{job.id}")
    if job.arguments.get("gallery"):
        return gallery_url(job.arguments["gallery"], f"/work/{job.id}")
    if job.kind in ("audit", "calibrate"):
        return f"/look/{job.kind}/{job.id}"
    return f"/train/{job.id}"


def _set_facts(service: ServiceState, name: str) -> Json:
    numbers = service.picture_sets.identities(name)
    return {"name": name, "pictures": sum(numbers.values()), "identities": len(numbers)}


def day(time: str | None) -> str:
    """A time of a job as people read it."""
    return "" if time is None else view.moment(time)


def _words(result: Json | None) -> Json | None:
    """Figures of a result as a page says them; None before there is one."""
    if result is None:
        return None
    measured = result.get("results") or {}
    verification, calibration = measured.get("verification"), result.get("calibration")
    at = None if verification is None else verification.get("calibrated")
    words: Json = {"run": result["run"], "report": result["report"], "calibration": calibration,
                   "verification": verification, "at": at,
                   "caution": caution_of(calibration, at)}  # fmt: skip
    if verification is not None:
        words |= {
            "few": verification["num_identities"] < FEW_IDENTITIES,
            "unseen": measured.get("identity_disjoint") is True,
            "is_test": measured.get("split") == "test",
            "nearest": (measured.get("retrieval") or {}).get("recall_at_1"),
        }
    return words


def caution_of(calibration: Json | None, at: Json | None) -> str | None:
    """The text that warns of a threshold: none, not measured, or one that rejects much."""
    if calibration is None:
        return "not_calibrated"
    rejected = None if at is None else at["frr"]["value"]
    if rejected is None:
        return "unmeasured"
    return "strict" if rejected > MOST_REJECTED else None
