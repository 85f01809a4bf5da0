"""Average linkage under constraints: embeddings -> clusters of pictures of the same thing.

UPGMA (Sokal & Michener 1958) on the k-NN graph: the two groups with the smallest mean distance
between their pictures are merged, until no mean is within the cut. Two groups are candidates once a
picture of one is among the K nearest of a picture of the other, within the cut; with K = N - 1 this
is exact, since a mean within the cut needs a pair within it. The mean is over all pairs. If only
one of two merged groups has a mean distance to a third, the new mean is measured between at most 16
pictures of each. Must-link pairs are together from the start and cannot-link pairs are never
merged, so both hold exactly. Memory grows with N x K.

New pictures join existing clusters in the same way: their own neighbours are searched among all
pictures, and two existing clusters are never merged with each other.

A library's linkage on a k-NN graph averages over its edges, which are the nearest pairs, and chains
everything together: see docs/clusters.md. scikit-learn's linkage of all pairs takes 0.7 times as
long at 2,000 pictures, and memory for N x N distances.

Files, names, labels and the choice of a threshold play no part here.

Shapes: N pictures, D dimensions, K neighbours, B pictures of a block, C clusters.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinlens.clusters.knn_graph import NEIGHBOURS, Neighbours, nearest_neighbours
from twinlens.errors import ConfigError, DataError
from twinlens.measure.pairs import Comparison

__all__ = ["Clustering", "as_clustering", "between_clusters", "cluster_embeddings", "contradiction",
           "linked_groups"]  # fmt: skip

MAX_COMPARED = 64
"""Pictures of its own cluster that a picture's mean distance is computed over."""

MAX_MEASURED = 16
"""Pictures of each group between which a mean distance is measured; up to 16, all of them."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Pairs = Iterable[tuple[int, int]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Clustering:
    """A partition of the pictures.

    Attributes:
        label: (N,) cluster of each picture; 0 is the largest, ties by the first picture.
        size: (C,) number of pictures, descending; singletons are last.
        doubt: (N,) mean distance to the other pictures of the cluster (of a large one, to a sample
            of them); 0 for a singleton.
    """

    label: Ints
    size: Ints
    doubt: Floats


# --- constraints --------------------------------------------------------------------------------


def contradiction(must_link: Pairs, cannot_link: Pairs) -> tuple[int, list[int]] | None:
    """The first pair of `cannot_link` that `must_link` joins, directly or through others.

    Returns:
        Its position in `cannot_link`, and the positions in `must_link` of the shortest chain
        between its two pictures (empty for a picture and itself); None without contradiction.
    """
    edges: dict[int, list[tuple[int, int]]] = {}
    for position, (a, b) in enumerate(must_link):
        edges.setdefault(a, []).append((b, position))
        edges.setdefault(b, []).append((a, position))
    for position, (a, b) in enumerate(cannot_link):
        chain = _shortest_chain(edges, a, b)
        if chain is not None:
            return position, chain
    return None


def _shortest_chain(edges: dict[int, list[tuple[int, int]]], a: int, b: int) -> list[int] | None:
    """Positions of the pairs that lead from `a` to `b`, breadth first; None if none do."""
    previous: dict[int, tuple[int, int]] = {a: (a, -1)}
    reached = [a]
    for node in reached:
        if node == b:
            break
        for other, position in edges.get(node, []):
            if other not in previous:
                previous[other] = (node, position)
                reached.append(other)
    if b not in previous:
        return None
    chain = []
    while b != a:
        b, position = previous[b]
        chain.append(position)
    return chain[::-1]


def linked_groups(num: int, must_link: Sequence[tuple[int, int]], label_N: Ints) -> Ints:
    """(N,) the group of each picture, numbered by the groups' first pictures.

    Args:
        num: N.
        must_link: pairs of pictures of a group.
        label_N: pictures of one label are a group, unless it is negative.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    row = np.flatnonzero(label_N >= 0)
    _, one, code = np.unique(label_N[row], return_index=True, return_inverse=True)
    pairs = np.array(must_link, dtype=np.int64).reshape(-1, 2)
    first, second = np.append(pairs[:, 0], row), np.append(pairs[:, 1], row[one][code])
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(num, num))
    label_N = connected_components(graph, directed=False)[1]
    _, row, code_N = np.unique(label_N, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(row))[code_N]


