"""Which of each probe's nearest pictures are right, from half of all distances.

A distance belongs to two pictures, and is computed once for both. Of a probe only its few nearest
pictures matter. How far these reach is guessed from every 16th picture; then the distances come in
tiles that stay in the processor's cache, each is compared with the guesses of its row and of its
column, and the few that are within are kept. Nothing else is put in order. A guess that was too
short is noticed, since too few pictures were kept: such a probe is not settled, and must be looked
at in another way, as must all where so many pictures are equally near that they cannot be kept.

This module knows the comparisons of `measure.distances` and nothing of scores.

Shapes: N pictures, D numbers in an embedding, P probes, K ranks, S pictures of the sample, H kept
distances, T of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock, local

import numpy as np
from numpy.typing import NDArray

from twinlens.measure import pairs
from twinlens.measure.distances import EuclideanComparison
from twinlens.measure.parallel import available_cores, parallel_map

__all__ = ["NearestRanks", "nearest_ranks", "smallest"]

STEP = 16
"""Every so many pictures one of the sample. A larger sample guesses better, and takes longer."""

TILE = 480
"""Pictures on a side of a tile: 0.9 MB, for the cache of a core. Powers of 2 share cache lines."""

SAMPLED = 192
"""Pictures that are compared with the sample at a time."""

AT_ONCE = 2**18
"""Pairs that are looked at together: many tiles hold few each."""

FEWEST = 2048
"""Pictures that are worth it. Below some hundreds tiles get tiny: see `_slices`."""

KEPT = 128
"""Room for so many kept pictures each, and for 64 MB of them besides: memory only where used."""

WIDER = np.float32(1 + 1e-6)
"""Distances that are equal once they are rounded are kept together."""

WORTH_GROUPS = 4
"""Columns of a group from which on choosing groups first is quicker than choosing at once."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class NearestRanks:
    """The nearest pictures of probes.

    Attributes:
        key: (H,) one for each kept picture, odd where it is right, ordered by probe, distance and
            rightness.
        start: (N,) where each picture's begin.
        settled: (N,) whether it is a probe whose nearest pictures, as many as it needs, are kept.
    """

    key: Ints
    start: Ints
    settled: Bools

    def correct(self, probe_P: Ints, depth: int) -> Bools:
        """Whether each probe's nearest are right, nearest first, shape (P, depth).

        Only as many as the probe needs mean anything.
        """
        place_PK = self.start[probe_P][:, None] + np.arange(depth)
        right_PK = self.key[np.minimum(place_PK, len(self.key) - 1)] & 1
        return np.asarray(right_PK, dtype=bool)


def nearest_ranks(
    emb_ND: Floats,
    code_N: Ints,
    need_N: Ints,
    comparison: EuclideanComparison,
    progress: Callable[[float], None] = lambda share: None,
) -> NearestRanks | None:
    """The nearest other pictures of probes, right or wrong; of equally far ones the wrong first.

    Memory is that of the embeddings, a few times, 1 KB for each and 64 MB.

    Args:
        emb_ND: embeddings, shape (N, D).
        code_N: of a probe, what it shows; a picture is right where its code is the same, (N,).
        need_N: how many of its nearest each probe needs, 0 where it is not asked, (N,).
        comparison: gives the distances.
        progress: called with the share that is done.
    Returns:
        None where there are few pictures or mostly others than probes, too many as near as the
        nearest, or embeddings of which distances are not finite.
    """
    if len(need_N) < FEWEST or 2 * np.count_nonzero(need_N) < len(need_N):
        return None
    square_N = np.square(comparison.prepared(emb_ND)).sum(1)
    if not square_N.max() < np.finfo(np.float32).max / 8:
        return None
    room = pairs.BLOCK_BYTES // 8 + KEPT * len(need_N)
    place_N = _sample_place(need_N, room)
    if not place_N.any():
        return None
    search = _HalfMatrix(comparison, emb_ND, code_N, place_N, room)
    try:
        key_H = search.kept(progress)
    except _TooManyError:
        return None
    start_N = np.searchsorted(key_H, np.arange(len(need_N)) << 32)
    return NearestRanks(key_H, start_N, search.settled(key_H, start_N + need_N - 1))


