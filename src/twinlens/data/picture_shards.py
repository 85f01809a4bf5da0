"""Names of files that hold many pictures each -> ImageTable.

They are tar files (`tar_shards`), Parquet files and Lance tables (`picture_tables`), on a disk or
in an object store.
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath

from twinlens.data.picture_file import picture_suffixes
from twinlens.data.picture_tables import holds_pictures, read_lance, read_parquet
from twinlens.data.remote import is_store, open_store, unreadable
from twinlens.data.stored_pictures import file_name
from twinlens.data.table import ImageTable
from twinlens.data.tar_shards import files_in_range, read_tar
from twinlens.errors import DataError, one_line
from twinlens.files import expand_user

__all__ = ["holds_shards", "read_shards"]

log = logging.getLogger("twinlens")

KINDS = (".tar", ".parquet", ".lance")


def read_shards(data: str | Path) -> ImageTable | None:
    """The pictures of files that hold many each; None if the data is of another kind.

    Args:
        data: one or several `.tar` or `.parquet` (`photos-{000..003}.tar`), a folder with nothing
            else, or a `.lance` table; a path, or an address in an object store. A Parquet file
            without a column of pictures is a manifest, and not read here.
    Raises:
        DataError: missing, unreadable or truncated files, or an address with no such files.
    """
    source, is_remote = str(data), is_store(data)
    suffix = PurePosixPath(file_name(source)).suffix.lower()
    named = files_in_range(source) if suffix in KINDS else []
    files = [file if is_remote else str(expand_user(file)) for file in named]
    if suffix == ".lance":
        if len(files) > 1:
            raise DataError(f"{one_line(source, 200)} names {len(files)} Lance tables: give one")
        return read_lance(files[0], source) if is_remote or Path(files[0]).is_dir() else None
    if not files:
        files = _files_of_store(source) if is_remote else _files_of_folder(expand_user(data))
    if not files:
        return None
    _check_names(files)
    if file_name(files[0]).lower().endswith(".tar"):
        return read_tar(files, source)
    is_one = not is_remote and len(files) == 1
    if is_one and not (Path(files[0]).is_file() and holds_pictures(files[0])):
        return None
    return read_parquet(files, source)


def _check_names(files: list[str]) -> None:
    place: dict[str, str] = {}
    for file in files:
        if (first := place.setdefault(file_name(file), file)) != file:
            raise DataError(
                f"{one_line(first, 200)} and {one_line(file, 200)} have one name, which is part of "
                "the names of their pictures: rename one of them"
            )


def holds_shards(folder: Path) -> bool:
    """Whether `read_shards` reads a folder: a Lance table, or shards alone."""
    return folder.suffix.lower() == ".lance" or bool(_shards_in(folder))


def _files_of_store(address: str) -> list[str]:
    from pyarrow import fs

    store, top = open_store(address)
    try:
        entries = store.get_file_info(fs.FileSelector(top))
    except OSError as error:
        raise unreadable(address, error) from error
    names = sorted(PurePosixPath(entry.path).name for entry in entries)
    place, mark, query = address.partition("?")
    files = [f"{place.rstrip('/')}/{name}{mark}{query}" for name in _of_one_kind(names, address)]
    if not files:
        raise DataError(
            f"{one_line(address, 200)} holds no .tar and no .parquet: name these, or a .lance "
            "table; `twinlens fetch ADDRESS FOLDER` downloads single pictures"
        )
    return files


def _files_of_folder(folder: Path) -> list[str]:
    return [str(folder / name) for name in _of_one_kind(_shards_in(folder), str(folder))]


def _shards_in(folder: Path) -> list[str]:
    """The shards of a folder that holds no folders, and no pictures beside them."""
    try:
        if not folder.is_dir():
            return []
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:  # `folders` says so.
        return []
    pictures = picture_suffixes()
    if any(entry.is_dir() or entry.suffix.lower() in pictures for entry in entries):
        return []
    return sorted(entry.name for entry in entries if entry.suffix.lower() in KINDS[:2])


def _of_one_kind(names: list[str], place: str) -> list[str]:
    """The tar files among names, or else the Parquet files."""
    tars, tables, *_ = ([name for name in names if name.lower().endswith(kind)] for kind in KINDS)
    if tars and tables:
        log.warning("%d .parquet are left out beside the .tar of %s", len(tables), place)
    return tars or tables
