"""Average linkage among neighbours: by hand, by a loop, by scipy, constraints, and the edges."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twinlens.clusters.knn_graph import nearest_neighbours
from twinlens.clusters.linkage import (
    MAX_MEASURED,
    Clustering,
    between_clusters,
    cluster_embeddings,
    contradiction,
)
from twinlens.errors import ConfigError, DataError
from twinlens.model.comparators import COMPARATORS, TorchComparison, make_comparator

EUCLID = TorchComparison(make_comparator("euclidean", 2))
Pairs = Sequence[tuple[int, int]]


def comparison_of(name: str, dim: int) -> TorchComparison:
    torch.manual_seed(0)
    comparator = make_comparator(name, dim)
    if name == "network":  # As trained ones do, it grows with every difference: no ties at 0.
        with torch.no_grad():
            comparator.hidden.weight.abs_()  # type: ignore[operator, union-attr]
            comparator.out.weight.abs_().neg_()  # type: ignore[operator, union-attr]
    return TorchComparison(comparator)


def embeddings(num: int, dim: int = 4, groups: int = 6, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centre = 2 * rng.standard_normal((groups, dim))
    noise = 0.7 * rng.standard_normal((num, dim))
    return (centre[np.arange(num) % groups] + noise).astype(np.float32)


def line(*places: float) -> NDArray[np.float32]:
    return np.array([[place, 0] for place in places], dtype=np.float32)


def partition(label: NDArray[Any] | Sequence[int]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(np.asarray(label) == name).tolist()) for name in set(label)}


def matrix(comparison: TorchComparison, emb: NDArray[np.float32]) -> NDArray[np.float64]:
    dist = comparison.matrix(emb, emb).astype(np.float64)
    np.fill_diagonal(dist, 0)
    return (dist + dist.T) / 2


def check(clustering: Clustering) -> None:
    """Check the order of clusters: by size, ties by the first picture."""
    assert clustering.size.tolist() == np.bincount(clustering.label).tolist()
    assert clustering.size.tolist() == sorted(clustering.size, reverse=True)
    first = [int(np.argmax(clustering.label == label)) for label in range(len(clustering.size))]
    order = [(-size, row) for size, row in zip(clustering.size, first, strict=True)]
    assert order == sorted(order)


# --- by hand ------------------------------------------------------------------------------------


def test_by_hand() -> None:
    """0 and 1 merge at 1; 2.6 is 2.1 from them on average, and the lonely one far away."""
    emb = line(0, 10, 1, 2.6)
    for cut, expected in (
        (0.9, {(0,), (1,), (2,), (3,)}),
        (1.0, {(0, 2), (1,), (3,)}),
        (2.09, {(0, 2), (1,), (3,)}),
        (2.11, {(0, 2, 3), (1,)}),
        (8.7, {(0, 2, 3), (1,)}),
        (8.9, {(0, 1, 2, 3)}),
    ):
        clustering = cluster_embeddings(emb, EUCLID, threshold=cut)
        assert partition(clustering.label) == {frozenset(rows) for rows in expected}, cut
        check(clustering)
    clustering = cluster_embeddings(emb, EUCLID, threshold=2.11)
    assert clustering.label.tolist() == [0, 1, 0, 0]
    assert clustering.size.tolist() == [3, 1]
    np.testing.assert_allclose(clustering.doubt, [(1 + 2.6) / 2, 0, (1 + 1.6) / 2, (2.6 + 1.6) / 2])


def test_a_chain_is_not_one_cluster() -> None:
    """Each is near the next, as connected components would merge them; on average they are far."""
    clustering = cluster_embeddings(line(*range(32)), EUCLID, threshold=1.5, neighbours=2)
    assert clustering.size.max() == 2
    # A library that averages only the edges of the graph of neighbours makes one of it.
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.neighbors import kneighbors_graph

    graph = kneighbors_graph(line(*range(32)), 2)
    made = AgglomerativeClustering(
        n_clusters=None, linkage="average", distance_threshold=1.5,
        connectivity=graph.maximum(graph.T),
    )  # fmt: skip
    assert np.bincount(made.fit_predict(line(*range(32)))).max() > 8


# --- against others -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPARATORS)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_loop_for_every_comparator(name: str, seed: int) -> None:
    emb = embeddings(24, seed=seed)
    comparison = comparison_of(name, 4)
    dist = matrix(comparison, emb)
    for share in (0.1, 0.3, 0.6):
        cut = float(np.quantile(dist[dist > 0], share))
        clustering = cluster_embeddings(
            emb, comparison, threshold=cut, neighbours=23, angular=name == "cosine"
        )
        expected = reference.average_linkage_loop(dist.tolist(), cut)
        assert partition(clustering.label) == {frozenset(group) for group in expected}
        check(clustering)


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05, 0.3])
def test_agrees_with_scipy(share: float) -> None:
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    emb = embeddings(300, dim=8, groups=40)
    comparison = comparison_of("cosine", 8)
    dist = matrix(comparison, emb)
    cut = float(np.quantile(dist, share))
    expected = fcluster(linkage(squareform(dist), "average"), cut, "distance")
    pairs = np.triu_indices(300, k=1)
    for neighbours in (299, 12):
        clustering = cluster_embeddings(
            emb, comparison, threshold=cut, neighbours=neighbours, angular=True
        )
        if np.bincount(expected).max() <= MAX_MEASURED:
            assert partition(clustering.label) == partition(expected)
        together = [(label[:, None] == label)[pairs] for label in (clustering.label, expected)]
        assert (together[0] == together[1]).mean() > 0.95


def test_distances_between_clusters() -> None:
    emb = embeddings(30)
    label = np.arange(30) % 5 % 4  # Of 12, 6, 6 and 6 pictures: few enough to look at all.
    clustering = between_clusters(emb, EUCLID, label, 3)
    dist = matrix(EUCLID, emb)
    for a, b in product(range(3), repeat=2):
        expected = np.inf if a == b else dist[np.ix_(label == a, label == b)].mean()
        assert clustering[a, b] == pytest.approx(expected, rel=1e-5)


def test_large_clusters_are_measured_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    emb = np.concatenate([embeddings(400, groups=1), 9 + embeddings(300, groups=1, seed=1)])
    clustering = cluster_embeddings(emb, EUCLID, threshold=4.0)
    assert partition(clustering.label) == {frozenset(range(400)), frozenset(range(400, 700))}
    dist = matrix(EUCLID, emb)
    for label in (0, 1):
        rows = np.flatnonzero(clustering.label == label)
        expected = dist[np.ix_(rows, rows)].sum(axis=1) / (len(rows) - 1)
        assert np.corrcoef(expected, clustering.doubt[rows])[0, 1] > 0.98


# --- properties ---------------------------------------------------------------------------------


def test_order_and_rotation_change_nothing_and_a_higher_cut_merges() -> None:
    emb = embeddings(120, dim=6, groups=15)
    comparison = comparison_of("euclidean", 6)
    clustering = cluster_embeddings(emb, comparison, threshold=2.2)
    assert 10 < len(clustering.size) < 60
    order = np.random.default_rng(0).permutation(120)
    moved = cluster_embeddings(emb[order], comparison, threshold=2.2)
    back = np.empty(120, dtype=np.int64)
    back[order] = moved.label
    assert partition(back) == partition(clustering.label)
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))
    turned = cluster_embeddings((emb @ turn).astype(np.float32), comparison, threshold=2.2)
    assert partition(turned.label) == partition(clustering.label)
    # A higher cut only merges: every cluster lies within one of the next.
    finer = partition(clustering.label)
    for cut in (2.6, 3.5, 1e9):
        coarser = partition(cluster_embeddings(emb, comparison, threshold=cut).label)
        assert all(any(small <= large for large in coarser) for small in finer)
        finer = coarser


def test_scaled_distances_give_the_same_clusters() -> None:
    """Sigmoid's distance is a multiple of the Euclidean one."""
    emb = embeddings(80)
    comparator = make_comparator("sigmoid", 4)
    with torch.no_grad():
        comparator.log_scale.fill_(np.log(3.0))  # type: ignore[operator]
    scaled = cluster_embeddings(emb, TorchComparison(comparator), threshold=3 * 1.9)
    plain = cluster_embeddings(emb, EUCLID, threshold=1.9)
    assert scaled.label.tolist() == plain.label.tolist()


