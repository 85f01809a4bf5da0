"""Pictures -> rows for a gallery, in batches: hash, skip what is known, decode, embed.

A picture is told by the hash of its file's bytes (or of its pixels, where it has no file), so that
enrolling again, or going on after a crash, embeds nothing twice. This module does not store: it
makes rows, counts, and says what it left out and why.

Shapes: N pictures, D dimensions.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from twinlens.data.decode import open_picture, to_array
from twinlens.data.folders import read_table
from twinlens.data.table import ImageTable
from twinlens.errors import GalleryError, PictureError
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.schema import schema

if TYPE_CHECKING:
    from twinlens.match.matcher import Matcher

__all__ = ["EnrolResult", "Enrolment", "SkippedPicture", "Source", "check_identity", "digest",
           "forgery", "make_rows", "read_labelled", "read_source", "sources_of", "taken", "text"]  # fmt: skip

AT_ONCE = 256
THREADS = 4
THUMBNAIL = 160
"""The longer side of a thumbnail, in pixels."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SkippedPicture:
    """A picture that was left out."""

    path: str
    reason: str


@dataclass(frozen=True)
class EnrolResult:
    """What became of pictures that were to be enrolled.

    Attributes:
        num_new: templates that there were not.
        num_known: pictures that were enrolled already, under the same identity.
        skipped: those that could not be enrolled.
        num_identities: distinct identities of the new and the known.
    """

    num_new: int
    num_known: int
    skipped: tuple[SkippedPicture, ...]
    num_identities: int

    def as_json(self) -> dict[str, Any]:
        """Counts, and what was skipped."""
        return {
            "num_new": self.num_new,
            "num_known": self.num_known,
            "num_identities": self.num_identities,
            "skipped": [{"path": s.path, "reason": s.reason} for s in self.skipped],
        }

    def as_text(self) -> str:
        """The counts in one line."""
        return (
            f"{self.num_new} new, {self.num_known} known, {len(self.skipped)} skipped; "
            f"{self.num_identities} {'identity' if self.num_identities == 1 else 'identities'}"
        )


@dataclass(frozen=True, eq=False)
class Source:
    """One picture to enrol: a file, or pixels (H, W[, 3]) with a name for a path."""

    path: str
    identity: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pixels: NDArray[np.uint8] | None = None

    @classmethod
    def of_file(cls, path: str | Path, identity: str, metadata: Mapping[str, Any]) -> Source:
        """A file, by its full path."""
        # abspath, since a link is to stay one.
        return cls(os.path.abspath(os.path.expanduser(path)), identity, metadata)  # noqa: PTH100, PTH111

    def content(self) -> bytes:
        """What is hashed.

        Raises:
            PictureError: the file cannot be read.
        """
        if self.pixels is not None:
            return repr(self.pixels.shape).encode() + self.pixels.tobytes()
        try:
            return Path(self.path).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise PictureError(self.path, reason) from error


def read_labelled(
    matcher: Matcher, data: str | Path | ImageTable, root: str | Path | None
) -> ImageTable:
    """What DATA names, read as it was for the model's training.

    Raises:
        DataError: nothing there, or nothing that is understood.
    """
    origin = matcher.bundle.origin
    suffix = {} if origin is None else {"forged_suffix": origin.data.forged_suffix}
    return read_table(data, root=None if root is None else Path(root), **suffix)


def sources_of(
    table: ImageTable, metadata: Mapping[str, Any]
) -> tuple[list[Source], list[SkippedPicture]]:
    """The pictures of a table, and those that are no templates: forgeries are nobody's."""
    sources, skipped = [], []
    for row in range(len(table)):
        path, identity = str(table.path[row]), check_identity(str(table.identity[row]))
        given = metadata if table.metadata is None else {**table.metadata[row], **metadata}
        if table.forged[row]:
            skipped.append(forgery(path))
        elif table.pixels is not None:
            sources.append(Source(path, identity, given, table.pixels[row]))
        else:
            sources.append(Source.of_file(path, identity, given))
    return sources, skipped


def check_identity(identity: str) -> str:
    """A name as it is stored.

    Raises:
        GalleryError: there is nothing in it, or it is no text.
    """
    name = text(identity)
    if not name.strip():
        raise GalleryError(
            f"an identity needs a name, found {identity!r}: give each one that is not empty"
        )
    return name


def text(name: str) -> str:
    """A string as UTF-8 can say it, which file names need not be; what it cannot is escaped.

    Raises:
        GalleryError: it is a number or the like.
    """
    if not isinstance(name, str):
        kind = type(name).__name__
        raise GalleryError(f"a name is text, found {name!r} ({kind}): write {str(name)!r}")
    return name.encode("utf-8", "backslashreplace").decode()


def forgery(path: str) -> SkippedPicture:
    """A picture that only imitates the identity that it is filed under."""
    return SkippedPicture(path, "a forgery, which is nobody's template")


def taken(path: str, owner: str) -> SkippedPicture:
    """A picture that is enrolled as somebody else's."""
    return SkippedPicture(path, f"this very picture is enrolled already, as {owner[:80]!r}")