def _sample_place(need_N: Ints, room: int) -> Ints:
    """Which nearest of the sample is surely beyond the nearest that are needed; 0: do not ask.

    Of these the sample holds one in `STEP`, give or take the root; three such deviations and two
    pictures more leave one probe in some hundreds short. Those that need most are left out where
    all that is to be kept would not fit into `room`.
    """
    expected_N = need_N / STEP
    place_N = (expected_N + 3 * np.sqrt(expected_N) + 2).astype(np.int64)
    place_N[(need_N == 0) | (place_N * STEP > len(need_N) // 4)] = 0
    order = np.argsort(place_N, kind="stable")
    beyond = np.cumsum(place_N[order]) * STEP > room * 3 // 4
    place_N[order[beyond]] = 0
    return np.asarray(place_N, dtype=np.int64)


class _TooManyError(Exception):
    """More pictures are to be kept than there is room for."""


class _HalfMatrix:
    """All distances, each once: within the sample, of the others to it, and of the others.

    The pictures stand in an order of its own, first the sample; `row_N` says which they are.
    """

    def __init__(
        self,
        comparison: EuclideanComparison,
        emb_ND: Floats,
        code_N: Ints,
        place_N: Ints,
        room: int,
    ) -> None:
        self._comparison = comparison
        emb_ND = comparison.prepared(emb_ND)
        square_N = np.square(emb_ND).sum(1)
        one_N = np.ones_like(square_N)
        # The sums of squares come first: a product is then rounded alike from either side.
        self._left = np.column_stack([one_N, square_N, -2 * emb_ND])
        self._right = np.column_stack([square_N, one_N, emb_ND])
        self._row_N, self._code_N, self._place_N = np.arange(len(emb_ND)), code_N, place_N
        self._reach_N = np.full(len(emb_ND), -np.inf, dtype=np.float32)
        self._arrange(np.argsort(self._row_N % STEP > 0, kind="stable"))
        self._sample = slice(0, len(emb_ND[::STEP]))
        self._others = slice(self._sample.stop, len(emb_ND))
        self._key_H, self._num = np.empty(room, dtype=np.int64), 0
        self._lock, self._scratch = Lock(), local()

    def _arrange(self, order_N: Ints) -> None:
        self._left, self._right = self._left[order_N], self._right[order_N]
        self._row_N, self._code_N = self._row_N[order_N], self._code_N[order_N]
        self._place_N, self._reach_N = self._place_N[order_N], self._reach_N[order_N]

    def kept(self, progress: Callable[[float], None]) -> Ints:
        """The keys of all pairs within the reach of their first picture, in order."""
        for group in (self._sample, self._others):
            # Several numbers a distance, and those of each core.
            fitting = pairs.BLOCK_BYTES // (8 * self._sample.stop * available_cores())
            rows = max(1, min(SAMPLED, fitting))
            for _ in parallel_map(self._beside_sample, _slices(group, rows), available_cores()):
                pass
        # Beside pictures that reach as far, one number decides for a whole tile.
        groups = (self._sample, self._others)
        order = [np.argsort(self._reach_N[group]) + group.start for group in groups]
        self._arrange(np.concatenate(order))
        parts = [_slices(group, TILE) for group in groups]
        strips = [part[first:] for part in parts for first in range(len(part))]
        for done, _ in enumerate(parallel_map(self._strip, strips, available_cores()), 1):
            progress(1 - (1 - done / len(strips)) ** 2)
        key_H = self._key_H[: self._num]
        key_H.sort()
        return key_H

    def settled(self, key_H: Ints, last_N: Ints) -> Bools:
        """Whether each picture's keys are its own and within its reach up to the place `last_N`."""
        # The key that a right picture would have at the reach: below all of later pictures.
        narrow_N = np.asarray(self._reach_N.clip(0) / WIDER, dtype=np.float32)
        most_N = np.empty_like(last_N)
        most_N[self._row_N] = self._key(self._row_N, narrow_N) | 1
        settled_N = np.empty(len(last_N), dtype=bool)
        settled_N[self._row_N] = self._reach_N > -np.inf
        settled_N &= last_N < len(key_H)
        settled_N[settled_N] = key_H[last_N[settled_N]] <= most_N[settled_N]
        return settled_N

    def _beside_sample(self, rows: slice) -> None:
        """Guess how far pictures reach, and keep those of the sample that are within reach."""
        width = self._sample.stop
        shape = (rows.stop - rows.start, width)
        square_PS = self._memory("squares", *shape)
        np.matmul(self._left[rows], self._right[self._sample].T, out=square_PS)
        place_P = self._place_N[rows]
        if rows.start < width:
            np.fill_diagonal(square_PS[:, rows.start :], np.inf)
        least_PK = np.sort(smallest(square_PS, max(1, int(place_P.max()))), axis=1)
        reach_P = least_PK[np.arange(len(place_P)), place_P.clip(1) - 1]
        # Rounding takes copies below 0, where all distances are the same.
        reach_P = reach_P.clip(0) * WIDER
        self._reach_N[rows] = np.where(place_P > 0, reach_P, -np.inf)
        if rows.start >= width:
            most_PS = self._memory("most", *shape)
            np.maximum(self._reach_N[rows, None], self._reach_N[:width], out=most_PS)
            place_H = np.flatnonzero(square_PS <= most_PS)
            first_H = place_H // width
            self._keep(first_H + rows.start, place_H - first_H * width, square_PS.ravel()[place_H])

    def _strip(self, strip: list[slice]) -> None:
        """The tiles of the first of these parts beside itself and each that follows."""
        rows = strip[0]
        left, found = self._left[rows], _Found()
        for columns in strip:
            width = columns.stop - columns.start
            square_T = self._memory("tile", len(left) * width)
            np.matmul(left, self._right[columns].T, out=square_T.reshape(-1, width))
            if columns.start == rows.start:
                square_T[np.tri(width, dtype=bool).ravel()] = np.inf
            # No picture of the tile reaches farther than its last one.
            place_H = np.flatnonzero(square_T <= self._reach_N[columns.stop - 1])
            first_H = place_H // width
            second_H = place_H - first_H * width
            found.add(first_H + rows.start, second_H + columns.start, square_T[place_H])
            if found.num > AT_ONCE or columns is strip[-1]:
                self._keep(*found.taken())

    def _memory(self, name: str, *shape: int) -> Floats:
        """Memory to write over: what is new costs much, so each thread keeps its own."""
        held = vars(self._scratch)
        size = math.prod(shape)
        if name not in held or len(held[name]) < size:
            held[name] = np.empty(size, dtype=np.float32)
        memory: Floats = held[name][:size].reshape(shape)
        return memory

    def _keep(self, first_H: Ints, second_H: Ints, square_H: Floats) -> None:
        """Keep pairs, for either picture where the other is within its reach."""
        for probe_H, other_H in ((first_H, second_H), (second_H, first_H)):
            near = np.flatnonzero(square_H <= self._reach_N[probe_H])
            probe_H, other_H = probe_H[near], other_H[near]
            right_H = self._code_N[probe_H] == self._code_N[other_H]
            key_H = self._key(self._row_N[probe_H], square_H[near]) | right_H
            with self._lock:
                end = self._num + len(key_H)
                if end > len(self._key_H):
                    raise _TooManyError
                self._key_H[self._num : end] = key_H
                self._num = end

    def _key(self, row_H: Ints, square_H: Floats) -> Ints:
        """Even numbers in the order of the probes, and of the distances of each."""
        far_H = self._comparison.from_squared(np.maximum(square_H, 0))
        # None is negative, so that their bits ascend with them and the sign's is free.
        return (row_H << 32) | (far_H.view(np.uint32) << np.uint32(1)).astype(np.int64)


class _Found:
    """Pairs of pictures and their squared distances, gathered until there are enough."""

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, Ints, Floats]] = []
        self.num = 0

    def add(self, first_H: Ints, second_H: Ints, square_H: Floats) -> None:
        self._parts.append((first_H, second_H, square_H))
        self.num += len(square_H)

    def taken(self) -> tuple[Ints, Ints, Floats]:
        parts, self._parts, self.num = self._parts, [], 0
        first, second, square = zip(*parts, strict=True)
        return np.concatenate(first), np.concatenate(second), np.concatenate(square)


