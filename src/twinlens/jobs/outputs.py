"""Files that a user has asked for: refused before the work if they cannot be, and never half.

This module does not know what is written.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from twinlens.errors import DataError, TrainingError
from twinlens.files import replacing

__all__ = ["check_new_folder", "check_place", "held", "new_run_folder", "whole_file"]

log = logging.getLogger("twinlens")


def check_place(path: str | Path) -> None:
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


def check_new_folder(
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
def whole_file(path: str | Path) -> Iterator[Path]:
    """A place beside `path`, with the same ending, that becomes `path` once it is written.

    Raises:
        DataError: it cannot be written; nothing is left behind.
    """
    check_place(path)
    path = Path(path).resolve()  # What a link points to is written, and the link stays.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with replacing(path, part):
            yield part
    except (OSError, ValueError) as error:  # Pillow and Arrow say ValueError of a wrong ending.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"cannot write {path}: {reason}") from error


def new_run_folder(name: str) -> Path:
    """Make `runs/NAME`, or `runs/NAME-2` and so on where that is taken.

    Of two that ask at the same moment each gets its own.

    Raises:
        TrainingError: it cannot be made.
    """
    top = Path("runs")
    try:
        top.mkdir(exist_ok=True)
        for number in count(1):
            folder = top / (name if number == 1 else f"{name}-{number}")
            with suppress(FileExistsError):
                folder.mkdir()
                break
    except OSError as error:
        raise TrainingError(f"cannot make the run folder: {error}") from error
    return folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a run's folder, which need not be there yet, from others that would train in it.

    Meanwhile `.NAME.lock` lies beside it. Where none can be made, or the file system knows no
    locks, nobody is kept from it.

    Raises:
        TrainingError: somebody else holds it.
    """
    place = folder.resolve()
    file = place.parent / f".{place.name}.lock"
    lock = FileLock(file, timeout=0)
    with ExitStack() as after:
        try:
            made = [above for above in place.parents if not above.exists()]
            place.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            after.callback(_give_up, lock, file, made)
        except Timeout as error:
            raise TrainingError(
                f"another training is at work in {folder}: wait for its end, or name another --out"
            ) from error
        except (OSError, NotImplementedError) as error:
            log.debug("%s is not locked: %s", folder, error)
        yield


def _give_up(lock: FileLock, file: Path, made: Sequence[Path]) -> None:
    # While it is held: a lock on a file that is gone is given up by whoever gets it.
    with suppress(OSError):
        file.unlink()
    lock.release()
    for folder in made:
        with suppress(OSError):  # Something has come of the run.
            folder.rmdir()
