"""The cache of twinlens: downloads and unpacked archives, complete or not there at all.

A folder is filled under a temporary name and then renamed, so that an interrupted download or
extraction leaves no incomplete folder.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from twinlens.errors import ConfigError, DataError
from twinlens.files import creating_folder, expand_user, is_full

__all__ = ["cache_folder", "cache_limit", "create_once", "download_once", "unpack_once"]

TIMEOUT = 30.0
"""Seconds without an answer of the host."""


def cache_folder() -> Path:
    """The folder of downloads and unpacked archives: $TWINLENS_CACHE, or ~/.cache/twinlens."""
    folder = os.environ.get("TWINLENS_CACHE")
    return expand_user(folder) if folder else Path.home() / ".cache" / "twinlens"


def cache_limit() -> int | None:
    """Bytes that decoded pictures may take, by $TWINLENS_CACHE_GIB; None if it is not set.

    Raises:
        ConfigError: the variable holds no number of GiB.
    """
    text = os.environ.get("TWINLENS_CACHE_GIB")
    try:
        limit = int(float(text) * 2**30) if text else None
    except (ValueError, OverflowError):
        limit = -1
    if limit is not None and limit < 0:
        raise ConfigError(
            f"TWINLENS_CACHE_GIB is {text!r}: give the GiB that decoded pictures may take"
        )
    return limit


def create_once(target: Path, fill: Callable[[Path], None]) -> Path:
    """`target`, created by `fill` if missing.

    `fill` receives an empty folder on the same disk, which is then renamed to `target`.

    Raises:
        DataError: the folder cannot be created. Errors of `fill` are passed on.
    """
    if target.is_dir():
        return target
    advice = "name another folder in the environment variable TWINLENS_CACHE"
    try:
        with creating_folder(target, f"the cache {target.parent}", advice) as part:
            fill(part)
    except (OSError, DataError):
        if not target.is_dir():  # Otherwise another process has created the same content.
            raise
    return target


def download_once(name: str, urls: Sequence[str], fill: Callable[[Path], None], hint: str) -> Path:
    """The cached download `name`, fetched by `fill` if missing.

    Args:
        name: name of the cached folder.
        urls: addresses that `fill` downloads, for the error message.
        fill: function that downloads into the given folder.
        hint: alternative to the download, for the error message.
    Raises:
        DataError: a host cannot be reached, or the data are invalid; one line.
    """

    def fill_with_timeout(folder: Path) -> None:
        try:
            with _socket_timeout(TIMEOUT):
                fill(folder)
        except (OSError, RuntimeError, http.client.HTTPException, zipfile.BadZipFile) as error:
            if is_full(error):
                raise  # No fault of the download.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"cannot download {name} from {' or '.join(urls)} ({reason}): {hint}"
            ) from error

    return create_once(cache_folder() / "downloads" / name, fill_with_timeout)


def unpack_once(archives: Sequence[Path], name: str) -> Path:
    """The cached folder with the content of some zip files, unpacked once for each content.

    Args:
        archives: zip files.
        name: prefix of the name of the cached folder; part of their SHA-256 follows.
    Raises:
        DataError: a file cannot be read, or is not a zip.
    """
    digest = hashlib.sha256()
    try:
        for archive in sorted(archives):
            with archive.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise DataError(f"cannot read {archive}: {error.strerror}") from error

    def fill(folder: Path) -> None:
        for archive in sorted(archives):
            try:
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(folder)
            except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
                raise DataError(
                    f"{archive} is not a complete zip file ({error}): download it again"
                ) from error
            except OSError as error:
                raise DataError(f"cannot unpack {archive} to {folder.parent}: {error}") from error

    return create_once(cache_folder() / "unpacked" / f"{name}-{digest.hexdigest()[:16]}", fill)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # torchvision opens URLs without a timeout: a silent host would block for minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
