"""ImageTable: which pictures there are, what each shows, and which split it belongs to.

Shapes: N pictures, H x W pixels.

This module knows no folder layouts (`sources`), decodes nothing (`decode`), and chooses no splits
(`splits`); it reads file sizes, for the fingerprint, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.errors import DataError

__all__ = ["SPLITS", "ImageTable", "Row", "pair_masks", "require_identities"]

SPLITS = ("train", "val", "test")

Row = tuple[str, str, bool, str]
"""path, identity, forged, split"""


@dataclass(frozen=True, eq=False, repr=False)
class ImageTable:
    """N pictures in the order of their paths, whatever order they are given in.

    Attributes:
        path: (N,) str. A file's path, or a name such as "digits/00017" where `pixels` is given.
        identity: (N,) str. What the picture shows; a forgery carries the identity it imitates.
        forged: (N,) bool.
        split: (N,) "train", "val", "test", or "" where none is assigned.
        source: how the user named the data.
        root: the folder that the paths lie in; None for named sets held in memory.
        pixels: None, or the pictures themselves: (N, H, W) or (N, H, W, 3).
        metadata: None, or (N,) dicts: what a manifest says besides.

    All arrays are read-only.

    Raises:
        DataError: columns of unequal length, an unknown split, or a path named twice.
    """

    path: NDArray[np.object_]
    identity: NDArray[np.object_]
    forged: NDArray[np.bool_]
    split: NDArray[np.object_]
    source: str
    root: Path | None
    pixels: NDArray[np.uint8] | None = None
    metadata: NDArray[np.object_] | None = None

    def __post_init__(self) -> None:
        columns = {
            "path": np.asarray(self.path, dtype=object),
            "identity": np.asarray(self.identity, dtype=object),
            "forged": np.asarray(self.forged, dtype=np.bool_),
            "split": np.asarray(self.split, dtype=object),
        }
        if self.pixels is not None:
            columns["pixels"] = np.asarray(self.pixels, dtype=np.uint8)
        if self.metadata is not None:
            columns["metadata"] = np.asarray(self.metadata, dtype=object)
        _check(columns)
        order = np.argsort(columns["path"], kind="stable")
        moved = bool((order != np.arange(len(order))).any())
        for name, column in columns.items():
            # A view, so that the caller's own array stays writeable.
            ordered = column[order] if moved else column.view()
            ordered.flags.writeable = False
            object.__setattr__(self, name, ordered)
        _check_distinct(self.path)

    @classmethod
    def of_rows(cls, rows: Iterable[Row], source: str, root: Path | None) -> ImageTable:
        """A table of files from (path, identity, forged, split) tuples, in any order."""
        columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
        path, identity, forged, split = (np.array(column, dtype=object) for column in columns)
        return cls(path, identity, forged.astype(np.bool_), split, source, root)

    def __len__(self) -> int:
        return len(self.path)

    def __repr__(self) -> str:
        return (
            f"ImageTable({len(self)} pictures of {len(self._names)} identities"
            f" from {self.source!r})"
        )

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int_] | Sequence[int]) -> ImageTable:
        """The table of some rows, each once and in the order of this table.

        Args:
            rows: a mask of shape (N,), or row numbers.
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
        """The rows of one split; "" gives the rows that have none."""
        return self.select(np.asarray(self.split == name, dtype=np.bool_))

    def with_split(self, split: NDArray[np.object_] | Sequence[str]) -> ImageTable:
        """The same pictures with other splits, shape (N,), in the order of this table."""
        return replace(self, split=np.asarray(split, dtype=object))

    def with_metadata(self, metadata: Sequence[Mapping[str, Any]]) -> ImageTable:
        """The same pictures with other metadata, a mapping each, in the order of this table."""
        column = np.empty(len(metadata), dtype=object)  # numpy would look into the mappings.
        column[:] = metadata
        return replace(self, metadata=column)

    def identities(self) -> list[str]:
        """The distinct identities, sorted."""
        return list(self._names)

    def labels(self) -> NDArray[np.int64]:
        """(N,) the place of each row's identity in `identities()`; read-only."""
        return self._labels

    def relative(self, row: int) -> str:
        """A row's path below `root`, with forward slashes; the whole path if it lies elsewhere."""
        path = str(self.path[row])
        if self.root is None or self.pixels is not None:
            return path
        try:
            return Path(path).relative_to(self.root).as_posix()
        except ValueError:
            return Path(path).as_posix()

    def fingerprint(self) -> str:
        """SHA-256 over relative paths, identities, roles, and file sizes or pixels, in hex.

        Splits and the place of `root` have no part in it, so that a copy of the data, or another
        split of it, has the same fingerprint. A file that is not there counts as size -1.
        """
        digest = hashlib.sha256()
        for row in range(len(self)):
            size = _size(str(self.path[row])) if self.pixels is None else 0
            line = (self.relative(row), str(self.identity[row]), bool(self.forged[row]), size)
            # File names that are not UTF-8 reach Python as lone surrogates.
            digest.update(repr(line).encode("utf-8", "surrogatepass"))
        if self.pixels is not None:
            digest.update(repr(self.pixels.shape).encode())
            digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()

    @cached_property
    def _names(self) -> list[str]:
        return sorted(set(self.identity.tolist()))

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        place = {name: label for label, name in enumerate(self._names)}
        labels = np.array([place[name] for name in self.identity], dtype=np.int64)
        labels.flags.writeable = False
        return labels


def pair_masks(label_a: Any, forged_a: Any, label_b: Any, forged_b: Any) -> tuple[Any, Any]:
    """Which pairs are genuine and which are impostors.

    A genuine pair has one label and two genuine pictures. An impostor pair is any other pair with
    at least one genuine picture. Two forged pictures are neither: nobody knows who made them.

    Args:
        label_a: integers of any shape; numpy arrays, or torch tensors.
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
    """Refuse a table with too few identities to compare.

    Raises:
        DataError: fewer than `minimum` identities.
    """
    names = table.identities()
    if len(names) >= minimum:
        return
    some = f" ({', '.join(names[:5])})" if names else ""
    found = f"{len(names)} {'identity' if len(names) == 1 else 'identities'}{some}"
    raise DataError(
        f"{table.source} holds {found}, and {purpose} needs at least {minimum}: "
        "give each thing that is shown a folder of its own (DATA/thing-1/*, DATA/thing-2/*, ...)"
    )


def _check(columns: dict[str, NDArray[Any]]) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the columns of a table need one length, found {lengths}")
    unknown = sorted(set(columns["split"].tolist()) - {*SPLITS, ""})
    if unknown:
        raise DataError(f"a split is one of {', '.join(SPLITS)} or empty, found {unknown[:5]}")


def _check_distinct(path: NDArray[np.object_]) -> None:
    twice = path[1:][path[1:] == path[:-1]]
    if len(twice):
        raise DataError(f"a table names each picture once, found twice: {sorted(set(twice))[:5]}")


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1
