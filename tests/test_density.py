"""HDBSCAN on the k-NN graph: as scikit-learn's of all pairs, constraints, parts, and the choice."""

from __future__ import annotations

import numpy as np
import pytest
from test_linkage import EUCLID, Pairs, comparison_of, embeddings, line, matrix, partition

from twinlens.clusters.constraints import Constraints
from twinlens.clusters.density import apply_constraints, density_groups
from twinlens.clusters.knn_graph import nearest_neighbours
from twinlens.clusters.method import HDBSCAN, LINKAGE, Cut, best_cut, cluster_by
from twinlens.errors import DataError


@pytest.mark.parametrize("name", ["euclidean", "cosine"])
@pytest.mark.parametrize("least", [2, 5])
def test_with_all_neighbours_as_in_scikit_learn(name: str, least: int) -> None:
    from sklearn.cluster import HDBSCAN as AllPairs  # noqa: N811

    emb = embeddings(150, groups=12)
    comparison = comparison_of(name, 4)
    made = AllPairs(min_cluster_size=least, min_samples=1, metric="precomputed", copy=True)
    label = made.fit_predict(matrix(comparison, emb))
    expected = np.where(label < 0, 150 + np.arange(150), label)
    for neighbours in (149, 24):
        near = nearest_neighbours(emb, comparison, neighbours=neighbours, angular=name == "cosine")
        assert partition(density_groups(near, least)) == partition(expected)


def test_parts_of_the_graph_are_never_one_cluster() -> None:
    """Ten heaps of copies, each a graph of its own; and fewer pictures than a cluster has."""
    emb = np.repeat(line(*range(10)), 8, axis=0)
    near = nearest_neighbours(emb, EUCLID, neighbours=4)
    assert partition(density_groups(near, 3)) == {
        frozenset(range(8 * n, 8 * n + 8)) for n in range(10)
    }
    for num in (0, 1, 2):
        few = nearest_neighbours(line(*range(num)), EUCLID)
        assert density_groups(few, 3).tolist() == list(range(num))


@pytest.mark.parametrize(
    ("must", "cannot"),
    [([], [(0, 6)]), ([(0, 1)], []), ([(0, 1), (7, 2)], [(0, 2), (6, 12)])],
)
def test_constraints_hold_and_the_rest_stays(must: Pairs, cannot: Pairs) -> None:
    emb = embeddings(60)
    cut = Cut(None, None, angular=False, least=3)
    plain = cluster_by(cut, emb, EUCLID, Constraints()).label
    label = cluster_by(cut, emb, EUCLID, Constraints(tuple(must), tuple(cannot))).label
    assert all(label[a] == label[b] for a, b in must)
    assert all(label[a] != label[b] for a, b in cannot)
    touched = {plain[row] for pair in (*must, *cannot) for row in pair}
    rest = ~np.isin(plain, list(touched))
    assert partition(label[rest]) == partition(plain[rest])


def test_divided_groups_keep_what_is_near_together() -> None:
    emb = line(0, 1, 10, 11)
    group = apply_constraints(
        np.zeros(4, dtype=np.int64), emb, EUCLID, Constraints(cannot=((0, 3),)), angular=False
    )
    assert partition(group) == {frozenset({0, 1}), frozenset({2, 3})}


def test_the_better_is_chosen_by_labels() -> None:
    """Groups of unequal width: no one distance divides them, and density does."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(12), 12)
    centre = np.array([[40 * (n % 4), 40 * (n // 4)] for n in range(12)])
    width = np.where(np.arange(12) % 2, 0.05, 6)[:, None]
    emb = (centre[label] + width[label] * rng.standard_normal((144, 2))).astype(np.float32)
    emb[label == 1] = emb[label == 3] + np.float32(1.5)  # Two narrow ones side by side.
    start = Cut(12.0, 0.01, angular=False)
    cut, trials = best_cut(start, emb, EUCLID, label, None, None)
    scores = {(trial.cut.distance, trial.cut.least): trial.f for trial in trials}
    assert len(scores) == len(trials) == 12
    assert scores[cut.distance, cut.least] == max(scores.values())
    only, trials = best_cut(start, emb, EUCLID, label, LINKAGE, None)
    assert {trial.cut.method for trial in trials} == {LINKAGE}
    assert only.target_far == (0.01 if only.distance == 12.0 else None)
    _, trials = best_cut(start, emb, EUCLID, label, HDBSCAN, 4)
    assert [trial.cut.least for trial in trials] == [4]
    with pytest.raises(DataError, match="two identities with two pictures, found 0"):
        best_cut(start, emb, EUCLID, np.arange(144), None, None)
