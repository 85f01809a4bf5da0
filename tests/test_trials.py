"""Given lists of pairs and of one-shot choices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from twinlens.errors import DataError
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.calibration import Calibration
from twinlens.measure.probability import Platt
from twinlens.measure.trials import one_shot_trials, pair_trials

CALIBRATION = Calibration(1.5, 1.25, 1.75, 0.01, 100, 1000, 10, Platt(2.0, -3.0), None, None)


def test_pair_trials_by_hand():
    distance, same = [0.5, 1.0, 2.0, 1.2, 3.0, 1.5], [1, 1, 1, 0, 0, 0]
    found = pair_trials(distance, same, calibrated=CALIBRATION, replicates=50)
    assert found.accuracy.value == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found.auc.value == pytest.approx(7 / 9)
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    assert list(found.as_json()) == [
        "accuracy", "far", "frr", "auc", "eer", "num_genuine", "num_impostor", "reliability",
    ]  # fmt: skip
    # Redrawn trials of one kind have no balanced accuracy; all others have this one.
    half = pair_trials([1, 1, 1, 1], [1, 1, 0, 0], calibrated=CALIBRATION, replicates=50)
    assert half.accuracy == Estimate(0.5, 0.5, 0.5)
    without = pair_trials(distance, same, calibrated=None, replicates=2)
    assert without.accuracy is None
    assert "accuracy" not in without.as_json()
    unlabelled = replace(CALIBRATION, num_genuine=0, num_identities=0, curve=None)
    bare = pair_trials(distance, same, calibrated=unlabelled, replicates=2)
    assert bare.accuracy.value == found.accuracy.value
    assert bare.reliability is None


def test_pair_trials_of_one_kind():
    found = pair_trials([1, 2, 1.4, 1.1], [1] * 4, calibrated=CALIBRATION, replicates=9)
    assert found.accuracy.value == 0.75
    assert (found.auc, found.eer) == (Estimate(None), Estimate(None))
    assert (found.num_genuine, found.num_impostor) == (4, 0)
    for wrong in ([], [np.nan], [np.inf]):
        with pytest.raises(DataError, match="finite"):
            pair_trials(wrong, [1] * len(wrong), calibrated=None)


def test_pairs_of_identities_are_redrawn_by_identity():
    """As `measure.verification` does: a pair across identities counts c_i * c_j times."""
    rng = np.random.default_rng(0)
    label_2N = rng.integers(0, 8, (2, 300))
    same = label_2N[0] == label_2N[1]
    spread = rng.normal(0, 0.3, 8)[label_2N].sum(axis=0)  # Odd identities, in all their pairs.
    distance = np.where(same, 1.2, 1.8) + spread + rng.normal(0, 0.1, 300)
    by_identity = pair_trials(distance, same, calibrated=CALIBRATION, cluster=label_2N)
    by_pair = pair_trials(distance, same, calibrated=CALIBRATION)
    assert by_identity.far.value == by_pair.far.value
    assert by_identity.far.high - by_identity.far.low > 2 * (by_pair.far.high - by_pair.far.low)
    cluster = np.arange(300) // 3
    once, twice = (
        pair_trials(distance, same, calibrated=CALIBRATION, cluster=groups)
        for groups in (cluster, np.stack([cluster, cluster]))
    )
    assert once == twice
    # No false accept in 10 pairs of 20 identities: at most 3 / 10.
    far = pair_trials([9.0] * 10, [0] * 10, calibrated=CALIBRATION,
                      cluster=np.arange(20).reshape(2, 10), replicates=9).far  # fmt: skip
    assert far == Estimate(0.0, 0.0, 0.3)


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
