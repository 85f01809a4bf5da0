"""A gallery's templates to a file and back, and vectors on their way in.

Shapes: N templates, D dimensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twinlens.errors import DataError, GalleryError
from twinlens.files import replacing_file
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.enrol import (
    EnrolResult,
    SkippedPicture,
    check_identity,
    digest,
    forgery,
    make_rows,
    taken,
)
from twinlens.gallery.schema import COLUMNS, schema
from twinlens.gallery.snapshot import vectors

__all__ = ["enrol_embeddings", "export", "import_file"]

FINGERPRINT = b"twinlens.fingerprint"
AT_ONCE = 50_000

KINDS = {
    "hash": pa.string(),
    "identity": pa.string(),
    "path": pa.string(),
    "time": pa.timestamp("us", "UTC"),
    "metadata": pa.string(),
    "thumbnail": pa.large_binary(),
    "forged": pa.bool_(),
}
"""Columns of a file besides the embedding, of which only identity and path have to be there."""


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
            return _write(path, columns, _passed(table.to_batches(columns=list(COLUMNS))))
        except _UnreadError as error:
            raise error.reason from None
        except DataError as error:
            return error  # Raised here the store would take it for its own.

    found = core.store.read(write)
    if isinstance(found, DataError):
        raise found
    return found


def _write(path: Path, columns: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    num = 0
    try:
        path = path.resolve()  # What a link points to is written, and the link stays.
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with replacing_file(path, part), pq.ParquetWriter(part, columns) as writer:
            for batch in batches:
                rows = pa.Table.from_batches([batch]).rename_columns(
                    ["embedding" if name == "vector" else name for name in COLUMNS]
                )
                writer.write_table(rows.select(columns.names).cast(columns))
                num += len(rows)
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        raise DataError(
            f"cannot write {path}: {os.strerror(number) if number else error}"
        ) from error
    return num


class _UnreadError(Exception):
    """The gallery's own error, which is not to be taken for one of the file that is written."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _passed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except (OSError, ValueError) as error:
        raise _UnreadError(error) from error


class EmbeddingImport:
    """Rows with vectors on their way into a gallery; counts as it goes."""

    def __init__(self, core: GalleryCore) -> None:
        self._core = core
        self._num_rows = self._num_new = self._num_known = 0
        self._skipped: list[SkippedPicture] = []
        self._identities: set[str] = set()

    def add(self, rows: pa.Table, forged_N: NDArray[np.bool_] | None = None) -> None:
        """Store the genuine ones whose hash is new; the others are known, or somebody else's."""
        number_N = self._num_rows + 1 + np.arange(len(rows))
        self._num_rows += len(rows)
        if forged_N is not None and forged_N.any():
            for row in np.flatnonzero(forged_N).tolist():
                self._skipped.append(forgery(_named(rows, row, number_N)))
            rows, number_N = rows.filter(pa.array(~forged_N)), number_N[~forged_N]
        num_new = self._core.insert(rows)
        names = rows["identity"].to_pylist()
        # Asked only where some were not taken: it takes longer than to store them.
        owners: dict[str, str] = {}
        if num_new < len(rows):
            hashes = rows["hash"].to_pylist()
            owners = self._core.owners(list(dict.fromkeys(hashes)))
            owner_of = [owners.get(one, name) for one, name in zip(hashes, names, strict=True)]
            others = [row for row, name in enumerate(names) if owner_of[row] != name]
            for row in others:
                self._skipped.append(taken(_named(rows, row, number_N), owner_of[row]))
            names = [name for name, owner in zip(names, owner_of, strict=True) if name == owner]
        self._identities.update(names)
        self._num_new += num_new
        self._num_known += len(names) - num_new

    def enrolled(self) -> EnrolResult:
        """What became of all rows."""
        return EnrolResult(
            self._num_new, self._num_known, tuple(self._skipped), len(self._identities)
        )


def _named(rows: pa.Table, row: int, number_N: NDArray[np.int64]) -> str:
    path: str = rows["path"][int(row)].as_py()
    return path or f"row {number_N[row]}"


def enrol_embeddings(
    core: GalleryCore,
    emb_ND: NDArray[Any],
    identity: Sequence[str],
    fingerprint: str,
    path: Sequence[str] | None,
    hash: Sequence[str] | None,
    metadata: Sequence[Mapping[str, Any]] | None,
    progress: Progress | None,
) -> EnrolResult:
    """Enrol existing embeddings; see `Gallery.enrol_embeddings`."""
    num, arrivals = len(emb_ND), EmbeddingImport(core)
    for start in range(0, num, AT_ONCE):
        part = slice(start, start + AT_ONCE)
        rows = _rows_of_embeddings(
            core,
            emb_ND[part],
            identity[part],
            fingerprint,
            None if path is None else path[part],
            None if hash is None else hash[part],
            None if metadata is None else metadata[part],
        )
        arrivals.add(rows)
        if progress is not None:
            progress(min(start + AT_ONCE, num), num)
    return arrivals.enrolled()


