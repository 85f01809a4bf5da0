"""Hostile clients of a real server on loopback: what comes back, and that it still answers.

Each test ends with a normal request, and with a look at the memory and the log of the server.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest
from conftest import TinyRun
from hostile_server import (
    GROWTH,
    HOST,
    LIMITS,
    Answer,
    Server,
    form,
    head,
    is_whole,
    parsed,
    png,
    start,
    stay_well,
)

pytestmark = pytest.mark.slow

STARVED = {0, 408}  # on a busy machine, where a client takes seconds to send or to read


@pytest.fixture(scope="module")
def server(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from start(tiny_run, tmp_path_factory.mktemp("served-here"))


@pytest.fixture(autouse=True)
def _still_well(server: Server) -> Iterator[None]:
    yield from stay_well(server)


# --- sizes --------------------------------------------------------------------------------------


def test_large_bodies(server: Server) -> None:
    large = LIMITS.body_bytes + 1
    announced = head(server, "POST /v1/embed HTTP/1.1", f"Content-Length: {large}")
    assert server.talk(announced).status == 413
    assert server.talk(announced, bytes(2**20)).status == 413
    absurd = head(server, "POST /v1/embed HTTP/1.1", "Content-Length: 9999999999999999999")
    assert server.talk(absurd).status in (400, 413)
    chunked = head(server, "POST /v1/embed HTTP/1.1", "Transfer-Encoding: chunked")
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    assert server.talk(chunked, *[chunk] * 9, b"0\r\n\r\n").status == 413
    for path in ("/v1/verify", "/v1/identify", "/v1/models", "/login", "/v1/nothing"):
        assert (
            server.talk(head(server, f"POST {path} HTTP/1.1", f"Content-Length: {large}")).status
            == 413
        )
    kind, body = form([("picture", "a.png", bytes(LIMITS.picture_bytes + 1))])
    assert server.ask("POST", "/v1/embed", body, content_type=kind).status == 413
    text = b'{"picture": "' + b"A" * (LIMITS.body_bytes - 100) + b'"}'
    answer = server.ask("POST", "/v1/embed", text, content_type="application/json")
    assert answer.status == 413


def test_a_refused_body_is_not_awaited_for_long(server: Server) -> None:
    """The rest of the body is read for some seconds, so that its sender can read the answer."""
    announced = head(server, "POST /v1/embed HTTP/1.1", "Content-Length: 99999999")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(announced)
        start = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < start + 20:
                client.sendall(bytes(100))
                time.sleep(0.1)
        assert 4 < time.monotonic() - start < 15


def test_large_headers_and_addresses(server: Server) -> None:
    line = "GET /v1/models HTTP/1.1"
    assert server.talk(head(server, line, f"X-A: {'a' * 40_000}")).status == 431
    assert server.talk(head(server, line, *[f"X-{i}: 1" for i in range(6000)])).status == 431
    assert server.talk(head(server, f"GET /{'a' * 40_000} HTTP/1.1")).status == 431
    assert server.talk(head(server, f"GET /v1/models?{'a=1&' * 5000} HTTP/1.1")).status < 500
    endless = [b"X-B: " + b"b" * 1000 + b"\r\n"] * 100
    assert server.talk(head(server, line)[:-2], *endless).status in (0, 431)
    chunked = head(server, "POST /v1/embed HTTP/1.1", "Transfer-Encoding: chunked")
    trailers = [b"X-C: " + b"c" * 1000 + b"\r\n"] * 100
    assert server.talk(chunked, b"1\r\na\r\n0\r\n", *trailers).status in (0, 408, 422, 431)
    extension = b"1;" + b"e" * 100_000
    assert server.talk(chunked, extension).status in (0, 400, 408, 431)


def test_pictures_that_unpack_to_much(server: Server) -> None:
    for size in ((30_000, 30_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)):
        content = png(*size)
        assert len(content) < 100_000
        answer = server.ask("POST", "/v1/embed", content, content_type="image/png")
        assert answer.status == 422, (size, answer.body)
    start = time.monotonic()
    allowed = server.ask("POST", "/v1/embed", png(9_000, 9_000), content_type="image/png")
    assert allowed.status in (200, 422)
    assert time.monotonic() - start < 15


def test_many_fields_and_pictures(server: Server) -> None:
    many = [("picture", f"{i}.png", b"x") for i in range(LIMITS.pictures + 1)]
    kind, body = form(many)
    assert server.ask("POST", "/v1/embed", body, content_type=kind).status in (400, 422)
    fields = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nx\r\n' % i for i in range(20_000)
    )
    kind = "multipart/form-data; boundary=b"
    assert server.ask("POST", "/v1/embed", fields + b"--b--", content_type=kind).status in (
        400,
        422,
    )
    listed = json.dumps({"picture": ["eA=="] * 100_000}).encode()
    assert server.ask("POST", "/v1/embed", listed, content_type="application/json").status == 422
    deep = b'{"picture": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert server.ask("POST", "/v1/embed", deep, content_type="application/json").status == 422
    number = b'{"picture": ' + b"9" * 1_000_000 + b"}"
    assert server.ask("POST", "/v1/embed", number, content_type="application/json").status == 422


# --- time ---------------------------------------------------------------------------------------


def test_slow_clients(server: Server) -> None:
    start = time.monotonic()
    assert server.talk(b"").status == 0  # Nothing is sent: closed.
    assert server.talk(b"GET /v1/models HTT", seconds=10).status == 408
    drops = [bytes([byte]) for byte in head(server, "GET /v1/models HTTP/1.1")]
    assert server.talk(*drops[:60], pause=0.1, seconds=30).status in (0, 408)
    begun = head(server, "POST /v1/embed HTTP/1.1", "Content-Length: 1000")
    assert server.talk(begun, seconds=10).status == 408
    assert server.talk(begun, *[b"a"] * 60, pause=0.1, seconds=30).status in (0, 408)
    expecting = head(
        server, "POST /v1/nothing HTTP/1.1", "Content-Length: 10", "Expect: 100-continue"
    )
    assert server.talk(expecting, seconds=10).status == 404
    assert time.monotonic() - start < 40


def test_clients_that_never_read(server: Server) -> None:
    clients = []
    for _ in range(50):
        client = socket.create_connection(("127.0.0.1", server.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(head(server, "GET /v1/openapi.json HTTP/1.1") * 20)
        clients.append(client)
    time.sleep(1)
    assert server.verify().status == 200
    for client in clients:
        client.close()


# --- many at once -------------------------------------------------------------------------------


async def _at_once(server: Server, requests: list[bytes]) -> list[Answer]:
    async def one(sent: bytes) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        received = b""
        try:
            writer.write(sent)
            await writer.drain()
        except ConnectionError:  # The answer may have come before.
            pass
        try:
            while chunk := await reader.read(2**16):
                received += chunk
                if is_whole(received):
                    break
        except ConnectionError:
            pass
        writer.close()
        return server.checked(parsed(received))

    return await asyncio.wait_for(asyncio.gather(*map(one, requests)), 120)


def test_a_thousand_at_once(server: Server) -> None:
    kind, body = form([("a", "a.png", server.picture), ("b", "b.png", server.picture)])
    lines = [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    request = head(server, "POST /v1/verify HTTP/1.1", *lines) + body
    statuses = Counter(one.status for one in asyncio.run(_at_once(server, [request] * 1000)))
    assert set(statuses) <= {200, 503} | STARVED, statuses
    assert statuses[200] > 0


def test_a_thousand_large_bodies_at_once(server: Server) -> None:
    before = server.memory("VmHWM")
    content = bytes(300_000)
    request = head(server, "POST /v1/embed HTTP/1.1", f"Content-Length: {len(content)}") + content
    statuses = Counter(one.status for one in asyncio.run(_at_once(server, [request] * 1000)))
    assert set(statuses) <= {422, 503} | STARVED, statuses
    assert server.memory("VmHWM") - before < GROWTH


def test_a_thousand_slow_ones_at_once(server: Server) -> None:
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(150)]
    for client in clients:
        client.sendall(b"GET /v1/mo")
    assert server.verify().status == 200  # Places are left.
    clients += [socket.create_connection(("127.0.0.1", server.port)) for _ in range(450)]
    assert server.verify().status in (200, 503)
    time.sleep(1.5)  # They are idle now, and make place.
    assert [server.verify().status for _ in range(20)] == [200] * 20
    time.sleep(LIMITS.header_seconds)
    assert server.verify().status == 200
    for client in clients:
        client.close()


# --- keys ---------------------------------------------------------------------------------------


def test_wrong_keys(server: Server) -> None:
    for path in ("/", "/v1/models", "/v1/openapi.json", "/metrics", "/v1/nothing", "/look"):
        assert server.ask("GET", path, role="").status == 401
    kind, body = form([("a", "a.png", server.picture)])
    refused = Counter(
        server.ask(
            "POST", "/v1/verify", body, role="", content_type=kind, x_api_key=f"tl_{i}"
        ).status
        for i in range(60)
    )
    assert set(refused) == {401, 429}
    assert 15 <= refused[401] <= 25
    late = server.ask("GET", "/v1/models", role="", x_api_key="x")
    assert late.status == 429
    assert int(late.headers["retry-after"]) >= 1
    assert server.verify().status == 200  # A right key still passes.
    for odd in ("Bearer", "Bearer  ", "Basic QTpC", "Bearer \xe4", "bearer " + "x" * 9000):
        assert server.ask("GET", "/v1/models", role="", authorization=odd).status in (401, 429)
    for cookie in ("a.b.c", "..", "a" * 5000, "YWRtaW4=.99999999999.00", "YWRtaW4=.x.00"):
        sent = f"twinlens_session={cookie}"
        assert server.ask("GET", "/v1/models", role="", cookie=sent).status == 401
    assert server.ask("DELETE", "/v1/models/run", role="read").status == 403


# --- malformed ----------------------------------------------------------------------------------


def test_malformed_http(server: Server) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b"\r\n" * 50_000,
        b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"G\x00T / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://[ HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    ):  # fmt: skip
        assert server.talk(garbage, seconds=10).status in (0, 400, 401, 403, 404, 405, 408, 431)
    for line in ("Content-Length: -1", "Content-Length: 1, 2", "Content-Length: x"):
        assert server.talk(head(server, "POST /v1/embed HTTP/1.1", line)).status == 400
    both = ("Content-Length: 3", "Transfer-Encoding: chunked")
    assert server.talk(head(server, "POST /v1/embed HTTP/1.1", *both), b"abc").status == 400
    chunked = head(server, "POST /v1/embed HTTP/1.1", "Transfer-Encoding: chunked")
    for chunk in (b"zz\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"1\r\nabc"):
        assert server.talk(chunked, chunk, seconds=10).status in (0, 400, 408)
    split = head(server, "GET /v1/models HTTP/1.1", "x-request-id: a\r\nX-Other: b")
    assert server.talk(split).status == 200
