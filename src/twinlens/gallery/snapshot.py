"""A gallery's templates in memory: exact search in one array, loaded once.

Memory holds them twice: by fragment, as read, and in one array ordered by identity.

Most of the time of a search is the reading of a large array, so a narrow one is read first: the
vectors' coordinates along the directions in which they vary most, and the length of the rest. By
the Cauchy-Schwarz inequality these bound each distance from below, and only the few templates that
may be near are compared in full. The result is exact.

Fragments of the table never change, except for deleted rows, so a new version loads only its new
fragments. Models and fusion rules play no part here.

Shapes: M templates, I identities, D dimensions, L columns of the narrow array, S of a shortlist.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.gallery.schema import check_rows
from twinlens.gallery.store import Store

__all__ = ["Snapshot", "Snapshots"]

NARROW = 16
WORTH_NARROWING = 20_000
"""Templates from which the narrow array saves time; fewer fit the processor's caches."""
SAMPLE = 20_000
BLOCK = 32
ROUNDING = 1e-5
"""Largest error of a squared distance by a product, relative to the two squared lengths."""

HELD = ("identity", "path", "hash", "vector")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The templates of one version, ordered by identity.

    Attributes:
        version: version of the store.
        vector: (M, D) float32.
        bounds: lower bounds of distances to the vectors.
        code: (M,) index of each template's identity in `identities`, ascending.
        identities: (I,) names, sorted.
        path: (M,) file of each picture.
        hash: (M,) hash of each picture.
    """

    version: int
    vector: NDArray[np.float32]
    bounds: Bounds
    code: NDArray[np.int64]
    identities: pa.StringArray
    path: pa.StringArray
    hash: pa.StringArray

    @classmethod
    def of(cls, version: int, templates: pa.Table) -> Snapshot:
        """Order the rows of a table by identity."""
        encoded = templates["identity"].combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_numpy(zero_copy_only=False)
        rank_I = np.empty(len(names), dtype=np.int64)
        by_name = np.argsort(names, kind="stable")
        rank_I[by_name] = np.arange(len(names))
        code_M = rank_I[encoded.indices.to_numpy()]
        order_M = np.argsort(code_M, kind="stable")
        code_M = code_M[order_M]
        vector_MD = vectors(templates["vector"])[order_M]
        return cls(
            version,
            vector_MD,
            Bounds.of(vector_MD),
            code_M,
            encoded.dictionary.take(pa.array(by_name)),
            templates["path"].combine_chunks().take(pa.array(order_M)),
            templates["hash"].combine_chunks().take(pa.array(order_M)),
        )

    def __len__(self) -> int:
        return len(self.vector)

    def with_vectors(self, vector_MD: NDArray[np.float32]) -> Snapshot:
        """The same templates with other vectors."""
        return replace(self, vector=vector_MD, bounds=Bounds.of(vector_MD))

    def nearest(
        self, probe_D: NDArray[np.float32], num: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `num` nearest templates, and all that tie with the last of them.

        Returns:
            Rows (S,), nearest first, ties in row order, and squared Euclidean distances (S,),
            exactly 0 between equal vectors.
        """
        if num >= len(self):
            return self._ordered(np.arange(len(self)), probe_D)
        low_M = self.bounds.below(probe_D)
        edge = np.partition(self._squares(_lowest(low_M, num), probe_D), num - 1)[num - 1]
        rows = np.flatnonzero(low_M <= edge)
        if len(rows) > len(self) // 8 and self.bounds.turn is not None:
            rows = np.flatnonzero(Bounds.plain(self.vector).below(probe_D) <= edge)
        rows, square_S = self._ordered(rows, probe_D)
        end = np.searchsorted(square_S, square_S[num - 1], side="right")
        return rows[:end], square_S[:end]

    def _ordered(
        self, rows: NDArray[np.int64], probe_D: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        square_S = self._squares(rows, probe_D)
        order = np.argsort(square_S, kind="stable")
        return rows[order], square_S[order]

    def of_identity(self, code: int) -> NDArray[np.int64]:
        """The rows of one identity."""
        start, end = np.searchsorted(self.code, [code, code + 1])
        return np.arange(start, end)

    def _squares(
        self, rows: NDArray[np.int64], probe_D: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        # By differences: the product form is inexact near 0.
        difference_SD = self.vector[rows] - probe_D
        return np.asarray(np.einsum("sd,sd->s", difference_SD, difference_SD))


@dataclass(frozen=True, eq=False)
class Bounds:
    """Lower bounds of squared distances to M vectors, by one product with a narrow array.

    Attributes:
        turn: (D, L - 1) orthonormal directions; None if `narrow` holds the vectors.
        narrow: (M, L) coordinates along them, and the length of the rest; or the vectors, (M, D).
        square: (M,) squared lengths, less the largest error of a product.
    """

    turn: NDArray[np.float32] | None
    narrow: NDArray[np.float32]
    square: NDArray[np.float32]

    @classmethod
    def of(cls, vector_MD: NDArray[np.float32]) -> Bounds:
        """With a narrow array if it saves time."""
        num, dim = vector_MD.shape
        if num < WORTH_NARROWING or dim < 2 * NARROW:
            return cls.plain(vector_MD)
        some = vector_MD[:: -(-num // SAMPLE)].astype(np.float64)
        turn = np.linalg.eigh(some.T @ some)[1][:, -(NARROW - 1) :].astype(np.float32)
        return cls(turn, _along(turn, vector_MD), cls.plain(vector_MD).square)

    @classmethod
    def plain(cls, vector_MD: NDArray[np.float32]) -> Bounds:
        """With the vectors themselves: tight up to rounding."""
        square_M = np.einsum("md,md->m", vector_MD, vector_MD)
        return cls(None, vector_MD, square_M * np.float32(1 - ROUNDING))

    def below(self, probe_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """Lower bounds of the squared distances, shape (M,)."""
        probe_L = probe_D if self.turn is None else _along(self.turn, probe_D[None])[0]
        low_M = self.narrow @ (-2 * probe_L)
        low_M += self.square
        low_M += np.float32(1 - ROUNDING) * (probe_D @ probe_D)
        return low_M


def _along(turn_DL: NDArray[np.float32], vector_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coordinates along some directions, and the length of the rest, shape (M, L)."""
    shape = len(vector_MD), turn_DL.shape[1] + 1
    narrow_ML = np.empty(shape, dtype=np.float32, order="F")  # Columns in sequence are read faster.
    np.matmul(vector_MD, turn_DL, out=narrow_ML[:, :-1])
    # Rounded up: with too short a rest the bounds would be wrong.
    rest_M = np.float32(1 + ROUNDING) * np.einsum("md,md->m", vector_MD, vector_MD)
    rest_M -= np.einsum("ml,ml->m", narrow_ML[:, :-1], narrow_ML[:, :-1])
    narrow_ML[:, -1] = np.sqrt(np.maximum(rest_M, 0))
    return narrow_ML


def _lowest(low_M: NDArray[np.float32], num: int) -> NDArray[np.int64]:
    """Rows of at least `num` values, the lowest."""
    blocks = len(low_M) // BLOCK
    if blocks < 4 * num:
        return np.argpartition(low_M, num - 1)[:num]
    # Faster: `num` blocks, of rows far apart, hold a value as low as the `num`th lowest minimum.
    of_block = low_M[: blocks * BLOCK].reshape(BLOCK, blocks).min(axis=0)
    return np.flatnonzero(low_M <= np.partition(of_block, num - 1)[num - 1])


class Snapshots:
    """The snapshot of the newest version, kept until a newer one exists."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parts: dict[str, pa.Table] = {}
        self._latest: Snapshot | None = None
        self._lock = threading.Lock()

    def latest(self) -> Snapshot:
        """The templates of the newest version."""
        with self._lock:
            version = self._store.version
            if self._latest is None or self._latest.version != version:
                self._latest = self._store.read(self._load)
            return self._latest

    def _load(self, table: lance.LanceDataset) -> Snapshot:
        parts = {}
        for fragment in table.get_fragments():
            key = repr(fragment.metadata.to_json())
            part = self._parts.get(key)
            parts[key] = fragment.to_table(columns=list(HELD)) if part is None else part
        self._parts = parts
        empty = table.schema.empty_table().select(HELD)
        rows = pa.concat_tables([empty, *parts.values()])
        check_rows(rows)
        return Snapshot.of(int(table.version), rows)


def vectors(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of vectors as one array, shape (M, D)."""
    dim = column.type.list_size
    parts = [chunk.flatten().to_numpy().reshape(-1, dim) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty((0, dim), dtype=np.float32)
