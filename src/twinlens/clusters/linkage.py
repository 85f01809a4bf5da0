"""Who is in these pictures? Embeddings -> groups of pictures that show the same thing.

Average linkage (UPGMA; Sokal & Michener 1958) among neighbours: the two groups with the smallest
mean distance between their pictures become one, until none is within the cut. Two groups are looked
at once a picture of the one is among the K nearest of a picture of the other, within the cut; with
K = N - 1 nothing is overlooked, since a mean within the cut needs a pair within it. The mean is of
all pairs. (A library that is given the graph of neighbours takes that of the graph's edges, which
are the nearest pairs, and draws everything together: see docs/clusters.md.) Where a group's two
parts do not both know their mean distance to another, it is measured, between at most 16 pictures
of each. Memory grows with N x K. What must be together is so from the start, and what must not be
is never merged, so both hold exactly.

This module knows no files, no names and no labels, and chooses no threshold.

Shapes: N pictures, D numbers in an embedding, K neighbours, B pictures of a block, C clusters.
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

__all__ = ["Clusters", "between_clusters", "cluster_embeddings", "contradiction"]

LOOKED_AT = 64
"""Pictures of its own cluster that a picture is compared with to see how well it fits in."""

MEASURED = 16
"""Pictures of each group between which a mean distance is measured: up to 16 all of them."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Pairs = Iterable[tuple[int, int]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Clusters:
    """Who belongs together.

    Attributes:
        label: (N,) the cluster of each picture: 0 is the largest, and of equal ones that with the
            first picture.
        size: (C,) how many pictures each has, descending; those alone in theirs are the last.
        doubt: (N,) the mean distance to the others of its cluster (of a large one, to some of
            them); 0 for a picture alone.
        cut: the mean distance up to which clusters were merged.
    """

    label: Ints
    size: Ints
    doubt: Floats
    cut: float


# --- what must and what must not be together ----------------------------------------------------


def contradiction(must_link: Pairs, cannot_link: Pairs) -> tuple[int, list[int]] | None:
    """The first pair of `cannot_link` that `must_link` brings together, through others or not.

    Returns:
        Its place in `cannot_link`, and the places in `must_link` of the fewest pairs that lead
        from its one picture to the other (none for a picture and itself); None if all is well.
    """
    beside: dict[int, list[tuple[int, int]]] = {}
    for place, (a, b) in enumerate(must_link):
        beside.setdefault(a, []).append((b, place))
        beside.setdefault(b, []).append((a, place))
    for place, (a, b) in enumerate(cannot_link):
        way = _way(beside, a, b)
        if way is not None:
            return place, way
    return None


def _way(beside: dict[int, list[tuple[int, int]]], a: int, b: int) -> list[int] | None:
    """The places of the pairs that lead from `a` to `b`, breadth first; None if none do."""
    before: dict[int, tuple[int, int]] = {a: (a, -1)}
    reached = [a]
    for at in reached:
        if at == b:
            break
        for other, place in beside.get(at, []):
            if other not in before:
                before[other] = (at, place)
                reached.append(other)
    if b not in before:
        return None
    way = []
    while b != a:
        b, place = before[b]
        way.append(place)
    return way[::-1]


