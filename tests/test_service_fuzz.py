"""Malformed and random requests to every route of a real server: no fault, no path, no hang."""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from conftest import TinyRun
from hostile_server import Server, form, head, png, start, stay_well
from PIL import Image

from twinlens.service.app import create_app
from twinlens.service.pages import view
from twinlens.service.settings import NAME, ServiceSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from start(tiny_run, tmp_path_factory.mktemp("served-here"))


@pytest.fixture(autouse=True)
def _still_well(server: Server) -> Iterator[None]:
    yield from stay_well(server)


FORM_TYPE = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\nx\r\n--b--\r\n'
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>"
BODIES: tuple[tuple[str, bytes], ...] = (
    *((FORM_TYPE, body) for body in (
        b"", b"--b", b"x" * 1000, b"--b\r\n\r\n\r\n--b--", b"--b\r\nA: " + b"a" * 100_000,
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", PART % (b"\xff\xfe", b"\x00"),
        PART.replace(b"\r\n", b"\n"), PART % (b"a" * 50_000, b"b" * 50_000), PART[:60],
    )),
    ("multipart/form-data", b"x"), ("multipart/form-data; boundary=" + "b" * 5000, b"x"),
    ("multipart/form-data; boundary=\xff", b"--\xff"),
    (f"{FORM_TYPE}; charset=unicode_escape", PART % (b"\\ud800", b"\\udfff")),
    (f"{FORM_TYPE}; charset=idna", PART % (b"a." * 5000, b"a")),
    *(("application/json", body) for body in (
        b"", b"null", b"NaN", b"[1]", b'{"picture": 1}', b'{"picture": "\xff"}', b'{"\\ud800": ""}',
        b'{"picture": "data:,"}', b'{"a": 1, "a": 2}', b'{"picture": {"picture": "eA=="}}', b'{"a',
        b'{"picture": "\\ud800"}', b'{"picture": "eA==\\u0000"}',
    )),
    ("text/html", b"<p>"), ("image/svg+xml", SVG), ("image/x-eps", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    ("image/png", b""), ("image/png", b"\x89PNG\r\n\x1a\n"), ("image/png", b"\x00" * 99),
    ("image/png\t;;;=", b"x"), ("", b"x"), ("a/" + "b" * 3000, b"x"),
)  # fmt: skip


def test_malformed_bodies(server: Server) -> None:
    for kind, body in BODIES:
        for path in ("/v1/embed", "/v1/verify", "/v1/identify", "/v1/search"):
            answer = server.ask("POST", path, body, content_type=kind)
            assert 400 <= answer.status < 500, (kind, body[:50], answer)
    for way in ("http://127.0.0.1:9/a.png", "file:///etc/passwd", "/etc/passwd", "s3://b/a.png"):
        for value in (way, base64.b64encode(way.encode()).decode()):
            body = json.dumps({"picture": value}).encode()
            answer = server.ask("POST", "/v1/embed", body, content_type="application/json")
            assert answer.status == 422


NAMES = (
    "../../../etc/passwd", "..\\..\\windows\\win.ini", "/etc/passwd", "C:\\boot.ini", "CON", "a:b",
    "a\x00b.png", "a\tb\x1b[31m.png", "\u202egnp.exe", "x" * 5000, ".", "..", "", " ", "-rf", "~a",
    "\U0001f98a\u0301.png", "<script>alert(1)</script>.png", "a/../../b", "....//....//", "NUL.png",
    "%2e%2e%2fpasswd", "%00", "{{7*7}}", "${jndi:ldap://x}", "'; DROP TABLE t; --", "\ufeffx",
)  # fmt: skip
PLACES = ("/v1/models/{}", "/v1/models/{}/report", "/v1/galleries/{}", "/v1/jobs/{}", "/{}",
          "/v1/galleries/things/templates/{}/thumbnail", "/v1/pictures/{}", "/static/{}/{}",
          "/v1/pictures/tricks/file?picture={}", "/v1/pictures/tricks/thumbnail?picture={}",
          "/galleries/{}", "/look?set={}", "/login?next={}")  # fmt: skip


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in (*value, *(value.values() if isinstance(value, dict) else ())):
            yield from _texts(one)


def _files(server: Server) -> set[str]:
    """Files of the server, but for those of the set `tricks`."""
    top = Path(server.secrets[0])
    own = top / "data" / "pictures" / "tricks"
    files = (path for path in top.rglob("*") if path.is_file())
    return {str(path) for path in files if not path.is_relative_to(own)}


def test_tricks_in_names(server: Server) -> None:
    server.ask("POST", "/v1/pictures/tricks?identity=a&name=a.png", server.picture,
               content_type="image/png")  # fmt: skip
    before = _files(server)
    for name in NAMES:
        sent = name.replace('"', "").replace("\n", "")
        kind, body = form([("picture", sent, server.picture)])
        answer = server.ask("POST", "/v1/embed", body, content_type=kind)
        assert answer.status in (200, 400, 422), (name, answer)
        if answer.status == 200:
            shown = "\n".join(_texts(json.loads(answer.body)))
            assert not re.search("[/\x00-\x09\x0b-\x1f\u202e]", shown), shown
        once = quote(name, safe="")
        for place, part in itertools.product(PLACES, (once, quote(once, safe=""))):
            answer = server.ask("GET", place.replace("{}", part))
            assert answer.status in (200, 303, 307, 400, 404, 405, 409, 422), (place, answer)
            assert b"root:" not in answer.body
            assert not answer.headers.get("location", "/").startswith(("//", "/\\", "http"))
        for place in ("/v1/pictures/tricks?identity=", "/v1/pictures/tricks?identity=a&name="):
            answer = server.ask("POST", place + once, server.picture, content_type="image/png")
            assert answer.status in (200, 400, 422), (place, name, answer)
        answer = server.ask("POST", "/v1/pictures/tricks", body, content_type=kind)
        assert answer.status in (200, 400, 422), (name, answer)
        if NAME.fullmatch(name) is None:
            made = server.ask("POST", f"/v1/galleries?name={once}", b"")
            assert made.status in (400, 422), (name, made)
    assert _files(server) == before
    for path in ("/static/../../keys.json", "/..%2f..%2fkeys.json", "//etc/passwd", "/.git/config",
                 "/static/%2e%2e/%2e%2e/view.py", "/v1//models", "/v1/models/../../x"):  # fmt: skip
        answer = server.talk(head(server, f"GET {path} HTTP/1.1"))
        assert answer.status == 404, (path, answer)
    log = server.log.read_text()
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", log)
    assert all(json.loads(line) for line in log.splitlines() if line.startswith("{"))


# --- random requests ----------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    *NAMES, 0, -1, 1, 5, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), True, None, [], {}, [[]], {"a": {}}, "nan", "1e5", "things", "run", "null",
    "identity = 'x'", "metadata.a = 1 or 1=1", "(" * 2000, "'" * 999,
)  # fmt: skip


