"""Enrolment of pictures in batches: hash, skip the enrolled ones, decode, embed, insert.

Enrolling again, or resuming after a crash, embeds nothing twice.

Shapes: N pictures, C channels, D dimensions.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.data.quality import PictureQuality, check_minimum, quality_parts
from twinlens.errors import GalleryError, PictureError, first_line, short_repr
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.embeddings import BROKEN_MODEL, unusable_embeddings
from twinlens.gallery.results import EnrolResult, SkippedPicture
from twinlens.gallery.schema import schema
from twinlens.gallery.sources import Source, conflict, text
from twinlens.match.matcher import Picture
from twinlens.parsing import parse_json

__all__ = ["Enrolment", "enrol_pictures", "make_rows"]

AT_ONCE = 256
MAX_METADATA = 100_000  # characters of a template's metadata, as JSON
THREADS = 4
THUMBNAIL = 160
"""The longer side of a thumbnail, in pixels."""

Progress = Callable[[int, int], None]


def make_rows(
    emb_ND: NDArray[np.float32],
    identity: Sequence[str],
    path: Sequence[str],
    hashes: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    thumbnail: Sequence[bytes | None] | None = None,
) -> pa.Table:
    """Rows of a gallery's table, in the columns of `schema`; their time is now.

    Raises:
        GalleryError: names that are no text, or metadata that are no JSON.
    """
    num, dim = emb_ND.shape
    rows = {
        "hash": pa.array(hashes, pa.string()),
        "identity": pa.array(identity, pa.string()),
        "path": pa.array([text(os.fspath(name)) for name in path], pa.string()),
        "time": pa.array([datetime.now(UTC)] * num, pa.timestamp("us", "UTC")),
        "metadata": pa.array([_json(values) for values in metadata], pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(emb_ND.ravel(), dim),
        "thumbnail": pa.nulls(num, pa.large_binary())
        if thumbnail is None
        else pa.array(thumbnail, pa.large_binary()),
    }
    return pa.table(rows).cast(schema(dim))


def _json(metadata: Mapping[str, Any]) -> str:
    try:
        if not isinstance(metadata, Mapping):
            raise TypeError(f"found {short_repr(metadata)} instead of keys and values")
        written = text(json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False))
        if len(written) > MAX_METADATA:
            raise ValueError(f"found {len(written):,} characters, at most {MAX_METADATA:,}")
        parse_json(written)  # Its limits hold for every reader.
    except (TypeError, ValueError, RecursionError) as error:
        raise GalleryError(
            "metadata must be text, numbers, booleans, or lists and objects of these: "
            f"{first_line(error)}"
        ) from error
    return written


class Enrolment:
    """Embeds pictures that are not enrolled yet, and counts the others.

    Attributes:
        num_known: pictures that were enrolled before.
        num_failed: pictures that are unreadable or below the minimum of quality.
        skipped: pictures that were left out.
        quality: quality of the new pictures, by path.
        hashes: hashes of the new and the known pictures, by path.
        identities: names of the new and the known pictures.
    """

    def __init__(
        self,
        core: GalleryCore,
        *,
        keep_thumbnails: bool,
        min_quality: float | None,
        as_is: bool = False,
    ) -> None:
        check_minimum(min_quality)
        self._core, self._keep = core, keep_thumbnails
        self._matcher = core.matcher.as_is() if as_is else core.matcher
        self._min_quality = min_quality
        self.num_known = self.num_failed = 0
        self.skipped: list[SkippedPicture] = []
        self.quality: dict[str, PictureQuality] = {}
        self.hashes: dict[str, str] = {}
        self.identities: set[str] = set()

    def rows(self, sources: Sequence[Source], progress: Progress | None) -> Iterator[pa.Table]:
        """Rows of the pictures that are not enrolled yet, batch by batch.

        Store each batch before the next is drawn, since a later one may hold the same picture.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(sources), AT_ONCE):
                batch = sources[start : start + AT_ONCE]
                new, copies = self._new(pool.map(_hashed, batch), batch)
                pictures = dict(zip(new, pool.map(self._read, new.values()), strict=True))
                pictures = self._gated(pictures, new)
                emb_of = self._embeddings(pictures)
                for name, result in emb_of.items():
                    if isinstance(result, str):  # A reason, which is that of its copies too.
                        left_out = [new[name], *copies.get(name, [])]
                        self.skipped += [SkippedPicture(source.path, result) for source in left_out]
                        self.num_failed += len(left_out)
                    else:
                        for source in copies.get(name, []):
                            self._count_known(name, source, new[name].identity)
                kept = {k: emb for k, emb in emb_of.items() if not isinstance(emb, str)}
                if kept:
                    yield self._rows(kept, new, pictures)
                if progress is not None:
                    progress(start + len(batch), len(sources))

    def _new(
        self, hashes: Iterable[str | SkippedPicture], batch: Sequence[Source]
    ) -> tuple[dict[str, Source], dict[str, list[Source]]]:
        """Pictures that are not enrolled, and their copies in the batch, by hash."""
        hashed = list(zip(hashes, batch, strict=True))
        owners = self._core.owners([name for name, _ in hashed if isinstance(name, str)])
        new: dict[str, Source] = {}
        copies: dict[str, list[Source]] = {}
        for name, source in hashed:
            if isinstance(name, SkippedPicture):
                self.skipped.append(name)
                self.num_failed += 1
            elif name in owners:
                self._count_known(name, source, owners[name])
            elif name in new:
                copies.setdefault(name, []).append(source)
            else:
                new[name] = source
        return new, copies

    def _count_known(self, name: str, source: Source, owner: str) -> None:
        """Count a picture whose hash is enrolled."""
        if owner == source.identity:
            self.num_known += 1
            self.hashes[source.path] = name
            self.identities.add(owner)
        else:
            self.skipped.append(conflict(source.path, owner))

    def _read(self, source: Source) -> _Read | str:
        """The picture, or the reason why it cannot be read."""
        try:
            picture = self._matcher.only_face(source.file)
            pixels, num_pixels = self._matcher.read(picture)
            return _Read(pixels, num_pixels, self._thumbnail(picture) if self._keep else None)
        except PictureError as error:
            return error.reason

    def _thumbnail(self, picture: Picture) -> bytes:
        small = self._matcher.open(picture, target=(THUMBNAIL, THUMBNAIL)).copy()
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=85)
        return stream.getvalue()

    def _gated(
        self, pictures: Mapping[str, _Read | str], new: Mapping[str, Source]
    ) -> dict[str, _Read | str]:
        """The pictures, those below the minimum of quality replaced by that reason."""
        reads = {name: read for name, read in pictures.items() if isinstance(read, _Read)}
        if not reads:
            return dict(pictures)
        pixels = np.stack([read.pixels for read in reads.values()])
        source_N = np.array([read.num_pixels for read in reads.values()])
        gated = dict(pictures)
        parts_N3 = quality_parts(pixels, self._matcher.picture, source_N)
        for name, parts_3 in zip(reads, parts_N3, strict=True):
            quality = PictureQuality.of_parts(parts_3)
            if (reason := quality.reason_below(self._min_quality)) is not None:
                gated[name] = reason
            else:
                self.quality[new[name].path] = quality
        return gated

    def _embeddings(
        self, pictures: Mapping[str, _Read | str]
    ) -> dict[str, NDArray[np.float32] | str]:
        """The embedding (D,) of each picture, or the reason why it has none, by hash."""
        result: dict[str, NDArray[np.float32] | str] = {}
        pixels = {name: read.pixels for name, read in pictures.items() if isinstance(read, _Read)}
        result |= {name: read for name, read in pictures.items() if isinstance(read, str)}
        if pixels:
            emb_ND = self._matcher.embed_pixels(np.stack(list(pixels.values())))
            unusable = unusable_embeddings(emb_ND)
            for row, (name, emb_D) in enumerate(
                zip(pixels, self._core.prepared(emb_ND), strict=True)
            ):
                result[name] = f"{unusable[row]}: {BROKEN_MODEL}" if row in unusable else emb_D
        return {name: result[name] for name in pictures}

    def _rows(
        self,
        emb_of: Mapping[str, NDArray[np.float32]],
        new: Mapping[str, Source],
        pictures: Mapping[str, _Read | str],
    ) -> pa.Table:
        sources = [new[name] for name in emb_of]
        self.identities.update(source.identity for source in sources)
        self.hashes.update((new[name].path, name) for name in emb_of)
        return make_rows(
            np.stack(list(emb_of.values())),
            [source.identity for source in sources],
            [source.path for source in sources],
            list(emb_of),
            [source.metadata for source in sources],
            [read.thumbnail for name in emb_of if isinstance(read := pictures[name], _Read)],
        )


def enrol_pictures(
    core: GalleryCore,
    sources: Sequence[Source],
    skipped: Sequence[SkippedPicture],
    keep_thumbnails: bool,
    min_quality: float | None,
    progress: Progress | None,
    as_is: bool = False,
) -> EnrolResult:
    """Enrol pictures, batch by batch; `skipped` were left out before."""
    run = Enrolment(core, keep_thumbnails=keep_thumbnails, min_quality=min_quality, as_is=as_is)
    num_new = num_rows = 0
    for rows in run.rows(sources, progress):
        num_rows += len(rows)
        num_new += core.insert(rows)
    # Rows that another writer enrolled meanwhile are known as well.
    num_known = run.num_known + num_rows - num_new
    return EnrolResult(
        num_new, num_known, (*skipped, *run.skipped), len(run.identities), run.num_failed,
        run.quality, run.hashes,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Read:
    pixels: NDArray[np.uint8]
    num_pixels: int
    thumbnail: bytes | None


def _hashed(source: Source) -> str | SkippedPicture:
    try:
        return source.hash()
    except PictureError as error:
        return SkippedPicture(source.path, error.reason)
