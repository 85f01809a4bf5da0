"""`twinlens serve`: start the service."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
import ssl
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.supervisors.multiprocess import SIGNALS, Multiprocess

from twinlens.errors import ConfigError, DataError, TwinlensError
from twinlens.machine import num_threads
from twinlens.service.app import create_app
from twinlens.service.connections import Connection
from twinlens.service.galleries import Galleries
from twinlens.service.keys import Keys
from twinlens.service.logs import log, log_config
from twinlens.service.metrics import shared_by_workers
from twinlens.service.models import Models
from twinlens.service.settings import Limits, ServiceSettings

__all__ = ["serve"]

SHUTDOWN_SECONDS = 10  # for requests in progress; event streams end at once
MAX_FILES = 2**16
SILENT_SECONDS = 30  # a worker that is silent for longer is replaced
ENDED = "requests in progress were answered; the same command serves again"


def serve(
    *,
    model: str | Path | None = None,
    galleries: Sequence[str] = (),
    data: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: str | Path | None = None,
    certificate: str | Path | None = None,
    private_key: str | Path | None = None,
    workers: int = 1,
    device: str = "auto",
    requests_a_minute: int = 0,
) -> None:
    """Serve models and galleries by HTTP, with a page, until it is stopped.

    Args:
        model: folder of a model or of a run.
        galleries: folders or addresses of galleries.
        data: folder for picture sets, runs, galleries and jobs that are made by HTTP or the page.
        host: address to listen at; other machines reach it only at another one, which needs keys.
        port: port to listen at; 0 for a free one.
        keys: file of keys, see `twinlens keys`.
        certificate: file of the TLS certificate chain.
        private_key: file of the certificate's private key.
        workers: number of processes.
        device: computes embeddings, as in `twinlens.load`.
        requests_a_minute: limit for each key, or each address without keys; 0 for none.
    Raises:
        ConfigError: nothing to serve, an address that needs keys or cannot be listened at, or a bad
            certificate.
        ModelError: no model, or a damaged one.
        GalleryError: no gallery, or a damaged one.
        KeyboardInterrupt: the end, by SIGINT; by other signals where these raise it.
    """
    settings = ServiceSettings(
        model=model, galleries=tuple(galleries), data=data, host=host, port=port, keys=keys,
        certificate=certificate, private_key=private_key, workers=workers, device=device,
        limits=_limits(workers, requests_a_minute),
    )  # fmt: skip
    _check(settings)
    with _listening(host, port) as listener:
        scheme = "http" if certificate is None else "https"
        print(f"serving at {scheme}://{_authority(listener)}", flush=True)
        try:
            _run(settings, listener)
        except SystemExit as error:  # uvicorn logged the reason.
            raise TwinlensError("the service could not start: the lines before say why") from error
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(ENDED) from error


def _limits(workers: int, requests_a_minute: int) -> Limits:
    """Limits of one process of several, which share the cores."""
    slots = max(1, num_threads() // max(1, workers))
    return Limits(requests_a_minute=requests_a_minute, slots=slots)


def _run(settings: ServiceSettings, listener: socket.socket) -> None:
    config = uvicorn.Config(
        "twinlens.service.app:worker_app" if settings.workers > 1 else create_app(settings),
        factory=settings.workers > 1, workers=settings.workers, log_config=log_config(),
        ssl_certfile=settings.certificate, ssl_keyfile=settings.private_key, access_log=False,
        server_header=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS, ws="none", lifespan="on",
        timeout_worker_healthcheck=SILENT_SECONDS,
        http=partial(Connection, limits=settings.limits),  # type: ignore[arg-type]
    )  # fmt: skip
    _allow_files()
    if settings.workers == 1:
        uvicorn.Server(config).run([listener])
        return
    settings.to_environment()
    with shared_by_workers():
        _Workers(config, [listener]).run()


def _allow_files() -> None:
    """Let processes open as many files as the system allows: each connection is one."""
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Workers(Multiprocess):
    """Worker processes, which are started again when they end.

    SIGINT, SIGTERM and SIGHUP end the service, a second one at once; signals that are ignored, as
    by nohup, stay so.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        super().__init__(config, sockets)
        for number, old in self._before.items():
            if old is signal.SIG_IGN:
                signal.signal(number, old)
        self._ended_by: int | None = None

    def run(self) -> None:
        super().run()
        for number, old in self._before.items():
            signal.signal(number, old)
        if self._ended_by is None:
            raise SystemExit(1)  # A worker could not start.
        signal.raise_signal(self._ended_by)

    def handle_signals(self) -> None:
        ends = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
        self._ended_by = next((n for n in self.signal_queue if n in ends), self._ended_by)
        super().handle_signals()

    def handle_hup(self) -> None:
        self.should_exit.set()

    def terminate_all(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # Workers end when their parent does.
        super().terminate_all()

    def keep_subprocess_alive(self) -> None:
        before = list(self.processes)
        super().keep_subprocess_alive()
        for old, new in zip(before, self.processes, strict=True):
            if old is not new and old.pid is not None:
                mark_process_dead(old.pid)  # type: ignore[no-untyped-call]
                log.warning("worker %s ended (%s), %s follows", old.pid, old.exitcode, new.pid)


def _check(settings: ServiceSettings) -> None:
    if settings.model is None and not settings.galleries and settings.data is None:
        raise ConfigError("serve needs --model MODEL, --gallery GALLERY or --data FOLDER")
    if settings.keys is None and not _is_loopback(settings.host):
        raise ConfigError(
            f"--host {settings.host} is reachable from other machines, which needs --keys FILE: "
            "make one with `twinlens keys add FILE --name NAME`"
        )
    if settings.keys is not None:
        Keys(settings.keys)
    _check_certificate(settings.certificate, settings.private_key)
    if settings.data is not None:
        try:
            settings.data.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=settings.data).close()
        except OSError as error:
            raise DataError(f"--data {settings.data} is no writable folder: {error}") from error
    # Here and in each worker: an error here is one line, in a worker a traceback.
    models = Models(settings)
    if settings.model is not None:
        models.get()
    galleries = Galleries(settings, models)
    for name, place in galleries.places().items():
        if place in settings.galleries:
            galleries.get(name)


