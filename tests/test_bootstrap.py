"""Bootstrap intervals over identities."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from twinlens.measure.bootstrap import Estimate, estimates, interval, pair_weights, replicate
from twinlens.measure.distances import EuclideanComparison
from twinlens.measure.trials import pair_trials
from twinlens.measure.verification import verification


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
    truth = verification(
        *study(1, 300), EuclideanComparison("euclidean"), calibrated=None, replicates=0
    ).auc.value
    held = np.zeros(2)
    for seed in range(2, 152):
        how = {"calibrated": None, "replicates": 100, "seed": seed}
        found = verification(
            *study(seed, 30), EuclideanComparison("euclidean"), num_pairs=300, **how
        )
        by_pairs = pair_trials(found.distance, found.pairs.same, **how)
        held += [figure.low <= truth <= figure.high for figure in (found.auc, by_pairs.auc)]
    over_identities, over_pairs = held / 150
    assert over_identities >= 0.88
    assert over_pairs < 0.8