def _slices(whole: slice, size: int) -> list[slice]:
    """Parts of about the same size: BLAS rounds tiny products in another way than large ones."""
    num = -(-(whole.stop - whole.start) // size)
    edges = np.linspace(whole.start, whole.stop, num + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def smallest(dist_PN: Floats, num: int) -> Floats:
    """The `num` smallest of each row, shape (P, num), in no order; all NaN where there is one.

    They lie in the `num` groups of columns whose least are smallest, so that one quick pass,
    which looks at each number once, leaves few to choose among.
    """
    rows, width = dist_PN.shape
    each = math.isqrt(width // num)
    groups = width // each
    rest_PM = dist_PN[:, groups * each :]
    group_PEG = dist_PN[:, : groups * each].reshape(rows, each, groups)
    least_PG = np.minimum.reduce(group_PEG, axis=1)
    broken = np.isnan(least_PG).any() or np.isnan(rest_PM).any()
    if broken:
        return np.full((rows, num), np.nan, dtype=np.float32)
    if each >= WORTH_GROUPS:
        chosen_PG = np.argpartition(least_PG, num - 1, axis=1)[:, :num]
        found = group_PEG[np.arange(rows)[:, None], :, chosen_PG].reshape(rows, -1)
        dist_PN = np.concatenate([found, rest_PM], axis=1)
    if num < dist_PN.shape[1]:
        dist_PN = np.partition(dist_PN, num - 1, axis=1)
    return dist_PN[:, :num]
