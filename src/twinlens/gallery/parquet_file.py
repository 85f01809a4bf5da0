"""A Parquet file to import: its description is checked, then its rows are read in small batches.

The file may have been written by anyone. Errors are `GalleryError`; those of a row name its number.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twinlens.errors import GalleryError, TwinlensError, first_line, one_line, short_repr
from twinlens.gallery.enrol import MAX_METADATA
from twinlens.gallery.location import READ_ERRORS
from twinlens.model.stored import FINGERPRINT as FORM_OF_FINGERPRINT

__all__ = [
    "FINGERPRINT",
    "cast_columns",
    "check_description",
    "check_types",
    "fingerprint_in",
    "known_columns",
    "opened",
    "packed_texts",
    "read_batches",
    "rows_at_once",
]

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


@contextmanager
def opened(path: Path, packed: list[str] | None = None) -> Iterator[pq.ParquetFile]:
    """The open file; errors of Arrow are raised as `GalleryError`, those within the block too.

    Args:
        path: a regular file.
        packed: columns of texts that stay packed; see `packed_texts`.
    """
    if not path.is_file():  # Opening a pipe would wait for a writer.
        reason = "it is no regular file" if path.exists() else "no such file"
        raise GalleryError(f"cannot read {path}: {reason}")
    limits = {"thrift_string_size_limit": MAX_FOOTER, "thrift_container_size_limit": MAX_FOOTER}
    try:
        with pq.ParquetFile(path, read_dictionary=packed, **limits) as file:
            yield file
    except TwinlensError:
        raise
    except READ_ERRORS as error:  # Any part of it may be damaged, names of columns too.
        reason = one_line(first_line(error), 200)
        raise GalleryError(f"cannot read {path}: {reason}") from error


def packed_texts(columns: pa.Schema) -> list[str]:
    """The known columns of texts: packed, one long text in many rows takes memory once."""
    return [name for name in LIMITS if name in columns.names and _is_text(columns.field(name).type)]


def fingerprint_in(path: Path, columns: pa.Schema) -> str:
    """The fingerprint of the model that made the embeddings of a file."""
    missing = {"identity", "embedding", "path"} - set(columns.names)
    stored = (columns.metadata or {}).get(FINGERPRINT)
    if missing or stored is None:
        lacks = f"column {', '.join(sorted(missing))}" if missing else "model's fingerprint"
        raise GalleryError(
            f"{path} has no {lacks}: give a file that `twinlens gallery export` or "
            "`twinlens embed` wrote"
        )
    fingerprint: str = stored.decode("utf-8", "replace")
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


def check_description(file: pq.ParquetFile, size: int, dim: int) -> None:
    """Check what a file claims to hold, before any row is read.

    Args:
        file: the file.
        size: its bytes.
        dim: D.
    Raises:
        GalleryError: columns of other types, or more rows and bytes than fit into its size.
    """
    check_types(file.schema_arrow, dim)
    _check_size(file.metadata, size)
    # Arrow ends the process if `column` meets damaged statistics; here it raises an error.
    file.scan_contents()
    _check_chunks(file.metadata, dim)


def check_types(columns: pa.Schema, dim: int) -> None:
    """Check the types of the known columns before any row is read.

    Raises:
        GalleryError: a column of another type, or one that is there twice.
    """
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


def _check_size(metadata: pq.FileMetaData, size: int) -> None:
    """Check the numbers of rows and of bytes against the size of the file."""
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise GalleryError("it is damaged: its parts do not have as many rows as the file")
    if sum(rows) > size:  # Each row has a picture of its own, and so a hash.
        raise GalleryError(f"it claims {sum(rows):,} rows, which its {size:,} bytes cannot hold")
    num_bytes = [group.total_byte_size for group in groups]
    if min(num_bytes, default=0) < 0:
        raise GalleryError(f"it is damaged: a part of it has {min(num_bytes)} bytes")
    if sum(num_bytes) > SLACK + EXPANSION * size:
        raise GalleryError(f"it claims {sum(num_bytes):,} bytes of data, packed into {size:,}")


def _check_chunks(metadata: pq.FileMetaData, dim: int) -> None:
    """Check the numbers of values and of bytes of the columns of each group of rows."""
    for group in (metadata.row_group(at) for at in range(metadata.num_row_groups)):
        for chunk in (group.column(at) for at in range(group.num_columns)):
            name = chunk.path_in_schema.split(".")[0]
            sizes = chunk.total_uncompressed_size, chunk.total_compressed_size, chunk.num_values
            if min(sizes) < 0:
                raise GalleryError(
                    f"it is damaged: its column {one_line(name)} has {min(sizes)} bytes"
                )
            if name == "embedding" and chunk.num_values > group.num_rows * dim:
                raise GalleryError(
                    f"its column embedding holds {chunk.num_values:,} numbers in "
                    f"{group.num_rows:,} rows, but each row needs {dim}"
                )


def known_columns(columns: pa.Schema, dim: int) -> list[str]:
    """The columns that are imported."""
    return list(_kinds(columns, dim))


def rows_at_once(dim: int) -> int:
    """Rows that are decoded at once."""
    return max(1, min(ROWS_READ, NUMBERS_READ // dim))


def read_batches(file: pq.ParquetFile, dim: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file, in its known columns; their values are not checked yet."""
    names, size = known_columns(file.schema_arrow, dim), rows_at_once(dim)
    for batch in file.iter_batches(batch_size=size, columns=names, use_threads=False):
        batch.validate(full=True)  # Offsets and UTF-8 of a damaged file.
        yield batch


def cast_columns(batch: pa.RecordBatch, dim: int, first: int) -> dict[str, pa.Array]:
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
    return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
