"""Access: keys and their roles, hosts, origins, rates, and the headers of every answer.

Everything but `PUBLIC` needs a key, or a loopback host where there are no keys. This is decided
from the headers of a request, before a byte of its body is read.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Request
from starlette.datastructures import MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinlens.errors import ConfigError, one_line
from twinlens.service.errors import ServiceError, error_response
from twinlens.service.keys import ROLES, SESSION_SECONDS, Key, Keys, Role
from twinlens.service.rates import TokenBuckets
from twinlens.service.settings import ServiceSettings

__all__ = ["DOCUMENT_POLICY", "HEADERS", "ROLES", "Access", "Admin", "Caller", "Enrol", "Read",
           "Role", "SafeHeaders", "end_session", "local_path", "start_session"]  # fmt: skip

log = logging.getLogger("twinlens.service")

PUBLIC = ("/health", "/ready", "/v1/health", "/v1/ready", "/login", "/logout", "/favicon.ico")
PUBLIC_FOLDER = "/static/"
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
FAILURES_A_MINUTE = 20  # wrong keys of one address; right ones are not counted
CHALLENGE = {"WWW-Authenticate": "Bearer"}
COOKIE = "twinlens_session"

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; frame-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
DOCUMENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'self'; base-uri 'none'; form-action 'none'; sandbox allow-scripts"
)
"""For reports, which hold their own styles and scripts: without origin, network and cookies."""

HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    # "no-referrer" would make browsers send the origin "null" with the page's own forms.
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer, unless its handler has set another value."""


class Caller:
    """Who sends a request.

    Attributes:
        name: name of the key; "local" in a service without keys.
        role: what the key allows; each role includes those before it.
    """

    def __init__(self, name: str, role: Role) -> None:
        self.name, self.role = name, role


class SafeHeaders:
    """ASGI middleware: headers of every answer that make browsers careful."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["scheme"] == "https":
                    headers.setdefault("strict-transport-security", "max-age=31536000")
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class Access:
    """ASGI middleware: finds the caller of a request, or refuses it without reading its body.

    Sets `request.state.access` to itself and `request.state.caller`, which is None for the paths of
    `PUBLIC` without a key.

    Attributes:
        needs_keys: whether callers need keys.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        """Read the keys.

        Raises:
            ConfigError: no keys file, or a damaged one.
        """
        self.app = app
        self._host = settings.host
        self._keys = None if settings.keys is None else Keys(settings.keys)
        self.needs_keys = self._keys is not None
        self._failures = TokenBuckets(FAILURES_A_MINUTE)
        a_minute = settings.limits.requests_a_minute
        self._rates = TokenBuckets(a_minute) if a_minute else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        try:
            _check_origin(request, None if self._keys is not None else self._host)
            request.state.access = self
            request.state.caller = self._caller(request)
        except ServiceError as error:
            await _refusal(request, error)(scope, receive, send)
            return
        except ConfigError as error:
            log.error("%s", error)
            refusal = ServiceError(503, "the keys of the service cannot be read", "no_keys")
            await _refusal(request, refusal)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _caller(self, request: Request) -> Caller | None:
        """The caller, within its rate; None without a key where none is needed."""
        path = request.scope["path"]
        is_public = path in PUBLIC or path.startswith(PUBLIC_FOLDER)
        caller = Caller("local", "admin") if self._keys is None else self._of_key(request)
        if caller is None and not is_public:
            raise ServiceError(
                401, "this needs a key: send `Authorization: Bearer KEY` or `x-api-key: KEY`",
                headers=CHALLENGE,
            )  # fmt: skip
        if self._rates is not None and not is_public:
            has_key = caller is not None and self._keys is not None
            name = f"key {caller.name}" if caller and has_key else _address(request)
            _take(self._rates, name)
        return caller

    def _of_key(self, request: Request) -> Caller | None:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            text = request.headers.get("x-api-key", "")
        if text:
            return _caller_of(self.find(request, text))
        cookie = request.cookies.get(_cookie(request))
        key = None if cookie is None or self._keys is None else self._keys.of_session(cookie)
        return None if key is None else _caller_of(key)

    def find(self, request: Request, text: str) -> Key:
        """The key with a text.

        Raises:
            ServiceError: there is none (401), or the address tried too many (429).
            ConfigError: the keys file is missing or damaged.
        """
        key = None if self._keys is None else self._keys.find(text.strip())
        if key is None:
            _take(self._failures, _address(request))
            raise ServiceError(401, "this is no key of the service", "wrong_key", CHALLENGE)
        return key

    def session(self, request: Request, text: str) -> str:
        """A new session for the key with a text; see `find` for the errors."""
        key = self.find(request, text)
        return "" if self._keys is None else self._keys.new_session(key)


