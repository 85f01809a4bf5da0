"""`twinlens embed`: a Parquet file of embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twinlens.commands.selection import read_data
from twinlens.data.pixel_cache import PixelStream
from twinlens.data.quality import quality_parts, quality_scores, size_part
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.files import check_output_file, writing_file
from twinlens.match.matcher import Matcher
from twinlens.progress import Progress, console_log

__all__ = ["embed", "embed_stream"]

log = logging.getLogger("twinlens")

BATCH_BYTES, MAX_BATCH = 2**26, 1024  # of the pictures that are decoded, then embedded


def embed(
    model: str | Path,
    data: str | Path | ImageTable,
    *,
    out: str | Path,
    root: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> int:
    """Write the embedding of every picture to a Parquet file, with its quality.

    Its columns are path, identity, forged, embedding, quality (the score of `data.quality`) and
    domain_score (of `measure.domain`, above 1 for a picture unlike the calibration pictures; null
    if unknown).

    Args:
        model: folder of a model or of a run.
        data: a folder, a manifest, the name of a set, or a table; all splits.
        out: the file, which only its owner can read; its metadata holds the model's fingerprint.
        root: folder of a named set's local copy.
        device: device of the embeddings, as in `twinlens.load`.
        quiet: log warnings only.
    Returns:
        The number of rows.
    Raises:
        DataError: pictures that cannot be read, or a file that cannot be written or is not called
            .parquet.

    Example:
        >>> twinlens.embed("runs/photos", "photos/", out="photos.parquet")  # doctest: +SKIP
        4096
    """
    check_output_file(out)
    if Path(out).suffix.lower() != ".parquet":
        raise DataError(f"embeddings are written as Parquet: name a file .parquet, found {out}")
    with console_log(quiet):
        matcher = Matcher.load(model, device)
        settings = matcher.data_settings
        stream = PixelStream(
            read_data(matcher, data, root),
            matcher.picture,
            max_pixels=settings.max_pixels,
            max_broken=settings.max_broken,
        )
        emb_ND, parts_N3, domain_scores = embed_stream(matcher, stream)
        parts_N3[:, 1] = size_part(stream.sources(), matcher.picture)
        for broken in stream.broken:
            log.warning("skipped %s: %s", broken.path, broken.reason)
        rows = pa.table(
            {
                "path": _strings(stream.table.path),
                "identity": _strings(stream.table.identity),
                "forged": pa.array(stream.table.forged),
                "embedding": pa.FixedSizeListArray.from_arrays(emb_ND.ravel(), emb_ND.shape[1]),
                "quality": pa.array(quality_scores(parts_N3), pa.float32()),
                "domain_score": pa.array(domain_scores, pa.float32()),
            }
        ).replace_schema_metadata({"twinlens.fingerprint": matcher.fingerprint})
        with writing_file(out) as part:
            pq.write_table(rows, part)
            part.chmod(0o600)  # It holds names and embeddings.
        return len(rows)


def embed_stream(
    matcher: Matcher, stream: PixelStream
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[float | None]]:
    """Embeddings (N, D), `quality_parts` (N, 3) without sizes, and domain scores of the readable
    pictures.
    """
    progress, total = Progress("embedding"), len(stream.table)
    height, width = matcher.picture.size
    size = max(1, BATCH_BYTES // (matcher.picture.channels * height * width))
    embeddings, parts, scores = [], [], list[float | None]()
    for seen, pixels in stream.batches(min(size, MAX_BATCH), prefetch=not matcher.on_cpu):
        embeddings.append(matcher.embed_pixels(pixels))
        parts.append(quality_parts(pixels, matcher.picture))
        scores += matcher.domain_scores(embeddings[-1], pixels)
        progress(seen, total)
    progress.close()
    return np.concatenate(embeddings), np.concatenate(parts), scores


def _strings(names: Iterable[str]) -> pa.Array:
    """Strings for Arrow, which needs UTF-8; file names that are not UTF-8 are escaped."""
    plain = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    return pa.array(plain, pa.string())