def _resolve(schema: Any, document: Any) -> Any:
    while "$ref" in schema:
        found = document
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        schema = found
    return schema


def _value(random_: random.Random, schema: Any, document: Any, depth: int = 0) -> Any:
    """A value that mostly fits a schema, and sometimes is anything."""
    schema = _resolve(schema, document)
    if random_.random() < 0.3 or depth > 6:
        return random_.choice(ODD)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return _value(random_, random_.choice(schema[key]), document, depth + 1)
    if "enum" in schema:
        return random_.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        names = list(schema.get("properties", {}))
        return {n: _value(random_, schema["properties"][n], document, depth + 1)
                for n in names if random_.random() < 0.8}  # fmt: skip
    if kind == "array":
        return [_value(random_, schema.get("items", {}), document, depth + 1)
                for _ in range(random_.randint(0, 3))]  # fmt: skip
    if kind in ("integer", "number"):
        return random_.choice((0, 1, 2, 0.25, schema.get("minimum", 3), schema.get("maximum", 7)))
    return random_.choice(
        ("things", "run", "thing 0", "a", "latest", base64.b64encode(b"x").decode())
    )


def test_random_requests_by_the_description(server: Server) -> None:
    document = json.loads(server.ask("GET", "/v1/openapi.json").body)
    chance = random.Random(18)
    statuses: dict[str, Counter[int]] = {}
    routes = [(path, method, operation) for path, methods in document["paths"].items()
              for method, operation in methods.items()]  # fmt: skip
    routes.sort(key=lambda route: route[1] == "delete")  # What is deleted is not tried further.
    assert len(routes) > 10
    for (path, method, operation), _ in itertools.product(routes, range(25)):
        if "events" in path or ("/jobs" in path and method == "post"):
            continue  # Streams do not end; jobs are processes of their own.
        place, query, headers = path, [], {}
        for one in operation.get("parameters", ()):
            value = str(_value(chance, one.get("schema", {}), document))
            if one["in"] == "path":
                place = place.replace(f"{{{one['name']}}}", quote(value, safe="") or "x")
            elif one["in"] == "query" and chance.random() < 0.6:
                query.append(f"{quote(one['name'])}={quote(value, safe='')}")
        body: bytes | None = None
        if method in ("post", "put", "patch"):
            kinds = operation.get("requestBody", {}).get("content", {}) or {"application/json": {}}
            kind = chance.choice(sorted(kinds))
            headers["content_type"] = kind
            schema = kinds[kind].get("schema", {})
            if kind == "multipart/form-data":
                names = list(_resolve(schema, document).get("properties", {"picture": {}}))
                parts = [(name, str(chance.choice(NAMES)).replace("\n", ""),
                          chance.choice((server.picture, b"", b"x" * 99, png(4, 4))))
                         for name in names for _ in range(chance.randint(0, 2))]  # fmt: skip
                headers["content_type"], body = form(parts)
            elif kind == "application/json":
                value = _value(chance, schema, document)
                try:
                    body = json.dumps(value).encode("utf-8", "surrogatepass")
                except ValueError:
                    body = b"{}"
            else:
                body = chance.choice((server.picture, b"", chance.randbytes(500)))
            if chance.random() < 0.1:
                body = chance.randbytes(chance.randint(0, 3000))
        address = place + ("?" + "&".join(query) if query else "")
        role = chance.choice(("read", "enrol", "admin", "admin"))
        answer = server.ask(method.upper(), address, body, role, **headers)
        statuses.setdefault(f"{method.upper()} {path}", Counter())[answer.status] += 1
    for route, counts in sorted(statuses.items()):
        print(route, dict(counts))


