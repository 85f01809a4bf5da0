"""Durable and private commits: data reaches the disk before the manifest that names it.

No file of a gallery is open to more users than the gallery's folder, which is created with 0700.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Durable", "fsync", "permissions", "restrict", "restrict_hint"]


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
        mode = permissions(self._table.parent)
        for folder in ("data", "_deletions", "_indices", "_transactions"):
            self._sync(self._table / folder, paths, mode)
        yield
        self._synced = paths
        # The newest manifest sorts first; the hint at it (JSON) is rewritten each time.
        versions = self._table / "_versions"
        for path in [min(versions.glob("*.manifest")), *versions.glob("*.json"), versions]:
            restrict(path, mode)
            fsync(path)
        restrict(self._table, mode)
        fsync(self._table)

    def _sync(self, folder: Path, paths: set[str], mode: int) -> None:
        if not folder.is_dir():
            return
        names = set()
        with os.scandir(folder) as entries:
            for entry in entries:
                names.add(entry.path)
                if entry.is_dir():
                    self._sync(Path(entry.path), paths, mode)
                elif entry.path not in self._synced:
                    restrict(entry.path, mode)
                    fsync(entry.path)
        if names - self._synced:
            restrict(folder, mode)
            fsync(folder)
        paths |= names


def permissions(folder: str | Path) -> int:
    """The permission bits of a folder, which are the most that its content may have."""
    return stat.S_IMODE(Path(folder).stat().st_mode) & 0o777


def restrict(path: str | Path, mode: int) -> None:
    """Take all permission bits but those of `mode` from a file or folder that this user owns."""
    if os.name != "posix":
        return
    path = Path(path)
    status = path.lstat()
    present = stat.S_IMODE(status.st_mode)
    if present & 0o777 & ~mode and status.st_uid == os.geteuid() and not path.is_symlink():
        path.chmod(present & (mode | ~0o777))


def restrict_hint(table: Path) -> None:
    """`restrict` the hint at the newest version, which Lance writes after the commit lock."""
    hint = table / "_versions" / "latest_version_hint.json"
    if hint.exists():
        restrict(hint, permissions(table.parent))


def fsync(path: str | Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