# --- merging ------------------------------------------------------------------------------------


class _Linkage:
    """The groups so far, and the mean distances within the cut between neighbouring ones.

    A merged group gets a new number, which voids every queue entry of an old one.
    """

    def __init__(
        self, emb_ND: Floats, comparison: Comparison, cut: float, members: list[list[int]]
    ) -> None:
        self.emb_ND, self.comparison, self.cut = emb_ND, comparison, cut
        self.members = members
        self.is_existing = [False] * len(members)
        self.mean: list[dict[int, float]] = [{} for _ in members]
        self.cannot_link: list[set[int]] = [set() for _ in members]
        self.queue: list[tuple[float, int, int]] = []

    def forbid(self, a: int, b: int) -> None:
        """Never merge two groups."""
        self.cannot_link[a].add(b)
        self.cannot_link[b].add(a)

    def add_means(self, a: int, mean_to: dict[int, float]) -> None:
        """Store the mean distances of a group to others that it could merge with."""
        for b, mean in mean_to.items():
            both_exist = self.is_existing[a] and self.is_existing[b]
            if mean <= self.cut and not both_exist and b not in self.cannot_link[a]:
                self.mean[a][b] = self.mean[b][a] = mean
        self._enqueue(a)

    def _enqueue(self, a: int) -> None:
        """Queue a group with its nearest neighbour.

        One entry for each group is enough: the group that stored a pair's mean distance queues it,
        and no neighbour comes nearer without being merged itself.
        """
        if self.mean[a]:
            b = min(self.mean[a], key=lambda c: (self.mean[a][c], c))
            heapq.heappush(self.queue, (self.mean[a][b], a, b))

    def measure(self, a: int, others: Sequence[int]) -> dict[int, float]:
        """The mean distances of a group to others."""
        if not others:
            return {}
        right = [_sample_evenly(self.members[b], MAX_MEASURED) for b in others]
        begin = np.cumsum([0] + [len(rows) for rows in right[:-1]])
        left_D = self.emb_ND[_sample_evenly(self.members[a], MAX_MEASURED)]
        dist_LM = self.comparison.matrix(left_D, self.emb_ND[np.concatenate(right)])
        total = np.add.reduceat(np.asarray(dist_LM, dtype=np.float64).mean(axis=0), begin)
        return {b: float(t) / len(r) for b, t, r in zip(others, total, right, strict=True)}

    def run(self, progress: Progress | None) -> None:
        """Merge until no two neighbours are within the cut."""
        num = len(self.members)
        while self.queue:
            _, a, b = heapq.heappop(self.queue)
            if not self.members[a]:
                continue
            if self.members[b]:
                self._merge(a, b)
            else:
                self._enqueue(a)
            if progress is not None and len(self.members) % 256 == 0:
                progress(len(self.members) - num, num)
        if progress is not None:
            progress(num, num)

    def _merge(self, a: int, b: int) -> None:
        mean_a, mean_b = self.mean[a], self.mean[b]
        del mean_a[b], mean_b[a]
        to_a = mean_a | self.measure(a, [c for c in mean_b if c not in mean_a])
        to_b = mean_b | self.measure(b, [c for c in mean_a if c not in mean_b])
        num_a, num_b = len(self.members[a]), len(self.members[b])
        mean = {c: (num_a * to_a[c] + num_b * to_b[c]) / (num_a + num_b) for c in to_a}
        new = len(self.members)
        cannot_link = self.cannot_link[a] | self.cannot_link[b]
        for old in (a, b):
            for c in self.mean[old]:
                del self.mean[c][old]
            for c in self.cannot_link[old]:
                self.cannot_link[c].discard(old)
        for c in cannot_link:
            self.cannot_link[c].add(new)
        large, small = (a, b) if num_a >= num_b else (b, a)
        self.members[large].extend(self.members[small])
        self.members.append(self.members[large])
        for old in (a, b):
            self.members[old], self.mean[old], self.cannot_link[old] = [], {}, set()
        self.mean.append({})
        self.is_existing.append(self.is_existing[a] or self.is_existing[b])
        self.cannot_link.append(cannot_link)
        self.add_means(new, mean)