def _check_certificate(certificate: Path | None, private_key: Path | None) -> None:
    """Refuse files that are no certificate and its key.

    Raises:
        ConfigError: see there.
    """
    if certificate is None:
        if private_key is not None:
            raise ConfigError("--private-key needs --certificate FILE.pem")
        return
    try:
        # An encrypted key would ask for its password at the terminal, once for each worker.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            certificate, private_key, password=lambda: ""
        )
    except FileNotFoundError as error:
        missing = next(file for file in (certificate, private_key) if file and not file.exists())
        raise ConfigError(f"there is no file {missing} for TLS") from error
    except (ssl.SSLError, OSError, ValueError) as error:
        if private_key is None and certificate.is_file():
            text = certificate.read_text(errors="replace")
            if "BEGIN CERTIFICATE" in text and "PRIVATE KEY" not in text:
                raise ConfigError(
                    f"{certificate} holds no private key: name it with --private-key FILE.pem"
                ) from error
        raise ConfigError(
            f"{certificate} and its private key cannot be used for TLS: give a certificate chain "
            f"and its unencrypted key, both in PEM ({error})"
        ) from error


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens: clients that come before the workers are ready wait.

    Raises:
        ConfigError: an unknown address, one of another machine, or a port that is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {host} is no address of this machine") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(_why_no_port(error.errno, host, port)) from error
    listener.set_inheritable(True)
    return listener


def _why_no_port(number: int | None, host: str, port: int) -> str:
    if number == errno.EADDRINUSE:
        return f"port {port} of {host} is taken: choose another with --port, or 0 for a free one"
    if number in (errno.EACCES, errno.EPERM):
        return f"port {port} needs more rights: choose one above 1023 with --port"
    return f"--host {host} is no address of this machine ({os.strerror(number or 0)})"


def _authority(listener: socket.socket) -> str:
    """Host and port for a browser."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