PAIR = st.tuples(st.integers(0, 17), st.integers(0, 17))


@settings(max_examples=60, deadline=None)
@given(
    must=st.lists(PAIR, max_size=12),
    cannot=st.lists(PAIR, max_size=25),
    cut=st.sampled_from([0.0, 0.5, 2.0, 1e9]),
    neighbours=st.sampled_from([1, 3, 17]),
    seed=st.integers(0, 3),
)
def test_constraints_hold_exactly(
    must: Pairs, cannot: Pairs, cut: float, neighbours: int, seed: int
) -> None:
    emb = embeddings(18, groups=4, seed=seed)

    def run() -> Clustering:
        return cluster_embeddings(
            emb, EUCLID, threshold=cut, neighbours=neighbours, must_link=must, cannot_link=cannot
        )

    clash = contradiction(must, cannot)
    if clash is not None:
        with pytest.raises(DataError, match="must_link or an existing cluster joins them"):
            run()
        a, b = cannot[clash[0]]
        for place in clash[1]:  # The way leads from the one to the other.
            assert a in must[place]
            a = must[place][1] if must[place][0] == a else must[place][0]
        assert a == b
        return
    clustering = run()
    check(clustering)
    assert all(clustering.label[a] == clustering.label[b] for a, b in must)
    assert all(clustering.label[a] != clustering.label[b] for a, b in cannot)
    if neighbours == 17:
        dist = matrix(EUCLID, emb).tolist()
        expected = reference.average_linkage_loop(dist, cut, must, cannot)
        assert partition(clustering.label) == {frozenset(group) for group in expected}


