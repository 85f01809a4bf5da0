"""The nearest picture of a gallery: figures, answers, and distances that are exact."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_people import Euclid
from sklearn.neighbors import KNeighborsClassifier

from twinlens.errors import DataError
from twinlens.measure import pairs as pairs_module
from twinlens.measure.bootstrap import estimates, replicate
from twinlens.measure.nearest_neighbour import nearest_neighbour
from twinlens.model.comparators import COMPARATORS, TorchComparison, make_comparator


class Rounding(Euclid):
    """Its matrix rounds distances to whole numbers, as a product rounds them to some bits."""

    def matrix(self, a_ND, b_MD, /):
        return np.round(super().matrix(a_ND, b_MD))


def line(*places):
    """Embeddings on a line."""
    return np.array(places, dtype=np.float32)[:, None]


def people(num_probes=60, num_gallery=90, num=8, dim=4, seed=0):
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(num, dim))
    label = [rng.integers(num, size=count) for count in (num_probes, num_gallery)]
    emb = [(center[x] + rng.normal(size=(len(x), dim)) * 0.7).astype(np.float32) for x in label]
    return emb[0], label[0], emb[1], label[1]


# --- by hand ------------------------------------------------------------------------------------

GALLERY = line(0, 1, 2, 3, 4, 10, 11)
GALLERY_LABEL = np.array([0, 0, 1, 1, 1, 2, 0])


def test_a_line_by_hand():
    """0.4 is nearest to 0 (label 0); 1.6 to 2; 2.9 to 3; 10.9 to 11; 5 to 4; 9 shows what is not
    in the gallery."""
    probes, labels = line(0.4, 1.6, 2.9, 10.9, 5, 9), np.array([0, 0, 2, 2, 1, 7])
    found = nearest_neighbour(probes, labels, GALLERY, GALLERY_LABEL, Euclid())
    assert found.row[:, 0].tolist() == [0, 2, 3, 6, 4, 5]
    assert found.right.tolist() == [True, False, False, False, True, False]
    assert found.accuracy.value == pytest.approx(2 / 6)
    # 2.9 has 3, 2, 4, 1, 0 before 10: label 2 is not among its 5. 1.6 has 2, 1 first.
    assert found.row[1].tolist() == [2, 1, 3, 0, 4]
    assert found.row[2].tolist() == [3, 2, 4, 1, 0]
    np.testing.assert_allclose(found.distance[1], [0.4, 0.6, 1.4, 1.6, 2.4], rtol=1e-6)
    assert found.top_5.value == pytest.approx(4 / 6)
    # 3 of 7 gallery pictures show 0, 3 show 1, 1 shows 2 and none shows 7.
    assert found.chance == pytest.approx((3 + 3 + 1 + 1 + 3 + 0) / 7 / 6)
    assert (found.num_probes, found.num_gallery, found.num_identities) == (6, 7, 3)
    assert found.num_unknown == 1


def test_five_pictures_and_not_five_identities():
    """The right identity is the second nearest, but its picture only the sixth."""
    gallery, label = line(1, 1.1, 1.2, 1.3, 1.4, 1.5), np.array([0, 0, 0, 0, 0, 1])
    assert nearest_neighbour(line(0), [1], gallery, label, Euclid()).top_5.value == 0
    assert nearest_neighbour(line(0), [1], gallery[1:], label[1:], Euclid()).top_5.value == 1


def test_a_gallery_of_less_than_five():
    found = nearest_neighbour(line(0, 3), [1, 2], line(1, 2.5), [1, 2], Euclid())
    assert found.row.tolist() == [[0, 1], [1, 0]]
    assert found.accuracy.value == found.top_5.value == 1


def test_of_equal_distances_the_first_row():
    """More rows are equally far than are looked at again."""
    for num in (3, 40, 200):
        gallery = np.concatenate([line(5), line(*[1, -1] * num), line(7)])
        found = nearest_neighbour(line(0), [0], gallery, np.arange(len(gallery)), Euclid())
        assert found.row.tolist() == [[1, 2, 3, 4, 5]]


def test_json():
    probe, probe_label, gallery, gallery_label = people()
    found = nearest_neighbour(probe, probe_label, gallery, gallery_label, Euclid()).as_json()
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["accuracy", "top_5", "chance", "num_probes", "num_gallery",
                           "num_identities", "num_unknown"]  # fmt: skip


# --- agreement ----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), min_size=1, max_size=50),
)
def test_the_loop_finds_the_same_with_many_ties(probes, gallery):
    (probe, probe_label), (shown, label) = (np.array(rows).T for rows in (probes, gallery))
    found = nearest_neighbour(
        line(*probe), probe_label, line(*shown), label, Euclid(), replicates=2
    )
    dist = [[abs(a - b) for b in shown] for a in probe]
    rows = reference.nearest_rows(dist, 5)
    assert found.row.tolist() == rows
    top_1, top_5 = reference.nearest_shares(rows, probe_label, label)
    assert found.accuracy.value == pytest.approx(top_1)
    assert found.top_5.value == pytest.approx(top_5)
    share = [sum(other == one for other in label) / len(label) for one in probe_label]
    assert found.chance == pytest.approx(sum(share) / len(share))
    assert found.num_unknown == sum(one == 0 for one in share)


@pytest.mark.parametrize("comparator", ["euclidean", "squared-euclidean", "cosine"])
def test_scikit_learn_finds_the_same(comparator):
    probe, probe_label, gallery, label = people(300, 500, num=20, dim=8)
    found = nearest_neighbour(
        probe, probe_label, gallery, label, TorchComparison(make_comparator(comparator, 8))
    )
    metric = "cosine" if comparator == "cosine" else "euclidean"
    one = KNeighborsClassifier(n_neighbors=1, metric=metric).fit(gallery, label)
    np.testing.assert_array_equal(label[found.row[:, 0]], one.predict(probe))
    assert found.accuracy.value == pytest.approx(one.score(probe, probe_label))
    distance, row = one.kneighbors(probe, n_neighbors=5)
    np.testing.assert_array_equal(found.row, row)
    if comparator == "squared-euclidean":
        distance = distance**2
    np.testing.assert_allclose(found.distance, distance, rtol=1e-4, atol=1e-6)


def test_the_interval_is_that_of_redrawn_probe_identities():
    probe, probe_label, gallery, label = people()
    found = nearest_neighbour(probe, probe_label, gallery, label, Euclid(), seed=3, replicates=50)
    names = sorted(set(probe_label.tolist()))

    def redrawn(count):
        rows = [
            row
            for name, times in zip(names, count, strict=True)
            for row in np.flatnonzero(probe_label == name).tolist() * int(times)
        ]
        hits = label[found.row[rows]] == probe_label[rows][:, None]
        return np.array([hits[:, 0].mean(), hits.any(axis=1).mean()])

    drawn = replicate(redrawn, len(names), seed=3, replicates=50)
    expected = estimates([found.accuracy.value, found.top_5.value], drawn)
    assert found.accuracy.low == pytest.approx(expected[0].low)
    assert found.accuracy.high == pytest.approx(expected[0].high)
    assert found.top_5.low == pytest.approx(expected[1].low)
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    assert (
        nearest_neighbour(probe[:1], probe_label[:1], gallery, label, Euclid()).accuracy.low is None
    )


# --- properties ---------------------------------------------------------------------------------


def test_orders_names_and_rotations_change_nothing():
    probe, probe_label, gallery, label = people()
    found = nearest_neighbour(probe, probe_label, gallery, label, Euclid())
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0].astype(np.float32)
    order_P, order_M = rng.permutation(len(probe)), rng.permutation(len(gallery))
    again = nearest_neighbour(
        (probe @ turn)[order_P], probe_label[order_P], (gallery @ turn)[order_M], label[order_M],
        Euclid(),
    )  # fmt: skip
    np.testing.assert_array_equal(order_M[again.row], found.row[order_P])
    assert again.as_json() == found.as_json()
    names = np.array([f"näme {number}" for number in rng.permutation(8)])
    named = nearest_neighbour(probe, names[probe_label], gallery, names[label], Euclid())
    np.testing.assert_array_equal(named.row, found.row)
    assert named.accuracy.value == found.accuracy.value
    assert named.chance == pytest.approx(found.chance)


def test_each_finds_itself():
    probe, label, *_ = people()
    found = nearest_neighbour(probe, label, probe, label, Euclid())
    assert found.row[:, 0].tolist() == list(range(len(probe)))
    assert (found.accuracy.value, found.accuracy.low, found.distance[:, 0].max()) == (1, 1, 0)


# --- exactness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("comparator", COMPARATORS)
def test_a_copy_is_found_at_distance_zero_exactly(comparator):
    """Among 400 pictures so much alike that the product of matrices cannot tell them apart."""
    torch.manual_seed(0)
    comparison = TorchComparison(make_comparator(comparator, 6))
    rng = np.random.default_rng(0)
    gallery = (100 + 0.01 * rng.normal(size=(400, 6))).astype(np.float32)
    label = np.arange(400)
    copied = np.array([399, 0, 217, 350, 17])
    found = nearest_neighbour(
        gallery[copied], label[copied], gallery, label, comparison, replicates=2
    )
    assert (found.distance[:, 0] == 0).all()
    assert (np.diff(found.distance, axis=1) >= 0).all()
    # Where others are at 0 too, the first of them is the answer.
    exact = comparison.pairwise(np.repeat(gallery[copied], 400, axis=0), np.tile(gallery, (5, 1)))
    first = [int(np.flatnonzero(row == 0)[0]) for row in exact.reshape(5, 400)]
    assert found.row[:, 0].tolist() == first
    if comparator != "network":  # Which may call different things the same.
        assert first == copied.tolist()


def test_a_copy_is_looked_at_however_the_matrix_rounds():
    gallery = line(*np.linspace(0.0, 0.3, 300))
    gallery[250] = gallery[150]
    found = nearest_neighbour(gallery[[150, 200]], [0, 0], gallery, np.arange(300), Rounding())
    assert found.row[:, 0].tolist() == [150, 200]
    assert found.distance[:, 0].tolist() == [0, 0]


def test_what_is_looked_at_again_is_ordered_by_its_exact_distance():
    gallery = line(1.4, 1.3, 0.9, 1.2, 1.1, 40)
    found = nearest_neighbour(line(0), [0], gallery, np.arange(6), Rounding())
    assert found.row.tolist() == [[2, 4, 3, 1, 0]]


def test_zero_and_minus_zero_are_equal():
    gallery = line(*np.linspace(-0.3, -0.1, 60), -0.0, 0.1)
    found = nearest_neighbour(line(0.0), [60], gallery, np.arange(62), Rounding())
    assert (found.row[0, 0], found.distance[0, 0]) == (60, 0)


# --- blocks -------------------------------------------------------------------------------------


def test_blocks_change_nothing(monkeypatch):
    probe, probe_label, gallery, label = people()
    whole = nearest_neighbour(probe, probe_label, gallery, label, Euclid())
    for num_bytes in (1, 48 * 90 * 7, 48 * 90 * 60):
        monkeypatch.setattr(pairs_module, "BLOCK_BYTES", num_bytes)
        calls = []
        found = nearest_neighbour(
            probe, probe_label, gallery, label, Euclid(),
            progress=lambda done, total, calls=calls: calls.append((done, total)),
        )  # fmt: skip
        np.testing.assert_array_equal(found.row, whole.row)
        np.testing.assert_array_equal(found.distance, whole.distance)
        assert found.as_json() == whole.as_json()
        assert len(calls) == {1: 60, 48 * 90 * 7: 9}.get(num_bytes, 1)
        assert calls[-1] == (60, 60)


def test_memory_is_bounded(monkeypatch):
    """All distances of these would be 60 MB."""
    monkeypatch.setattr(pairs_module, "BLOCK_BYTES", 2**21)
    rng = np.random.default_rng(0)
    probe, gallery = (rng.normal(size=(num, 2)).astype(np.float32) for num in (3000, 5000))
    zeros = np.zeros(5000, dtype=np.int64)
    comparison = TorchComparison(make_comparator("euclidean", 2))
    tracemalloc.start()
    try:
        nearest_neighbour(probe, zeros[:3000], gallery, zeros, comparison, replicates=2)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


# --- what cannot be -----------------------------------------------------------------------------


def test_nothing_to_ask_and_nothing_to_find():
    none = np.empty((0, 1), dtype=np.float32)
    for probe, gallery in ((none, line(1)), (line(1), none)):
        with pytest.raises(DataError, match="at least one of each"):
            nearest_neighbour(
                probe, np.zeros(len(probe)), gallery, np.zeros(len(gallery)), Euclid()
            )


def test_distances_that_are_no_numbers():
    for probe, gallery in ((line(np.nan), line(1, 2)), (line(1), line(1, np.nan))):
        with pytest.raises(DataError, match="NaN"):
            nearest_neighbour(probe, [0], gallery, [0, 1], Euclid())


def test_half_precision():
    probe, probe_label, gallery, label = people()
    half = nearest_neighbour(
        probe.astype(np.float16), probe_label, gallery.astype(np.float16), label, Euclid()
    )
    full = nearest_neighbour(
        probe.astype(np.float16).astype(np.float32), probe_label,
        gallery.astype(np.float16).astype(np.float32), label, Euclid(),
    )  # fmt: skip
    np.testing.assert_array_equal(half.row, full.row)
    assert half.distance.dtype == np.float32
