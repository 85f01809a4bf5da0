"""Files that are there whole or not at all, and what a path with ~ means.

This module does not know what is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["expanded", "replacing"]


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