def test_new_pictures_join_existing_clusters() -> None:
    """5 is nearest to the two at 3.5 and 4; the pair at 20 and 20.5 is new; 0 and 1 stay apart."""
    emb = line(0, 1, 3.5, 4, 5, 20, 20.5)
    existing = np.array([0, 1, 2, 2, -1, -1, -1])
    for near in (None, nearest_neighbours(emb, EUCLID, query=np.array([4, 5, 6]))):
        clustering = cluster_embeddings(emb, EUCLID, threshold=3, existing=existing, near=near)
        assert partition(clustering.label) == partition([0, 1, 2, 2, 2, 5, 5])
    linked = cluster_embeddings(
        emb, EUCLID, threshold=3, existing=existing, must_link=[(0, 2)], cannot_link=[(2, 4)]
    )
    assert partition(linked.label) == partition([0, 1, 0, 0, 4, 5, 5])
    with pytest.raises(DataError, match="or an existing cluster joins them"):
        cluster_embeddings(emb, EUCLID, threshold=3, existing=existing, cannot_link=[(2, 3)])


def test_the_shortest_contradiction() -> None:
    must = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 2)]
    assert contradiction(must, [(5, 0), (4, 0)]) == (1, [3, 2, 4])
    assert contradiction(must, [(3, 3)]) == (0, [])
    assert contradiction(must, [(0, 5)]) is None
    assert contradiction([], []) is None


# --- edges --------------------------------------------------------------------------------------


def test_more_copies_than_neighbours_are_one_cluster() -> None:
    """More equal pictures than neighbours, in two heaps of which each is its own world."""
    emb = np.repeat(line(0, 5), 40, axis=0)
    clustering = cluster_embeddings(emb, EUCLID, threshold=0.1, neighbours=8)
    together = partition(clustering.label)
    assert all(len({row // 40 for row in group}) == 1 for group in together)
    whole = cluster_embeddings(emb, EUCLID, threshold=0.1, neighbours=79)
    assert partition(whole.label) == {frozenset(range(40)), frozenset(range(40, 80))}
    assert whole.doubt.tolist() == [0.0] * 80


def test_few_or_no_pictures() -> None:
    none = cluster_embeddings(np.empty((0, 2), dtype=np.float32), EUCLID, threshold=1)
    assert (len(none.label), len(none.size)) == (0, 0)
    one = cluster_embeddings(line(3), EUCLID, threshold=1)
    assert (one.label.tolist(), one.size.tolist(), one.doubt.tolist()) == ([0], [1], [0.0])
    two = cluster_embeddings(line(3, 4), EUCLID, threshold=1, neighbours=50)
    assert two.label.tolist() == [0, 0]
    apart = cluster_embeddings(line(3, 4), EUCLID, threshold=1, cannot_link=[(0, 1)])
    assert apart.label.tolist() == [0, 1]
    linked = cluster_embeddings(line(3, 400), EUCLID, threshold=1, must_link=[(1, 0)])
    assert linked.label.tolist() == [0, 0]
    assert linked.doubt.tolist() == [397.0, 397.0]


def test_errors() -> None:
    for threshold in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="a distance of 0 or more"):
            cluster_embeddings(line(0, 1), EUCLID, threshold=threshold)
    with pytest.raises(ConfigError, match="neighbours must be at least 1, found 0"):
        cluster_embeddings(line(0, 1), EUCLID, threshold=1, neighbours=0)
    with pytest.raises(DataError, match="NaN"):
        cluster_embeddings(line(0, 1, np.nan), EUCLID, threshold=1)


def test_progress_ends_complete() -> None:
    seen: dict[str, list[tuple[int, int]]] = {"near": [], "merged": []}
    cluster_embeddings(
        embeddings(40), EUCLID, threshold=3,
        progress=lambda done, total: seen["near"].append((done, total)),
        merging=lambda done, total: seen["merged"].append((done, total)),
    )  # fmt: skip
    assert seen["near"][-1] == (40, 40)
    assert seen["merged"][-1] == (40, 40)
