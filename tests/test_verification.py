"""Verification: error rates of genuine and impostor pairs, seeds, and memory."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import reference
from made_up_people import Euclid, people_with_forgeries

from twinlens.errors import DataError
from twinlens.measure.bootstrap import Estimate, estimates, replicate
from twinlens.measure.calibration import Calibration
from twinlens.measure.error_rates import auc, best_accuracy, det_curve, eer, tar_at_far
from twinlens.measure.few_shot import one_shot
from twinlens.measure.pairs import count_pairs
from twinlens.measure.probability import Platt
from twinlens.measure.retrieval import retrieval
from twinlens.measure.verification import verification

CALIBRATION = Calibration(1.5, 1.25, 1.75, 0.01, 100, 1000, 10, Platt(2.0, -3.0), None, None)


class Fast:
    """Squared distances by a matrix product, for many pictures."""

    def matrix(self, a_ND, b_MD, /):
        square = (a_ND**2).sum(1)[:, None] + (b_MD**2).sum(1) - 2 * a_ND @ b_MD.T
        return np.maximum(square, 0)

    def pairwise(self, a_ND, b_ND, /):
        return ((a_ND - b_ND) ** 2).sum(axis=1)


def test_figures_are_those_of_the_metrics():
    emb, label, forged = people_with_forgeries(forged_each=2)
    found = verification(emb, label, forged, Euclid(), calibrated=CALIBRATION, replicates=50)
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
    emb, label, forged = people_with_forgeries(forged_each=2)
    found = verification(emb, label, forged, Euclid(), calibrated=CALIBRATION, replicates=50)
    a, b = found.pairs.a, found.pairs.b
    own = forged[b] & (label[a] == label[b])
    curve = det_curve(found.distance[found.pairs.same], found.distance[own])
    assert found.skilled.num_impostor == own.sum() == 10 * 4 * 2
    assert found.skilled.auc.value == auc(curve)
    assert found.skilled.eer.value == eer(curve)
    assert found.skilled.far.value == np.mean(found.distance[own] <= 1.5)
    assert found.skilled.auc.value < found.auc.value  # forgeries lie nearer than strangers
    plain = verification(*people_with_forgeries(), Euclid(), calibrated=None, replicates=2)
    assert plain.skilled is None
    assert plain.calibrated is None


def test_replicates_are_measurements_of_redrawn_identities():
    emb, label, forged = people_with_forgeries(6, 3, forged_each=1, spread=0.8)
    found = verification(emb, label, forged, Euclid(), calibrated=None, replicates=40, seed=7)
    a, b, same = found.pairs.a, found.pairs.b, found.pairs.same
    pairs = list(zip(range(len(same)), label[a], label[b], strict=True))

    def slowly(count):
        drawn = np.array(reference.redrawn_pairs(count, pairs))
        near, far = found.distance[drawn[same[drawn]]], found.distance[drawn[~same[drawn]]]
        return np.array([eer(det_curve(near, far))])

    expected = estimates([found.eer.value], replicate(slowly, 6, seed=7, replicates=40))[0]
    assert (found.eer.low, found.eer.high) == pytest.approx((expected.low, expected.high))


def test_its_json_is_plain_and_complete():
    emb, label, forged = people_with_forgeries(forged_each=1)
    found = verification(emb, label, forged, Euclid(), calibrated=CALIBRATION, replicates=5)
    parsed = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert list(parsed) == [
        "auc", "eer", "accuracy", "threshold", "tar_at_far", "calibrated", "skilled",
        "reliability", "num_genuine", "num_impostor", "num_identities",
    ]  # fmt: skip
    assert list(parsed["tar_at_far"]) == ["0.1", "0.01", "0.001"]
    assert list(parsed["calibrated"]) == ["threshold", "far", "frr", "accuracy"]
    assert list(parsed["skilled"]) == ["auc", "eer", "far", "num_impostor"]
    assert set(parsed["auc"]) == {"value", "low", "high"}
    assert parsed["calibrated"]["threshold"] == {"value": 1.5, "low": 1.25, "high": 1.75}


def test_far_below_one_in_the_number_of_pairs_is_refused():
    emb, label, forged = people_with_forgeries(4, 3)  # 54 impostor pairs
    found = verification(emb, label, forged, Euclid(), calibrated=None, replicates=5)
    assert found.tar_at_far["0.1"].value is not None
    assert found.tar_at_far["0.01"] == Estimate(None)
    assert found.tar_at_far["0.001"] == Estimate(None)


def test_one_identity_with_forgeries_has_figures_without_intervals():
    emb, label, forged = people_with_forgeries(1, 4, forged_each=3)
    found = verification(emb, label, forged, Euclid(), calibrated=None)
    assert found.auc.value is not None
    assert (found.auc.low, found.auc.high) == (None, None)
    assert found.num_identities == 1


@pytest.mark.parametrize("num", [0, 1])
def test_nothing_to_compare_is_refused(num):
    with pytest.raises(DataError, match="0 impostor pairs"):
        verification(*people_with_forgeries(num, 3), Euclid(), calibrated=None)
    with pytest.raises(DataError, match="0 genuine"):
        verification(*people_with_forgeries(3, 1), Euclid(), calibrated=None)


def test_collapsed_embeddings_are_chance():
    emb, label, forged = people_with_forgeries()
    found = verification(emb * 0, label, forged, Euclid(), calibrated=CALIBRATION, replicates=9)
    assert (found.auc.value, found.eer.value, found.accuracy.value) == (0.5, 0.5, 0.5)
    assert found.tar_at_far["0.1"].value == 0
    assert found.threshold.as_json()["value"] is None
    assert found.calibrated.far.value == 1
    emb[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        verification(emb, label, forged, Euclid(), calibrated=None)


def test_new_names_new_order_and_a_turned_space_change_nothing():
    emb, label, forged = people_with_forgeries(forged_each=1)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    order = np.random.default_rng(1).permutation(len(label))
    other = ((emb @ turn).astype(np.float32)[order], label[order] * 7 - 3, forged[order])
    for measure in (
        lambda *data: verification(*data, Euclid(), calibrated=None, replicates=0).auc.value,
        lambda *data: verification(*data, Euclid(), calibrated=None, replicates=0).eer.value,
        lambda *data: retrieval(*data, Euclid(), replicates=0).map_at_r.value,
        lambda *data: retrieval(*data, Euclid(), replicates=0).recall_at[1].value,
    ):
        assert measure(*other) == pytest.approx(measure(emb, label, forged))


def test_everything_repeats_from_its_seed():
    data = people_with_forgeries(15, 4, forged_each=1)
    for measure in (
        lambda seed: verification(
            *data, Euclid(), calibrated=None, num_pairs=40, seed=seed, replicates=20
        ).as_json(),
        lambda seed: retrieval(*data, Euclid(), seed=seed, replicates=20),
        lambda seed: one_shot(*data, Euclid(), episodes=30, seed=seed, replicates=20),
    ):
        assert measure(3) == measure(3)
        assert measure(3) != measure(4)


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
