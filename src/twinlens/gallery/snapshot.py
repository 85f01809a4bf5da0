"""A gallery's templates in memory: exact search in one array, loaded once.

Most of the time of a search is the reading of a large array, so a narrow one is read first: the
vectors' coordinates along the directions in which they vary most, and the length of the rest. By
the Cauchy-Schwarz inequality these bound each distance from below, and only the few templates that
may be near are compared in full. The result is exact.

Fragments of the table never change, except for deleted rows. A version that only adds fragments
loads these, into memory reserved behind the array, so that a query after an enrolment is hardly
slower than others. Models and fusion rules play no part here.

Shapes: M templates, I identities, D dimensions, L columns of the narrow array, S of a shortlist.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
SPARE = 1024
"""Rows, at least, that are reserved for templates enrolled later; an eighth of all, if more."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The templates of one version.

    Attributes:
        version: version of the store.
        vector: (M, D) float32.
        room: memory whose first M rows are `vector`; later rows are for `extended`.
        bounds: lower bounds of distances to the vectors.
        code: (M,) index of each template's identity in `identities`.
        identities: (I,) names.
        path: (M,) file of each picture.
        hash: (M,) hash of each picture.
    """

    version: int
    vector: NDArray[np.float32]
    room: NDArray[np.float32]
    bounds: Bounds
    code: NDArray[np.int64]
    identities: pa.StringArray
    path: pa.StringArray
    hash: pa.StringArray

    @classmethod
    def of(cls, version: int, templates: pa.Table) -> Snapshot:
        """The rows of a table."""
        encoded = templates["identity"].combine_chunks().dictionary_encode()
        column = templates["vector"]
        room_RD = _room(len(templates), column.type.list_size)
        vector_MD = vectors(column, room_RD[: len(templates)])
        return cls(
            version,
            vector_MD,
            room_RD,
            Bounds.of(vector_MD),
            encoded.indices.to_numpy().astype(np.int64),
            encoded.dictionary,
            templates["path"].combine_chunks(),
            templates["hash"].combine_chunks(),
        )

    def extended(self, version: int, templates: pa.Table) -> Snapshot:
        """With the rows of a table behind its own; at most once, since both share `room`."""
        names = templates["identity"].combine_chunks()
        is_known = pc.is_in(names, self.identities)
        identities = pa.concat_arrays([self.identities, names.filter(pc.invert(is_known)).unique()])
        code_N = pc.index_in(names, identities).to_numpy()
        num = len(self) + len(templates)
        room_RD = self.room
        if num > len(room_RD):
            room_RD = _room(num, room_RD.shape[1])
            room_RD[: len(self)] = self.vector
        vectors(templates["vector"], room_RD[len(self) : num])
        return replace(
            self,
            version=version,
            vector=room_RD[:num],
            room=room_RD,
            bounds=self.bounds.extended(room_RD[:num]),
            code=np.concatenate([self.code, code_N.astype(np.int64)]),
            identities=identities,
            path=pa.concat_arrays([self.path, *templates["path"].chunks]),
            hash=pa.concat_arrays([self.hash, *templates["hash"].chunks]),
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
        return np.flatnonzero(self.code == code)

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

    def extended(self, vector_MD: NDArray[np.float32]) -> Bounds:
        """Those of more vectors, the first of which are its own."""
        if self.turn is None:
            return self.of(vector_MD)
        new_ND = vector_MD[len(self.square) :]
        narrow_ML = np.concatenate([self.narrow, _along(self.turn, new_ND)])
        return Bounds(
            self.turn, narrow_ML, np.concatenate([self.square, self.plain(new_ND).square])
        )

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
        self._fragments: set[str] = set()
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
        fragments = {repr(part.metadata.to_json()): part for part in table.get_fragments()}
        old = self._latest if self._fragments <= fragments.keys() else None
        new = [part for key, part in fragments.items() if old is None or key not in self._fragments]
        empty = table.schema.empty_table().select(HELD)
        rows = pa.concat_tables([empty, *(part.to_table(columns=list(HELD)) for part in new)])
        check_rows(rows)
        make = Snapshot.of if old is None else old.extended
        snap = make(int(table.version), rows)
        self._fragments = set(fragments)
        return snap


def _room(num: int, dim: int) -> NDArray[np.float32]:
    """Memory for some vectors and later ones, which takes none before it is written to."""
    return np.empty((num + max(SPARE, num // 8), dim), dtype=np.float32)


def vectors(column: pa.ChunkedArray, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """A column of vectors as one array, shape (M, D); `out`, if given."""
    dim = column.type.list_size
    parts = [chunk.flatten().to_numpy().reshape(-1, dim) for chunk in column.chunks]
    return np.concatenate([np.empty((0, dim), dtype=np.float32), *parts], out=out)
