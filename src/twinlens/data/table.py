"""ImageTable: the path, identity, role and split of each picture.

Folder layouts are read by `folders`, pictures by `decode`, and splits assigned by `splits`. This
module reads nothing but file sizes, for the fingerprint.

Shapes: N pictures, H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.arrays import pictures_array
from twinlens.data.picture_value import (
    PictureValue,
    array_of,
    picture_of_row,
    read_bytes,
    read_value,
)
from twinlens.data.stored_pictures import StoredPicture, read_together
from twinlens.data.walk import LeftOut
from twinlens.errors import DataError

__all__ = ["SPLITS", "ImageTable", "Row", "pair_masks", "require_identities"]

SPLITS = ("train", "val", "test")

Row = tuple[str, str, bool, str]
"""path, identity, forged, split"""


@dataclass(frozen=True, eq=False, repr=False)
class ImageTable:
    """N pictures, always sorted by their paths.

    Attributes:
        path: (N,) str. The path of a file, or a name such as "digits/00017" if `pixels` is given.
        identity: (N,) str. What the picture shows; a forgery has the identity that it imitates.
        forged: (N,) bool.
        split: (N,) "train", "val", "test", or "" if none is assigned.
        source: data as the user named it.
        root: folder that contains the paths; None for named sets held in memory.
        pixels: None for files, or the pictures: an array of one size, as of
            `arrays.pictures_array`, kept as uint8; or N values as of `picture_value`, of any sizes.
        metadata: None, or (N,) dicts of the other columns of a manifest.
        left_out: files of the folder that are not in the table; None if it is not of a folder.

    All arrays are read-only.

    Raises:
        DataError: columns of unequal length, an unknown split, a repeated path, or pixels of
            another shape, type or range.
    """

    path: NDArray[np.object_]
    identity: NDArray[np.object_]
    forged: NDArray[np.bool_]
    split: NDArray[np.object_]
    source: str
    root: Path | None
    pixels: NDArray[Any] | None = None
    metadata: NDArray[np.object_] | None = None
    left_out: LeftOut | None = None

    def __post_init__(self) -> None:
        columns = {
            "path": np.asarray(self.path, dtype=object),
            "identity": np.asarray(self.identity, dtype=object),
            "forged": np.asarray(self.forged, dtype=np.bool_),
            "split": np.asarray(self.split, dtype=object),
        }
        if self.pixels is not None:
            columns["pixels"] = _pixels(self.pixels)
        if self.metadata is not None:
            columns["metadata"] = np.asarray(self.metadata, dtype=object)
        _check(columns)
        order = np.argsort(columns["path"], kind="stable")
        unsorted = bool((order != np.arange(len(order))).any())
        for name, column in columns.items():
            # A view, so that the caller's array stays writeable.
            ordered = column[order] if unsorted else column.view()
            ordered.flags.writeable = False
            object.__setattr__(self, name, ordered)
        _check_distinct(self.path)

    @classmethod
    def of_rows(
        cls,
        rows: Iterable[Row],
        source: str,
        root: Path | None,
        left_out: LeftOut | None = None,
    ) -> ImageTable:
        """A table of files from (path, identity, forged, split) tuples, in any order."""
        columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
        path, identity, forged, split = (np.array(column, dtype=object) for column in columns)
        forged = forged.astype(np.bool_)
        return cls(path, identity, forged, split, source, root, left_out=left_out)

    def __len__(self) -> int:
        return len(self.path)

    def __repr__(self) -> str:
        kind = f"of {len(self._names)} identities" if any(self._names) else "without identities"
        return f"ImageTable({len(self)} pictures {kind} from {self.source!r})"

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int_] | Sequence[int]) -> ImageTable:
        """The table of some rows, each once, in the order of this table.

        Args:
            rows: mask of shape (N,), or row numbers.
        """
        rows = np.asarray(rows)
        index = np.arange(len(self))
        kept = index[rows] if rows.dtype == np.bool_ else np.unique(index[rows.astype(np.int64)])
        return replace(
            self,
            path=self.path[kept],
            identity=self.identity[kept],
            forged=self.forged[kept],
            split=self.split[kept],
            pixels=None if self.pixels is None else self.pixels[kept],
            metadata=None if self.metadata is None else self.metadata[kept],
        )

    def of_split(self, name: str) -> ImageTable:
        """The rows of one split; "" selects the rows without a split."""
        return self.select(np.asarray(self.split == name, dtype=np.bool_))

    def with_split(self, split: NDArray[np.object_] | Sequence[str]) -> ImageTable:
        """The same pictures with other splits, shape (N,), in the order of this table."""
        return replace(self, split=np.asarray(split, dtype=object))

    def with_metadata(self, metadata: Sequence[Mapping[str, Any]]) -> ImageTable:
        """The same pictures with other metadata, a mapping each, in the order of this table."""
        column = np.empty(len(metadata), dtype=object)  # np.array would convert the mappings.
        column[:] = metadata
        return replace(self, metadata=column)

    def identities(self) -> list[str]:
        """The distinct identities, sorted."""
        return list(self._names)

    def labels(self) -> NDArray[np.int64]:
        """(N,) index of each row's identity in `identities()`; read-only."""
        return self._labels

    def picture(self, row: int) -> PictureValue:
        """The picture of a row, as the functions of `decode` take it.

        Raises:
            DataError: a function that returns no picture.
        """
        if self.pixels is None:
            return str(self.path[row])
        return read_value(self.pixels[row])

    def pictures(self, rows: range) -> list[Any]:
        """The pictures of rows in a row, for `picture_value.read_value`; or their `PictureError`.

        Those that lie beside each other in a larger file are read together.
        """
        if self.pixels is None:
            return [str(path) for path in self.path[rows.start : rows.stop]]
        return read_together(list(self.pixels[rows.start : rows.stop]))

    def relative(self, row: int) -> str:
        """The path of a row below `root`, with forward slashes; the whole path if not below it."""
        path = str(self.path[row])
        if self.root is None or self.pixels is not None:
            return path
        try:
            return Path(path).relative_to(self.root).as_posix()
        except ValueError:
            return Path(path).as_posix()

    def fingerprint(self) -> str:
        """SHA-256 over relative paths, identities, roles, and file sizes or pixels, in hex.

        Splits and the location of `root` are left out. So a copy of the data, or other splits of
        it, have the same fingerprint. A missing file counts as size -1. Pictures in larger files
        count by their places.
        """
        digest = hashlib.sha256()
        for row in range(len(self)):
            size = _size(str(self.path[row])) if self.pixels is None else 0
            line = (self.relative(row), str(self.identity[row]), bool(self.forged[row]), size)
            # Python reads file names that are not UTF-8 as lone surrogates.
            digest.update(repr(line).encode("utf-8", "surrogatepass"))
        if self.pixels is not None and self.pixels.dtype == np.uint8:
            digest.update(repr(self.pixels.shape).encode())
            digest.update(np.ascontiguousarray(self.pixels).data)
        elif self.pixels is not None:
            for row, value in enumerate(self.pixels):
                if isinstance(value, StoredPicture):
                    digest.update(value.mark)
                    continue
                content = self.picture(row)
                shape = content.shape if isinstance(content, np.ndarray) else None
                digest.update(repr(shape).encode())
                digest.update(hashlib.sha256(_bytes(content)).digest())
        return digest.hexdigest()

    @cached_property
    def _names(self) -> list[str]:
        return sorted(set(self.identity.tolist()))

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        label_of = {name: label for label, name in enumerate(self._names)}
        labels = np.array([label_of[name] for name in self.identity], dtype=np.int64)
        labels.flags.writeable = False
        return labels


