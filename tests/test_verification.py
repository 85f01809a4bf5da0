"""Pairs, verification, retrieval, episodes, given trials, and their intervals."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlens.data.table import pair_masks
from twinlens.errors import DataError
from twinlens.measure import pairs as pairs_module
from twinlens.measure.bootstrap import Estimate, estimates, interval, pair_weights, replicate
from twinlens.measure.calibration import Calibration
from twinlens.measure.error_rates import auc, best_accuracy, det_curve, eer, tar_at_far
from twinlens.measure.few_shot import one_shot, tied_credit
from twinlens.measure.pairs import PairSet, count_pairs, draw_pairs, pair_distances
from twinlens.measure.probability import Platt
from twinlens.measure.retrieval import retrieval
from twinlens.measure.trials import one_shot_trials, pair_trials
from twinlens.measure.verification import verification

CALIBRATION = Calibration(1.5, 1.25, 1.75, 0.01, 100, 1000, 10, Platt(2.0, -3.0), None, None)


class Euclidean:
    """The plain distance, by differences: equal vectors are at 0 exactly."""

    def matrix(self, a_ND, b_MD, /):
        return np.stack([self.pairwise(a, b_MD) for a in a_ND])

    def pairwise(self, a_ND, b_ND, /):
        return np.sqrt(((a_ND - b_ND) ** 2).sum(axis=-1))


class Fast(Euclidean):
    """By the product of matrices, for many pictures."""

    def matrix(self, a_ND, b_MD, /):
        square = (a_ND**2).sum(1)[:, None] + (b_MD**2).sum(1) - 2 * a_ND @ b_MD.T
        return np.maximum(square, 0)


def people(num=10, each=4, dim=3, spread=0.5, seed=0, forged_each=0):
    """Embeddings, labels and forged marks; forgeries lie near their identity. Rows are shuffled."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(num), each + forged_each)
    forged = np.tile(np.repeat([False, True], [each, forged_each]), num)
    emb = rng.normal(size=(num, dim))[label] + rng.normal(size=(len(label), dim)) * spread
    order = rng.permutation(len(label))
    return emb[order].astype(np.float32), label[order], forged[order]


def as_sets(pairs: PairSet):
    return [
        {frozenset((i, j)) for i, j in zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)}
        for pairs in (
            PairSet(pairs.a[pairs.same], pairs.b[pairs.same], pairs.same),
            PairSet(pairs.a[~pairs.same], pairs.b[~pairs.same], pairs.same),
        )
    ]


# --- which pairs ------------------------------------------------------------------------------

LABELS = st.lists(st.tuples(st.integers(-2, 4), st.booleans()), max_size=18)


@settings(max_examples=100, deadline=None)
@given(LABELS)
def test_all_pairs_are_those_of_the_loop(rows):
    label = np.array([row[0] for row in rows], dtype=np.int64)
    forged = np.array([row[1] for row in rows], dtype=bool)
    drawn = draw_pairs(label, forged, rng=np.random.default_rng(0))
    genuine, impostor = reference.all_pairs(label.tolist(), forged.tolist())
    assert as_sets(drawn) == [genuine, impostor]
    assert len(drawn) == len(genuine) + len(impostor)
    assert not forged[drawn.a].any()


