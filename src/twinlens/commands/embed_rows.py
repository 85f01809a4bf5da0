"""The embeddings of some pictures as rows of a file, in this process or in another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.data.download import cache_folder, create_once
from twinlens.data.pixel_cache import PixelStream
from twinlens.data.quality import quality_parts, quality_scores, size_part
from twinlens.data.table import ImageTable
from twinlens.errors import ModelError, PictureError
from twinlens.face.faces_of import FacePlace
from twinlens.match.matcher import Matcher
from twinlens.model.stored import MODEL_FILES

__all__ = ["FINGERPRINT", "EmbeddingWork", "embed_rows", "embed_stream", "skipped_rows"]

BATCH_BYTES, MAX_BATCH = 2**26, 1024  # of the pictures that are decoded, then embedded
FINGERPRINT, SKIPPED = "twinlens.fingerprint", "twinlens.skipped"  # in the metadata of rows

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class EmbeddingWork:
    """The embeddings of a part, by a process with a model of its own.

    Attributes:
        model: folder of the model.
        fingerprint: fingerprint of the model.
        device: device of the embeddings, as in `Matcher.load`.
        threads: threads of an embedding, as there.
        as_is: whether pictures are taken as they are.
        photographs: whether faces are found in the pictures.
        files: content of the model's files by name, for a machine without the folder.
    """

    model: Path
    fingerprint: str
    device: str
    threads: int | None
    as_is: bool
    photographs: bool
    files: Mapping[str, bytes] | None = field(repr=False)

    @classmethod
    def of(
        cls,
        matcher: Matcher,
        device: str,
        photographs: bool,
        threads: int | None,
        *,
        is_elsewhere: bool = False,
    ) -> EmbeddingWork:
        """The work with a loaded model: on the device where it is loaded, or on other machines."""
        device = "cpu" if matcher.on_cpu and not is_elsewhere else device
        as_is = matcher.stored.description.face is not None and matcher.face is None
        files = None
        if is_elsewhere:
            paths = [matcher.path / name for name in MODEL_FILES]
            files = {path.name: path.read_bytes() for path in paths if path.is_file()}
        return cls(matcher.path, matcher.fingerprint, device, threads, as_is, photographs, files)

    def __call__(self, table: ImageTable) -> pa.Table:
        """As `embed_rows`."""
        if self.fingerprint not in _matchers:
            folder = self.model
            if self.files is not None:
                name = cache_folder() / "models" / self.fingerprint
                folder = create_once(name, self._write_files)
            _matchers[self.fingerprint] = Matcher.load(folder, self.device, threads=self.threads)
        matcher = _matchers[self.fingerprint]
        if matcher.fingerprint != self.fingerprint:
            raise ModelError(f"the model {self.model} was changed meanwhile: run this again")
        return embed_rows(matcher.as_is() if self.as_is else matcher, table, self.photographs)

    def _write_files(self, folder: Path) -> None:
        for name, content in (self.files or {}).items():
            (folder / name).write_bytes(content)


_matchers: dict[str, Matcher] = {}
"""The loaded model of a worker process, by its fingerprint."""


def embed_rows(
    matcher: Matcher, table: ImageTable, photographs: bool, progress: OnProgress | None = None
) -> pa.Table:
    """The rows of the file for some pictures; `SKIPPED` in its metadata names the unreadable ones.

    Args:
        matcher: a loaded model.
        table: pictures, at least one.
        photographs: whether to find the faces in them.
        progress: called with the pictures done, and all.
    """
    skipped, places = list[tuple[int, str]](), dict[str, tuple[str, FacePlace]]()
    if photographs:
        table, places = _face_table(matcher, table, skipped)
    emb_ND = np.zeros((0, matcher.stored.num_embedding), np.float32)
    parts_N3, domain_scores = np.zeros((0, 3), np.float32), list[float | None]()
    if len(table):
        stream = PixelStream(
            table, matcher.picture, max_pixels=matcher.data_settings.max_pixels, max_broken=None
        )
        emb_ND, parts_N3, domain_scores = embed_stream(matcher, stream, progress)
        parts_N3[:, 1] = size_part(stream.sources(), matcher.picture)
        if stream.broken:
            row_of = {path: row for row, path in enumerate(table.path)}
            skipped += [(row_of[broken.path], broken.reason) for broken in stream.broken]
        table = stream.table
    columns = {
        "path": _strings(table.path),
        "identity": _strings(table.identity),
        "forged": pa.array(table.forged),
        "embedding": pa.FixedSizeListArray.from_arrays(emb_ND.ravel(), emb_ND.shape[1]),
        "quality": pa.array(quality_scores(parts_N3), pa.float32()),
        "domain_score": pa.array(domain_scores, pa.float32()),
    }
    if photographs:
        columns |= _place_columns([places[name] for name in table.path])
    return pa.table(columns).replace_schema_metadata(
        {FINGERPRINT: matcher.fingerprint, SKIPPED: json.dumps(skipped)}
    )


def skipped_rows(rows: pa.Table) -> list[tuple[int, str]]:
    """Row among the pictures, and reason, of each picture that `embed_rows` left out."""
    return [(row, reason) for row, reason in json.loads(rows.schema.metadata[SKIPPED.encode()])]


def _face_table(
    matcher: Matcher, table: ImageTable, skipped: list[tuple[int, str]]
) -> tuple[ImageTable, dict[str, tuple[str, FacePlace]]]:
    """A table of the faces of pictures; the picture and the place of each, by its name there.

    Args:
        matcher: a model of cropped faces.
        table: the pictures.
        skipped: receives the row of each picture without a face, and the reason.
    Raises:
        DataError: the detector's model file is missing.
    """
    places = dict[str, tuple[str, FacePlace]]()
    rows, pixels = list[int](), list[NDArray[np.uint8]]()
    for row, path in enumerate(table.path):
        try:
            faces = matcher.faces(table.picture(row))
        except PictureError as error:
            skipped.append((row, error.reason))
            continue
        for face in faces:
            places[f"{path}#face{face.place.number}"] = (path, face.place)
            rows.append(row)
            pixels.append(np.asarray(face.picture))
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
    sides = np.array([place.box or (np.nan,) * 4 for _, place in places], np.float32).reshape(-1, 4)
    return {
        "path": _strings(path for path, _ in places),
        "face": pa.array([place.number for _, place in places], pa.int32()),
        **{name: pa.array(side, pa.float32(), from_pandas=True)  # NaN becomes null.
           for name, side in zip(("left", "top", "right", "bottom"), sides.T, strict=True)},
    }  # fmt: skip


def embed_stream(
    matcher: Matcher, stream: PixelStream, progress: OnProgress | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[float | None]]:
    """Embeddings (N, D), `quality_parts` (N, 3) without sizes, and domain scores of the readable
    pictures.
    """
    height, width = matcher.picture.size
    size = max(1, BATCH_BYTES // (matcher.picture.channels * height * width))
    embeddings = [np.zeros((0, matcher.stored.num_embedding), np.float32)]
    parts, scores = [np.zeros((0, 3), np.float32)], list[float | None]()
    for seen, pixels in stream.batches(min(size, MAX_BATCH), prefetch=not matcher.on_cpu):
        embeddings.append(matcher.embed_pixels(pixels))
        parts.append(quality_parts(pixels, matcher.picture))
        scores += matcher.domain_scores(embeddings[-1], pixels)
        if progress is not None:
            progress(seen, len(stream.table))
    return np.concatenate(embeddings), np.concatenate(parts), scores


def _strings(names: Iterable[str]) -> pa.Array:
    """Strings for Arrow, which needs UTF-8; file names that are not UTF-8 are escaped."""
    plain = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    return pa.array(plain, pa.string())
