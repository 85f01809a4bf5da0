"""A real server on loopback, and clients of it, for tests of the service."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import TinyRun

from twinlens.gallery.gallery import Gallery
from twinlens.service.keys import add_key
from twinlens.service.settings import Limits, ServiceSettings

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
                    if is_whole(received):
                        break
                    assert time.monotonic() < end, "the server hangs"
            except (ConnectionError, BrokenPipeError):
                with suppress(OSError):
                    received += client.recv(2**16)
        return self.checked(parsed(received))

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


def is_whole(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(separator) and length is not None and len(body) >= int(length[1])


def parsed(received: bytes) -> Answer:
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


def start(tiny_run: TinyRun, top: Path) -> Iterator[Server]:
    """A server of the tiny model and of a gallery, with keys, until the iterator is closed."""
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


def stay_well(server: Server) -> Iterator[None]:
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
