"""Atomic output: files and folders appear complete or not at all; output paths are checked first.

Everything is written into a part: a temporary folder `.NAME.part-MACHINE-RANDOM` beside its place,
which holds a locked file `lock` and the new file or folder. Its content is renamed once it is
written. A killed process leaves its part behind, and the next one that writes there deletes it.

This module is independent of the content that is written.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinlens.errors import DataError, TwinlensError, first_line

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "check_output_file",
    "check_output_folder",
    "creating_folder",
    "expand_user",
    "is_full",
    "part_beside",
    "save_picture",
    "sweep_parts",
    "write_text",
    "writing_errors",
    "writing_file",
]  # fmt: skip

PART = re.compile(r"\..+\.part-([0-9a-f]{8}-)?[a-z0-9_]{8}", re.DOTALL)
LOCK, WHOLE, OLD = "lock", "whole", "old"  # the content of a part
LONGEST = 100  # bytes of NAME in the name of a part
DAY = 24 * 3600.0

ADVICE: Mapping[int | None, str] = {
    errno.ENOSPC: "free some space or name another place, and run this again",
    errno.EDQUOT: "free some space or name another place, and run this again",
    errno.EFBIG: "raise the limit of a file's size (see ulimit -f), or name another place",
}
RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def expand_user(path: str | Path) -> Path:
    """The path with ~ replaced by the home folder; the ~name of an unknown user stays."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises)


@contextmanager
def writing_file(path: str | Path) -> Iterator[Path]:
    """A temporary path with the same extension, whose file becomes `path` once it is written.

    Raises:
        DataError: the file cannot be written; `path` is as before, and nothing is left behind.
    """
    check_output_file(path)
    with writing_errors(path):
        path = Path(os.path.realpath(path))  # The target of a link is written, and the link stays.
        with part_beside(path) as beside:
            part = beside / f"{WHOLE}{path.suffix}"
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())  # Some file systems report a full disk only here.
            part.replace(path)


@contextmanager
def creating_folder(
    folder: Path, location: str, advice: str, *, replace: bool = False
) -> Iterator[Path]:
    """Fill a temporary folder, which is then renamed to `folder`.

    If filling fails, `folder` stays unchanged and nothing is left behind (except after kill -9).

    Args:
        folder: folder to create; missing or empty, unless `replace`.
        location: name of the surrounding folder in the error message.
        advice: remedy in the error message.
        replace: whether to replace a folder with content.
    Raises:
        DataError: the surrounding folder is not writable, the disk is full, or `folder` was filled
            by another process in the meantime.
    """
    with ExitStack() as stack:
        try:
            stack.callback(_remove_empty, [p for p in folder.parents if not p.exists()])
            folder.parent.mkdir(parents=True, exist_ok=True)
            beside = stack.enter_context(part_beside(folder))
            part = beside / WHOLE
            part.mkdir()  # With default permissions; `beside` has 0700.
        except (OSError, ValueError) as error:
            raise DataError(f"cannot write to {location} ({_cause(error)}): {advice}") from error
        try:
            yield part
            if replace and folder.exists():
                folder.rename(beside / OLD)
                stack.callback(_restore, beside / OLD, folder)
            elif folder.is_dir():
                folder.rmdir()
            part.rename(folder)
        except OSError as error:
            name = error.filename
            inside = name is not None and Path(os.fsdecode(name)).is_relative_to(beside)
            if not (name is None or inside or name == str(folder) or is_full(error)):
                raise  # A picture that cannot be read.
            place = folder / Path(os.fsdecode(name)).relative_to(part) if inside else folder
            raise DataError(f"cannot write {place}: {_reason(error)}") from error


