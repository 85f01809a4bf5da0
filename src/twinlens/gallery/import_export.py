"""Export of a gallery's templates to a Parquet file, and import from one or a Lance table.

Shapes: N templates, D dimensions.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from twinlens.errors import DataError, GalleryError, PictureError
from twinlens.files import writing_file
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.embedding_table import is_lance_table, opened_table, table_batches
from twinlens.gallery.enrol_embeddings import AT_ONCE, RowEnrolment, rows_of_embeddings
from twinlens.gallery.location import READ_ERRORS
from twinlens.gallery.parquet_file import (
    FINGERPRINT,
    cast_columns,
    check_description,
    check_types,
    fingerprint_in,
    known_columns,
    opened,
    packed_texts,
    read_batches,
)
from twinlens.gallery.results import EnrolResult
from twinlens.gallery.schema import COLUMNS, FIRST_TIME, LAST_TIME, read_metadata, schema
from twinlens.gallery.snapshot import vectors
from twinlens.gallery.sources import Source, digest

__all__ = ["export", "import_file"]

COMMIT_BYTES = 128 << 20
PRIVATE = 0o600

Progress = Callable[[int, int], None]


def export(core: GalleryCore, path: Path) -> int:
    """Write all templates to a Parquet file that only its owner can read; returns how many.

    Raises:
        DataError: the file cannot be written.
        GalleryError: the gallery cannot be read.
    """
    columns = pa.schema(
        [*(f for f in schema(core.dim) if f.name not in ("metadata", "vector", "thumbnail")),
         ("metadata", pa.string()), ("embedding", pa.list_(pa.float32(), core.dim)),
         ("thumbnail", pa.large_binary())],
        metadata={FINGERPRINT: core.fingerprint.encode()},
    )  # fmt: skip

    def write(table: Any) -> int | DataError:
        try:
            return _write(path, columns, _marked(table.to_batches(columns=list(COLUMNS))))
        except _UnreadError as error:
            raise error.reason from None
        except DataError as error:
            return error  # If raised, the store would report it as its own.

    num = core.store.read(write)
    if isinstance(num, DataError):
        raise num
    return num


def _write(path: Path, columns: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    num = 0
    with writing_file(path) as part, pq.ParquetWriter(part, columns) as writer:
        for batch in batches:
            rows = pa.Table.from_batches([batch]).rename_columns(
                ["embedding" if name == "vector" else name for name in COLUMNS]
            )
            writer.write_table(rows.select(columns.names).cast(columns))
            num += len(rows)
        part.chmod(PRIVATE)  # It holds names and embeddings, and often pictures.
    return num


class _UnreadError(Exception):
    """An error of the gallery, apart from those of the file being written."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _marked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except READ_ERRORS as error:
        raise _UnreadError(error) from error


def import_file(core: GalleryCore, path: Path, progress: Progress | None) -> EnrolResult:
    """Enrol the rows of a Parquet file or a Lance table; see `Gallery.import_file`."""
    if is_lance_table(path):
        with opened_table(path) as table:
            fingerprint = _fingerprint(core, path, table.schema)
            try:
                check_types(table.schema, core.dim)
            except GalleryError as error:
                raise GalleryError(f"cannot import {path}: {error}") from error
            names = known_columns(table.schema, core.dim)
            batches = table_batches(table, names, core.dim)
            return _import(core, batches, table.count_rows(), path, fingerprint, progress)
    with opened(path) as file:
        columns = file.schema_arrow
        fingerprint = _fingerprint(core, path, columns)
        try:
            check_description(file, path.stat().st_size, core.dim)
        except GalleryError as error:
            raise GalleryError(f"cannot import {path}: {error}") from error
    with opened(path, packed_texts(columns)) as file:
        batches = read_batches(file, core.dim)
        return _import(core, batches, file.metadata.num_rows, path, fingerprint, progress)


def _fingerprint(core: GalleryCore, path: Path, columns: pa.Schema) -> str:
    """The model of a file's embeddings, which is the gallery's."""
    fingerprint = fingerprint_in(path, columns)
    # First, since vectors of another model may have another length, a less helpful error.
    core.check_shape(np.empty((0, core.dim)), fingerprint)
    return fingerprint


