"""Retrieval by one product and in threads gives what any comparison gives."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from made_up_people import Euclid, people_with_forgeries
from sklearn.metrics import average_precision_score

from twinlens.errors import DataError
from twinlens.measure import half_matrix_knn as ranks
from twinlens.measure import pairs as pairs_module
from twinlens.measure import retrieval as module
from twinlens.measure.bootstrap import interval, replicate
from twinlens.measure.distances import EUCLIDEAN_COMPARATORS, EuclideanComparison, as_euclidean
from twinlens.measure.retrieval import map_at_r, recall_at_k, retrieval
from twinlens.model.comparators import TorchComparison, make_comparator


def people(num=120, identities=20, *, decimals=6, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, identities, num)
    emb = rng.normal(size=(identities, 5))[label] + 0.8 * rng.normal(size=(num, 5))
    return emb.round(decimals).astype(np.float32), label, rng.random(num) < 0.15


class Opaque:
    """A comparison of which nothing is known but its distances."""

    def __init__(self, name):
        plain = EuclideanComparison(name)
        self.matrix, self.pairwise = plain.matrix, plain.pairwise


@pytest.mark.parametrize("name", EUCLIDEAN_COMPARATORS)
@pytest.mark.parametrize("decimals", [0, 6])  # 0: many ties
@pytest.mark.parametrize("size", [3, 1000])
def test_agrees_with_the_loop(name, decimals, size, monkeypatch):
    # One third of a block is a thread's part, where there are threads.
    monkeypatch.setattr(module, "available_cores", lambda: 3)
    monkeypatch.setattr(pairs_module, "BLOCK_BYTES", 8 * 3 * 120 * size)
    emb, label, forged = people(decimals=decimals if name != "cosine" else 6)
    dist = EuclideanComparison(name).matrix(emb, emb)
    recall, precision = reference.leave_one_out(dist.tolist(), label, forged, 3)
    for comparison in (EuclideanComparison(name), Opaque(name)):
        found = retrieval(emb, label, forged, comparison, ks=(3,), replicates=0)
        assert found.recall_at[3].value == pytest.approx(recall)
        assert found.map_at_r.value == pytest.approx(precision)


@pytest.mark.parametrize("identities", [1, 2, 25, 45])  # from all right to one partner
def test_any_number_of_right_answers(identities, monkeypatch):
    monkeypatch.setattr(pairs_module, "BLOCK_BYTES", 8 * 90 * 7)
    emb, label, forged = people(90, identities)
    dist = EuclideanComparison("euclidean").matrix(emb, emb)
    for k in (1, 500):
        found = retrieval(
            emb, label, forged, EuclideanComparison("euclidean"), ks=(k,), replicates=0
        )
        recall, precision = reference.leave_one_out(dist.tolist(), label, forged, k)
        assert found.recall_at[k].value == pytest.approx(recall)
        assert found.map_at_r.value == pytest.approx(precision)


@pytest.mark.parametrize("num", [1, 2, 19, 99, 100])
@pytest.mark.parametrize("levels", [2, 10**6])  # 2: hardly anything but ties
def test_the_smallest_of_each_row(num, levels):
    rng = np.random.default_rng(num)
    dist = rng.integers(0, levels, (4, 100)).astype(np.float32)
    dist[rng.random(dist.shape) < 0.05] = np.inf
    expected = np.sort(dist, axis=1)[:, :num]
    assert (np.sort(ranks.smallest(dist, num), axis=1) == expected).all()


@pytest.mark.parametrize("place", [0, 50, 99])
@pytest.mark.parametrize("num", [1, 60])
def test_a_nan_anywhere_is_found(place, num):
    dist = np.ones((2, 100), np.float32)
    dist[1, place] = np.nan
    assert np.isnan(ranks.smallest(dist, num)[1]).all()


def test_broken_embeddings_are_refused():
    emb, label, forged = people()
    emb[7] = np.nan
    for comparison in (EuclideanComparison("euclidean"), Opaque("euclidean")):
        with pytest.raises(DataError, match="NaN"):
            retrieval(emb, label, forged, comparison)


def test_the_comparison_without_torch_is_found():
    sigmoid = make_comparator("sigmoid", 4)
    with torch.no_grad():
        sigmoid.log_scale.fill_(np.log(2.0))
    found = as_euclidean(TorchComparison(sigmoid))
    assert found is not None
    assert (found.name, found.scale) == ("sigmoid", pytest.approx(2.0))
    assert as_euclidean(TorchComparison(make_comparator("cosine", 4))) == EuclideanComparison(
        "cosine"
    )
    assert as_euclidean(found) is found
    assert as_euclidean(TorchComparison(make_comparator("network", 4))) is None
    assert as_euclidean(Opaque("euclidean")) is None


def test_one_product_gives_the_squared_distances():
    emb = people(20)[0]
    product_form = EuclideanComparison("euclidean").product_form(emb)
    square = product_form.left @ product_form.right.T + product_form.square[:, None]
    expected = EuclideanComparison("squared-euclidean").matrix(emb, emb)
    np.testing.assert_allclose(square, expected, atol=1e-4)


def test_ranks_by_hand():
    correct = [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert recall_at_k(correct, 1).tolist() == [1, 0, 0]
    assert recall_at_k(correct, 2).tolist() == [1, 1, 0]
    assert recall_at_k(correct, 9).tolist() == [1, 1, 1]
    # R = 3: hits at ranks 1 and 3; R = 1: the hit comes too late; R = 4: at the last rank.
    found = map_at_r(correct, [3, 1, 4])
    assert found == pytest.approx([(1 + 2 / 3) / 3, 0, (1 / 4) / 4])


def test_ranks_refuse_what_they_cannot_count():
    with pytest.raises(ValueError, match="k must be at least 1, found 0"):
        recall_at_k([[True]], 0)
    for relevant in ([0], [3]):
        with pytest.raises(ValueError, match="each R must be in 1 to 2"):
            map_at_r([[True, False]], relevant)


def test_map_at_r_is_average_precision_where_all_are_found_in_time():
    # Where every right picture lies within the first R ranks, both are 1; where R reaches the
    # gallery's end, MAP@R is the usual average precision.
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = rng.permutation(6)
        truth = np.ones(6, dtype=bool)
        assert map_at_r([truth], [6])[0] == pytest.approx(average_precision_score(truth, -order))
        assert map_at_r([truth[:3]], [3])[0] == pytest.approx(1)


@pytest.mark.parametrize("decimals", [0, 1, 6])  # 0: many ties
@pytest.mark.parametrize("k", [1, 3, 100])
def test_any_comparison_agrees_with_the_loop(decimals, k, monkeypatch):
    emb, label, forged = people_with_forgeries(7, 4, spread=0.8, forged_each=1)
    emb, label, forged = emb[3:].round(decimals), label[3:], forged[3:]
    label[label == 0] = np.arange((label == 0).sum()) + 50  # singletons
    recall, precision = reference.leave_one_out(Euclid().matrix(emb, emb), label, forged, k)
    monkeypatch.setattr(pairs_module, "BLOCK_BYTES", 48 * len(label) * 5)
    seen = []
    found = retrieval(
        emb, label, forged, Euclid(), ks=(k,), replicates=3,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert found.recall_at[k].value == pytest.approx(recall)
    assert found.map_at_r.value == pytest.approx(precision)
    counts = np.bincount(label[~forged])
    assert found.num_left_out == (counts == 1).sum()
    assert found.num_probes == counts[counts > 1].sum()
    assert seen[-1] == (found.num_probes, found.num_probes)
    assert len(seen) == -(-found.num_probes // 5)


def test_retrieval_by_hand():
    # On a line: a0 a1 . b0 . a2 . . b1, and a forged a between a0 and a1.
    emb = np.array([[0], [1], [5], [3], [8], [0.4]], np.float32)
    label = np.array([0, 0, 0, 1, 1, 0])
    forged = np.array([False] * 5 + [True])
    found = retrieval(emb, label, forged, Euclid(), ks=(1, 2), replicates=0)
    # R = 2 for a, 1 for b. a0 sees f, a1, ...: AP@2 = (1/2) / 2. a1 sees f, a0, ...: the same.
    # a2 sees b0, b1, ...: 0. b0 sees a1, a2, ...: 0. b1 sees a2, b0: too late for AP@1.
    assert found.map_at_r.value == pytest.approx((0.25 + 0.25) / 5)
    assert found.recall_at[1].value == 0
    assert found.recall_at[2].value == pytest.approx(3 / 5)
    assert found.map_at_r.low is None
    assert list(found.as_json()) == [
        "recall_at_1", "recall_at_2", "map_at_r", "num_probes", "num_left_out",
    ]  # fmt: skip


def test_ties_count_against_the_model():
    emb, label, forged = people_with_forgeries()
    collapsed = retrieval(emb * 0, label, forged, Euclid(), replicates=0)
    assert collapsed.recall_at[10].value == 0
    assert collapsed.map_at_r.value == 0


@pytest.mark.parametrize(
    ("right", "wrong", "recall"),
    [(0.0, -0.0, 0), (-0.0, 0.0, 0), (-2, -1, 1), (-1, -2, 0), (-1, 1, 1), (1, -1, 0), (1, 2, 1)],
)
def test_distances_of_either_sign_are_ranked(right, wrong, recall):
    table = np.array([[9, right, wrong], [right, 9, wrong], [wrong, wrong, 9]], np.float32)

    class Table(Euclid):
        """Embeddings are row numbers."""

        def matrix(self, a_ND, b_MD, /):
            return table[np.ix_(a_ND[:, 0].astype(int), b_MD[:, 0].astype(int))]

    rows = np.arange(3, dtype=np.float32)[:, None]
    found = retrieval(rows, [0, 0, 1], [False] * 3, Table(), ks=(1,), replicates=0)
    assert found.recall_at[1].value == recall


def test_nothing_to_retrieve():
    emb, label, forged = people_with_forgeries(5, 1)
    assert retrieval(emb, label, forged, Euclid()) is None
    assert retrieval(emb[:0], label[:0], forged[:0], Euclid()) is None
    emb, label, forged = people_with_forgeries()
    emb[3, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        retrieval(emb, label, forged, Euclid())


def test_agrees_with_pytorch_metric_learning():
    torch = pytest.importorskip("torch")
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 8, 90)
    emb = (rng.normal(size=(8, 4))[label] + rng.normal(size=(90, 4))).astype(np.float32)
    calculator = accuracy.AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
        # Its own search needs faiss.
        knn_func=inference.CustomKNN(distances.LpDistance(normalize_embeddings=False)),
        kmeans_func=lambda *_: None,
    )
    expected = calculator.get_accuracy(torch.from_numpy(emb), torch.from_numpy(label))
    found = retrieval(emb, label, np.zeros(90, bool), Euclid(), replicates=0)
    assert found.recall_at[1].value == pytest.approx(expected["precision_at_1"])
    assert found.map_at_r.value == pytest.approx(expected["mean_average_precision_at_r"])


def test_probes_are_weighted_by_their_identity():
    # Identity 0 always fails, the others never do: the share of failures is the share of 0.
    label = np.repeat(np.arange(4), 2)
    emb = np.array([[-50], [150], [0], [0], [10], [10], [100], [100]], np.float32)
    found = retrieval(emb, label, np.zeros(8, bool), Euclid(), ks=(1, 2), seed=1, replicates=30)
    expected = interval(replicate(lambda count: 1 - count[:1] / 4, 4, seed=1, replicates=30)[:, 0])
    assert found.recall_at[1].value == 0.75
    assert (found.recall_at[1].low, found.recall_at[1].high) == expected
