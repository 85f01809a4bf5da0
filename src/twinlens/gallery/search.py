"""Search of the nearest identities and templates for an embedding; no thresholds.

Few templates are compared exactly, in memory (`snapshot`); for many, Lance's index gives a
shortlist. A learned comparator, which is not a function of the Euclidean distance, ranks the
nearest templates by that distance again.

Shapes: M templates, I identities, S of a shortlist, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.gallery.metric import Metric
from twinlens.gallery.schema import quoted
from twinlens.gallery.snapshot import Snapshot, Snapshots, vectors
from twinlens.gallery.store import Store
from twinlens.measure.distances import EuclideanComparison
from twinlens.measure.fusion import identity_means, rank_identities
from twinlens.measure.pairs import Comparison

__all__ = ["EXACT_BYTES", "Lookup", "RankedIdentity", "listed"]

EXACT_BYTES = 128 << 20
"""Size of the vectors up to which they are kept in memory: 262,144 of 128 dimensions."""

SHORTLIST, MAX_SHORTLIST = 32, 8192
"""Initial and largest size of an index's shortlist, which grows until it has enough identities.
Queries for many identities have longer ones."""

RERANKED = 256
"""Nearest templates by Euclidean distance that a learned comparator ranks again."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RankedIdentity:
    """An identity with its distance by the fusion rule, and the path of its nearest template."""

    identity: str
    distance: float
    path: str


