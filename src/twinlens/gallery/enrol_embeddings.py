"""Enrolment of existing embeddings.

Shapes: N templates, D dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.errors import GalleryError, one_line, short_repr
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.embeddings import as_float32, unusable_embeddings
from twinlens.gallery.enrol import make_rows
from twinlens.gallery.results import EnrolResult, SkippedPicture
from twinlens.gallery.sources import check_identity, conflict, digest, forgery

__all__ = ["RowEnrolment", "enrol_embeddings", "rows_of_embeddings"]

AT_ONCE = 50_000
"""Embeddings of a commit."""
HASH = re.compile("[0-9a-f]{32}")

Progress = Callable[[int, int], None]


def rows_of_embeddings(
    core: GalleryCore,
    emb_ND: NDArray[Any],
    identity: Sequence[str],
    fingerprint: str,
    path: Sequence[str] | None = None,
    hash: Sequence[str] | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    *,
    first: int = 1,
) -> pa.Table:
    """Rows of the store for existing embeddings; see `Gallery.enrol_embeddings`.

    Args:
        first: number of the first row in messages.
    """
    emb = as_float32(emb_ND)
    num = len(emb)
    core.check_shape(emb, fingerprint)
    path = [""] * num if path is None else path
    hash = [digest(row.tobytes()) for row in emb] if hash is None else hash
    metadata = [{}] * num if metadata is None else metadata

    def row_name(row: int) -> str:
        name = f"row {first + row}"
        return f"{name} ({one_line(path[row])})" if path[row] else name

    if unusable := unusable_embeddings(emb):
        row, reason = next(iter(unusable.items()))
        more = f"; so do {len(unusable) - 1} more rows" if len(unusable) > 1 else ""
        raise GalleryError(
            f"{row_name(row)}: {reason}{more}. Embeddings must be finite, and not zero: leave such "
            "rows out"
        )
    names = []
    for row, (name, key) in enumerate(zip(identity, hash, strict=True)):
        try:
            names.append(check_identity(name))
        except GalleryError as error:
            raise GalleryError(f"{row_name(row)}: {error}") from error
        if not isinstance(key, str) or HASH.fullmatch(key) is None:
            raise GalleryError(
                f"{row_name(row)}: its hash must have 32 digits of 0-9 and a-f, found "
                f"{short_repr(key)}"
            )
    return make_rows(core.prepared(emb), names, path, hash, metadata)


class RowEnrolment:
    """Inserts rows of embeddings, and counts them."""

    def __init__(self, core: GalleryCore) -> None:
        self._core = core
        self._num_rows = self._num_new = self._num_known = 0
        self._skipped: list[SkippedPicture] = []
        self._identities: set[str] = set()

    def add(self, rows: pa.Table, forged_N: NDArray[np.bool_] | None = None) -> None:
        """Insert the genuine rows whose hash is new, and count the others."""
        number_N = self._num_rows + 1 + np.arange(len(rows))
        self._num_rows += len(rows)
        if forged_N is not None and forged_N.any():
            for row in np.flatnonzero(forged_N).tolist():
                self._skipped.append(forgery(_row_name(rows, row, number_N)))
            rows, number_N = rows.filter(pa.array(~forged_N)), number_N[~forged_N]
        num_new = self._core.insert(rows)
        names = rows["identity"].to_pylist()
        # Only if some were not inserted: this takes longer than the insertion.
        if num_new < len(rows):
            hashes = rows["hash"].to_pylist()
            owners = self._core.owners(list(dict.fromkeys(hashes)))
            owner_of = [owners.get(key, name) for key, name in zip(hashes, names, strict=True)]
            others = [row for row, name in enumerate(names) if owner_of[row] != name]
            for row in others:
                self._skipped.append(conflict(_row_name(rows, row, number_N), owner_of[row]))
            names = [name for name, owner in zip(names, owner_of, strict=True) if name == owner]
        self._identities.update(names)
        self._num_new += num_new
        self._num_known += len(names) - num_new

    def result(self) -> EnrolResult:
        """Counts of all rows."""
        return EnrolResult(
            self._num_new, self._num_known, tuple(self._skipped), len(self._identities)
        )


def _row_name(rows: pa.Table, row: int, number_N: NDArray[np.int64]) -> str:
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
    emb_ND = as_float32(emb_ND)
    core.check_shape(emb_ND, fingerprint)
    num, enrolment = len(emb_ND), RowEnrolment(core)
    columns = {"identities": identity, "paths": path, "hashes": hash, "metadata": metadata}
    for name, values in columns.items():
        if isinstance(values, str):  # Otherwise each letter would be one.
            raise GalleryError(f"{name} must be given as a list, found {short_repr(values)}")
        if values is not None and len(values) != num:
            raise GalleryError(
                f"found {num} embeddings, {len(values)} {name}: give as many of each"
            )
    for start in range(0, num, AT_ONCE):
        part = slice(start, start + AT_ONCE)
        rows = rows_of_embeddings(
            core,
            emb_ND[part],
            identity[part],
            fingerprint,
            None if path is None else path[part],
            None if hash is None else hash[part],
            None if metadata is None else metadata[part],
            first=start + 1,
        )
        enrolment.add(rows)
        if progress is not None:
            progress(min(start + AT_ONCE, num), num)
    return enrolment.result()
