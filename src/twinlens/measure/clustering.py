"""How well a division into clusters fits the identities that the pictures are known to show.

- **Purity**: the share of pictures that show what most of their cluster shows. 1 where every
  picture is alone, so it is read beside the recall.
- **B-cubed** (Bagga & Baldwin 1998; which constraints it meets: Amigo et al. 2009). Precision: how
  much of a picture's cluster shows what it shows. Recall: how much of what it shows is in its
  cluster. Each picture counts itself; the mean is over pictures; F is their harmonic mean.
- **NMI**: normalised mutual information, by the arithmetic mean of both entropies, as in
  scikit-learn. Not corrected for chance: it is high for many small clusters.

The intervals redraw identities and leave the clusters as they are (they were made of all pictures
at once): they are for other identities among these. NMI is no mean over pictures, so it has none.
This module knows no pictures and no distances.

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
    """How well clusters fit known identities; `num_*` count the pictures that were scored."""

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
    """All scores, with 95 % intervals over identities where there can be one.

    Args:
        cluster: which cluster each picture is in, shape (N,), numbers or strings.
        identity: what each picture shows, shape (N,), numbers or strings.
        seed: draws the replicates.
        replicates: how many times the identities are redrawn.
    Raises:
        DataError: no pictures, or two lists of unequal length.
    """
    cluster_N, identity_N = _codes(cluster, identity)
    score_3N = np.stack([_of_majority(cluster_N, identity_N), *_b_cubed(cluster_N, identity_N)])
    num = int(identity_N.max()) + 1

    def redrawn(count_I: Ints) -> Floats:
        weight_N = count_I[identity_N]
        return _with_f(score_3N @ weight_N / weight_N.sum())

    drawn = replicate(redrawn, num, seed=seed, replicates=replicates)
    values = _with_f(score_3N.mean(axis=1)).tolist()
    pure, precision, recall, f = estimates(values, drawn)
    nmi = Estimate(normalised_mutual_information(cluster_N, identity_N))
    num_clusters = int(cluster_N.max()) + 1
    return ClusteringScores(
        pure, nmi, precision, recall, f, len(cluster_N), num_clusters, num
    )  # fmt: skip


def purity(cluster: ArrayLike, identity: ArrayLike) -> float:
    """The share of pictures that show what most of their cluster shows.

    Raises:
        DataError: no pictures, or two lists of unequal length.
    """
    return float(_of_majority(*_codes(cluster, identity)).mean())


def b_cubed(cluster: ArrayLike, identity: ArrayLike) -> tuple[float, float, float]:
    """B-cubed precision, recall and F.

    Args:
        cluster: shape (N,), numbers or strings.
        identity: shape (N,), numbers or strings.
    Raises:
        DataError: no pictures, or two lists of unequal length.
    """
    precision_N, recall_N = _b_cubed(*_codes(cluster, identity))
    precision, recall = float(precision_N.mean()), float(recall_N.mean())
    return precision, recall, 2 * precision * recall / (precision + recall)


def normalised_mutual_information(cluster: ArrayLike, identity: ArrayLike) -> float:
    """Mutual information by the mean of both entropies, in [0, 1].

    1 where both are one single group, as scikit-learn has it.

    Raises:
        DataError: no pictures, or two lists of unequal length.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_codes(cluster, identity)[::-1]))


def _codes(cluster: ArrayLike, identity: ArrayLike) -> tuple[Ints, Ints]:
    cluster_N, identity_N = np.asarray(cluster), np.asarray(identity)
    if cluster_N.shape != identity_N.shape or cluster_N.ndim != 1 or not len(cluster_N):
        raise DataError(
            "scores need a cluster and an identity for each picture, at least one, found "
            f"{cluster_N.shape} clusters and {identity_N.shape} identities"
        )
    first, second = (np.unique(x, return_inverse=True)[1] for x in (cluster_N, identity_N))
    return first.astype(np.int64), second.astype(np.int64)


def _cells(cluster_N: Ints, identity_N: Ints) -> tuple[Ints, Ints]:
    """Each picture's cell of the table of clusters by identities, and how many each cell holds."""
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
    """1 for each picture of the identity that its cluster has most of (of equal ones the first)."""
    cell_N, count = _cells(cluster_N, identity_N)
    cluster_of = np.empty(len(count), dtype=np.int64)
    cluster_of[cell_N] = cluster_N
    # Cells ascend by cluster and then identity; the last of a cluster in this order wins.
    order = np.lexsort((-np.arange(len(count)), count, cluster_of))
    last = np.flatnonzero(np.diff(cluster_of[order], append=-1))
    return np.isin(cell_N, order[last]).astype(np.float64)


def _with_f(mean_3: Floats) -> Floats:
    """Purity, precision and recall, and then F."""
    precision, recall = mean_3[1], mean_3[2]
    return np.append(mean_3, 2 * precision * recall / (precision + recall))
