"""Files that are there whole or not at all. This module does not know what is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


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
