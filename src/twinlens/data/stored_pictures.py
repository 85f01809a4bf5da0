"""Pictures inside larger files, on a disk or in an object store, read by ranges.

A table keeps the place of each picture, and its content is read when it is needed. Pictures that
lie beside each other are read together.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from twinlens.data.remote import is_store, open_store, unreadable
from twinlens.errors import DataError, PictureError, first_line, one_line

__all__ = ["ByteRanges", "PictureFile", "StoredPicture", "file_name", "file_size", "file_version",
           "open_input", "read_together"]  # fmt: skip

GAP = 2**18  # bytes between two pictures that one read skips rather than two reads
LARGEST_READ = 2**23
AT_ONCE = 8  # requests of an object store


class PictureFile(Protocol):
    """A file of many pictures."""

    @property
    def name(self) -> str:
        """Path, or address in an object store."""

    @property
    def version(self) -> str:
        """A text that changes whenever the file does."""

    def read(self, places: Sequence[StoredPicture]) -> list[bytes | PictureError]:
        """The content of some pictures, or why it cannot be read.

        Raises:
            DataError: the file, or its store, cannot be read.
        """


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """The place of a picture: its first byte and their number, or its row (and size 0)."""

    file: PictureFile
    start: int
    size: int = 0

    def __call__(self) -> bytes:
        """The content of the picture's file.

        Raises:
            PictureError: it cannot be read.
            DataError: as in `PictureFile.read`.
        """
        (content,) = self.file.read([self])
        if isinstance(content, PictureError):
            raise content
        return content

    @property
    def mark(self) -> bytes:
        """Stands for the content in fingerprints: the same for a copy of the file."""
        return repr((file_name(self.file.name), self.start, self.size)).encode(
            "utf-8", "surrogatepass"
        )


def read_together(values: Sequence[Any]) -> list[Any]:
    """The same pictures, with the content, or the error, of those that lie in larger files."""
    results = list(values)
    places = defaultdict[PictureFile, list[int]](list)
    for place, value in enumerate(results):
        if isinstance(value, StoredPicture):
            places[value.file].append(place)
    for file, own in places.items():
        contents = file.read([results[place] for place in own])
        for place, content in zip(own, contents, strict=True):
            results[place] = content
    return results


@dataclass(frozen=True)
class ByteRanges:
    """A file whose pictures are ranges of its bytes, such as a tar file."""

    name: str
    version: str

    def read(self, places: Sequence[StoredPicture]) -> list[bytes | PictureError]:
        """The content of some pictures; see `PictureFile`."""
        order = sorted(range(len(places)), key=lambda at: places[at].start)
        runs = list[list[int]]()
        begin = end = 0
        for at in order:
            place = places[at]
            last = place.start + place.size
            if not runs or place.start > end + GAP or last - begin > LARGEST_READ:
                runs.append([])
                begin = place.start
            runs[-1].append(at)
            end = last
        results: list[bytes | PictureError] = [b""] * len(places)

        def read_run(run: list[int]) -> None:
            start = places[run[0]].start
            size = max(places[at].start + places[at].size for at in run) - start
            block = self._range(start, size)
            for at in run:
                offset = places[at].start - start
                content = block[offset : offset + places[at].size]
                complete = len(content) == places[at].size
                results[at] = content if complete else PictureError(self.name, "truncated")

        if len(runs) > 1 and is_store(self.name):
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(read_run, runs))
        else:
            for run in runs:
                read_run(run)
        return results

    def _range(self, start: int, size: int) -> bytes:
        if is_store(self.name):
            try:
                return bytes(_opened(self.name, self.version).read_at(size, start))
            except OSError as error:
                raise unreadable(self.name, error) from error
        try:
            with Path(self.name).open("rb") as stream:
                stream.seek(start)
                return stream.read(size)
        except OSError as error:
            raise DataError(f"cannot read {self.name}: {error.strerror or error}") from error


def file_name(name: str) -> str:
    """The last part of a path or an address.

    >>> file_name("s3://bucket/photos/a.tar?region=eu-west-1")
    'a.tar'
    """
    return PurePosixPath(name.partition("?")[0] if is_store(name) else name).name


def file_size(name: str) -> int:
    """The bytes of a file.

    Raises:
        DataError: a missing file, or a store that cannot be read.
    """
    return _state(name)[0]


def file_version(name: str) -> str:
    """Size and time of a file's last change; see `file_size`."""
    return "-".join(map(str, _state(name)))


def _state(name: str) -> tuple[int, int]:
    if not is_store(name):
        try:
            status = Path(name).stat()
        except OSError as error:
            raise DataError(f"no such file: '{one_line(name, 200)}'") from error
        return status.st_size, status.st_mtime_ns
    from pyarrow import fs

    store, path = open_store(name)
    try:
        info = store.get_file_info(path)
    except OSError as error:
        raise unreadable(name, error) from error
    if info.type != fs.FileType.File:
        raise DataError(f"there is no file at {one_line(name, 200)}: check bucket and name")
    return info.size, info.mtime_ns or 0


def open_input(name: str) -> Any:
    """A file of Arrow to read from, at any place."""
    from pyarrow import fs

    if not is_store(name):
        try:
            return fs.LocalFileSystem().open_input_file(name)
        except OSError as error:
            raise DataError(f"cannot read {name}: {first_line(error)}") from error
    store, path = open_store(name)
    try:
        return store.open_input_file(path)
    except OSError as error:
        raise unreadable(name, error) from error


@functools.lru_cache(maxsize=64)
def _opened(name: str, version: str) -> Any:
    return open_input(name)
