"""Thresholds that keep to their FAR on identities drawn anew."""

from __future__ import annotations

import numpy as np
import pytest

from twinlens.errors import CalibrationError
from twinlens.measure.error_rates import threshold_at_far
from twinlens.measure.new_identities import _anova, draw_far, is_resolved
from twinlens.measure.new_identity_threshold import EXCESS, ImpostorPairs


def distances(num: int, each: int = 3, *, seed: int, pairs: float = 1.0, own: float = 0.3):
    """All pairs of `num` identities: distances that obey the model, squared roots normal."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(num), each)
    a, b = np.triu_indices(len(label), 1)
    effect, pair = rng.normal(0, own, num), rng.normal(0, pairs, (num, num))
    code_a, code_b = label[a], label[b]
    root = 9 + effect[code_a] + effect[code_b] + pair[code_a, code_b] + rng.normal(0, 1, len(a))
    same = code_a == code_b
    return np.where(same, root - 5, root) ** 2, same, code_a, code_b


def impostor_pairs(num: int, **kwargs) -> ImpostorPairs:
    dist, same, a, b = distances(num, **kwargs)
    return ImpostorPairs(dist[same], dist[~same], a[~same], b[~same], num, seed=0, replicates=20)


def test_the_analysis_of_variance_is_that_of_a_half_diallel():
    num, rng = 6, np.random.default_rng(0)
    a, b = np.triu_indices(num, 1)
    mean = rng.normal(size=len(a))
    table = _anova(mean, a, b)
    total = np.bincount(a, mean, num) + np.bincount(b, mean, num)
    grand = mean.sum()
    # Griffing (1956), method 4: general and specific combining ability.
    own = (total**2).sum() / (num - 2) - 4 * grand**2 / (num * (num - 2))
    pairs = (mean**2).sum() - (total**2).sum() / (num - 2) + 2 * grand**2 / ((num - 1) * (num - 2))
    assert (table.own, table.pairs) == pytest.approx((own, pairs))
    assert (table.freedom_own, table.freedom_pairs) == (num - 1, num * (num - 3) / 2)
    assert (table.factor, table.num_identities) == (num - 2, num)


def test_folds_that_are_not_compared_add_up():
    rng = np.random.default_rng(1)
    a, b = np.triu_indices(5, 1)
    mean = rng.normal(size=(2, len(a)))
    first, second = (_anova(part, a, b) for part in mean)
    # The second fold lies farther off, as distances of another model.
    both = _anova(
        np.concatenate([mean[0], mean[1] + 7]), *np.stack([[a, a + 5], [b, b + 5]]).reshape(2, -1)
    )
    assert both.own == pytest.approx(first.own + second.own)
    assert both.pairs == pytest.approx(first.pairs + second.pairs)
    assert both.freedom_pairs == first.freedom_pairs + second.freedom_pairs


def test_new_identities_seldom_exceed_the_limit():
    far, deviation = 0.02, np.sqrt(1 + 1 + 2 * 0.3**2)
    new = (9 + deviation * np.random.default_rng(0).standard_normal(100_000)) ** 2
    fits = [impostor_pairs(6, seed=seed).fit(far) for seed in range(40)]
    plain = np.array([(new <= fit.unadjusted).mean() for fit in fits])
    cautious = np.array([(new <= fit.threshold).mean() for fit in fits])
    assert np.mean(plain > EXCESS * far) > 0.12
    assert np.mean(cautious > EXCESS * far) <= 0.1


def test_caution_fades_with_the_number_of_identities():
    share = []
    for num in (5, 12, 40):
        fit = impostor_pairs(num, seed=3).fit(0.05)
        share.append(fit.threshold / fit.unadjusted)
        assert fit.low <= fit.threshold <= fit.unadjusted <= fit.high
    assert share == sorted(share)
    assert share[-1] > 0.95
    assert is_resolved(*impostor_pairs(40, seed=3).codes, EXCESS * 0.05)
    assert not is_resolved(*impostor_pairs(12, seed=3).codes, EXCESS * 0.05)


def test_the_draws_agree_with_the_distances_of_many_identities():
    dist, same, a, b = distances(60, 2, seed=0)
    draws = draw_far(dist[~same], a[~same], b[~same], seed=0)
    for far in (0.5, 0.05, 0.01):
        middle = np.median(draws.threshold(far))
        assert middle == pytest.approx(threshold_at_far(dist[~same], far), rel=0.1)


def test_forgeries_are_a_kind_of_their_own():
    dist, same, a, b = distances(8, seed=0)
    rng = np.random.default_rng(0)
    claimed = np.repeat(np.arange(8), 6)
    forged = (5 + rng.normal(0, 0.5, 8)[claimed] + rng.normal(0, 0.5, 48)) ** 2
    without = draw_far(dist[~same], a[~same], b[~same], seed=0)
    both = draw_far(
        np.concatenate([dist[~same], forged]), np.concatenate([a[~same], claimed]),
        np.concatenate([b[~same], claimed]), seed=0,
    )  # fmt: skip
    assert len(both.kinds) == 2
    assert both.kinds[1].share == pytest.approx(48 / (48 + np.count_nonzero(~same)))
    assert np.median(both.threshold(0.1)) < np.median(without.threshold(0.1))


def test_the_nearest_rate_that_the_pairs_allow_is_taken():
    pairs = impostor_pairs(5, seed=0)
    assert len(pairs.impostor) == 90
    assert pairs.fit_nearest(0.0001).far == 0.02  # 1 / 90 > 0.01
    assert pairs.fit_nearest(0.05).far == 0.05
    with pytest.raises(CalibrationError, match="found 9 impostor pairs"):
        impostor_pairs(2, seed=0).fit_nearest(0.001)


def test_a_threshold_that_accepts_nothing_is_no_threshold():
    rng = np.random.default_rng(0)
    impostor, genuine = rng.uniform(0, 1, 40), np.array([0.0])
    a, b = np.repeat(np.triu_indices(5, 1), 4, axis=1)
    pairs = ImpostorPairs(genuine + 1e-9, impostor, a, b, 5, seed=0, replicates=20)
    with pytest.raises(CalibrationError, match="add identities"):
        pairs.fit(0.03)