def _groups(num: int, must_link: Sequence[tuple[int, int]]) -> Ints:
    """(N,) the number of the group that each picture starts in, in the order of the pictures."""
    parent = list(range(num))

    def top(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for a, b in must_link:
        first, second = sorted((top(a), top(b)))
        parent[second] = first
    return np.unique([top(row) for row in range(num)], return_inverse=True)[1].astype(np.int64)


# --- merging ------------------------------------------------------------------------------------


class _Merging:
    """The groups so far, and the mean distances within the cut between those that are neighbours.

    A merged group gets a new number, so that whatever is queued of an old one is void.
    """

    def __init__(
        self, emb_ND: Floats, comparison: Comparison, cut: float, members: list[list[int]]
    ) -> None:
        self.emb_ND, self.comparison, self.cut = emb_ND, comparison, cut
        self.members = members
        self.near: list[dict[int, float]] = [{} for _ in members]
        self.foes: list[set[int]] = [set() for _ in members]
        self.queue: list[tuple[float, int, int]] = []

    def part(self, a: int, b: int) -> None:
        """Keep two groups apart for good."""
        self.foes[a].add(b)
        self.foes[b].add(a)

    def meet(self, a: int, distance: dict[int, float]) -> None:
        """Take note of the mean distances of a group to others, as far as they could merge."""
        for b, mean in distance.items():
            if mean <= self.cut and b not in self.foes[a]:
                self.near[a][b] = self.near[b][a] = mean
        self._enter(a)

    def _enter(self, a: int) -> None:
        """Queue the pair of a group and its nearest neighbour.

        Every pair is waited for by the group that made it known, so that one place in the queue
        for each group is enough: no neighbour can come nearer without being merged itself.
        """
        if self.near[a]:
            b = min(self.near[a], key=lambda c: (self.near[a][c], c))
            heapq.heappush(self.queue, (self.near[a][b], a, b))

    def measured(self, a: int, others: Sequence[int]) -> dict[int, float]:
        """The mean distances of a group to others."""
        if not others:
            return {}
        right = [_spread(self.members[b], MEASURED) for b in others]
        begin = np.cumsum([0] + [len(rows) for rows in right[:-1]])
        left_D = self.emb_ND[_spread(self.members[a], MEASURED)]
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
                self._enter(a)
            if progress is not None and len(self.members) % 256 == 0:
                progress(len(self.members) - num, num)
        if progress is not None:
            progress(num, num)

    def _merge(self, a: int, b: int) -> None:
        near_a, near_b = self.near[a], self.near[b]
        del near_a[b], near_b[a]
        to_a = near_a | self.measured(a, [c for c in near_b if c not in near_a])
        to_b = near_b | self.measured(b, [c for c in near_a if c not in near_b])
        num_a, num_b = len(self.members[a]), len(self.members[b])
        mean = {c: (num_a * to_a[c] + num_b * to_b[c]) / (num_a + num_b) for c in to_a}
        new = len(self.members)
        foes = self.foes[a] | self.foes[b]
        for old in (a, b):
            for c in self.near[old]:
                del self.near[c][old]
            for c in self.foes[old]:
                self.foes[c].discard(old)
        for c in foes:
            self.foes[c].add(new)
        large, small = (a, b) if num_a >= num_b else (b, a)
        self.members[large].extend(self.members[small])
        self.members.append(self.members[large])
        self.members[a], self.members[b] = [], []
        self.near[a], self.near[b], self.foes[a], self.foes[b] = {}, {}, set(), set()
        self.near.append({})
        self.foes.append(foes)
        self.meet(new, mean)


def _spread(rows: Sequence[int], most: int) -> Ints:
    """At most so many of some rows, from everywhere among them."""
    num = min(len(rows), most)
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
    progress: Progress | None = None,
    merging: Progress | None = None,
) -> Clusters:
    """Group pictures so that the mean distance between any two groups is above a threshold.

    Between groups that are not neighbours the mean distance is not looked at, and groups that
    are kept apart may be as near as they like.

    Args:
        emb_ND: embeddings, shape (N, D).
        comparison: gives the distances.
        threshold: the largest mean distance at which two groups are merged: a distance of the
            comparator, such as the calibrated threshold of a pair.
        neighbours: K, how many of its nearest pictures each picture can be merged by.
        must_link: pairs of rows that show the same thing.
        cannot_link: pairs of rows that do not.
        angular: look for neighbours by angle, as a cosine comparator needs.
        progress: called with the pictures whose neighbours are found, and all.
        merging: called with the merges done and how many there could be.
    Returns:
        Clusters; whatever order the pictures come in (but for equal distances, and for what is
        measured on some pictures of large groups).
    Raises:
        ConfigError: a threshold that is not a number of 0 or more, or fewer than 1 neighbours.
        DataError: embeddings that give distances that are not numbers, or `cannot_link` names a
            pair that `must_link` brings together.
    """
    if not threshold >= 0:
        raise ConfigError(f"a threshold is a distance of 0 or more, found {threshold:g}")
    if neighbours < 1:
        raise ConfigError(f"neighbours is at least 1, found {neighbours}")
    must, cannot = list(must_link), list(cannot_link)
    if (clash := contradiction(must, cannot)) is not None:
        a, b = cannot[clash[0]]
        raise DataError(f"rows {a} and {b} must not be together, and must_link brings them so")
    emb_ND = np.ascontiguousarray(emb_ND, dtype=np.float32)
    near = nearest_neighbours(
        emb_ND, comparison, neighbours=neighbours, angular=angular, progress=progress
    )
    group_N = _groups(len(emb_ND), must)
    made = _Merging(emb_ND, comparison, threshold, _members(group_N))
    for a, b in cannot:
        made.part(int(group_N[a]), int(group_N[b]))
    _introduce(made, group_N, near)
    made.run(merging)
    return _described(made, near)


