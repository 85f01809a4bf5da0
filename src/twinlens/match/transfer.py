"""A gallery's templates to a file and back, and from one model to another.

Shapes: N templates, D dimensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twinlens.errors import GalleryError, PictureError
from twinlens.files import replacing
from twinlens.match.enrolment import Enrolled, Skipped, Source, digest, read_source
from twinlens.match.snapshot import vectors
from twinlens.match.state import model_files, model_settings
from twinlens.match.stores import COLUMNS, schema, with_settings

if TYPE_CHECKING:
    from twinlens.match.gallery import Gallery
    from twinlens.match.matcher import Matcher

__all__ = ["Rebuilt", "export", "import_file", "rebuild"]

FINGERPRINT = b"twinlens.fingerprint"
AT_ONCE = 256
MOST_SHOWN = 10

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Rebuilt:
    """What became of a gallery that got another model.

    Attributes:
        num_templates: that were embedded again.
        missing: those that could not be, and are not in it any more.
        fingerprint: of the new model.
    """

    num_templates: int
    missing: tuple[Skipped, ...]
    fingerprint: str

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "num_templates": self.num_templates,
            "missing": [{"path": s.path, "reason": s.reason} for s in self.missing],
            "fingerprint": self.fingerprint,
        }

    def as_text(self) -> str:
        """What was done, in words."""
        return (
            f"{self.num_templates} templates embedded by the model {self.fingerprint}, "
            f"{len(self.missing)} dropped; the gallery wants calibrating again"
        )


def export(gallery: Gallery, path: Path) -> int:
    """Write all templates to a Parquet file; returns how many."""
    columns = pa.schema(
        [*(f for f in schema(gallery.dim) if f.name not in ("metadata", "vector", "thumbnail")),
         ("metadata", pa.string()), ("embedding", pa.list_(pa.float32(), gallery.dim)),
         ("thumbnail", pa.large_binary())],
        metadata={FINGERPRINT: gallery.fingerprint.encode()},
    )  # fmt: skip

    def write(table: Any) -> int:
        num = 0
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with replacing(path, part), pq.ParquetWriter(part, columns) as writer:
            for batch in table.to_batches(columns=list(COLUMNS)):
                rows = pa.Table.from_batches([batch]).rename_columns(
                    ["embedding" if name == "vector" else name for name in COLUMNS]
                )
                writer.write_table(rows.select(columns.names).cast(columns))
                num += len(rows)
        return num

    return int(gallery.store.read(write))


def import_file(gallery: Gallery, path: Path, progress: Progress | None) -> Enrolled:
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
        return _import(gallery, file, fingerprint.decode(), progress)


def _import(
    gallery: Gallery, file: pq.ParquetFile, fingerprint: str, progress: Progress | None
) -> Enrolled:
    known = [n for n in ("hash", "identity", "path", "time", "metadata", "embedding", "thumbnail")
             if n in file.schema_arrow.names]  # fmt: skip
    total, done, num_new = file.metadata.num_rows, 0, 0
    identities: set[str] = set()
    for batch in file.iter_batches(batch_size=50_000, columns=known):
        rows = pa.Table.from_batches([batch])
        emb = vectors(pa.chunked_array([rows["embedding"].combine_chunks()]))
        names = rows["identity"].to_pylist()
        identities.update(names)
        found = gallery.rows_of_embeddings(
            emb, names, fingerprint, rows["path"].to_pylist(), _hashes(rows),
            metadata=[json.loads(text) for text in rows["metadata"].to_pylist()]
            if "metadata" in known else None,
        )  # fmt: skip
        for name in ("time", "thumbnail"):
            if name in known:
                place = found.column_names.index(name)
                column = rows[name].cast(found.schema.field(name).type)
                found = found.set_column(place, found.schema.field(name), column)
        num_new += gallery.insert(found)
        done += len(rows)
        if progress is not None:
            progress(done, total)
    return Enrolled(num_new, total - num_new, (), len(identities))


def _hashes(rows: pa.Table) -> list[str] | None:
    """Those of the file; else those of the pictures, which `twinlens embed` does not write."""
    if "hash" in rows.column_names:
        return list(rows["hash"].to_pylist())
    emb = vectors(pa.chunked_array([rows["embedding"].combine_chunks()]))
    hashes = []
    for path, row in zip(rows["path"].to_pylist(), emb, strict=True):
        try:
            hashes.append(digest(Path(path).read_bytes()))
        except (OSError, ValueError):
            hashes.append(digest(row.tobytes()))
    return hashes


def rebuild(
    gallery: Gallery, model: str | Path | Matcher, drop_missing: bool, progress: Progress | None
) -> Rebuilt:
    """Embed all pictures again with another model; see `Gallery.rebuild`."""
    from twinlens.match.matcher import Matcher

    matcher = model if isinstance(model, Matcher) else Matcher.load(model)
    missing = _missing(gallery)
    if missing and not drop_missing:
        raise GalleryError(_told(missing, len(gallery)))
    store, old = gallery.store, gallery.fingerprint
    store.copy_files(model_files(matcher))
    columns = with_settings(
        schema(matcher.bundle.encoder.model_settings.embedding),
        store.settings() | model_settings(matcher),
    )
    gone = {one.path for one in missing}
    total = len(gallery) - len(missing)

    def batches(table: Any) -> pa.RecordBatchReader:
        rows = _embedded(table, matcher, gone, lambda done: progress and progress(done, total))
        return pa.RecordBatchReader.from_batches(columns, rows)

    store.replace_all(batches)
    store.clear()
    if old != matcher.fingerprint:
        store.delete_files(f"models/{old}")
    return Rebuilt(store.count(), tuple(missing), matcher.fingerprint)


def _missing(gallery: Gallery) -> list[Skipped]:
    """Templates whose picture is not what it was when it was enrolled, or not there."""
    rows = gallery.store.find(columns=["path", "hash"])
    found = []
    for path, name in zip(rows["path"].to_pylist(), rows["hash"].to_pylist(), strict=True):
        try:
            same = digest(Source(path, "").content()) == name
            reason = "it was changed since it was enrolled"
        except PictureError as error:
            same, reason = False, error.reason
        if not same:
            found.append(Skipped(path, reason))
    return found


def _told(missing: list[Skipped], total: int) -> str:
    shown = "\n".join(f"  {one.path}: {one.reason}" for one in missing[:MOST_SHOWN])
    more = f"\n  and {len(missing) - MOST_SHOWN} more" if len(missing) > MOST_SHOWN else ""
    return (
        f"{len(missing)} of {total} pictures cannot be embedded again; the gallery is as before. "
        f"Put them back, or leave them out with --drop-missing (drop_missing=True):\n{shown}{more}"
    )


def _embedded(
    table: Any, matcher: Matcher, gone: set[str], done: Callable[[int], object]
) -> Iterator[pa.RecordBatch]:
    """The rows of a table with vectors of another model, batch by batch."""
    from twinlens.model.encoder import embed_pixels

    encoder, plain = matcher.bundle.encoder, matcher.plain
    kept = [name for name in COLUMNS if name != "vector"]
    num = 0
    for batch in table.to_batches(columns=kept, batch_size=AT_ONCE):
        rows = pa.Table.from_batches([batch])
        rows = rows.filter(pa.array([path not in gone for path in rows["path"].to_pylist()]))
        sources = [Source(path, "") for path in rows["path"].to_pylist()]
        if not sources:
            continue
        pixels = np.stack([read_source(matcher, s, s.content()) for s in sources])
        emb_ND = embed_pixels(encoder, pixels)
        emb_ND = emb_ND if plain is None else plain.prepared(emb_ND)
        vector = pa.FixedSizeListArray.from_arrays(emb_ND.ravel(), emb_ND.shape[1])
        rows = rows.add_column(COLUMNS.index("vector"), "vector", vector)
        num += len(rows)
        done(num)
        yield from rows.cast(schema(emb_ND.shape[1])).to_batches()
