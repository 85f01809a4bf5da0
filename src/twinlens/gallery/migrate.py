"""Migration of a gallery to another model: all pictures are embedded again from their files.

Shapes: N templates, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from twinlens.errors import GalleryError, PictureError
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.corrections import Feedback, packed, with_feedback, without
from twinlens.gallery.results import RebuildResult, SkippedPicture
from twinlens.gallery.schema import COLUMNS, schema, with_settings
from twinlens.gallery.settings import in_format, model_files, model_settings
from twinlens.gallery.sources import Source, read_source
from twinlens.gallery.table import ActiveWriterError
from twinlens.measure.distances import as_euclidean

if TYPE_CHECKING:
    from twinlens.match.matcher import Matcher

__all__ = ["rebuild"]

log = logging.getLogger("twinlens")

AT_ONCE = 256
MAX_SHOWN = 10
NO_FILE = "no file is known, as for pictures of a named set or from memory"

Progress = Callable[[int, int], None]


def rebuild(
    core: GalleryCore, matcher: Matcher, drop_missing: bool, progress: Progress | None
) -> RebuildResult:
    """Embed all pictures again with another model; see `Gallery.rebuild`."""
    missing = _missing(core)
    if missing and not drop_missing:
        raise GalleryError(_missing_message(list(missing.values()), len(core)))
    store, old, dropped = core.store, core.fingerprint, set(missing)
    settings = {k: v for k, v in store.settings().items() if k != "calibrated_on"}
    settings |= model_settings(matcher)
    feedback = core.state().settings.feedback
    if feedback is not None:
        settings = with_feedback(settings, _embedded_again(feedback, matcher, dropped))
    columns = with_settings(schema(matcher.settings.embedding), in_format(settings))
    total = len(core) - len(missing)

    def batches(table: Any) -> pa.RecordBatchReader:
        # Here no other process deletes them as the files of a killed rebuild.
        with model_files(matcher) as files:
            store.copy_files(files)
        rows = _embedded(table, matcher, dropped, lambda done: progress and progress(done, total))
        return pa.RecordBatchReader.from_batches(columns, rows)

    store.table.replace_all(batches)
    try:
        store.clear()
    except ActiveWriterError as error:
        log.warning("old files remain until `twinlens gallery optimize %s`: %s", core.place, error)
    store.delete_models(old)
    return RebuildResult(store.count(), tuple(missing.values()), matcher.fingerprint)


def _missing(core: GalleryCore) -> dict[str, SkippedPicture]:
    """Pictures that are missing or were changed since they were embedded, by hash."""
    rows = core.store.find(columns=["path", "hash"])
    path_of = dict(zip(rows["hash"].to_pylist(), rows["path"].to_pylist(), strict=True))
    feedback = core.state().settings.feedback
    if feedback is not None:
        path_of |= {name: picture.path for name, picture in feedback.pictures.items()}
    missing = {}
    for name, path in path_of.items():
        try:
            same = Source(path, "").hash() == name
            reason = "it was changed since it was enrolled"
        except PictureError as error:
            # Files are enrolled by their full paths.
            same, reason = False, error.reason if Path(path).is_absolute() else NO_FILE
        if not same:
            missing[name] = SkippedPicture(path, reason)
    return missing


def _missing_message(missing: list[SkippedPicture], total: int) -> str:
    shown = "\n".join(f"  {picture}" for picture in missing[:MAX_SHOWN])
    more = f"\n  and {len(missing) - MAX_SHOWN} more" if len(missing) > MAX_SHOWN else ""
    back = (
        "Put them back (those without a file can only be enrolled into a new gallery)"
        if any(picture.reason == NO_FILE for picture in missing)
        else "Put them back"
    )
    return (
        f"{len(missing)} of {total} pictures cannot be embedded again; the gallery is unchanged. "
        f"{back}, or leave them out with --drop-missing (drop_missing=True):\n{shown}{more}"
    )


def _embedded_again(feedback: Feedback, matcher: Matcher, dropped: set[str]) -> Feedback:
    """The corrections with embeddings of another model, less those of dropped pictures."""
    feedback, plain = without(feedback, dropped), as_euclidean(matcher.comparison)
    pictures = {}
    for name, picture in feedback.pictures.items():
        pixels, _ = read_source(matcher, Source(picture.path, ""))
        emb_1D = matcher.embed_pixels(pixels[None])
        vector = packed(emb_1D if plain is None else plain.prepared(emb_1D))
        pictures[name] = picture.model_copy(update={"vector": vector})
    return feedback.model_copy(update={"pictures": pictures})


def _embedded(
    table: Any, matcher: Matcher, dropped: set[str], done: Callable[[int], object]
) -> Iterator[pa.RecordBatch]:
    """The rows of a table with vectors of another model, batch by batch."""
    plain = as_euclidean(matcher.comparison)
    kept = [name for name in COLUMNS if name != "vector"]
    num = 0
    for batch in table.to_batches(columns=kept, batch_size=AT_ONCE):
        rows = pa.Table.from_batches([batch])
        is_kept = [name not in dropped for name in rows["hash"].to_pylist()]
        rows = rows.filter(pa.array(is_kept, pa.bool_()))
        sources = [Source(path, "") for path in rows["path"].to_pylist()]
        if not sources:
            continue
        pixels = np.stack([read_source(matcher, s)[0] for s in sources])
        emb_ND = matcher.embed_pixels(pixels)
        emb_ND = emb_ND if plain is None else plain.prepared(emb_ND)
        vector = pa.FixedSizeListArray.from_arrays(emb_ND.ravel(), emb_ND.shape[1])
        rows = rows.add_column(COLUMNS.index("vector"), "vector", vector)
        num += len(rows)
        done(num)
        yield from rows.cast(schema(emb_ND.shape[1])).to_batches()
