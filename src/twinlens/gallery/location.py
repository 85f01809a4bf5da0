"""Location of a gallery: a folder or an address in an object store, its files and its errors.

Lance has few classes of errors, and its messages name lines of its source: `gallery_errors` turns
them into a `GalleryError`.
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

__all__ = ["LOCKS", "copy_files", "gallery_error", "gallery_errors", "is_remote", "is_taken",
           "missing_gallery", "normalized", "table_of"]  # fmt: skip

TABLE = "templates.lance"
LOCKS = (".lock", ".next")
LOCAL_ADDRESS = re.compile(r"file:(?:/?/?localhost)?(?://)?(/.*)", re.DOTALL)
HALF_ADDRESS = re.compile(r"\w{2,}:/(?!/)")
RUST_PLACE = re.compile(r",?\s*(location: )?\S+\.rs:\d+:\d+")


def is_remote(place: str | Path) -> bool:
    """Whether a place is an address in an object store, such as `s3://bucket/faces`."""
    return "://" in str(place) and LOCAL_ADDRESS.fullmatch(str(place)) is None


def normalized(place: str | Path) -> str:
    """The full path of a folder, or an address without a slash at its end.

    Raises:
        GalleryError: neither a folder nor an address, such as `s3:/bucket`.
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
    """The Lance table of a place."""
    return f"{base}/{TABLE}"


def is_taken(base: str, files: Mapping[str, Path], options: Mapping[str, str] | None) -> bool:
    """Whether a place holds a gallery, or files other than those of a killed creation."""
    created = {*LOCKS, TABLE, *(name.split("/", 1)[0] for name in files)}
    if not is_remote(base):
        folder = Path(base)
        if not folder.is_dir():
            return folder.exists()
        table = any((folder / TABLE / "_versions").glob("*.manifest"))
        return table or any(path.name not in created for path in folder.iterdir())
    session = LanceFileSession(base, storage_options=None if options is None else dict(options))
    names = session.list()
    table = any(name.startswith(f"{TABLE}/_versions/") for name in names)
    return table or any(name.split("/", 1)[0] not in created for name in names)


def missing_gallery(place: str) -> GalleryError:
    """The error for a place without a gallery."""
    if any((Path(place) / name).is_file() for name in ("model.json", "model/model.json")):
        return GalleryError(
            f"{place} is a model, not a gallery: create a gallery from it with "
            f"`twinlens gallery create GALLERY --model {place}`"
        )
    return GalleryError(
        f"there is no gallery at {place}: create one with "
        f"`twinlens gallery create {place} --model MODEL`"
    )


def copy_files(base: str, files: Mapping[str, Path], options: Mapping[str, str] | None) -> None:
    """Copy files below `base`, a folder or an address in an object store, under their names."""
    session = LanceFileSession(base, storage_options=None if options is None else dict(options))
    for name, path in files.items():
        session.upload_file(str(path), name)
        if not is_remote(base):
            target = Path(base) / name
            for place in (target, *target.parents[: len(Path(name).parents)]):
                fsync(place)


@contextlib.contextmanager
def gallery_errors(task: str) -> Iterator[None]:
    """Raise errors of Lance and of the system as a `GalleryError` that starts with `task`."""
    try:
        yield
    except TwinlensError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise gallery_error(error, task) from error
    except BaseException as error:
        # On Python 3.13 pylance 14 panics if a commit fails, and hides the cause. A panic is no
        # `Exception`.
        if type(error).__name__ != "PanicException":
            raise
        advice = "check the free space and the permissions, and run this again"
        raise GalleryError(f"{task}: the commit failed; {advice}") from error


def gallery_error(error: Exception, task: str) -> GalleryError:
    """The `GalleryError` for an error of Lance, without lines of its source."""
    text = RUST_PLACE.sub("", str(error)).strip().rstrip(",.")
    if "No space left on device" in text or getattr(error, "errno", None) == errno.ENOSPC:
        return GalleryError(f"{task}: the disk is full; free some space and run this again")
    if "Invalid user input" in text and "filter" not in task:
        text = text.split("Invalid user input: ", 1)[1]
    return GalleryError(f"{task}: {text.splitlines()[0] if text else type(error).__name__}")