def _rows_of_embeddings(
    core: GalleryCore,
    emb_ND: NDArray[Any],
    identity: Sequence[str],
    fingerprint: str,
    path: Sequence[str] | None = None,
    hash: Sequence[str] | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
) -> pa.Table:
    """Rows of the store for existing embeddings."""
    emb = np.ascontiguousarray(emb_ND, dtype=np.float32)
    num = len(emb)
    core.check_vectors(emb, fingerprint)
    names = [check_identity(name) for name in identity]
    path = [""] * num if path is None else path
    hash = [digest(row.tobytes()) for row in emb] if hash is None else hash
    metadata = [{}] * num if metadata is None else metadata
    if not num == len(names) == len(path) == len(hash) == len(metadata):
        raise GalleryError(
            f"found {num} embeddings, {len(names)} identities, {len(path)} paths, {len(hash)} "
            f"hashes and {len(metadata)} metadata: as many of each are needed"
        )
    return make_rows(core.prepared(emb), names, path, hash, metadata)


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
    arrivals = EmbeddingImport(core)
    # Another model's vectors may have another length as well, which would say less.
    _rows_of_embeddings(core, np.empty((0, core.dim)), [], fingerprint)
    for rows in _read(file, path):
        columns = _columns(rows, path, core.dim)
        paths = [_full(one) for one in columns["path"].to_pylist()]
        try:
            emb_ND = _embeddings(columns["embedding"])
            found = _rows_of_embeddings(
                core, emb_ND, columns["identity"].to_pylist(), fingerprint, paths,
                _hashes(columns, emb_ND), metadata=_metadata(columns),
            )  # fmt: skip
        except GalleryError as error:
            raise GalleryError(f"cannot import {path}: {error}") from error
        for name in ("time", "thumbnail"):
            if name in columns:
                place = found.column_names.index(name)
                column = pc.coalesce(columns[name], found[name])
                found = found.set_column(place, found.schema.field(name), column)
        arrivals.add(found, _forged(columns))
        done += len(rows)
        if progress is not None:
            progress(done, total)
    return arrivals.enrolled()


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
    """The columns of a file in the types that are needed, since others than we write such files."""
    kinds = {**KINDS, "embedding": pa.list_(pa.float32(), dim)}
    found = {}
    for name in rows.column_names:
        column = rows[name].combine_chunks()
        try:
            # Times of more than microseconds lose what is beyond.
            found[name] = column.cast(kinds[name], safe=name != "time")
        except pa.ArrowException as error:
            raise GalleryError(
                f"cannot import {path}: its column {name} holds {column.type}, and {kinds[name]} "
                f"is needed ({str(error).splitlines()[0]})"
            ) from error
    for name in ("identity", "embedding"):
        if found[name].null_count:
            raise GalleryError(
                f"cannot import {path}: its column {name} is empty in {found[name].null_count} "
                "rows: each row needs one"
            )
    found["path"] = found["path"].fill_null("")
    return found


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
    found = []
    for text in columns["metadata"].to_pylist():
        try:
            said = json.loads(text or "{}")
        except ValueError:
            said = text
        if not isinstance(said, dict):
            raise GalleryError(
                f"its column metadata holds {text[:80]!r}, and a JSON object is needed, such as "
                '{"room": "north"}'
            )
        found.append(said)
    return found


def _forged(columns: Mapping[str, pa.Array]) -> NDArray[np.bool_] | None:
    """Which rows are forgeries, as `twinlens embed` says."""
    if "forged" not in columns:
        return None
    forged_N: NDArray[np.bool_] = columns["forged"].fill_null(False).to_numpy(zero_copy_only=False)
    return forged_N


def _full(path: str) -> str:
    """A relative path, such as `twinlens embed` may write, so that it leads there from anywhere."""
    if not path or Path(path).is_absolute() or not Path(path).is_file():
        return path
    return os.path.abspath(path)  # noqa: PTH100  A link is to stay one.


def _hashes(columns: Mapping[str, pa.Array], emb_ND: NDArray[np.float32]) -> list[str]:
    """Those of the file; else those of the pictures, which `twinlens embed` does not write."""
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
