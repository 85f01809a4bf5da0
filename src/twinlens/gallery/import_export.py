"""Export of a gallery's templates to a Parquet file, and import from one.

Shapes: N templates, D dimensions.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from twinlens.errors import (
    DataError,
    GalleryError,
    PictureError,
    first_line,
    one_line,
    short_repr,
)
from twinlens.files import writing_file
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.enrol import MAX_METADATA
from twinlens.gallery.enrol_embeddings import AT_ONCE, RowEnrolment, rows_of_embeddings
from twinlens.gallery.location import READ_ERRORS
from twinlens.gallery.results import EnrolResult
from twinlens.gallery.schema import COLUMNS, FIRST_TIME, LAST_TIME, read_metadata, schema
from twinlens.gallery.snapshot import vectors
from twinlens.gallery.sources import Source, digest
from twinlens.model.stored import FINGERPRINT as FORM_OF_FINGERPRINT

__all__ = ["export", "import_file"]

FINGERPRINT = b"twinlens.fingerprint"

KINDS = {
    "hash": pa.string(),
    "identity": pa.string(),
    "path": pa.string(),
    "time": pa.timestamp("us", "UTC"),
    "metadata": pa.string(),
    "thumbnail": pa.large_binary(),
    "forged": pa.bool_(),
}
"""Columns of a file besides the embedding; only identity and path are required."""

LIMITS = {
    "hash": 32, "identity": 40_000, "path": 130_000, "time": 100, "metadata": 4 * MAX_METADATA,
    "thumbnail": 1 << 17,
}  # fmt: skip
"""The most bytes of a value; so a few rows fit in memory, however well a file is compressed."""

ROWS_READ, NUMBERS_READ = 1000, 1 << 22
"""Rows, and numbers of their embeddings, that are decoded at once."""
MAX_FOOTER = 4 << 20
EXPANSION, SLACK = 200, 64 << 20
"""A file may claim to unpack to so many times its size, and so many bytes."""
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
    """Enrol the rows of a Parquet file; see `Gallery.import_file`.

    The file may have been written by anyone. Its description is checked before its rows are read,
    and these are read in small batches.
    """
    if not path.is_file():  # Opening a pipe would wait for a writer.
        reason = "it is no regular file" if path.exists() else "no such file"
        raise GalleryError(f"cannot read {path}: {reason}")
    with _opened(path) as file:
        columns = file.schema_arrow
        fingerprint = _fingerprint(path, columns)
        # First, since vectors of another model may have another length, a less helpful error.
        core.check_shape(np.empty((0, core.dim)), fingerprint)
        try:
            _check_columns(columns, core.dim)
            _check_size(file.metadata, columns, path.stat().st_size, core.dim)
        except GalleryError as error:
            raise GalleryError(f"cannot import {path}: {error}") from error
    # In many rows, one long text stays one text.
    packed = [
        name for name in LIMITS if name in columns.names and _is_text(columns.field(name).type)
    ]
    with _opened(path, read_dictionary=packed) as file:
        return _import(core, file, path, fingerprint, progress)


@contextmanager
def _opened(path: Path, **options: Any) -> Iterator[pq.ParquetFile]:
    limits = {"thrift_string_size_limit": MAX_FOOTER, "thrift_container_size_limit": MAX_FOOTER}
    with _reading_errors(path):
        file = pq.ParquetFile(path, **limits, **options)
    with file:
        yield file


@contextmanager
def _reading_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        if isinstance(error, GalleryError):
            raise
        reason = one_line(first_line(error), 200)
        raise GalleryError(f"cannot read {path}: {reason}") from error


def _fingerprint(path: Path, columns: pa.Schema) -> str:
    missing = {"identity", "embedding", "path"} - set(columns.names)
    stored = (columns.metadata or {}).get(FINGERPRINT)
    if missing or stored is None:
        lacks = f"column {', '.join(sorted(missing))}" if missing else "model's fingerprint"
        raise GalleryError(
            f"{path} has no {lacks}: give a file that `twinlens gallery export` or "
            "`twinlens embed` wrote"
        )
    fingerprint = stored.decode("utf-8", "replace")
    if re.fullmatch(FORM_OF_FINGERPRINT, fingerprint) is None:
        raise GalleryError(
            f"cannot import {path}: it names the model {short_repr(fingerprint)}, but a model's "
            "fingerprint has 16 digits of 0-9 and a-f"
        )
    return fingerprint


def _kinds(columns: pa.Schema, dim: int) -> dict[str, pa.DataType]:
    """The types of the known columns that a file has."""
    kinds = {**KINDS, "embedding": pa.list_(pa.float32(), dim)}
    return {name: kind for name, kind in kinds.items() if name in columns.names}


def _check_columns(columns: pa.Schema, dim: int) -> None:
    """Check types before any row is read."""
    for name, kind in _kinds(columns, dim).items():
        if columns.names.count(name) > 1:
            raise GalleryError("it has a column twice")
        own = columns.field(name).type
        if name == "embedding":
            is_list = isinstance(own, pa.ListType | pa.LargeListType | pa.FixedSizeListType)
            fits = is_list and (
                pa.types.is_floating(own.value_type) or pa.types.is_integer(own.value_type)
            )
            fits = fits and getattr(own, "list_size", dim) == dim
        else:
            fits = not pa.types.is_nested(own) and _is_castable(own, kind)
        if not fits:
            raise _wrong_type(name, own, kind)


def _is_castable(own: pa.DataType, kind: pa.DataType) -> bool:
    try:
        pa.array([], own).cast(kind)
    except READ_ERRORS:
        return False
    return True


def _wrong_type(name: str, own: pa.DataType, kind: pa.DataType, reason: str = "") -> GalleryError:
    return GalleryError(
        f"its column {name} holds {one_line(str(own))}, but {kind} is needed{reason}"
    )


def _check_size(metadata: pq.FileMetaData, columns: pa.Schema, size: int, dim: int) -> None:
    """Check the numbers of rows, of values and of bytes against the size of the file."""
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise GalleryError("it is damaged: its parts do not have as many rows as the file")
    if sum(rows) > size:  # Each row has a picture of its own, and so a hash.
        raise GalleryError(f"it claims {sum(rows):,} rows, which its {size:,} bytes cannot hold")
    num_bytes = 0
    for group in groups:
        chunks = [group.column(at) for at in range(group.num_columns)]
        for chunk in chunks:
            name = chunk.path_in_schema.split(".")[0]
            sizes = chunk.total_uncompressed_size, chunk.total_compressed_size, chunk.num_values
            if min(sizes) < 0:
                raise GalleryError(
                    f"it is damaged: its column {one_line(name)} has {min(sizes)} bytes"
                )
            num_bytes += chunk.total_uncompressed_size if name in _kinds(columns, dim) else 0
            if name == "embedding" and chunk.num_values > group.num_rows * dim:
                raise GalleryError(
                    f"its column embedding holds {chunk.num_values:,} numbers in "
                    f"{group.num_rows:,} rows, but each row needs {dim}"
                )
    if num_bytes > SLACK + EXPANSION * size:
        raise GalleryError(f"it claims {num_bytes:,} bytes of data, packed into {size:,}")


def _import(
    core: GalleryCore, file: pq.ParquetFile, path: Path, fingerprint: str, progress: Progress | None
) -> EnrolResult:
    total, done, enrolment = file.metadata.num_rows, 0, RowEnrolment(core)
    waiting: list[tuple[pa.Table, NDArray[np.bool_]]] = []

    def commit() -> None:
        if waiting:
            parts, forged = zip(*waiting, strict=True)
            enrolment.add(pa.concat_tables(parts), np.concatenate(forged))
            waiting.clear()

    for batch in _read(file, path, core.dim):
        try:
            columns = _values(batch, core.dim, done + 1)
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


def _read(file: pq.ParquetFile, path: Path, dim: int) -> Iterator[pa.RecordBatch]:
    names = list(_kinds(file.schema_arrow, dim))
    size = max(1, min(ROWS_READ, NUMBERS_READ // dim))
    with _reading_errors(path):
        for batch in file.iter_batches(batch_size=size, columns=names, use_threads=False):
            batch.validate(full=True)  # Offsets and UTF-8 of a damaged file.
            yield batch


def _values(batch: pa.RecordBatch, dim: int, first: int) -> dict[str, pa.Array]:
    """The columns of some rows, cast to a gallery's types; other programs write such files too.

    Args:
        batch: rows of the file.
        dim: D.
        first: number of the first row in messages.
    """
    cast = {}
    for name, kind in _kinds(batch.schema, dim).items():
        column = batch.column(name)
        column = _unpacked(name, column, first) if name in LIMITS else column
        try:
            # Times are cut to microseconds.
            options = pc.CastOptions(kind, allow_time_truncate=True)
            cast[name] = column.cast(options=options)
        except READ_ERRORS as error:
            reason = f" ({one_line(first_line(error), 200)})"
            raise _wrong_type(name, column.type, kind, reason) from error
    for name in ("identity", "embedding"):
        if cast[name].null_count:
            row = first + int(
                np.flatnonzero(cast[name].is_null().to_numpy(zero_copy_only=False))[0]
            )
            raise GalleryError(
                f"its column {name} is empty in {cast[name].null_count} rows, such as row {row}: "
                "each row needs one"
            )
    cast["path"] = cast["path"].fill_null("")
    return cast


def _unpacked(name: str, column: pa.Array, first: int) -> pa.Array:
    """A column of texts whose lengths are checked before each row gets its own copy."""
    is_packed = isinstance(column, pa.DictionaryArray)
    values = column.dictionary if is_packed else column
    if not _is_text(values.type):
        return column
    too_long = pc.greater(pc.binary_length(values), LIMITS[name])
    too_long = too_long.take(column.indices) if is_packed else too_long
    rows = np.flatnonzero(too_long.fill_null(False).to_numpy(zero_copy_only=False))
    if len(rows):
        row = first + int(rows[0])
        raise GalleryError(f"row {row}: its {name} has over {LIMITS[name]:,} bytes")
    return column.dictionary_decode() if is_packed else column


def _is_text(kind: pa.DataType) -> bool:
    kinds = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    return kind in kinds


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