def pair_masks(label_a: Any, forged_a: Any, label_b: Any, forged_b: Any) -> tuple[Any, Any]:
    """Masks of genuine and impostor pairs.

    A genuine pair has one label and two genuine pictures. An impostor pair is any other pair with
    at least one genuine picture. Two forged pictures are neither, since their author is unknown.

    Args:
        label_a: integers of any shape; numpy arrays or torch tensors.
        forged_a: booleans of the same shape.
        label_b: integers of a shape that `label_a` broadcasts with.
        forged_b: booleans of the same shape as `label_b`.
    Returns:
        Two boolean masks of the broadcast shape: (genuine, impostor).
    """
    genuine = (label_a == label_b) & ~forged_a & ~forged_b
    impostor = ~genuine & ~(forged_a & forged_b)
    return genuine, impostor


def require_identities(
    table: ImageTable, minimum: int = 2, purpose: str = "comparing pictures"
) -> None:
    """Check that a table has enough identities.

    Args:
        table: table with or without splits.
        minimum: required number of identities.
        purpose: use of the table, for the error message.
    Raises:
        DataError: fewer than `minimum` identities.
    """
    names = table.identities()
    if len(names) >= minimum:
        return
    if names == [""]:
        raise DataError(
            f"{table.source} holds pictures without identities, and {purpose} needs at least "
            f"{minimum} identities: name each picture's, as in (pictures, labels)"
        )
    num = f"{len(names)} {'identity' if len(names) == 1 else 'identities'}"
    some = f" ({', '.join(names[:5])})" if names else ""
    raise DataError(
        f"{table.source} holds {num}{some}, and {purpose} needs at least {minimum}: give each"
        " identity a folder of its own (DATA/thing-1/*, DATA/thing-2/*, ...)"
    )


def _pixels(pixels: Any) -> NDArray[Any]:
    if not isinstance(pixels, np.ndarray) or pixels.dtype != object:
        if hasattr(pixels, "__array__"):
            return pictures_array(array_of(pixels))
        pixels = list(pixels)
    values = np.empty(len(pixels), dtype=object)  # np.array would join arrays of one size.
    for row, value in enumerate(pixels):
        kept = picture_of_row(value, row)
        values[row] = partial(read_bytes, kept) if isinstance(kept, str) else kept
    return values


def _bytes(content: PictureValue) -> bytes:
    if isinstance(content, np.ndarray):
        return content.tobytes()
    return read_bytes(content) if isinstance(content, str) else content


def _check(columns: dict[str, NDArray[Any]]) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the columns of a table need equal lengths, found {lengths}")
    unknown = sorted(set(columns["split"].tolist()) - {*SPLITS, ""})
    if unknown:
        raise DataError(f"a split is one of {', '.join(SPLITS)} or empty, found {unknown[:5]}")


def _check_distinct(path: NDArray[np.object_]) -> None:
    repeated = path[1:][path[1:] == path[:-1]]
    if len(repeated):
        raise DataError(f"paths of a table must be unique, found {sorted(set(repeated))[:5]} twice")


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1
