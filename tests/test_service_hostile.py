"""Hostile clients of a real server on loopback: what comes back, and that it still answers.

Each test ends with a normal request, and with a look at the memory and the log of the server.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import itertools
import json
import random
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from conftest import TinyRun
from PIL import Image

from twinlens.gallery.gallery import Gallery
from twinlens.service.app import create_app
from twinlens.service.keys import add_key
from twinlens.service.pages import view
from twinlens.service.settings import NAME, Limits, ServiceSettings

pytestmark = pytest.mark.slow

PROMISED = {400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 431, 501, 503}
LIMITS = Limits(
    body_bytes=8 * 2**20, picture_bytes=4 * 2**20, memory_bytes=64 * 2**20, header_seconds=3,
    body_seconds=4, seconds=20, connections=400, slots=2, queue=8,
)  # fmt: skip
SCRIPT = """
import sys
from twinlens.service.run import _listening, _run
from twinlens.service.settings import ServiceSettings
with _listening("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    _run(ServiceSettings.model_validate_json(sys.argv[1]), listener)
"""
STARVED = {0, 408}  # on a busy machine, where a client takes seconds to send or to read
GROWTH = 400 * 2**20  # bytes that the server may take above a quiet one: bodies and decoding


@dataclass
class Answer:
    """An answer; status 0 if the server closed the connection without one."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """A running server.

    Attributes:
        process: its process.
        port: on loopback.
        keys: texts of keys by role.
        log: file of its standard error.
        secrets: paths that no answer may show.
        picture: a PNG that it can verify.
    """

    process: subprocess.Popen[str]
    port: int
    keys: dict[str, str]
    log: Path
    secrets: tuple[str, ...]
    picture: bytes

    def memory(self, name: str = "VmRSS") -> int:
        """Bytes of the process, now or (VmHWM) at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) * 1024

    def ask(
        self, method: str, path: str, body: Any = None, role: str = "admin", **headers: str
    ) -> Answer:
        """The answer to a well-formed request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            if role:
                sent["x-api-key"] = self.keys[role]
            connection.putrequest(method, path, skip_host="host" in sent)
            if body is not None and "content-length" not in sent:
                sent["content-length"] = str(len(body))
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return self.checked(
                Answer(response.status, response.read(),
                       {name.lower(): value for name, value in response.getheaders()})
            )  # fmt: skip
        finally:
            connection.close()

    def talk(self, *parts: bytes, pause: float = 0.0, seconds: float = 20.0) -> Answer:
        """The answer to bytes, which are sent with pauses; it must come within some seconds."""
        end = time.monotonic() + seconds
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as client:
            received = b""
            try:
                for part in parts:
                    client.sendall(part)
                    time.sleep(pause)
                while chunk := client.recv(2**16):
                    received += chunk
                    if _is_whole(received):
                        break
                    assert time.monotonic() < end, "the server hangs"
            except (ConnectionError, BrokenPipeError):
                with suppress(OSError):
                    received += client.recv(2**16)
        return self.checked(_parsed(received))

    def checked(self, answer: Answer) -> Answer:
        """The answer, if it is one of those that are promised."""
        if answer.status == 0 or 200 <= answer.status < 400:
            return answer
        assert answer.status in PROMISED, (answer.status, answer.body[:500])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
        text = answer.body.decode()
        assert not [secret for secret in self.secrets if secret in text], text
        assert "Traceback" not in text
        if answer.headers["content-type"].startswith("text/html"):  # A page.
            return answer
        error = json.loads(answer.body)["error"]
        assert set(error) == {"code", "message", "request_id"}
        assert error["message"]
        assert error["request_id"]
        assert answer.headers["content-type"] == "application/json"
        return answer

    def verify(self) -> Answer:
        """A normal request."""
        kind, body = form([("a", "a.png", self.picture), ("b", "b.png", self.picture)])
        return self.ask("POST", "/v1/verify", body, "read", content_type=kind)


def _is_whole(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(separator) and length is not None and len(body) >= int(length[1])


def _parsed(received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not lines[0].startswith("HTTP/1.1 "):
        return Answer(0, received)
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
    return Answer(int(lines[0].split()[1]), body, headers)


def form(parts: list[tuple[str, str, bytes]], boundary: str = "x1y2z3") -> tuple[str, bytes]:
    """Type and body of a multipart form; its names are sent as they are."""
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode("utf-8", "surrogatepass") + content + b"\r\n"
        for name, file, content in parts
    )  # fmt: skip
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()


def png(height: int, width: int) -> bytes:
    """A PNG of zeros of any claimed size, in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(min(height * (width // 8 + 1), 2**24)), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)
            + chunk(b"IEND", b""))  # fmt: skip


@pytest.fixture(scope="module")
def server(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    top = tmp_path_factory.mktemp("served-here")
    keys = {role: add_key(top / "keys.json", name=role, role=role).key
            for role in ("read", "enrol", "admin")}  # fmt: skip
    place = top / "data" / "galleries" / "things"
    place.parent.mkdir(parents=True)
    Gallery.create(str(place), model=tiny_run.run).enrol(tiny_run.data)
    settings = ServiceSettings(
        model=tiny_run.run, data=top / "data", keys=top / "keys.json", limits=LIMITS
    )
    log = top / "log"
    picture = (tiny_run.data / "thing 0" / "0.png").read_bytes()
    with log.open("w") as file, subprocess.Popen(
        [sys.executable, "-c", SCRIPT, settings.model_dump_json()],
        stdout=subprocess.PIPE, stderr=file, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            secrets = (str(top), str(tiny_run.run), "site-packages")
            server = Server(process, port, keys, log, secrets, picture)
            assert server.verify().status == 200
            yield server
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _still_well(server: Server) -> Iterator[None]:
    """The server answers after each test, has no fault in its log, and has given back memory."""
    before, written = server.memory(), server.log.stat().st_size
    yield
    for _ in range(100):
        answer = server.verify()
        if answer.status != 503:
            break
        time.sleep(0.2)
    assert answer.status == 200, answer.body
    assert server.ask("GET", "/v1/ready").status == 200
    assert server.process.poll() is None
    log = server.log.read_text()[written:]
    assert "Traceback" not in log, log[-3000:]
    assert not [key for key in server.keys.values() if key in log]
    assert server.memory() - before < GROWTH


HOST = b"Host: 127.0.0.1\r\n"


def head(server: Server, line: str, *more: str) -> bytes:
    """A request line and headers with a key."""
    return "\r\n".join(
        (line, "Host: 127.0.0.1", f"x-api-key: {server.keys['admin']}", *more, "", "")
    ).encode("latin-1")


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
                if _is_whole(received):
                    break
        except ConnectionError:
            pass
        writer.close()
        return server.checked(_parsed(received))

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