@contextmanager
def part_beside(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to write `path` into; locked, and deleted at the end.

    Raises:
        OSError: the surrounding folder is not writable.
    """
    from filelock import FileLock, Timeout  # Slow to import.

    sweep_parts(path.parent)
    name = os.fsdecode(os.fsencode(path.name)[:LONGEST])
    for _ in range(100):
        part = Path(tempfile.mkdtemp(prefix=f".{name}.part-{_machine()}-", dir=path.parent))
        lock = FileLock(part / LOCK, timeout=0)
        try:
            lock.acquire()  # Makes the folder again if it was swept.
            is_swept = not (part / LOCK).exists()
        except Timeout:  # A sweep examines it.
            is_swept = True
        except (OSError, NotImplementedError):  # Not every file system has locks.
            is_swept = not part.is_dir()
        if not is_swept:
            break
        lock.release()
    try:
        with suppress(OSError):
            part.chmod(0o700)
        yield part
    finally:
        lock.release()
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def writing_errors(path: str | Path) -> Iterator[None]:
    """Raise a failure to write as a `DataError` that names the file.

    Failures are `OSError`, `ValueError` (Pillow and Arrow: a wrong extension) and safetensors' own.
    """
    from safetensors import SafetensorError  # No time at the start for those who write nothing.

    try:
        yield
    except TwinlensError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"cannot write {path}: {_reason(error)}") from error


def is_full(error: Exception) -> bool:
    """Whether nothing more can be written there: a full disk, a quota, a limit, read-only."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    return _error_number(error) in full


def sweep_parts(folder: Path) -> None:
    """Delete the parts that killed processes left in a folder.

    The lock decides whether a process of this machine still writes one. A part of another machine,
    on a network disk, is deleted a day after the last write.
    """
    for part in folder.glob(".*.part-*"):
        with suppress(OSError):  # Another process may delete it at the same time.
            if not PART.fullmatch(part.name) or not part.is_dir():
                continue
            if f".part-{_machine()}-" in part.name and not (part / LOCK).exists():
                with suppress(OSError):  # Not empty.
                    part.rmdir()  # Killed before it was locked; a living process makes it again.
            if part.exists():
                _sweep(part)


def _sweep(part: Path) -> None:
    """Delete a part that no process writes any more."""
    from filelock import FileLock, Timeout

    if f".part-{_machine()}-" in part.name and (part / LOCK).exists():
        try:
            with FileLock(part / LOCK, timeout=0):  # Held, so that no process locks it meanwhile.
                shutil.rmtree(part, ignore_errors=True)
            if os.name == "nt":  # Windows deletes no open file.
                shutil.rmtree(part, ignore_errors=True)
            return
        except Timeout:
            return
        except (OSError, NotImplementedError):
            pass  # A file system without locks.
    written = [part.lstat().st_mtime, *(entry.lstat().st_mtime for entry in part.rglob("*"))]
    if time.time() - max(written) >= DAY:
        shutil.rmtree(part, ignore_errors=True)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # Not empty, or never made.
            folder.rmdir()


def _restore(old: Path, folder: Path) -> None:
    """Put a replaced folder back if nothing took its place."""
    if not folder.exists():
        old.rename(folder)


def _machine() -> str:
    """Eight hexadecimal digits that stand for this machine."""
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    rust = RUST_ERROR.search(str(error))
    return None if rust is None else int(rust[1])


def _cause(error: Exception) -> str:
    number = _error_number(error)
    return first_line(error) if number is None else os.strerror(number)


def _reason(error: Exception) -> str:
    advice = ADVICE.get(_error_number(error))
    return _cause(error) if advice is None else f"{_cause(error)}; {advice}"


def check_output_file(path: str | Path) -> None:
    """Check before any work that a file can be written.

    Raises:
        DataError: its folder is missing or not writable, or the path is a folder or a device.
    """
    path = Path(path)
    with writing_errors(path):  # A name that is too long.
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
    with writing_errors(out):
        place = Path(os.path.realpath(out))  # Path.resolve() raises at a loop of links.
        if out.is_symlink() or out.is_mount() or place == Path.cwd():
            raise DataError(
                f"{out} is a link, a mount point or the current folder, which a new folder cannot "
                "replace: name a folder inside it"
            )
        if out.exists() and not out.is_dir():
            raise DataError(f"{out} is a file: name a new folder for {content}")
        if out.is_dir() and any(out.iterdir()):
            raise DataError(f"{out} is not empty: name another folder for {content}, or remove it")
    if source is not None and place.is_relative_to(os.path.realpath(source)):
        raise DataError(
            f"{out} lies in {source}, where its files would be read as {source_content} next time: "
            "name a folder outside of it"
        )
    return out


def save_picture(picture: Image.Image, path: Path, **options: Any) -> None:
    """Save a picture in the format of the path's extension.

    Pillow overlooks that a disk fills up in its last block, and leaves a cut file without an error.
    It therefore writes to memory here.

    Args:
        picture: picture to save.
        path: new file.
        options: options of `Image.save`.
    Raises:
        OSError: the file cannot be written.
        ValueError: the extension is no format of pictures.
    """
    stream = io.BytesIO()
    stream.name = str(path)  # Pillow reads the extension of it.
    picture.save(stream, **options)
    path.write_bytes(stream.getbuffer())


def write_text(path: Path, text: str) -> None:
    """Write a text file, so that it is never incomplete."""
    with writing_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
