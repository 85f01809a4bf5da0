"""Pages as HTML: templates, texts, static files, and errors for people."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from string import Formatter
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FunctionLoader, StrictUndefined

from twinlens.errors import TwinlensError
from twinlens.service.errors import ServiceError
from twinlens.service.keys import ROLES, Role

__all__ = ["ERRORS", "PageRoute", "Problem", "moment", "natural", "plain", "problem", "render",
           "router", "sentence", "static", "text", "texts"]  # fmt: skip

FILES = resources.files("twinlens.service.pages")
NAVIGATION: tuple[tuple[str, str, Role], ...] = (
    ("pictures", "/pictures", "admin"), ("train", "/train", "admin"), ("look", "/look", "admin"),
    ("galleries", "/galleries", "read"), ("share", "/share", "read"),
)  # fmt: skip
"""Name, address and least role of each page of the navigation."""
TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8"}  # fmt: skip
ERRORS = (ServiceError, TwinlensError, RequestValidationError)
KEPT_HEADERS = ("retry-after", "www-authenticate")

router = APIRouter(include_in_schema=False)


class _Formatter(Formatter):
    """Formats shares as "0.5 %", and "1 %" in place of "1.0 %"."""

    def format_field(self, value: Any, format_spec: str) -> str:
        formatted = str(super().format_field(value, format_spec))
        if not format_spec.endswith("%"):
            return formatted
        return f"{formatted[:-1].removesuffix('.0')} %"


_FORMATTER = _Formatter()


@cache
def texts() -> dict[str, Any]:
    """All texts of the pages, by section and key."""
    return tomllib.loads((FILES / "texts" / "en.toml").read_text(encoding="utf-8"))


def text(key: str, **values: object) -> str:
    """A text of the pages.

    Args:
        key: section and name, such as "train.start". A `count` of 1 takes the name with "_one", if
            there is one.
        values: what its braces stand for.
    """
    section, _, name = key.partition(".")
    names = texts()[section]
    one = f"{name}_one"
    chosen = names[one if values.get("count") == 1 and one in names else name]
    return _FORMATTER.vformat(str(chosen), (), values)


@cache
def _static_files() -> dict[str, bytes]:
    folder = FILES / "static"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


@cache
def _digest() -> str:
    """Digest of all static files, a part of their addresses: they never change under one."""
    digest = hashlib.sha256()
    for name, content in sorted(_static_files().items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def static(name: str) -> str:
    """The address of a static file."""
    if name not in _static_files():
        raise KeyError(f"no static file {name}")
    return f"/static/{_digest()}/{name}"


@router.get("/static/{digest}/{name}")
async def static_file(digest: str, name: str) -> Response:
    """A style sheet, script or licence of the pages."""
    content = _static_files().get(name)
    kind = TYPES.get(name[name.rfind(".") :])
    if content is None or kind is None:
        raise ServiceError(404, "there is no such file")
    # While a service is being renewed, a page of its other version may ask.
    caching = "public, max-age=31536000, immutable" if digest == _digest() else "no-store"
    return Response(content, media_type=kind, headers={"Cache-Control": caching})


@cache
def _environment() -> Environment:
    def load(name: str) -> tuple[str, str, None]:
        return (FILES / "templates" / name).read_text(encoding="utf-8"), name, None

    pages = Environment(
        loader=FunctionLoader(load), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.globals |= {"t": text, "texts": texts, "static": static}
    pages.filters |= {"moment": moment, "plain": plain}
    return pages


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page, or a part of one, as an answer that is not kept in caches.

    Templates call `t("section.key", name=value)` for texts and `static("name")` for addresses;
    values are escaped, and an undefined one is an error.

    Args:
        request: request that is answered, known to the template as `request`.
        template: file name below `templates`.
        status: HTTP status.
        values: what the template shows.
    """
    caller = getattr(request.state, "caller", None)  # None on the page that asks for a key.
    role = ROLES.index("read" if caller is None else caller.role)
    navigation = [(name, path) for name, path, least in NAVIGATION if ROLES.index(least) <= role]
    page = _environment().get_template(template)
    html = page.render(request=request, navigation=navigation, **values)
    return HTMLResponse(html, status, {"Cache-Control": "no-store"})


class Problem(NamedTuple):
    """What went wrong with a form, to be shown in it: HTTP status, text, headers to keep."""

    status: int
    message: str
    headers: dict[str, str]


async def problem(request: Request, error: Exception) -> Problem:
    """An error of `ERRORS` as a page says it."""
    kind = next(kind for kind in ERRORS if isinstance(error, kind))
    answer = await request.app.exception_handlers[kind](request, error)
    message = json.loads(answer.body)["error"]["message"]
    kept = {key: value for key, value in answer.headers.items() if key in KEPT_HEADERS}
    return Problem(answer.status_code, sentence(plain(message)), kept)


def plain(message: str) -> str:
    """A message of the library in the words of pages; unchanged if there are no others.

    `texts` lists pairs of a part of a message, which is replaced, and a text.
    """
    for one in texts()["plain"]["replaced"]:
        message = re.sub(one["pattern"], one["text"], message)
    return message


def sentence(message: str) -> str:
    """A message as a sentence: with a capital, unless it begins with a name, and a full stop."""
    first = message.partition(" ")[0]
    if first.isalpha() and first.islower():
        message = message[0].upper() + message[1:]
    return message if message.endswith((".", "!", "?", ":")) or not message else f"{message}."


def natural(name: str) -> list[tuple[int, int, str]]:
    """Key that sorts names as people do, "person 2" before "person 10"."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part)
            for part in parts]  # fmt: skip


def moment(time: datetime | str) -> str:
    """A time as pages show it: to the minute, in UTC."""
    exact = datetime.fromisoformat(time) if isinstance(time, str) else time
    return f"{exact.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _form_of(request: Request) -> str | None:
    """The address of the page whose form was sent; None if it was no form of this site."""
    came_from = urlsplit(request.headers.get("referer", ""))
    if came_from.netloc != request.headers.get("host"):
        return None
    return came_from._replace(scheme="", netloc="", fragment="").geturl() or None


class PageRoute(APIRoute):
    """A route whose errors are pages, or parts of pages for htmx, instead of JSON.

    Use it as `APIRouter(route_class=PageRoute, include_in_schema=False)`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route, with errors caught."""
        handler = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except ERRORS as error:
                found = await problem(request, error)
                part = "HX-Request" in request.headers
                page = render(
                    request, "problem.html.j2" if part else "error.html.j2",
                    status=found.status, message=found.message, back=_form_of(request),
                )  # fmt: skip
                page.headers.update(found.headers)
                return page

        return answered
