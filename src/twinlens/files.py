"""Atomic output: files and folders appear complete or not at all; output paths are checked first.

This module does not know what is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinlens.errors import DataError

__all__ = [
    "check_output_file",
    "check_output_folder",
    "creating_folder",
    "expand_user",
    "replacing_file",
    "write_text",
    "writing_file",
]  # fmt: skip


def expand_user(path: str | Path) -> Path:
    """The path with a home folder in place of ~; a user that there is not stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises)


@contextmanager
def replacing_file(path: Path, part: Path) -> Iterator[Path]:
    """Write `part`, which lies beside `path` and takes its place once it is written.

    Whatever goes wrong, `path` stays what it was, and `part` is removed (but for kill -9).
    """
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def creating_folder(folder: Path, place: str, advice: str) -> Iterator[Path]:
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


def check_output_file(path: str | Path) -> None:
    """Refuse, before any work is done, a file that could not be written after it.

    Raises:
        DataError: its folder is not there or closed to us, or it is a folder or a device itself.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"cannot write {path}: it is a folder, and a file is needed")
    if path.exists() and not path.is_file():  # Renaming would take the place of /dev/null.
        raise DataError(f"cannot write {path}: it is no ordinary file")
    if not path.parent.is_dir():
        raise DataError(f"cannot write {path}: there is no folder {path.parent}, make it first")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"cannot write {path}: no permission to write into {path.parent}")


def check_output_folder(
    out: Path, holds: str, source: Path | None = None, taken_for: str = "pictures"
) -> Path:
    """`out`, if it is new or empty, and not among the pictures that it comes from.

    Args:
        out: the folder that is to be made.
        holds: what it will hold, in words.
        source: the folder that is read, if it is one.
        taken_for: what its files would be taken for below `source`.
    Raises:
        DataError: it is something else.
    """
    if out.is_symlink() or out.is_mount() or out.resolve() == Path.cwd():
        raise DataError(
            f"{out} is a link, a mounted disk or the folder you are in, whose place the new folder "
            "cannot take: name a folder in it"
        )
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: name a new folder for {holds}")
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} is not empty: name another folder for {holds}, or remove it")
    if source is not None and out.resolve().is_relative_to(source.resolve()):
        raise DataError(
            f"{out} lies in {source}, and would be taken for {taken_for} next time: name a "
            "folder outside of it"
        )
    return out


@contextmanager
def writing_file(path: str | Path) -> Iterator[Path]:
    """A place beside `path`, with the same ending, that becomes `path` once it is written.

    Raises:
        DataError: it cannot be written; nothing is left behind.
    """
    check_output_file(path)
    path = Path(path).resolve()  # What a link points to is written, and the link stays.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with replacing_file(path, part):
            yield part
    except (OSError, ValueError) as error:  # Pillow and Arrow say ValueError of a wrong ending.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"cannot write {path}: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it, so that it is never seen half."""
    with replacing_file(path, path.with_name(f"{path.name}.part")) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