@settings(max_examples=100, deadline=None)
@given(LABELS, st.integers(1, 12), st.integers(0, 5))
def test_samples_have_the_number_asked_for_and_forgeries_first_up_to_half(rows, num, seed):
    label = np.array([row[0] for row in rows], dtype=np.int64)
    forged = np.array([row[1] for row in rows], dtype=bool)
    drawn = draw_pairs(label, forged, num_pairs=num, rng=np.random.default_rng(seed))
    genuine, impostor = reference.all_pairs(label.tolist(), forged.tolist())
    found_genuine, found_impostor = as_sets(drawn)
    assert found_genuine <= genuine
    assert found_impostor <= impostor
    assert len(found_genuine) == min(num, len(genuine))
    assert len(found_impostor) == min(num, len(impostor))
    assert len(drawn) == len(found_genuine) + len(found_impostor)
    own = {pair for pair in impostor if len({label[i] for i in pair}) == 1}
    assert len(found_impostor & own) == min(len(own), max(num // 2, num - len(impostor - own)))


def test_forgeries_do_not_crowd_strangers_out():
    """9 own forgeries of each of 4 people, and 6 * 9 + 12 * 9 pairs of strangers."""
    label = np.repeat(np.arange(4), 6)
    forged = np.tile([False] * 3 + [True] * 3, 4)
    for num, expected in ((10, 5), (36, 18), (71, 35), (72, 36), (90, 36), (162, 36), (198, 36)):
        drawn = draw_pairs(label, forged, num_pairs=num, rng=np.random.default_rng(0))
        own = forged[drawn.b] & (label[drawn.a] == label[drawn.b])
        assert own.sum() == expected
        assert (~drawn.same).sum() == num
    few = label < 1
    few[6] = True  # One stranger: there are 6 pairs with it, and 9 own forgeries.
    label, forged = label[few], forged[few]
    drawn = draw_pairs(label, forged, num_pairs=14, rng=np.random.default_rng(0))
    assert (~drawn.same).sum() == 14
    assert (forged[drawn.b] & (label[drawn.a] == label[drawn.b])).sum() == 8


def test_every_pair_is_drawn_equally_often():
    label = np.array([0, 0, 0, 1, 1, 2])
    forged = np.zeros(6, dtype=bool)
    seen: Counter[frozenset[int]] = Counter()
    rng = np.random.default_rng(0)
    for _ in range(3000):
        for part in as_sets(draw_pairs(label, forged, num_pairs=2, rng=rng)):
            seen.update(part)
    genuine, impostor = reference.all_pairs(label, forged)
    assert set(seen) == genuine | impostor
    for kind in (genuine, impostor):
        expected = 3000 * 2 / len(kind)
        assert all(abs(seen[pair] - expected) < 5 * np.sqrt(expected) for pair in kind)


def test_a_sample_is_drawn_where_either_kind_is_many(monkeypatch):
    monkeypatch.setattr(pairs_module, "ALL_PAIRS_LIMIT", 30)
    monkeypatch.setattr(pairs_module, "SAMPLED_PAIRS", 20)
    for sizes, expected in (
        ((3, 3, 3), (9, 27)),  # all
        ((6, 6), (20, 20)),  # 30 genuine, 36 impostors
        ((9, 1), (20, 9)),  # 36 genuine, 9 impostors
    ):
        label = np.repeat(np.arange(len(sizes)), sizes)
        drawn = draw_pairs(label, np.zeros(len(label), bool), rng=np.random.default_rng(0))
        assert (drawn.same.sum(), (~drawn.same).sum()) == expected


def test_the_same_seed_draws_the_same_pairs():
    _, label, forged = people(30, 5, forged_each=2)
    first, again, other = (
        draw_pairs(label, forged, num_pairs=50, rng=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert first.a.tolist() == again.a.tolist()
    assert first.b.tolist() == again.b.tolist()
    assert as_sets(first) != as_sets(other)
    with pytest.raises(DataError, match="num_pairs must be at least 1, found 0"):
        draw_pairs(label, forged, num_pairs=0, rng=np.random.default_rng(0))


def test_distances_do_not_depend_on_the_blocks(monkeypatch):
    emb, label, forged = people()
    drawn = draw_pairs(label, forged, rng=np.random.default_rng(0))
    whole = pair_distances(emb, drawn, Euclidean())
    monkeypatch.setattr(pairs_module, "BLOCK_BYTES", 8 * emb.shape[1] * 7)
    assert pair_distances(emb, drawn, Euclidean()).tolist() == whole.tolist()
    expected = [np.linalg.norm(emb[i] - emb[j]) for i, j in zip(drawn.a, drawn.b, strict=True)]
    np.testing.assert_allclose(whole, expected, rtol=1e-6)


# --- intervals --------------------------------------------------------------------------------


def test_pair_weights_are_those_of_redrawn_identities():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (2, 30))
    for count in ([1, 1, 1, 1, 1], [2, 0, 3, 0, 0], [0, 0, 0, 0, 5]):
        copies = reference.redrawn_pairs(count, list(zip(range(30), a, b, strict=True)))
        expected = np.bincount(np.array(copies, dtype=np.int64), minlength=30)
        assert pair_weights(np.array(count), a, b).tolist() == expected.tolist()


def test_replicates_draw_as_many_clusters_as_there_are():
    seen = replicate(lambda count: count.astype(float), 4, seed=3, replicates=500)
    assert seen.shape == (500, 4)
    assert (seen.sum(axis=1) == 4).all()
    assert seen.mean(axis=0) == pytest.approx([1] * 4, abs=0.15)
    assert replicate(lambda count: count.astype(float), 1, seed=3).size == 0


def test_intervals_by_hand():
    assert interval(np.arange(41)) == (1, 39)  # 2.5 % of 40 steps is 1
    assert interval([3, np.nan, 5]) == (3, 5)
    assert interval([3, np.nan, np.nan, np.nan]) == (None, None)
    assert interval([1]) == (None, None)
    assert interval([-np.inf, 1, 2]) == (-np.inf, 2)
    found = estimates([1.0, np.nan], np.array([[0.0, 1.0], [2.0, 1.0]]))
    assert found == [Estimate(1.0, 0.0, 2.0), Estimate(None)]
    assert Estimate(-np.inf, None, np.inf).as_json() == {"value": None, "low": None, "high": None}
    assert Estimate(0.5, 0.25, 1.0).as_json() == {"value": 0.5, "low": 0.25, "high": 1.0}


def study(seed: int, num: int):
    """Some identities are hard: their pictures lie far apart."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(num), 5)
    spread = rng.choice([0.2, 1.6], num)[label][:, None]
    emb = rng.normal(size=(num, 4))[label] + rng.normal(size=(len(label), 4)) * spread
    return emb.astype(np.float32), label, np.zeros(len(label), dtype=bool)


@pytest.mark.slow
def test_intervals_over_identities_hold_the_truth_and_those_over_pairs_do_not():
    truth = verification(*study(1, 300), Fast(), calibrated=None, replicates=0).auc.value
    held = np.zeros(2)
    for seed in range(2, 152):
        how = {"calibrated": None, "replicates": 100, "seed": seed}
        found = verification(*study(seed, 30), Fast(), num_pairs=300, **how)
        by_pairs = pair_trials(found.distance, found.pairs.same, **how)
        held += [figure.low <= truth <= figure.high for figure in (found.auc, by_pairs.auc)]
    over_identities, over_pairs = held / 150
    assert over_identities >= 0.88
    assert over_pairs < 0.8


# --- verification -----------------------------------------------------------------------------


def test_figures_are_those_of_the_metrics():
    emb, label, forged = people(forged_each=2)
    found = verification(emb, label, forged, Euclidean(), calibrated=CALIBRATION, replicates=50)
    genuine, impostor = reference.all_pairs(label, forged)
    assert (found.num_genuine, found.num_impostor) == (len(genuine), len(impostor))
    assert count_pairs(label, forged) == (len(genuine), len(impostor))
    near = found.distance[found.pairs.same]
    far = found.distance[~found.pairs.same]
    curve = det_curve(near, far)
    assert found.auc.value == auc(curve)
    assert found.eer.value == eer(curve)
    assert (found.accuracy.value, found.threshold.value) == best_accuracy(curve)
    assert found.tar_at_far["0.1"].value == pytest.approx(tar_at_far(near, far, 0.1))
    assert found.tar_at_far["0.01"].value == pytest.approx(tar_at_far(near, far, 0.01))
    rates = reference.error_rates(near, far, 1.5)
    at = found.calibrated
    assert (at.far.value, at.frr.value) == pytest.approx(rates)
    assert at.accuracy.value == pytest.approx(1 - sum(rates) / 2)
    assert at.threshold == Estimate(1.5, 1.25, 1.75)
    for figure in (found.auc, found.eer, found.accuracy, found.tar_at_far["0.1"], at.far):
        assert figure.low <= figure.value <= figure.high
        assert figure.low < figure.high


def test_skilled_forgeries_are_judged_on_their_own():
    emb, label, forged = people(forged_each=2)
    found = verification(emb, label, forged, Euclidean(), calibrated=CALIBRATION, replicates=50)
    a, b = found.pairs.a, found.pairs.b
    own = forged[b] & (label[a] == label[b])
    curve = det_curve(found.distance[found.pairs.same], found.distance[own])
    assert found.skilled.num_impostor == own.sum() == 10 * 4 * 2
    assert found.skilled.auc.value == auc(curve)
    assert found.skilled.eer.value == eer(curve)
    assert found.skilled.far.value == np.mean(found.distance[own] <= 1.5)
    assert found.skilled.auc.value < found.auc.value  # forgeries lie nearer than strangers
    plain = verification(*people(), Euclidean(), calibrated=None, replicates=2)
    assert plain.skilled is None
    assert plain.calibrated is None


def test_replicates_are_measurements_of_redrawn_identities():
    emb, label, forged = people(6, 3, forged_each=1, spread=0.8)
    found = verification(emb, label, forged, Euclidean(), calibrated=None, replicates=40, seed=7)
    a, b, same = found.pairs.a, found.pairs.b, found.pairs.same
    pairs = list(zip(range(len(same)), label[a], label[b], strict=True))

    def slowly(count):
        drawn = np.array(reference.redrawn_pairs(count, pairs))
        near, far = found.distance[drawn[same[drawn]]], found.distance[drawn[~same[drawn]]]
        return np.array([eer(det_curve(near, far))])

    expected = estimates([found.eer.value], replicate(slowly, 6, seed=7, replicates=40))[0]
    assert (found.eer.low, found.eer.high) == pytest.approx((expected.low, expected.high))


def test_its_json_is_plain_and_complete():
    emb, label, forged = people(forged_each=1)
    found = verification(emb, label, forged, Euclidean(), calibrated=CALIBRATION, replicates=5)
    parsed = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert list(parsed) == [
        "auc", "eer", "accuracy", "threshold", "tar_at_far", "calibrated", "skilled",
        "num_genuine", "num_impostor", "num_identities",
    ]  # fmt: skip
    assert list(parsed["tar_at_far"]) == ["0.1", "0.01", "0.001"]
    assert list(parsed["calibrated"]) == ["threshold", "far", "frr", "accuracy"]
    assert list(parsed["skilled"]) == ["auc", "eer", "far", "num_impostor"]
    assert set(parsed["auc"]) == {"value", "low", "high"}
    assert parsed["calibrated"]["threshold"] == {"value": 1.5, "low": 1.25, "high": 1.75}


def test_far_below_one_in_the_number_of_pairs_is_refused():
    emb, label, forged = people(4, 3)  # 54 impostor pairs
    found = verification(emb, label, forged, Euclidean(), calibrated=None, replicates=5)
    assert found.tar_at_far["0.1"].value is not None
    assert found.tar_at_far["0.01"] == Estimate(None)
    assert found.tar_at_far["0.001"] == Estimate(None)


def test_one_identity_with_forgeries_has_figures_without_intervals():
    emb, label, forged = people(1, 4, forged_each=3)
    found = verification(emb, label, forged, Euclidean(), calibrated=None)
    assert found.auc.value is not None
    assert (found.auc.low, found.auc.high) == (None, None)
    assert found.num_identities == 1


@pytest.mark.parametrize("num", [0, 1])
def test_nothing_to_compare_is_refused(num):
    with pytest.raises(DataError, match="0 impostor pairs"):
        verification(*people(num, 3), Euclidean(), calibrated=None)
    with pytest.raises(DataError, match="0 genuine"):
        verification(*people(3, 1), Euclidean(), calibrated=None)


def test_collapsed_embeddings_are_chance():
    emb, label, forged = people()
    found = verification(emb * 0, label, forged, Euclidean(), calibrated=CALIBRATION, replicates=9)
    assert (found.auc.value, found.eer.value, found.accuracy.value) == (0.5, 0.5, 0.5)
    assert found.tar_at_far["0.1"].value == 0
    assert found.threshold.as_json()["value"] is None
    assert found.calibrated.far.value == 1
    emb[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        verification(emb, label, forged, Euclidean(), calibrated=None)


def test_new_names_new_order_and_a_turned_space_change_nothing():
    emb, label, forged = people(forged_each=1)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    order = np.random.default_rng(1).permutation(len(label))
    other = ((emb @ turn).astype(np.float32)[order], label[order] * 7 - 3, forged[order])
    for measure in (
        lambda *data: verification(*data, Euclidean(), calibrated=None, replicates=0).auc.value,
        lambda *data: verification(*data, Euclidean(), calibrated=None, replicates=0).eer.value,
        lambda *data: retrieval(*data, Euclidean(), replicates=0).map_at_r.value,
        lambda *data: retrieval(*data, Euclidean(), replicates=0).recall_at[1].value,
    ):
        assert measure(*other) == pytest.approx(measure(emb, label, forged))


# --- retrieval --------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [0, 1, 6])  # 0: many ties
@pytest.mark.parametrize("k", [1, 3, 100])
def test_retrieval_agrees_with_the_loop(decimals, k, monkeypatch):
    emb, label, forged = people(7, 4, spread=0.8, forged_each=1)
    emb, label, forged = emb[3:].round(decimals), label[3:], forged[3:]
    label[label == 0] = np.arange((label == 0).sum()) + 50  # singletons
    recall, precision = reference.leave_one_out(Euclidean().matrix(emb, emb), label, forged, k)
    monkeypatch.setattr(pairs_module, "BLOCK_BYTES", 48 * len(label) * 5)
    seen = []
    found = retrieval(
        emb, label, forged, Euclidean(), ks=(k,), replicates=3,
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
    found = retrieval(emb, label, forged, Euclidean(), ks=(1, 2), replicates=0)
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
    emb, label, forged = people()
    collapsed = retrieval(emb * 0, label, forged, Euclidean(), replicates=0)
    assert collapsed.recall_at[10].value == 0
    assert collapsed.map_at_r.value == 0


@pytest.mark.parametrize(
    ("right", "wrong", "recall"),
    [(0.0, -0.0, 0), (-0.0, 0.0, 0), (-2, -1, 1), (-1, -2, 0), (-1, 1, 1), (1, -1, 0), (1, 2, 1)],
)
def test_distances_of_either_sign_are_ranked(right, wrong, recall):
    table = np.array([[9, right, wrong], [right, 9, wrong], [wrong, wrong, 9]], np.float32)

    class Table(Euclidean):
        """Embeddings are row numbers."""

        def matrix(self, a_ND, b_MD, /):
            return table[np.ix_(a_ND[:, 0].astype(int), b_MD[:, 0].astype(int))]

    rows = np.arange(3, dtype=np.float32)[:, None]
    found = retrieval(rows, [0, 0, 1], [False] * 3, Table(), ks=(1,), replicates=0)
    assert found.recall_at[1].value == recall


def test_nothing_to_retrieve():
    emb, label, forged = people(5, 1)
    assert retrieval(emb, label, forged, Euclidean()) is None
    assert retrieval(emb[:0], label[:0], forged[:0], Euclidean()) is None
    emb, label, forged = people()
    emb[3, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        retrieval(emb, label, forged, Euclidean())


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
    found = retrieval(emb, label, np.zeros(90, bool), Euclidean(), replicates=0)
    assert found.recall_at[1].value == pytest.approx(expected["precision_at_1"])
    assert found.map_at_r.value == pytest.approx(expected["mean_average_precision_at_r"])


def test_probes_are_weighted_by_their_identity():
    # Identity 0 always fails, the others never do: the share of failures is the share of 0.
    label = np.repeat(np.arange(4), 2)
    emb = np.array([[-50], [150], [0], [0], [10], [10], [100], [100]], np.float32)
    found = retrieval(emb, label, np.zeros(8, bool), Euclidean(), ks=(1, 2), seed=1, replicates=30)
    expected = interval(replicate(lambda count: 1 - count[:1] / 4, 4, seed=1, replicates=30)[:, 0])
    assert found.recall_at[1].value == 0.75
    assert (found.recall_at[1].low, found.recall_at[1].high) == expected


# --- episodes ---------------------------------------------------------------------------------


def test_episodes_of_a_perfect_and_a_collapsed_model():
    emb, label, forged = people(12, 4, spread=0, forged_each=2)
    found = one_shot(emb, label, forged, Euclidean(), episodes=50, replicates=10)
    assert (found.key, found.accuracy) == ("12-way-1-shot", Estimate(1.0, 1.0, 1.0))
    collapsed = one_shot(emb * 0, label, forged, Euclidean(), way=5, shot=3, episodes=50)
    assert collapsed.key == "5-way-3-shot"
    assert collapsed.accuracy.value == pytest.approx(1 / 5)


def test_the_probe_is_never_shown_and_forgeries_take_no_part():
    _, label, forged = people(6, 3, forged_each=2)
    asked = []

    class Spy(Euclidean):
        """Embeddings are row numbers here, so that each pair can be looked at."""

        def pairwise(self, a_ND, b_ND, /):
            asked.append((a_ND[:, 0].astype(int), b_ND[:, 0].astype(int)))
            return np.abs(label[asked[-1][0]] - label[asked[-1][1]]).astype(np.float32)

    rows = np.arange(len(label), dtype=np.float32)[:, None]
    found = one_shot(rows, label, forged, Spy(), way=4, shot=2, episodes=200)
    assert found.accuracy.value == 1
    probe, shown = (np.concatenate(part).reshape(200, 4, 2) for part in zip(*asked, strict=True))
    assert (probe == probe[:, :1, :1]).all()
    assert not forged[probe].any()
    assert not forged[shown].any()
    assert (probe != shown).all()
    assert (shown[..., 0] != shown[..., 1]).all()
    assert (label[shown[..., 0]] == label[shown[..., 1]]).all()
    assert all(len(set(row)) == 4 for row in label[shown[..., 0]])
    assert set(label[probe[:, 0, 0]]) == set(range(6))


def test_more_shots_and_fewer_ways_are_easier():
    data = people(30, 6, spread=0.7)
    by = {
        (way, shot): one_shot(
            *data, Euclidean(), way=way, shot=shot, episodes=400, replicates=20
        ).accuracy
        for way, shot in ((20, 1), (20, 5), (5, 1))
    }
    assert by[20, 1].value < by[20, 5].value
    assert by[20, 1].value < by[5, 1].value
    assert by[20, 1].low < by[20, 1].value < by[20, 1].high


def test_ways_are_lowered_to_the_identities_that_have_enough():
    emb, label, forged = people(6, 3)
    assert one_shot(emb, label, forged, Euclidean(), shot=2, episodes=9).key == "6-way-2-shot"
    assert one_shot(emb, label, forged, Euclidean(), shot=3, episodes=9) is None
    assert one_shot(*people(1, 9), Euclidean()) is None
    assert one_shot(emb[:0], label[:0], forged[:0], Euclidean()) is None
    for wrong in ({"way": 1}, {"shot": 0}, {"episodes": 0}):
        with pytest.raises(DataError, match="ways"):
            one_shot(emb, label, forged, Euclidean(), **wrong)


def test_ties_share_the_credit():
    dist = np.array([[1, 1, 2], [0, 1, 2], [3, 1, 2], [1, 1, 1.0]])
    right = np.array([[True, False, False]] * 3 + [[True, True, False]])
    assert tied_credit(dist, right) == pytest.approx([0.5, 1, 0, 2 / 3])
    with pytest.raises(DataError, match="NaN"):
        tied_credit(np.array([[np.nan, 1]]), np.array([[True, False]]))


# --- given trials -----------------------------------------------------------------------------


def test_pair_trials_by_hand():
    distance, same = [0.5, 1.0, 2.0, 1.2, 3.0, 1.5], [1, 1, 1, 0, 0, 0]
    found = pair_trials(distance, same, calibrated=CALIBRATION, replicates=50)
    assert found.accuracy.value == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found.auc.value == pytest.approx(7 / 9)
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    assert set(found.as_json()) == {"accuracy", "auc", "eer", "num_genuine", "num_impostor"}
    # Redrawn trials of one kind have no balanced accuracy; all others have this one.
    half = pair_trials([1, 1, 1, 1], [1, 1, 0, 0], calibrated=CALIBRATION, replicates=50)
    assert half.accuracy == Estimate(0.5, 0.5, 0.5)
    without = pair_trials(distance, same, calibrated=None, replicates=2)
    assert without.accuracy is None
    assert "accuracy" not in without.as_json()


def test_pair_trials_of_one_kind():
    found = pair_trials([1, 2, 1.4, 1.1], [1] * 4, calibrated=CALIBRATION, replicates=9)
    assert found.accuracy.value == 0.75
    assert (found.auc, found.eer) == (Estimate(None), Estimate(None))
    assert (found.num_genuine, found.num_impostor) == (4, 0)
    for wrong in ([], [np.nan], [np.inf]):
        with pytest.raises(DataError, match="finite"):
            pair_trials(wrong, [1] * len(wrong), calibrated=None)


def test_one_shot_trials_by_hand():
    trial = ["b", "a", "a", "b", "c", "c", "c"]
    distance = [1.0, 3.0, 2.0, 1.0, 5.0, 4.0, 6.0]
    same = [1, 0, 1, 0, 1, 0, 0]
    found = one_shot_trials(trial, distance, same, replicates=40)
    # a is right, b ties with one wrong, c is wrong.
    assert found.accuracy.value == pytest.approx((1 + 0.5 + 0) / 3)
    assert found.num_trials == 3
    assert found.as_json()["num_trials"] == 3
    # Two clusters: a and b (3/4 right), and c (0 right).
    runs = [0, 0, 0, 0, 1, 1, 1]
    clustered = one_shot_trials(trial, distance, same, cluster=runs, replicates=40)
    assert (clustered.accuracy.low, clustered.accuracy.high) == (0, 0.75)
    with pytest.raises(DataError, match="two clusters"):
        one_shot_trials(trial, distance, same, cluster=[0, 0, 1, 0, 1, 1, 1])
    with pytest.raises(DataError, match=r"1 of 3 trials have no candidate.*trial c"):
        one_shot_trials(trial, distance, [1, 0, 1, 0, 0, 0, 0])
    with pytest.raises(DataError, match="1 of them without"):
        one_shot_trials(["a", "a"], [1, np.nan], [1, 0])
    with pytest.raises(DataError, match="0 candidates"):
        one_shot_trials([], [], [])


def test_trials_do_not_depend_on_their_order():
    rng = np.random.default_rng(0)
    trial = np.repeat(np.arange(25), 20)
    distance, same = rng.random(500), np.tile(np.arange(20) == 3, 25)
    order = rng.permutation(500)
    shuffled = one_shot_trials(trial[order], distance[order], same[order])
    assert shuffled == one_shot_trials(trial, distance, same)
    expected = np.mean(distance.reshape(25, 20).argmin(axis=1) == 3)
    assert shuffled.accuracy.value == pytest.approx(expected)


# --- the whole --------------------------------------------------------------------------------


def test_everything_repeats_from_its_seed():
    data = people(15, 4, forged_each=1)
    for measure in (
        lambda seed: verification(
            *data, Euclidean(), calibrated=None, num_pairs=40, seed=seed, replicates=20
        ).as_json(),
        lambda seed: retrieval(*data, Euclidean(), seed=seed, replicates=20),
        lambda seed: one_shot(*data, Euclidean(), episodes=30, seed=seed, replicates=20),
    ):
        assert measure(3) == measure(3)
        assert measure(3) != measure(4)


def test_pairs_are_what_pair_masks_says():
    _, label, forged = people(forged_each=2)
    drawn = draw_pairs(label, forged, num_pairs=70, rng=np.random.default_rng(0))
    genuine, impostor = pair_masks(label[drawn.a], forged[drawn.a], label[drawn.b], forged[drawn.b])
    assert (drawn.same == genuine).all()
    assert (~drawn.same == impostor).all()


def test_memory_stays_bounded_on_many_pictures():
    # All pairs would be 400 million: 1.6 GB of distances.
    num, each = 1000, 20
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(num), each)
    emb = (rng.normal(size=(num, 32))[label] + rng.normal(size=(num * each, 32))).astype(np.float32)
    forged = np.zeros(num * each, dtype=bool)
    tracemalloc.start()
    try:
        found = verification(emb, label, forged, Fast(), calibrated=None, replicates=2)
        after_verification = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        # 2,000 probes are enough of the work; the gallery is whole.
        label[2000:] = np.arange(num * each - 2000) + num
        searched = retrieval(emb, label, forged, Fast(), replicates=2)
        after_retrieval = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.num_genuine, found.num_impostor) == (100_000, 100_000)
    assert searched.num_probes == 2000
    assert after_verification < 150 * 2**20
    assert after_retrieval < 150 * 2**20
