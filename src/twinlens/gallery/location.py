"""Location of a gallery: a folder or an address in an object store, its files and its errors.

Lance has few classes of errors, and its messages name lines of its source: `gallery_errors` turns
them into a `GalleryError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from lance.file import LanceFileSession

from twinlens.errors import GalleryError, TwinlensError, one_line
from twinlens.files import expand_user, part_beside, sweep_parts
from twinlens.gallery.durable import fsync, permissions, restrict
from twinlens.model.stored import FINGERPRINT, GALLERY_MODELS, MODEL_FILES
from twinlens.model.training_record import RECORD_FILE

__all__ = ["LOCKS", "READ_ERRORS", "check_content", "check_free", "copy_files", "delete_model",
           "galleries_inside", "gallery_error", "gallery_errors", "is_panic", "is_remote",
           "is_taken", "missing_gallery", "model_names", "normalized", "open_files",
           "table_of"]  # fmt: skip

TABLE = "templates.lance"
LOCKS = (".lock", ".next")
READ_ERRORS = (OSError, ValueError, RuntimeError, MemoryError, pa.ArrowException)
"""Errors of Lance and Arrow for files that are missing or damaged."""
LOCAL_ADDRESS = re.compile(r"file:(?:/?/?localhost)?(?://)?(/.*)", re.DOTALL)
HALF_ADDRESS = re.compile(r"\w{2,}:/(?!/)")
RUST_PLACE = re.compile(r",?\s*(location: )?\S+\.rs:\d+:\d+")
STORES = ("s3", "s3+ddb", "gs", "az", "abfss", "oss", "cos", "tos", "hf")
"""Object stores that Lance reaches, by the first word of their addresses."""
STORE_TROUBLE = re.compile(
    r"^(LanceError\(IO\): )?((?:Generic \w+ error|Unable to find object store).*)", re.DOTALL
)


def is_remote(place: str | Path) -> bool:
    """Whether a place is an address in an object store, such as `s3://bucket/faces`."""
    return "://" in str(place) and LOCAL_ADDRESS.fullmatch(str(place)) is None


def normalized(place: str | Path) -> str:
    """The full path of a folder, or an address without a slash at its end.

    Raises:
        GalleryError: neither a folder nor an address, such as `s3:/bucket`; or an address without
            a bucket, or of a store that is unknown.
    """
    text = str(place)
    if is_remote(text):
        kind, _, rest = text.partition("://")
        if kind.lower() not in STORES:
            raise GalleryError(
                f"a gallery lies in a folder or in an object store ({', '.join(STORES)}), found "
                f"{one_line(text, 200)}: write an address such as s3://bucket/people"
            )
        if not rest.strip("/"):
            raise GalleryError(
                f"the address {text} names no bucket: write one such as {kind}://bucket/people"
            )
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


def is_taken(
    base: str,
    files: Mapping[str, Path],
    options: Mapping[str, str] | None,
    parts: Collection[str] = (),
) -> bool:
    """Whether a place holds a gallery, or files of neither a killed creation nor the parts."""
    created = {*LOCKS, TABLE, *(name.split("/", 1)[0] for name in files), *parts}
    if not is_remote(base):
        folder = Path(base)
        if not folder.is_dir():
            return folder.exists()
        table = any((folder / TABLE / "_versions").glob("*.manifest"))
        return table or any(path.name not in created for path in folder.iterdir())
    names = open_files(base, options).list()
    table = any(name.startswith(f"{TABLE}/_versions/") for name in names)
    return table or any(name.split("/", 1)[0] not in created for name in names)


def check_free(
    base: str,
    files: Mapping[str, Path],
    options: Mapping[str, str] | None,
    parts: Collection[str] = (),
) -> None:
    """Check that a gallery can be created in a place.

    Raises:
        GalleryError: the place is taken.
    """
    if is_taken(base, files, options, parts):
        raise GalleryError(f"{base} exists already: name a new or an empty place")


def check_content(place: str) -> None:
    """Check that a gallery on disk holds nothing but folders and regular files.

    Through a link, files outside of the gallery would be read, replaced or deleted; a pipe would
    block.

    Raises:
        GalleryError: a link, a pipe or a device.
    """
    folders = [place]
    while folders:
        # Another process may delete files and folders at the same time.
        with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    kind = "a link" if entry.is_symlink() else "a pipe or device"
                    raise GalleryError(
                        f"the gallery {place} holds {kind}, {one_line(entry.path, None)}: a "
                        "gallery has only folders and files of its own; remove it, or restore the "
                        "gallery from a copy (the gallery's folder itself may be a link)"
                    )


def galleries_inside(base: str, options: Mapping[str, str] | None) -> list[str]:
    """Names of the galleries that lie inside a folder or address, sorted."""
    if not is_remote(base):
        return sorted(table.parent.name for table in Path(base).glob(f"*/{TABLE}"))
    names = (name.split("/") for name in open_files(base, options).list())
    return sorted({name[0] for name in names if len(name) > 2 and name[1] == TABLE})


def missing_gallery(place: str) -> GalleryError:
    """The error for a place without a gallery."""
    if not is_remote(place) and Path(place).exists() and not Path(place).is_dir():
        return GalleryError(
            f"{place} is a file, and a gallery is a folder: give a gallery's folder, or create one "
            "at another place with `twinlens gallery create GALLERY --model MODEL`"
        )
    if any((Path(place) / name).is_file() for name in ("model.json", "model/model.json")):
        return GalleryError(
            f"{place} is a model, not a gallery: create a gallery from it with "
            f"`twinlens gallery create GALLERY --model {place}`"
        )
    if not is_remote(place) and galleries_inside(place, None):
        return GalleryError(
            f"{place} is a folder of galleries: name one of them, or join them with `twinlens "
            f"gallery join {place}`"
        )
    return GalleryError(
        f"there is no gallery at {place}: create one with "
        f"`twinlens gallery create {place} --model MODEL`"
    )


def open_files(base: str, options: Mapping[str, str] | None) -> LanceFileSession:
    """Access to the files below `base`, a folder or an address in an object store."""
    return LanceFileSession(base, storage_options=None if options is None else dict(options))


def copy_files(base: str, files: Mapping[str, Path], options: Mapping[str, str] | None) -> None:
    """Copy files below `base`, a folder or an address in an object store, under their names."""
    for name, path in files.items():
        if is_remote(base):
            open_files(base, options).upload_file(str(path), name)
            continue
        target, mode = Path(base) / name, permissions(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        with part_beside(target) as folder:
            part = folder / target.name
            shutil.copyfile(path, part)
            fsync(part)
            part.replace(target)
        for place in (target, *target.parents[: len(Path(name).parents)]):
            restrict(place, mode)
            fsync(place)


def model_names(base: str) -> list[str]:
    """The fingerprints of the models whose copies a gallery on disk holds."""
    folder = Path(base) / GALLERY_MODELS
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [name for name in names if re.fullmatch(FINGERPRINT, name)]


def delete_model(base: str, fingerprint: str, options: Mapping[str, str] | None) -> None:
    """Delete the copy of a model: its known files by name, and the folder if that empties it."""
    assert re.fullmatch(FINGERPRINT, fingerprint), fingerprint
    if is_remote(base):
        session = open_files(base, options)
        for name in (RECORD_FILE, *MODEL_FILES):
            if session.contains(f"{GALLERY_MODELS}/{fingerprint}/{name}"):
                session.delete_file(f"{GALLERY_MODELS}/{fingerprint}/{name}")
        return
    folder = Path(base) / GALLERY_MODELS / fingerprint
    sweep_parts(folder)
    for name in (RECORD_FILE, *MODEL_FILES):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # Files of others remain.
        folder.rmdir()


@contextlib.contextmanager
def gallery_errors(task: str) -> Iterator[None]:
    """Raise errors of Lance and of the system as a `GalleryError` that starts with `task`."""
    try:
        yield
    except TwinlensError:
        raise
    except READ_ERRORS as error:
        raise gallery_error(error, task) from error
    except BaseException as error:
        # On Python 3.13 pylance 14 panics if a commit fails, and hides the cause.
        if not is_panic(error):
            raise
        advice = "check the free space and the permissions, and run this again"
        raise GalleryError(f"{task}: the commit failed; {advice}") from error


def is_panic(error: BaseException) -> bool:
    """Whether Lance's own code failed, as on damaged files; such an error is no `Exception`."""
    return type(error).__name__ == "PanicException"


def gallery_error(error: BaseException, task: str) -> GalleryError:
    """The `GalleryError` for an error of Lance, without lines of its source."""
    text = RUST_PLACE.sub("", str(error)).strip().rstrip(",.")
    if "No space left on device" in text or getattr(error, "errno", None) == errno.ENOSPC:
        return GalleryError(f"{task}: the disk is full; free some space and run this again")
    if "Invalid user input" in text and "filter" not in task:
        text = text.split("Invalid user input: ", 1)[1]
    line = text.splitlines()[0] if text else type(error).__name__
    if trouble := STORE_TROUBLE.match(line):
        return GalleryError(
            f"{task}: {one_line(trouble[2], 200)}. Check the address, the network, and the region "
            "and credentials of the object store, in its environment variables (AWS_REGION, "
            "AWS_ACCESS_KEY_ID, ...) or in `options`"
        )
    return GalleryError(f"{task}: {line}")
