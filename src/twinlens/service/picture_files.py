"""Files of a picture set: written whole, found by their content, and placed side by side.

See `picture_sets` for the folder's layout.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from twinlens.data.picture_file import picture_suffixes
from twinlens.service.errors import ServiceError

__all__ = ["KNOWN", "MARK_LENGTH", "PARTS", "THUMBNAILS", "UNSORTED", "claim_content",
           "copy_beside", "delete_picture", "known_copy", "picture_suffix", "place_file",
           "remove_empty",
           "temporary_file", "thumbnail_path", "write_picture"]  # fmt: skip

UNSORTED, KNOWN, THUMBNAILS, PARTS = ".unsorted", ".known", ".thumbnails", ".parts"
MARK_LENGTH = 12


def picture_suffix(name: str, form: str) -> str:
    """The extension of a stored picture, one that the readers of folders know."""
    own, of_format = PurePosixPath(name).suffix.lower(), f".{form.lower()}"
    return next((one for one in (own, of_format) if one in picture_suffixes()), ".jpg")


def known_copy(folder: Path, digest: str) -> Path | None:
    """The first picture with these bytes, if it is there."""
    with suppress(OSError):
        path = folder / KNOWN / (folder / KNOWN / digest).readlink()
        path = Path(os.path.normpath(path))
        return path if path.is_file() else None
    return None


def claim_content(folder: Path, digest: str, path: Path) -> Path:
    """Make a picture the first with these bytes; returns the first one."""
    link, goal = folder / KNOWN / digest, os.path.relpath(path, folder / KNOWN)
    with suppress(FileExistsError):
        link.symlink_to(goal)
        return path
    known = known_copy(folder, digest)
    if known is not None and known.parent.name != UNSORTED:
        return known
    with temporary_file(folder, "") as part:
        part.symlink_to(goal)
        part.replace(link)
    return path


def copy_beside(target: Path, digest: str) -> Path | None:
    """A picture with these bytes in the folder of another, if there is one."""
    return next(iter(target.parent.glob(f"*~{digest[:MARK_LENGTH]}.*")), None)


def write_picture(folder: Path, target: Path, content: bytes) -> None:
    """Write a file that appears complete."""
    with temporary_file(folder, target.suffix) as part:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # Some file systems report a full disk only here.
        place_file(part, target)


def place_file(source: Path, target: Path) -> None:
    """Rename a file; a folder that another process has just removed is made again."""
    for _ in range(3):
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            source.replace(target)
            return
    raise ServiceError(409, "the picture was changed by another request: try again")


@contextmanager
def temporary_file(folder: Path, suffix: str) -> Iterator[Path]:
    """A path for a file in the making."""
    (folder / PARTS).mkdir(exist_ok=True)
    part = folder / PARTS / f"{secrets.token_hex(8)}{suffix}"
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def thumbnail_path(folder: Path, path: Path) -> Path:
    """The place of a file's thumbnail; it stays the same if the file is renamed."""
    status = path.stat()
    return folder / THUMBNAILS / f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}.jpg"


def delete_picture(folder: Path, path: Path) -> None:
    """Delete a picture, its thumbnail, and the folder that it leaves empty."""
    thumbnail_path(folder, path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    remove_empty(path.parent)


def remove_empty(folder: Path) -> None:
    """Delete the folder of an identity without pictures."""
    if folder.name != UNSORTED:
        with suppress(OSError):  # Not empty.
            folder.rmdir()
