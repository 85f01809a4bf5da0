"""`twinlens serve`: start the service."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from twinlens.errors import ConfigError
from twinlens.service.settings import Limits, ServiceSettings

__all__ = ["serve"]

SHUTDOWN_SECONDS = 10  # for requests in progress; event streams end at once


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
        port: port to listen at.
        keys: file of keys, see `twinlens keys`.
        certificate: file of the TLS certificate chain.
        private_key: file of the certificate's private key.
        workers: number of processes.
        device: computes embeddings, as in `twinlens.load`.
        requests_a_minute: limit for each key, or each address without keys; 0 for none.
    Raises:
        ConfigError: nothing to serve, or an address that needs keys.
        ModelError: no model, or a damaged one.
        GalleryError: no gallery, or a damaged one.
    """
    settings = ServiceSettings(
        model=model, galleries=tuple(galleries), data=data, host=host, port=port, keys=keys,
        certificate=certificate, private_key=private_key, workers=workers, device=device,
        limits=Limits(requests_a_minute=requests_a_minute),
    )  # fmt: skip
    _check(settings)
    settings.to_environment()
    uvicorn.run(
        "twinlens.service.app:worker_app", factory=True, host=host, port=port, workers=workers,
        ssl_certfile=certificate, ssl_keyfile=private_key, access_log=False, server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS, h11_max_incomplete_event_size=2**16,
    )  # fmt: skip


def _check(settings: ServiceSettings) -> None:
    if settings.model is None and not settings.galleries and settings.data is None:
        raise ConfigError("serve needs --model MODEL, --gallery GALLERY or --data FOLDER")
    if settings.keys is None and not _is_loopback(settings.host):
        raise ConfigError(
            f"--host {settings.host} is reachable from other machines, which needs --keys FILE: "
            "make one with `twinlens keys add`"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
