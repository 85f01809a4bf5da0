"""The nearest others of each picture: as from all distances, in any blocks, and the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from twinlens.clusters import knn_graph
from twinlens.clusters.knn_graph import nearest_neighbours
from twinlens.errors import DataError
from twinlens.measure import pairs
from twinlens.model.comparators import COMPARATORS, TorchComparison, make_comparator


def comparison_of(name: str, dim: int) -> TorchComparison:
    torch.manual_seed(0)
    return TorchComparison(make_comparator(name, dim))


def embeddings(num: int, dim: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((num, dim)).astype(np.float32)


@pytest.mark.parametrize("name", [name for name in COMPARATORS if name != "network"])
@pytest.mark.parametrize("block", [2**26, 4 * 90 * 7, 1])
def test_agrees_with_all_distances_for_any_block(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "BLOCK_BYTES", block)
    emb = embeddings(90, 5)
    comparison = comparison_of(name, 5)
    dist = comparison.matrix(emb, emb)
    np.fill_diagonal(dist, np.inf)
    graph = nearest_neighbours(emb, comparison, neighbours=7, angular=name == "cosine")
    np.testing.assert_allclose(
        np.sort(graph.distance, axis=1), np.sort(dist, axis=1)[:, :7], atol=1e-5
    )
    rows = np.arange(90)[:, None]
    np.testing.assert_allclose(graph.distance, dist[rows, graph.row], atol=1e-5)
    assert not (graph.row == rows).any()


def test_a_learned_comparator_measures_a_euclidean_shortlist() -> None:
    emb = embeddings(30, 4)
    network = comparison_of("network", 4)
    graph = nearest_neighbours(emb, network, neighbours=5)
    near = nearest_neighbours(emb, comparison_of("euclidean", 4), neighbours=5)
    np.testing.assert_array_equal(np.sort(graph.row), np.sort(near.row))
    expected = network.matrix(emb, emb)[np.arange(30)[:, None], graph.row]
    np.testing.assert_allclose(graph.distance, expected, atol=1e-5)


def test_without_angles_length_counts() -> None:
    emb = np.array([[1, 0], [10, 0], [1, 1]], dtype=np.float32)
    cosine = comparison_of("cosine", 2)
    assert nearest_neighbours(emb, cosine, neighbours=1, angular=True).row[0] == 1
    assert nearest_neighbours(emb, cosine, neighbours=1).row[0] == 2


def test_copies_have_distance_0_and_no_picture_is_its_own_neighbour() -> None:
    emb = np.repeat(embeddings(2, 3), 10, axis=0)
    graph = nearest_neighbours(emb, comparison_of("euclidean", 3), neighbours=9)
    assert (graph.distance == 0).all()
    assert all(len({row, *graph.row[row]}) == 10 for row in range(20))


@pytest.mark.parametrize(("num", "depth"), [(0, 0), (1, 0), (2, 1), (5, 4), (40, 32)])
def test_neighbours_are_at_most_all_others(num: int, depth: int) -> None:
    seen = []
    graph = nearest_neighbours(
        embeddings(num, 3), comparison_of("euclidean", 3),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert graph.row.shape == graph.distance.shape == (num, depth)
    assert seen[-1:] == ([(num, num)] if depth else [])


def test_nan_is_an_error() -> None:
    emb = embeddings(6, 3)
    emb[4, 1] = np.nan
    with pytest.raises(DataError, match="NaN: the embeddings are broken"):
        nearest_neighbours(emb, comparison_of("euclidean", 3), neighbours=2)


@pytest.mark.parametrize("name", ["euclidean", "cosine"])
def test_cells_hold_nearly_all_neighbours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any share that is wanted; rows beside their distances; and queries of a few only."""
    emb = embeddings(3000, 8) + 3 * embeddings(60, 8)[np.arange(3000) % 60]
    comparison = comparison_of(name, 8)
    angular = name == "cosine"
    exact = nearest_neighbours(emb, comparison, neighbours=10, angular=angular)
    monkeypatch.setattr(knn_graph, "EXACT", 0)
    monkeypatch.setattr(knn_graph, "IN_CELL", 40)
    monkeypatch.setattr(knn_graph, "BATCH", 1100)
    for recall in (0.9, 1.0):
        monkeypatch.setattr(knn_graph, "RECALL", recall)
        near = nearest_neighbours(emb, comparison, neighbours=10, angular=angular)
        kept = (near.row[:, :, None] == exact.row[:, None]).any(axis=1).mean()
        assert kept > recall - 0.03
        assert not (near.row == near.query[:, None]).any()
        assert all(len(set(rows)) == 10 for rows in near.row.tolist())
        dist = comparison.pairwise(np.repeat(emb, 10, axis=0), emb[near.row.ravel()])
        np.testing.assert_allclose(near.distance.ravel(), dist, atol=1e-5)
    query = np.arange(5, 3000, 31)
    some = nearest_neighbours(emb, comparison, neighbours=10, angular=angular, query=query)
    np.testing.assert_array_equal(np.sort(some.row), np.sort(near.row[query]))


def test_cells_of_copies_have_too_few_and_are_searched_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emb = np.concatenate([np.repeat(embeddings(1, 4), 400, axis=0), 50 + embeddings(200, 4)])
    exact = nearest_neighbours(emb, comparison_of("euclidean", 4), neighbours=90)
    monkeypatch.setattr(knn_graph, "EXACT", 0)
    monkeypatch.setattr(knn_graph, "IN_CELL", 30)
    monkeypatch.setattr(knn_graph, "RECALL", 0.1)
    near = nearest_neighbours(emb, comparison_of("euclidean", 4), neighbours=90)
    assert (near.row >= 0).all()
    np.testing.assert_allclose(near.distance[:400], exact.distance[:400])
    with pytest.raises(DataError, match="NaN"):
        nearest_neighbours(np.where(emb > 52, np.nan, emb), comparison_of("euclidean", 4))
