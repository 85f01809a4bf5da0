"""Pictures to enrol: their files or pixels, names and hashes.

A picture is identified by the hash of its file's bytes, or of its pixels if it has no file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from twinlens.data.adapters import Data
from twinlens.data.contents import digest_of_pixels
from twinlens.data.decode import PictureSource
from twinlens.data.folders import read_table
from twinlens.data.picture_file import file_digest
from twinlens.data.table import ImageTable
from twinlens.errors import GalleryError
from twinlens.gallery.results import SkippedPicture

if TYPE_CHECKING:
    from twinlens.match.matcher import Matcher

__all__ = ["PictureFile", "Source", "check_identity", "conflict", "digest", "forgery",
           "read_labelled", "read_source", "sources_of", "text"]  # fmt: skip

PictureFile: TypeAlias = str | Path | tuple[str, bytes]
"""A path, or the name and the bytes of a file."""


@dataclass(frozen=True, eq=False)
class Source:
    """A picture to enrol: a file, or pixels (H, W[, 3]) or bytes with a name instead of a path."""

    path: str
    identity: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pixels: NDArray[np.uint8] | None = None
    content: bytes | None = None

    @classmethod
    def of_file(cls, file: PictureFile, identity: str, metadata: Mapping[str, Any]) -> Source:
        """A file, by its full path, or its bytes, by their name."""
        if isinstance(file, tuple):
            name, content = file
            return cls(name, identity, metadata, content=content)
        # abspath keeps links, which resolve would replace.
        return cls(os.path.abspath(os.path.expanduser(file)), identity, metadata)  # noqa: PTH100, PTH111

    @property
    def file(self) -> PictureSource:
        """The path, the bytes or the pixels, as the functions of `data.decode` take it."""
        if self.pixels is not None:
            return self.pixels
        return self.path if self.content is None else self.content

    def hash(self) -> str:
        """A hash of the file's bytes, or of the pixels: 32 hex digits.

        Raises:
            PictureError: the file cannot be read.
        """
        if self.content is not None:
            return digest(self.content)
        if self.pixels is None:
            return file_digest(self.path).hex()
        return digest_of_pixels(self.pixels).hex()  # As the training record has it.


def read_labelled(matcher: Matcher, data: Data, root: str | Path | None) -> ImageTable:
    """Read DATA as for the training of the model: forged folders, depth of identities.

    Raises:
        DataError: nothing to read, or an unknown layout.
    """
    settings = matcher.data_settings
    return read_table(
        data,
        root=None if root is None else Path(root),
        forged_suffix=settings.forged_suffix,
        identity_depth=settings.identity_depth,
    )


def sources_of(
    table: ImageTable, metadata: Mapping[str, Any]
) -> tuple[list[Source], list[SkippedPicture]]:
    """The genuine pictures of a table, and its forgeries, which are skipped."""
    sources, skipped = [], []
    for row in range(len(table)):
        path, identity = str(table.path[row]), check_identity(str(table.identity[row]))
        own = metadata if table.metadata is None else {**table.metadata[row], **metadata}
        if table.forged[row]:
            skipped.append(forgery(path))
        elif table.pixels is not None:
            picture = table.picture(row)
            parts = {"content" if isinstance(picture, bytes) else "pixels": cast(Any, picture)}
            sources.append(Source(path, identity, own, **parts))
        else:
            sources.append(Source.of_file(path, identity, own))
    return sources, skipped


def check_identity(identity: str) -> str:
    """A name as stored.

    Raises:
        GalleryError: an empty name, or not a string.
    """
    name = text(identity)
    if not name.strip():
        raise GalleryError(
            f"an identity needs a name, found {identity!r}: give one that is not empty"
        )
    return name


def text(name: str) -> str:
    """A string with surrogates escaped: file names may hold some, which UTF-8 cannot encode.

    Raises:
        GalleryError: not a string.
    """
    if not isinstance(name, str):
        kind = type(name).__name__
        raise GalleryError(f"a name must be a string, found {name!r} ({kind}): write {str(name)!r}")
    return name.encode("utf-8", "backslashreplace").decode()


def forgery(path: str) -> SkippedPicture:
    """The record of a forgery."""
    return SkippedPicture(path, "a forgery, which is never enrolled")


def conflict(path: str, owner: str) -> SkippedPicture:
    """The record of a picture that is enrolled under another identity."""
    return SkippedPicture(path, f"the same picture is enrolled already, as {owner[:80]!r}")


def digest(content: bytes) -> str:
    """A hash as of `Source.hash`: 32 hex digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_source(matcher: Matcher, source: Source) -> tuple[NDArray[np.uint8], int]:
    """A picture as input of the network, shape (C, H, W), and the number of its own pixels.

    Raises:
        PictureError: a file that cannot be read; for a model of faces, not one face.
    """
    return matcher.read(source.file)
