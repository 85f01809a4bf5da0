"""Templates of a gallery: list a part of them, read the thumbnail or the embedding of one.

Shapes: D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.errors import GalleryError, NotEnrolledError, one_line
from twinlens.gallery.conditions import explain_nested, filter_of
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.results import TemplateList
from twinlens.gallery.schema import quoted
from twinlens.gallery.snapshot import vectors

__all__ = ["embedding", "require_templates", "templates", "thumbnail"]

COLUMNS = {name: name for name in ("identity", "path", "time", "metadata", "hash")}
COLUMNS |= {"has_thumbnail": "thumbnail IS NOT NULL"}
ORDER = ("identity", "path", "hash")


def templates(
    core: GalleryCore, identity: str | None, where: str | None, offset: int, limit: int | None
) -> TemplateList:
    """The templates of one identity or of all, or a part of them; see `Gallery.templates`."""
    conditions = []
    if identity is not None:
        core.require(identity)
        conditions.append(f"identity = {quoted(identity)}")
    if where is not None:
        conditions.append(f"({filter_of(where)})")
    try:
        return _part(core, " AND ".join(conditions) or None, offset, limit)
    except GalleryError as error:
        if where is None:
            raise
        raise explain_nested(where, error) from error


def _part(core: GalleryCore, condition: str | None, offset: int, limit: int | None) -> TemplateList:
    if limit is None:
        rows = core.store.find(condition, columns=COLUMNS)
        return TemplateList.of(rows, len(rows), offset)
    # Only what orders them is read of all templates.
    keys = core.store.find(condition, columns=ORDER)
    hashes = keys.sort_by([(name, "ascending") for name in ORDER])["hash"].slice(offset, limit)
    return TemplateList.of(_rows(core, hashes.to_pylist(), COLUMNS), len(keys))


def _rows(core: GalleryCore, hashes: list[str], columns: Any) -> pa.Table:
    where = f"hash IN ({', '.join(map(quoted, hashes))})" if hashes else "false"
    return core.store.find(where, columns=columns)


def require_templates(core: GalleryCore, hashes: Sequence[str]) -> None:
    """Refuse a hash that is not enrolled.

    Raises:
        NotEnrolledError: names the first one.
    """
    owners = core.owners(hashes)
    unknown = next((name for name in hashes if name not in owners), None)
    if unknown is not None:
        raise NotEnrolledError(
            f"no template has the hash {one_line(unknown)}: see `twinlens gallery list --templates`"
        )


def thumbnail(core: GalleryCore, hash: str) -> bytes | None:
    """A template's thumbnail, a JPEG; None if none is kept."""
    rows = _one(core, hash, ["thumbnail"])
    content: bytes | None = rows["thumbnail"][0].as_py()
    return content


def embedding(core: GalleryCore, hash: str) -> NDArray[np.float32]:
    """A template's embedding, shape (D,)."""
    vector_D: NDArray[np.float32] = vectors(_one(core, hash, ["vector"])["vector"])[0]
    return vector_D


def _one(core: GalleryCore, hash: str, columns: list[str]) -> pa.Table:
    rows = _rows(core, [hash], columns)
    if not len(rows):
        require_templates(core, [hash])
        return _one(core, hash, columns)  # Enrolled since.
    return rows
