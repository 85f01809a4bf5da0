"""Parts of a table of pictures, whose results are kept on disk until all of them are complete.

The name of a part is a digest of everything that its result depends on: the model and the options,
and the paths, identities, sizes and times of its pictures. So whoever runs the same work again
finds the parts that are complete, whether the first run was killed, and however many processes it
had. Parts of changed pictures, of other options or another model have other names.

Only the process that started the work writes parts. A part is complete or not there, and is in the
result once, in its place.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from twinlens._version import __version__
from twinlens.data.stored_pictures import StoredPicture
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, first_line
from twinlens.files import writing_errors, writing_file

__all__ = ["Part", "PartFolder", "make_parts"]

SMALLEST, LARGEST, NUM_PARTS = 256, 4096, 16
"""Pictures of a part: 1 / 16 of the table within these bounds, whatever the number of workers."""


@dataclass(frozen=True)
class Part:
    """Some consecutive rows of a table, and the name of their result."""

    name: str
    rows: slice

    def __len__(self) -> int:
        return int(self.rows.stop - self.rows.start)

    def of(self, table: ImageTable) -> ImageTable:
        """The rows, without what results do not depend on."""
        part = table.select(range(self.rows.start, self.rows.stop))
        return replace(part, left_out=None, metadata=None)


def make_parts(table: ImageTable, *key: Any) -> list[Part]:
    """The parts of a table, in its order.

    Args:
        table: at least one picture.
        key: what results depend on besides the pictures: values with a `repr`.
    """
    size = min(max(-(-len(table) // NUM_PARTS), SMALLEST), LARGEST)
    _file_state.cache_clear()
    starts = range(0, len(table), size)
    rows = [slice(start, min(start + size, len(table))) for start in starts]
    return [Part(_name(table, part, key), part) for part in rows]


class PartFolder:
    """The folder of the results of parts; see `opened`."""

    def __init__(self, folder: Path, parts: Sequence[Part]) -> None:
        self.folder, self.parts = folder, parts

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, parts: Sequence[Part]) -> Iterator[PartFolder]:
        """The folder, locked; it is deleted after the block, and after an error if it is empty.

        Raises:
            DataError: another process is at work there, or the folder cannot be written.
        """
        from filelock import FileLock, Timeout  # Slow to import.

        with writing_errors(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        lock, is_done = FileLock(folder / "lock", timeout=0), False
        try:
            lock.acquire()
        except Timeout as error:
            raise DataError(
                f"another process writes {folder}: wait for it, or name another file"
            ) from error
        except (OSError, NotImplementedError):
            pass  # Not every file system has locks.
        try:
            yield cls(folder, parts)
            is_done = True
        finally:
            if is_done or not any(folder.glob("*.parquet")):  # Before another process begins there.
                shutil.rmtree(folder, ignore_errors=True)
            lock.release()
            with suppress(OSError):  # Windows deletes no locked file.
                folder.rmdir()

    def missing(self) -> list[Part]:
        """The parts without a complete result."""
        return [part for part in self.parts if not self._is_complete(part)]

    def write(self, part: Part, result: pa.Table) -> None:
        """Keep the result of a part, with the metadata of its schema.

        Raises:
            DataError: it cannot be written.
        """
        with writing_file(self._path(part)) as path:
            pq.write_table(result, path)
            path.chmod(0o600)  # It holds names and embeddings.

    def results(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The results in the order of the parts, or some columns of them.

        Raises:
            DataError: a damaged part.
        """
        for part in self.parts:
            try:
                yield pq.read_table(self._path(part), columns=columns)
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"cannot read {self._path(part)}: {first_line(error)}; delete it and run this "
                    "again"
                ) from error

    def _is_complete(self, part: Part) -> bool:
        try:
            pq.read_metadata(self._path(part))
        except (OSError, pa.ArrowException):
            return False
        return True

    def _path(self, part: Part) -> Path:
        return self.folder / f"{part.name}.parquet"


def _name(table: ImageTable, rows: slice, key: tuple[Any, ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((__version__, table.source, rows.start, *key)).encode())
    for row in range(rows.start, rows.stop):
        line = (str(table.path[row]), str(table.identity[row]), bool(table.forged[row]))
        digest.update(repr(line).encode("utf-8", "surrogatepass"))
        digest.update(_content(table, row))
    return digest.hexdigest()


def _content(table: ImageTable, row: int) -> bytes:
    """Bytes that change with a picture; files are not read."""
    if table.pixels is None:
        return repr(_file_state(str(table.path[row]))).encode()
    value = table.pixels[row]
    if isinstance(value, StoredPicture):
        return repr((value.file.name, value.file.version, value.start, value.size)).encode(
            "utf-8", "surrogatepass"
        )
    places = value.args if isinstance(value, partial) else ()
    files = [str(place) for place in places if isinstance(place, str | Path)]
    try:
        return pickle.dumps(value) + repr([_file_state(file) for file in files]).encode()
    except (pickle.PicklingError, AttributeError, TypeError):
        return table.select([row]).fingerprint().encode()  # Of a function of the caller.


@lru_cache(maxsize=1024)
def _file_state(path: str) -> tuple[int, int] | None:
    with suppress(OSError, ValueError):
        status = os.stat(path)  # noqa: PTH116  Path.stat takes twice the time.
        return status.st_size, status.st_mtime_ns
    return None
