"""Files and folders that are there whole or not at all, and what a path with ~ means.

This module does not know what is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinlens.errors import DataError

__all__ = ["appearing", "expanded", "replacing"]


def expanded(path: str | Path) -> Path:
    """The path with a home folder in place of ~; a user that there is not stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises)


@contextmanager
def replacing(path: Path, part: Path) -> Iterator[Path]:
    """Write `part`, which lies beside `path` and takes its place once it is written.

    Whatever goes wrong, `path` stays what it was, and `part` is removed (but for kill -9).
    """
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def appearing(folder: Path, place: str, advice: str) -> Iterator[Path]:
    """Fill a folder that lies beside `folder` and takes its place, or that of an empty one there.

    Whatever goes wrong, `folder` stays what it was, and nothing is left (but for kill -9).

    Args:
        folder: what appears.
        place: what the error calls the folder around it.
        advice: what the error says to do.
    Raises:
        DataError: nothing can be written there.
        OSError: something has taken the place in the meantime.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.part-")
    except OSError as error:
        raise DataError(f"cannot write to {place} ({error.strerror}): {advice}") from error
    with beside as name:
        part = Path(name) / "whole"  # With a new folder's permissions; `beside` is 0700.
        part.mkdir()
        yield part
        if folder.is_dir():
            folder.rmdir()
        part.rename(folder)
