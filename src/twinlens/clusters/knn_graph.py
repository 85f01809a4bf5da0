"""k-NN graph by brute force, in blocks.

Memory grows with N x K: of the N x N distances only those of one block exist at a time. Thresholds
and clusters play no part here.

Shapes: N pictures, D dimensions, K neighbours, B pictures of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinlens.errors import DataError
from twinlens.measure.distances import unit
from twinlens.measure.pairs import Comparison, blocks, listed_distances

__all__ = ["NEIGHBOURS", "Neighbours", "nearest_neighbours"]

NEIGHBOURS = 32
"""Default K. Fewer suffice for a few hundred pictures; 100,000 need as many."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Nearest other pictures of each picture: `row` (N, K), unordered, and `distance` (N, K)."""

    row: Ints
    distance: Floats


def nearest_neighbours(
    emb_ND: NDArray[np.float32],
    comparison: Comparison,
    *,
    neighbours: int = NEIGHBOURS,
    angular: bool = False,
    progress: Progress | None = None,
) -> Neighbours:
    """The K = min(neighbours, N - 1) nearest other pictures of each, by brute force in blocks.

    Neighbours are chosen by the Euclidean distance, whose order the comparators euclidean,
    squared-euclidean and sigmoid share, and cosine on embeddings of length 1. Distances are the
    comparator's, pair by pair; for a learned network the neighbours are a Euclidean shortlist.

    Args:
        emb_ND: embeddings, shape (N, D).
        comparison: comparator.
        neighbours: K.
        angular: whether to normalise the embeddings before choosing neighbours.
        progress: callback with the pictures done and in all.
    Raises:
        DataError: a distance is NaN.
    """
    space_ND = np.ascontiguousarray(emb_ND, dtype=np.float32)
    if angular:
        space_ND = unit(space_ND)
    num, depth = len(space_ND), max(0, min(neighbours, len(space_ND) - 1))
    half_N = np.einsum("nd,nd->n", space_ND, space_ND) / 2
    row_NK = np.empty((num, depth), dtype=np.int64)
    dist_NK = np.empty((num, depth), dtype=np.float32)
    for part in blocks(num if depth else 0, 4 * num, progress=progress):
        start, stop = part.start, part.stop
        # |a - b|^2 / 2 without |a|^2 / 2, which is the same along a row.
        order_BN = space_ND[part] @ space_ND.T
        np.subtract(half_N, order_BN, out=order_BN)
        order_BN[np.arange(stop - start), np.arange(start, stop)] = np.inf
        row_NK[part] = np.argpartition(order_BN, depth - 1, axis=1)[:, :depth]
        dist_NK[part] = listed_distances(emb_ND[part], emb_ND, row_NK[part], comparison)
    if not np.isfinite(dist_NK).all():
        raise DataError(
            "some distances are NaN: the embeddings are broken, train the model again with a lower "
            "optimizer.rate"
        )
    return Neighbours(row_NK, dist_NK)
