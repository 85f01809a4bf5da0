"""Where a gallery may be, what lies there, and what went wrong there, in words.

A place is a folder or an address in an object store. Lance has few classes of errors, and names
lines of its own source; `told` makes one of ours of them.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from lance.file import LanceFileSession

from twinlens.errors import GalleryError, TwinlensError
from twinlens.files import expand_user
from twinlens.gallery.durable import fsync

__all__ = ["LOCKS", "absent", "copy_files", "is_remote", "is_taken", "place_of", "table_of", "told",
           "translated"]  # fmt: skip

TABLE = "templates.lance"
LOCKS = (".lock", ".next")
LOCAL_ADDRESS = re.compile(r"file:(?:/?/?localhost)?(?://)?(/.*)", re.DOTALL)
HALF_ADDRESS = re.compile(r"\w{2,}:/(?!/)")
RUST_PLACE = re.compile(r",?\s*(location: )?\S+\.rs:\d+:\d+")


def is_remote(place: str | Path) -> bool:
    """Whether a gallery's place is an object store's, such as `s3://bucket/faces`."""
    return "://" in str(place) and LOCAL_ADDRESS.fullmatch(str(place)) is None


def place_of(place: str | Path) -> str:
    """A place as it is kept: the full path of a folder, or an address without a slash at its end.

    Raises:
        GalleryError: it is neither, such as `s3:/bucket`.
    """
    text = str(place)
    if is_remote(text):
        return text.rstrip("/")
    if local := LOCAL_ADDRESS.fullmatch(text):
        place = unquote(local[1])
    elif HALF_ADDRESS.match(text):
        kind, _, rest = text.partition(":/")
        raise GalleryError(
            f"{text} is neither a folder nor an address: write {kind}://{rest}, as text and not "
            f"as a pathlib.Path, for an object store, or ./{text} for a folder of that name"
        )
    return str(expand_user(place).absolute())


def table_of(base: str) -> str:
    """Where the Lance table of a place lies."""
    return f"{base}/{TABLE}"


def is_taken(base: str, files: Mapping[str, Path], options: Mapping[str, str] | None) -> bool:
    """Whether anything is there but what a creation that was killed leaves."""
    ours = {*LOCKS, TABLE, *(name.split("/", 1)[0] for name in files)}
    if not is_remote(base):
        folder = Path(base)
        if not folder.is_dir():
            return folder.exists()
        table = any((folder / TABLE / "_versions").glob("*.manifest"))
        return table or any(path.name not in ours for path in folder.iterdir())
    session = LanceFileSession(base, storage_options=None if options is None else dict(options))
    names = session.list()
    table = any(name.startswith(f"{TABLE}/_versions/") for name in names)
    return table or any(name.split("/", 1)[0] not in ours for name in names)


def absent(place: str) -> GalleryError:
    """What to say where there is no gallery."""
    if any((Path(place) / name).is_file() for name in ("model.json", "model/model.json")):
        return GalleryError(
            f"{place} is a model, and a gallery is needed: make one of it with "
            f"`twinlens gallery create GALLERY --model {place}`"
        )
    return GalleryError(
        f"there is no gallery at {place}: make one with "
        f"`twinlens gallery create {place} --model MODEL`"
    )


def copy_files(base: str, files: Mapping[str, Path], options: Mapping[str, str] | None) -> None:
    """Put files below `base`, a folder or an address in an object store, under their names."""
    session = LanceFileSession(base, storage_options=None if options is None else dict(options))
    for name, path in files.items():
        session.upload_file(str(path), name)
        if not is_remote(base):
            target = Path(base) / name
            for place in (target, *target.parents[: len(Path(name).parents)]):
                fsync(place)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Lance's errors, and the system's, as one of ours that starts with `what`."""
    try:
        yield
    except TwinlensError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise translated(error, what) from error


def translated(error: Exception, what: str) -> GalleryError:
    """An error of Lance's as one of ours, without the lines of its source."""
    text = RUST_PLACE.sub("", str(error)).strip().rstrip(",.")
    if "No space left on device" in text or getattr(error, "errno", None) == errno.ENOSPC:
        return GalleryError(f"{what}: the disk is full; make room and do it again")
    if "Invalid user input" in text and "filter" not in what:
        text = text.split("Invalid user input: ", 1)[1]
    return GalleryError(f"{what}: {text.splitlines()[0] if text else type(error).__name__}")