def digest(content: bytes) -> str:
    """32 hex digits that tell pictures apart."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_source(matcher: Matcher, source: Source, content: bytes) -> NDArray[np.uint8]:
    """A picture as the network takes it, shape (C, H, W).

    Raises:
        PictureError: it cannot be read.
    """
    spec = matcher.bundle.encoder.picture
    if source.pixels is not None:
        return to_array(source.pixels, spec)
    try:
        return to_array(
            open_picture(content, max_pixels=matcher.max_pixels, target=spec.size), spec
        )
    except PictureError as error:
        raise PictureError(source.path, error.reason) from error


def make_rows(
    emb_ND: NDArray[np.float32],
    identity: Sequence[str],
    path: Sequence[str],
    hashes: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    thumbnail: Sequence[bytes | None] | None = None,
) -> pa.Table:
    """Rows of a gallery's table, enrolled now, in the columns of `stores.schema`."""
    num, dim = emb_ND.shape
    rows = {
        "hash": pa.array(hashes, pa.string()),
        "identity": pa.array(identity, pa.string()),
        "path": pa.array([text(os.fspath(one)) for one in path], pa.string()),
        "time": pa.array([datetime.now(UTC)] * num, pa.timestamp("us", "UTC")),
        "metadata": pa.array([_json(one) for one in metadata], pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(emb_ND.ravel(), dim),
        "thumbnail": pa.nulls(num, pa.large_binary())
        if thumbnail is None
        else pa.array(thumbnail, pa.large_binary()),
    }
    return pa.table(rows).cast(schema(dim))


def _json(metadata: Mapping[str, Any]) -> str:
    try:
        return text(json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise GalleryError(
            f"metadata is text, numbers, truth, or lists and objects of these: {error}"
        ) from error


class Enrolment:
    """One run over pictures; counts as it goes.

    Attributes:
        num_known: pictures that were enrolled already.
        skipped: those that could not be enrolled.
        identities: names of the new and the known.
    """

    def __init__(self, core: GalleryCore, *, keep_thumbnails: bool) -> None:
        self._core, self._matcher, self._keep = core, core.matcher, keep_thumbnails
        self.num_known = 0
        self.skipped: list[SkippedPicture] = []
        self.identities: set[str] = set()

    def rows(self, sources: Sequence[Source], progress: Progress | None) -> Iterator[pa.Table]:
        """Rows of what is not enrolled yet, a batch at a time.

        A batch must be stored before the next is asked for, since the same picture may come again.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(sources), AT_ONCE):
                batch = sources[start : start + AT_ONCE]
                fresh, again = self._fresh(pool.map(_hashed, batch), batch)
                kept: dict[str, tuple[Source, _Read]] = {}
                for name, read in zip(fresh, pool.map(self._read, fresh.values()), strict=True):
                    if isinstance(read, SkippedPicture):
                        self.skipped.append(read)
                        # Copies of a broken file are broken too, and known to nobody.
                        copies = [SkippedPicture(s.path, read.reason) for s in again.pop(name, [])]
                        self.skipped.extend(copies)
                    else:
                        kept[name] = fresh[name], read
                for name, sources_again in again.items():
                    for source in sources_again:
                        self._count_known(source, fresh[name].identity)
                if kept:
                    yield self._rows(kept)
                if progress is not None:
                    progress(start + len(batch), len(sources))

    def _fresh(
        self, hashes: Iterable[str | SkippedPicture], batch: Sequence[Source]
    ) -> tuple[dict[str, Source], dict[str, list[Source]]]:
        """By their hashes, those that are not enrolled, and what comes again in the batch."""
        found = list(zip(hashes, batch, strict=True))
        owners = self._core.owners([name for name, _ in found if isinstance(name, str)])
        fresh: dict[str, Source] = {}
        again: dict[str, list[Source]] = {}
        for name, source in found:
            if isinstance(name, SkippedPicture):
                self.skipped.append(name)
            elif name in owners:
                self._count_known(source, owners[name])
            elif name in fresh:
                again.setdefault(name, []).append(source)
            else:
                fresh[name] = source
        return fresh, again

    def _count_known(self, source: Source, owner: str) -> None:
        """Count a picture that is enrolled already."""
        if owner == source.identity:
            self.num_known += 1
            self.identities.add(owner)
        else:
            self.skipped.append(taken(source.path, owner))

    def _read(self, source: Source) -> _Read | SkippedPicture:
        try:
            content = source.content()
            pixels = read_source(self._matcher, source, content)
            return _Read(pixels, self._thumbnail(source, content) if self._keep else None)
        except PictureError as error:
            return SkippedPicture(source.path, error.reason)

    def _thumbnail(self, source: Source, content: bytes) -> bytes:
        if source.pixels is not None:
            picture = Image.fromarray(source.pixels)
        else:
            size = (THUMBNAIL, THUMBNAIL)
            picture = open_picture(content, max_pixels=self._matcher.max_pixels, target=size)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
        return stream.getvalue()

    def _embedded(self, pixels_NCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        from twinlens.model.encoder import embed_pixels

        return self._core.prepared(embed_pixels(self._matcher.bundle.encoder, pixels_NCHW))

    def _rows(self, kept: Mapping[str, tuple[Source, _Read]]) -> pa.Table:
        sources, read = zip(*kept.values(), strict=True)
        self.identities.update(source.identity for source in sources)
        return make_rows(
            self._embedded(np.stack([one.pixels for one in read])),
            [source.identity for source in sources],
            [source.path for source in sources],
            list(kept),
            [source.metadata for source in sources],
            [one.thumbnail for one in read],
        )


@dataclass(frozen=True, eq=False)
class _Read:
    pixels: NDArray[np.uint8]
    thumbnail: bytes | None


def _hashed(source: Source) -> str | SkippedPicture:
    try:
        return digest(source.content())
    except PictureError as error:
        return SkippedPicture(source.path, error.reason)
