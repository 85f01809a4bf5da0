"""Scores of clusters: by hand, by loops, by scikit-learn, and what may not change them."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlens.errors import DataError
from twinlens.measure.clustering import (
    b_cubed,
    normalised_mutual_information,
    purity,
    score_clustering,
)

PARTITIONS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=25
)  # fmt: skip


def test_by_hand() -> None:
    """Two clusters, {a, a, b} and {b, b}."""
    cluster, identity = [0, 0, 0, 1, 1], ["a", "a", "b", "b", "b"]
    assert purity(cluster, identity) == pytest.approx(4 / 5)
    precision = (2 / 3 + 2 / 3 + 1 / 3 + 1 + 1) / 5
    recall = (1 + 1 + 1 / 3 + 2 / 3 + 2 / 3) / 5
    f = 2 * precision * recall / (precision + recall)
    assert b_cubed(cluster, identity) == pytest.approx((precision, recall, f))
    # Entropies of (3, 2) and (2, 3) of 5, and the mutual information of the table ((2, 1), (0, 2)).
    entropy = -(0.6 * np.log(0.6) + 0.4 * np.log(0.4))
    mutual = 0.4 * np.log(0.4 / 0.24) + 0.2 * np.log(0.2 / 0.36) + 0.4 * np.log(0.4 / 0.24)
    assert normalised_mutual_information(cluster, identity) == pytest.approx(mutual / entropy)


def test_the_extremes() -> None:
    identity = ["a"] * 3 + ["b"] * 2
    assert b_cubed([5, 5, 5, 2, 2], identity) == (1, 1, 1)
    assert purity([5, 5, 5, 2, 2], identity) == 1
    assert b_cubed(range(5), identity)[:2] == pytest.approx((1, (3 * 1 / 3 + 2 * 1 / 2) / 5))
    assert purity(range(5), identity) == 1
    assert b_cubed([0] * 5, identity)[:2] == pytest.approx(((3 * 3 / 5 + 2 * 2 / 5) / 5, 1))
    assert b_cubed([7], ["x"]) == (1, 1, 1)


@settings(max_examples=100, deadline=None)
@given(PARTITIONS)
def test_as_the_loops(pairs: list[tuple[int, int]]) -> None:
    cluster, identity = (list(column) for column in zip(*pairs, strict=True))
    assert b_cubed(cluster, identity) == pytest.approx(reference.b_cubed_loop(cluster, identity))
    assert purity(cluster, identity) == pytest.approx(reference.purity_loop(cluster, identity))
    found = score_clustering(cluster, identity, replicates=3)
    values = [found.precision.value, found.recall.value, found.f.value]
    assert values == pytest.approx(b_cubed(cluster, identity))
    assert found.purity.value == pytest.approx(purity(cluster, identity))
    assert (found.num_clusters, found.num_identities) == (len(set(cluster)), len(set(identity)))


@settings(max_examples=30, deadline=None)
@given(PARTITIONS, st.randoms(use_true_random=False))
def test_order_and_names_play_no_part_and_roles_swap(
    pairs: list[tuple[int, int]], random: object
) -> None:
    cluster, identity = (np.array(column) for column in zip(*pairs, strict=True))
    order = list(range(len(pairs)))
    random.shuffle(order)  # type: ignore[attr-defined]
    names = [f"name {9 - number}" for number in cluster[order]]
    expected = b_cubed(cluster, identity)
    assert b_cubed(names, identity[order]) == pytest.approx(expected)
    assert purity(names, identity[order]) == pytest.approx(purity(cluster, identity))
    precision, recall, f = b_cubed(identity, cluster)
    assert (recall, precision, f) == pytest.approx(expected)


def test_nmi_as_in_scikit_learn() -> None:
    from sklearn.metrics import normalized_mutual_info_score

    rng = np.random.default_rng(0)
    cluster, identity = rng.integers(0, 9, 200), rng.integers(0, 6, 200)
    expected = normalized_mutual_info_score(identity, cluster)
    assert normalised_mutual_information(cluster, identity) == pytest.approx(expected)


def test_intervals_hold_the_value_and_narrow_with_identities() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for num in (10, 200):
        identity = np.repeat(np.arange(num), 6)
        cluster = np.where(rng.random(len(identity)) < 0.3, 1000 + identity // 2, identity)
        found = score_clustering(cluster, identity)
        for figure in (found.purity, found.precision, found.recall, found.f):
            assert figure.low <= figure.value <= figure.high
        widths.append(found.f.high - found.f.low)
    assert widths[1] < widths[0] / 2
    assert found.nmi.low is None
    assert score_clustering([0, 0, 1], ["a"] * 3).f.low is None  # One identity: nothing to redraw.


def test_json_holds_all_figures() -> None:
    found = score_clustering([0, 0, 1, 2], ["a", "a", "a", "b"]).as_json()
    assert found["num_pictures"] == 4
    assert found["b_cubed"]["recall"]["value"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 1) / 4)
    assert found["purity"]["value"] == 1


def test_what_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="a cluster and an identity for each picture"):
        b_cubed([], [])
    with pytest.raises(DataError, match=r"\(2,\) clusters and \(3,\) identities"):
        score_clustering([0, 1], ["a", "b", "c"])


def test_many_clusters_need_no_table_of_all() -> None:
    """100,000 clusters by 50,000 identities would be 40 GB."""
    num = 100_000
    precision, recall, _ = b_cubed(np.arange(num), np.arange(num) // 2)
    assert (precision, recall) == (1, 0.5)