def _import(
    core: GalleryCore,
    batches: Iterator[pa.RecordBatch],
    total: int,
    path: Path,
    fingerprint: str,
    progress: Progress | None,
) -> EnrolResult:
    done, enrolment = 0, RowEnrolment(core)
    waiting: list[tuple[pa.Table, NDArray[np.bool_]]] = []

    def commit() -> None:
        if waiting:
            parts, forged = zip(*waiting, strict=True)
            enrolment.add(pa.concat_tables(parts), np.concatenate(forged))
            waiting.clear()

    for batch in batches:
        try:
            columns = cast_columns(batch, core.dim, done + 1)
            stored = _stored(core, columns, fingerprint, done + 1)
        except GalleryError as error:
            commit()
            raise GalleryError(f"cannot import {path}: {error}") from error
        waiting.append((stored, _forged(columns, len(stored))))
        done += len(stored)
        rows = [part for part, _ in waiting]
        if sum(map(len, rows)) >= AT_ONCE or sum(part.nbytes for part in rows) >= COMMIT_BYTES:
            commit()
        if progress is not None:
            progress(done, total)
    commit()
    return enrolment.result()


def _stored(
    core: GalleryCore, columns: Mapping[str, pa.Array], fingerprint: str, first: int
) -> pa.Table:
    """Rows of the store."""
    if columns["embedding"].flatten().null_count:
        raise GalleryError("its column embedding lacks some numbers: each row needs all")
    emb_ND = vectors(pa.chunked_array([columns["embedding"]]))
    stored = rows_of_embeddings(
        core, emb_ND, columns["identity"].to_pylist(), fingerprint,
        [_absolute(path) for path in columns["path"].to_pylist()], _hashes(columns, emb_ND),
        _metadata(columns, first), first=first,
    )  # fmt: skip
    if "thumbnail" in columns:
        _check_thumbnails(columns["thumbnail"], first)
    if "time" in columns and columns["time"].null_count < len(stored):
        earliest, latest = (pc.min_max(columns["time"])[name] for name in ("min", "max"))
        kind = columns["time"].type
        if (
            pc.less(earliest, pa.scalar(FIRST_TIME, kind)).as_py()
            or pc.greater(latest, pa.scalar(LAST_TIME, kind)).as_py()
        ):
            raise GalleryError("its column time holds a time outside of the years 1 to 9999")
    for name in ("time", "thumbnail"):
        if name in columns:
            place = stored.column_names.index(name)
            column = pc.coalesce(columns[name], stored[name])
            stored = stored.set_column(place, stored.schema.field(name), column)
    return stored


def _metadata(columns: Mapping[str, pa.Array], first: int) -> list[dict[str, Any]] | None:
    if "metadata" not in columns:
        return None
    metadata = []
    for row, text in enumerate(columns["metadata"].to_pylist()):
        try:
            metadata.append(read_metadata(text or "{}"))
        except GalleryError as error:
            raise GalleryError(f"row {first + row}: {error}") from error
    return metadata


def _check_thumbnails(column: pa.Array, first: int) -> None:
    for row, content in enumerate(column.to_pylist()):
        if content is None:
            continue
        try:
            with Image.open(io.BytesIO(content), formats=["JPEG"]):
                pass
        except Exception as error:  # Pillow raises many kinds for damaged pictures.
            raise GalleryError(f"row {first + row}: its thumbnail is no JPEG picture") from error


def _forged(columns: Mapping[str, pa.Array], num: int) -> NDArray[np.bool_]:
    """Whether each row is a forgery, from the column that `twinlens embed` writes."""
    if "forged" not in columns:
        return np.zeros(num, dtype=np.bool_)
    forged_N: NDArray[np.bool_] = columns["forged"].fill_null(False).to_numpy(zero_copy_only=False)
    return forged_N


def _absolute(path: str) -> str:
    """The full path of a file; `twinlens embed` may write relative paths."""
    try:
        if not path or Path(path).is_absolute() or not Path(path).is_file():
            return path
    except (OSError, ValueError):  # A name too long for a file.
        return path
    return os.path.abspath(path)  # noqa: PTH100  Keeps links.


def _hashes(columns: Mapping[str, pa.Array], emb_ND: NDArray[np.float32]) -> list[str]:
    """The hashes of a file; if missing, as from `twinlens embed`, the hashes of the pictures."""
    num = len(columns["path"])
    hashes = columns["hash"].to_pylist() if "hash" in columns else [None] * num
    paths = columns["path"].to_pylist()
    return [
        name or _hash_of(path, row) for name, path, row in zip(hashes, paths, emb_ND, strict=True)
    ]


def _hash_of(path: str, emb_D: NDArray[np.float32]) -> str:
    try:
        return Source(path, "").hash()
    except PictureError:
        return digest(emb_D.tobytes())
