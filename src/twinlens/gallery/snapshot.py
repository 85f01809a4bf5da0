"""A gallery's templates in memory: exact search in one array, loaded once.

They lie there twice, as they were read, part by part, and ordered by identity.

Reading all of a large array takes longer than all else, so that a narrow one is read first: the
vectors' coordinates along the directions in which they vary most, and the length of the rest. By
Cauchy and Schwarz these bound each distance from below, and only the few templates that may be near
are compared in full. Nothing is approximate.

Fragments of the table never change, but for the rows that are deleted from them, so a new version
loads only what is new. This module knows no models and no rules.

Shapes: M templates, I identities, D dimensions, L of the narrow array, S of a shortlist.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.gallery.store import Store

__all__ = ["Snapshot", "Snapshots"]

NARROW = 16
WORTH_NARROWING = 20_000
"""Templates from which the narrow array saves time; below, all fits the processor's caches."""
SAMPLE = 20_000
BLOCK = 32
ROUNDING = 1e-5
"""By how much, of the two squared lengths, a squared distance by a product may be off, at most."""

HELD = ("identity", "path", "hash", "vector")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The templates of one version, those of an identity side by side.

    Attributes:
        version: of the store.
        vector: (M, D) float32.
        bounds: of distances to them.
        code: (M,) the identity of each, a place in `identities`, ascending.
        identities: (I,) names, sorted.
        path: (M,) where each picture was.
        hash: (M,) of its content.
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

    def nearest(
        self, probe_D: NDArray[np.float32], num: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `num` nearest templates and those that are as near as the last of them, exactly.

        Returns:
            Rows (S,), nearest first and of equally near ones in their order, and squared Euclidean
            distances (S,), of which a template has exactly 0 to itself.
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
        # By differences, since a product rounds.
        difference_SD = self.vector[rows] - probe_D
        return np.asarray(np.einsum("sd,sd->s", difference_SD, difference_SD))


@dataclass(frozen=True, eq=False)
class Bounds:
    """Lower bounds of squared distances to M vectors, by one product with a narrow array.

    Attributes:
        turn: (D, L - 1) directions, orthonormal; None where the array is that of the vectors.
        narrow: (M, L) coordinates along them, and the length of the rest; or the vectors, (M, D).
        square: (M,) squared lengths, less what a product may be off.
    """

    turn: NDArray[np.float32] | None
    narrow: NDArray[np.float32]
    square: NDArray[np.float32]

    @classmethod
    def of(cls, vector_MD: NDArray[np.float32]) -> Bounds:
        """With a narrow array where that saves time."""
        num, dim = vector_MD.shape
        if num < WORTH_NARROWING or dim < 2 * NARROW:
            return cls.plain(vector_MD)
        some = vector_MD[:: -(-num // SAMPLE)].astype(np.float64)
        turn = np.linalg.eigh(some.T @ some)[1][:, -(NARROW - 1) :].astype(np.float32)
        return cls(turn, _along(turn, vector_MD), cls.plain(vector_MD).square)

    @classmethod
    def plain(cls, vector_MD: NDArray[np.float32]) -> Bounds:
        """With the vectors themselves: no looser than rounding."""
        square_M = np.einsum("md,md->m", vector_MD, vector_MD)
        return cls(None, vector_MD, square_M * np.float32(1 - ROUNDING))

    def below(self, probe_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """Squared distances that are not greater than the true ones, shape (M,)."""
        probe_L = probe_D if self.turn is None else _along(self.turn, probe_D[None])[0]
        low_M = self.narrow @ (-2 * probe_L)
        low_M += self.square
        low_M += np.float32(1 - ROUNDING) * (probe_D @ probe_D)
        return low_M


def _along(turn_DL: NDArray[np.float32], vector_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coordinates along some directions, and the length of what they leave, shape (M, L)."""
    shape = len(vector_MD), turn_DL.shape[1] + 1
    narrow_ML = np.empty(shape, dtype=np.float32, order="F")  # Column by column is read faster.
    np.matmul(vector_MD, turn_DL, out=narrow_ML[:, :-1])
    # Rounded up: too short a rest would give bounds that are none.
    rest_M = np.float32(1 + ROUNDING) * np.einsum("md,md->m", vector_MD, vector_MD)
    rest_M -= np.einsum("ml,ml->m", narrow_ML[:, :-1], narrow_ML[:, :-1])
    narrow_ML[:, -1] = np.sqrt(np.maximum(rest_M, 0))
    return narrow_ML


def _lowest(low_M: NDArray[np.float32], num: int) -> NDArray[np.int64]:
    """Rows of at least `num` values, the lowest."""
    blocks = len(low_M) // BLOCK
    if blocks < 4 * num:
        return np.argpartition(low_M, num - 1)[:num]
    # Quicker: as many blocks, of rows far apart, hold a value as low as the `num`th of theirs.
    of_block = low_M[: blocks * BLOCK].reshape(BLOCK, blocks).min(axis=0)
    return np.flatnonzero(low_M <= np.partition(of_block, num - 1)[num - 1])


class Snapshots:
    """The snapshot of the newest version, kept until there is a newer one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parts: dict[str, pa.Table] = {}
        self._latest: Snapshot | None = None
        self._lock = threading.Lock()

    def latest(self) -> Snapshot:
        """The templates as they are now."""
        with self._lock:
            version = self._store.version
            if self._latest is None or self._latest.version != version:
                self._latest = self._store.read(self._load)
            return self._latest

    def _load(self, table: lance.LanceDataset) -> Snapshot:
        parts = {}
        for fragment in table.get_fragments():
            key = repr(fragment.metadata.to_json())
            known = self._parts.get(key)
            parts[key] = fragment.to_table(columns=list(HELD)) if known is None else known
        self._parts = parts
        empty = table.schema.empty_table().select(HELD)
        return Snapshot.of(int(table.version), pa.concat_tables([empty, *parts.values()]))


def vectors(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of vectors as one array, shape (M, D)."""
    dim = column.type.list_size
    parts = [chunk.flatten().to_numpy().reshape(-1, dim) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty((0, dim), dtype=np.float32)
