"""Atomic output: files and folders appear complete or not at all; output paths are checked first.

This module is independent of the content that is written.
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
    """The path with ~ replaced by the home folder; the ~name of an unknown user stays."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises)


@contextmanager
def replacing_file(path: Path, part: Path) -> Iterator[Path]:
    """Write `part`, a file beside `path`, which replaces `path` once it is written.

    If writing fails, `path` stays unchanged and `part` is removed (except after kill -9).
    """
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def creating_folder(folder: Path, location: str, advice: str) -> Iterator[Path]:
    """Fill a temporary folder beside `folder`, which is then renamed to it.

    If filling fails, `folder` stays unchanged and nothing is left behind (except after kill -9).

    Args:
        folder: folder to create; missing or empty.
        location: name of the surrounding folder in the error message.
        advice: remedy in the error message.
    Raises:
        DataError: the surrounding folder is not writable.
        OSError: `folder` was filled by another process in the meantime.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.part-")
    except OSError as error:
        raise DataError(f"cannot write to {location} ({error.strerror}): {advice}") from error
    with beside as name:
        part = Path(name) / "whole"  # A new folder with default permissions; `beside` has 0700.
        part.mkdir()
        yield part
        if folder.is_dir():
            folder.rmdir()
        part.rename(folder)


def check_output_file(path: str | Path) -> None:
    """Check before any work that a file can be written.

    Raises:
        DataError: its folder is missing or not writable, or the path is a folder or a device.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"cannot write {path}: it is a folder; give the name of a file")
    if path.exists() and not path.is_file():  # Renaming would replace /dev/null.
        raise DataError(f"cannot write {path}: it is not a regular file")
    if not path.parent.is_dir():
        raise DataError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"cannot write {path}: no permission to write into {path.parent}")


def check_output_folder(
    out: Path, content: str, source: Path | None = None, source_content: str = "pictures"
) -> Path:
    """`out`, if it is new or empty and lies outside of `source`.

    Args:
        out: output folder.
        content: content of `out`, for the error message.
        source: input folder, if the input is a folder.
        source_content: content of `source`, for the error message.
    Raises:
        DataError: `out` is unusable.
    """
    if out.is_symlink() or out.is_mount() or out.resolve() == Path.cwd():
        raise DataError(
            f"{out} is a link, a mount point or the current folder, which a new folder cannot "
            "replace: name a folder inside it"
        )
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: name a new folder for {content}")
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} is not empty: name another folder for {content}, or remove it")
    if source is not None and out.resolve().is_relative_to(source.resolve()):
        raise DataError(
            f"{out} lies in {source}, where its files would be read as {source_content} next time: "
            "name a folder outside of it"
        )
    return out


@contextmanager
def writing_file(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path`, with the same extension, that becomes `path` once written.

    Raises:
        DataError: the file cannot be written; nothing is left behind.
    """
    check_output_file(path)
    path = Path(path).resolve()  # The target of a link is written, and the link stays.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with replacing_file(path, part):
            yield part
    except (
        OSError,
        ValueError,
    ) as error:  # Pillow and Arrow raise ValueError for a wrong extension.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"cannot write {path}: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file and rename it into place, so that it is never incomplete."""
    with replacing_file(path, path.with_name(f"{path.name}.part")) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
