"""Commits that survive a loss of power: data reaches the disk before the manifest that names it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Durable", "fsync"]


class Durable:
    """Lance enters this before it writes a manifest, and leaves it after.

    Before: the data that the manifest will name is told to reach the disk. After: the manifest.
    So a manifest that survives a loss of power never names data that did not.
    """

    def __init__(self, table: Path) -> None:
        self._table = table
        self._synced: set[str] = set()

    @contextlib.contextmanager
    def __call__(self, version: int) -> Iterator[None]:
        """Around the commit of a version."""
        found: set[str] = set()
        for folder in ("data", "_deletions", "_indices", "_transactions"):
            self._sync(self._table / folder, found)
        yield
        self._synced = found
        # Manifests are named so that the newest is first; a hint at it is written again each time.
        versions = self._table / "_versions"
        for path in [min(versions.glob("*.manifest")), *versions.glob("*.json"), versions]:
            fsync(path)
        fsync(self._table)

    def _sync(self, folder: Path, found: set[str]) -> None:
        if not folder.is_dir():
            return
        names = set()
        with os.scandir(folder) as entries:
            for entry in entries:
                names.add(entry.path)
                if entry.is_dir():
                    self._sync(Path(entry.path), found)
                elif entry.path not in self._synced:
                    fsync(entry.path)
        if names - self._synced:
            fsync(folder)
        found |= names


def fsync(path: str | Path) -> None:
    """Tell a file, or a folder's list of names, to reach the disk, and wait for it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
