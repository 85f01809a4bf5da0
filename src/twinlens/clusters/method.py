"""Choice of the method: average linkage up to a distance, or HDBSCAN with a smallest cluster.

With labelled pictures the better one is chosen by B-cubed F, with its distance or its size. Without
any, linkage at the pair threshold groups few pictures, of which each thing may have only two or
three. Among many, a pair threshold joins strangers by chance, and HDBSCAN groups them:
docs/clusters.md has the figures.

Shapes: N pictures, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.clusters.constraints import Constraints
from twinlens.clusters.density import apply_constraints, density_groups
from twinlens.clusters.knn_graph import NEIGHBOURS, Neighbours, nearest_neighbours
from twinlens.clusters.linkage import Clustering, as_clustering, cluster_embeddings
from twinlens.errors import DataError
from twinlens.measure.clustering import b_cubed
from twinlens.measure.pairs import Comparison, sample_pictures
from twinlens.progress import Progress

__all__ = ["HDBSCAN", "LEAST", "LINKAGE", "MANY", "METHODS", "Cut", "Trial", "best_cut",
           "cluster_by"]  # fmt: skip

LINKAGE, HDBSCAN = METHODS = ("linkage", "hdbscan")

LEAST = 5
"""Default of HDBSCAN's smallest cluster."""

MANY = 20_000
"""Pictures above which HDBSCAN is the default."""

FACTORS = (1.0, 0.5, 0.7, 0.85, 1.2, 1.4, 1.7)
"""Compared distances, times the pair threshold. Of equally good ones the first is taken."""

SIZES = (2, 3, 5, 8, 12)
"""Compared sizes of HDBSCAN's smallest cluster."""

MOST_COMPARED = 10_000
"""Labelled pictures that methods are compared on; of more, some of each identity."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Cut:
    """Method of a clustering, and where it stops.

    Attributes:
        distance: largest mean distance of a merge, by the model's comparator; None with `least`.
        target_far: FAR of the calibrated threshold that it is; None if it is another distance.
        angular: whether the comparator compares angles (cosine).
        neighbours: nearest pictures of each picture in the k-NN graph.
        least: HDBSCAN's smallest cluster; None for average linkage.
    """

    distance: float | None
    target_far: float | None
    angular: bool
    neighbours: int = NEIGHBOURS
    least: int | None = None

    @property
    def method(self) -> str:
        """Name in `METHODS`."""
        return LINKAGE if self.least is None else HDBSCAN

    def as_text(self) -> str:
        """One line."""
        if self.distance is None:
            return f"HDBSCAN, clusters of {self.least} pictures or more"
        far = self.target_far
        name = "" if far is None else f", the model's threshold at a FAR of {100 * far:g} %"
        return f"clusters merged up to a mean distance of {self.distance:.4f}{name}"


@dataclass(frozen=True)
class Trial:
    """B-cubed F of a cut on labelled pictures."""

    cut: Cut
    f: float

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return {
            "method": self.cut.method,
            "threshold": self.cut.distance,
            "min_size": self.cut.least,
            "f": self.f,
        }


def cluster_by(
    cut: Cut,
    emb_ND: Floats,
    comparison: Comparison,
    constraints: Constraints,
    *,
    existing: Ints | None = None,
    num_new: int | None = None,
) -> Clustering:
    """Cluster embeddings by the method of `cut`, or let new ones join existing clusters by linkage.

    Args:
        cut: the method.
        emb_ND: embeddings, shape (N, D).
        comparison: comparator.
        constraints: must-link and cannot-link pairs.
        existing: existing cluster of each picture, shape (N,), -1 for a picture of none.
        num_new: number of new pictures, which are the last rows; by default all are new.
    """
    first = 0 if num_new is None else len(emb_ND) - num_new
    near = nearest_neighbours(
        emb_ND, comparison, neighbours=cut.neighbours, angular=cut.angular,
        query=np.arange(first, len(emb_ND)), progress=Progress("comparing"),
    )  # fmt: skip
    return _cluster(
        cut, emb_ND, comparison, near, constraints, existing, Progress("merging", "merges at most")
    )


def _cluster(
    cut: Cut, emb_ND: Floats, comparison: Comparison, near: Neighbours, constraints: Constraints,
    existing: Ints | None = None, merging: Callable[[int, int], None] | None = None,
) -> Clustering:  # fmt: skip
    if cut.least is None:
        assert cut.distance is not None
        return cluster_embeddings(
            emb_ND, comparison, threshold=cut.distance, must_link=constraints.must,
            cannot_link=constraints.cannot, existing=existing, near=near, merging=merging,
        )  # fmt: skip
    group_N = density_groups(near, cut.least)
    if len(constraints):
        group_N = apply_constraints(group_N, emb_ND, comparison, constraints, angular=cut.angular)
    return as_clustering(emb_ND, comparison, group_N)


def best_cut(
    cut: Cut, emb_ND: Floats, comparison: Comparison, label_N: Ints, method: str | None,
    least: int | None,
) -> tuple[Cut, list[Trial]]:  # fmt: skip
    """The cut with the highest B-cubed F on labelled embeddings, and all compared ones.

    Args:
        cut: cut at the pair threshold, or without a distance for HDBSCAN only.
        emb_ND: embeddings, shape (N, D).
        comparison: comparator.
        label_N: identities, shape (N,).
        method: the only method to compare; None for both.
        least: HDBSCAN's only smallest cluster to compare; None for several.
    Raises:
        DataError: fewer than two identities with two pictures.
    """
    row = sample_pictures(label_N, MOST_COMPARED, np.random.default_rng(0))
    emb_ND, label_N = emb_ND[row], label_N[row]
    pairs = int(np.count_nonzero(np.bincount(label_N) > 1))
    if pairs < 2:
        raise DataError(
            f"methods are compared on at least two identities with two pictures, found {pairs}: "
            "name other labelled pictures, or leave out --validation"
        )
    near = nearest_neighbours(emb_ND, comparison, neighbours=cut.neighbours, angular=cut.angular)
    trials = []
    for candidate in _candidates(cut, method, least):
        result = _cluster(candidate, emb_ND, comparison, near, Constraints())
        trials.append(Trial(candidate, b_cubed(result.label, label_N)[2]))
    return max(trials, key=lambda trial: trial.f).cut, trials


def _candidates(cut: Cut, method: str | None, least: int | None) -> Iterator[Cut]:
    if method != HDBSCAN and cut.distance is not None:
        for factor in FACTORS:
            far = cut.target_far if factor == 1 else None
            yield replace(cut, distance=factor * cut.distance, target_far=far, least=None)
    if method != LINKAGE:
        for size in SIZES if least is None else (max(2, least),):
            yield replace(cut, distance=None, target_far=None, least=size)