class Lookup:
    """Nearest-neighbour search in a store.

    Args:
        store: table of templates.
        plain: comparator that is a function of the Euclidean distance, else None.
        learned: loads the comparator if `plain` is None.
    """

    def __init__(
        self, store: Store, plain: EuclideanComparison | None, learned: Callable[[], Comparison]
    ) -> None:
        self._store, self._plain, self._learned = store, plain, learned
        self._snapshots = Snapshots(store)
        self._means: tuple[Snapshot, tuple[Floats, NDArray[np.int64]]] | None = None
        self._mapped: tuple[Snapshot, Metric, Snapshot] | None = None

    @property
    def comparison(self) -> Comparison:
        """The comparator of stored vectors."""
        return self._learned() if self._plain is None else self._plain

    def fits_memory(self, num_templates: int) -> bool:
        """Whether a number of templates fits in memory."""
        return num_templates * self._store.dim * 4 <= EXACT_BYTES

    def snapshot(self) -> Snapshot:
        """All templates, in memory."""
        return self._snapshots.latest()

    def identities(
        self,
        probe_D: Floats,
        rule: str,
        depth: int,
        nprobes: int | None,
        *,
        in_memory: bool,
        metric: Metric | None = None,
    ) -> list[RankedIdentity]:
        """The `depth` best identities, best first; fewer if the gallery has fewer.

        Args:
            probe_D: prepared embedding, shape (D,).
            rule: fusion of an identity's templates, see `measure.fusion`.
            depth: number of identities.
            nprobes: partitions of the index to search; None compares all templates.
            in_memory: whether to compare all templates in memory.
            metric: map of all embeddings; an index finds its shortlist without it.
        """
        if in_memory:
            snap, probe_D = self._in(metric, self.snapshot()), self.mapped(metric, probe_D[None])[0]
            return self._identities_in_memory(snap, probe_D, rule, depth)
        return self._identities_by_index(probe_D, rule, depth, nprobes, metric)

    def mapped(self, metric: Metric | None, vector_ND: Floats) -> Floats:
        """Stored vectors by a metric, shape (N, D)."""
        if metric is None:
            return vector_ND
        vector_ND = metric.apply(vector_ND)
        return vector_ND if self._plain is None else self._plain.prepared(vector_ND)

    def _in(self, metric: Metric | None, snap: Snapshot) -> Snapshot:
        """A snapshot by a metric, kept until either changes."""
        if metric is None:
            return snap
        # Not read again, since another thread may replace it meanwhile.
        mapped = self._mapped
        if mapped is None or mapped[0] is not snap or mapped[1] is not metric:
            mapped = snap, metric, snap.with_vectors(self.mapped(metric, snap.vector))
            self._mapped = mapped
        return mapped[2]

    def templates(
        self,
        probe_D: Floats,
        k: int,
        nprobes: int | None,
        *,
        where: str | None,
        in_memory: bool,
        columns: Sequence[str],
        metric: Metric | None = None,
    ) -> pa.Table:
        """The k nearest templates, nearest first, with their `distance`."""
        if in_memory and where is None:
            table = self._templates_in_memory(probe_D, k, columns, metric)
            if table is not None:
                return table
        is_plain = self._plain is not None and metric is None
        num = k if is_plain else max(k, RERANKED)
        needed = [*columns, *([] if is_plain else ["vector"])]
        rows = self._store.nearest(probe_D, num, columns=needed, where=where, nprobes=nprobes)
        dist_S = self._shortlist_distances(rows, probe_D, metric)
        order = np.argsort(dist_S, kind="stable")[:k]
        table = rows.take(pa.array(order)).select(list(columns))
        return table.append_column("distance", pa.array(dist_S[order]))

    def _templates_in_memory(
        self, probe_D: Floats, k: int, columns: Sequence[str], metric: Metric | None
    ) -> pa.Table | None:
        """As `templates`; None if one of them was erased during the search."""
        snap, probe_D = self._in(metric, self.snapshot()), self.mapped(metric, probe_D[None])[0]
        num = k if self._plain is not None else max(k, RERANKED)
        row_S, dist_S = self._nearest_rows(snap, probe_D, num)
        order = np.argsort(dist_S, kind="stable")[:k]
        table = self._details(snap.hash.take(pa.array(row_S[order])), columns)
        if len(table) < len(order):
            return None
        return table.append_column("distance", pa.array(dist_S[order]))

    def _details(self, hashes: pa.StringArray, columns: Sequence[str]) -> pa.Table:
        """Rows by their hashes, in that order; erased ones are left out."""
        names = hashes.to_pylist()
        where = f"hash IN ({', '.join(map(quoted, names))})" if names else "false"
        rows = self._store.find(where, columns=list({"hash": 0, **dict.fromkeys(columns)}))
        place = {name: row for row, name in enumerate(rows["hash"].to_pylist())}
        order = [place[name] for name in names if name in place]
        return rows.take(pa.array(order, pa.int64())).select(list(columns))

    def _identities_in_memory(
        self, snap: Snapshot, probe_D: Floats, rule: str, depth: int
    ) -> list[RankedIdentity]:
        if not len(snap):
            return []
        if rule == "mean":
            return self._by_means_in_memory(snap, probe_D, depth)
        num_identities = min(depth, len(snap.identities))
        num = SHORTLIST if self._plain is not None else RERANKED
        while True:
            row_S, dist_S = self._nearest_rows(snap, probe_D, num)
            codes, code_S = np.unique(snap.code[row_S], return_inverse=True)
            # Names of which all rows are skipped are there too.
            if len(codes) >= num_identities or num >= len(snap):
                break
            num *= 8
        names = snap.identities.take(pa.array(codes)).to_numpy(zero_copy_only=False)
        names, rank = np.unique(names, return_inverse=True)
        code_S = rank[code_S]  # By name, so that the order of ties is that of an index.
        ranked = rank_identities(dist_S[None], code_S, rule, depth)
        path = snap.path.take(pa.array(row_S))
        return listed(ranked.code[0], ranked.distance[0], path, dist_S, code_S, names)

    def _by_means_in_memory(
        self, snap: Snapshot, probe_D: Floats, depth: int
    ) -> list[RankedIdentity]:
        mean_ID, code_I = self._means_of(snap)
        dist_I = self._distances(mean_ID, probe_D)
        ranked = rank_identities(dist_I[None], code_I, "mean", depth)
        identities = []
        for code, distance in zip(ranked.code[0], ranked.distance[0], strict=True):
            rows = snap.of_identity(code)
            row = rows[np.argmin(self._distances(snap.vector[rows], probe_D))]
            name, path = snap.identities[code].as_py(), snap.path[row].as_py()
            identities.append(RankedIdentity(name, float(distance), path))
        return identities

    def _means_of(self, snap: Snapshot) -> tuple[Floats, NDArray[np.int64]]:
        means = self._means
        if means is None or means[0] is not snap:
            # Not read again, since another thread may have replaced it meanwhile.
            rows = snap.rows() if snap.num_skipped else slice(None)
            means = self._means = snap, identity_means(snap.vector[rows], snap.code[rows])
        return means[1]

    def _nearest_rows(
        self, snap: Snapshot, probe_D: Floats, num: int
    ) -> tuple[NDArray[np.int64], Floats]:
        """Rows (S,) of the `num` nearest by Euclidean distance; distances by the comparator."""
        row_S, square_S = snap.nearest(probe_D, num)
        if self._plain is not None:
            return row_S, self._plain.from_squared(square_S)
        return row_S, self._distances(snap.vector[row_S], probe_D)

    def _distances(self, vector_SD: Floats, probe_D: Floats) -> Floats:
        """Distances of a probe to some vectors, shape (S,)."""
        probe_SD = np.broadcast_to(probe_D, vector_SD.shape)
        return np.asarray(self.comparison.pairwise(probe_SD, vector_SD))

    def _identities_by_index(
        self,
        probe_D: Floats,
        rule: str,
        depth: int,
        nprobes: int | None,
        metric: Metric | None,
    ) -> list[RankedIdentity]:
        is_plain = self._plain is not None and metric is None
        columns = ["identity", "path", *([] if is_plain else ["vector"])]
        num = max(SHORTLIST if is_plain else RERANKED, 2 * depth)
        max_num = max(MAX_SHORTLIST, 16 * depth)
        while True:
            rows = self._store.nearest(probe_D, num, columns=columns, nprobes=nprobes)
            names, code_S = np.unique(
                rows["identity"].to_numpy(zero_copy_only=False), return_inverse=True
            )
            if len(names) >= depth or len(rows) < num or num >= max_num:
                break
            num *= 4
        dist_S = self._shortlist_distances(rows, probe_D, metric)
        if rule == "mean":
            return self._by_means_of_shortlist(
                rows["path"], dist_S, code_S, names, probe_D, depth, metric
            )
        ranked = rank_identities(dist_S[None], code_S, rule, depth)
        return listed(ranked.code[0], ranked.distance[0], rows["path"], dist_S, code_S, names)

    def _by_means_of_shortlist(
        self,
        path_S: pa.Array,
        dist_S: Floats,
        code_S: NDArray[np.int64],
        names: NDArray[Any],
        probe_D: Floats,
        depth: int,
        metric: Metric | None,
    ) -> list[RankedIdentity]:
        """Rank the identities of a shortlist by the means of all their templates."""
        where = f"identity IN ({', '.join(map(quoted, names))})"
        rows = self._store.find(where, columns=["identity", "vector"])
        code_M = np.searchsorted(names, rows["identity"].to_numpy(zero_copy_only=False))
        mean_ID, code_I = identity_means(self.mapped(metric, vectors(rows["vector"])), code_M)
        dist_I = self._distances(mean_ID, self.mapped(metric, probe_D[None])[0])
        ranked = rank_identities(dist_I[None], code_I, "mean", depth)
        return listed(ranked.code[0], ranked.distance[0], path_S, dist_S, code_S, names)

    def _shortlist_distances(
        self, rows: pa.Table, probe_D: Floats, metric: Metric | None
    ) -> Floats:
        if self._plain is not None and metric is None:
            return self._plain.from_squared(rows["_distance"].to_numpy())
        return self.distances(vectors(rows["vector"]), probe_D, metric)

    def distances(self, vector_SD: Floats, probe_D: Floats, metric: Metric | None) -> Floats:
        """Distances of a probe to some stored vectors by a metric, shape (S,)."""
        probe_D = self.mapped(metric, probe_D[None])[0]
        return self._distances(self.mapped(metric, vector_SD), probe_D)


def listed(
    code_K: NDArray[np.int64],
    dist_K: Floats,
    path_S: pa.Array,
    dist_S: Floats,
    code_S: NDArray[np.int64],
    names: NDArray[Any],
) -> list[RankedIdentity]:
    """The identities of a rank list, each with the path of its nearest template."""
    identities = []
    for code, distance in zip(code_K, dist_K, strict=True):
        if code < 0:
            break
        row = int(np.argmin(np.where(code_S == code, dist_S, np.inf)))
        identities.append(RankedIdentity(str(names[code]), float(distance), path_S[row].as_py()))
    return identities
