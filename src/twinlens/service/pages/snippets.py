"""What was just done on a page, for programs: the same request with curl and with Python."""

from __future__ import annotations

import shlex
from urllib.parse import quote, urlencode

from fastapi import Request

from twinlens.service.state import ServiceState

__all__ = ["PYTHON_LOCAL", "enrol", "identify", "search", "verify"]

PYTHON = """\
import json
import urllib.request

with open("photo.jpg", "rb") as file:
    picture = file.read()
request = urllib.request.Request(
    {address!r},
    picture,
    {headers!r},
)
with urllib.request.urlopen(request) as answer:
    print(json.load(answer))"""
PYTHON_PAIR = """\
import base64
import json
import urllib.request


def read(path):
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()


request = urllib.request.Request(
    {address!r},
    json.dumps({{"a": read("one.jpg"), "b": read("other.jpg")}}).encode(),
    {headers!r},
)
with urllib.request.urlopen(request) as answer:
    print(json.load(answer))"""

PYTHON_LOCAL = """\
# pip install twinlens; unpack the downloaded archive first
import twinlens

matcher = twinlens.Matcher.load("model")
print(matcher.verify("one.jpg", "other.jpg").explain())"""

Snippet = dict[str, str]


def identify(request: Request, service: ServiceState, gallery: str, k: int) -> Snippet:
    """Identify a picture in a gallery."""
    return _of_picture(request, service, "/v1/identify", {"gallery": gallery, "k": k})


def search(
    request: Request, service: ServiceState, gallery: str, k: int, where: str | None
) -> Snippet:
    """Find the nearest pictures of a gallery."""
    query: dict[str, object] = {"gallery": gallery, "k": k}
    if where is not None:
        query["where"] = where
    return _of_picture(request, service, "/v1/search", query)


def enrol(request: Request, service: ServiceState, gallery: str, identity: str) -> Snippet:
    """Enrol a picture."""
    path = f"/v1/galleries/{quote(gallery, safe='')}/templates"
    return _of_picture(request, service, path, {"identity": identity})


def verify(request: Request, service: ServiceState, model: str) -> Snippet:
    """Verify two pictures."""
    address = _address(request, "/v1/verify", {"model": model})
    curl = _curl(service, address, ("a=@one.jpg", "b=@other.jpg"))
    headers = _headers(service, "application/json")
    return {"curl": curl, "python": PYTHON_PAIR.format(address=address, headers=headers)}


def _of_picture(
    request: Request, service: ServiceState, path: str, query: dict[str, object]
) -> Snippet:
    address = _address(request, path, query)
    python = PYTHON.format(address=address, headers=_headers(service, "image/jpeg"))
    return {"curl": _curl(service, address, ("picture=@photo.jpg",)), "python": python}


def _address(request: Request, path: str, query: dict[str, object]) -> str:
    base = str(request.base_url).rstrip("/")
    return f"{base}{path}?{urlencode(query, quote_via=quote)}"


def _curl(service: ServiceState, address: str, fields: tuple[str, ...]) -> str:
    key = "" if service.settings.keys is None else " -H 'Authorization: Bearer KEY'"
    forms = " ".join(f"-F {field}" for field in fields)
    return f"curl{key} {forms} \\\n  {shlex.quote(address)}"


def _headers(service: ServiceState, kind: str) -> dict[str, str]:
    key = {} if service.settings.keys is None else {"Authorization": "Bearer KEY"}
    return key | {"Content-Type": kind}
