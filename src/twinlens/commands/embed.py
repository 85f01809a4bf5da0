"""`twinlens embed`: a file of embeddings; and embeddings of single pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.commands.embedding_files import check_embedding_file, write_embeddings
from twinlens.commands.selection import read_pictures
from twinlens.data.adapters import Data
from twinlens.data.pixel_cache import PixelStream
from twinlens.data.quality import PictureQuality, quality_parts, quality_scores, size_part
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, PictureError
from twinlens.face.faces_of import FacePlace
from twinlens.face.marks import settings_of_table
from twinlens.match.answers import require_acquired
from twinlens.match.matcher import Matcher, Model, Picture
from twinlens.measure.domain import DomainCheck
from twinlens.progress import Progress, console_log

__all__ = ["Embedding", "EmbeddingResult", "embed", "embed_pictures", "embed_stream"]

log = logging.getLogger("twinlens")

BATCH_BYTES, MAX_BATCH = 2**26, 1024  # of the pictures that are decoded, then embedded


@dataclass(frozen=True, eq=False)
class Embedding:
    """The embedding of one picture.

    Attributes:
        picture: its name.
        embedding: shape (D,); None for a failure to acquire.
        quality: quality of the picture; None for a failure to acquire.
        domain: whether it is like the model's calibration pictures; None if unknown.
        error: reason of a picture that is unreadable or below the minimum of quality.
        face: place of the embedded face; None for a model of other pictures.
    """

    picture: str
    embedding: NDArray[np.float32] | None
    quality: PictureQuality | None = None
    domain: DomainCheck | None = None
    error: str | None = None
    face: FacePlace | None = None

    def as_json(self) -> dict[str, Any]:
        """The embedding with quality, domain and `face`; or `picture` and `error` alone."""
        if self.embedding is None or self.quality is None:
            return {"picture": self.picture, "error": self.error}
        domain = DomainCheck.as_json(None if self.domain is None else [self.domain])
        face = {} if self.face is None else {"face": asdict(self.face)}
        return {"picture": self.picture, "embedding": self.embedding.tolist(),
                "quality": asdict(self.quality), **domain, **face}  # fmt: skip


@dataclass(frozen=True, eq=False)
class EmbeddingResult:
    """The embeddings of pictures by one model.

    Attributes:
        fingerprint: fingerprint of the model; only embeddings of equal ones can be compared.
        dim: D.
        embeddings: one for each picture, in their order; of a model of cropped faces one for each
            face.
    """

    fingerprint: str
    dim: int
    embeddings: tuple[Embedding, ...]

    def require_some(self) -> None:
        """Refuse a result in which no picture could be read.

        Raises:
            PictureError: the only picture cannot be read.
            DataError: none of several can.
        """
        require_acquired([(row.picture, row.error) for row in self.embeddings])

    def as_json(self) -> dict[str, Any]:
        """The model, the embeddings, and the number of failures to acquire, as plain data."""
        return {
            "fingerprint": self.fingerprint,
            "dim": self.dim,
            "embeddings": [row.as_json() for row in self.embeddings],
            "num_failed": sum(row.embedding is None for row in self.embeddings),
        }


def embed_pictures(
    matcher: Matcher,
    pictures: Sequence[tuple[str, Picture]],
    *,
    min_quality: float | None = None,
) -> EmbeddingResult:
    """Embed pictures one by one; an unreadable one does not stop the others.

    Args:
        matcher: a loaded model.
        pictures: names for the answers, and pictures.
        min_quality: least quality of a picture, in [0, 1]; None for no such gate.
    Raises:
        ConfigError: a minimum outside [0, 1].
    """
    embeddings = []
    for name, picture in pictures:
        try:
            faces = matcher.faces_or_whole(picture)
            acquired = matcher.acquire_all([face for face, _ in faces], min_quality)
        except PictureError as error:
            embeddings.append(Embedding(name, None, error=error.reason))
            continue
        embeddings += [
            Embedding(name, one.embedding, one.quality, one.domain, face=place)
            for one, (_, place) in zip(acquired, faces, strict=True)
        ]
    return EmbeddingResult(matcher.fingerprint, matcher.settings.embedding, tuple(embeddings))


def embed(
    model: Model,
    data: Data,
    *,
    out: str | Path,
    root: str | Path | None = None,
    as_is: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> int:
    """Write the embedding of every picture to a file, with its quality.

    Its columns are path, identity ("" if unknown), forged, embedding, quality (the score of
    `data.quality`) and domain_score (of `measure.domain`, above 1 for a picture unlike the
    calibration pictures; null if unknown). The ending of the file sets the format:

    - .parquet: with the model's fingerprint as metadata; a gallery can import it.
    - .csv: columns `e0` to `e{D-1}` in place of `embedding`.
    - .npy: float32 embeddings, shape (N, D); the other columns lie beside it in `OUT.rows.csv`, in
      the same order.

    Args:
        model: folder of a model or of a run, or a loaded model.
        data: a folder, a manifest, the name of a set, or other data; all splits. A folder needs no
            class folders.
        out: the file, which only its owner can read.
        root: folder of a named set's local copy.
        as_is: take pictures as they are, although the model compares cropped faces. Otherwise it
            embeds each face of a photograph, and the columns face, left, top, right and bottom
            have their places.
        device: device of the embeddings, as in `twinlens.load`.
        quiet: log warnings only.
    Returns:
        The number of rows.
    Raises:
        DataError: pictures that cannot be read, a file that cannot be written, or another ending.

    Example:
        >>> twinlens.embed("runs/photos", "photos/", out="photos.parquet")  # doctest: +SKIP
        4096
    """
    check_embedding_file(out)
    with console_log(quiet):
        matcher = Matcher.of(model, device)
        matcher = matcher.as_is() if as_is else matcher
        settings = matcher.data_settings
        table, places = read_pictures(matcher, data, root), None
        crop = settings_of_table(table, max_pixels=matcher.max_pixels)
        if matcher.face is not None and crop is None:
            table, places = _face_table(matcher, table)
        stream = PixelStream(
            table,
            matcher.picture,
            max_pixels=settings.max_pixels,
            max_broken=settings.max_broken,
        )
        emb_ND, parts_N3, domain_scores = embed_stream(matcher, stream)
        parts_N3[:, 1] = size_part(stream.sources(), matcher.picture)
        for broken in stream.broken:
            log.warning("skipped %s: %s", broken.path, broken.reason)
        columns = {
            "path": _strings(stream.table.path),
            "identity": _strings(stream.table.identity),
            "forged": pa.array(stream.table.forged),
            "embedding": pa.FixedSizeListArray.from_arrays(emb_ND.ravel(), emb_ND.shape[1]),
            "quality": pa.array(quality_scores(parts_N3), pa.float32()),
            "domain_score": pa.array(domain_scores, pa.float32()),
        }
        if places is not None:
            columns |= _place_columns([places[name] for name in stream.table.path])
        rows = pa.table(columns).replace_schema_metadata(
            {"twinlens.fingerprint": matcher.fingerprint}
        )
        write_embeddings(out, rows)
        return len(rows)


def _face_table(
    matcher: Matcher, table: ImageTable
) -> tuple[ImageTable, dict[str, tuple[str, FacePlace]]]:
    """A table of the faces of pictures; the picture and the place of each, by its name there.

    Raises:
        DataError: no picture shows a face, or the detector's model file is missing.
    """
    progress, places = Progress("finding faces"), dict[str, tuple[str, FacePlace]]()
    rows, pixels = list[int](), list[NDArray[np.uint8]]()
    for row, path in enumerate(table.path):
        progress(row + 1, len(table))
        try:
            faces = matcher.faces(table.picture(row))
        except PictureError as error:
            log.warning("skipped %s: %s", path, error.reason)
            continue
        for face in faces:
            places[f"{path}#face{face.place.number}"] = (path, face.place)
            rows.append(row)
            pixels.append(np.asarray(face.picture))
    progress.close()
    if not rows:
        raise DataError(f"no face was found in {table.source}; --as-is takes pictures as they are")
    log.info("%d faces in %d of %d pictures", len(rows), len(set(rows)), len(table))
    column = np.empty(len(pixels), dtype=object)  # np.array would stack equal sizes.
    column[:] = pixels
    names = np.array(list(places), dtype=object)
    return (
        ImageTable(names, table.identity[rows], table.forged[rows], table.split[rows],
                   table.source, None, pixels=column),
        places,
    )  # fmt: skip


def _place_columns(places: Sequence[tuple[str, FacePlace]]) -> dict[str, pa.Array]:
    """The columns of the pictures and of the places of their faces, nulls for cropped faces."""
    sides = zip(*(place.box or (None,) * 4 for _, place in places), strict=True)
    return {
        "path": _strings(path for path, _ in places),
        "face": pa.array([place.number for _, place in places], pa.int32()),
        **{name: pa.array(side, pa.float32())
           for name, side in zip(("left", "top", "right", "bottom"), sides, strict=True)},
    }  # fmt: skip


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
