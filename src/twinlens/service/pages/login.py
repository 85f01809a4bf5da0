"""Pages to begin and to end a session with a key."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from twinlens.service.errors import ServiceError
from twinlens.service.pages import view
from twinlens.service.security import end_session, local_path, start_session

__all__ = ["router"]

router = APIRouter(include_in_schema=False, route_class=view.PageRoute)

MAX_KEY = 1000  # characters


@router.get("/login")
async def login(request: Request, next: str = "/") -> Response:
    """A form for a key; a service without keys needs none."""
    if request.state.access.needs_keys:
        return view.render(request, "login.html.j2", next=local_path(next), problem=None)
    return RedirectResponse(local_path(next), 303)


@router.post("/login")
async def begin(request: Request) -> Response:
    """Begin a session, and go to the page that was asked for."""
    async with request.form(max_files=0, max_fields=2, max_part_size=MAX_KEY) as form:
        key, target = str(form.get("key", "")), local_path(str(form.get("next", "/")))
    response = RedirectResponse(target, 303)
    try:
        start_session(request, response, key)
    except ServiceError as error:
        problem = view.text("login.wrong" if error.status == 401 else "login.often")
        return view.render(
            request, "login.html.j2", status=error.status, next=target, problem=problem
        )
    return response


@router.post("/logout")
async def end(request: Request) -> Response:
    """End the session of this browser."""
    response = RedirectResponse("/login", 303)
    end_session(request, response)
    return response
