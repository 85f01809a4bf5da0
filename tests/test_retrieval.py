"""Retrieval by one product and in threads gives what any comparison gives."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from sklearn.metrics import average_precision_score

from twinlens.errors import DataError
from twinlens.measure import half_matrix_knn as ranks
from twinlens.measure import pairs as pairs_module
from twinlens.measure import retrieval as module
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
