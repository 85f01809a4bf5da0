"""Health, readiness, metrics, logs and the process of the service."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from twinlens.cli.main import main
from twinlens.errors import ConfigError, DataError, GalleryError, ModelError
from twinlens.service.app import create_app
from twinlens.service.compute import ComputeQueue
from twinlens.service.errors import ServiceError
from twinlens.service.keys import add_key
from twinlens.service.logs import JsonLines, TextLines
from twinlens.service.run import serve
from twinlens.service.settings import Limits, ServiceSettings
from twinlens.service.state import ServiceState


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    app = create_app(ServiceSettings(data=tmp_path_factory.mktemp("data")))

    @app.get("/broken/{name}")
    async def broken(name: str) -> None:
        raise RuntimeError(f"secret of {name}")

    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


# --- health and readiness ---


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_health_and_ready(client: TestClient, prefix: str) -> None:
    health = client.get(f"{prefix}/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    assert client.get(f"{prefix}/ready").json() == {"status": "ready"}


def test_not_ready_names_the_reasons_and_no_path(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str | None = None) -> None:
        raise ServiceError(404, f"no model in {tmp_path}")

    service = client.app.state.service
    settings = ServiceSettings(model=tmp_path / "gone", data=tmp_path / "gone")
    monkeypatch.setattr(service, "settings", settings)
    monkeypatch.setattr(service.models, "get", missing)
    monkeypatch.setattr(service.queue, "is_stuck", lambda: True)
    monkeypatch.setattr(service, "closing", asyncio.Event())
    service.closing.set()
    answer = client.get("/ready")
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "not_ready"
    for reason in ("the service ends", "queue does not move", "the model cannot be opened",
                   "--data cannot be written"):  # fmt: skip
        assert reason in error["message"]
    assert "gone" not in answer.text
    assert str(tmp_path) not in answer.text


def test_a_queue_is_stuck_while_every_slot_hangs() -> None:
    async def hang() -> tuple[bool, bool, bool]:
        queue, release = ComputeQueue(Limits(slots=1, seconds=0.02)), threading.Event()
        before = queue.is_stuck()
        with pytest.raises(ServiceError, match="no answer"):
            await queue.run(release.wait, 30)
        await asyncio.sleep(0.05)
        during = queue.is_stuck()
        release.set()
        while queue.is_stuck():
            await asyncio.sleep(0.01)
        queue.close()
        return before, during, queue.is_stuck()

    assert asyncio.run(hang()) == (False, True, False)


# --- request ids and logs ---


@pytest.mark.parametrize("given", ["abc-1", "0:1.2_3"])
def test_a_plain_request_id_is_kept(client: TestClient, given: str) -> None:
    answer = client.get("/nothing", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] == given
    assert answer.json()["error"]["request_id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, 'a"b', "\u00e9".encode()])
def test_any_other_request_id_is_replaced(client: TestClient, given: str | bytes) -> None:
    answer = client.get("/health", headers={"x-request-id": given})
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


def test_a_line_for_a_request_names_no_person(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="twinlens.service"):
        client.get("/nothing/anna?identity=anna", headers={"x-request-id": "r1"})
    record = next(record for record in caplog.records if hasattr(record, "facts"))
    text = JsonLines().format(record)
    line = json.loads(text)
    assert {key: line[key] for key in ("request_id", "method", "route", "status", "error")} == {
        "request_id": "r1", "method": "GET", "route": "", "status": 404, "error": "not_found",
    }  # fmt: skip
    assert line["ms"] >= 0
    assert line["bytes"] > 0
    assert "anna" not in text
    assert " GET - 404 not_found " in TextLines().format(record)


def test_lines_for_other_events() -> None:
    record = logging.LogRecord("twinlens.service", logging.WARNING, "", 0, "a %s", ("word",), None)
    assert TextLines().format(record).endswith(" WARNING a word")
    record.facts = {"action": "enrol"}
    assert TextLines().format(record).endswith(" WARNING a word action=enrol")
    assert json.loads(JsonLines().format(record))["action"] == "enrol"


def test_probes_are_not_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="twinlens.service"):
        client.get("/health")
    assert not [record for record in caplog.records if hasattr(record, "facts")]


def test_a_fault_is_a_plain_500_and_a_traceback_in_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.get("/broken/anna", headers={"x-request-id": "r2"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "r2"
    assert answer.json()["error"]["code"] == "internal"
    assert "secret" not in answer.text
    fault = next(record for record in caplog.records if record.exc_info)
    line = json.loads(JsonLines().format(fault))
    assert "RuntimeError: secret of anna" in line["traceback"]
    assert line["request_id"] == "r2"


# --- metrics ---


def test_metrics_count_by_template(client: TestClient) -> None:
    def counts() -> dict[str, float]:
        page = client.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        assert "anna" not in page.text
        rows = (line.rpartition(" ") for line in page.text.splitlines() if line[0] != "#")
        return {name: float(value) for name, _, value in rows}

    def requests(method: str, route: str, status: int) -> str:
        labels = f'method="{method}",route="{route}",status="{status}"'
        return f"twinlens_request_seconds_count{{{labels}}}"

    before = counts()  # Of the whole process.
    for name in ("anna", "bert"):
        client.get(f"/broken/{name}")
    client.request("PROPFIND", "/health")
    after = counts()
    fault = requests("GET", "/broken/{name}", 500)
    assert after[fault] - before.get(fault, 0) == 2
    assert after[requests("other", "/health", 405)] == 1
    code = 'twinlens_errors_total{code="internal"}'
    assert after[code] - before.get(code, 0) == 2
    assert (after["twinlens_queue_length"], after["twinlens_requests_in_progress"]) == (0, 1)


# --- streams at the end of the process ---


def test_a_stream_ends_when_the_process_does(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(3600)
        yield 2

    async def two() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def read() -> tuple[list[int], list[int]]:
        state = ServiceState(ServiceSettings(data=tmp_path))
        whole = [event async for event in state.until_closing(two())]
        asyncio.get_running_loop().call_later(0.05, state.closing.set)
        cut = [event async for event in state.until_closing(endless())]
        state.close()
        return whole, cut

    assert asyncio.run(read()) == ([1, 2], [1])


# --- one line for what cannot start ---


def test_what_cannot_be_served(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken: choose another"):
            serve(data=tmp_path, port=port)
    with pytest.raises(ConfigError, match="is no address of this machine"):
        serve(data=tmp_path, host="192.0.2.1", keys=_key_file(tmp_path), port=0)
    with pytest.raises(ConfigError, match="needs --model MODEL, --gallery GALLERY or --data"):
        serve()
    with pytest.raises(ConfigError, match=r"needs --keys FILE: .*keys add FILE --name NAME"):
        serve(data=tmp_path, host="0.0.0.0")
    with pytest.raises(ModelError):
        serve(model=tmp_path / "missing", port=0)
    with pytest.raises(GalleryError):
        serve(galleries=[str(tmp_path / "missing")], port=0)
    with pytest.raises(DataError, match="is no writable folder"):
        serve(data=_file(tmp_path / "a file", ""), port=0)


def test_bad_certificates(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*none\.pem"):
        serve(data=tmp_path, certificate=tmp_path / "none.pem")
    with pytest.raises(ConfigError, match="cannot be used for TLS: give a certificate chain"):
        serve(data=tmp_path, certificate=_file(tmp_path / "c.pem", "no certificate"))
    only = _file(tmp_path / "only.pem", "-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match="holds no private key: name it with --private-key"):
        serve(data=tmp_path, certificate=only)
    with pytest.raises(ConfigError, match="--private-key needs --certificate"):
        serve(data=tmp_path, private_key=tmp_path / "key.pem")


def test_interrupted_before_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("twinlens.service.run._listening", interrupt)
    assert main(["serve", "--data", str(tmp_path)]) == 130
    assert "nothing was served yet" in capsys.readouterr().err


def _key_file(folder: Path) -> Path:
    add_key(folder / "keys.json", name="app")
    return folder / "keys.json"


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# --- the process ---


@contextmanager
def served(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running service and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "twinlens", "serve", "--port", "0", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().removeprefix("serving at ").strip()
    finally:
        process.kill()
        process.communicate()


def fetch(address: str, context: ssl.SSLContext | None = None) -> str:
    with urllib.request.urlopen(address, timeout=60, context=context) as answer:
        return str(answer.read().decode())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_ends_one_process(tmp_path: Path, number: int, code: int) -> None:
    # Where tests run in the background, they ignore SIGINT, and so would the service.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with served("--data", str(tmp_path)) as (process, address):
        assert "ok" in fetch(f"{address}/health")
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors.splitlines()[-1].startswith("twinlens: interrupted: requests in progress were")
    assert "Traceback" not in errors


@pytest.mark.slow
def test_workers_share_metrics_and_are_replaced(tmp_path: Path) -> None:
    with served("--data", str(tmp_path), "--workers", "2") as (process, address):
        for _ in range(20):
            fetch(f"{address}/health")
        worker = _children(process.pid)[0]
        subprocess.run(["kill", "-9", str(worker)], check=True)
        deadline = time.monotonic() + 60
        while worker in _children(process.pid) or len(_children(process.pid)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for _ in range(20):
            fetch(f"{address}/health")
        page = fetch(f"{address}/metrics")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    counted = 'twinlens_request_seconds_count{method="GET",route="/health",status="200"} 40.0'
    assert counted in page
    assert f"worker {worker} ended (-9)" in errors
    assert process.returncode == 143


def _children(parent: int) -> list[int]:
    """Worker processes; multiprocessing's tracker is no worker."""
    table = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True
    ).stdout
    return [int(row.split()[0]) for row in table.splitlines() if "spawn_main" in row]


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with served("--data", str(tmp_path), "--workers", "2") as (process, address):
        fetch(f"{address}/health")
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        host, port = address.removeprefix("http://").split(":")
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except ConnectionRefusedError:
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.slow
def test_tls(tmp_path: Path) -> None:
    certificate, key = _own_certificate(tmp_path)
    words = ["--data", str(tmp_path), "--certificate", str(certificate), "--private-key", str(key)]
    with served(*words) as (_, address):
        assert address.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(certificate))
        assert "ok" in fetch(f"{address}/health", context)


def _own_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1, and its key."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return folder / "certificate.pem", folder / "key.pem"
