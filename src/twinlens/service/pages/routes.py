"""All pages: the start page, and the routers of the others."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from twinlens.service.pages import ask, bring, galleries, login, look, share, sort, train, view
from twinlens.service.security import Read

__all__ = ["router"]

router = APIRouter(include_in_schema=False, route_class=view.PageRoute)


@router.get("/")
async def home(request: Request, caller: Read) -> Response:
    """The start page."""
    return view.render(request, "home.html.j2")


# Each module of this folder that has pages adds its router here.
for pages in (
    view.router,
    bring.router,
    sort.router,
    train.router,
    look.router,
    galleries.router,
    ask.router,
    share.router,
    login.router,
):
    router.include_router(pages)