def _sample_evenly(rows: Sequence[int], max_rows: int) -> Ints:
    """At most `max_rows` of some rows, evenly spaced."""
    num = min(len(rows), max_rows)
    return np.array([rows[place * len(rows) // num] for place in range(num)], dtype=np.int64)


def cluster_embeddings(
    emb_ND: NDArray[np.float32],
    comparison: Comparison,
    *,
    threshold: float,
    neighbours: int = NEIGHBOURS,
    must_link: Pairs = (),
    cannot_link: Pairs = (),
    angular: bool = False,
    existing: Ints | None = None,
    near: Neighbours | None = None,
    progress: Progress | None = None,
    merging: Progress | None = None,
) -> Clustering:
    """Cluster embeddings, so that the mean distance between neighbouring clusters exceeds a cut.

    The mean distance between groups that are not neighbours is not computed, and cannot-link groups
    may be arbitrarily near.

    Args:
        emb_ND: embeddings, shape (N, D).
        comparison: comparator.
        threshold: largest mean distance at which two groups are merged: a distance of the
            comparator, such as the calibrated threshold of a pair.
        neighbours: K, nearest pictures by which each picture can be merged.
        must_link: pairs of rows that show the same thing.
        cannot_link: pairs of rows that show different things.
        angular: whether to search neighbours by angle, as a cosine comparator needs.
        existing: existing cluster of each picture, shape (N,), -1 for a picture of none. Existing
            clusters stay together, and only must-link pairs merge them.
        near: k-NN graph; searched by default.
        progress: callback with the pictures whose neighbours are known, and all.
        merging: callback with the merges done and their largest possible number.
    Returns:
        Clusters, independent of the order of the pictures, except for equal distances and for
        means that are measured on samples of large groups.
    Raises:
        ConfigError: a negative or NaN threshold, or fewer than 1 neighbour.
        DataError: embeddings that give NaN distances, or a pair in `cannot_link` that `must_link`
            joins.
    """
    if not threshold >= 0:
        raise ConfigError(f"threshold must be a distance of 0 or more, found {threshold:g}")
    if neighbours < 1:
        raise ConfigError(f"neighbours must be at least 1, found {neighbours}")
    must, cannot = list(must_link), list(cannot_link)
    emb_ND = np.ascontiguousarray(emb_ND, dtype=np.float32)
    label_N = np.full(len(emb_ND), -1) if existing is None else existing
    group_N = linked_groups(len(emb_ND), must, label_N)
    for a, b in cannot:
        if group_N[a] == group_N[b]:
            raise DataError(
                f"cannot_link keeps rows {a} and {b} apart, but must_link or an existing cluster "
                "joins them: remove one pair, or divide the cluster"
            )
    if near is None:
        near = nearest_neighbours(
            emb_ND, comparison, neighbours=neighbours, angular=angular,
            query=np.flatnonzero(label_N < 0), progress=progress,
        )  # fmt: skip
    linkage = _Linkage(emb_ND, comparison, threshold, _members(group_N))
    for group in np.unique(group_N[label_N >= 0]).tolist():
        linkage.is_existing[group] = True
    for a, b in cannot:
        linkage.forbid(int(group_N[a]), int(group_N[b]))
    _add_neighbours(linkage, group_N, near)
    linkage.run(merging)
    return _clustering(emb_ND, comparison, [rows for rows in linkage.members if rows])


def as_clustering(emb_ND: Floats, comparison: Comparison, group_N: Ints) -> Clustering:
    """A partition as a clustering.

    Args:
        emb_ND: embeddings, shape (N, D).
        comparison: comparator.
        group_N: group of each picture, any numbers, shape (N,).
    """
    return _clustering(emb_ND, comparison, _members(np.unique(group_N, return_inverse=True)[1]))


def between_clusters(
    emb_ND: NDArray[np.float32], comparison: Comparison, label_N: Ints, num: int
) -> Floats:
    """The mean distances between the clusters 0 to `num` - 1, measured as for merging.

    Args:
        emb_ND: embeddings, shape (N, D).
        comparison: comparator.
        label_N: cluster of each picture, shape (N,).
        num: number of clusters, none of them empty.
    Returns:
        Shape (num, num); infinite on the diagonal.
    """
    members = [np.flatnonzero(label_N == label).tolist() for label in range(num)]
    linkage = _Linkage(np.asarray(emb_ND, dtype=np.float32), comparison, np.inf, members)
    dist_CC = np.full((num, num), np.inf, dtype=np.float32)
    for a in range(num - 1):
        means = linkage.measure(a, range(a + 1, num))
        dist_CC[a, a + 1 :] = dist_CC[a + 1 :, a] = list(means.values())
    return dist_CC


def _members(group_N: Ints) -> list[list[int]]:
    """The rows of each group, ascending."""
    order = np.argsort(group_N, kind="stable")
    begin = np.flatnonzero(np.diff(group_N[order])) + 1
    return [rows.tolist() for rows in np.split(order, begin)] if len(group_N) else []


def _add_neighbours(linkage: _Linkage, group_N: Ints, near: Neighbours) -> None:
    """Add the mean distances between groups that the k-NN graph joins."""
    num, depth = len(group_N), near.row.shape[1]
    close = near.distance <= linkage.cut
    first, second = np.repeat(near.query, depth)[close.ravel()], near.row[close]
    dist = near.distance[close].astype(np.float64)
    low = np.minimum(group_N[first], group_N[second])
    high = np.maximum(group_N[first], group_N[second])
    _, once = np.unique(low * (num + 1) + high, return_index=True)
    once = once[low[once] != high[once]]
    begin = np.flatnonzero(np.diff(low[once], prepend=-1))
    for rows in np.split(once, begin[1:]) if len(once) else ():
        a, others = int(low[rows[0]]), high[rows].tolist()
        alone = [len(linkage.members[a]) * len(linkage.members[b]) == 1 for b in others]
        known = zip(others, dist[rows].tolist(), strict=True)
        distance = {b: d for (b, d), single in zip(known, alone, strict=True) if single}
        linkage.add_means(
            a, distance | linkage.measure(a, [b for b in others if b not in distance])
        )


def _clustering(
    emb_ND: Floats, comparison: Comparison, groups: Sequence[Sequence[int]]
) -> Clustering:
    groups = sorted(groups, key=lambda rows: (-len(rows), min(rows)))
    label_N = np.empty(len(emb_ND), dtype=np.int64)
    doubt_N = np.zeros(len(emb_ND), dtype=np.float32)
    for label, rows in enumerate(groups):
        label_N[rows] = label
        if len(rows) > 1:
            doubt_N[rows] = _mean_to_others(emb_ND, comparison, rows)
    return Clustering(label_N, np.array([len(rows) for rows in groups], dtype=np.int64), doubt_N)


def _mean_to_others(emb_ND: Floats, comparison: Comparison, rows: Sequence[int]) -> Floats:
    """The mean distance of each picture of a cluster to (some of) the others."""
    others = _sample_evenly(rows, MAX_COMPARED)
    mean = []
    for start in range(0, len(rows), 4096):
        part = np.array(rows[start : start + 4096])
        dist_BS = np.asarray(comparison.matrix(emb_ND[part], emb_ND[others]))
        other_BS = part[:, None] != others
        mean.append((dist_BS * other_BS).sum(axis=1) / other_BS.sum(axis=1))
    return np.concatenate(mean).astype(np.float32)
