"""The nearest identities and templates of a gallery, for one embedding.

Few templates are compared exactly, in memory (`snapshot`); many by Lance's index, which gives a
shortlist. A comparator that is no function of the Euclidean distance chooses among the templates
that are near by it. This module knows no thresholds: it ranks.

Shapes: M templates, I identities, S of a shortlist, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.gallery.schema import quoted
from twinlens.gallery.snapshot import Snapshot, Snapshots, vectors
from twinlens.gallery.store import Store
from twinlens.measure.distances import EuclideanComparison
from twinlens.measure.fusion import identity_means, rank_identities
from twinlens.measure.pairs import Comparison

__all__ = ["EXACT_BYTES", "Lookup", "RankedIdentity"]

EXACT_BYTES = 128 << 20
"""Vectors that are kept in memory and compared exactly: 262,144 of 128 dimensions."""

SHORTLIST, MOST_SHORTLISTED = 32, 8192
"""Templates that an index is asked for at first, and at most, where they are of few identities;
more where many identities are asked for."""

RERANKED = 256
"""Templates near by Euclid, among which a learned comparator chooses."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RankedIdentity:
    """An identity near a probe, with its distance by the rule, and its nearest template's path."""

    identity: str
    distance: float
    path: str


class Lookup:
    """Finds what is near.

    Args:
        store: the templates.
        plain: the comparator, where it follows the Euclidean distance, else None.
        learned: gives the comparator where `plain` is None.
    """

    def __init__(
        self, store: Store, plain: EuclideanComparison | None, learned: Callable[[], Comparison]
    ) -> None:
        self._store, self._plain, self._learned = store, plain, learned
        self._snapshots = Snapshots(store)
        self._means: tuple[int, Floats] | None = None

    @property
    def comparison(self) -> Comparison:
        """What gives distances between vectors as they are stored."""
        return self._learned() if self._plain is None else self._plain

    def fits_memory(self, num_templates: int) -> bool:
        """Whether so many templates are compared exactly, in memory."""
        return num_templates * self._store.dim * 4 <= EXACT_BYTES

    def snapshot(self) -> Snapshot:
        """All templates, in memory."""
        return self._snapshots.latest()

    def identities(
        self, probe_D: Floats, rule: str, depth: int, nprobes: int | None, *, in_memory: bool
    ) -> list[RankedIdentity]:
        """The `depth` best identities, best first; fewer where there are no more.

        Args:
            probe_D: as vectors are stored, shape (D,).
            rule: how the templates of an identity are fused, see `measure.fusion`.
            depth: how many.
            nprobes: partitions of the index to search; None compares all.
            in_memory: compare all in memory.
        """
        if in_memory:
            return self._of_snapshot(self.snapshot(), probe_D, rule, depth)
        return self._of_index(probe_D, rule, depth, nprobes)

    def templates(
        self,
        probe_D: Floats,
        k: int,
        nprobes: int | None,
        *,
        where: str | None,
        in_memory: bool,
        columns: Sequence[str],
    ) -> pa.Table:
        """The k nearest templates, nearest first, with their `distance`."""
        if in_memory and where is None:
            found = self._in_snapshot(probe_D, k, columns)
            if found is not None:
                return found
        num = k if self._plain is not None else max(k, RERANKED)
        wanted = [*columns, *([] if self._plain is not None else ["vector"])]
        found = self._store.nearest(probe_D, num, columns=wanted, where=where, nprobes=nprobes)
        dist_S = self._shortlisted(found, probe_D)
        order = np.argsort(dist_S, kind="stable")[:k]
        table = found.take(pa.array(order)).select(list(columns))
        return table.append_column("distance", pa.array(dist_S[order]))

    def _in_snapshot(self, probe_D: Floats, k: int, columns: Sequence[str]) -> pa.Table | None:
        """As `templates`; None where one of them was erased while the others were looked up."""
        snap = self.snapshot()
        num = k if self._plain is not None else max(k, RERANKED)
        row_S, dist_S = self._near(snap, probe_D, num)
        order = np.argsort(dist_S, kind="stable")[:k]
        found = self._details(snap.hash.take(pa.array(row_S[order])), columns)
        if len(found) < len(order):
            return None
        return found.append_column("distance", pa.array(dist_S[order]))

    def _details(self, hashes: pa.StringArray, columns: Sequence[str]) -> pa.Table:
        """Rows by their hashes, in that order; those that are there no more are left out."""
        names = hashes.to_pylist()
        where = f"hash IN ({', '.join(map(quoted, names))})" if names else "false"
        found = self._store.find(where, columns=list({"hash": 0, **dict.fromkeys(columns)}))
        place = {name: row for row, name in enumerate(found["hash"].to_pylist())}
        order = [place[name] for name in names if name in place]
        return found.take(pa.array(order, pa.int64())).select(list(columns))

    def _of_snapshot(
        self, snap: Snapshot, probe_D: Floats, rule: str, depth: int
    ) -> list[RankedIdentity]:
        if not len(snap):
            return []
        if rule == "mean":
            return self._by_means_of(snap, probe_D, depth)
        wanted = min(depth, len(snap.identities))
        num = SHORTLIST if self._plain is not None else RERANKED
        while True:
            row_S, dist_S = self._near(snap, probe_D, num)
            codes, code_S = np.unique(snap.code[row_S], return_inverse=True)
            if len(codes) >= wanted:
                break
            num *= 8
        ranked = rank_identities(dist_S[None], code_S, rule, depth)
        names = snap.identities.take(pa.array(codes)).to_numpy(zero_copy_only=False)
        path = snap.path.take(pa.array(row_S))
        return _named(ranked.code[0], ranked.distance[0], path, dist_S, code_S, names)

    def _by_means_of(self, snap: Snapshot, probe_D: Floats, depth: int) -> list[RankedIdentity]:
        mean_ID = self._means_of(snap)
        dist_I = self._to(mean_ID, probe_D)
        ranked = rank_identities(dist_I[None], np.arange(len(mean_ID)), "mean", depth)
        found = []
        for code, distance in zip(ranked.code[0], ranked.distance[0], strict=True):
            rows = snap.of_identity(code)
            row = rows[np.argmin(self._to(snap.vector[rows], probe_D))]
            name, path = snap.identities[code].as_py(), snap.path[row].as_py()
            found.append(RankedIdentity(name, float(distance), path))
        return found

    def _means_of(self, snap: Snapshot) -> Floats:
        known = self._means
        if known is None or known[0] != snap.version:
            # Another thread may put its own there meanwhile, so that it is not read again.
            known = self._means = snap.version, identity_means(snap.vector, snap.code)[0]
        return known[1]

    def _near(self, snap: Snapshot, probe_D: Floats, num: int) -> tuple[NDArray[np.int64], Floats]:
        """Rows (S,) of the `num` nearest by Euclid, and their distances by the comparator."""
        row_S, square_S = snap.nearest(probe_D, num)
        if self._plain is not None:
            return row_S, self._plain.from_squared(square_S)
        return row_S, self._to(snap.vector[row_S], probe_D)

    def _to(self, vector_SD: Floats, probe_D: Floats) -> Floats:
        """Distances of a probe to some vectors, shape (S,)."""
        probe_SD = np.broadcast_to(probe_D, vector_SD.shape)
        return np.asarray(self.comparison.pairwise(probe_SD, vector_SD))

    def _of_index(
        self, probe_D: Floats, rule: str, depth: int, nprobes: int | None
    ) -> list[RankedIdentity]:
        columns = ["identity", "path", *([] if self._plain is not None else ["vector"])]
        num = max(SHORTLIST if self._plain is not None else RERANKED, 2 * depth)
        most = max(MOST_SHORTLISTED, 16 * depth)
        while True:
            found = self._store.nearest(probe_D, num, columns=columns, nprobes=nprobes)
            names, code_S = np.unique(
                found["identity"].to_numpy(zero_copy_only=False), return_inverse=True
            )
            if len(names) >= depth or len(found) < num or num >= most:
                break
            num *= 4
        dist_S = self._shortlisted(found, probe_D)
        if rule == "mean":
            return self._by_mean(found, dist_S, code_S, names, probe_D, depth)
        ranked = rank_identities(dist_S[None], code_S, rule, depth)
        return _named(ranked.code[0], ranked.distance[0], found["path"], dist_S, code_S, names)

    def _by_mean(
        self,
        found: pa.Table,
        dist_S: Floats,
        code_S: NDArray[np.int64],
        names: NDArray[Any],
        probe_D: Floats,
        depth: int,
    ) -> list[RankedIdentity]:
        """By the means of all templates of the identities that a shortlist holds."""
        where = f"identity IN ({', '.join(map(quoted, names))})"
        rows = self._store.find(where, columns=["identity", "vector"])
        code_M = np.searchsorted(names, rows["identity"].to_numpy(zero_copy_only=False))
        mean_ID, code_I = identity_means(vectors(rows["vector"]), code_M)
        dist_I = self._to(mean_ID, probe_D)
        ranked = rank_identities(dist_I[None], code_I, "mean", depth)
        return _named(ranked.code[0], ranked.distance[0], found["path"], dist_S, code_S, names)

    def _shortlisted(self, found: pa.Table, probe_D: Floats) -> Floats:
        if self._plain is not None:
            return self._plain.from_squared(found["_distance"].to_numpy())
        return self._to(vectors(found["vector"]), probe_D)


def _named(
    code_K: NDArray[np.int64],
    dist_K: Floats,
    path_S: pa.Array,
    dist_S: Floats,
    code_S: NDArray[np.int64],
    names: NDArray[Any],
) -> list[RankedIdentity]:
    near = []
    for code, distance in zip(code_K, dist_K, strict=True):
        if code < 0:
            break
        row = int(np.argmin(np.where(code_S == code, dist_S, np.inf)))
        near.append(RankedIdentity(str(names[code]), float(distance), path_S[row].as_py()))
    return near
