"""Calibration error, Cllr and reliability curve, and the rule of three."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss

from twinlens.errors import ConfigError
from twinlens.measure.bootstrap import Estimate, rule_of_three
from twinlens.measure.calibration import Calibration
from twinlens.measure.error_rates import det_curve
from twinlens.measure.probability import Platt
from twinlens.measure.reliability import NUM_BINS, ReliabilityPairs, min_cllr
from twinlens.measure.trials import pair_trials

RNG = np.random.default_rng(0)
# Normal distances one apart on either side of 6 have the log-likelihood ratio 12 - 2 d.
GENUINE, IMPOSTOR = RNG.normal(5, 1, 4000), RNG.normal(7, 1, 6000)


def calibration(a: float = 2.0, b: float = -12.0) -> Calibration:
    return Calibration(6.0, None, None, 0.16, 4000, 6000, 50, Platt(a, b), None, None)


def figures(calibrated: Calibration, prior: float = 0.5) -> tuple[ReliabilityPairs, np.ndarray]:
    pairs = ReliabilityPairs.of(GENUINE, IMPOSTOR, calibrated, prior)
    weights = np.ones(len(GENUINE), int), np.ones(len(IMPOSTOR), int)
    return pairs, pairs.statistics(*weights, det_curve(GENUINE, IMPOSTOR))


def test_cllr_is_the_log_loss_in_bits_at_even_odds() -> None:
    known = calibration()
    _, (_, cllr, lowest, *_) = figures(known)
    distance, same = np.concatenate([GENUINE, IMPOSTOR]), np.repeat([1, 0], [4000, 6000])
    weight = np.where(same, 1 / 4000, 1 / 6000)
    probability = known.probability(distance)
    expected = log_loss(same, probability, sample_weight=weight) / np.log(2)
    assert cllr == pytest.approx(expected)
    pav = IsotonicRegression(increasing=False).fit(distance, same, sample_weight=weight)
    bits = log_loss(same, pav.predict(distance), sample_weight=weight) / np.log(2)
    assert lowest == pytest.approx(bits, abs=1e-3)
    assert lowest < cllr < lowest + 0.01  # The true curve is calibrated.


@pytest.mark.parametrize("prior", [0.5, 0.02])
def test_the_true_curve_is_reliable_at_every_prior(prior: float) -> None:
    pairs, (ece, *_, ) = figures(calibration(), prior)  # fmt: skip
    assert ece < 0.01
    assert pairs.num_bins == NUM_BINS


def test_a_wrong_curve_has_a_calibration_error_and_the_same_separation() -> None:
    right, wrong = (figures(calibration(*curve))[1] for curve in ((2.0, -12.0), (6.0, -39.0)))
    assert wrong[0] > 0.1 > right[0]
    assert wrong[1] > right[1] + 0.1
    assert wrong[2] == right[2]


def test_bins_hold_equal_weight_and_equal_probabilities_together() -> None:
    pairs, (*_, ) = figures(calibration(), 0.2)  # fmt: skip
    weight = 0.2 * np.bincount(pairs.bin_genuine) / 4000
    weight += 0.8 * np.bincount(pairs.bin_impostor) / 6000
    np.testing.assert_allclose(weight, 1 / NUM_BINS, atol=1e-3)
    level = ReliabilityPairs.of(GENUINE, IMPOSTOR, calibration(0.0, 0.0), 0.5)
    assert level.num_bins == 1
    with pytest.raises(ConfigError, match=r"must be in \(0, 1\), found 1\.0"):
        ReliabilityPairs.of(GENUINE, IMPOSTOR, calibration(), 1.0)


def test_min_cllr_is_0_for_separated_pairs_and_1_for_equal_ones() -> None:
    assert min_cllr(det_curve([0.1, 0.2], [0.3, 0.4])) == 0
    assert min_cllr(det_curve([0.1, 0.2], [0.1, 0.2])) == 1
    assert min_cllr(det_curve([0.3, 0.4], [0.1, 0.2])) == 1


def test_trials_have_error_rates_and_reliability_at_the_threshold() -> None:
    distance = np.concatenate([GENUINE[:300], IMPOSTOR[:300]])
    same = np.arange(600) < 300
    result = pair_trials(distance, same, calibrated=calibration(), prior=0.1, replicates=20)
    assert result.far is not None
    assert result.frr is not None
    assert result.accuracy is not None
    assert result.reliability is not None
    assert result.far.value == np.mean(IMPOSTOR[:300] <= 6)
    assert result.frr.value == np.mean(GENUINE[:300] > 6)
    assert result.accuracy.value == pytest.approx(1 - (result.far.value + result.frr.value) / 2)
    assert result.reliability.prior == 0.1
    for figure in (result.reliability.ece, result.reliability.cllr, result.reliability.min_cllr):
        assert figure.low <= figure.value <= figure.high
    points = [point.probability for point in result.reliability.curve]
    assert points == sorted(points)
    one_kind = pair_trials(distance, [True] * 600, calibrated=calibration(), replicates=2)
    assert one_kind.far is not None
    assert one_kind.far.value is None
    assert one_kind.reliability is None


def test_no_errors_leave_three_in_n() -> None:
    assert rule_of_three(Estimate(0.0, 0.0, 0.0), 300) == Estimate(0.0, 0.0, 0.01)
    assert rule_of_three(Estimate(0.0), 2) == Estimate(0.0, 0.0, 1.0)
    assert rule_of_three(Estimate(0.5, 0.2, 0.6), 9) == Estimate(0.5, 0.2, 0.6)
    assert rule_of_three(Estimate(None), 9) == Estimate(None)
    far = pair_trials([1, 2, 8, 9], [1, 1, 0, 0], calibrated=calibration(), replicates=5).far
    assert far == Estimate(0.0, 0.0, 1.0)
