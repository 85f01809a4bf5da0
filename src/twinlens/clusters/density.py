"""HDBSCAN (Campello et al. 2013) on the k-NN graph: clusters are regions of high density.

scikit-learn's HDBSCAN compares all pairs. Here the minimum spanning tree of the mutual reachability
distances is that of the k-NN graph, and scikit-learn condenses it and chooses the clusters. Parts
that the graph does not connect are joined above everything else, so they are never one cluster.

There is no threshold, but a smallest cluster. Constraints hold exactly: groups that they violate
are merged and divided by average linkage.

Shapes: N pictures, D dimensions, K neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinlens.clusters.constraints import Constraints
from twinlens.clusters.knn_graph import Neighbours
from twinlens.clusters.linkage import cluster_embeddings, linked_groups
from twinlens.measure.pairs import Comparison

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["apply_constraints", "density_groups"]

Ints = NDArray[np.int64]


def density_groups(near: Neighbours, least: int) -> Ints:
    """The group of each picture, shape (N,); a picture of no cluster is a group of its own.

    Args:
        near: k-NN graph of all pictures.
        least: least number of pictures of a cluster, at least 2.
    """
    from sklearn.cluster import HDBSCAN

    num = len(near.row)
    if num < least:
        return np.arange(num)
    # With more samples, fewer pictures find their cluster: see docs/clusters.md.
    made = HDBSCAN(min_cluster_size=least, min_samples=1, metric="precomputed", copy=False)
    label_N = made.fit(_spanning_tree(near)).labels_
    return np.where(label_N < 0, num + np.arange(num), label_N)


def apply_constraints(
    group_N: Ints,
    emb_ND: NDArray[np.float32],
    comparison: Comparison,
    constraints: Constraints,
    *,
    angular: bool,
) -> Ints:
    """Merge groups by must-link pairs, and divide those with cannot-link pairs by average linkage.

    Args:
        group_N: group of each picture, shape (N,).
        emb_ND: embeddings, shape (N, D).
        comparison: comparator.
        constraints: pairs without contradiction.
        angular: whether to search neighbours by angle.
    """
    group_N = linked_groups(len(group_N), constraints.must, group_N)
    divided = {int(group_N[a]) for a, b in constraints.cannot if group_N[a] == group_N[b]}
    for group in divided:
        row = np.flatnonzero(group_N == group)
        place = {name: at for at, name in enumerate(row.tolist())}
        must, cannot = (
            [(place[a], place[b]) for a, b in pairs if a in place and b in place]
            for pairs in (constraints.must, constraints.cannot)
        )
        parts = cluster_embeddings(
            emb_ND[row], comparison, threshold=np.inf, must_link=must, cannot_link=cannot,
            angular=angular,
        )  # fmt: skip
        group_N[row] = group_N.max() + 1 + parts.label
    return group_N


def _spanning_tree(near: Neighbours) -> csr_array:
    """Symmetric matrix of the edges of a minimum spanning tree."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

    num, depth = near.row.shape
    # An explicit 0 is no edge.
    data = np.maximum(near.distance.ravel(), np.finfo(np.float32).tiny)
    start = np.arange(0, num * depth + 1, depth)
    graph = csr_array((data, near.row.ravel(), start), shape=(num, num))
    tree = minimum_spanning_tree(graph, overwrite=True).tocoo()
    part_N = connected_components(tree, directed=False)[1]
    first = np.unique(part_N, return_index=True)[1]
    bridge = np.full(len(first) - 1, 2 * data.max(initial=1))
    row = np.concatenate([tree.row, first[:-1]])
    column = np.concatenate([tree.col, first[1:]])
    weight = np.concatenate([tree.data, bridge])
    return csr_array(
        (np.tile(weight, 2), (np.append(row, column), np.append(column, row))), shape=(num, num)
    )
