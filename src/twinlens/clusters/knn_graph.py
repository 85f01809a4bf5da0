"""k-NN graph, exact for few pictures and by cells for many.

Few pictures are compared with all others, in blocks. Many are divided into cells by k-means (an
inverted file, Jegou et al. 2011), and each is compared with the pictures of its nearest cells. How
many cells that takes is measured: they must hold the share `RECALL` of the exact neighbours of a
sample.

Memory grows with N x K: of the N x N distances only those of one block exist at a time. Thresholds
and clusters play no part here.

Shapes: N pictures, Q of which the neighbours are searched, D dimensions, K neighbours, B queries of
a block, F of them that search a cell, M pictures of it, C cells, P searched by a query, S a sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.errors import DataError
from twinlens.measure.distances import unit
from twinlens.measure.pairs import Comparison, blocks, listed_distances

__all__ = ["NEIGHBOURS", "Neighbours", "nearest_neighbours"]

NEIGHBOURS = 32
"""Default K. Fewer suffice for a few hundred pictures; 100,000 need as many."""

EXACT = 30_000**2
"""Distances up to which all are computed."""

RECALL = 0.95
"""Share of the exact neighbours in the searched cells."""

IN_CELL = 256
"""Pictures of a cell, on average."""

SAMPLE = 256
"""Pictures whose exact neighbours set the number of searched cells."""

ROUNDS = 5
"""Rounds of k-means, on `IN_SAMPLE` pictures for each cell."""

IN_SAMPLE = 32

BATCH = 2**16
"""Pictures whose neighbours are searched in the cells together."""

Ints = NDArray[np.int64]
Rows = NDArray[np.int32]
Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]
Search = Iterator[tuple[slice, Rows]]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Nearest other pictures of Q pictures.

    Attributes:
        query: (Q,) the pictures.
        row: (Q, K) their neighbours, unordered.
        distance: (Q, K).
    """

    query: Ints
    row: Rows
    distance: Floats


