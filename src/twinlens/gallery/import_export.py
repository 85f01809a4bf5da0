"""Export of a gallery's templates to a Parquet file, and import from one.

Shapes: N templates, D dimensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twinlens.errors import DataError, GalleryError
from twinlens.files import writing_file
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.enrol_embeddings import AT_ONCE, RowEnrolment, rows_of_embeddings
from twinlens.gallery.results import EnrolResult
from twinlens.gallery.schema import COLUMNS, schema
from twinlens.gallery.snapshot import vectors
from twinlens.gallery.sources import digest

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

Progress = Callable[[int, int], None]


def export(core: GalleryCore, path: Path) -> int:
    """Write all templates to a Parquet file; returns how many.

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
    return num


class _UnreadError(Exception):
    """An error of the gallery, apart from those of the file being written."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _marked(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except (OSError, ValueError) as error:
        raise _UnreadError(error) from error


def import_file(core: GalleryCore, path: Path, progress: Progress | None) -> EnrolResult:
    """Enrol the rows of a Parquet file; see `Gallery.import_file`."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise GalleryError(f"cannot read {path}: {error}") from error
    with file:
        names = file.schema_arrow.names
        missing = {"identity", "embedding", "path"} - set(names)
        fingerprint = (file.schema_arrow.metadata or {}).get(FINGERPRINT)
        if missing or fingerprint is None:
            lacks = f"column {', '.join(sorted(missing))}" if missing else "model's fingerprint"
            raise GalleryError(
                f"{path} has no {lacks}: give a file that `twinlens gallery export` or "
                "`twinlens embed` wrote"
            )
        return _import(core, file, path, fingerprint.decode("utf-8", "replace"), progress)


def _import(
    core: GalleryCore, file: pq.ParquetFile, path: Path, fingerprint: str, progress: Progress | None
) -> EnrolResult:
    total, done = file.metadata.num_rows, 0
    enrolment = RowEnrolment(core)
    # First, since vectors of another model may have another length, a less helpful error.
    rows_of_embeddings(core, np.empty((0, core.dim)), [], fingerprint)
    for rows in _read(file, path):
        columns = _columns(rows, path, core.dim)
        paths = [_absolute(path) for path in columns["path"].to_pylist()]
        try:
            emb_ND = _embeddings(columns["embedding"])
            stored = rows_of_embeddings(
                core, emb_ND, columns["identity"].to_pylist(), fingerprint, paths,
                _hashes(columns, emb_ND), metadata=_metadata(columns),
            )  # fmt: skip
        except GalleryError as error:
            raise GalleryError(f"cannot import {path}: {error}") from error
        for name in ("time", "thumbnail"):
            if name in columns:
                place = stored.column_names.index(name)
                column = pc.coalesce(columns[name], stored[name])
                stored = stored.set_column(place, stored.schema.field(name), column)
        enrolment.add(stored, _forged(columns))
        done += len(rows)
        if progress is not None:
            progress(done, total)
    return enrolment.result()


def _read(file: pq.ParquetFile, path: Path) -> Iterator[pa.Table]:
    names = file.schema_arrow.names
    known = [name for name in (*KINDS, "embedding") if name in names]
    if len(known) < sum(name in known for name in names):
        raise GalleryError(f"cannot import {path}: it has a column twice")
    batches = file.iter_batches(batch_size=AT_ONCE, columns=known)
    try:
        for batch in batches:
            yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise GalleryError(f"cannot read {path}: {error}") from error


def _columns(rows: pa.Table, path: Path, dim: int) -> dict[str, pa.Array]:
    """The columns of a file, cast to a gallery's types; other programs write such files too."""
    kinds = {**KINDS, "embedding": pa.list_(pa.float32(), dim)}
    cast = {}
    for name in rows.column_names:
        column = rows[name].combine_chunks()
        try:
            # Times are cut to microseconds.
            cast[name] = column.cast(kinds[name], safe=name != "time")
        except pa.ArrowException as error:
            raise GalleryError(
                f"cannot import {path}: its column {name} holds {column.type}, but {kinds[name]} "
                f"is needed ({str(error).splitlines()[0]})"
            ) from error
    for name in ("identity", "embedding"):
        if cast[name].null_count:
            raise GalleryError(
                f"cannot import {path}: its column {name} is empty in {cast[name].null_count} "
                "rows: each row needs one"
            )
    cast["path"] = cast["path"].fill_null("")
    return cast


def _embeddings(column: pa.Array) -> NDArray[np.float32]:
    if column.flatten().null_count:
        raise GalleryError("its column embedding lacks some numbers: each row needs all")
    emb_ND = vectors(pa.chunked_array([column]))
    if not np.isfinite(emb_ND).all():
        raise GalleryError("its column embedding holds numbers that are not finite")
    return emb_ND


def _metadata(columns: Mapping[str, pa.Array]) -> list[dict[str, Any]] | None:
    if "metadata" not in columns:
        return None
    metadata = []
    for text in columns["metadata"].to_pylist():
        try:
            value = json.loads(text or "{}")
        except ValueError:
            value = text
        if not isinstance(value, dict):
            raise GalleryError(
                f"its column metadata holds {text[:80]!r}, but a JSON object is needed, such as "
                '{"room": "north"}'
            )
        metadata.append(value)
    return metadata


def _forged(columns: Mapping[str, pa.Array]) -> NDArray[np.bool_] | None:
    """Whether each row is a forgery, from the column that `twinlens embed` writes."""
    if "forged" not in columns:
        return None
    forged_N: NDArray[np.bool_] = columns["forged"].fill_null(False).to_numpy(zero_copy_only=False)
    return forged_N


def _absolute(path: str) -> str:
    """The full path of a file; `twinlens embed` may write relative paths."""
    if not path or Path(path).is_absolute() or not Path(path).is_file():
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
        return digest(Path(path).read_bytes())
    except (OSError, ValueError):
        return digest(emb_D.tobytes())
