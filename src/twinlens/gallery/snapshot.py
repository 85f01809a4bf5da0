"""A gallery's templates in memory: exact search in one array, loaded once.

Most of the time of a search is the reading of a large array, so a narrow one is read first: the
vectors' coordinates along the directions in which they vary most, and the length of the rest. By
the Cauchy-Schwarz inequality these bound each distance from below, and only the few templates that
may be near are compared in full. The result is exact.

A new version reads the fragments of the table that are new only, so that the first query after it
is hardly slower than others. New templates go into memory reserved behind the array. A compaction
or an erasure writes templates into other fragments: those that are known by hash, time and name
keep their rows, and rows of erased ones are skipped until there are many. Models and fusion rules
play no part here.

Shapes: M templates, I identities, D dimensions, L columns of the narrow array, S of a shortlist.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
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

NAMES = ("hash", "time", "identity")
"""Columns that say whether a template is a known one."""
HELD = (*NAMES, "path", "vector")
LARGE, MOST_SKIPPED = 20_000, 1 / 8
"""Templates from which rows of erased ones are skipped, and the most of them, as a share of all.
Otherwise all are loaded again."""
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
        code: (M,) index of each template's identity in `identities`; -1 for a skipped row.
        identities: (I,) names.
        path: (M,) file of each picture.
        hash: (M,) hash of each picture.
        time: (M,) time of enrolment.
        num_skipped: rows of templates that were erased.
    """

    version: int
    vector: NDArray[np.float32]
    room: NDArray[np.float32]
    bounds: Bounds
    code: NDArray[np.int64]
    identities: pa.StringArray
    path: pa.StringArray
    hash: pa.StringArray
    time: pa.Array
    num_skipped: int = 0

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
            templates["time"].combine_chunks(),
        )

    def without(self, rows: NDArray[np.int64]) -> Snapshot:
        """With some rows skipped from now on."""
        code_M = self.code.copy()
        code_M[rows] = -1
        num = self.num_skipped + len(rows)
        return replace(self, code=code_M, bounds=self.bounds.without(rows), num_skipped=num)

    def known(self, rows: NDArray[np.int64], names: pa.Table) -> NDArray[np.int64]:
        """The row of each of N templates among `rows`; -1 for another one, shape (N,)."""
        place_N = pc.index_in(names["hash"], self.hash.take(pa.array(rows)))
        row_N = np.append(rows, -1)[place_N.fill_null(len(rows)).to_numpy()]
        code_N = pc.index_in(names["identity"], self.identities).fill_null(-1).to_numpy()
        time_N = names["time"].combine_chunks().cast(pa.int64()).to_numpy()
        same_N = (self.code[row_N] == code_N) & (row_N >= 0)
        old_N = self.time.take(pa.array(np.maximum(row_N, 0))).cast(pa.int64()).to_numpy()
        same_N &= old_N == time_N
        return np.where(same_N, row_N, -1)

    def extended(self, version: int, templates: pa.Table) -> Snapshot:
        """With the rows of a table behind its own; at most once, since both share `room`."""
        names = templates["identity"].combine_chunks()
        is_known = pc.is_in(names, self.identities)
        identities = pa.concat_arrays([self.identities, names.filter(pc.invert(is_known)).unique()])
        code_N = pc.index_in(names, identities).to_numpy()
        old = len(self.vector)
        num, room_RD = old + len(templates), self.room
        if num > len(room_RD):
            room_RD = _room(num, room_RD.shape[1])
            room_RD[:old] = self.vector
        vectors(templates["vector"], room_RD[old:num])
        return replace(
            self,
            version=version,
            vector=room_RD[:num],
            room=room_RD,
            bounds=self.bounds.extended(room_RD[:num]).without(self._skipped()),
            code=np.concatenate([self.code, code_N.astype(np.int64)]),
            identities=identities,
            path=pa.concat_arrays([self.path, *templates["path"].chunks]),
            hash=pa.concat_arrays([self.hash, *templates["hash"].chunks]),
            time=pa.concat_arrays([self.time, *templates["time"].chunks]),
        )

    def __len__(self) -> int:
        return len(self.vector) - self.num_skipped

    def _skipped(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.code < 0) if self.num_skipped else np.empty(0, np.int64)

    def rows(self) -> NDArray[np.int64]:
        """The rows of templates."""
        return np.flatnonzero(self.code >= 0)

    def with_vectors(self, vector_MD: NDArray[np.float32]) -> Snapshot:
        """The same templates with other vectors."""
        bounds = Bounds.of(vector_MD).without(self._skipped())
        return replace(self, vector=vector_MD, bounds=bounds)

    def nearest(
        self, probe_D: NDArray[np.float32], num: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `num` nearest templates, and all that tie with the last of them.

        Returns:
            Rows (S,), nearest first, ties in row order, and squared Euclidean distances (S,),
            exactly 0 between equal vectors.
        """
        if num >= len(self):
            return self._ordered(self.rows(), probe_D)
        low_M = self.bounds.below(probe_D)
        lowest = self._kept(_lowest(low_M, num))
        edge = np.partition(self._squares(lowest, probe_D), num - 1)[num - 1]
        rows = np.flatnonzero(low_M <= edge)
        if len(rows) > len(self) // 8 and self.bounds.turn is not None:
            rows = np.flatnonzero(Bounds.plain(self.vector).below(probe_D) <= edge)
        rows = self._kept(rows)
        rows, square_S = self._ordered(rows, probe_D)
        end = np.searchsorted(square_S, square_S[num - 1], side="right")
        return rows[:end], square_S[:end]

    def _ordered(
        self, rows: NDArray[np.int64], probe_D: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        square_S = self._squares(rows, probe_D)
        order = np.argsort(square_S, kind="stable")
        return rows[order], square_S[order]

    def _kept(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows[self.code[rows] >= 0] if self.num_skipped else rows

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

    def without(self, rows: NDArray[np.int64]) -> Bounds:
        """With an infinite bound for some rows."""
        if not len(rows):
            return self
        square_M = self.square.copy()
        square_M[rows] = np.inf
        return replace(self, square=square_M)

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
        self._rows: dict[str, NDArray[np.int64]] = {}  # Of the snapshot, by fragment.
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
        parts = {repr(part.metadata.to_json()): part for part in table.get_fragments()}
        gone = [rows for key, rows in self._rows.items() if key not in parts]
        new = {key: part for key, part in parts.items() if key not in self._rows}
        snap = self._latest
        if snap is not None and gone:
            snap = self._replaced(snap, np.concatenate(gone), new)
        elif snap is not None:
            snap = self._extended(snap, new)
        if snap is None:
            self._rows = {}
            empty = table.schema.empty_table().select(HELD)
            tables = [_read(part, HELD) for part in parts.values()]
            snap = Snapshot.of(0, pa.concat_tables([empty, *tables]))
            self._number(parts, tables, np.arange(len(snap)))
        self._rows = {key: rows for key, rows in self._rows.items() if key in parts}
        return replace(snap, version=int(table.version))

    def _extended(self, snap: Snapshot, new: Mapping[str, lance.LanceFragment]) -> Snapshot:
        """With all templates of new fragments."""
        tables = [_read(part, HELD) for part in new.values()]
        num = sum(map(len, tables))
        self._number(new, tables, len(snap.vector) + np.arange(num))
        return snap.extended(snap.version, pa.concat_tables(tables)) if num else snap

    def _replaced(
        self, snap: Snapshot, gone: NDArray[np.int64], new: Mapping[str, lance.LanceFragment]
    ) -> Snapshot | None:
        """With the templates of new fragments in place of some rows; None if too many change."""
        if len(snap) < LARGE or not new:
            return None
        tables = [_read(part, NAMES) for part in new.values()]
        names = pa.concat_tables(tables)
        row_N = snap.known(gone, names)
        is_new, is_lost = row_N < 0, np.zeros(len(snap.vector), np.bool_)
        is_lost[gone] = True
        is_lost[row_N[~is_new]] = False
        lost = np.flatnonzero(is_lost)
        num_new = np.count_nonzero(is_new)
        if snap.num_skipped + len(lost) + num_new > MOST_SKIPPED * len(snap):
            return None
        snap = snap.without(lost) if len(lost) else snap
        row_N[is_new] = len(snap.vector) + np.arange(num_new)
        ends = np.cumsum([len(part) for part in tables])
        offsets = [np.flatnonzero(part) for part in np.split(is_new, ends[:-1])]
        rows = [_read(part, HELD, at) for part, at in zip(new.values(), offsets, strict=True)
                if len(at)]  # fmt: skip
        self._number(new, tables, row_N)
        return snap.extended(snap.version, pa.concat_tables(rows)) if rows else snap

    def _number(
        self,
        parts: Mapping[str, lance.LanceFragment],
        tables: Sequence[pa.Table],
        row_N: NDArray[np.int64],
    ) -> None:
        """Keep the rows of fragments, which follow each other in `row_N`."""
        ends = np.cumsum([len(part) for part in tables])
        self._rows |= dict(zip(parts, np.split(row_N, ends[:-1]), strict=bool(parts)))


def _read(
    part: lance.LanceFragment, columns: Sequence[str], rows: NDArray[np.int64] | None = None
) -> pa.Table:
    """Checked rows of a fragment; all by default."""
    if rows is None:
        table = part.to_table(columns=list(columns))
    else:
        table = part.take(rows.tolist(), columns=list(columns))
    check_rows(table)
    return table


def _room(num: int, dim: int) -> NDArray[np.float32]:
    """Memory for some vectors and later ones, which takes none before it is written to."""
    return np.empty((num + max(SPARE, num // 8), dim), dtype=np.float32)


def vectors(column: pa.ChunkedArray, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """A column of vectors as one array, shape (M, D); `out`, if given."""
    dim = column.type.list_size
    parts = [chunk.flatten().to_numpy().reshape(-1, dim) for chunk in column.chunks]
    return np.concatenate([np.empty((0, dim), dtype=np.float32), *parts], out=out)
