"""Durable commits: data reaches the disk before the manifest that names it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Durable", "fsync"]


class Durable:
    """Commit lock for Lance, which enters it before it writes a manifest and leaves it after.

    On entry the data that the manifest will name is flushed to the disk, on exit the manifest. So
    after a loss of power no manifest names data that is lost.
    """

    def __init__(self, table: Path) -> None:
        self._table = table
        self._synced: set[str] = set()

    @contextlib.contextmanager
    def __call__(self, version: int) -> Iterator[None]:
        """Flush before and after the commit of a version."""
        paths: set[str] = set()
        for folder in ("data", "_deletions", "_indices", "_transactions"):
            self._sync(self._table / folder, paths)
        yield
        self._synced = paths
        # The newest manifest sorts first; the hint at it (JSON) is rewritten each time.
        versions = self._table / "_versions"
        for path in [min(versions.glob("*.manifest")), *versions.glob("*.json"), versions]:
            fsync(path)
        fsync(self._table)

    def _sync(self, folder: Path, paths: set[str]) -> None:
        if not folder.is_dir():
            return
        names = set()
        with os.scandir(folder) as entries:
            for entry in entries:
                names.add(entry.path)
                if entry.is_dir():
                    self._sync(Path(entry.path), paths)
                elif entry.path not in self._synced:
                    fsync(entry.path)
        if names - self._synced:
            fsync(folder)
        paths |= names


def fsync(path: str | Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
