"""Hosts, origins, headers, and limits of bodies, without a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from twinlens.service.app import create_app
from twinlens.service.bodies import BodyLimits
from twinlens.service.errors import ServiceError, error_body, public_text
from twinlens.service.rates import TokenBuckets
from twinlens.service.security import local_path
from twinlens.service.settings import Limits, ServiceSettings
from twinlens.service.uploads import client_name

LIMITS = Limits(body_bytes=1000, picture_bytes=500, memory_bytes=1500, body_seconds=0.05)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = ServiceSettings(data=tmp_path_factory.mktemp("data"), limits=LIMITS)
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8000") as client:
        yield client


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# --- who is answered ---


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.1.2.3", "[::1]:8000", "a.localhost"]
)
def test_local_hosts_without_keys(client: TestClient, host: str) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "0.0.0.0",
     "0x7f.1", "[::1].evil.example", "localhost@evil.example", "a b"],
)  # fmt: skip
def test_a_rebound_name_is_refused(client: TestClient, host: str) -> None:
    for path in ("/v1/models", "/", "/v1/health", "/login"):
        assert code(client.get(path, headers={"host": host})) == (403, "foreign_host")


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9"},
     {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
     {"origin": "http://127.0.0.1:8000.evil.example"}],
)  # fmt: skip
def test_another_site_changes_nothing(client: TestClient, headers: dict[str, str]) -> None:
    for method, path in (("POST", "/v1/embed"), ("DELETE", "/v1/models/a"), ("POST", "/login")):
        assert code(client.request(method, path, headers=headers)) == (403, "foreign_origin")


def test_the_own_page_may_change(client: TestClient) -> None:
    own = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert client.delete("/v1/models/a", headers=own).status_code == 404
    assert client.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 200


def test_a_service_without_keys_needs_no_login(client: TestClient) -> None:
    answer = client.get("/login?next=/look", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/look")


@pytest.mark.parametrize(
    "text", ["//a", "/\\a", "http://a", "javascript:1", "", "a", "/a\r\nb", "\\\\a", "/\ta"]
)
def test_a_login_leads_nowhere_else(text: str) -> None:
    assert local_path(text) == "/"


# --- headers ---


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/nothing", "/login", "/v1/openapi.json"])
def test_headers_of_every_answer(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=(self)" in headers["permissions-policy"]
    assert not {"server", "access-control-allow-origin", "strict-transport-security"} & set(headers)


def test_no_other_origin_may_read(client: TestClient) -> None:
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = client.options("/v1/embed", headers=asked)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


# --- bodies ---


def test_bodies_beyond_a_limit(client: TestClient) -> None:
    for path in ("/v1/embed", "/v1/verify", "/login", "/v1/nothing"):
        assert code(client.post(path, content=bytes(1001))) == (413, "too_large")
    kind = {"content-type": "image/png"}
    chunked = client.post("/v1/embed", content=iter([bytes(400)] * 3), headers=kind)
    assert code(chunked) == (413, "too_large")
    assert code(client.post("/v1/embed", content=bytes(501), headers=kind)) == (413, "too_large")
    assert client.post("/v1/embed", content=bytes(500), headers=kind).status_code == 404


@pytest.mark.parametrize(
    ("charset", "status"),
    [("", 400), ("; charset=UTF-8", 400), ('; charset="utf-8"', 400), ("; Charset=utf-7", 415),
     ("; charset=unicode_escape", 415), ("; charset=utf-8; charset*=idna", 415)],
)  # fmt: skip
def test_charsets_of_forms(client: TestClient, charset: str, status: int) -> None:
    kind = {"content-type": f"multipart/form-data; boundary=b{charset}"}
    assert client.post("/v1/embed", content=b"x", headers=kind).status_code == status


def _messages(*parts: bytes, pause: float = 0.0) -> Any:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        number = next(numbers)
        return {"type": "http.request", "body": parts[number], "more_body": number + 1 < len(parts)}

    numbers = iter(range(len(parts)))
    return receive


async def _sent(app: Any, *parts: bytes, pause: float = 0.0, length: str = "") -> tuple[int, str]:
    answers: list[Any] = []

    async def send(message: Any) -> None:
        answers.append(message)

    headers = [(b"content-length", length.encode())] if length else []
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    await app(scope, _messages(*parts, pause=pause), send)
    return answers[0]["status"], json.loads(answers[1]["body"])["error"]["code"]


def test_memory_and_time_of_all_bodies() -> None:
    going = asyncio.Event()

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        try:
            while (await receive())["more_body"]:
                pass
        except ServiceError as error:
            body = json.dumps(error_body(error.code, error.message, "r")).encode()
            await send({"type": "http.response.start", "status": error.status})
            await send({"type": "http.response.body", "body": body})
            return
        await going.wait()

    async def ask() -> None:
        app = BodyLimits(handler, LIMITS)
        assert await _sent(app, b"", length="1001") == (413, "too_large")
        assert await _sent(app, b"a" * 600, b"a" * 600) == (413, "too_large")
        assert await _sent(app, *[b"a"] * 20, pause=0.02) == (408, "too_slow")
        scope = {"type": "http", "headers": []}
        holding = asyncio.ensure_future(app(scope, _messages(b"a" * 900), None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert await _sent(app, b"", length="700") == (503, "busy")
        assert await _sent(app, b"a" * 300, b"a" * 400) == (503, "busy")
        going.set()
        await holding
        assert await _sent(app, *[b"a" * 300] * 4) == (413, "too_large")

    asyncio.run(ask())


def test_odd_lengths_are_no_fault(client: TestClient) -> None:
    for length in ("99999999999999999999", "²"):
        answer = client.post("/v1/embed", content=b"", headers={"content-length": length.encode()})
        assert answer.status_code in (404, 413, 422)


def test_errors_can_be_encoded_whatever_was_sent(client: TestClient) -> None:
    text = error_body("c", "lone \ud800\nline", "r")["error"]["message"]
    assert text.encode() == b"lone \\ud800\\nline"
    kind = {"content-type": "application/json"}
    answer = client.post("/v1/embed", content=b'{"\\udfff": "eA=="}', headers=kind)
    assert code(answer) == (422, "invalid_value")


@pytest.mark.parametrize(
    ("message", "shown"),
    [("the model /srv/a b/x is", "the model a b/x is"), ("no /etc/passwd", "no passwd"),
     ("see https://example.org/a/b", "see https://example.org/a/b"),
     ("a/b of C:/users/x/y.png", "a/b of y.png")],
)  # fmt: skip
def test_no_path_of_the_server(message: str, shown: str) -> None:
    assert public_text(message) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [("../../a.png", "a.png"), ("C:\\b\\a.png", "a.png"), ("a\x00b", "a\\x00b"), ("a/", ""),
     ("\ud800.png", "?.png"), ("\u202egnp", "\\u202egnp")],
)  # fmt: skip
def test_names_of_uploads(name: str, shown: str) -> None:
    assert client_name(name) == shown
    assert len(client_name("x" * 9999)) == 255


def test_rates_of_many_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinlens.service.rates.MAX_NAMES", 10)
    clock = 0.0
    monkeypatch.setattr("twinlens.service.rates.time.monotonic", lambda: clock)
    buckets = TokenBuckets(6)
    assert [buckets.take("a") for _ in range(8)] == [0] * 6 + [10, 10]
    clock = 9.0
    assert buckets.take("a") == 1
    clock = 10.0
    assert buckets.take("a") == 0
    for number in range(100):
        buckets.take(str(number))
    assert len(buckets._buckets) == 10