def _caller_of(key: Key) -> Caller:
    return Caller(key.name, key.role)


def _check_origin(request: Request, local: str | None) -> None:
    """Refuse what another site makes a browser send: rebound names, forged requests.

    Args:
        request: any request.
        local: address of a service without keys, which answers only this machine; else None.
    Raises:
        ServiceError: a foreign host or origin (403).
    """
    host = request.headers.get("host", "")
    if local is not None and host and not _is_local(host, local):
        raise ServiceError(
            403, "without --keys the service answers only to the names of this machine, such as "
            f"localhost; found '{one_line(host)}'", "foreign_host",
        )  # fmt: skip
    if request.method in SAFE_METHODS:
        return
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "none")
    is_same = origin is None or origin.partition("://")[2].lower() == host.lower()
    if not is_same or site not in ("same-origin", "none"):
        raise ServiceError(
            403, "another site made the browser send this; only the service's own page may",
            "foreign_origin",
        )  # fmt: skip


def _is_local(host: str, own: str) -> bool:
    name = re.sub(r":\d*$", "", host.lower())  # Without the port.
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name in ("localhost", own.lower()) or name.endswith(".localhost")


def _address(request: Request) -> str:
    return "" if request.client is None else request.client.host


def _take(buckets: TokenBuckets, name: str) -> None:
    if wait := buckets.take(name):
        raise ServiceError(
            429, f"too many requests: try again in {wait} s", headers={"Retry-After": str(wait)}
        )


def _refusal(request: Request, error: ServiceError) -> Response:
    """The answer to a refused request; browsers without a key are led to the login."""
    is_page = "text/html" in request.headers.get("accept", "") and error.code == "no_key"
    if is_page and request.method == "GET":
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/login?next={quote(request.url.path + query, safe='')}", 303)
    response = error_response(request, error.status, error.code, error.message, error.headers)
    if error.code == "no_key" and "hx-request" in request.headers:
        response.headers["hx-redirect"] = "/login"
    return response


# --- sessions of the page -----------------------------------------------------------------------


def start_session(request: Request, response: Response, key: str) -> None:
    """Let a browser's later requests be those of a key, for 12 hours or until the key is removed.

    Args:
        request: request of the login form.
        response: answer that gets the cookie.
        key: text from the form.
    Raises:
        ServiceError: a wrong key (401), or too many of them (429).
    """
    access: Access = request.state.access
    response.set_cookie(
        _cookie(request), access.session(request, key), max_age=SESSION_SECONDS, path="/",
        secure=request.url.scheme == "https", httponly=True, samesite="strict",
    )  # fmt: skip


def end_session(request: Request, response: Response) -> None:
    """Remove the cookie of a session from a browser."""
    response.delete_cookie(
        _cookie(request), path="/", secure=request.url.scheme == "https", httponly=True,
        samesite="strict",
    )  # fmt: skip


def _cookie(request: Request) -> str:
    """Name of the cookie; under TLS one that no other name of the domain can set."""
    return f"__Host-{COOKIE}" if request.url.scheme == "https" else COOKIE


def local_path(text: str) -> str:
    r"""A path of the service to go to after the login; "/" instead of any other address.

    >>> local_path("/look?set=a"), local_path("//evil.example"), local_path("/\\evil.example")
    ('/look?set=a', '/', '/')
    """
    is_local = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    return text if is_local else "/"


# --- roles --------------------------------------------------------------------------------------


class _Requires:
    """A dependency that refuses callers below a role."""

    def __init__(self, role: Role) -> None:
        self.role: Role = role

    async def __call__(self, request: Request) -> Caller:  # Without `async`, on a thread.
        caller: Caller = request.state.caller
        if ROLES.index(caller.role) < ROLES.index(self.role):
            raise ServiceError(
                403, f"the key {caller.name} has the role {caller.role}, this needs {self.role}"
            )
        return caller


Read = Annotated[Caller, Depends(_Requires("read"))]
"""Parameter of a handler that answers."""
Enrol = Annotated[Caller, Depends(_Requires("enrol"))]
"""Parameter of a handler that adds or corrects templates."""
Admin = Annotated[Caller, Depends(_Requires("admin"))]
"""Parameter of a handler that creates, erases, calibrates or trains."""
