"""Scores of a clustering against known identities.

- **Purity**: the share of pictures that show the majority identity of their cluster. It is 1 for
  clusters of one picture, so read it beside the recall.
- **B-cubed** (Bagga & Baldwin 1998; properties: Amigo et al. 2009). Precision: the share of a
  picture's cluster that shows its identity. Recall: the share of its identity that is in its
  cluster. Each picture counts itself; both are means over pictures, and F is their harmonic mean.
- **NMI**: mutual information, normalised by the arithmetic mean of both entropies, as in
  scikit-learn. It is not corrected for chance: many small clusters score high.

The bootstrap redraws identities and keeps the clusters, which were made of all pictures at once.
NMI is no mean over pictures, so it has no interval.

Shapes: N pictures, C clusters, I identities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinlens.errors import DataError
from twinlens.measure.bootstrap import REPLICATES, Estimate, estimates, replicate

__all__ = ["ClusteringScores", "b_cubed", "normalised_mutual_information", "purity",
           "score_clustering"]  # fmt: skip

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClusteringScores:
    """Scores against known identities; `num_*` count the pictures that were scored."""

    purity: Estimate
    nmi: Estimate
    precision: Estimate
    recall: Estimate
    f: Estimate
    num_pictures: int
    num_clusters: int
    num_identities: int

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return {
            "purity": self.purity.as_json(),
            "nmi": self.nmi.as_json(),
            "b_cubed": {
                "precision": self.precision.as_json(),
                "recall": self.recall.as_json(),
                "f": self.f.as_json(),
            },
            "num_pictures": self.num_pictures,
            "num_clusters": self.num_clusters,
            "num_identities": self.num_identities,
        }


def score_clustering(
    cluster: ArrayLike, identity: ArrayLike, *, seed: int = 0, replicates: int = REPLICATES
) -> ClusteringScores:
    """All scores of a clustering, with 95 % intervals over identities.

    Args:
        cluster: cluster of each picture, shape (N,), numbers or strings.
        identity: identity of each picture, shape (N,), numbers or strings.
        seed: random seed of the bootstrap.
        replicates: number of bootstrap replicates.
    Raises:
        DataError: no pictures, or two lists of unequal length.
    """
    cluster_N, identity_N = _codes(cluster, identity)
    score_3N = np.stack([_of_majority(cluster_N, identity_N), *_b_cubed(cluster_N, identity_N)])
    num = int(identity_N.max()) + 1

    def means(count_I: Ints) -> Floats:
        weight_N = count_I[identity_N]
        return _with_f(score_3N @ weight_N / weight_N.sum())

    drawn = replicate(means, num, seed=seed, replicates=replicates)
    values = _with_f(score_3N.mean(axis=1)).tolist()
    pure, precision, recall, f = estimates(values, drawn)
    nmi = Estimate(normalised_mutual_information(cluster_N, identity_N))
    num_clusters = int(cluster_N.max()) + 1
    return ClusteringScores(
        pure, nmi, precision, recall, f, len(cluster_N), num_clusters, num
    )  # fmt: skip


def purity(cluster: ArrayLike, identity: ArrayLike) -> float:
    """Share of pictures that show the majority identity of their cluster.

    >>> purity(cluster=[0, 0, 0, 1], identity=["a", "a", "b", "b"])
    0.75

    Raises:
        DataError: no pictures, or two lists of unequal length.
    """
    return float(_of_majority(*_codes(cluster, identity)).mean())


def b_cubed(cluster: ArrayLike, identity: ArrayLike) -> tuple[float, float, float]:
    """B-cubed precision, recall and F.

    >>> b_cubed(cluster=[0, 1], identity=["a", "a"])
    (1.0, 0.5, 0.6666666666666666)

    Args:
        cluster: cluster of each picture, shape (N,), numbers or strings.
        identity: identity of each picture, shape (N,), numbers or strings.
    Raises:
        DataError: no pictures, or two lists of unequal length.
    """
    precision_N, recall_N = _b_cubed(*_codes(cluster, identity))
    precision, recall = float(precision_N.mean()), float(recall_N.mean())
    return precision, recall, 2 * precision * recall / (precision + recall)


def normalised_mutual_information(cluster: ArrayLike, identity: ArrayLike) -> float:
    """Mutual information by the mean of both entropies, in [0, 1].

    It is 1 if both are one single group, as in scikit-learn.

    Raises:
        DataError: no pictures, or two lists of unequal length.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_codes(cluster, identity)[::-1]))


def _codes(cluster: ArrayLike, identity: ArrayLike) -> tuple[Ints, Ints]:
    cluster_N, identity_N = np.asarray(cluster), np.asarray(identity)
    if cluster_N.shape != identity_N.shape or cluster_N.ndim != 1 or not len(cluster_N):
        raise DataError(
            "scores need a cluster and an identity for each picture, and at least one picture; "
            f"found {cluster_N.shape} clusters and {identity_N.shape} identities"
        )
    first, second = (np.unique(x, return_inverse=True)[1] for x in (cluster_N, identity_N))
    return first.astype(np.int64), second.astype(np.int64)


def _cells(cluster_N: Ints, identity_N: Ints) -> tuple[Ints, Ints]:
    """Cell of each picture in the table of clusters by identities, and the size of each cell."""
    # A full table of 100,000 clusters by 10,000 identities would be 8 GB.
    place_N = cluster_N * (identity_N.max() + 1) + identity_N
    _, cell_N, count = np.unique(place_N, return_inverse=True, return_counts=True)
    return cell_N.astype(np.int64), count.astype(np.int64)


def _b_cubed(cluster_N: Ints, identity_N: Ints) -> tuple[Floats, Floats]:
    """Precision and recall of each picture."""
    cell_N, count = _cells(cluster_N, identity_N)
    both_N = count[cell_N]
    return (
        both_N / np.bincount(cluster_N)[cluster_N],
        both_N / np.bincount(identity_N)[identity_N],
    )


def _of_majority(cluster_N: Ints, identity_N: Ints) -> Floats:
    """1 for each picture of its cluster's majority identity (of equal ones the first), else 0."""
    cell_N, count = _cells(cluster_N, identity_N)
    cluster_of = np.empty(len(count), dtype=np.int64)
    cluster_of[cell_N] = cluster_N
    # In this order the last cell of each cluster is its majority; of equal ones the first.
    order = np.lexsort((-np.arange(len(count)), count, cluster_of))
    last = np.flatnonzero(np.diff(cluster_of[order], append=-1))
    return np.isin(cell_N, order[last]).astype(np.float64)


def _with_f(mean_3: Floats) -> Floats:
    """Purity, precision, recall, and F."""
    precision, recall = mean_3[1], mean_3[2]
    return np.append(mean_3, 2 * precision * recall / (precision + recall))