def _pages() -> list[tuple[str, str]]:
    """Methods and paths of what the description leaves out."""

    def walk(routes: Any) -> Iterator[Any]:
        for route in routes:
            inner = getattr(route, "original_router", None)
            yield from walk(inner.routes) if inner is not None else (route,)

    routes = walk(create_app(ServiceSettings()).routes)
    return sorted((method, route.path) for route in routes if not route.include_in_schema
                  for method in route.methods)  # fmt: skip


def test_random_requests_to_pages(server: Server) -> None:
    chance = random.Random(19)
    templates = Path(view.__file__).parent / "templates"
    sources = (path.read_text() for path in sorted(templates.glob("*.j2")))
    fields = sorted({name for text in sources for name in re.findall(r'name="(\w+)"', text)})
    pages = _pages()
    assert len(pages) > 30
    assert len(fields) > 10
    values = ("things", "tricks", "run", "thing 0", "1", "a.png", *map(str, ODD))
    for (method, path), _ in itertools.product(pages, range(20)):
        if method == "POST" and re.search("train|audit|groups|faces|import", path):
            continue  # Jobs are processes of their own.
        place = re.sub(r"\{\w+\}", lambda _: quote(chance.choice(values), safe="") or "x", path)
        chosen = {name: chance.choice(values) for name in chance.sample(fields, 8)}
        chosen |= {name: chance.choice(values[:6]) for name in chance.sample(fields, 8)}
        sent = "&".join(f"{name}={quote(value, safe='')}" for name, value in chosen.items())
        headers, body = chance.choice(({}, {"hx_request": "true"})), None
        if method == "GET":
            place += f"?{sent}"
        elif chance.random() < 0.5:
            headers["content_type"], body = "application/x-www-form-urlencoded", sent.encode()
        else:
            files = [(name, chance.choice(NAMES).replace("\n", ""),
                      chance.choice((server.picture, b"", b"x"))) for name in chosen]  # fmt: skip
            headers["content_type"], body = form(files)
        server.ask(method, place, body, chance.choice(("read", "enrol", "admin")), **headers)


def test_noise_picture(server: Server) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(noise).save(file, "PNG")
        content = bytearray(file.getvalue())
    chance = random.Random(0)
    for _ in range(100):
        broken = bytearray(content)
        for _ in range(chance.randint(1, 20)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        answer = server.ask("POST", "/v1/embed", bytes(broken), content_type="image/png")
        assert answer.status in (200, 422)