def between_clusters(
    emb_ND: NDArray[np.float32], comparison: Comparison, label_N: Ints, num: int
) -> Floats:
    """The mean distances between the clusters 0 to `num` - 1, measured as when they were merged.

    Args:
        emb_ND: embeddings, shape (N, D).
        comparison: gives the distances.
        label_N: the cluster of each picture, shape (N,).
        num: how many clusters, each with a picture.
    Returns:
        Shape (num, num); infinite on the diagonal.
    """
    members = [np.flatnonzero(label_N == label).tolist() for label in range(num)]
    made = _Merging(np.asarray(emb_ND, dtype=np.float32), comparison, np.inf, members)
    dist_CC = np.full((num, num), np.inf, dtype=np.float32)
    for a in range(num - 1):
        found = made.measured(a, range(a + 1, num))
        dist_CC[a, a + 1 :] = dist_CC[a + 1 :, a] = list(found.values())
    return dist_CC


def _members(group_N: Ints) -> list[list[int]]:
    """The rows of each group, ascending."""
    order = np.argsort(group_N, kind="stable")
    begin = np.flatnonzero(np.diff(group_N[order])) + 1
    return [rows.tolist() for rows in np.split(order, begin)] if len(group_N) else []


def _introduce(made: _Merging, group_N: Ints, near: Neighbours) -> None:
    """Tell the groups of their neighbours."""
    num, depth = near.row.shape
    close = near.distance <= made.cut
    first, second = np.repeat(np.arange(num), depth)[close.ravel()], near.row[close]
    dist = near.distance[close].astype(np.float64)
    low = np.minimum(group_N[first], group_N[second])
    high = np.maximum(group_N[first], group_N[second])
    _, once = np.unique(low * (num + 1) + high, return_index=True)
    once = once[low[once] != high[once]]
    begin = np.flatnonzero(np.diff(low[once], prepend=-1))
    for rows in np.split(once, begin[1:]) if len(once) else ():
        a, others = int(low[rows[0]]), high[rows].tolist()
        alone = [len(made.members[a]) * len(made.members[b]) == 1 for b in others]
        known = zip(others, dist[rows].tolist(), strict=True)
        distance = {b: d for (b, d), single in zip(known, alone, strict=True) if single}
        made.meet(a, distance | made.measured(a, [b for b in others if b not in distance]))


def _described(made: _Merging, near: Neighbours) -> Clusters:
    groups = sorted(filter(None, made.members), key=lambda rows: (-len(rows), min(rows)))
    label_N = np.empty(len(near.row), dtype=np.int64)
    doubt_N = np.zeros(len(near.row), dtype=np.float32)
    for label, rows in enumerate(groups):
        label_N[rows] = label
        if len(rows) > 1:
            doubt_N[rows] = _mean_to_others(made, rows)
    size_C = np.array([len(rows) for rows in groups], dtype=np.int64)
    return Clusters(label_N, size_C, doubt_N, made.cut)


def _mean_to_others(made: _Merging, rows: Sequence[int]) -> Floats:
    """The mean distance of each picture of a cluster to (some of) the others."""
    others = _spread(rows, LOOKED_AT)
    mean = []
    for start in range(0, len(rows), 4096):
        part = np.array(rows[start : start + 4096])
        dist_BS = np.asarray(made.comparison.matrix(made.emb_ND[part], made.emb_ND[others]))
        other_BS = part[:, None] != others
        mean.append((dist_BS * other_BS).sum(axis=1) / other_BS.sum(axis=1))
    return np.concatenate(mean).astype(np.float32)