def nearest_neighbours(
    emb_ND: NDArray[np.float32],
    comparison: Comparison,
    *,
    neighbours: int = NEIGHBOURS,
    angular: bool = False,
    query: Ints | None = None,
    progress: Progress | None = None,
) -> Neighbours:
    """The K = min(neighbours, N - 1) nearest other pictures; of many pictures nearly all of these.

    Neighbours are chosen by the Euclidean distance, whose order the comparators euclidean,
    squared-euclidean and sigmoid share, and cosine on embeddings of length 1. Distances are the
    comparator's, pair by pair; for a learned network the neighbours are a Euclidean shortlist.

    Args:
        emb_ND: embeddings, shape (N, D).
        comparison: comparator.
        neighbours: K.
        angular: whether to normalise the embeddings before choosing neighbours.
        query: rows whose neighbours are searched, shape (Q,); by default all.
        progress: callback with the pictures done and in all.
    Raises:
        DataError: a distance is NaN.
    """
    emb_ND = np.ascontiguousarray(emb_ND, dtype=np.float32)
    num, depth = len(emb_ND), max(0, min(neighbours, len(emb_ND) - 1))
    query_Q = np.arange(num) if query is None else query
    row_QK = np.empty((len(query_Q), depth), dtype=np.int32)
    dist_QK = np.empty((len(query_Q), depth), dtype=np.float32)
    if depth and len(query_Q):
        space = _Space(unit(emb_ND) if angular else emb_ND, depth)
        # Making the cells takes as long as N * C distances.
        is_few = num * len(query_Q) <= max(EXACT, num * num // IN_CELL)
        search = space.exact if is_few else space.by_cells
        for part, near_BK in search(query_Q):
            row_QK[part] = near_BK
            dist_QK[part] = listed_distances(emb_ND[query_Q[part]], emb_ND, near_BK, comparison)
            if progress is not None:
                progress(part.stop, len(query_Q))
    _check_finite(dist_QK)
    return Neighbours(query_Q, row_QK, dist_QK)


def _check_finite(number: Floats) -> None:
    if not np.isfinite(number).all():
        raise DataError(
            "some distances are NaN: the embeddings are broken, train the model again with a lower "
            "optimizer.rate"
        )


class _Space:
    """Searches for the K nearest other rows: blocks of the queries, and the neighbours of each."""

    def __init__(self, space_ND: Floats, depth: int) -> None:
        self.space_ND, self.depth = space_ND, depth
        self.half_N = np.einsum("nd,nd->n", space_ND, space_ND) / 2

    def exact(self, query_Q: Ints) -> Search:
        """By all distances."""
        for part in blocks(len(query_Q), 4 * len(self.space_ND)):
            order_BN = self._order(query_Q[part], slice(None))
            order_BN[np.arange(len(order_BN)), query_Q[part]] = np.inf
            near_BK = np.argpartition(order_BN, self.depth - 1, axis=1)[:, : self.depth]
            yield part, near_BK.astype(np.int32)

    def by_cells(self, query_Q: Ints) -> Search:
        """By the distances within the nearest cells of each query."""
        _check_finite(self.half_N)
        centre_CD, cell_N = self._divide(len(self.space_ND) // IN_CELL)
        order_N = np.argsort(cell_N, kind="stable").astype(np.int32)
        start_C = np.searchsorted(cell_N[order_N], np.arange(len(centre_CD) + 1))
        probes = self._num_probes(centre_CD, cell_N)
        for start in range(0, len(query_Q), BATCH):
            part = slice(start, min(start + BATCH, len(query_Q)))
            near_BK = np.full((part.stop - start, self.depth), -1, dtype=np.int32)
            order_BK = np.full(near_BK.shape, np.inf, dtype=np.float32)
            cell_BP = self._nearest_cells(query_Q[part], centre_CD, probes)
            by_cell = np.argsort(cell_BP, axis=None, kind="stable")
            begin_C = np.searchsorted(cell_BP.ravel()[by_cell], np.arange(len(centre_CD) + 1))
            for cell, row_M in enumerate(np.split(order_N, start_C[1:-1])):
                place_B = by_cell[begin_C[cell] : begin_C[cell + 1]] // probes
                for some in blocks(len(place_B), 8 * (len(row_M) + self.depth)):
                    self._add(near_BK, order_BK, place_B[some], query_Q[part], row_M)
            short = np.flatnonzero(near_BK.min(axis=1) < 0)  # Too few pictures in these cells.
            for some, near in self.exact(query_Q[part][short]):
                near_BK[short[some]] = near
            yield part, near_BK

    def _order(self, row_B: NDArray[Any], row_M: NDArray[Any] | slice) -> Floats:
        """|a - b|^2 / 2 without |a|^2 / 2, which is the same along a row, (B, M)."""
        order_BM: Floats = self.space_ND[row_B] @ self.space_ND[row_M].T
        np.subtract(self.half_N[row_M], order_BM, out=order_BM)
        return order_BM

    def _add(
        self, near_BK: Rows, order_BK: Floats, place_F: Ints, query_B: Ints, row_M: Rows
    ) -> None:
        """Put the pictures of a cell among the nearest so far of some (F) of the queries."""
        order_FM = self._order(query_B[place_F], row_M)
        order_FM[query_B[place_F][:, None] == row_M] = np.inf
        order_FX = np.concatenate([order_BK[place_F], order_FM], axis=1)
        row_FX = np.concatenate([near_BK[place_F], np.broadcast_to(row_M, order_FM.shape)], axis=1)
        pick_FK = np.argpartition(order_FX, self.depth - 1, axis=1)[:, : self.depth]
        order_BK[place_F] = np.take_along_axis(order_FX, pick_FK, axis=1)
        near_BK[place_F] = np.take_along_axis(row_FX, pick_FK, axis=1)

    # --- cells ----------------------------------------------------------------------------------

    def _divide(self, num: int) -> tuple[Floats, Rows]:
        """Centres of cells, (C, D), and the cell of each row, (N,)."""
        from sklearn.cluster import KMeans

        size = min(len(self.space_ND), IN_SAMPLE * num)
        row_S = np.random.default_rng(0).choice(len(self.space_ND), size, replace=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Copies of a picture leave cells empty.
            means = KMeans(num, init="random", n_init=1, max_iter=ROUNDS, random_state=0)
            means.fit(self.space_ND[row_S])
        return means.cluster_centers_, means.predict(self.space_ND)

    def _nearest_cells(self, row_B: Ints, centre_CD: Floats, probes: int) -> NDArray[Any]:
        """The cells with the nearest centres of rows, unordered, (B, P)."""
        half_C = np.einsum("cd,cd->c", centre_CD, centre_CD) / 2
        # Small numbers are sorted several times as fast.
        cell_BP = np.empty((len(row_B), probes), dtype=np.min_scalar_type(len(centre_CD)))
        for part in blocks(len(row_B), 12 * len(centre_CD)):
            order_BC = half_C - self.space_ND[row_B[part]] @ centre_CD.T
            cell_BP[part] = np.argpartition(order_BC, probes - 1, axis=1)[:, :probes]
        return cell_BP

    def _num_probes(self, centre_CD: Floats, cell_N: Rows) -> int:
        """Number of cells that hold the share `RECALL` of a sample's exact neighbours."""
        row_S = np.random.default_rng(1).choice(len(cell_N), SAMPLE, replace=False)
        half_C = np.einsum("cd,cd->c", centre_CD, centre_CD) / 2
        order_SC = half_C - self.space_ND[row_S] @ centre_CD.T
        rank_SC = np.argsort(np.argsort(order_SC, axis=1), axis=1)
        ranks = [
            np.take_along_axis(rank_SC[part], cell_N[near_BK], axis=1)
            for part, near_BK in self.exact(row_S)
        ]
        return 1 + int(np.quantile(np.concatenate(ranks), RECALL, method="higher"))
