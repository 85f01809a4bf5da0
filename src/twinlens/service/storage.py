"""Storage of the service: its folder, and what a full disk answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinlens.errors import DataError
from twinlens.files import is_full
from twinlens.service.errors import ServiceError
from twinlens.service.settings import ServiceSettings

__all__ = ["data_folder", "storing"]


def data_folder(settings: ServiceSettings, kind: str) -> Path:
    """The folder of picture sets, runs, galleries or jobs, which is made if missing.

    Raises:
        ServiceError: the service only answers (409), or the folder cannot be made (507).
    """
    if settings.data is None:
        raise ServiceError(409, "the service only answers: start it with --data FOLDER")
    folder = settings.data / kind
    if not folder.is_dir():
        with storing():
            folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def storing() -> Iterator[None]:
    """Answer a full disk with 507.

    Raises:
        ServiceError: nothing more can be written (507).
    """
    try:
        yield
    except (OSError, DataError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and is_full(cause):
            raise ServiceError(
                507, "the disk of the service is full: free some space, and send this again",
                "disk_full",
            ) from error  # fmt: skip
        raise
