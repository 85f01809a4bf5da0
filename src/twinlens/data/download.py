"""Folders that appear whole or not at all: downloads and unpacked archives in twinlens's cache.

A folder is filled beside its place and then renamed, so that a killed download or extraction
leaves nothing half. This module does not know what the folders hold.
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

from twinlens.errors import DataError
from twinlens.files import creating_folder, expand_user

__all__ = ["cache_folder", "create_once", "download_once", "unpack_once"]

PATIENCE = 30.0
"""Seconds that a silent host is waited for."""


def cache_folder() -> Path:
    """Where downloads and unpacked archives are kept: $TWINLENS_CACHE, or ~/.cache/twinlens."""
    named = os.environ.get("TWINLENS_CACHE")
    return expand_user(named) if named else Path.home() / ".cache" / "twinlens"


def create_once(target: Path, fill: Callable[[Path], None]) -> Path:
    """`target`, after `fill` has made it if it was not there.

    `fill` is given an empty folder on the same disk, which is renamed to `target` at the end.

    Raises:
        DataError: the folder cannot be made; whatever `fill` raises is passed on.
    """
    if target.is_dir():
        return target
    advice = "name another folder in the environment variable TWINLENS_CACHE"
    try:
        with creating_folder(target, f"the cache {target.parent}", advice) as part:
            fill(part)
    except OSError:
        if not target.is_dir():  # Else another process was faster, with the same content.
            raise
    return target


def download_once(name: str, urls: Sequence[str], fill: Callable[[Path], None], hint: str) -> Path:
    """The cached download `name`, which `fill` fetches if it is not there yet.

    Args:
        name: a folder below the cache.
        urls: what `fill` will ask for, to be named if it fails.
        fill: downloads into the folder that it is given.
        hint: how to give a copy instead.
    Raises:
        DataError: a host cannot be reached, or what it sends is not the data; one line.
    """

    def patiently(folder: Path) -> None:
        try:
            with _patience(PATIENCE):
                fill(folder)
        except (OSError, RuntimeError, http.client.HTTPException, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"cannot download {name} from {' or '.join(urls)} ({reason}): {hint}"
            ) from error

    return create_once(cache_folder() / "downloads" / name, patiently)


def unpack_once(archives: Sequence[Path], name: str) -> Path:
    """A cached folder with the content of some zips, unpacked once for each content.

    Args:
        archives: zip files; they are read only.
        name: what the cached folder is called, before a part of the archives' SHA-256.
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
                raise DataError(f"{archive} is not a whole zip file ({error})") from error
            except OSError as error:
                raise DataError(f"cannot unpack {archive} to {folder.parent}: {error}") from error

    return create_once(cache_folder() / "unpacked" / f"{name}-{digest.hexdigest()[:16]}", fill)


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    # torchvision opens its URLs without a timeout: a silent host would hang for minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
